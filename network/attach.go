package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/cleanup"
	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// Attach makes the environment's namespace, bridge and pair of interfaces and
// gives them the slot's addresses. What is there already is brought in order.
// It waits for a Detach of the same environment, or of the slot's former one.
// On error nothing is left, except of a network that was there before: that
// stays, since containers may be in it. Errors are NETWORK_FAILED.
func (n *Networks) Attach(ctx context.Context, envID string, slot int) error {
	if err := check(envID); err != nil {
		return err
	}
	if slot < 0 || slot >= n.Slots() {
		return problem.New(problem.AddressPoolExhausted, "slot %d is not in the address range %s", slot, n.cfg.Range).
			WithHint("Delete environments, or configure a larger range.")
	}
	unlock, err := n.locks.Lock(ctx, envID)
	if err != nil {
		return fmt.Errorf("attach network of environment %s: %w", envID, err)
	}
	defer unlock()
	free, err := n.addresses.Lock(ctx, n.Address(slot))
	if err != nil {
		return fmt.Errorf("attach network of environment %s: %w", envID, err)
	}
	defer free()
	if err := n.attach(ctx, envID, slot); err != nil {
		return failed("attach network of environment "+envID, err)
	}
	n.holds(envID, slot)
	return nil
}

func (n *Networks) attach(ctx context.Context, envID string, slot int) (err error) {
	_, err = n.forward4.switchOn(ctx)
	if err := errors.Join(n.ensureRange4Once(), n.prepare(), err); err != nil {
		return err
	}
	names := n.names(envID)
	there, err := pinned(names.netns)
	if err != nil {
		return err
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	if !there {
		defer func() {
			if err != nil {
				undo, cancel := cleanup.Context(ctx)
				defer cancel()
				err = errors.Join(err, n.remove(undo, envID))
			}
		}()
	}
	mtu, six := n.mtu(host), n.ready6(ctx)
	// The namespace is pinned before anything else is made and let go after
	// everything else is gone: its file names the environment, whatever else a
	// crash left.
	err = inNamespace(names.netns, !there, func(int) error { return write(ofInside(six)) })
	if err != nil {
		return err
	}
	if err := fault.Point(ctx, "network namespace made"); err != nil {
		return err
	}
	bridge, existed, err := n.ensureBridge(host, names, netip.PrefixFrom(n.gateway(slot), slotBits), mtu, six)
	if err != nil {
		return err
	}
	if six {
		var addresses []netlink.Addr
		var routes []netlink.Route
		if existed {
			if addresses, routes, err = listed6(host, bridge); err != nil {
				return err
			}
		}
		if err := n.ensureSix(host, bridge, names, slot, addresses, routes); err != nil {
			return err
		}
	}
	if err := errors.Join(ctx.Err(), fault.Point(ctx, "bridge made")); err != nil {
		return err
	}
	if err := n.ensurePair(host, names, bridge, slot, mtu, six); err != nil {
		return err
	}
	if six && n.cfg.Firewall.IPv6() != nil { // since we looked, and who cut it may have come before
		if _, err := disableIPv6(names.bridge).mend(); err != nil {
			return err
		}
	}
	return fault.Point(ctx, "interfaces made")
}

// mtu is the configured one, or that of the interface through which the host
// reaches the world.
func (n *Networks) mtu(host *netlink.Handle) int {
	if n.cfg.MTU > 0 {
		return n.cfg.MTU
	}
	// An address of TEST-NET-1 is only looked up, never sent to.
	routes, err := host.RouteGet(net.IPv4(192, 0, 2, 1))
	if err != nil || len(routes) == 0 {
		return DefaultMTU
	}
	link, err := host.LinkByIndex(routes[0].LinkIndex)
	if err != nil || link.Attrs().Flags&net.FlagLoopback != 0 || link.Attrs().MTU < 576 {
		return DefaultMTU
	}
	return link.Attrs().MTU
}

// ensureBridge makes the environment's bridge, or brings it in order.
func (n *Networks) ensureBridge(host *netlink.Handle, names names, address netip.Prefix, mtu int, six bool) (link netlink.Link, existed bool, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = names.bridge, mtu, names.bridgeMAC
	err = host.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, existed, fmt.Errorf("make bridge %s: %w", names.bridge, err)
	}
	existed = err != nil
	bridge, err := host.LinkByName(names.bridge)
	if err != nil {
		return nil, existed, fmt.Errorf("find bridge %s: %w", names.bridge, err)
	}
	if existed {
		if alias := bridge.Attrs().Alias; alias != "" && alias != names.alias {
			return nil, existed, fmt.Errorf("bridge %s belongs to %q: %w", names.bridge, alias, unix.EEXIST)
		}
		if err := host.LinkSetMTU(bridge, mtu); err != nil {
			return nil, existed, fmt.Errorf("set MTU of bridge %s: %w", names.bridge, err)
		}
	}
	if err := host.LinkSetAlias(bridge, names.alias); err != nil {
		return nil, existed, fmt.Errorf("set alias of bridge %s: %w", names.bridge, err)
	}
	if err := write(append(ofBridge(names.bridge), sixOf(names.bridge, six)...)); err != nil {
		return nil, existed, err
	}
	if err := ensureAddress(host, bridge, address, existed); err != nil {
		return nil, existed, err
	}
	if err := host.LinkSetUp(bridge); err != nil {
		return nil, existed, fmt.Errorf("set bridge %s up: %w", names.bridge, err)
	}
	if err := ensureNeighbours(host, bridge, names.insideMAC, address.Addr().Next()); err != nil {
		return nil, existed, err
	}
	return bridge, existed, nil
}

// ensureAddress gives the link the address, and when it existed takes others.
func ensureAddress(handle *netlink.Handle, link netlink.Link, address netip.Prefix, existed bool) error {
	name := link.Attrs().Name
	if existed {
		addresses, err := dump(func() ([]netlink.Addr, error) { return handle.AddrList(link, netlink.FAMILY_V4) })
		if err != nil {
			return fmt.Errorf("list addresses of %s: %w", name, err)
		}
		for _, other := range addresses {
			if other.IPNet.String() == address.String() {
				continue
			}
			if err := handle.AddrDel(link, &other); err != nil {
				return fmt.Errorf("take address %s from %s: %w", other.IPNet, name, err)
			}
		}
	}
	if err := handle.AddrReplace(link, &netlink.Addr{IPNet: ipNet(address)}); err != nil {
		return fmt.Errorf("give %s address %s: %w", name, address, err)
	}
	return nil
}

// ensurePair connects the environment's namespace to its bridge.
func (n *Networks) ensurePair(host *netlink.Handle, names names, bridge netlink.Link, slot, mtu int, six bool) error {
	err := inNamespace(names.netns, false, func(fd int) error {
		inner, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink in namespace: %w", err)
		}
		defer inner.Close()
		existed, err := addPair(host, inner, fd, names, bridge, mtu)
		if err != nil {
			return err
		}
		if err := configureInside(inner, netip.PrefixFrom(n.Address(slot), slotBits), n.gateway(slot), mtu, existed); err != nil {
			return err
		}
		link, err := inner.LinkByName(inside)
		if err != nil {
			return fmt.Errorf("find interface %s inside: %w", inside, err)
		}
		if err := ensureNeighbours(inner, link, names.bridgeMAC, n.gateway(slot)); err != nil || !six {
			return err
		}
		return configureInside6(inner, link, names, n.twins().Of(n.Address(slot)))
	})
	if err != nil {
		return err
	}
	veth, err := host.LinkByName(names.veth)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", names.veth, err)
	}
	if err := write(ofPort(names.veth)); err != nil {
		return err
	}
	steps := []struct {
		what string
		do   func() error
	}{
		{"name", func() error { return host.LinkSetAlias(veth, names.alias) }},
		{"attach to its bridge", func() error { return host.LinkSetMaster(veth, bridge) }},
		// With br_netfilter, what an environment sends to its own published
		// port leaves the bridge by the port it came in.
		{"set hairpin mode of", func() error { return host.LinkSetHairpin(veth, true) }},
		{"set MTU of", func() error { return host.LinkSetMTU(veth, mtu) }},
		{"set up", func() error { return host.LinkSetUp(veth) }},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s interface %s: %w", step.what, names.veth, err)
		}
	}
	return nil
}

// addPair makes the pair of interfaces unless both ends are there. It runs in
// the environment's namespace fd; host speaks to the host's.
func addPair(host, inner *netlink.Handle, fd int, names names, bridge netlink.Link, mtu int) (existed bool, err error) {
	near, err := find(host, names.veth)
	if err != nil {
		return false, err
	}
	far, err := find(inner, inside)
	if err != nil {
		return false, err
	}
	if near != nil && far != nil && near.Attrs().ParentIndex == far.Attrs().Index {
		return true, nil
	}
	for _, half := range []struct {
		handle *netlink.Handle
		link   netlink.Link
	}{{host, near}, {inner, far}} {
		if half.link == nil {
			continue
		}
		if err := half.handle.LinkDel(half.link); err != nil && !gone(err) {
			return false, fmt.Errorf("remove stale interface %s: %w", half.link.Attrs().Name, err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = names.veth, mtu, bridge.Attrs().Index
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: inside, PeerHardwareAddr: names.insideMAC, PeerNamespace: netlink.NsFd(fd)}
	if err := host.LinkAdd(pair); err != nil {
		return false, fmt.Errorf("make interface %s: %w", names.veth, err)
	}
	return false, nil
}

// configureInside sets up the environment's side.
func configureInside(inner *netlink.Handle, address netip.Prefix, gateway netip.Addr, mtu int, existed bool) error {
	lo, err := inner.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := inner.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	link, err := inner.LinkByName(inside)
	if err != nil {
		return fmt.Errorf("find interface %s inside: %w", inside, err)
	}
	if existed {
		if err := inner.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("set MTU of %s inside: %w", inside, err)
		}
	}
	if err := ensureAddress(inner, link, address, existed); err != nil {
		return err
	}
	if err := inner.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up inside: %w", inside, err)
	}
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice(),
		Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
	}
	if err := inner.RouteReplace(route); err != nil {
		return fmt.Errorf("set default route inside: %w", err)
	}
	return nil
}

// find returns the link of that name, nil when there is none.
func find(handle *netlink.Handle, name string) (netlink.Link, error) {
	link, err := handle.LinkByName(name)
	if gone(err) {
		return nil, nil //nolint:nilnil // absence is an answer here
	}
	if err != nil {
		return nil, fmt.Errorf("look for interface %s: %w", name, err)
	}
	return link, nil
}

// gone tells that a link is not there.
func gone(err error) bool {
	_, notFound := errors.AsType[netlink.LinkNotFoundError](err)
	return notFound || errors.Is(err, unix.ENODEV)
}

func ipNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}
