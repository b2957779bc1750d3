package network

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/network/firewall"
)

// Both ends of an environment's link know the other's MAC address, which follows
// from its id, and have it as a permanent neighbour. So neither asks, nobody is
// believed who answers, and an entry for an environment neither counts towards
// the bound that the kernel has for the neighbours of the whole host
// (gc_thresh3, since Linux 5.0) nor fails when that is reached.

// near is the link-local address of every environment: one that the kernel makes
// of a MAC address would need a rule for each environment that lets it through.
var near = firewall.Near() //nolint:gochecknoglobals // a constant but for its type

// ensureNeighbours has the link know that addresses are at a MAC address.
func ensureNeighbours(handle *netlink.Handle, link netlink.Link, mac net.HardwareAddr, addresses ...netip.Addr) error {
	for _, address := range addresses {
		err := handle.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: address.AsSlice(), HardwareAddr: mac,
		})
		if err != nil {
			return fmt.Errorf("tell %s where %s is: %w", link.Attrs().Name, address, err)
		}
	}
	return nil
}

// isFixed tells of a permanent neighbour that it says where an address is.
func isFixed(entry *netlink.Neigh, address netip.Addr, mac net.HardwareAddr) bool {
	at, ok := netip.AddrFromSlice(entry.IP)
	return ok && at.Unmap() == address && entry.State&unix.NUD_PERMANENT != 0 && bytes.Equal(entry.HardwareAddr, mac)
}
