package network

import (
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/port"
)

// White-box: a walk of the kernel's table is seen from outside by what broke.
func TestStaleUDP(t *testing.T) {
	t.Parallel()
	mapping := firewall.Mapping{Protocol: port.UDP, HostPort: 5000, To: netip.MustParseAddrPort("10.88.0.2:53")}
	stale := (&Networks{}).staleUDP([]firewall.Mapping{mapping}, func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.1")} })
	for _, test := range []struct {
		what, to, answers string
		protocol          uint8
		port              uint16
		want              bool
	}{
		{"to the host itself", "192.0.2.1", "192.0.2.1", unix.IPPROTO_UDP, 5000, true},
		{"to the host's loopback", "127.0.0.1", "127.0.0.1", unix.IPPROTO_UDP, 5000, true},
		{"to whom it led before", "192.0.2.1", "10.88.0.10", unix.IPPROTO_UDP, 5000, true},
		{"to whom it leads", "192.0.2.1", "10.88.0.2", unix.IPPROTO_UDP, 5000, false},
		{"through the host to another machine", "198.51.100.7", "198.51.100.7", unix.IPPROTO_UDP, 5000, false},
		{"to another port", "192.0.2.1", "192.0.2.1", unix.IPPROTO_UDP, 5001, false},
		{"TCP", "192.0.2.1", "192.0.2.1", unix.IPPROTO_TCP, 5000, false},
	} {
		var flow netlink.ConntrackFlow
		flow.Forward.Protocol, flow.Forward.DstPort = test.protocol, test.port
		flow.Forward.DstIP, flow.Reverse.SrcIP = net.ParseIP(test.to), net.ParseIP(test.answers)
		if got := stale(&flow); got != test.want {
			t.Errorf("%s: %v", test.what, got)
		}
	}
}

// White-box: what was opened while there were no rules is to end, and what they
// let through is not. From outside it takes a gap of the right length.
func TestOpenedInAGap(t *testing.T) {
	t.Parallel()
	n := &Networks{cfg: Config{Range: netip.MustParsePrefix("10.88.0.0/16"), Range6: netip.MustParsePrefix("fd88::/48")}}
	desired := firewall.Desired{Surroundings: firewall.Surroundings{Names: true}, Policies: []firewall.Policy{
		{EnvID: "A", Address: n.Address(0), Groups: []string{"web"}}, {EnvID: "B", Address: n.Address(1), Groups: []string{"web"}},
	}}
	refused, unpublished := n.refused(&desired), n.unpublished(nil)
	for _, test := range []struct {
		what, from, to string
		protocol       uint8
		port           uint16
		want           bool
	}{
		{"a service of the host by the gateway", "10.88.0.2", "10.88.0.1", unix.IPPROTO_TCP, 22, true},
		{"the same by IPv6", "fd88::2", "fd88::1", unix.IPPROTO_TCP, 22, true},
		{"the same by another's gateway", "10.88.0.2", "10.88.0.9", unix.IPPROTO_TCP, 22, true},
		{"names by the node's address", "10.88.0.2", "10.88.0.1", unix.IPPROTO_UDP, 53, false},
		{"names by another's gateway", "10.88.0.2", "10.88.0.9", unix.IPPROTO_UDP, 53, true},
		{"whether the host is there", "10.88.0.2", "10.88.0.1", unix.IPPROTO_ICMP, 0, false},
		{"another protocol", "10.88.0.2", "10.88.0.1", unix.IPPROTO_SCTP, 22, true},
		{"one of its group", "10.88.0.2", "10.88.0.10", unix.IPPROTO_TCP, 80, false},
		{"one of its group by IPv6", "fd88::2", "fd88:0:0:1::2", unix.IPPROTO_TCP, 80, false},
		{"another environment", "10.88.0.2", "10.88.0.18", unix.IPPROTO_TCP, 80, true},
		{"an environment from elsewhere", "198.51.100.7", "10.88.0.2", unix.IPPROTO_TCP, 80, true},
		{"the same by IPv6", "2001:db8::7", "fd88::2", unix.IPPROTO_TCP, 80, true},
		{"an environment from the host", "127.0.0.1", "10.88.0.2", unix.IPPROTO_TCP, 80, false},
		{"the internet", "10.88.0.2", "198.51.100.7", unix.IPPROTO_TCP, 80, false},
	} {
		var flow netlink.ConntrackFlow
		flow.Forward.Protocol, flow.Forward.DstPort = test.protocol, test.port
		flow.Forward.SrcIP, flow.Forward.DstIP, flow.Reverse.SrcIP = net.ParseIP(test.from), net.ParseIP(test.to), net.ParseIP(test.to)
		if got := refused(&flow) || unpublished(&flow); got != test.want {
			t.Errorf("%s: ends %v, want %v", test.what, got, test.want)
		}
	}
}

// White-box: what is forgotten together is seen from outside by its cost only.
func TestForgetsInFewWalks(t *testing.T) {
	t.Parallel()
	var f forgetter
	var mu sync.Mutex
	walks, selections := 0, 0
	forget := func(which ...flows) {
		mu.Lock()
		defer mu.Unlock()
		walks++
		selections += len(which)
	}
	const callers = 50
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			f.later(func(*netlink.ConntrackFlow) bool { return false }, forget)
			mu.Lock()
			defer mu.Unlock()
			if walks == 0 {
				t.Error("it returned before the walk")
			}
		})
	}
	group.Wait()
	if selections != callers || walks >= callers {
		t.Errorf("%d selections in %d walks, want all %d in fewer", selections, walks, callers)
	}
	f.later(func(*netlink.ConntrackFlow) bool { return false }, forget)
	if selections != callers+1 {
		t.Errorf("what came after a walk is not forgotten: %d selections", selections)
	}
}

// White-box: the kernel cannot be told to fail in one family.
func TestForgetsInBothFamilies(t *testing.T) {
	t.Parallel()
	tried := make(map[netlink.InetFamily]int)
	n := &Networks{cfg: Config{Range6: netip.MustParsePrefix("fd88::/48"), Log: slog.New(slog.DiscardHandler)}}
	fails := 2
	n.untrack = func(family netlink.InetFamily, _ ...netlink.CustomConntrackFilter) error {
		tried[family]++
		if family == unix.AF_INET && tried[family] <= fails {
			return netlink.ErrDumpInterrupted
		}
		return nil
	}
	n.forget(t.Context(), func(*netlink.ConntrackFlow) bool { return true })
	if tried[unix.AF_INET] != fails+1 || tried[unix.AF_INET6] != 1 {
		t.Errorf("tables walked %v, want that of IPv4 %d times and that of IPv6 once", tried, fails+1)
	}
}
