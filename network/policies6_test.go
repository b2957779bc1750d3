package network_test

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

// TestPoliciesByIPv6: groups, egress policies and lists of sources hold for IPv6
// as they do for IPv4, on both backends; when others throw the rules away they
// are back without anybody asking.
func TestPoliciesByIPv6(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			l := newLab6(t, backend, ula)
			l.networks = l.open(t, func(cfg *network.Config) { cfg.Poll = 50 * time.Millisecond })
			l.lan.Sh(t, "ip addr add 2001:db8:7::3/64 dev lan preferred_lft 0 nodad")
			for _, at := range []string{"[" + internetIP6 + "]:8080", "[" + internetIP6 + "]:8081", "[" + privateIP6 + "]:8080"} {
				l.lan.Answer(t, "tcp", at, "internet")
			}
			all := map[string]*testutil.Namespace{}
			var published []port.Published
			var policies []policy.Declared
			for i, one := range []struct {
				name   string
				policy policy.Policy
			}{
				{"A", policy.Policy{Groups: []string{"web"}}},
				{"B", policy.Policy{Groups: []string{"web"}}},
				{"C", policy.Policy{Egress: policy.AllowList, Allow: destinations(t, "["+internetIP6+"]:8080", "203.0.113.0/24")}},
				{"D", policy.Policy{Egress: policy.None}},
				{"E", policy.Policy{Allow: destinations(t, privateIP6)}},
			} {
				envID := "01ENV" + one.name
				all[one.name] = l.attach(t, envID, i*31)
				all[one.name].Answer(t, "tcp", "[::]:80", one.name)
				mapping := port.Mapping{Service: port.Custom, Protocol: port.TCP, External: uint16(10000 + i), Internal: 80}
				if one.name == "E" {
					mapping.Sources = []netip.Prefix{netip.MustParsePrefix(lanIP6 + "/128")}
				}
				published = append(published, port.Published{EnvID: envID, Address: l.networks.Address(i * 31), Mappings: []port.Mapping{mapping}})
				policies = append(policies, policy.Declared{EnvID: envID, Project: "default", Address: l.networks.Address(i * 31), Policy: one.policy})
			}
			if err := l.networks.Restore(t.Context(), published, policies); err != nil {
				t.Fatal(err)
			}
			own := func(slot int) string { return l.networks.Address6(slot * 31).String() }
			hold := func(when string) {
				t.Helper()
				var asked sync.WaitGroup
				for _, row := range []struct {
					from     *testutil.Namespace
					to, port string
					want     string // "": blocked
				}{
					{all["A"], own(1), "80", "B " + own(0)},
					{all["A"], own(2), "80", ""},
					{all["C"], own(0), "80", ""},
					{all["C"], internetIP6, "8080", "internet " + hostIP6},
					{all["C"], internetIP6, "8081", ""},
					{all["D"], internetIP6, "8080", ""},
					{all["E"], internetIP6, "8081", "internet " + hostIP6},
					{all["E"], privateIP6, "8080", "internet " + hostIP6},
					{all["A"], privateIP6, "8080", ""},
					{l.lan, hostIP6, "10000", "A " + lanIP6},
					{l.lan, hostIP6, "10003", "D " + lanIP6},
					{l.host, hostIP6, "10004", "E " + hostIP6},
					{all["E"], hostIP6, "10004", "E " + own(4)[:len(own(4))-1] + "1"},
				} {
					asked.Go(func() {
						got, err := l.ask(t, row.from, "tcp", net.JoinHostPort(row.to, row.port), row.want == "")
						if row.want != "" && (err != nil || got != row.want) || row.want == "" && err == nil {
							t.Errorf("%s: %s port %s answers %q, %v, want %q", when, row.to, row.port, got, err, row.want)
						}
					})
				}
				for from, open := range map[string]bool{lanIP6: true, "2001:db8:7::3": false} {
					asked.Go(func() {
						var err error
						l.lan.Do(t, func() {
							dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
							var conn net.Conn
							if conn, err = dialer.DialContext(t.Context(), "tcp6", net.JoinHostPort(hostIP6, "10004")); err == nil {
								conn.Close()
							}
						})
						if open && err != nil || !open && !errors.Is(err, syscall.ECONNREFUSED) {
							t.Errorf("%s: %s to a port with sources: %v, want it open: %v", when, from, err, open)
						}
					})
				}
				// Nobody of IPv4 is in the list.
				if _, err := l.lan.Ask(t, "tcp", hostIP+":10004", patience); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s: a port with sources of IPv6 alone, by IPv4: %v", when, err)
				}
				asked.Wait()
			}
			hold("at first")
			if drift, err := l.networks.Drift(t.Context(), published, policies); err != nil || len(drift) > 0 {
				t.Errorf("drift %v, %v", drift, err)
			}
			stop := run(t, l.networks)
			ip6tables := strings.Replace(l.iptables, "iptables", "ip6tables", 1)
			for _, damage := range []string{"for t in raw filter nat; do $I -t $t -F; $I -t $t -X || true; done", "$I -I FORWARD 1 -j ACCEPT", "echo 0 >/proc/sys/net/ipv6/conf/all/forwarding"} {
				testutil.Sh(t, strings.ReplaceAll(damage, "$I", ip6tables))
				l.mended(t, damage)
			}
			hold("after the rules were thrown away")
			// A network that no address of the host is in, as with DHCPv6.
			l.lan.Sh(t, "ip addr add "+internetIP6+"/128 dev lan nodad")
			for _, step := range []struct {
				do     string
				closed bool
			}{{"ip -6 route add 2001:db8:99::/64 dev uplink", true}, {"ip -6 route del 2001:db8:99::/64 dev uplink", false}} {
				testutil.Sh(t, step.do)
				if _, err := l.host.Ask(t, "tcp", "["+internetIP6+"]:8080", patience); err != nil {
					t.Errorf("after %s the host does not get there: %v", step.do, err)
				}
				for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
					_, err := all["A"].Ask(t, "tcp", "["+internetIP6+"]:8080", quiet)
					if (err != nil) == step.closed {
						break
					}
					if time.Now().After(deadline) {
						t.Errorf("after %s: %v, want it closed: %v", step.do, err, step.closed)
						break
					}
				}
			}
			stop()
			// What is withdrawn ends, and a new daemon knows it from the kernel.
			fresh := l.open(t, nil)
			if err := fresh.Publish(t.Context(), "01ENVA", l.networks.Address(0), nil); err != nil {
				t.Fatal(err)
			}
			if _, err := l.lan.Ask(t, "tcp", net.JoinHostPort(hostIP6, "10000"), patience); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("what is withdrawn: %v", err)
			}
			if got, err := l.lan.Ask(t, "tcp", net.JoinHostPort(hostIP6, "10001"), patience); err != nil || got != "B "+lanIP6 {
				t.Errorf("what is not withdrawn: %q, %v", got, err)
			}
			cleanUp(t, l)
		})
	}
}

// TestPolicyOfIPv6IsRefused where environments have none, and destinations of it
// that nobody opens.
func TestPolicyOfIPv6IsRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		range6      netip.Prefix
		destination string
		want        bool
	}{
		{netip.Prefix{}, "2001:db8::/32", false},
		{ula, "2001:db8::/32", true},
		{ula, "fd77::/16", true},
		{ula, "fd88::8:0:0:0:2", false},
		{ula, metadataIP6, false},
		{ula, "fe80::1", false},
		{ula, "ff02::1", false},
		{ula, "::1", false},
	} {
		networks, err := network.New(network.Config{Range: subnet, Range6: c.range6, Firewall: &recorder{}})
		if err != nil {
			t.Fatal(err)
		}
		err = networks.CheckPolicy(policy.Policy{Allow: destinations(t, c.destination)}, "spec.network")
		if p := problem.Of(err); (err == nil) != c.want || err != nil && (p.Reason != problem.DestinationNotAllowed || p.Field != "spec.network.allow[0]" || p.Hint == "") {
			t.Errorf("%s with %s: %v, want it allowed: %v", c.destination, c.range6, err, c.want)
		}
	}
}
