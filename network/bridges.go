package network

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bridge is what the host has of one environment's network.
type bridge struct {
	name   string
	index  int  // 0: it is gone
	slot   int  // that it should have; -1: nobody knows
	linked bool // it is up, and its environment's interface is up and on it
	four   bool // it has what it needs of IPv4
	six    bool // it has what it needs of IPv6, and leads to nobody else

	addresses6 []netlink.Addr
	routes6    []netlink.Route
}

// whole tells whether there is nothing to mend.
func (b *bridge) whole(six bool) bool { return b.linked && b.four && (b.six || !six) }

// lists are the kernel's lists by interface, each read once however many
// environments there are.
type lists struct {
	addresses  map[int][]netlink.Addr
	routes     map[int][]netlink.Route
	neighbours map[int][]netlink.Neigh
}

// list reads the kernel's lists, those of IPv6 too if it is asked for.
func list(six bool) (*lists, error) {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	families := []int{netlink.FAMILY_V4}
	if six { // else the kernel need not have it
		families = append(families, netlink.FAMILY_V6)
	}
	all := &lists{make(map[int][]netlink.Addr), make(map[int][]netlink.Route), make(map[int][]netlink.Neigh)}
	for _, family := range families {
		addresses, err := dump(func() ([]netlink.Addr, error) { return host.AddrList(nil, family) })
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		for i := range addresses {
			at := addresses[i].LinkIndex
			all.addresses[at] = append(all.addresses[at], addresses[i])
		}
		routes, err := dump(func() ([]netlink.Route, error) { return host.RouteList(nil, family) })
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for i := range routes {
			at := routes[i].LinkIndex
			all.routes[at] = append(all.routes[at], routes[i])
		}
		neighbours, err := dump(func() ([]netlink.Neigh, error) { return host.NeighList(0, family) })
		if err != nil {
			return nil, fmt.Errorf("list neighbours: %w", err)
		}
		for i := range neighbours {
			at := neighbours[i].LinkIndex
			all.neighbours[at] = append(all.neighbours[at], neighbours[i])
		}
	}
	return all, nil
}

// look looks at all bridges at once, by environment, at what they have of IPv6
// if it is asked for, and names those that are gone. links are ours.
func (n *Networks) look(links []hostLink, six bool) (map[string]bridge, error) {
	all, err := list(six)
	if err != nil {
		return nil, err
	}
	ports := make(map[string]netlink.Link, len(links))
	for _, link := range links {
		if link.Type() == "veth" {
			ports[link.Attrs().Name] = link
		}
	}
	n.mu.Lock()
	slots := maps.Clone(n.slots)
	n.mu.Unlock()
	found := make(map[string]bridge)
	for _, link := range links {
		envID, ok := bridgeOf(link)
		if !ok {
			continue
		}
		names := n.names(envID)
		one := bridge{name: link.Attrs().Name, index: link.Attrs().Index, slot: -1}
		slot, known := slots[envID]
		if !known {
			slot = n.slotAmong(all.addresses[one.index])
		}
		one.slot, one.linked = slot, isUp(link) && isPort(ports[names.veth], one.index)
		if slot >= 0 {
			n.judge(&one, names, all, six)
		}
		found[envID] = one
	}
	return found, n.addGone(found, slots)
}

// addGone adds the bridges that are gone of environments in slots that have a
// namespace still.
func (n *Networks) addGone(found map[string]bridge, slots map[string]int) error {
	for envID, slot := range slots {
		if _, there := found[envID]; there {
			continue
		}
		names := n.names(envID)
		held, err := pinned(names.netns)
		if err != nil {
			return err
		}
		if held { // else it has no network: nothing has started it since the host did
			found[envID] = bridge{name: names.bridge, slot: slot}
		}
	}
	return nil
}

// slotAmong is the slot that has one of the addresses; -1: none.
func (n *Networks) slotAmong(addresses []netlink.Addr) int {
	for i := range addresses {
		if address := addressOf(addresses[i].IPNet); address.IsValid() && n.cfg.Range.Contains(address) {
			return n.slotOf(address)
		}
	}
	return -1
}

func isUp(link netlink.Link) bool { return link.Attrs().Flags&net.FlagUp != 0 }

// isPort tells whether an interface, which may be nil, is up and on a bridge.
func isPort(link netlink.Link, bridge int) bool {
	return link != nil && isUp(link) && link.Attrs().MasterIndex == bridge
}

// parts is what the kernel's lists have of one bridge.
type parts struct {
	addresses  []netlink.Addr
	routes     []netlink.Route
	neighbours []netlink.Neigh
}

func (p *parts) has(wanted netip.Prefix) bool {
	return slices.ContainsFunc(p.addresses, func(a netlink.Addr) bool { at, ok := prefixOf(a.IPNet); return ok && at == wanted })
}

func (p *parts) leads(wanted netip.Prefix) bool {
	return slices.ContainsFunc(p.routes, func(r netlink.Route) bool { to, ok := prefixOf(r.Dst); return ok && to == wanted && r.Gw == nil })
}

func (p *parts) knows(address netip.Addr, mac net.HardwareAddr) bool {
	return slices.ContainsFunc(p.neighbours, func(e netlink.Neigh) bool { return isFixed(&e, address, mac) })
}

// judge finds out what a bridge has of what its slot needs.
func (n *Networks) judge(one *bridge, names names, all *lists, six bool) {
	there := &parts{all.addresses[one.index], all.routes[one.index], all.neighbours[one.index]}
	gateway := netip.PrefixFrom(n.gateway(one.slot), slotBits)
	one.four = there.has(gateway) && there.leads(gateway.Masked()) && there.knows(n.Address(one.slot), names.insideMAC)
	if six {
		n.judge6(one, names, there)
	}
}

// judge6 does so for IPv6.
func (n *Networks) judge6(one *bridge, names names, there *parts) {
	own := n.twins().Of(n.Address(one.slot))
	one.six = there.leads(netip.PrefixFrom(own, own.BitLen())) && there.leads(nearGateway.Masked()) &&
		there.knows(own, names.insideMAC) && there.knows(near, names.insideMAC)
	for _, wanted := range n.addresses6(one.slot) {
		one.six = one.six && there.has(wanted)
	}
	for i := range there.addresses {
		if !addressOf(there.addresses[i].IPNet).Is4() {
			one.addresses6 = append(one.addresses6, there.addresses[i])
		}
	}
	for i := range there.routes {
		if to, ok := prefixOf(there.routes[i].Dst); ok && to.Addr().Is4() {
			continue
		}
		one.routes6 = append(one.routes6, there.routes[i])
		one.six = one.six && !isStale6(&there.routes[i], own)
	}
}
