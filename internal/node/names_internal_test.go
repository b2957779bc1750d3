package node

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/config"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/dns"
	"github.com/remotegpu/remotegpu/network/firewall"
)

// rules remembers whether names were open to environments.
type rules struct {
	network.Firewall
	open atomic.Bool
}

func (r *rules) Published(context.Context) (firewall.Desired, error) { return firewall.Desired{}, nil }

func (r *rules) Set(_ context.Context, desired firewall.Desired) error {
	r.open.Store(desired.Surroundings.Names)
	return nil
}

func (r *rules) Restore(ctx context.Context, desired firewall.Desired) ([]string, error) {
	return nil, r.Set(ctx, desired)
}

func (r *rules) Watches(context.Context) (string, error) { return "events", nil }

func (r *rules) Watch(ctx context.Context, _ time.Duration, _ func(context.Context, firewall.Change)) error {
	<-ctx.Done()
	return nil
}

func (r *rules) Conflicts(context.Context, bool) ([]*problem.Problem, error) { return nil, nil }

// guarded: public names do not lead into a network that the host gets into.
func guarded(ctx context.Context, t *testing.T, n *names, eventually func(string, func() bool)) {
	t.Helper()
	testutil.Sh(t, "ip addr add 192.0.2.1/32 dev lo") // the name server of resolv.conf
	server, err := net.ListenPacket("udp4", "192.0.2.1:53")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		buffer := make([]byte, 512)
		for {
			size, from, err := server.ReadFrom(buffer)
			if err != nil {
				return
			}
			end := 12 + bytes.IndexByte(buffer[12:size], 0) + 5 // of the question
			reply := append([]byte{buffer[0], buffer[1], 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0}, buffer[12:end]...)
			reply = append(reply, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 50)
			if _, err := server.WriteTo(reply, from); err != nil {
				return
			}
		}
	}()
	records := func(want int) func() bool {
		return func() bool {
			answer := n.forwarder.Resolve(ctx, dns.Question{Name: "www.example.org.", Type: 1})
			return answer.Rcode == 0 && len(answer.Answer) == want
		}
	}
	eventually("an answer about a public name", records(1))
	look := func() { // as the reconciler does, or who follows addresses
		t.Helper()
		if err := n.networks.Restore(ctx, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	testutil.Sh(t, "ip addr add 203.0.113.1/24 dev up0")
	look()
	eventually("it to be left out, since the host is in that network", records(0))
	testutil.Sh(t, "ip addr del 203.0.113.1/24 dev up0")
	look()
	eventually("it to be given again", records(1))
	server.Close()
	testutil.Sh(t, "ip addr del 192.0.2.1/32 dev lo")
}

// White-box: only the node has the responder, and a whole node needs
// containerd. While another server has the port, environments have the host's
// name servers and the node says why; when it goes, names are served.
func TestNamesWaitForTheirPort(t *testing.T) {
	testutil.Require(t, testutil.Root)
	if !testutil.Isolated(t) {
		return
	}
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte("search site.example\nnameserver 192.0.2.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addresses := netip.MustParsePrefix("10.88.0.0/16")
	testutil.Sh(t, "ip link add up0 type bridge; ip addr add 198.51.100.7/24 dev up0; ip link set up0 up; ip route add default via 198.51.100.254")
	cfg := config.Default().DNS
	cfg.Listen = []string{"198.51.100.7", "203.0.113.99"} // the second is no address of the host
	own := cfg
	own.Listen = []string{"10.88.0.1"}
	if _, err := newNames(own, "", addresses, netip.Prefix{}, slog.New(slog.DiscardHandler)); err == nil || problem.Of(err).Field != "dns.listen" {
		t.Errorf("the node's own address among those that others ask at: %v", err)
	}
	n, err := newNames(cfg, "", addresses, netip.Prefix{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	n.retry = 20 * time.Millisecond
	var packets rules
	if n.networks, err = network.New(network.Config{Range: addresses, ResolvConf: resolv, Firewall: &packets, Responder: n.resolver}); err != nil {
		t.Fatal(err)
	}
	asked := func() netip.Addr {
		servers, _, err := n.networks.Resolvers()
		if err != nil || len(servers) != 1 {
			t.Fatalf("environments ask %v: %v", servers, err)
		}
		return servers[0]
	}
	says := func(reason problem.Reason) bool {
		return slices.ContainsFunc(n.problems(), func(p *problem.Problem) bool { return p.Reason == reason && p.Hint != "" })
	}
	eventually := func(what string, holds func() bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("waited in vain for %s: %v", what, n.problems())
			}
		}
	}
	other, err := net.Listen("tcp4", "0.0.0.0:53")
	if err != nil {
		t.Fatal(err)
	}
	n.start(t.Context())
	if got := asked(); got != netip.MustParseAddr("192.0.2.1") || !says(problem.DNSListenFailed) {
		t.Errorf("while another server has the port environments ask %s: %v", got, n.problems())
	}
	if err := n.networks.Restore(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	if packets.open.Load() {
		t.Error("what another server says is open to environments")
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.run(ctx) }()
	following := make(chan error, 1)
	go func() { following <- n.networks.Run(ctx) }() // it tells names of addresses
	other.Close()
	eventually("names to be served", func() bool { return asked() == n.networks.NodeAddress() })
	eventually("environments to reach it", packets.open.Load)
	if err := n.Declare(ctx, []*dns.Host{{ID: "1", Name: "demo", Project: "default", Address: netip.MustParseAddr("10.88.0.2")}}); err != nil {
		t.Fatal(err)
	}
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, "198.51.100.7:53")
	}}
	leads := func(to string) func() bool {
		return func() bool {
			found, err := resolver.LookupHost(ctx, "demo.default.gpu.internal.")
			return err == nil && slices.Equal(found, []string{to})
		}
	}
	testutil.Sh(t, "ip addr add 10.7.0.1/32 dev lo") // an asker that is allowed
	if _, err := resolver.LookupHost(ctx, "demo.default.gpu.internal."); err == nil {
		t.Error("an address that may not ask is answered")
	}
	resolver.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		dialer := &net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(10, 7, 0, 1)}}
		if network == "tcp" {
			dialer.LocalAddr = &net.TCPAddr{IP: net.IPv4(10, 7, 0, 1)}
		}
		return dialer.DialContext(ctx, network, "198.51.100.7:53")
	}
	eventually("the name", leads("198.51.100.7"))
	testutil.Sh(t, "ip addr add 198.51.100.9/24 dev up0; ip route replace default via 198.51.100.254 src 198.51.100.9")
	eventually("the name to lead to the host's new address", leads("198.51.100.9"))
	for _, p := range n.problems() {
		if p.Reason == problem.DNSListenFailed && (strings.Count(p.Error(), "203.0.113.99") != 1 || !strings.Contains(p.Hint, "give the host the address 203.0.113.99") || strings.Contains(p.Hint, "ss -lnp")) {
			t.Errorf("of an address that the host does not have: %s; %s", p.Error(), p.Hint)
		}
	}
	testutil.Sh(t, "ip addr add 203.0.113.99/32 dev lo scope host")
	eventually("all addresses to be served", func() bool { return !says(problem.DNSListenFailed) })
	testutil.Sh(t, "ip addr del 10.88.0.1/32 dev lo")
	eventually("the node's address to be back", func() bool {
		return testutil.Sh(t, "ip -o addr show dev lo | grep -c 10.88.0.1/32 || true") == "1"
	})
	guarded(ctx, t, n, eventually)
	stop()
	if err := errors.Join(<-done, <-following); err != nil {
		t.Error(err)
	}
	if got := asked(); got != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("after the end environments ask %s", got)
	}
}
