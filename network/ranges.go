package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// rangeProtocol marks the routes of the ranges as ours (RTA_PROTOCOL), so that they
// are found again without knowing the ranges. Nobody is known to use the number.
const rangeProtocol = 171

// rangeMetric is that of the route: any other comes before it.
const rangeMetric = 0xfffffffe

// ensureRange4 has the host refuse what is addressed to the range and to no
// environment: by its default route what is published for an environment whose
// bridge is not there, as after a restart of the host or when somebody took it,
// would leave the host. From then on it is looked after, until CleanUp: a host
// that never had an environment has no such route.
func (n *Networks) ensureRange4() error {
	n.routed4.Store(true)
	return ensureRange(netlink.FAMILY_V4, n.cfg.Range)
}

// ensureRange4Once does as ensureRange4 unless that was called: an Attach has no
// time for the list of all routes.
func (n *Networks) ensureRange4Once() error {
	if n.routed4.Load() {
		return nil
	}
	return n.ensureRange4()
}

// ensureRange6 does so for IPv6. To whom it has a routed prefix from it would
// send that, who would send it back.
func (n *Networks) ensureRange6() error {
	return ensureRange(netlink.FAMILY_V6, n.cfg.Range6)
}

// ensureRange makes what of a range leads to no environment unreachable.
func ensureRange(family int, addresses netip.Prefix) error {
	wanted := &netlink.Route{
		Dst: ipNet(addresses), Type: unix.RTN_UNREACHABLE, Protocol: rangeProtocol, Priority: rangeMetric, Family: family,
	}
	there := false
	err := eachRange(family, func(_ *netlink.Handle, route *netlink.Route) error {
		there = there || route.Dst.String() == wanted.Dst.String()
		return nil
	})
	if err != nil || there {
		return err
	}
	if err := netlink.RouteReplace(wanted); err != nil {
		return fmt.Errorf("make %s unreachable: %w", addresses, err)
	}
	return nil
}

// ensureRange6Once does as ensureRange6 unless it was done since the last
// Restore: it lists all routes, which an Attach has no time for.
func (n *Networks) ensureRange6Once() error {
	if n.routed6.Load() {
		return nil
	}
	err := n.ensureRange6()
	n.routed6.Store(err == nil)
	return err
}

// leaveRanges4 takes back what ensureRange4 did for ranges but the one that is
// kept, which may be invalid.
func leaveRanges4(kept netip.Prefix) error {
	return eachRange(netlink.FAMILY_V4, func(handle *netlink.Handle, route *netlink.Route) error {
		if former, ok := prefixOf(route.Dst); ok && former == kept {
			return nil
		}
		return handle.RouteDel(route)
	})
}

// leaveRanges6 takes back what ensureRange6 did for ranges but the one that is
// kept, which may be invalid, and ends what is tracked of their addresses, which
// may be another's next. The rules must be of the range that they have, if any: then
// nothing new is tracked. The route goes last, since it is what names the range.
func (n *Networks) leaveRanges6(ctx context.Context, kept netip.Prefix) error {
	if _, err := os.Stat(confV6); errors.Is(err, fs.ErrNotExist) {
		return nil // the kernel has no IPv6, and may not like to be asked for routes of it
	}
	return eachRange(netlink.FAMILY_V6, func(handle *netlink.Handle, route *netlink.Route) error {
		former, ok := prefixOf(route.Dst)
		if ok && former == kept {
			return nil
		}
		if ok {
			n.forgetIn(ctx, []netlink.InetFamily{unix.AF_INET6}, flowsIn(former))
		}
		return handle.RouteDel(route)
	})
}

// eachRange calls do for the routes that are marked as ours. One that went
// meanwhile is no error.
func eachRange(family int, do func(*netlink.Handle, *netlink.Route) error) error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer handle.Close()
	routes, err := dump(func() ([]netlink.Route, error) {
		return handle.RouteListFiltered(family, &netlink.Route{Protocol: rangeProtocol, Type: unix.RTN_UNREACHABLE}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TYPE)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	var errs []error
	for i := range routes {
		if routes[i].Dst == nil {
			continue
		}
		if err := do(handle, &routes[i]); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("change route of %s: %w", routes[i].Dst, err))
		}
	}
	return errors.Join(errs...)
}
