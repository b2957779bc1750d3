// Package policy says what an environment may reach and how fast: the words
// that specs, the firewall and the shaping of traffic have in common. It does
// nothing itself.
package policy

import (
	"net/netip"
	"slices"

	"github.com/remotegpu/remotegpu/network/port"
)

// Egress is where an environment may open connections to. What it answers, to
// whoever reaches it, is not limited by it.
type Egress string

// The modes. Each is beside the environments of its groups, and what the
// environment is asked through published ports.
const (
	// Open is everything but closed networks: private ones, those that the host
	// is in, and what clouds keep for their machines. Allow opens some of them.
	Open Egress = "open"
	// AllowList is what Allow names, and the name servers of the node.
	AllowList Egress = "allow-list"
	// None is nothing.
	None Egress = "none"
)

// Bounds of a policy.
const (
	MaxAllow  = 64        // destinations: a new connection is held against each
	MaxGroups = 8         // groups of an environment
	MinBits   = 64_000    // bits per second: less than a packet of 1500 bytes in 200 ms helps nobody
	MaxBits   = 100 * 1e9 // bits per second: what the queue of 50 ms at that speed can count

)

// Policy is the network policy of an environment. The zero value is the
// default.
type Policy struct {
	Egress Egress        `json:"egress,omitempty"` // "": Open
	Allow  []Destination `json:"allow,omitempty"`
	// Groups are names, DNS labels. Environments of one project that share a
	// group reach each other's addresses directly.
	Groups []string `json:"groups,omitempty"`
	// IngressBits and EgressBits are how many bits per second it receives and
	// sends at most. 0: no limit.
	IngressBits int64 `json:"ingress_bits,omitempty"`
	EgressBits  int64 `json:"egress_bits,omitempty"`
}

// Mode is the egress mode, Open where none is named.
func (p *Policy) Mode() Egress {
	if p.Egress == "" {
		return Open
	}
	return p.Egress
}

// Allows tells whether Allow names a destination, as the environment addresses
// it.
func (p *Policy) Allows(to netip.Addr, protocol port.Protocol, number uint16) bool {
	return slices.ContainsFunc(p.Allow, func(d Destination) bool { return d.Contains(to, protocol, number) })
}

// Declared is the policy of one environment, with what it takes to put it in
// force.
type Declared struct {
	EnvID   string
	Project string     // its groups are this project's
	Address netip.Addr // of the environment
	Policy  Policy
}
