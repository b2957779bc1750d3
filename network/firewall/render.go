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

// renderV4 renders the whole desired state, every line byte for byte as
// iptables-save prints it, so that reading back can compare strings.
func (f *Firewall) renderV4(desired Desired) (ruleset, error) {
	rules, err := f.renderAround(&desired)
	if err != nil {
		return nil, err
	}
	published := newPortTree(f)
	if _, err := published.take(desired.Mappings); err != nil {
		return nil, err
	}
	maps.Copy(rules["nat"], published.chains)
	return rules, nil
}

// renderAround renders everything but what leads to published ports.
func (f *Firewall) renderAround(desired *Desired) (ruleset, error) {
	p, subnet, note := f.cfg.Prefix, f.cfg.Subnet.String(), f.note
	bridges := f.cfg.Interface + "+"
	// Bridges have route_localnet, so that the host's loopback reaches
	// published ports. Without the first rule the LAN and environments would
	// reach services that listen on the host's loopback only
	// (CVE-2020-8558). What is against spoofing is one rule each for all
	// environments: one per environment would cost every packet of the host.
	// rpfilter lets through what comes from the right network, spare addresses
	// of that included, which have no policy.
	raw := []string{
		fmt.Sprintf("-A %s-RAW -d 127.0.0.0/8 ! -i lo %s -j DROP", p, note("no martian loopback")),
		fmt.Sprintf("-A %s-RAW -d %s ! -i %s %s -j DROP", p, subnet, bridges, note("no direct-routed access")),
		// What answers to it would reach an environment as if it had asked. The
		// host itself has addresses of the range, and sends errors from them.
		fmt.Sprintf("-A %s-RAW -i lo -j RETURN", p),
		fmt.Sprintf("-A %s-RAW -s %s ! -i %s %s -j DROP", p, subnet, bridges, note("source spoofing")),
		fmt.Sprintf("-A %s-RAW ! -i %s -j RETURN", p, bridges), // every packet of the host comes here
		fmt.Sprintf("-A %s-RAW ! -s %s -i %s %s -j DROP", p, ownAddresses(f.cfg.Subnet), bridges, note("source spoofing")),
		fmt.Sprintf("-A %s-RAW -i %s -m rpfilter --invert %s -j DROP", p, bridges, note("source spoofing")),
	}
	// Whatever an environment's policy says: only the node's configuration
	// opens these. Ports and protocols are looked at in the filter table. A
	// cloud's name server may have the address of its metadata.
	for _, server := range desired.Surroundings.Resolvers {
		if !policy.IsMetadata(netip.PrefixFrom(server, 32)) {
			continue
		}
		for _, protocol := range []port.Protocol{port.UDP, port.TCP} {
			raw = append(raw, fmt.Sprintf("-A %s-RAW -d %s/32 -i %s -p %s -m %s --dport 53 -j RETURN", p, server, bridges, protocol, protocol))
		}
	}
	for _, d := range desired.Surroundings.Allow {
		if policy.IsMetadata(d.Prefix) {
			raw = append(raw, fmt.Sprintf("-A %s-RAW -d %s -i %s %s -j RETURN", p, d.Prefix, bridges, note("allowed by the node")))
		}
	}
	for _, network := range policy.Metadata() {
		raw = append(raw, fmt.Sprintf("-A %s-RAW -d %s -i %s %s -j DROP", p, network, bridges, note("metadata")))
	}
	filter := chains{
		p + "-IN": f.renderInput(bridges, note("no host services"), desired.Surroundings.Names),
		p + "-FWD": {
			fmt.Sprintf("-A %s-FWD -j %s", p, f.v4.admin()),
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
	f.renderApart(filter, desired.Surroundings.Apart)
	if err := f.renderPolicies(filter, desired); err != nil {
		return nil, err
	}
	// Hairpin and loopback connections get the gateway as their source, or
	// the answer would not come back this way.
	nat := chains{p + "-POST": {
		fmt.Sprintf("-A %s-POST -s %s -d %s -o %s -m conntrack --ctstate DNAT %s -j MASQUERADE", p, subnet, subnet, bridges, note("hairpin")),
		fmt.Sprintf("-A %s-POST -s 127.0.0.0/8 -o %s -m conntrack --ctstate DNAT %s -j MASQUERADE", p, bridges, note("localhost")),
		fmt.Sprintf("-A %s-POST -s %s ! -o %s %s -j MASQUERADE --random-fully", p, subnet, bridges, note("egress")),
	}}
	return ruleset{"raw": {p + "-RAW": raw}, "filter": filter, "nat": nat}, nil
}

// renderApart keeps the host's own networks apart, at the end of what is
// forwarded: what comes in by one interface does not go out by another. Of a
// bridge frames between its ports come here where br_netfilter is on; they
// would pass without us, too.
func (f *Firewall) renderApart(filter chains, links []HostLink) {
	if len(links) == 0 {
		return
	}
	p, to := f.cfg.Prefix, f.cfg.Prefix+"-APART"
	var bridged, dropped []string
	for _, link := range links {
		filter[p+"-FWD"] = append(filter[p+"-FWD"], fmt.Sprintf("-A %s-FWD -i %s -j %s", p, link.Name, to))
		if link.Bridge {
			bridged = append(bridged, fmt.Sprintf("-A %s -i %s -o %s -j RETURN", to, link.Name, link.Name))
		}
		dropped = append(dropped, fmt.Sprintf("-A %s -o %s %s -j DROP", to, link.Name, f.note("between networks of the host")))
	}
	filter[to] = append(bridged, dropped...)
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

// note is a comment for people.
func (f *Firewall) note(text string) string {
	return fmt.Sprintf(`-m comment --comment "%s: %s"`, strings.ToLower(f.cfg.Prefix), text)
}

// owned is a comment that says whose a rule is, which is read back.
func (f *Firewall) owned(envID, what string) string {
	return `-m comment --comment "` + strings.ToLower(f.cfg.Prefix) + ":env=" + word(envID) + ":" + what + `"`
}

// renderInput renders what environments may have of the host itself: names,
// while they are served, and the knowledge that it is there.
func (f *Firewall) renderInput(bridges, rest string, names bool) []string {
	chain := "-A " + f.cfg.Prefix + "-IN"
	rules := []string{fmt.Sprintf("%s -i %s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", chain, bridges)}
	if names && f.cfg.Resolver.IsValid() {
		for _, protocol := range []port.Protocol{port.UDP, port.TCP} {
			rules = append(rules, fmt.Sprintf("%s -d %s/32 -i %s -p %s -m %s --dport 53 -j ACCEPT",
				chain, f.cfg.Resolver, bridges, protocol, protocol))
		}
	}
	return append(rules,
		fmt.Sprintf("%s -i %s -p icmp -m icmp --icmp-type 8 -m limit --limit 10/sec -j ACCEPT", chain, bridges),
		fmt.Sprintf("%s -i %s %s -j DROP", chain, bridges, rest))
}

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
