package network

import (
	"context"
	"fmt"
	"maps"
	"slices"

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
	links, err := ours()
	if err != nil {
		return nil, failed("compare the host's rules", err)
	}
	all, err := n.wanted(ctx, published, policies, func() ([]hostLink, error) { return links, nil })
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
	bridges, err := n.bridgeDrift(ctx, links)
	if err != nil {
		return nil, failed("compare the bridges of environments", err)
	}
	drift = append(drift, bridges...)
	if lost, err := n.reservationLost(); err == nil && lost != "" { // Restore says why it cannot be read
		drift = append(drift, port.Drift{Name: "net.ipv4.ip_local_reserved_ports", Message: "outgoing connections may take ports of the pools: " + lost})
	}
	return drift, nil
}

// bridgeDrift names the environments whose bridge lacks something. links are ours.
func (n *Networks) bridgeDrift(ctx context.Context, links []hostLink) (drift []port.Drift, err error) {
	six := n.HasIPv6()
	there, err := n.look(links, six)
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
