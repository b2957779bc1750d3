package network

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

// Drift tells what Restore of the same lists would change on the host: ports
// that are published and should not be, or the other way round, policies that
// are not in force, and chains, hooks and bridges that are not as they should
// be. It changes nothing.
func (n *Networks) Drift(ctx context.Context, published []port.Published, policies []policy.Declared) ([]port.Drift, error) {
	around, err := n.surroundings(ctx)
	if err != nil {
		return nil, failed("compare the host's rules", err)
	}
	desired := firewall.Desired{Surroundings: around}
	all, err := n.wanted(ctx, published, policies)
	if err != nil {
		return nil, fmt.Errorf("compare the host's rules: %w", err)
	}
	merged := n.published.merged(all)
	for _, envID := range slices.Sorted(maps.Keys(merged)) { // so that the answer is in order
		one := merged[envID]
		desired.Mappings = append(desired.Mappings, one.mappings...)
		if !one.policy.IsDefault() {
			desired.Policies = append(desired.Policies, one.policy)
		}
	}
	there, differs, err := n.cfg.Firewall.Check(ctx, desired)
	if err != nil {
		return nil, fmt.Errorf("compare the host's rules: %w", err)
	}
	var drift []port.Drift
	for _, m := range without(there.Mappings, desired.Mappings) {
		drift = append(drift, port.Drift{EnvID: m.EnvID, Name: nameOf(m), Message: "the port is published and should not be"})
	}
	for _, m := range without(desired.Mappings, there.Mappings) {
		drift = append(drift, port.Drift{EnvID: m.EnvID, Name: nameOf(m), Message: "the port should be published and is not"})
	}
	drift = append(drift, policyDrift(there.Policies, desired.Policies)...)
	for _, name := range differs {
		drift = append(drift, port.Drift{Name: name, Message: "it is not as it was declared"})
	}
	bridges, err := n.bridgeDrift(ctx)
	if err != nil {
		return nil, failed("compare the bridges of environments", err)
	}
	drift = append(drift, bridges...)
	if lost, err := n.reservationLost(); err == nil && lost != "" { // Restore says why it cannot be read
		drift = append(drift, port.Drift{Name: "net.ipv4.ip_local_reserved_ports", Message: "outgoing connections may take ports of the pools: " + lost})
	}
	return drift, nil
}

// bridgeDrift names the environments whose bridge lacks something.
func (n *Networks) bridgeDrift(ctx context.Context) (drift []port.Drift, err error) {
	six := n.HasIPv6()
	there, err := n.look(six)
	if err != nil {
		return nil, err
	}
	for _, envID := range slices.Sorted(maps.Keys(there)) {
		one := there[envID]
		if one.slot < 0 || one.whole(six) || !n.mayMend(envID, one.slot) {
			continue
		}
		message := "the bridge lacks an address, a route, a neighbour or its port"
		held, err := pinned(n.NetNS(envID))
		if one.index == 0 {
			message = "the bridge is gone"
			held, err = n.isGone(ctx, envID)
		}
		if err != nil {
			return nil, err
		}
		if held { // else it is being removed, or another node's
			drift = append(drift, port.Drift{EnvID: envID, Name: one.name, Message: message})
		}
	}
	return drift, nil
}

// isGone tells whether an environment has a namespace and no bridge, when nobody
// is making or removing them.
func (n *Networks) isGone(ctx context.Context, envID string) (bool, error) {
	unlock, err := n.locks.Lock(ctx, envID)
	if err != nil {
		return false, err
	}
	defer unlock()
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return false, fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	bridge, err := find(host, n.names(envID).bridge)
	if err != nil || bridge != nil {
		return false, err
	}
	return pinned(n.NetNS(envID))
}

// policyDrift names the environments whose policy in the kernel is another one.
func policyDrift(there, wanted []firewall.Policy) (drift []port.Drift) {
	found := make(map[string]*firewall.Policy, len(there))
	for i := range there {
		found[there[i].EnvID] = &there[i]
	}
	for i := range wanted {
		envID := wanted[i].EnvID
		if in := found[envID]; in == nil || !in.Equal(&wanted[i]) {
			drift = append(drift, port.Drift{EnvID: envID, Name: "network policy", Message: "it is not in force as it should be"})
		}
		delete(found, envID)
	}
	for _, envID := range slices.Sorted(maps.Keys(found)) {
		drift = append(drift, port.Drift{EnvID: envID, Name: "network policy", Message: "it is in force and should not be"})
	}
	return drift
}

// Differences tells how the host's rules differ from what is published now, and
// changes nothing. FIREWALL_FAILED when they cannot be read, or before anything
// was declared.
func (n *Networks) Differences(ctx context.Context) ([]firewall.Difference, error) {
	if !n.published.knows() {
		return nil, undeclared()
	}
	return n.cfg.Firewall.Differences(ctx, n.published.all())
}

// Rules is what is published now as rules, in the form of iptables-save. Errors
// as of Differences.
func (n *Networks) Rules(context.Context) (string, error) {
	if !n.published.knows() {
		return "", undeclared()
	}
	return n.cfg.Firewall.Render(n.published.all())
}

func undeclared() error {
	return problem.New(problem.FirewallFailed, "the node has not declared any rule yet").
		WithHint("It does so at its start; try again in a moment.")
}

func nameOf(m firewall.Mapping) string {
	return fmt.Sprintf("%s %d to %s", m.Protocol, m.HostPort, m.To)
}

// merged is what would be published after a restore of all: what was changed
// so recently that the caller may not have known outweighs the list.
func (p *publisher) merged(all map[string]publication) map[string]publication {
	p.mu.Lock()
	defer p.mu.Unlock()
	merged := make(map[string]publication, len(all))
	maps.Copy(merged, all)
	for envID, publication := range p.current {
		if listed, ok := merged[envID]; ok {
			merged[envID] = p.younger(envID, listed)
		} else if p.recent(envID) {
			merged[envID] = publication
		}
	}
	return merged
}

// Occupied tells the slots of the networks that there are, by environment. A
// network whose bridge has no address of the range is left out: it carries no
// traffic.
func (n *Networks) Occupied(context.Context) (map[string]int, error) {
	links, err := ours()
	if err != nil {
		return nil, failed("list networks", err)
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, failed("open netlink", err)
	}
	defer host.Close()
	addresses, err := dump(func() ([]netlink.Addr, error) { return host.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, failed("list addresses", err)
	}
	slots := make(map[string]int)
	for _, link := range links {
		envID, named := strings.CutPrefix(link.Attrs().Alias, aliasPrefix)
		if !named || link.Type() != "bridge" {
			continue
		}
		for i := range addresses {
			if addresses[i].LinkIndex != link.Attrs().Index {
				continue
			}
			if gateway, ok := netip.AddrFromSlice(addresses[i].IP.To4()); ok && n.cfg.Range.Contains(gateway) {
				slots[envID] = n.slotOf(gateway)
			}
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

// Strays lists interfaces that have our names and kinds and belong to no
// environment: no alias says whose they are, and there is no namespace of an
// environment that would have such a name.
func (n *Networks) Strays(context.Context) ([]string, error) {
	// A namespace's file is made before the interfaces and removed after them.
	// Whoever makes or removes some now has had the file when it is looked for,
	// or has removed the interface.
	links, err := ours()
	if err != nil {
		return nil, failed("list networks", err)
	}
	entries, err := os.ReadDir(n.cfg.NetNSDir)
	if err != nil && !os.IsNotExist(err) {
		return nil, failed("list networks", err)
	}
	known := make(map[string]bool, 3*len(entries))
	for _, entry := range entries {
		names := n.names(entry.Name())
		known[names.bridge], known[names.veth], known[names.ifb] = true, true, true
	}
	var strays []string
	for _, link := range links {
		if name := link.Attrs().Name; link.Attrs().Alias == "" && !known[name] {
			strays = append(strays, name)
		}
	}
	slices.Sort(strays)
	return strays, nil
}

// RemoveStray removes an interface, if it still is a stray.
func (n *Networks) RemoveStray(ctx context.Context, name string) error {
	strays, err := n.Strays(ctx)
	if err != nil || !slices.Contains(strays, name) {
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
