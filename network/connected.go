package network

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/network/policy"
)

// lanBits is the least length of a network that is taken for the host's
// neighbourhood: an address with a shorter one stands for the way to
// everywhere, as with some tunnels.
const lanBits = 8

// connected are the networks that the host has addresses in or reaches without
// a router, sorted, without environments' own and those that are closed anyway.
// A host that has its address by DHCPv6, or in some clouds, knows its network by
// a route alone: the address is a /128 or a /32.
func (n *Networks) connected() ([]netip.Prefix, error) {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	family := netlink.FAMILY_V4
	if n.wants6() {
		family = netlink.FAMILY_ALL
	}
	addresses, err := dump(func() ([]netlink.Addr, error) { return host.AddrList(nil, family) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	routes, err := dump(func() ([]netlink.Route, error) { return host.RouteList(nil, family) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var found []netip.Prefix
	for i := range addresses {
		network := addresses[i].IPNet
		if peer := addresses[i].Peer; peer != nil {
			network = peer
		}
		if prefix, closes := n.closes(network); closes {
			found = append(found, prefix)
		}
	}
	slices.SortFunc(found, comparePrefixes)
	found = slices.Compact(found)
	var more []netip.Prefix
	for i := range routes {
		if prefix, closes := n.closes(routes[i].Dst); closes && isOnLink(&routes[i]) && !policy.Within(found, prefix) {
			more = append(more, prefix)
		}
	}
	found = append(found, more...)
	slices.SortFunc(found, comparePrefixes)
	return slices.Compact(found), nil
}

// closes is the network that is closed to environments because the host is in
// it; false when it is so anyway, theirs, or everywhere.
func (n *Networks) closes(network *net.IPNet) (netip.Prefix, bool) {
	prefix, ok := prefixOf(network)
	if !ok || prefix.Addr().IsLoopback() || prefix.Addr().IsMulticast() {
		return prefix, false
	}
	own := []netip.Prefix{n.cfg.Range}
	if n.wants6() {
		own = append(own, n.cfg.Range6)
	}
	prefix = prefix.Masked()
	return prefix, prefix.Bits() >= lanBits && !policy.Within(append(policy.Closed(), own...), prefix)
}

// isOnLink tells of a route to neighbours: there is no router on the way.
func isOnLink(route *netlink.Route) bool {
	if route.Type != unix.RTN_UNICAST || route.Table != unix.RT_TABLE_MAIN {
		return false
	}
	direct := func(gateway net.IP, via netlink.Destination, encap netlink.Encap) bool {
		return gateway == nil && via == nil && encap == nil
	}
	if len(route.MultiPath) == 0 {
		return direct(route.Gw, route.Via, route.Encap)
	}
	return slices.ContainsFunc(route.MultiPath, func(hop *netlink.NexthopInfo) bool { return direct(hop.Gw, hop.Via, hop.Encap) })
}

func comparePrefixes(a, b netip.Prefix) int {
	if order := a.Addr().Compare(b.Addr()); order != 0 {
		return order
	}
	return a.Bits() - b.Bits()
}
