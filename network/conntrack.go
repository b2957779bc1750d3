package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/cleanup"
	"github.com/remotegpu/remotegpu/internal/tick"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/port"
)

// flows selects tracked connections.
type flows func(*netlink.ConntrackFlow) bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool { return f(flow) }

// flowsOf selects all connections from or to an environment.
func (n *Networks) flowsOf(address netip.Addr) flows {
	is := func(ip net.IP) bool {
		declared, ok := n.declared(ip)
		return ok && declared == address
	}
	return func(flow *netlink.ConntrackFlow) bool { return is(flow.Forward.SrcIP) || is(flow.Reverse.SrcIP) }
}

// flowsIn selects all connections that have to do with a network.
func flowsIn(network netip.Prefix) flows {
	is := func(ip net.IP) bool {
		address, ok := netip.AddrFromSlice(ip)
		return ok && network.Contains(address.Unmap())
	}
	return func(flow *netlink.ConntrackFlow) bool {
		return is(flow.Forward.SrcIP) || is(flow.Forward.DstIP) || is(flow.Reverse.SrcIP) || is(flow.Reverse.DstIP)
	}
}

// staleUDP selects datagrams to host ports that were published just now and
// are tracked as going elsewhere: without the mapping, or to whom it led
// before. Each datagram would keep such an entry alive. local are the addresses
// of the host: a datagram to the same port of another machine is none of ours.
func (n *Networks) staleUDP(added []firewall.Mapping, local func() []netip.Addr) flows {
	to := make(map[uint16]netip.Addr)
	for _, m := range added {
		if m.Protocol == port.UDP {
			to[m.HostPort] = m.To.Addr()
		}
	}
	if len(to) == 0 {
		return nil
	}
	local = sync.OnceValue(local)
	return func(flow *netlink.ConntrackFlow) bool {
		target, ok := to[flow.Forward.DstPort]
		if !ok || flow.Forward.Protocol != unix.IPPROTO_UDP {
			return false
		}
		if end, ok := n.declared(flow.Reverse.SrcIP); ok && end == target {
			return false
		}
		address, ok := netip.AddrFromSlice(flow.Forward.DstIP)
		address = address.Unmap()
		return ok && (address.IsLoopback() || slices.Contains(local(), address))
	}
}

// withdrawn selects connections through mappings that are no more, or that let
// not everybody in any more: those that present lets in, and those of local
// addresses, stay.
func (n *Networks) withdrawn(removed, present []firewall.Mapping) flows {
	if len(removed) == 0 {
		return nil
	}
	local := sync.OnceValue(localAddresses)
	return func(flow *netlink.ConntrackFlow) bool {
		for _, m := range removed {
			if n.through(flow, m) {
				return !slices.ContainsFunc(present, func(p firewall.Mapping) bool { return n.through(flow, p) && n.admits(p, flow.Forward.SrcIP, local) })
			}
		}
		return false
	}
}

// unpublished selects connections that were led to environments by a mapping
// that is no more, or that does not let in who opened them, and those that came
// to an environment's own address from elsewhere while there were no rules.
func (n *Networks) unpublished(mappings []firewall.Mapping) flows {
	type key struct {
		protocol uint8
		port     uint16
	}
	present := make(map[key]firewall.Mapping, len(mappings))
	for _, m := range mappings {
		present[key{numberOf(m.Protocol), m.HostPort}] = m
	}
	local := sync.OnceValue(localAddresses)
	return func(flow *netlink.ConntrackFlow) bool {
		to, ok := n.declared(flow.Reverse.SrcIP)
		if !ok || !n.isEnvironment(to) {
			return false
		}
		if flow.Forward.DstIP.Equal(flow.Reverse.SrcIP) {
			from, _ := n.declared(flow.Forward.SrcIP)
			return !n.isEnvironment(from) && !from.IsLoopback() && !slices.Contains(local(), from) // those of environments: see refused
		}
		m, there := present[key{flow.Forward.Protocol, flow.Forward.DstPort}]
		return !there || !n.through(flow, m) || !n.admits(m, flow.Forward.SrcIP, local)
	}
}

// throughAny selects connections through mappings of which it is not known any
// more to whom they led.
func (n *Networks) throughAny(mappings []port.Mapping) flows {
	return func(flow *netlink.ConntrackFlow) bool {
		to, ok := n.declared(flow.Reverse.SrcIP)
		return ok && n.cfg.Range.Contains(to) && slices.ContainsFunc(mappings, func(m port.Mapping) bool {
			return flow.Forward.Protocol == numberOf(m.Protocol) && flow.Forward.DstPort == m.External && flow.Reverse.SrcPort == m.Internal
		})
	}
}

// numberOf is the number of a protocol (IANA).
func numberOf(protocol port.Protocol) uint8 {
	if protocol == port.UDP {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

// through tells whether a connection goes through a mapping.
func (n *Networks) through(flow *netlink.ConntrackFlow, m firewall.Mapping) bool {
	end, ok := n.declared(flow.Reverse.SrcIP)
	return ok && end == m.To.Addr() && flow.Forward.Protocol == numberOf(m.Protocol) && flow.Forward.DstPort == m.HostPort
}

// admits tells whether the rules of a mapping let a source through.
func (n *Networks) admits(m firewall.Mapping, source net.IP, local func() []netip.Addr) bool {
	address, ok := n.declared(source)
	switch {
	case len(m.Sources) == 0 && !m.Inside:
		return true
	case !ok:
		return false
	case m.Inside && n.cfg.Range.Contains(address):
		return true
	}
	return address == m.To.Addr() || address.IsLoopback() || slices.Contains(local(), address) ||
		slices.ContainsFunc(m.Sources, func(p netip.Prefix) bool { return p.Contains(address) })
}

// localAddresses are those of the host. None when they cannot be read: then
// connections of the host end as those of others do.
func localAddresses() []netip.Addr {
	found, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	addresses := make([]netip.Addr, 0, len(found))
	for _, address := range found {
		if prefix, err := netip.ParsePrefix(address.String()); err == nil {
			addresses = append(addresses, prefix.Addr().Unmap())
		}
	}
	return addresses
}

// forget drops the tracked connections that one of the selections means. It
// walks the whole table, a quarter of a million buckets on a common host, so it
// is kept off paths that need not wait for it: see forgetter. A failure is
// logged: entries time out by themselves.
func (n *Networks) forget(ctx context.Context, which ...flows) {
	families := []netlink.InetFamily{unix.AF_INET}
	if n.wants6() {
		families = append(families, unix.AF_INET6)
	}
	n.forgetIn(ctx, families, which...)
}

// forgetTries is how often the table of a family is walked in vain, each
// forgetPause after the last.
const (
	forgetTries = 3
	forgetPause = 100 * time.Millisecond
)

// forgetIn does as forget in some address families. What fails in one of them
// keeps no connection of another alive.
func (n *Networks) forgetIn(ctx context.Context, families []netlink.InetFamily, which ...flows) {
	filters := make([]netlink.CustomConntrackFilter, len(which))
	for i, selection := range which {
		filters[i] = selection
	}
	var err error
	for try := range forgetTries {
		if try > 0 && !tick.Pause(ctx, forgetPause) {
			break
		}
		var again []netlink.InetFamily
		err = nil
		for _, family := range families {
			if failure := n.untrack(family, filters...); failure != nil {
				again, err = append(again, family), errors.Join(err, failure)
			}
		}
		if families = again; len(families) == 0 {
			return
		}
	}
	n.cfg.Log.WarnContext(ctx, "stale tracked connections are not dropped", "error", err)
}

// untrack ends the tracking of connections of a family that one of the filters
// selects.
func untrack(family netlink.InetFamily, filters ...netlink.CustomConntrackFilter) error {
	handle, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer handle.Close()
	if _, err := handle.ConntrackDeleteFilters(netlink.ConntrackTable, family, filters...); err != nil {
		return fmt.Errorf("drop tracked connections of address family %d: %w", family, err)
	}
	return nil
}

// forgetStrayed drops, in the background, tracked datagrams to published ports
// that began while the rules were gone: as long as their sender goes on they
// would lead nowhere.
func (n *Networks) forgetStrayed(ctx context.Context) {
	strayed := n.staleUDP(n.published.all().Mappings, localAddresses)
	if strayed == nil {
		return
	}
	n.background.Go(func() {
		ctx, cancel := cleanup.Context(ctx)
		defer cancel()
		n.forgetter.later(strayed, func(which ...flows) { n.forget(ctx, which...) })
	})
}

// gatherTime is how long selections are gathered before the table is walked:
// long enough that what a delete withdraws and what it detaches are dropped in
// one walk, and that a burst of deletes costs a few.
const gatherTime = 200 * time.Millisecond

// forgetter gathers selections and has them forgotten together.
type forgetter struct {
	mu   sync.Mutex
	next *forgetting // gathered now; nil: nothing
}

// forgetting is a walk to come.
type forgetting struct {
	which []flows
	done  chan struct{} // closed after the walk
}

// later forgets what which selects with the next walk and waits for that.
func (f *forgetter) later(which flows, forget func(...flows)) {
	f.mu.Lock()
	walk := f.next
	if walk == nil {
		walk = &forgetting{done: make(chan struct{})}
		f.next = walk
	}
	walk.which = append(walk.which, which)
	first := len(walk.which) == 1
	f.mu.Unlock()
	if !first {
		<-walk.done
		return
	}
	defer close(walk.done)
	timer := time.NewTimer(gatherTime)
	defer timer.Stop()
	<-timer.C
	f.mu.Lock()
	f.next = nil
	f.mu.Unlock()
	forget(walk.which...)
}
