package firewall

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strings"

	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

// render renders the whole desired state, every line byte for byte as
// iptables-save prints it, so that reading back can compare strings.
func (l *layout) render(desired Desired) (ruleset, error) {
	rules, err := l.renderAround(&desired)
	if err != nil {
		return nil, err
	}
	published := newPortTree(l)
	if _, err := published.take(desired.Mappings); err != nil {
		return nil, err
	}
	maps.Copy(rules["nat"], published.chains)
	return rules, nil
}

// renderAround renders everything but what leads to published ports.
func (l *layout) renderAround(desired *Desired) (ruleset, error) {
	p, bridges, note := l.prefix, l.bridges(), l.note
	filter := chains{
		p + "-IN": l.renderInput(desired.Surroundings.Names),
		p + "-FWD": {
			fmt.Sprintf("-A %s-FWD -j %s-USER", p, p),
			// Of what others send, the first packet and all others alike.
			fmt.Sprintf("-A %s-FWD ! -i %s -o %s -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT", p, bridges, bridges),
			fmt.Sprintf("-A %s-FWD -i %s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", p, bridges),
			fmt.Sprintf("-A %s-FWD -i %s -o %s -m conntrack ! --ctstate DNAT -j %s-DIRECT", p, bridges, bridges, p),
			fmt.Sprintf("-A %s-FWD -i %s -j %s-OUT", p, bridges, p),
			fmt.Sprintf("-A %s-FWD -o %s -m conntrack --ctstate DNAT %s -j ACCEPT", p, bridges, note("published ports")),
			fmt.Sprintf("-A %s-FWD -o %s %s -j DROP", p, bridges, note("all else towards environments")),
			fmt.Sprintf("-A %s-FWD -i %s %s -j ACCEPT", p, bridges, note("egress")),
		},
	}
	apart := desired.Surroundings.Apart
	if l.twins != nil {
		apart = desired.Surroundings.Apart6
	}
	l.renderApart(filter, apart)
	if err := l.renderPolicies(filter, desired); err != nil {
		return nil, err
	}
	return ruleset{"raw": l.renderRaw(&desired.Surroundings), "filter": filter, "nat": {p + "-POST": l.renderSources()}}, nil
}

// renderRaw renders what keeps everybody to their own addresses, and clouds'
// metadata closed. It is one rule each for all environments: one per environment
// would cost every packet of the host. Every one of these comes here, so what
// environments send has a chain of its own, from which nothing comes back to
// what is for others.
func (l *layout) renderRaw(around *Surroundings) chains {
	p, network, note := l.prefix, l.network(), l.note
	from := p + "-FROM"
	rules := []string{fmt.Sprintf("-A %s-RAW -i %s -g %s", p, l.bridges(), from)}
	if l.masquerades() { // else answers have these addresses, and the filter table looks
		rules = append(rules, fmt.Sprintf("-A %s-RAW -d %s %s -j DROP", p, network, note("no direct-routed access")))
	}
	// What answers to it would reach an environment as if it had asked. The
	// host itself has addresses of the range, and sends errors from them.
	rules = append(rules, fmt.Sprintf("-A %s-RAW -i lo -j RETURN", p))
	if l.twins == nil {
		rules = append(rules, l.renderMartian(p+"-RAW"))
	}
	rules = append(rules, fmt.Sprintf("-A %s-RAW -s %s %s -j DROP", p, network, note("source spoofing")))
	return chains{p + "-RAW": rules, from: append(l.renderSpoofing(from), l.renderMetadata(from, around)...)}
}

// renderMartian closes the host's loopback. Bridges have route_localnet, so that
// it reaches published ports. Without this the LAN and environments would reach
// services that listen on it only (CVE-2020-8558).
func (l *layout) renderMartian(chain string) string {
	return fmt.Sprintf("-A %s -d %s %s -j DROP", chain, loopback, l.note("no martian loopback"))
}

// renderSpoofing renders what environments' packets have to be from.
func (l *layout) renderSpoofing(chain string) (rules []string) {
	note := l.note("source spoofing")
	if l.twins == nil {
		// rpfilter lets through what comes from the right network, spare
		// addresses of that included, which have no policy. In IPv6 only an
		// environment's own address, and link-local ones, lead to its bridge.
		rules = append(rules, l.renderMartian(chain),
			fmt.Sprintf("-A %s ! -s %s %s -j DROP", chain, ownAddresses(l.subnet), note))
	} else {
		// That is so unless somebody adds a route to one. The link-local address is
		// for neighbour discovery, and nobody forwards what has one; any other
		// would be one more neighbour of the host, which can have so many.
		rules = append(rules,
			fmt.Sprintf("-A %s -s %s -p ipv6-icmp -j RETURN", chain, alone(Near())),
			fmt.Sprintf("-A %s ! -s %s %s -j DROP", chain, l.network(), note))
	}
	return append(rules, fmt.Sprintf("-A %s -m rpfilter --invert %s -j DROP", chain, note))
}

// renderMetadata renders what closes clouds' metadata, whatever an environment's
// policy says: only the node's configuration opens these. Ports and protocols
// are looked at in the filter table. A cloud's name server may have the address
// of its metadata.
func (l *layout) renderMetadata(chain string, around *Surroundings) (rules []string) {
	note := l.note
	for _, server := range around.Resolvers {
		if !l.hasAddress(server) || !policy.IsMetadata(netip.PrefixFrom(server, server.BitLen())) {
			continue
		}
		for _, protocol := range []port.Protocol{port.UDP, port.TCP} {
			rules = append(rules, fmt.Sprintf("-A %s -d %s -p %s -m %s --dport 53 -j RETURN", chain, alone(server), protocol, protocol))
		}
	}
	for _, d := range around.Allow {
		if l.has(d.Prefix) && policy.IsMetadata(d.Prefix) {
			rules = append(rules, fmt.Sprintf("-A %s -d %s %s -j RETURN", chain, d.Prefix, note("allowed by the node")))
		}
	}
	for _, network := range policy.Metadata() {
		if l.has(network) {
			rules = append(rules, fmt.Sprintf("-A %s -d %s %s -j DROP", chain, network, note("metadata")))
		}
	}
	return rules
}

// renderSources renders whose address connections have: hairpin and loopback
// ones get the gateway as their source, or the answer would not come back this
// way. The loopback of IPv6 leads nowhere else.
func (l *layout) renderSources() (rules []string) {
	p, network, bridges, note := l.prefix, l.network(), l.bridges(), l.note
	rules = append(rules, fmt.Sprintf("-A %s-POST -s %s -d %s -o %s -m conntrack --ctstate DNAT %s -j MASQUERADE", p, network, network, bridges, note("hairpin")))
	if l.twins == nil {
		rules = append(rules, fmt.Sprintf("-A %s-POST -s %s -o %s -m conntrack --ctstate DNAT %s -j MASQUERADE", p, loopback, bridges, note("localhost")))
	}
	if l.masquerades() {
		rules = append(rules, fmt.Sprintf("-A %s-POST -s %s ! -o %s %s -j MASQUERADE --random-fully", p, network, bridges, note("egress")))
	}
	return rules
}

// renderApart keeps the host's own networks apart, at the end of what is
// forwarded: what comes in by one interface does not go out by another. Of a
// bridge frames between its ports come here where br_netfilter is on; they
// would pass without us, too.
func (l *layout) renderApart(filter chains, links []HostLink) {
	if len(links) == 0 {
		return
	}
	p, to := l.prefix, l.prefix+"-APART"
	var bridged, dropped []string
	for _, link := range links {
		filter[p+"-FWD"] = append(filter[p+"-FWD"], fmt.Sprintf("-A %s-FWD -i %s -j %s", p, link.Name, to))
		if link.Bridge {
			bridged = append(bridged, fmt.Sprintf("-A %s -i %s -o %s -j RETURN", to, link.Name, link.Name))
		}
		dropped = append(dropped, fmt.Sprintf("-A %s -o %s %s -j DROP", to, link.Name, l.note("between networks of the host")))
	}
	filter[to] = append(bridged, dropped...)
}

// apart is all rules that are needed to keep the host's own networks apart; none
// without links.
func (l *layout) apart(links []HostLink) ruleset {
	filter := make(chains)
	l.renderApart(filter, links)
	if len(filter) == 0 {
		return make(ruleset)
	}
	return ruleset{"filter": filter}
}

// ownAddresses are the addresses in a subnet that environments have, as
// iptables-save prints them: an address with a mask that has a hole.
func ownAddresses(subnet netip.Prefix) string {
	address, mask := subnet.Addr().As4(), net.CIDRMask(subnet.Bits(), 32)
	address[3] |= HostNumber
	mask[3] |= 1<<(32-NetworkBits) - 1
	if subnet.Bits() == NetworkBits {
		return netip.AddrFrom4(address).String() + "/32"
	}
	return netip.AddrFrom4(address).String() + "/" + net.IP(mask).String()
}

// renderInput renders what environments may have of the host itself: names,
// while they are served, and the knowledge that it is there.
func (l *layout) renderInput(names bool) []string {
	chain, bridges := "-A "+l.prefix+"-IN", l.bridges()
	rules := []string{fmt.Sprintf("%s -i %s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", chain, bridges)}
	if names && l.resolver.IsValid() {
		for _, protocol := range []port.Protocol{port.UDP, port.TCP} {
			rules = append(rules, fmt.Sprintf("%s -d %s -i %s -p %s -m %s --dport 53 -j ACCEPT",
				chain, alone(l.resolver), bridges, protocol, protocol))
		}
	}
	echo := "-p icmp -m icmp --icmp-type 8"
	if l.twins != nil {
		// Neighbours find each other by these, and nothing is tracked of them.
		for _, kind := range []int{neighbourSolicitation, neighbourAdvertisement} {
			rules = append(rules, fmt.Sprintf("%s -i %s -p ipv6-icmp -m icmp6 --icmpv6-type %d -j ACCEPT", chain, bridges, kind))
		}
		echo = "-p ipv6-icmp -m icmp6 --icmpv6-type 128"
	}
	return append(rules,
		fmt.Sprintf("%s -i %s %s -m limit --limit 10/sec -j ACCEPT", chain, bridges, echo),
		fmt.Sprintf("%s -i %s %s -j DROP", chain, bridges, l.note("no host services")))
}

// Types of ICMPv6 (RFC 4861).
const (
	neighbourSolicitation  = 135
	neighbourAdvertisement = 136
)

func dispatch(chain string, protocol port.Protocol, first, size int, to string) string {
	ports := fmt.Sprintf("%d:%d", first, first+size-1)
	return fmt.Sprintf("-A %s -p %s -m %s --dport %s -j %s", chain, protocol, protocol, ports, to)
}

// word keeps what goes into a comment to characters that iptables-save prints
// as they are, and short: a comment holds 255.
func word(s string) string {
	s = strings.Map(plain, s)
	return s[:min(len(s), 100)]
}

// plain is a character as a comment may have it.
func plain(r rune) rune {
	if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.' {
		return r
	}
	return '_'
}
