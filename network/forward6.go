package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/remotegpu/remotegpu/internal/atomicfile"
	"github.com/remotegpu/remotegpu/network/firewall"
)

// A host that forwards IPv6 is a router, and a router ignores what other routers
// advertise unless accept_ra is 2: where the kernel itself configures interfaces
// by that, the host would lose its own addresses and its way out. So before
// forwarding is switched on, interfaces that accept advertisements are told to
// go on with it. As for IPv4 (apart.go), nothing is forwarded between the host's
// own networks. ForwardFile6 says what was changed, before it is: a line
// "listens NAME" for each interface that goes on listening, "link NAME" for
// each that is kept apart, and "other NAME" for each that was there besides.

// confV6 are the settings of interfaces in the calling thread's namespace.
const confV6 = "/proc/sys/net/ipv6/conf"

// Words that begin the lines of ForwardFile6.
const (
	linkWord    = "link "
	otherWord   = "other "
	listensWord = "listens "
)

// switched6 is what ForwardFile6 says.
type switched6 struct {
	switched
	listening []string
}

// forwarding6 makes the host forward IPv6 and tells whether there was something
// to do.
func (n *Networks) forwarding6(ctx context.Context) (changed bool, err error) {
	n.switching6.Lock()
	defer n.switching6.Unlock()
	value, err := readSetting("all/forwarding")
	if err != nil || value != "0" {
		return false, err
	}
	listening, err := acceptingAdvertisements()
	if err != nil {
		return false, err
	}
	if err := n.remember6(listening); err != nil {
		return false, err
	}
	if !n.cfg.RouteBetween {
		if err := n.published.enforce(ctx); err != nil {
			return false, err
		}
		if err := n.cfg.Firewall.IPv6(); err != nil { // that of IPv4 alone is an error of enforce
			return false, err
		}
	}
	for _, name := range listening {
		if err := writeSetting(name+"/accept_ra", "2"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	if err := writeSetting("all/forwarding", "1"); err != nil {
		return false, err
	}
	n.cfg.Log.InfoContext(ctx, "net.ipv6.conf.all.forwarding was 0 and is now 1: environments need it; some interfaces go on listening to router advertisements",
		"listening", listening)
	return true, nil
}

// remember6 notes that it is us who switch forwarding on. What is noted is of
// before somebody else switched it off again.
func (n *Networks) remember6(listening []string) error {
	if n.cfg.ForwardFile6 == "" {
		return nil
	}
	noted, err := n.switchedOn6()
	if err != nil {
		return err
	}
	if !noted.ours {
		if noted.links, noted.others, err = hostLinks(); err != nil {
			return err
		}
	}
	var text strings.Builder
	for _, link := range noted.links {
		text.WriteString(linkWord + link.Name)
		if link.Bridge {
			text.WriteString(bridgeMark)
		}
		text.WriteString("\n")
	}
	for _, name := range noted.others {
		text.WriteString(otherWord + name + "\n")
	}
	names := append(noted.listening, listening...)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		text.WriteString(listensWord + name + "\n")
	}
	if err := atomicfile.Write(n.cfg.ForwardFile6, []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("remember what forwarding IPv6 takes: %w", err)
	}
	return nil
}

// switchedOn6 reads what was noted.
func (n *Networks) switchedOn6() (noted switched6, err error) {
	if n.cfg.ForwardFile6 == "" {
		return noted, nil
	}
	text, err := os.ReadFile(n.cfg.ForwardFile6)
	if errors.Is(err, fs.ErrNotExist) {
		return noted, nil
	}
	if err != nil {
		return noted, fmt.Errorf("read what forwarding IPv6 took: %w", err)
	}
	noted.ours = true
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if name, ok := strings.CutPrefix(line, listensWord); ok {
			noted.listening = append(noted.listening, name)
			continue
		}
		if name, ok := strings.CutPrefix(line, otherWord); ok {
			noted.others = append(noted.others, name)
			continue
		}
		name, ok := strings.CutPrefix(line, linkWord)
		name, bridge := strings.CutSuffix(name, bridgeMark)
		if ok && firewall.IsLinkName(name) {
			noted.links = append(noted.links, firewall.HostLink{Name: name, Bridge: bridge})
		}
	}
	return noted, nil
}

// apart6 are the interfaces between which the host forwards no IPv6.
func (n *Networks) apart6() ([]firewall.HostLink, error) {
	if n.cfg.RouteBetween || !n.wants6() {
		return nil, nil
	}
	noted, err := n.switchedOn6()
	return noted.links, err
}

// unforward6 takes back what forwarding6 did, unless somebody seems to have come
// to rely on it: then the host goes on forwarding, and interfaces listening.
func (n *Networks) unforward6(ctx context.Context) error {
	n.switching6.Lock()
	defer n.switching6.Unlock()
	noted, err := n.switchedOn6()
	if err != nil || !noted.ours {
		return err
	}
	since, err := linksSince(&noted.switched)
	if err != nil {
		return err
	}
	if len(since) > 0 {
		if !n.stays6.Swap(true) {
			n.cfg.Log.WarnContext(ctx, "net.ipv6.conf.all.forwarding stays 1: interfaces came since the node switched it on, and may need it; the host routes between its own networks now, too", "interfaces", since)
		}
		return nil // the note stays: it is tried again
	}
	if err := stopForwarding6(noted.listening); err != nil {
		return err
	}
	if err := os.Remove(n.cfg.ForwardFile6); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget what forwarding IPv6 took: %w", err)
	}
	return nil
}

// pause6 switches forwarding off while the rules are not in force that keep the
// host's own networks apart, if it was us who switched it on. The note stays:
// forwarding6 goes on from it.
func (n *Networks) pause6(ctx context.Context) error {
	n.switching6.Lock()
	defer n.switching6.Unlock()
	noted, err := n.switchedOn6()
	if err != nil || !noted.ours || n.cfg.RouteBetween || n.cfg.Firewall.IPv6() == nil {
		return err
	}
	since, err := linksSince(&noted.switched)
	if err != nil {
		return err
	}
	if len(since) > 0 {
		n.cfg.Log.WarnContext(ctx, "net.ipv6.conf.all.forwarding stays 1 without rules: interfaces came since the node switched it on, and may need it", "interfaces", since)
		return nil
	}
	return stopForwarding6(noted.listening)
}

// stopForwarding6 switches forwarding off. Interfaces listen to advertisements
// without 2 once the host is no router.
func stopForwarding6(listening []string) error {
	if err := writeSetting("all/forwarding", "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, name := range listening {
		// Somebody may have set another one since, or taken it away.
		if value, err := readSetting(name + "/accept_ra"); err != nil || value != "2" {
			continue
		}
		if err := writeSetting(name+"/accept_ra", "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// acceptingAdvertisements are the interfaces of the host that the kernel
// configures by router advertisements as long as the host is no router. Those
// that a network manager looks after have accept_ra 0: it listens itself.
func acceptingAdvertisements() (names []string, err error) {
	entries, err := os.ReadDir(confV6)
	if err != nil {
		return nil, fmt.Errorf("list interfaces with IPv6: %w", err)
	}
	for _, entry := range entries {
		name := entry.Name()
		if name == "all" || name == "default" || name == "lo" || strings.HasPrefix(name, ourPrefix) {
			continue
		}
		accepts, err := readSetting(name + "/accept_ra")
		if errors.Is(err, fs.ErrNotExist) {
			continue // it went meanwhile
		}
		if err != nil {
			return nil, err
		}
		disabled, err := readSetting(name + "/disable_ipv6")
		if err == nil && accepts == "1" && disabled == "0" {
			names = append(names, name)
		}
	}
	return names, nil
}

// ourPrefix begins the names of all our interfaces.
const ourPrefix = "rgpu"

func readSetting(name string) (string, error) {
	value, err := os.ReadFile(filepath.Join(confV6, name))
	if err != nil {
		return "", fmt.Errorf("read net/ipv6/conf/%s: %w", name, err)
	}
	return string(bytes.TrimSpace(value)), nil
}

func writeSetting(name, value string) error {
	if err := os.WriteFile(filepath.Join(confV6, name), []byte(value), 0); err != nil {
		return fmt.Errorf("set net/ipv6/conf/%s to %s: %w", name, value, err)
	}
	return nil
}
