package network_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/firewall"
)

// TestNodeAddress: environments ask the node for names at one address, whether
// or not the environment is there whose gateway that is, and nobody else does,
// and only while it serves them;
// nothing else of the host is open there; cleaning up removes it.
func TestNodeAddress(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	l := newLab(t, "nft")
	rules, err := firewall.New(firewall.Config{Subnet: subnet, Path: l.iptables, Resolver: netip.MustParseAddr("10.88.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	var serving atomic.Bool
	n := l.open(t, func(cfg *network.Config) {
		cfg.Firewall, cfg.Responder = rules, func() (string, bool) { return "gpu.internal", serving.Load() }
	})
	for range 2 {
		if err := n.EnsureNodeAddress(); err != nil {
			t.Fatal(err)
		}
	}
	if got := n.NodeAddress().String(); got != "10.88.0.1" {
		t.Fatalf("the node's address: %s", got)
	}
	if err := n.Restore(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"udp", "tcp"} {
		l.host.Answer(t, network, "10.88.0.1:53", "names")
		l.host.Answer(t, network, "0.0.0.0:54", "another service")
	}
	attach := func(envID string, slot int) *testutil.Namespace {
		if err := n.Attach(t.Context(), envID, slot); err != nil {
			t.Fatal(err)
		}
		return testutil.OpenNamespace(t, n.NetNS(envID))
	}
	detach := func(envID string) {
		if err := n.Detach(t.Context(), envID); err != nil {
			t.Fatal(err)
		}
		if err := n.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string, env *testutil.Namespace, slot int, blocked bool) {
		for _, network := range []string{"udp", "tcp"} {
			if got, err := ask(t, env, network, "10.88.0.1:53", false); err != nil || got != "names "+n.Address(slot).String() {
				t.Errorf("%s, %s: the environment in slot %d gets %q, %v", when, network, slot, got, err)
			}
			if !blocked {
				continue // what is not let through takes its time
			}
			if got, err := ask(t, env, network, "10.88.0.1:54", true); err == nil {
				t.Errorf("%s, %s: another service of the host answers %q", when, network, got)
			}
			l.lan.Sh(t, "ip route replace 10.88.0.0/16 via "+hostIP)
			if got, err := ask(t, l.lan, network, "10.88.0.1:53", true); err == nil {
				t.Errorf("%s, %s: the LAN gets %q", when, network, got)
			}
		}
	}
	env := attach("01ENVX", 5)
	for _, network := range []string{"udp", "tcp"} {
		if got, err := ask(t, env, network, "10.88.0.1:53", true); err == nil {
			t.Errorf("%s: while the node serves no names somebody else answers %q", network, got)
		}
	}
	serving.Store(true)
	n.ResponderChanged(t.Context())
	check("without slot 0", env, 5, true)
	zero := attach("01ENVZ", 0)
	check("with slot 0", env, 5, false)
	check("in slot 0", zero, 0, false)
	detach("01ENVZ")
	check("slot 0 has gone", env, 5, false)
	detach("01ENVX")
	if picked, err := network.PickRange(t.Context()); err != nil || picked != subnet {
		t.Errorf("the node's own address keeps its range from being picked: %s %v", picked, err)
	}
	if err := n.CleanUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := testutil.Sh(t, "ip -o addr show dev lo"); strings.Contains(left, "10.88.0.1") {
		t.Errorf("after cleaning up: %s", left)
	}
}

// TestUpstreams: whom the node asks for environments, by the host's files.
func TestUpstreams(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	resolv, resolved := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "resolved.conf")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open := func() *network.Networks {
		n, err := network.New(network.Config{
			Range: subnet, Firewall: noFirewall{}, ResolvConf: resolv, ResolvedConf: resolved,
			Upstreams: []netip.Addr{netip.MustParseAddr("192.0.2.99")}, Search: []string{"own.example"},
			Responder: func() (string, bool) { return "gpu.internal", true },
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	upstreams := func(n *network.Networks) string {
		servers, _ := n.Upstreams()
		texts := make([]string, 0, len(servers))
		for _, server := range servers {
			texts = append(texts, server.String())
		}
		return strings.Join(texts, " ")
	}
	for _, state := range []struct{ name, resolv, resolved, want string }{
		{"nothing", "", "", "192.0.2.99:53"},
		{"usual", "search a.example\nnameserver 192.0.2.1\nnameserver 192.0.2.1\nnameserver fe80::1%eth0", "", "192.0.2.1:53 [fe80::1%eth0]:53"},
		{"on the host", "nameserver 127.0.0.1", "", "127.0.0.1:53"},
		{"systemd-resolved", "nameserver 127.0.0.53", "nameserver 192.0.2.2\nnameserver 2001:db8::2", "192.0.2.2:53 [2001:db8::2]:53"},
		{"systemd-resolved without its file", "nameserver 127.0.0.53", "", "127.0.0.53:53"},
		{"ourselves", "nameserver 10.88.0.1\nnameserver 0.0.0.0\nnameserver 192.0.2.3", "", "192.0.2.3:53"},
	} {
		write(resolv, state.resolv)
		write(resolved, state.resolved)
		if got := upstreams(open()); got != state.want {
			t.Errorf("%s: %q, want %q", state.name, got, state.want)
		}
	}
	n := open()
	before := upstreams(n)
	write(resolv, "nameserver 192.0.2.200")
	for deadline := time.Now().Add(20 * time.Second); upstreams(n) == before; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a change is not noticed")
		}
	}
	servers, search, err := n.Resolvers()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"gpu.internal", "own.example"}, search); diff != "" || len(servers) != 1 || servers[0] != n.NodeAddress() {
		t.Errorf("environments ask %v in %v", servers, search)
	}
}

type noFirewall struct{ network.Firewall }

func (noFirewall) CleanUp(context.Context, firewall.Kept) error { return nil }
