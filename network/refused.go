package network

import (
	"context"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/cleanup"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

// endRefused drops, in the background, the tracked connections that
// environments opened and may not open any more, and those that were led to
// environments and would not be now: rules look at new connections alone.
func (n *Networks) endRefused(ctx context.Context) {
	n.background.Go(func() {
		ctx, cancel := cleanup.Context(ctx)
		defer cancel()
		n.published.mu.Lock()
		desired := n.published.desired(n.published.current)
		n.published.mu.Unlock()
		refused, unpublished := n.refused(&desired), n.unpublished(desired.Mappings)
		n.forgetter.later(func(flow *netlink.ConntrackFlow) bool { return refused(flow) || unpublished(flow) },
			func(which ...flows) { n.forget(ctx, which...) })
	})
}

// refused selects connections opened by environments that the rules would
// refuse.
func (n *Networks) refused(desired *firewall.Desired) flows {
	rules := verdicts{networks: n, local: sync.OnceValue(n.hosts), around: &desired.Surroundings, policies: make(map[netip.Addr]*firewall.Policy, len(desired.Policies))}
	for i := range desired.Policies {
		rules.policies[desired.Policies[i].Address] = &desired.Policies[i]
	}
	return func(flow *netlink.ConntrackFlow) bool {
		from, ok := n.declared(flow.Forward.SrcIP)
		if !ok || !n.isEnvironment(from) {
			return false
		}
		to, _ := n.declared(flow.Forward.DstIP)
		end, _ := n.declared(flow.Reverse.SrcIP)
		var protocol port.Protocol
		switch flow.Forward.Protocol {
		case unix.IPPROTO_TCP:
			protocol = port.TCP
		case unix.IPPROTO_UDP:
			protocol = port.UDP
		}
		if to == end && rules.isHost(end) {
			return !rules.allowHost(end, flow.Forward.Protocol, flow.Forward.DstPort)
		}
		return !rules.allow(from, to, end, protocol, flow.Forward.DstPort)
	}
}

// isEnvironment tells whether an address is one that environments have.
func (n *Networks) isEnvironment(address netip.Addr) bool {
	return n.cfg.Range.Contains(address) && n.Address(n.slotOf(address)) == address
}

// hosts are the addresses of the host, as environments are declared by theirs.
func (n *Networks) hosts() []netip.Addr {
	addresses := localAddresses()
	for i, address := range addresses {
		if twin, is := n.twins().Back(address); is {
			addresses[i] = twin
		}
	}
	return addresses
}

// verdicts say of a connection what the rules of the filter table say of its
// first packet.
type verdicts struct {
	networks *Networks
	local    func() []netip.Addr // of the host, as environments know them
	around   *firewall.Surroundings
	policies map[netip.Addr]*firewall.Policy
}

// isHost tells whether an address is one of the host, or of nobody in the range
// of environments.
func (v *verdicts) isHost(address netip.Addr) bool {
	if v.networks.cfg.Range.Contains(address) {
		return !v.networks.isEnvironment(address)
	}
	return slices.Contains(v.local(), address)
}

// allowHost decides about a connection to the host itself: environments may
// have names of it, and the knowledge that it is there.
func (v *verdicts) allowHost(address netip.Addr, protocol uint8, number uint16) bool {
	switch protocol {
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return true
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP:
		return number == 53 && v.around.Names && address == v.networks.NodeAddress()
	}
	return false
}

// allow decides about a connection that was addressed to one address and leads
// to another where a published port was asked for.
func (v *verdicts) allow(from, to, end netip.Addr, protocol port.Protocol, number uint16) bool {
	own := v.policies[from]
	if own == nil {
		own = &firewall.Policy{Egress: policy.Open}
	}
	if v.networks.cfg.Range.Contains(end) && to == end {
		return from == end || v.networks.isEnvironment(end) && v.grouped(own, end)
	}
	allowed := policy.Policy{Allow: own.Allow}
	switch {
	case allowed.Allows(to, protocol, number) && own.Egress != policy.None:
		return true
	case own.Egress == policy.None:
		return false
	case v.networks.cfg.Range.Contains(end):
		return own.Egress != policy.AllowList
	case number == 53 && protocol != "" && slices.Contains(v.around.Resolvers, to):
		return true
	case own.Egress == policy.AllowList:
		return false
	}
	node := policy.Policy{Allow: v.around.Allow}
	holds := func(network netip.Prefix) bool { return network.Contains(to) }
	return node.Allows(to, protocol, number) ||
		!slices.ContainsFunc(policy.Closed(), holds) && !slices.ContainsFunc(v.around.Closed, holds)
}

// grouped tells whether an environment shares a group with the one at an
// address.
func (v *verdicts) grouped(own *firewall.Policy, other netip.Addr) bool {
	member := v.policies[other]
	return member != nil && slices.ContainsFunc(own.Groups, func(name string) bool { return slices.Contains(member.Groups, name) })
}
