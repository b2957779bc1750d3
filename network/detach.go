package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/cleanup"
	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/network/firewall"
)

// Detach withdraws what the environment still publishes and its policy, and
// removes what Attach made; what is absent is removed. When it returns, the environment's
// address is free and carries no traffic; to delete the interfaces takes the
// kernel 20-60 ms (an RCU grace period), which passes in the background. A
// following Attach waits for it, and so does Wait. What a crash leaves,
// Present names.
func (n *Networks) Detach(ctx context.Context, envID string) error {
	if err := check(envID); err != nil {
		return err
	}
	if err := n.published.withdraw(ctx, envID); err != nil {
		return fmt.Errorf("withdraw ports of environment %s: %w", envID, err)
	}
	unlock, err := n.locks.Lock(ctx, envID)
	if err != nil {
		return fmt.Errorf("detach network of environment %s: %w", envID, err)
	}
	n.silences(envID)
	address, err := n.silence(envID)
	if err != nil {
		unlock()
		return failed("detach network of environment "+envID, err)
	}
	// Nothing gets out of it any more, so nothing is opened by this.
	if err := n.published.lift(ctx, envID); err != nil {
		unlock()
		return fmt.Errorf("withdraw policy of environment %s: %w", envID, err)
	}
	free := func() {}
	if address.IsValid() {
		if free, err = n.addresses.Lock(ctx, address); err != nil {
			unlock()
			return fmt.Errorf("detach network of environment %s: %w", envID, err)
		}
	}
	if err := fault.Point(ctx, "address taken"); err != nil {
		free()
		unlock()
		return failed("detach network of environment "+envID, err)
	}
	n.mark(envID, true)
	n.background.Go(func() {
		defer unlock()
		defer free()
		defer n.mark(envID, false)
		ctx, cancel := cleanup.Context(ctx)
		defer cancel()
		if err := n.remove(ctx, envID); err != nil {
			// Present names it again, so that someone comes back for it.
			n.cfg.Log.ErrorContext(ctx, "network of environment is not removed", "environment", envID, "error", err)
		}
		if address.IsValid() {
			n.forgetter.later(n.flowsOf(address), func(which ...flows) { n.forget(ctx, which...) })
		}
	})
	return nil
}

// silence takes the address from the environment's bridge, and its route with
// it, and returns the environment's own: after a Detach that failed later, the
// one it still has inside. It is invalid when there is none.
func (n *Networks) silence(envID string) (netip.Addr, error) {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	bridge, err := find(host, n.names(envID).bridge)
	if err != nil {
		return netip.Addr{}, err
	}
	if bridge == nil {
		return n.addressInside(envID)
	}
	// Its addresses and routes of IPv6 go with this.
	if _, err := disableIPv6(bridge.Attrs().Name).mend(); err != nil {
		return netip.Addr{}, err
	}
	addresses, err := dump(func() ([]netlink.Addr, error) { return host.AddrList(bridge, netlink.FAMILY_V4) })
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list addresses of bridge: %w", err)
	}
	var environment netip.Addr
	for _, address := range addresses {
		if gateway, ok := netip.AddrFromSlice(address.IP.To4()); ok && n.cfg.Range.Contains(gateway) {
			environment = gateway.Next()
		}
		err := host.AddrDel(bridge, &address)
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !gone(err) {
			return netip.Addr{}, fmt.Errorf("take address from bridge: %w", err)
		}
	}
	if !environment.IsValid() {
		return n.addressInside(envID)
	}
	return environment, nil
}

// addressInside is the address in the environment's namespace, which nobody in
// it can change; invalid when there is none.
func (n *Networks) addressInside(envID string) (address netip.Addr, err error) {
	there, err := pinned(n.NetNS(envID))
	if err != nil || !there {
		return netip.Addr{}, err
	}
	err = inNamespace(n.NetNS(envID), false, func(int) error {
		inner, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink in namespace: %w", err)
		}
		defer inner.Close()
		link, err := find(inner, inside)
		if link == nil {
			return err
		}
		addresses, err := dump(func() ([]netlink.Addr, error) { return inner.AddrList(link, netlink.FAMILY_V4) })
		if err != nil {
			return fmt.Errorf("list addresses in namespace: %w", err)
		}
		for i := range addresses {
			if own := addressOf(addresses[i].IPNet); own.IsValid() && n.isEnvironment(own) {
				address = own
			}
		}
		return nil
	})
	return address, err
}

func (n *Networks) mark(envID string, removing bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if removing {
		n.removing[envID] = true
	} else {
		delete(n.removing, envID)
	}
}

// remove deletes the environment's interfaces, then lets its namespace go.
func (n *Networks) remove(ctx context.Context, envID string) error {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	names := n.names(envID)
	var errs []error
	for _, name := range []string{names.veth, names.ifb, names.bridge} {
		removed, err := removeLink(host, name, names.alias)
		if removed {
			err = fault.Point(ctx, "interface removed")
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err // the file stays and names what is left
	}
	if err := unpin(names.netns); err != nil {
		return err
	}
	return fault.Point(ctx, "network namespace removed")
}

// Links are the names of the interfaces of environments in the network that the
// process is in, whichever node made them.
func Links() ([]string, error) {
	links, err := ours()
	if err != nil {
		return nil, failed("list networks", err)
	}
	names := make([]string, 0, len(links))
	for _, link := range links {
		names = append(names, link.Attrs().Name)
	}
	return names, nil
}

func isOurs(link netlink.Link) bool {
	name, alias := link.Attrs().Name, link.Attrs().Alias
	hash, ok := strings.CutPrefix(name, map[string]string{"bridge": bridgePrefix, "veth": vethPrefix, "ifb": ifbPrefix}[link.Type()])
	return ok && len(hash) == hashSize && strings.Trim(hash, "abcdefghijklmnopqrstuvwxyz234567") == "" &&
		(alias == "" || strings.HasPrefix(alias, aliasPrefix))
}

// CleanUp removes every network, interface, chain and mount of ours, whoever
// made it. It needs no state; environments must not run any more.
func (n *Networks) CleanUp(ctx context.Context) error {
	if err := n.Wait(ctx); err != nil {
		return fmt.Errorf("clean up networks: %w", err)
	}
	n.published.forgetAll()
	n.routed4.Store(false)
	n.routed6.Store(false)
	// While the rules still keep the host's networks apart.
	errs := []error{n.forward4.switchOff(ctx), n.forward6.switchOff(ctx), n.leaveRanges6(ctx, netip.Prefix{}), n.removeRules(ctx), leaveRanges4(netip.Prefix{}), n.unreserve(ctx), distrustBridges(ctx)}
	attached, err := n.attached()
	errs = append(errs, err)
	for _, envID := range attached {
		errs = append(errs, n.remove(ctx, envID))
	}
	errs = append(errs, removeStrays(), removeNodeAddress(), n.unprepare())
	if err := errors.Join(errs...); err != nil {
		return failed("clean up networks", err)
	}
	return nil
}

// removeRules removes all rules but those that keep the host's own networks
// apart where it goes on forwarding because of us.
func (n *Networks) removeRules(ctx context.Context) error {
	four, err4 := n.forward4.apart()
	six, err6 := n.forward6.apart()
	if err := errors.Join(err4, err6); err != nil {
		return fmt.Errorf("keep the host's networks apart: %w", err)
	}
	if len(four)+len(six) > 0 {
		n.cfg.Log.WarnContext(ctx, "the rules stay that keep the host's own networks apart: the node switched forwarding on, and it has to stay on; "+
			"to be rid of them switch it off, or remove what needs it, and clean up again")
	}
	return n.cfg.Firewall.CleanUp(ctx, firewall.Kept{Apart: four, Apart6: six})
}

// removeStrays removes interfaces with our names that belong to nobody.
func removeStrays() error {
	links, err := ours()
	if err != nil {
		return err
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	var errs []error
	for _, link := range links {
		if err := host.LinkDel(link); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("remove interface %s: %w", link.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// unprepare takes back what prepare did.
func (n *Networks) unprepare() error {
	n.preparing.Lock()
	defer n.preparing.Unlock()
	err := unix.Unmount(n.cfg.NetNSDir, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", n.cfg.NetNSDir, err)
	}
	if err := os.Remove(n.cfg.NetNSDir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove directory of network namespaces: %w", err)
	}
	return nil
}
