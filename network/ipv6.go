package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/firewall"
)

// nearGateway is the address of every bridge that environments send to: of
// IPv6 a router is known by its link-local address.
var nearGateway = netip.MustParsePrefix("fe80::1/64") //nolint:gochecknoglobals // a constant but for its type

// twins are the addresses of environments.
func (n *Networks) twins() firewall.Twins {
	return firewall.Twins{Subnet: n.cfg.Range, Subnet6: n.cfg.Range6}
}

// wants6 tells whether environments are to have IPv6.
func (n *Networks) wants6() bool { return n.cfg.Range6.IsValid() }

// Address6 is the IPv6 address of the environment in a slot, invalid while
// environments have none.
func (n *Networks) Address6(slot int) netip.Addr {
	if n.unavailable6() != nil {
		return netip.Addr{}
	}
	return n.twins().Of(n.Address(slot))
}

// HasIPv6 tells whether environments have IPv6 now, and are published by it.
func (n *Networks) HasIPv6() bool { return n.unavailable6() == nil }

// tell6 tells that HasIPv6 has another answer than before.
func (n *Networks) tell6() {
	has := n.HasIPv6()
	n.mu.Lock()
	changed := has != n.had6
	n.had6 = has
	n.mu.Unlock()
	if changed && n.cfg.IPv6Changed != nil {
		n.background.Go(n.cfg.IPv6Changed)
	}
}

// unavailable6 tells why environments have no IPv6, nil when they have:
// IPV6_UNAVAILABLE.
func (n *Networks) unavailable6() error {
	if !n.wants6() {
		return errNotWanted
	}
	if err := n.cfg.Firewall.IPv6(); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.failure6
}

var errNotWanted = errors.New("environments have no IPv6")

// ready6 makes the host forward IPv6 and tells whether environments can have it.
func (n *Networks) ready6(ctx context.Context) bool {
	if !n.wants6() || n.cfg.Firewall.IPv6() != nil {
		return false
	}
	err := n.prepare6(ctx)
	if ctx.Err() != nil {
		return false
	}
	n.mu.Lock()
	before := n.failure6
	n.failure6 = err
	n.mu.Unlock()
	n.tell6()
	if err != nil && before == nil {
		n.cfg.Log.ErrorContext(ctx, "environments have no IPv6", "error", err)
	}
	return err == nil
}

// prepare6 does on the host what IPv6 of environments needs beside rules.
// IPV6_UNAVAILABLE.
func (n *Networks) prepare6(ctx context.Context) error {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return failed("open netlink", err)
	}
	defer host.Close()
	if mtu := n.mtu(host); mtu < leastMTU6 {
		return problem.New(problem.IPv6Unavailable, "environments have no IPv6: the MTU of the host's default route is %d, and IPv6 needs %d", mtu, leastMTU6).
			WithHint("Set a larger MTU on that interface.")
	}
	if err := n.ensureRange6Once(); err != nil {
		return problem.New(problem.IPv6Unavailable, "environments have no IPv6: their range cannot be routed").WithCause(err).
			WithHint("See whether the host has IPv6: ip -6 route")
	}
	if _, err := n.forward6.switchOn(ctx); err != nil {
		return problem.New(problem.IPv6Unavailable, "environments have no IPv6: the host does not forward it").WithCause(err).
			WithHint("Let remotegpud write to /proc/sys/net/ipv6, or set net.ipv6.conf.all.forwarding=1 yourself.")
	}
	return nil
}

// declared is an address as environments are known by it: of an IPv6 one of the
// range that of IPv4 which it is the twin of. Others stay as they are.
func (n *Networks) declared(ip net.IP) (address netip.Addr, ok bool) {
	address, ok = netip.AddrFromSlice(ip)
	address = address.Unmap()
	if twin, is := n.twins().Back(address); is {
		return twin, true
	}
	return address, ok
}

// addresses6 are those of the bridge in a slot.
func (n *Networks) addresses6(slot int) []netip.Prefix {
	gateway := n.twins().Of(n.gateway(slot))
	return []netip.Prefix{nearGateway, netip.PrefixFrom(gateway, gateway.BitLen())}
}

// ensureSix gives a bridge its addresses of IPv6, the route to the environment,
// and where that is. There is no network on the link: what else an environment
// calls itself leads nowhere, and the firewall drops it. What the bridge has
// besides, of addresses and routes that were there, goes.
func (n *Networks) ensureSix(host *netlink.Handle, bridge netlink.Link, names names, slot int, addresses []netlink.Addr, routes []netlink.Route) error {
	own := n.twins().Of(n.Address(slot))
	if err := ensureAddresses6(host, bridge, n.addresses6(slot), addresses); err != nil {
		return err
	}
	name := bridge.Attrs().Name
	if err := host.LinkSetUp(bridge); err != nil { // routes lead to what is up
		return fmt.Errorf("set bridge %s up: %w", name, err)
	}
	route := &netlink.Route{LinkIndex: bridge.Attrs().Index, Dst: ipNet(netip.PrefixFrom(own, own.BitLen())), Protocol: unix.RTPROT_STATIC}
	if err := host.RouteReplace(route); err != nil {
		return fmt.Errorf("set route to %s: %w", own, err)
	}
	// The kernel's own comes with the address, not when that is there.
	route = &netlink.Route{LinkIndex: bridge.Attrs().Index, Dst: ipNet(nearGateway.Masked()), Protocol: unix.RTPROT_KERNEL, Priority: kernelMetric}
	if err := host.RouteAppend(route); err != nil && !errors.Is(err, unix.EEXIST) { // each bridge has one
		return fmt.Errorf("set route to %s: %w", nearGateway.Masked(), err)
	}
	if err := removeStale6(host, name, routes, own); err != nil {
		return err
	}
	return ensureNeighbours(host, bridge, names.insideMAC, own, near)
}

// kernelMetric is that of the kernel's routes to the networks of addresses
// (IP6_RT_PRIO_ADDRCONF of net/ip6_route.h).
const kernelMetric = 256

// listed6 are the addresses and routes of IPv6 that a bridge has. The kernel
// lists those of the whole host for it.
func listed6(host *netlink.Handle, bridge netlink.Link) ([]netlink.Addr, []netlink.Route, error) {
	addresses, err := dump(func() ([]netlink.Addr, error) { return host.AddrList(bridge, netlink.FAMILY_V6) })
	if err != nil {
		return nil, nil, fmt.Errorf("list addresses of %s: %w", bridge.Attrs().Name, err)
	}
	routes, err := dump(func() ([]netlink.Route, error) { return host.RouteList(bridge, netlink.FAMILY_V6) })
	if err != nil {
		return nil, nil, fmt.Errorf("list routes of %s: %w", bridge.Attrs().Name, err)
	}
	return addresses, routes, nil
}

// removeStale6 takes the routes from a bridge that lead to other addresses than
// an environment's own, such as that of another range: it could send as them.
func removeStale6(host *netlink.Handle, bridge string, routes []netlink.Route, own netip.Addr) error {
	for i := range routes {
		if !isStale6(&routes[i], own) {
			continue
		}
		if err := host.RouteDel(&routes[i]); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("take route to %s from %s: %w", routes[i].Dst, bridge, err)
		}
	}
	return nil
}

// isStale6 tells of a route of a bridge that leads to another address than its
// environment's own. Those of the bridge's addresses are the kernel's.
func isStale6(route *netlink.Route, own netip.Addr) bool {
	to, ok := prefixOf(route.Dst)
	return route.Protocol != unix.RTPROT_KERNEL && (!ok || to != netip.PrefixFrom(own, own.BitLen()))
}

// ensureAddresses6 gives the link the addresses and takes those of it that were
// there and are others.
func ensureAddresses6(handle *netlink.Handle, link netlink.Link, wanted []netip.Prefix, there []netlink.Addr) error {
	name := link.Attrs().Name
	for _, address := range wanted {
		if slices.ContainsFunc(there, func(a netlink.Addr) bool { return a.IPNet.String() == address.String() }) {
			continue
		}
		// Nobody else can have it, so nobody is asked whether they do: that
		// takes a second.
		if err := handle.AddrReplace(link, &netlink.Addr{IPNet: ipNet(address), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("give %s address %s: %w", name, address, err)
		}
	}
	for i := range there {
		if isAmong(there[i].IPNet.String(), wanted) {
			continue
		}
		if err := handle.AddrDel(link, &there[i]); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("take address %s from %s: %w", there[i].IPNet, name, err)
		}
	}
	return nil
}

func isAmong(text string, prefixes []netip.Prefix) bool {
	for _, prefix := range prefixes {
		if prefix.String() == text {
			return true
		}
	}
	return false
}

// configureInside6 sets up the environment's side.
func configureInside6(inner *netlink.Handle, link netlink.Link, names names, address netip.Addr) error {
	there, err := dump(func() ([]netlink.Addr, error) { return inner.AddrList(link, netlink.FAMILY_V6) })
	if err != nil {
		return fmt.Errorf("list addresses of %s inside: %w", inside, err)
	}
	wanted := []netip.Prefix{netip.PrefixFrom(address, address.BitLen()), netip.PrefixFrom(near, nearGateway.Bits())}
	if err := ensureAddresses6(inner, link, wanted, there); err != nil {
		return err
	}
	if err := ensureNeighbours(inner, link, names.bridgeMAC, nearGateway.Addr()); err != nil {
		return err
	}
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index, Gw: nearGateway.Addr().AsSlice(),
		Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
	}
	if err := inner.RouteReplace(route); err != nil {
		return fmt.Errorf("set default route of IPv6 inside: %w", err)
	}
	return nil
}

// cut6 takes IPv6 from all environments when the rules that keep them apart are
// not in force. It is called after each application of rules.
func (n *Networks) cut6(ctx context.Context) {
	if !n.wants6() {
		return
	}
	down := n.cfg.Firewall.IPv6() != nil
	n.mu.Lock()
	before := n.down6
	n.down6 = down
	n.mu.Unlock()
	if down != before {
		n.stirs.happened()
	}
	n.tell6()
	if !down {
		return
	}
	bridges, err := ourBridges()
	if err == nil {
		_, err = n.off6(bridges)
	}
	if err != nil {
		n.cfg.Log.ErrorContext(ctx, "environments keep IPv6 without rules for it", "error", err)
	}
	if before {
		return
	}
	n.healer.lost()
	n.background.Go(func() { // who applies rules may be about to switch it on, and holds what this waits for
		if err := n.forward6.pause(context.WithoutCancel(ctx), func() bool { return n.cfg.Firewall.IPv6() == nil }); err != nil {
			n.cfg.Log.ErrorContext(ctx, "the host goes on forwarding IPv6 without rules for it", "error", err)
		}
	})
}

// off6 takes IPv6 from all environments that have it and returns the settings
// that it changed. The host's end is what counts; inside, programs are not to
// try an address that leads nowhere.
// links are ours, the bridges at least.
func (n *Networks) off6(links []hostLink) (changed []string, err error) {
	var errs []error
	for i := range links {
		envID, ok := bridgeOf(links[i])
		if !ok {
			continue
		}
		setting := disableIPv6(links[i].Attrs().Name)
		if links[i].has(&setting) {
			continue
		}
		had, err := setting.mend()
		errs = append(errs, err)
		if !had {
			continue
		}
		changed = append(changed, setting.name())
		there, err := pinned(n.NetNS(envID))
		if err == nil && there {
			err = inNamespace(n.NetNS(envID), false, func(int) error { return write(ofInside(false)) })
		}
		if err != nil { // Detach may be removing it
			n.cfg.Log.Debug("an environment keeps its address of IPv6, which leads nowhere", "environment", envID, "error", err)
		}
	}
	return changed, errors.Join(errs...)
}

// AddressIn is an address of the host in an IPv6 range that is not one of an
// environment's bridge; invalid when it has none. NETWORK_FAILED.
func AddressIn(range6 netip.Prefix) (netip.Addr, error) {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return netip.Addr{}, failed("open netlink", err)
	}
	defer host.Close()
	addresses, err := dump(func() ([]netlink.Addr, error) { return host.AddrList(nil, netlink.FAMILY_V6) })
	if err != nil {
		return netip.Addr{}, failed("list the host's addresses", err)
	}
	for i := range addresses {
		prefix, ok := prefixOf(addresses[i].IPNet)
		if !ok || !range6.Contains(prefix.Addr()) {
			continue
		}
		link, err := host.LinkByIndex(addresses[i].LinkIndex)
		if err == nil && !isOurs(link) {
			return prefix.Addr(), nil
		}
	}
	return netip.Addr{}, nil
}
