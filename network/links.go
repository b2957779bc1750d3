package network

import (
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// hostLink is an interface of the host, with its settings of that moment.
type hostLink struct {
	netlink.Link
	four, six []byte // of IPv4 and IPv6, four bytes each; empty: it has none
}

// skipStats asks for interfaces without what they have counted
// (RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h).
const skipStats = 1 << 3

// allLinks are the interfaces of the host. The kernel tells their settings in the same
// answer; to read the eight that a bridge needs from /proc/sys takes ten times as long
// as to list it.
func allLinks() ([]hostLink, error) { return linksOf("") }

// linksOf are those of a kind; "": of all.
func linksOf(kind string) ([]hostLink, error) {
	links, err := dump(func() ([]hostLink, error) {
		request := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		request.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
		if kind != "" {
			info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
			info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(kind))
			request.AddData(info)
		}
		messages, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
		if err != nil {
			return nil, err
		}
		links := make([]hostLink, 0, len(messages))
		for _, message := range messages {
			link, err := readLink(message)
			if err != nil {
				return nil, err
			}
			links = append(links, link)
		}
		return links, nil
	})
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	return links, nil
}

// ours are the host's links that have our names and are of our kinds and not
// somebody else's by their alias. It is empty where a crash left one.
func ours() ([]hostLink, error) { return ofOurs(allLinks()) }

// ourBridges are the bridges among them.
func ourBridges() ([]hostLink, error) { return ofOurs(linksOf("bridge")) }

func ofOurs(links []hostLink, err error) ([]hostLink, error) {
	return slices.DeleteFunc(links, func(link hostLink) bool { return !isOurs(link) }), err
}

// bridgeOf is the environment whose bridge a link of ours is.
func bridgeOf(link netlink.Link) (envID string, ok bool) {
	if link.Type() != "bridge" {
		return "", false
	}
	return strings.CutPrefix(link.Attrs().Alias, aliasPrefix)
}

func readLink(message []byte) (hostLink, error) {
	link, err := netlink.LinkDeserialize(nil, message)
	if err != nil {
		return hostLink{}, fmt.Errorf("read interface: %w", err)
	}
	read := hostLink{Link: link}
	families, err := attribute(message[unix.SizeofIfInfomsg:], unix.IFLA_AF_SPEC)
	if err != nil {
		return hostLink{}, err
	}
	for _, of := range []struct {
		family, settings uint16
		to               *[]byte
	}{{unix.AF_INET, unix.IFLA_INET_CONF, &read.four}, {unix.AF_INET6, unix.IFLA_INET6_CONF, &read.six}} {
		family, err := attribute(families, of.family)
		if err != nil {
			return hostLink{}, err
		}
		if *of.to, err = attribute(family, of.settings); err != nil {
			return hostLink{}, err
		}
	}
	return read, nil
}

// attribute is the value of an attribute among others, empty when it is not there.
func attribute(among []byte, kind uint16) ([]byte, error) {
	attributes, err := nl.ParseRouteAttr(among)
	if err != nil {
		return nil, fmt.Errorf("read attributes of interface: %w", err)
	}
	for i := range attributes {
		if attributes[i].Attr.Type&^unix.NLA_F_NESTED == kind {
			return attributes[i].Value, nil
		}
	}
	return nil, nil
}

// places4 are the places of settings among those of IPv4 that the kernel tells of an
// interface: IPV4_DEVCONF_* of linux/ip.h, less one (inet_fill_link_af of net/ipv4/devinet.c).
func places4() map[string]int {
	return map[string]int{"accept_redirects": 3, "send_redirects": 5, "rp_filter": 7, "arp_ignore": 18, "route_localnet": 25}
}

// places6 are those of IPv6: DEVCONF_* of linux/ipv6.h.
func places6() map[string]int {
	return map[string]int{"accept_ra": 3, "accept_redirects": 4, "disable_ipv6": 26, "accept_dad": 27}
}

// has tells whether an interface had a setting's value when it was listed. What
// the kernel did not tell it had not: whoever asks looks in /proc/sys then.
func (l *hostLink) has(setting *sysctl) bool {
	values, places := l.four, places4()
	if strings.HasPrefix(setting.path, "ipv6/") {
		values, places = l.six, places6()
	}
	place, known := places[path.Base(setting.path)]
	if !known || len(values) < 4*(place+1) {
		return false
	}
	value := int32(binary.NativeEndian.Uint32(values[4*place:])) // some are -1
	return strconv.Itoa(int(value)) == setting.value
}
