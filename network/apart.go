package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/atomicfile"
	"github.com/remotegpu/remotegpu/network/firewall"
)

// Environments need net.ipv4.ip_forward. A host on which nobody had switched it
// on would from then on also route between the networks that it is in itself,
// which nobody has asked for. So the node remembers which interfaces were there
// when it was the one who switched forwarding on, and lets nothing pass from one
// of these to another. Interfaces that others make later, for containers or
// tunnels, are theirs and are left alone.

const forwardSetting = "/proc/sys/net/ipv4/ip_forward"

// bridgeMark follows the name of an interface in ForwardFile that is a bridge.
const bridgeMark = " bridge"

// otherMark follows the name of an interface in ForwardFile that was there, too,
// and is not kept apart: what others forward by it they may go on forwarding.
const otherMark = " other"

// keepApart is done before forwarding is switched on: it remembers that it was
// us, and has the rules in force that keep the host's own networks apart.
func (n *Networks) keepApart(ctx context.Context) error {
	if n.cfg.ForwardFile == "" {
		return nil
	}
	// What is there is of before somebody else switched it off again.
	if _, err := os.Stat(n.cfg.ForwardFile); errors.Is(err, fs.ErrNotExist) {
		links, others, err := hostLinks()
		if err != nil {
			return err
		}
		var text strings.Builder
		for _, link := range links {
			text.WriteString(link.Name)
			if link.Bridge {
				text.WriteString(bridgeMark)
			}
			text.WriteString("\n")
		}
		for _, name := range others {
			text.WriteString(name + otherMark + "\n")
		}
		if err := atomicfile.Write(n.cfg.ForwardFile, []byte(text.String()), 0o600); err != nil {
			return fmt.Errorf("remember whose doing forwarding is: %w", err)
		}
	} else if err != nil {
		return fmt.Errorf("look whose doing forwarding is: %w", err)
	}
	if n.cfg.RouteBetween {
		return nil
	}
	return n.published.enforce(ctx)
}

// apart are the interfaces between which the host forwards nothing: none,
// unless forwarding is our doing.
func (n *Networks) apart() ([]firewall.HostLink, error) {
	if n.cfg.RouteBetween {
		return nil, nil
	}
	noted, err := n.switchedOn()
	return noted.links, err
}

// switched is what was noted when forwarding was switched on.
type switched struct {
	ours   bool                // it was us who did
	links  []firewall.HostLink // kept apart
	others []string            // interfaces that were there, too
}

// switchedOn tells whether it was us who switched forwarding on, and which
// interfaces were there.
func (n *Networks) switchedOn() (noted switched, err error) {
	if n.cfg.ForwardFile == "" {
		return noted, nil
	}
	text, err := os.ReadFile(n.cfg.ForwardFile)
	if errors.Is(err, fs.ErrNotExist) {
		return noted, nil
	}
	if err != nil {
		return noted, fmt.Errorf("read whose doing forwarding is: %w", err)
	}
	noted.ours = true
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if name, other := strings.CutSuffix(line, otherMark); other {
			noted.others = append(noted.others, name)
			continue
		}
		name, bridge := strings.CutSuffix(line, bridgeMark)
		if firewall.IsLinkName(name) {
			noted.links = append(noted.links, firewall.HostLink{Name: name, Bridge: bridge})
		}
	}
	return noted, nil
}

// stopForwarding switches forwarding off again, if it was us who switched it
// on and nobody seems to have come to rely on it: every interface that is there
// now was there then. Otherwise the note stays, so that a daemon that comes
// keeps the host's networks apart, and a clean-up after these have gone finds it.
func (n *Networks) stopForwarding(ctx context.Context) error {
	noted, err := n.switchedOn()
	if err != nil || !noted.ours {
		return err
	}
	since, err := linksSince(&noted)
	if err != nil {
		return err
	}
	if len(since) > 0 {
		n.cfg.Log.WarnContext(ctx, "net.ipv4.ip_forward stays 1: interfaces came since the node switched it on, and may need it; the host routes between its own networks now, too", "interfaces", since)
		return nil
	}
	if err := os.WriteFile(forwardSetting, []byte("0"), 0); err != nil {
		return fmt.Errorf("set net.ipv4.ip_forward to 0: %w", err)
	}
	if err := os.Remove(n.cfg.ForwardFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget whose doing forwarding was: %w", err)
	}
	return nil
}

// linksSince are the interfaces of the host that were not there when forwarding
// was switched on.
func linksSince(noted *switched) (since []string, err error) {
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

func allLinks() ([]netlink.Link, error) {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	links, err := dump(host.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	return links, nil
}
