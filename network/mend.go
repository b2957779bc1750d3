package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

// mendNetworks gives environments' networks back what others took of them on the
// host: bridges, interfaces, addresses, routes, neighbours, and that they are up;
// and the IPv6 that they lack after a start with another range, or takes it when
// they can have none. The rules must be in force. It returns the bridges that were wrong.
func (n *Networks) mendNetworks(ctx context.Context) (mended []string, err error) {
	n.mending.Lock()
	defer n.mending.Unlock()
	errs := []error{leaveRanges4(n.cfg.Range)}
	if n.routed4.Load() {
		errs = append(errs, n.ensureRange4())
	}
	six, err := n.prepareMending6(ctx)
	if err != nil {
		return nil, errors.Join(append(errs, err)...)
	}
	links, err := ours()
	if err != nil {
		return nil, errors.Join(append(errs, err)...)
	}
	there, err := n.look(links, six)
	if err != nil {
		return nil, errors.Join(append(errs, err)...)
	}
	n.forgetSlots(there)
	for _, envID := range slices.Sorted(maps.Keys(there)) {
		one := there[envID]
		if one.slot < 0 || one.whole(six) {
			continue
		}
		changed, err := n.bring(ctx, envID, &one, six && n.cfg.Firewall.IPv6() == nil) // else a condition says so, and followIPv6 tries again
		if err != nil {
			errs = append(errs, fmt.Errorf("mend the network of environment %s: %w", envID, err))
		}
		switch {
		case !changed:
		case one.linked && one.four:
			mended = append(mended, one.name+" (IPv6)")
		default:
			mended = append(mended, one.name)
		}
	}
	return mended, errors.Join(errs...)
}

// prepareMending6 does what comes before addresses of IPv6, and tells whether
// environments can have some.
func (n *Networks) prepareMending6(ctx context.Context) (six bool, err error) {
	if !n.wants6() {
		return false, n.leaveRanges6(ctx, netip.Prefix{})
	}
	n.routed6.Store(false) // it is looked at again
	if n.ready6(ctx) {
		return true, n.leaveRanges6(ctx, n.cfg.Range6) // before an address of it may be another's
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	bridges, err := ourBridges()
	if err == nil {
		_, err = n.off6(bridges)
	}
	return false, err
}

// holds notes that an environment has its network, in a slot: from now on that
// is looked after.
func (n *Networks) holds(envID string, slot int) {
	n.mu.Lock()
	n.slots[envID] = slot
	delete(n.silenced, envID)
	n.mu.Unlock()
	n.stirs.happened()
}

// silences notes that an environment is to have no address any more: nobody gives
// it back, until it is attached.
func (n *Networks) silences(envID string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.slots, envID)
	delete(n.limits, envID)
	n.silenced[envID] = true
}

// heldBefore notes where an earlier daemon has attached environments. What this
// one attached or detached since the caller listed them it knows better.
func (n *Networks) heldBefore(published []port.Published, policies []policy.Declared) {
	addresses := make(map[string]netip.Addr, len(policies))
	for i := range published {
		addresses[published[i].EnvID] = published[i].Address
	}
	for i := range policies {
		addresses[policies[i].EnvID] = policies[i].Address
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for envID, address := range addresses {
		if _, known := n.slots[envID]; !known && !n.silenced[envID] && n.isEnvironment(address) {
			n.slots[envID] = n.slotOf(address)
		}
	}
}

// forgetSlots forgets environments whose network has gone. One that is being
// attached meanwhile is known by its address until the next list.
func (n *Networks) forgetSlots(there map[string]bridge) {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.slots, func(envID string, _ int) bool { _, ok := there[envID]; return !ok })
	maps.DeleteFunc(n.silenced, func(envID string, _ bool) bool { _, ok := there[envID]; return !ok && !n.removing[envID] })
}

// mayMend tells whether a slot still is an environment's.
func (n *Networks) mayMend(envID string, slot int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	now, known := n.slots[envID]
	return !n.silenced[envID] && (!known || now == slot)
}

// bring gives an environment's network what it lacks, by what was seen of it:
// inside first, so that a bridge in order says that all is. What Attach or Detach
// are doing is waited for, and what they did counts.
func (n *Networks) bring(ctx context.Context, envID string, seen *bridge, six bool) (changed bool, err error) {
	unlock, err := n.locks.Lock(ctx, envID)
	if err != nil {
		return false, err
	}
	defer unlock()
	names := n.names(envID)
	if there, err := pinned(names.netns); err != nil || !there || !n.mayMend(envID, seen.slot) || seen.whole(six) {
		return false, err
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return false, fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	link, err := find(host, names.bridge)
	if err != nil || indexOf(link) != seen.index { // else it is looked at again
		return false, err
	}
	veth, err := find(host, names.veth)
	if err != nil {
		return false, err
	}
	if link == nil || veth == nil {
		err := n.attachAgain(ctx, envID, seen.slot)
		return err == nil, err
	}
	if err := n.bringInside(names, seen.slot, six); err != nil {
		return false, err
	}
	err = n.bringHost(host, link, names, seen)
	if err == nil && six {
		if err = write(sixOf(names.bridge, true)); err == nil {
			err = n.ensureSix(host, link, names, seen.slot, seen.addresses6, seen.routes6)
		}
		err = errors.Join(err, n.withoutRules6(names.bridge))
	}
	return err == nil, err
}

// indexOf is the index of a link; 0: there is none.
func indexOf(link netlink.Link) int {
	if link == nil {
		return 0
	}
	return link.Attrs().Index
}

// attachAgain makes what somebody removed of an environment's network, with the
// speeds that it had. The caller holds its lock.
func (n *Networks) attachAgain(ctx context.Context, envID string, slot int) error {
	free, err := n.addresses.Lock(ctx, n.Address(slot))
	if err != nil {
		return err
	}
	defer free()
	if err := n.attach(ctx, envID, slot); err != nil {
		return err
	}
	n.mu.Lock()
	limited := n.limits[envID]
	n.mu.Unlock()
	if limited == (speeds{}) {
		return nil
	}
	return n.limit(ctx, envID, limited)
}

// Pinned tells whether the environment's namespace is pinned. Without that nothing
// of its network that needs the inside can be mended.
func (n *Networks) Pinned(envID string) (bool, error) {
	if err := check(envID); err != nil {
		return false, err
	}
	return pinned(n.NetNS(envID))
}

// Pin pins the namespace of an environment again that somebody has let go of
// while processes live in it, and makes what its network lacks. The namespace
// must be the environment's own: the caller knows its processes. That of the node
// itself is refused. Errors are NETWORK_FAILED.
func (n *Networks) Pin(ctx context.Context, envID string, slot int, namespace *os.File) error {
	if err := check(envID); err != nil {
		return err
	}
	unlock, err := n.locks.Lock(ctx, envID)
	if err != nil {
		return fmt.Errorf("pin network of environment %s: %w", envID, err)
	}
	defer unlock()
	if err := n.pinAgain(ctx, envID, slot, namespace); err != nil {
		return failed("pin network of environment "+envID, err)
	}
	n.holds(envID, slot)
	return nil
}

func (n *Networks) pinAgain(ctx context.Context, envID string, slot int, namespace *os.File) error {
	if own, err := isOwn(namespace); err != nil || own {
		return errors.Join(err, fmt.Errorf("its processes are in the node's own network: %w", errdefs.ErrFailedPrecondition))
	}
	there, err := pinned(n.NetNS(envID))
	if err == nil && !there {
		if err = n.prepare(); err == nil {
			err = pin(n.NetNS(envID), namespace)
		}
	}
	if err != nil {
		return err
	}
	return n.attachAgain(ctx, envID, slot)
}

// bringInside sees to what an environment has inside that depends on the host.
func (n *Networks) bringInside(names names, slot int, six bool) error {
	return inNamespace(names.netns, false, func(int) error {
		inner, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink in namespace: %w", err)
		}
		defer inner.Close()
		link, err := find(inner, inside)
		if err != nil || link == nil {
			return err
		}
		if err := ensureNeighbours(inner, link, names.bridgeMAC, n.gateway(slot)); err != nil || !six {
			return err
		}
		if err := write(ofInside(true)); err != nil {
			return err
		}
		return configureInside6(inner, link, names, n.twins().Of(n.Address(slot)))
	})
}

// bringHost sees to the links, and what a bridge has of IPv4.
func (n *Networks) bringHost(host *netlink.Handle, link netlink.Link, names names, seen *bridge) error {
	if err := write(ofBridge(names.bridge)); err != nil {
		return err
	}
	if !seen.linked {
		if err := linkUp(host, link, names); err != nil {
			return err
		}
	}
	gateway := netip.PrefixFrom(n.gateway(seen.slot), slotBits)
	if err := host.AddrReplace(link, &netlink.Addr{IPNet: ipNet(gateway)}); err != nil {
		return fmt.Errorf("give %s address %s: %w", names.bridge, gateway, err)
	}
	// The kernel's own comes with the address, not when that is there.
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index, Dst: ipNet(gateway.Masked()), Src: gateway.Addr().AsSlice(), Scope: unix.RT_SCOPE_LINK, Protocol: unix.RTPROT_KERNEL,
	}
	if err := host.RouteReplace(route); err != nil {
		return fmt.Errorf("set route to %s: %w", gateway.Masked(), err)
	}
	return ensureNeighbours(host, link, names.insideMAC, n.Address(seen.slot))
}

// linkUp attaches an environment's interface to its bridge, and sets both up.
func linkUp(host *netlink.Handle, bridge netlink.Link, names names) error {
	if err := host.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("set bridge %s up: %w", names.bridge, err)
	}
	veth, err := find(host, names.veth)
	if err != nil || veth == nil { // that is noticed
		return err
	}
	if veth.Attrs().MasterIndex != bridge.Attrs().Index {
		if err := errors.Join(host.LinkSetMaster(veth, bridge), host.LinkSetHairpin(veth, true)); err != nil {
			return fmt.Errorf("attach interface %s to its bridge: %w", names.veth, err)
		}
	}
	if err := host.LinkSetUp(veth); err != nil {
		return fmt.Errorf("set interface %s up: %w", names.veth, err)
	}
	return nil
}
