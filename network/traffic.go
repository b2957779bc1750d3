package network

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Traffic is what an environment has received and sent since its network was
// attached, in bytes.
type Traffic struct {
	Received, Sent int64
}

// Traffic reads the counters of environments' interfaces; those without a
// network are left out. It is read at the host's end, which a tenant cannot
// change: what the host sends there, the environment receives.
func (n *Networks) Traffic(envIDs []string) (_ map[string]Traffic, err error) {
	if len(envIDs) == 0 {
		return nil, nil
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, failed("read traffic of environments", fmt.Errorf("open netlink: %w", err))
	}
	defer host.Close()
	all := make(map[string]Traffic, len(envIDs))
	for _, id := range envIDs {
		names := n.names(id)
		link, err := find(host, names.veth)
		// The network of a container may be on its way out.
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return nil, failed("read traffic of environment "+id, err)
		}
		if link == nil || link.Attrs().Statistics == nil || link.Attrs().Alias != names.alias {
			continue
		}
		counters := link.Attrs().Statistics
		all[id] = Traffic{Received: int64(counters.TxBytes), Sent: int64(counters.RxBytes)}
	}
	return all, nil
}
