package firewall

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

// Policy is what one environment may reach. One that is open, names nothing
// and is in no group has no rules: the default needs none.
type Policy struct {
	EnvID   string
	Address netip.Addr // in the subnet
	Egress  policy.Egress
	Allow   []policy.Destination
	Groups  []string // names that are unique among all projects
}

// IsDefault tells whether the policy needs no rule.
func (p *Policy) IsDefault() bool {
	return (p.Egress == policy.Open || p.Egress == "") && len(p.Allow) == 0 && len(p.Groups) == 0
}

// Equal tells whether two policies have the same rules.
func (p *Policy) Equal(other *Policy) bool {
	return p.EnvID == other.EnvID && p.Address == other.Address && cmp.Or(p.Egress, policy.Open) == cmp.Or(other.Egress, policy.Open) &&
		slices.Equal(p.Groups, other.Groups) &&
		// Those that are written alike are compared most: all of a node's with each change.
		(slices.Equal(p.Allow, other.Allow) || slices.Equal(single(p.Allow), single(other.Allow)))
}

// single are destinations of one rule each, each once, those of IPv4 first: as
// they are read back.
func single(all []policy.Destination) (expanded []policy.Destination) {
	for _, six := range []bool{false, true} {
		for _, d := range all {
			for _, protocol := range protocols(d) {
				d.Protocol = protocol
				if d.Prefix.Addr().Is6() == six && !slices.Contains(expanded, d) {
					expanded = append(expanded, d)
				}
			}
		}
	}
	return expanded
}

// Surroundings are what holds for all environments.
type Surroundings struct {
	// Closed are networks that open environments do not reach, beside those of
	// policy.Closed: those that the host is in.
	Closed []netip.Prefix
	// Allow are destinations that open environments reach though they are
	// closed.
	Allow []policy.Destination
	// Resolvers are name servers that environments reach on port 53, unless
	// their policy is None.
	Resolvers []netip.Addr
	// Names says that the node's responder listens at Config.Resolver. While it
	// does not, whatever else has the port is closed to environments.
	Names bool
	// Apart are interfaces of the host between which nothing is forwarded.
	Apart []HostLink
	// Apart6 are the same for IPv6.
	Apart6 []HostLink
}

// HostLink is an interface by which the host is in a network.
type HostLink struct {
	Name   string // of which IsLinkName holds
	Bridge bool   // packets that go on by it may not have been routed
}

// IsLinkName tells whether rules can name an interface: iptables takes a "+" at
// the end for any name that begins so, and prints others in another form.
func IsLinkName(name string) bool {
	return name != "" && name[0] != '-' && strings.Map(plain, name) == name
}

// Equal tells whether two are the same.
func (s *Surroundings) Equal(other *Surroundings) bool {
	return slices.Equal(s.Closed, other.Closed) && slices.Equal(s.Allow, other.Allow) && slices.Equal(s.Resolvers, other.Resolvers) &&
		s.Names == other.Names && slices.Equal(s.Apart, other.Apart) && slices.Equal(s.Apart6, other.Apart6)
}

// renderPolicies adds to the filter table what decides about what environments
// send:
//
//	DIRECT  to another environment's address: a member of one of its groups
//	OUT     to everything else: its own policy, then what holds for all
//
// Both find the environment by its source address, which is its own: rpfilter
// sees to that. What the policy of an environment names is matched by where
// the connection was addressed to, so that ports published on the host's
// addresses are named by these.
func (l *layout) renderPolicies(filter chains, desired *Desired) error {
	p := l.prefix
	filter[p+"-DIRECT"], filter[p+"-OUT"] = nil, nil
	filter[p+"-DNS"] = l.renderResolvers(desired.Surroundings.Resolvers)
	prohibited := "icmp-admin-prohibited"
	if l.twins != nil {
		prohibited = "icmp6-adm-prohibited"
	}
	// Refused at once, and with the reason where the sender looks at it: a
	// connection that was tracked before its policy changed is ended.
	filter[p+"-REFUSE"] = []string{
		fmt.Sprintf("-A %s-REFUSE -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j REJECT --reject-with tcp-reset", p),
		fmt.Sprintf("-A %s-REFUSE -j REJECT --reject-with %s", p, prohibited),
	}
	policies := slices.SortedFunc(slices.Values(desired.Policies), func(a, b Policy) int { return a.Address.Compare(b.Address) })
	direct := &tree{l, filter, p + "-DIRECT", "-s", func(block netip.Prefix) string { return blockName(p+"-DIRECT", block) }}
	out := &tree{l, filter, p + "-OUT", "-s", func(block netip.Prefix) string { return blockName(p+"-OUT", block) }}
	groups := &groups{layout: l, filter: filter, names: make(map[string]string)}
	for i := range policies {
		one := &policies[i]
		if err := l.checkPolicy(one); err != nil {
			return err
		}
		if i > 0 && one.Address == policies[i-1].Address {
			return fmt.Errorf("policies of environments %s and %s for address %s: %w",
				policies[i-1].EnvID, one.EnvID, one.Address, errdefs.ErrAlreadyExists)
		}
		for _, name := range one.Groups {
			chain, err := groups.join(name, one)
			if err != nil {
				return err
			}
			direct.add(one.Address, fmt.Sprintf("%s -j %s", l.owned(one.EnvID, "group="+name), chain))
		}
		l.renderEgress(filter, out, one)
	}
	filter[p+"-DIRECT"] = append(filter[p+"-DIRECT"], fmt.Sprintf("-A %s-DIRECT %s -j DROP", p, l.note("other environments")))
	filter[p+"-OUT"] = append(filter[p+"-OUT"], l.renderDefaults(&desired.Surroundings)...)
	return nil
}

// renderEgress adds the rules of an environment that differs from the default.
func (l *layout) renderEgress(filter chains, out *tree, one *Policy) {
	mode := cmp.Or(one.Egress, policy.Open)
	mark := l.owned(one.EnvID, "egress="+string(mode))
	if mode == policy.None {
		out.add(one.Address, fmt.Sprintf("%s -j %s-REFUSE", mark, l.prefix))
		return
	}
	if mode == policy.Open && len(one.Allow) == 0 {
		return
	}
	chain := fmt.Sprintf("%s-ENV-%s", l.prefix, one.Address)
	out.add(one.Address, fmt.Sprintf("%s -j %s", mark, chain))
	var rules []string
	for _, d := range single(one.Allow) {
		if !l.has(d.Prefix) {
			continue
		}
		rules = append(rules, fmt.Sprintf("-A %s %s %s -j ACCEPT", chain, original(d), l.owned(one.EnvID, "allow")))
	}
	if mode == policy.AllowList {
		rules = append(rules,
			fmt.Sprintf("-A %s %s -j %s-DNS", chain, l.owned(one.EnvID, "names"), l.prefix),
			fmt.Sprintf("-A %s %s -j %s-REFUSE", chain, l.owned(one.EnvID, "rest"), l.prefix))
	}
	filter[chain] = rules
}

// original is the match for connections that were addressed to a destination
// of single.
func original(d policy.Destination) string {
	match := ""
	if d.Protocol != "" {
		match = fmt.Sprintf("-p %s ", d.Protocol)
	}
	to := d.Prefix.String()
	if d.Prefix.IsSingleIP() { // as iptables-save prints it
		to = d.Prefix.Addr().String()
	}
	match += "-m conntrack --ctorigdst " + to
	if d.First != 0 {
		match += " --ctorigdstport " + span(d)
	}
	return match
}

// protocols are those a destination needs rules for, "" for one of all.
func protocols(d policy.Destination) []port.Protocol {
	if d.Protocol == "" && d.First != 0 { // only these have ports
		return []port.Protocol{port.TCP, port.UDP}
	}
	return []port.Protocol{d.Protocol}
}

// span is the ports of a destination as iptables-save prints them.
func span(d policy.Destination) string {
	if d.First == d.Last {
		return fmt.Sprint(d.First)
	}
	return fmt.Sprintf("%d:%d", d.First, d.Last)
}

// renderDefaults is what holds for environments whose policy has not decided.
func (l *layout) renderDefaults(all *Surroundings) (rules []string) {
	p := l.prefix
	// What was addressed to a published port goes to an environment by now.
	rules = append(rules,
		fmt.Sprintf("-A %s-OUT -o %s %s -j RETURN", p, l.bridges(), l.note("published ports")),
		fmt.Sprintf("-A %s-OUT -j %s-DNS", p, p))
	for _, d := range single(all.Allow) {
		if !l.has(d.Prefix) {
			continue
		}
		match := "-d " + d.Prefix.String()
		if d.Protocol != "" {
			match += fmt.Sprintf(" -p %s", d.Protocol)
		}
		if d.First != 0 {
			match += fmt.Sprintf(" -m %s --dport %s", d.Protocol, span(d))
		}
		rules = append(rules, fmt.Sprintf("-A %s-OUT %s %s -j ACCEPT", p, match, l.note("allowed by the node")))
	}
	closed := func(networks []netip.Prefix, what string) {
		for _, network := range networks {
			if l.has(network) {
				rules = append(rules, fmt.Sprintf("-A %s-OUT -d %s %s -j %s-REFUSE", p, network, l.note(what), p))
			}
		}
	}
	closed(policy.Closed(), "private networks")
	closed(all.Closed, "networks of the host")
	return rules
}

func (l *layout) renderResolvers(servers []netip.Addr) (rules []string) {
	for _, server := range servers {
		if !l.hasAddress(server) {
			continue
		}
		for _, protocol := range []port.Protocol{port.UDP, port.TCP} {
			rules = append(rules, fmt.Sprintf("-A %s-DNS -d %s -p %s -m %s --dport 53 -j ACCEPT", l.prefix, alone(server), protocol, protocol))
		}
	}
	return rules
}

func (l *layout) checkPolicy(one *Policy) error {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("policy of environment %s: %s: %w", one.EnvID, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
	}
	if !l.subnet.Contains(one.Address) {
		return invalid("address %s is not in %s", one.Address, l.subnet)
	}
	if mode := cmp.Or(one.Egress, policy.Open); mode != policy.Open && mode != policy.AllowList && mode != policy.None {
		return invalid("egress %q", one.Egress)
	}
	for _, d := range one.Allow {
		if !l.knows(d.Prefix) || d.Last < d.First ||
			d.Protocol != "" && d.Protocol != port.TCP && d.Protocol != port.UDP {
			return invalid("destination %s", d)
		}
	}
	for _, name := range one.Groups {
		if name == "" || len(name) > 130 || strings.Map(plain, name) != strings.Replace(name, "/", "_", 1) {
			return invalid("group %q", name)
		}
	}
	return nil
}

// groups makes the chain of each group: a tree over its members.
type groups struct {
	layout *layout
	filter chains
	names  map[string]string // of chains, to what they are for
}

// join adds a member to a group and returns the group's chain.
func (g *groups) join(name string, member *Policy) (chain string, err error) {
	called := func(what string) string {
		// 75 bits: nobody finds another group whose chain is called the same.
		sum := sha256.Sum256([]byte(what))
		chain := g.layout.prefix + "-GRP-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:15]
		if other, taken := g.names[chain]; taken && other != what {
			err = fmt.Errorf("groups %s and %s: the names of their chains are the same: %w", other, what, errdefs.ErrAlreadyExists)
		}
		g.names[chain] = what
		return chain
	}
	chain = called(name)
	if _, there := g.filter[chain]; !there {
		g.filter[chain] = nil
	}
	members := &tree{g.layout, g.filter, chain, "-d", func(block netip.Prefix) string { return called(name + " " + block.String()) }}
	members.add(member.Address, g.layout.owned(member.EnvID, "member")+" -j ACCEPT")
	return chain, err
}
