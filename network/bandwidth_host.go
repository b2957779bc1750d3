package network

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/fault"
)

// ingressHandle is that of what comes in by an interface, "ffff:".
const ingressHandle = 0xffff

// limitAtHost bounds once more what an environment sends, on the host's side: a
// program with CAP_NET_RAW can have its packets pass by the bucket at its own
// end (PACKET_QDISC_BYPASS). What comes in by the host's end is led through an
// intermediate device (ifb) with the same bucket, and goes on from where it
// was. What was shaped at the environment's end already never waits here.
// 0 bits take it away.
func limitAtHost(ctx context.Context, host *netlink.Handle, names names, veth netlink.Link, bits int64) error {
	if bits == 0 {
		if err := removeIngress(host, veth); err != nil {
			return err
		}
		_, err := removeLink(host, names.ifb, names.alias)
		return err
	}
	device, err := ensureIfb(host, names)
	if err != nil {
		return err
	}
	// The bucket comes before what leads there: nothing passes unlimited.
	if err := shape(host, device, bits); err != nil {
		return err
	}
	if err := fault.Point(ctx, "intermediate device made"); err != nil {
		return err
	}
	return redirect(host, veth, device)
}

// ensureIfb makes the environment's intermediate device, or brings it in order.
func ensureIfb(host *netlink.Handle, names names) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = names.ifb
	if err := host.LinkAdd(&netlink.Ifb{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make intermediate device %s: %w", names.ifb, err)
	}
	device, err := host.LinkByName(names.ifb)
	if err != nil {
		return nil, fmt.Errorf("find intermediate device %s: %w", names.ifb, err)
	}
	if alias := device.Attrs().Alias; alias != "" && alias != names.alias {
		return nil, fmt.Errorf("intermediate device %s belongs to %q: %w", names.ifb, alias, unix.EEXIST)
	}
	if err := host.LinkSetAlias(device, names.alias); err != nil {
		return nil, fmt.Errorf("set alias of intermediate device %s: %w", names.ifb, err)
	}
	if err := write(ofPort(names.ifb)); err != nil {
		return nil, err
	}
	if err := host.LinkSetUp(device); err != nil {
		return nil, fmt.Errorf("set intermediate device %s up: %w", names.ifb, err)
	}
	return device, nil
}

// redirect has everything that comes in by a link go through a device, unless
// it does already.
func redirect(host *netlink.Handle, link, device netlink.Link) error {
	ingress := ingressOf(link)
	if err := host.QdiscAdd(ingress); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("look at what comes in by %s: %w", link.Attrs().Name, err)
	}
	filters, err := dump(func() ([]netlink.Filter, error) {
		return host.FilterList(link, netlink.MakeHandle(ingressHandle, 0))
	})
	if err != nil {
		return fmt.Errorf("list filters of %s: %w", link.Attrs().Name, err)
	}
	if len(filters) == 1 && redirects(filters[0], device) {
		return nil
	}
	if len(filters) > 0 { // to a device of before, or somebody else's
		if err := removeIngress(host, link); err != nil {
			return err
		}
		if err := host.QdiscAdd(ingress); err != nil {
			return fmt.Errorf("look at what comes in by %s: %w", link.Attrs().Name, err)
		}
	}
	err = host.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: link.Attrs().Index, Parent: netlink.MakeHandle(ingressHandle, 0), Priority: 1, Protocol: unix.ETH_P_ALL,
		},
		RedirIndex: device.Attrs().Index,
	})
	if err != nil {
		return fmt.Errorf("lead what comes in by %s through %s: %w", link.Attrs().Name, device.Attrs().Name, err)
	}
	return nil
}

// redirects tells whether a filter leads everything through a device.
func redirects(filter netlink.Filter, device netlink.Link) bool {
	all, ok := filter.(*netlink.U32)
	return ok && all.RedirIndex == device.Attrs().Index && all.Protocol == unix.ETH_P_ALL &&
		(all.Sel == nil || len(all.Sel.Keys) == 0 || len(all.Sel.Keys) == 1 && all.Sel.Keys[0].Mask == 0)
}

func ingressOf(link netlink.Link) *netlink.Ingress {
	return &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(ingressHandle, 0), Parent: netlink.HANDLE_INGRESS,
	}}
}

// removeIngress lets what comes in by a link go its way again.
func removeIngress(host *netlink.Handle, link netlink.Link) error {
	err := host.QdiscDel(ingressOf(link))
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !gone(err) {
		return fmt.Errorf("look no more at what comes in by %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// removeLink deletes an interface, unless it is somebody else's by its alias,
// and tells whether it did. One that is not there is fine.
func removeLink(host *netlink.Handle, name, alias string) (removed bool, err error) {
	link, err := find(host, name)
	if err != nil || link == nil || link.Attrs().Alias != "" && link.Attrs().Alias != alias {
		return false, err
	}
	if err := host.LinkDel(link); err != nil && !gone(err) {
		return false, fmt.Errorf("remove interface %s: %w", name, err)
	}
	return true, nil
}
