package firewall

import (
	"fmt"
	"net/netip"
	"strings"
)

// layout is how rules are written for one address family. Environments are
// declared by their IPv4 addresses and keep these in the names of chains of
// both families; what is matched is the address of the family.
type layout struct {
	prefix   string       // of the names of chains
	iface    string       // begins the names of bridges
	subnet   netip.Prefix // what environments are declared by
	resolver netip.Addr   // of this family; invalid: none
	twins    *Twins       // nil: the family is IPv4
	six      bool         // there are rules of IPv6 beside those of IPv4
}

func (l *layout) bridges() string { return l.iface + "+" }

// network holds the addresses of environments.
func (l *layout) network() netip.Prefix {
	if l.twins != nil {
		return l.twins.Subnet6
	}
	return l.subnet
}

// address is that of an environment, or of its gateway.
func (l *layout) address(declared netip.Addr) netip.Addr {
	if l.twins != nil {
		return l.twins.Of(declared)
	}
	return declared
}

// host is an address of an environment as a rule has it.
func (l *layout) host(declared netip.Addr) string { return alone(l.address(declared)) }

// alone is an address alone as iptables-save prints it.
func alone(address netip.Addr) string {
	return netip.PrefixFrom(address, address.BitLen()).String()
}

// block is a block of the addresses of environments.
func (l *layout) block(declared netip.Prefix) netip.Prefix {
	if l.twins != nil {
		return l.twins.block(declared)
	}
	return declared
}

// has tells whether rules of this family can be about a network.
func (l *layout) has(network netip.Prefix) bool { return l.hasAddress(network.Addr()) }

func (l *layout) hasAddress(address netip.Addr) bool { return address.Is4() == (l.twins == nil) }

// knows tells whether rules of some family can be about a network.
func (l *layout) knows(network netip.Prefix) bool {
	return network.IsValid() && !network.Addr().Is4In6() && network == network.Masked() &&
		(network.Addr().Is4() || l.six || network == Nobody())
}

// masquerades tells whether what environments send out gets the host's address.
// Addresses that are unique worldwide (RFC 4193 are not) are routed as they are.
func (l *layout) masquerades() bool { return l.twins == nil || l.twins.Subnet6.Addr().IsPrivate() }

// sources are the networks of this family that reach a mapping; all: everybody
// of this family does.
func (l *layout) sources(m *Mapping) (sources []netip.Prefix, all bool) {
	if len(m.Sources) == 0 {
		return nil, true
	}
	for _, source := range m.Sources {
		if !l.has(source) {
			continue
		}
		if source.Bits() == 0 {
			return nil, true
		}
		sources = append(sources, source)
	}
	return sources, false
}

// note is a comment for people.
func (l *layout) note(text string) string {
	return fmt.Sprintf(`-m comment --comment "%s: %s"`, strings.ToLower(l.prefix), text)
}

// owned is a comment that says whose a rule is, which is read back.
func (l *layout) owned(envID, what string) string {
	return `-m comment --comment "` + strings.ToLower(l.prefix) + ":env=" + word(envID) + ":" + what + `"`
}
