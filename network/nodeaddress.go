package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nodeAddressLabel marks the address of the node on the loopback interface, so
// that it is found again without knowing the range.
const nodeAddressLabel = "lo:rgpu"

// NodeAddress is an address of the node that every environment reaches: the
// first of the range. It is also the gateway of the environment in slot 0, and
// there whether or not such an environment is, once EnsureNodeAddress has been
// called.
func (n *Networks) NodeAddress() netip.Addr { return n.gateway(0) }

// EnsureNodeAddress gives the loopback interface the node's address, and takes
// that of another range. CleanUp removes it. NETWORK_FAILED.
func (n *Networks) EnsureNodeAddress() error {
	wanted := netip.PrefixFrom(n.NodeAddress(), 32)
	there := false
	err := eachNodeAddress(func(handle *netlink.Handle, lo netlink.Link, address *netlink.Addr) error {
		if address.IPNet.String() == wanted.String() {
			there = true
			return nil
		}
		return handle.AddrDel(lo, address)
	}, func(handle *netlink.Handle, lo netlink.Link) error {
		if there {
			return nil // whoever follows addresses would be told of it
		}
		// Of the scope of this host, so that the kernel does not choose it as
		// the source of what the host sends.
		return handle.AddrReplace(lo, &netlink.Addr{IPNet: ipNet(wanted), Label: nodeAddressLabel, Scope: unix.RT_SCOPE_HOST})
	})
	if err != nil {
		return failed("give the node its address "+wanted.Addr().String(), err)
	}
	return nil
}

// RemoveNodeAddress takes from the loopback interface what EnsureNodeAddress
// gave it. NETWORK_FAILED.
func (n *Networks) RemoveNodeAddress() error {
	if err := removeNodeAddress(); err != nil {
		return failed("take the node's address", err)
	}
	return nil
}

func removeNodeAddress() error {
	return eachNodeAddress(func(handle *netlink.Handle, lo netlink.Link, address *netlink.Addr) error {
		err := handle.AddrDel(lo, address)
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			return nil
		}
		return err
	}, nil)
}

// eachNodeAddress calls each for the loopback addresses that are marked as
// ours, then last.
func eachNodeAddress(each func(*netlink.Handle, netlink.Link, *netlink.Addr) error, last func(*netlink.Handle, netlink.Link) error) error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer handle.Close()
	lo, err := handle.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	addresses, err := dump(func() ([]netlink.Addr, error) { return handle.AddrList(lo, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list addresses of loopback: %w", err)
	}
	var errs []error
	for i := range addresses {
		if addresses[i].Label == nodeAddressLabel {
			errs = append(errs, each(handle, lo, &addresses[i]))
		}
	}
	if last != nil {
		errs = append(errs, last(handle, lo))
	}
	return errors.Join(errs...)
}
