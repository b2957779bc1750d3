package runtimetest

import (
	"context"
	"errors"
	"net/netip"
	"sync"

	"github.com/remotegpu/remotegpu/network/dns"
	"github.com/remotegpu/remotegpu/runtime"
)

// FakeNames is a runtime.Names that only remembers.
type FakeNames struct {
	mu    sync.Mutex
	hosts []*dns.Host
	count int
	fail  bool
}

var _ runtime.Names = (*FakeNames)(nil)

// Zones are gpu.internal and env.example.com.
func (n *FakeNames) Zones() []string { return []string{"gpu.internal", "env.example.com"} }

// Advertised is 192.0.2.7.
func (n *FakeNames) Advertised() []netip.Addr {
	return []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 7})}
}

// Declare remembers.
func (n *FakeNames) Declare(_ context.Context, hosts []*dns.Host) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.count++
	if n.fail {
		return errors.New("declare names: as asked for")
	}
	n.hosts = hosts
	return nil
}

// Fail makes declarations fail, or not any more.
func (n *FakeNames) Fail(fail bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fail = fail
}

// Count is how often something was declared.
func (n *FakeNames) Count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.count
}

// Host is what was declared last of an environment of that name, nil: nothing.
func (n *FakeNames) Host(name string) *dns.Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, host := range n.hosts {
		if host.Name == name {
			return host
		}
	}
	return nil
}
