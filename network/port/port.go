// Package port is the node's port pool: which host port leads to which
// environment. It picks and persists; making a mapping reachable is the
// firewall's part. One Pool serves one host; its methods are safe for
// concurrent use.
package port

import (
	"context"
	"net/netip"
	"time"
)

// Service is what a port is for; each has its own range of host ports.
type Service string

// The services of the mission, with the range and the port inside that
// DefaultRanges gives them.
const (
	SSH     Service = "ssh"
	RDP     Service = "rdp"
	Jupyter Service = "jupyter"
	VNC     Service = "vnc"
	NoVNC   Service = "novnc"
	Custom  Service = "custom"
)

// Services returns all services in the order people see them.
func Services() []Service { return []Service{SSH, RDP, Jupyter, VNC, NoVNC, Custom} }

// Protocol is a transport protocol, "tcp" or "udp".
type Protocol string

// The protocols.
const (
	TCP Protocol = "tcp"
	UDP Protocol = "udp"
)

// Status is the life of a mapping. Rows are append-only: a released mapping
// stays as history.
type Status string

// The statuses.
const (
	Reserved Status = "reserved"
	Active   Status = "active"
	Released Status = "released"
)

// Mapping is a host port that leads to a port of an environment. At most one
// mapping per (host, protocol, external port) is reserved or active: a partial
// unique index of the store holds it.
type Mapping struct {
	ID          string // ULID
	EnvID       string
	EnvName     string // what the environment is called, or was when it gave the mapping back; "": not known
	Project     string
	HostID      string
	Service     Service
	Internal    uint16 // port inside the environment
	External    uint16 // port on the host
	Protocol    Protocol
	Description string
	Sources     []netip.Prefix // as ParseSources returns them; none: the node's default
	ExpiresAt   time.Time      // when it is withdrawn and released; zero: never
	Status      Status
	CreatedAt   time.Time
	UpdatedAt   time.Time
	ReleasedAt  time.Time // zero while held
	Revision    int64     // counts changes, from 1
	Reach       Reach     // follows from the others and the node's default; not stored
}

// Live says that something should lead through the mapping at that time.
func (m *Mapping) Live(now time.Time) bool {
	return m.Status != Released && (m.ExpiresAt.IsZero() || m.ExpiresAt.After(now))
}

// Range is the host ports of one service, both ends included.
type Range struct {
	Service  Service
	First    uint16
	Last     uint16
	Internal uint16 // port inside when a request names none; 0: it must
	Revision int64  // counts changes, from 1; 0: the default, never changed
}

// DefaultRanges returns the six ranges of the mission. VNC and NoVNC overlap;
// the allocator works on (protocol, port), so that is harmless.
func DefaultRanges() []Range {
	return []Range{
		{Service: SSH, First: 22000, Last: 22999, Internal: 22},
		{Service: RDP, First: 33890, Last: 34889, Internal: 3389},
		{Service: Jupyter, First: 8888, Last: 9887, Internal: 8888},
		{Service: VNC, First: 5900, Last: 6899, Internal: 5901},
		{Service: NoVNC, First: 6080, Last: 7079, Internal: 6080},
		{Service: Custom, First: 10000, Last: 19999},
	}
}

// Request asks for one mapping.
type Request struct {
	Service     Service  `json:"service"`
	Internal    uint16   `json:"internal,omitempty"` // 0: the service's own
	External    uint16   `json:"external,omitempty"` // 0: the pool picks
	Protocol    Protocol `json:"protocol,omitempty"` // "": TCP
	Description string   `json:"description,omitempty"`
	// Sources are who reaches it, as ParseSources reads them.
	Sources   []string  `json:"sources,omitempty"`
	ExpiresAt time.Time `json:"expires_at,omitzero"` // zero: never
	ID        string    `json:"-"`                   // of the mapping that comes of it; "": a new one
}

// Usage is a range and how full it is.
type Usage struct {
	Range
	InUse   int // ports of the range that are held, by whatever service
	Resting int // ports of the range that were released so lately that they are not given out yet
	Free    int // ports of the range that could be given out now
	Outside int // ports that the service holds outside of the range, from before it was changed
}

// Filter selects mappings. Zero fields select all.
type Filter struct {
	EnvID           string
	EnvName         string // only those released by environments that were called so then
	Project         string
	Service         Service
	IncludeReleased bool
	ID              string
	External        uint16
	Protocol        Protocol
	At              time.Time // only what was held at that time, released ones included, on the terms that it had then
	ReleasedSince   time.Time // only what was released then or later
	Limit           int       // 0: no limit
	After           string    // page cursor as returned by the store, "" for the first page
}

// Store keeps mappings and ranges. Errors are errdefs kinds; a violated
// uniqueness is a *ConflictError.
type Store interface {
	// PortMappings returns mappings by external port, then by creation, and
	// the cursor of the next page ("" on the last).
	PortMappings(ctx context.Context, hostID string, filter Filter) ([]Mapping, string, error)
	// InsertPortMappings writes all of them or none. *ConflictError when one
	// is held already.
	InsertPortMappings(ctx context.Context, mappings []Mapping) error
	// ReleasePortMappings marks the reserved and active mappings of an
	// environment released and returns them. None is not an error.
	ReleasePortMappings(ctx context.Context, hostID, envID string, at time.Time) ([]Mapping, error)
	// PortRanges returns the ranges that were changed from their default.
	PortRanges(ctx context.Context, hostID string) ([]Range, error)
	// SetPortRange writes a range when the stored revision is still
	// r.Revision-1, Aborted otherwise.
	SetPortRange(ctx context.Context, hostID string, r Range) error
}

// ConflictError says that a host port is held already.
type ConflictError struct {
	Protocol Protocol
	Port     uint16
}

// Owner is whom mappings are for.
type Owner struct {
	EnvID   string
	Project string
}

// Drift is one thing on the host that is not as the published ports want it.
type Drift struct {
	EnvID   string // "" when it is nobody's alone
	Name    string // the mapping, chain or hook
	Message string // what is wrong
}

// Present is what a host has of environments' networks.
type Present struct {
	Attached []string       // environments that have one or a part of one, sorted
	Unpinned []string       // those of them that have interfaces and none of this node's namespaces: another node's, where two have one network
	Slots    map[string]int // by environment; those of networks without an address are left out
	Strays   []string       // interfaces that are ours by name and kind and belong to no environment, sorted
}

// Change is what becomes of the mappings of an environment.
type Change struct {
	Add      []Mapping // new rows
	Drop     []Mapping // those to release
	Describe []Mapping // those that are kept with another description, sources or expiry
}

// Empty says that nothing changes.
func (c *Change) Empty() bool { return len(c.Add)+len(c.Drop)+len(c.Describe) == 0 }

// Published is an environment's address with the mappings that lead to it.
type Published struct {
	EnvID    string
	Address  netip.Addr
	Mappings []Mapping
}
