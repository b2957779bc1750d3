package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// candidates are the ranges PickRange tries, in order: private networks that
// few sites use, then the rest of theirs.
func candidates() []netip.Prefix {
	var all []netip.Prefix
	for second := 88; second < 128; second++ {
		all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(second), 0, 0}), 16))
	}
	for second := 20; second < 32; second++ {
		all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(second), 0, 0}), 16))
	}
	for third := 128; third < 256; third += 16 {
		all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(third), 0}), 20))
	}
	return all
}

// PickRange returns a private network that collides with no route and no
// address of the host but our own. The caller persists it: another call may
// find another one. ADDRESS_POOL_EXHAUSTED when all collide.
func PickRange(_ context.Context) (netip.Prefix, error) {
	taken, err := takenNetworks()
	if err != nil {
		return netip.Prefix{}, failed("look at the host's routes", err)
	}
next:
	for _, candidate := range candidates() {
		for _, network := range taken {
			if network.Overlaps(candidate) {
				continue next
			}
		}
		return candidate, nil
	}
	return netip.Prefix{}, problem.New(problem.AddressPoolExhausted, "every private network collides with a route of this host").
		WithHint("Configure an address range for environments that is really free.")
}

// takenNetworks returns the networks that the host's addresses and routes, of
// all tables, lead to, without default routes.
func takenNetworks() ([]netip.Prefix, error) {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	links, err := dump(host.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	own := make(map[int]bool)
	for _, link := range links {
		if strings.HasPrefix(link.Attrs().Name, bridgePrefix) {
			own[link.Attrs().Index] = true
		}
	}
	var taken []netip.Prefix
	node := make(map[string]bool) // what an earlier daemon gave the loopback interface
	add := func(link int, network *net.IPNet) {
		if network == nil || own[link] || node[network.String()] {
			return
		}
		address, ok := netip.AddrFromSlice(network.IP.To4())
		if bits, _ := network.Mask.Size(); ok && bits > 0 {
			taken = append(taken, netip.PrefixFrom(address, bits).Masked())
		}
	}
	addresses, err := dump(func() ([]netlink.Addr, error) { return host.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, address := range addresses {
		if address.Label == nodeAddressLabel {
			node[address.IPNet.String()] = true
		}
	}
	for _, address := range addresses {
		add(address.LinkIndex, address.IPNet)
	}
	routes, err := host.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, route := range routes {
		if route.Protocol == rangeProtocol && route.Type == unix.RTN_UNREACHABLE {
			continue // an earlier daemon's
		}
		add(route.LinkIndex, route.Dst)
	}
	return taken, nil
}
