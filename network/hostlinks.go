package network

import (
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/remotegpu/remotegpu/network/firewall"
)

// linksSince are the interfaces of the host that were not there when forwarding
// was switched on.
func linksSince(noted *note) (since []string, err error) {
	now, err := allLinks()
	if err != nil {
		return nil, err
	}
	for _, link := range now {
		name := link.Attrs().Name
		if !slices.ContainsFunc(noted.links, func(b firewall.HostLink) bool { return b.Name == name }) && !slices.Contains(noted.others, name) && !isInside(link) {
			since = append(since, name)
		}
	}
	return since, nil
}

// hostLinks are the interfaces by which the host is in networks of its own, by
// name. Bridges that lead to nothing but containers and virtual machines are
// others, with the ports of bridges: who made them wants their packets forwarded.
func hostLinks() (found []firewall.HostLink, others []string, err error) {
	links, err := allLinks()
	if err != nil {
		return nil, nil, err
	}
	kinds := make(map[int]string, len(links))
	outward := make(map[int]bool) // bridges with a port that is neither a container's nor a machine's
	for _, link := range links {
		kinds[link.Attrs().Index] = link.Type()
	}
	for _, link := range links {
		if kind := link.Type(); kind != "veth" && kind != "tuntap" {
			outward[link.Attrs().MasterIndex] = true
		}
	}
	for _, link := range links {
		attrs, bridge := link.Attrs(), link.Type() == "bridge"
		switch {
		case isInside(link):
		case !firewall.IsLinkName(attrs.Name), bridge && !outward[attrs.Index],
			kinds[attrs.MasterIndex] == "bridge": // what comes in by it comes in by the bridge
			others = append(others, attrs.Name)
		default:
			found = append(found, firewall.HostLink{Name: attrs.Name, Bridge: bridge})
		}
	}
	slices.SortFunc(found, func(a, b firewall.HostLink) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(others)
	return found, others, nil
}

// isInside tells of an interface that leads to nothing but the host itself or
// environments.
func isInside(link netlink.Link) bool {
	return link.Attrs().Flags&net.FlagLoopback != 0 || isOurs(link)
}
