package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/policy"
)

// surroundings reads what holds for all environments: the networks that the
// host is in, which are closed to them, the name servers among these, and
// whether the node is one.
func (n *Networks) surroundings(ctx context.Context) (firewall.Surroundings, error) {
	connected, err := n.connected()
	if err != nil {
		return firewall.Surroundings{}, failed("look at the host's addresses", err)
	}
	n.noteSite(connected)
	apart, err := n.forward4.apart()
	if err != nil {
		return firewall.Surroundings{}, failed("look at the host's interfaces", err)
	}
	apart6, err := n.forward6.apart()
	if err != nil {
		return firewall.Surroundings{}, failed("look at the host's interfaces", err)
	}
	around := firewall.Surroundings{Closed: connected, Allow: n.cfg.Allow, Resolvers: n.resolvers(ctx), Apart: apart, Apart6: apart6}
	if n.cfg.Responder != nil {
		_, around.Names = n.cfg.Responder()
	}
	return around, nil
}

// Site are the networks that are environments' and those that the host is in,
// sorted: nobody from outside should lead environments into them. They are as
// Run or Restore saw them last, and looked at when neither has yet.
// NETWORK_FAILED.
func (n *Networks) Site() ([]netip.Prefix, error) {
	if site := n.site.Load(); site != nil {
		return *site, nil
	}
	connected, err := n.connected()
	if err != nil {
		return nil, failed("look at the host's addresses", err)
	}
	return n.noteSite(connected), nil
}

// noteSite has Site return these networks of the host.
func (n *Networks) noteSite(connected []netip.Prefix) []netip.Prefix {
	site := append(slices.Clone(connected), n.cfg.Range)
	if n.wants6() {
		site = append(site, n.cfg.Range6)
	}
	slices.SortFunc(site, comparePrefixes)
	n.site.Store(&site)
	return site
}

// resolvers are the name servers of environments. While the host's files cannot
// be read they are those read last: names must not fail because of that.
func (n *Networks) resolvers(ctx context.Context) []netip.Addr {
	servers, _, err := n.direct()
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case err == nil, problem.Of(err).Reason == problem.NoUpstreamDNS:
		n.servers = servers
	default:
		n.cfg.Log.WarnContext(ctx, "the host's name servers cannot be read; environments reach those of before", "error", err)
	}
	return slices.Clone(n.servers)
}

// addressOf is the IPv4 address of an address with its network, invalid when it
// is none.
func addressOf(network *net.IPNet) netip.Addr {
	if network == nil {
		return netip.Addr{}
	}
	address, _ := netip.AddrFromSlice(network.IP.To4())
	return address
}

// prefixOf is an address with the length of its network.
func prefixOf(network *net.IPNet) (netip.Prefix, bool) {
	if network == nil {
		return netip.Prefix{}, false
	}
	address, ok := netip.AddrFromSlice(network.IP)
	bits, size := network.Mask.Size()
	address = address.Unmap()
	return netip.PrefixFrom(address, bits), ok && size == address.BitLen()
}

// ofNetworks tells whether an address of the host is one of a bridge of ours.
func (n *Networks) ofNetworks(network *net.IPNet) bool {
	prefix, ok := prefixOf(network)
	return ok && (n.cfg.Range.Contains(prefix.Addr()) || n.wants6() && n.cfg.Range6.Contains(prefix.Addr()) || prefix == nearGateway)
}

// CheckPolicy refuses destinations that no environment's policy opens:
// DESTINATION_NOT_ALLOWED, each with its path below field.
func (n *Networks) CheckPolicy(wanted policy.Policy, field string) error {
	var errs []error
	for i, d := range wanted.Allow {
		at := fmt.Sprintf("%s.allow[%d]", field, i)
		allowed := slices.ContainsFunc(n.cfg.Allow, func(a policy.Destination) bool { return policy.Within([]netip.Prefix{a.Prefix}, d.Prefix) })
		switch {
		case policy.IsMetadata(d.Prefix) && !allowed:
			errs = append(errs, problem.New(problem.DestinationNotAllowed, "%s is where clouds hand out the machine's credentials", d).WithField(at).
				WithHint("an administrator can open it to all environments: [network] allow in the node's configuration"))
		case d.Prefix.Addr().Is6() && !n.wants6():
			errs = append(errs, problem.New(problem.DestinationNotAllowed, "%s is IPv6, which environments of this node do not have", d).WithField(at).
				WithHint("name IPv4 networks, or set network.range6 in the node's configuration"))
		case d.Prefix == netip.PrefixFrom(n.NodeAddress(), 32):
			// Names of environments lead there. It opens published ports alone: the
			// node's own services are behind the INPUT hook.
		case policy.Within([]netip.Prefix{n.cfg.Range, n.cfg.Range6}, d.Prefix):
			errs = append(errs, problem.New(problem.DestinationNotAllowed, "%s is in the range of environments", d).WithField(at).
				WithHint("put environments that shall reach each other into a group, or name for published ports an address of the host, or %s, which names of environments lead to", n.NodeAddress()))
		case policy.IsNobodys(d.Prefix):
			errs = append(errs, problem.New(problem.DestinationNotAllowed, "no machine has the address %s", d.Prefix.Addr()).WithField(at).
				WithHint("name addresses of other machines; 0.0.0.0/0 and ::/0 are all of them"))
		case d.Prefix.Addr().IsLoopback() || d.Prefix.Addr().IsMulticast() || d.Prefix.Addr().Is6() && d.Prefix.Addr().IsLinkLocalUnicast():
			errs = append(errs, problem.New(problem.DestinationNotAllowed, "%s leads out of no environment", d).WithField(at).
				WithHint("name addresses of other machines"))
		}
	}
	return errors.Join(errs...)
}

// SetPolicy puts the policy of an environment in force, in place of the one it
// had: where it may connect to, its groups, and how fast it sends and receives,
// as far as its network is there. What it has open and may not open any more is
// ended. It is called after Attach, before a process is in the environment.
// Errors are FIREWALL_FAILED and NETWORK_FAILED. After the former it may connect
// to nothing more than before; what the policy closes is closed as soon as rules
// can be changed again.
func (n *Networks) SetPolicy(ctx context.Context, declared policy.Declared) error {
	if err := check(declared.EnvID); err != nil {
		return err
	}
	changed, b, err := n.published.restrict(ctx, n.toPolicy(&declared))
	if err == nil && b != nil {
		err = n.await(ctx, b, func(ctx context.Context) {
			if changed {
				n.endRefused(ctx)
			}
		})
	}
	if err != nil {
		return fmt.Errorf("set policy of environment %s: %w", declared.EnvID, err)
	}
	return n.setBandwidth(ctx, &declared)
}

// toPolicy is the firewall's part of a policy, without what only another address
// family could reach.
func (n *Networks) toPolicy(declared *policy.Declared) firewall.Policy {
	rules := firewall.Policy{
		EnvID: declared.EnvID, Address: declared.Address, Egress: declared.Policy.Mode(), Allow: slices.Clone(declared.Policy.Allow),
	}
	if !n.wants6() {
		rules.Allow = slices.DeleteFunc(rules.Allow, func(d policy.Destination) bool { return d.Prefix.Addr().Is6() })
	}
	for _, name := range declared.Policy.Groups {
		rules.Groups = append(rules.Groups, declared.Project+"/"+name)
	}
	return rules
}
