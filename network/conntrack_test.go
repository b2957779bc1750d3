package network

import (
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
