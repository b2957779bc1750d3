// Package dns is the node's DNS responder. It is authoritative for the zones
// in which environments have their names and for the addresses they use, shows
// each asker the names that are meant for it, and forwards other questions,
// for environments only. What it serves is declared whole (Set) and answered
// from an immutable snapshot; Server speaks UDP and TCP, Forwarder asks the
// host's name servers. It knows nothing of databases and containers.
package dns

import "net/netip"

// TTLs in seconds. Answers about environments live shortly: an address of one
// that is gone may be another's a moment later. A name that is missing may be
// made in a moment, and clients must not remember for longer that it was.
const (
	DefaultTTL  = 5
	zoneTTL     = 60
	negativeTTL = 5
)

// Desired is everything that is served.
type Desired struct {
	// Zones hold the names; the same ones in each. The first is the one that
	// reverse names lead to.
	Zones []Zone
	// Reverse are the networks whose reverse names are ours alone.
	Reverse []netip.Prefix
	// Default is the project whose environments have a name right below the
	// zone for those who are not environments.
	Default string
	// Node is the address of the node that every environment reaches.
	Node netip.Addr
	// Advertised are the addresses by which others reach the node, and so the
	// published ports of environments.
	Advertised []netip.Addr
	// Hosts are the environments. One that is the same pointer as in the call
	// before must not have changed.
	Hosts []*Host
}

// Zone is a zone of which the node is a name server.
type Zone struct {
	Name string // domain name
	// NS are the names of its servers; empty: "ns" in the zone. Those that are
	// in a zone of ours lead to the node.
	NS []string
	// Mailbox is of whom to ask, as a domain name; empty: "hostmaster" in the
	// zone.
	Mailbox string
}

// Host is an environment.
type Host struct {
	ID      string
	Name    string // DNS label
	Project string // DNS label
	// Groups name those that reach each other's addresses directly: who has one
	// in common. They count within a project.
	Groups []string
	// Address is its own, which its questions come from.
	Address netip.Addr
	// Address6 is its own of IPv6; invalid: it has none.
	Address6 netip.Addr
	Services []Service
	Records  []Record
	Text     []string // a TXT record each
	// Forward says that questions about other names are forwarded for it.
	Forward bool
}

// Service is a published port.
type Service struct {
	Name     string // such as "ssh", without the underscore
	Protocol string // "tcp" or "udp"
	Port     uint16 // on the node
	Internal uint16 // in the environment
}

// Type is a type of record.
type Type string

// The types that records may have.
const (
	A     Type = "A"
	AAAA  Type = "AAAA"
	CNAME Type = "CNAME"
	TXT   Type = "TXT"
	SRV   Type = "SRV"
)

// Record is what somebody added to an environment's own names.
type Record struct {
	// Name is below the environment's name, "" the name itself. With Alias it
	// is one label beside it.
	Name  string
	Alias bool
	Type  Type
	TTL   uint32 // seconds; 0: DefaultTTL
	// Data as in a zone file: an address; a name; the text; priority, weight,
	// port and name. A name without a dot is one of the project, "" or "@" in
	// a CNAME the environment's own.
	Data string
}
