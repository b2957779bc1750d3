package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// mend6 gives environments the IPv6 that they lack, or takes it when they can
// have none: after a start with another range, or when others changed a bridge.
// It returns the bridges that were wrong.
func (n *Networks) mend6(ctx context.Context) (mended []string, err error) {
	if !n.wants6() {
		return nil, nil // bridges are looked after with their other settings
	}
	n.routed6.Store(false) // it is looked at again
	if !n.ready6(ctx) {
		if ctx.Err() == nil {
			_, err = n.off6()
		}
		return nil, errors.Join(ctx.Err(), err)
	}
	there, err := n.look6()
	if err != nil {
		return nil, err
	}
	var errs []error
	for envID, one := range there {
		if one.slot < 0 || one.whole {
			continue
		}
		if n.cfg.Firewall.IPv6() != nil { // a condition says so, and followIPv6 tries again
			break
		}
		changed, err := n.bring6(ctx, envID)
		if err != nil {
			errs = append(errs, fmt.Errorf("give environment %s IPv6: %w", envID, err))
		}
		if changed {
			mended = append(mended, one.bridge+" (IPv6)")
		}
	}
	return mended, errors.Join(errs...)
}

// network6 is what there is of an environment's network.
type network6 struct {
	bridge string
	slot   int  // -1: its bridge has no address of the range
	whole  bool // its bridge has all it needs of IPv6
}

// look6 looks at all bridges at once.
func (n *Networks) look6() (map[string]network6, error) {
	links, err := ours()
	if err != nil {
		return nil, err
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	addresses, err := dump(func() ([]netlink.Addr, error) { return host.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	routes, err := dump(func() ([]netlink.Route, error) { return host.RouteList(nil, netlink.FAMILY_V6) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	byLink := make(map[int][]netip.Prefix)
	for i := range addresses {
		if prefix, ok := prefixOf(addresses[i].IPNet); ok {
			byLink[addresses[i].LinkIndex] = append(byLink[addresses[i].LinkIndex], prefix)
		}
	}
	leads := make(map[int][]*netlink.Route)
	for i := range routes {
		leads[routes[i].LinkIndex] = append(leads[routes[i].LinkIndex], &routes[i])
	}
	found := make(map[string]network6)
	for _, link := range links {
		envID, named := strings.CutPrefix(link.Attrs().Alias, aliasPrefix)
		if !named || link.Type() != "bridge" {
			continue
		}
		one, index := network6{bridge: link.Attrs().Name, slot: -1}, link.Attrs().Index
		there := make(map[netip.Prefix]bool)
		for _, prefix := range byLink[index] {
			there[prefix] = true
			if n.cfg.Range.Contains(prefix.Addr()) {
				one.slot = n.slotOf(prefix.Addr())
			}
		}
		if one.slot >= 0 {
			gateway, own := n.twins().Of(n.gateway(one.slot)), n.twins().Of(n.Address(one.slot))
			one.whole = there[nearGateway] && there[netip.PrefixFrom(gateway, 128)] && leadsTo(leads[index], own)
		}
		found[envID] = one
	}
	return found, nil
}

// leadsTo tells whether routes of a bridge lead to its environment and nowhere
// else.
func leadsTo(routes []*netlink.Route, own netip.Addr) bool {
	there := false
	for _, route := range routes {
		if isStale6(route, own) {
			return false
		}
		to, _ := prefixOf(route.Dst)
		there = there || to.Addr() == own
	}
	return there
}

// bring6 gives an environment IPv6: inside first, so that a bridge in order says
// that all is. What Attach or Detach are doing is waited for.
func (n *Networks) bring6(ctx context.Context, envID string) (changed bool, err error) {
	unlock, err := n.locks.Lock(ctx, envID)
	if err != nil {
		return false, err
	}
	defer unlock()
	there, err := n.look6()
	if err != nil {
		return false, err
	}
	one, attached := there[envID]
	names := n.names(envID)
	if inside, err := pinned(names.netns); err != nil || !inside || !attached || one.slot < 0 || one.whole {
		return false, err
	}
	if err := n.cfg.Firewall.IPv6(); err != nil { // since mend6 asked
		return false, err
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return false, fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	bridge, err := find(host, names.bridge)
	if err != nil || bridge == nil {
		return false, err
	}
	err = inNamespace(names.netns, false, func(int) error {
		inner, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink in namespace: %w", err)
		}
		defer inner.Close()
		link, err := find(inner, inside)
		if err != nil || link == nil {
			return err
		}
		if err := write(ofInside(true)); err != nil {
			return err
		}
		return configureInside6(inner, link, n.twins().Of(n.Address(one.slot)))
	})
	if err == nil {
		err = write(append(ofBridge(names.bridge), sixOf(names.bridge, true)...))
	}
	if err == nil {
		err = n.ensureSix(host, bridge, one.slot, true)
	}
	err = errors.Join(err, n.withoutRules6(names.bridge))
	return err == nil, err
}

// withoutRules6 takes IPv6 from a bridge that was given it while its rules
// failed: who took it from all may have come before. The error says why.
func (n *Networks) withoutRules6(bridge string) error {
	failure := n.cfg.Firewall.IPv6()
	if failure == nil {
		return nil
	}
	_, err := disableIPv6(bridge).mend()
	return errors.Join(failure, err)
}

// lost has the rules of IPv6 tried again that could not be made.
func (h *healer) lost() {
	select {
	case h.lost6 <- struct{}{}:
	default: // somebody is about to
	}
}

// again6 is for how long that is tried; after it, each Restore does.
const again6 = time.Minute

// followIPv6 gives environments back the IPv6 that was taken from them because
// its rules could not be made.
func (h *healer) followIPv6(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.lost6:
		}
		retry := retryFirst
		for until := time.Now().Add(again6); time.Now().Before(until); retry = min(2*retry, retryLast) {
			if !pause(ctx, retry) {
				return
			}
			if h.recover6(ctx) {
				break
			}
		}
	}
}

// recover6 tries to make the rules of IPv6 and tells whether they are in force.
func (h *healer) recover6(ctx context.Context) bool {
	h.working.Lock()
	defer h.working.Unlock()
	n := h.networks
	if n.cfg.Firewall.IPv6() != nil { // else somebody else has made them, who does not look at bridges
		if _, err := n.published.verify(ctx); err != nil || n.cfg.Firewall.IPv6() != nil {
			return false
		}
	}
	mended, err := n.mend6(ctx)
	if n.cfg.Firewall.IPv6() != nil {
		return false
	}
	if err != nil {
		n.cfg.Log.WarnContext(ctx, "not all environments have IPv6 again", "error", err)
	}
	n.cfg.Log.InfoContext(ctx, "environments have IPv6 again", "bridges", len(mended))
	return true
}
