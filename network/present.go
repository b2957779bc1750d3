package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/network/port"
)

// Present tells what the host has of environments' networks. Networks that Detach is
// about to remove are left out, but for the slots that they have still.
func (n *Networks) Present(context.Context) (*port.Present, error) {
	// A namespace's file is made before the interfaces and removed after them.
	// Whoever makes or removes some now has had the file when it is looked for,
	// or has removed the interface.
	links, err := ours()
	if err != nil {
		return nil, failed("list networks", err)
	}
	entries, err := os.ReadDir(n.cfg.NetNSDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, failed("list networks", err)
	}
	present := &port.Present{Strays: n.straysAmong(links, entries)}
	present.Attached, present.Unpinned = n.attachedAmong(links, entries)
	if present.Slots, err = n.slotsOf(links); err != nil {
		return nil, failed("list networks", err)
	}
	return present, nil
}

// attached lists the environments that have a network or a part of one, which
// a crash may leave, sorted; not those that Detach is about to remove.
func (n *Networks) attached() ([]string, error) {
	links, err := ours()
	if err != nil {
		return nil, err
	}
	return n.attachedWith(links)
}

// attachedWith is attached where the links were listed already.
func (n *Networks) attachedWith(links []hostLink) ([]string, error) {
	entries, err := os.ReadDir(n.cfg.NetNSDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	attached, _ := n.attachedAmong(links, entries)
	return attached, nil
}

// attachedAmong are those that links or namespaces tell of. unpinned are those of
// them that have interfaces and no file in NetNSDir. That file is made before all
// else and goes after it, so they are another node's, or somebody has removed the
// directory.
func (n *Networks) attachedAmong(links []hostLink, namespaces []os.DirEntry) (attached, unpinned []string) {
	pinned := make(map[string]bool, len(namespaces)) // whether, by environment
	for i := range links {
		if envID, ok := strings.CutPrefix(links[i].Attrs().Alias, aliasPrefix); ok {
			pinned[envID] = false
		}
	}
	for _, entry := range namespaces {
		pinned[entry.Name()] = true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, envID := range slices.Sorted(maps.Keys(pinned)) {
		if n.removing[envID] {
			continue
		}
		attached = append(attached, envID)
		if !pinned[envID] {
			unpinned = append(unpinned, envID)
		}
	}
	return attached, unpinned
}

// straysAmong are the links that no alias says whose they are, where there is no
// namespace of an environment that would have such a name.
func (n *Networks) straysAmong(links []hostLink, namespaces []os.DirEntry) (strays []string) {
	nameless := slices.DeleteFunc(slices.Clone(links), func(link hostLink) bool { return link.Attrs().Alias != "" })
	if len(nameless) == 0 {
		return nil
	}
	known := make(map[string]bool, 3*len(namespaces))
	for _, entry := range namespaces {
		names := n.names(entry.Name())
		known[names.bridge], known[names.veth], known[names.ifb] = true, true, true
	}
	for _, link := range nameless {
		if name := link.Attrs().Name; !known[name] {
			strays = append(strays, name)
		}
	}
	slices.Sort(strays)
	return strays
}

// slotsOf tells the slots of the networks that there are, by environment. A
// network whose bridge has no address of the range is left out: it carries no
// traffic.
func (n *Networks) slotsOf(links []hostLink) (map[string]int, error) {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	addresses, err := dump(func() ([]netlink.Addr, error) { return host.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	found := make(map[int]int, len(addresses)) // slots, by interface
	for i := range addresses {
		if gateway, ok := netip.AddrFromSlice(addresses[i].IP.To4()); ok && n.cfg.Range.Contains(gateway) {
			found[addresses[i].LinkIndex] = n.slotOf(gateway)
		}
	}
	slots := make(map[string]int)
	for i := range links {
		envID, ok := bridgeOf(links[i])
		if slot, has := found[links[i].Attrs().Index]; ok && has {
			slots[envID] = slot
		}
	}
	return slots, nil
}

// slotOf is the slot whose network has an address of the range.
func (n *Networks) slotOf(address netip.Addr) int {
	base, own := n.cfg.Range.Addr().As4(), address.As4()
	number := func(a [4]byte) uint32 { return uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3]) }
	return int(number(own)-number(base)) / slotSize
}

// RemoveStray removes an interface, if it still is a stray.
func (n *Networks) RemoveStray(ctx context.Context, name string) error {
	present, err := n.Present(ctx)
	if err != nil || !slices.Contains(present.Strays, name) {
		return err
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return failed("open netlink", err)
	}
	defer host.Close()
	link, err := find(host, name)
	if err != nil || link == nil {
		return err
	}
	if err := host.LinkDel(link); err != nil && !gone(err) {
		return failed("remove interface "+name, err)
	}
	return nil
}
