package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	miekg "github.com/miekg/dns"
)

// snapshot is what is answered from. It does not change.
type snapshot struct {
	zones     map[wireName]*zone
	maxLabels int // of the longest name of a zone
	clients   map[netip.Addr]*client
	node      netip.Addr
	nodePTR   body // the answer to who has the node's address
	// leading is sortLeading, made when it is asked for: few ask.
	leading func() map[string][]netip.Addr
}

// zone is a zone as it is answered from.
type zone struct {
	name     wireName
	labels   int
	reversed bool
	outside  *node
	inside   map[string]*node // by project
	apex     map[side][]set   // SOA and NS
	negative body             // the authority section of NODATA and NXDOMAIN
	soa      *soa
}

// client is an environment that asks, or is asked for by its address.
type client struct {
	project string
	groups  []string
	forward bool
	// outside and inside are the answers to who has its address, for who is no
	// environment, and for environments of its project.
	outside, inside *body
}

// What a zone's own server and its mailbox are called, unless it says
// otherwise.
const (
	serverLabel  = "ns"
	mailboxLabel = "hostmaster"
)

// Reserved are the labels right below a zone that are the zone's own: no
// environment and no alias may be called so.
func Reserved() []string { return []string{serverLabel, mailboxLabel} }

// everybody is the key of what environments of all projects see.
const everybody = ""

// build makes the next snapshot. Names that are no domain names are
// InvalidArgument, and nothing is changed then.
func (c *compiler) build(d *Desired, serial uint32) (*snapshot, error) {
	if len(d.Zones) == 0 {
		return nil, fmt.Errorf("serve DNS: no zone: %w", errdefs.ErrInvalidArgument)
	}
	s := &snapshot{
		zones: make(map[wireName]*zone), clients: make(map[netip.Addr]*client, len(d.Hosts)), node: d.Node,
	}
	s.leading = sync.OnceValue(s.sortLeading)
	c.begin(d.Node, d.Advertised)
	for _, h := range d.Hosts {
		one := &client{project: h.Project, groups: h.Groups, forward: h.Forward}
		for _, address := range h.addresses() {
			s.clients[address] = one
		}
	}
	servers := addressesOfServers(d)
	var errs []error
	for i := range d.Zones {
		errs = append(errs, s.addZone(c, d, &d.Zones[i], servers, serial, i == 0))
	}
	first := toWire(d.Zones[0].Name)
	for _, network := range d.Reverse {
		for _, name := range reverseZones(network) {
			server, mailbox := server(&d.Zones[0], first), mailbox(&d.Zones[0], first)
			errs = append(errs, s.insert(&zone{name: name, reversed: true},
				&soa{zone: name, server: server, mailbox: mailbox, serial: serial}, []wireName{server}, servers))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	var p packer
	p.add(answerSection, "", nameRecord(miekg.TypePTR, server(&d.Zones[0], first), DefaultTTL))
	s.nodePTR = p.body
	c.end()
	return s, nil
}

func server(z *Zone, name wireName) wireName { return serversOf(z, name)[0] }

// serversOf are the names of a zone's servers, at least one, "" for what is none.
func serversOf(z *Zone, name wireName) (servers []wireName) {
	for _, ns := range z.NS {
		servers = append(servers, toWire(ns))
	}
	if len(servers) == 0 {
		servers = append(servers, below(serverLabel, name))
	}
	return servers
}

// glue are the records of servers' names, for either side.
type glue map[side]map[wireName][]record

// addressesOfServers are the records of the servers whose names are in our
// zones. Nobody else knows their addresses, and all of them are this node.
func addressesOfServers(d *Desired) glue {
	known := glue{outside: make(map[wireName][]record), inside: make(map[wireName][]record)}
	for i := range d.Zones {
		for _, server := range serversOf(&d.Zones[i], toWire(d.Zones[i].Name)) {
			if !slices.ContainsFunc(d.Zones, func(z Zone) bool { _, in := server.in(toWire(z.Name)); return in }) {
				continue
			}
			known[inside][server] = []record{addressRecord(d.Node, zoneTTL)}
			known[outside][server] = nil
			for _, address := range d.Advertised {
				known[outside][server] = append(known[outside][server], addressRecord(address.Unmap(), zoneTTL))
			}
		}
	}
	return known
}

// in returns the labels of a name that are before those of a zone, from the top.
func (n wireName) in(zone wireName) (labels []string, in bool) {
	prefix, in := strings.CutSuffix(string(n), string(zone))
	if !in || len(zone) <= 1 || !wholeLabels(prefix) {
		return nil, false
	}
	labels = wireName(prefix + "\x00").labels()
	slices.Reverse(labels)
	return labels, true
}

func mailbox(z *Zone, name wireName) wireName {
	if z.Mailbox != "" {
		return toWire(z.Mailbox)
	}
	return below(mailboxLabel, name)
}

// addZone puts the names of all environments into a zone.
func (s *snapshot) addZone(c *compiler, d *Desired, configured *Zone, known glue, serial uint32, main bool) error {
	name := toWire(configured.Name)
	soa := &soa{zone: name, server: server(configured, name), mailbox: mailbox(configured, name), serial: serial}
	if len(name) <= 1 || soa.server == "" || soa.mailbox == "" {
		return fmt.Errorf("serve DNS: zone %q with name servers %q and mailbox %q: %w",
			configured.Name, configured.NS, configured.Mailbox, errdefs.ErrInvalidArgument)
	}
	z := &zone{name: name, outside: &node{}, inside: make(map[string]*node)}
	if err := s.insert(z, soa, serversOf(configured, name), known); err != nil {
		return err
	}
	projects := make(map[string][]*Host)
	for _, h := range d.Hosts {
		projects[h.Project] = append(projects[h.Project], h)
	}
	under := make(map[string]*node, len(projects)) // the names of others, by project
	for project, hosts := range projects {
		domain := below(project, name)
		if domain == "" {
			continue
		}
		view := &node{}
		s.hang(c, view, hosts, place{name, inside}, main)
		long := &node{}
		s.hang(c, long, hosts, place{domain, inside}, false)
		view.cede(project, long)
		z.inside[project] = view
		under[project] = &node{}
		s.hang(c, under[project], hosts, place{domain, outside}, main && project != d.Default)
		if project == d.Default {
			s.hang(c, z.outside, hosts, place{name, outside}, main)
		}
	}
	for project, names := range under {
		z.outside.cede(project, names)
	}
	z.addServers(known)
	return nil
}

// hang puts hosts below a node. An environment's name comes before an alias of
// the same name. With reverse their addresses lead to the names here.
func (s *snapshot) hang(c *compiler, n *node, hosts []*Host, at place, reversed bool) {
	all := c.compile(hosts, at)
	if n.children == nil {
		n.children = make(map[string]*node, len(all))
	}
	for _, done := range all {
		n.adopt(done.host.Name, done.node)
		for _, address := range done.host.addresses() {
			if owner := s.clients[address]; reversed && owner != nil {
				if at.side == inside {
					owner.inside = done.ptr
				} else {
					owner.outside = done.ptr
				}
			}
		}
	}
	for _, done := range all {
		for label, alias := range done.aliases {
			if n.children[label] == nil {
				n.adopt(label, alias)
			}
		}
	}
}

// addServers gives the names of servers in the zone their addresses, whatever
// else is called as they are: whoever answers at a server's name has the zone.
func (z *zone) addServers(known glue) {
	z.inside[everybody] = &node{} // for environments whose project has no names
	put := func(n *node, side side) {
		for server, records := range known[side] {
			if labels, in := server.in(z.name); in && len(labels) > 0 {
				n.override(labels, fill(records, nil))
			}
		}
	}
	put(z.outside, outside)
	for _, view := range z.inside {
		put(view, inside)
	}
}

// insert completes a zone with what is at its top.
func (s *snapshot) insert(z *zone, soa *soa, servers []wireName, known glue) error {
	if s.zones[z.name] != nil {
		return nil // two networks may share the zone of their last label
	}
	var authority, start packer
	authority.addSOA(authoritySection, soa, min(zoneTTL, negativeTTL))
	start.addSOA(answerSection, soa, zoneTTL)
	var records []record
	for _, server := range servers {
		if server == "" {
			return fmt.Errorf("serve DNS: a name server's name is none: %w", errdefs.ErrInvalidArgument)
		}
		records = append(records, nameRecord(miekg.TypeNS, server, zoneTTL))
	}
	z.labels, z.soa = len(z.name.labels()), soa
	z.negative, z.apex = authority.body, make(map[side][]set)
	for _, side := range []side{outside, inside} {
		z.apex[side] = append(fill(append(slices.Clone(records), known[side][z.name]...), known[side]),
			set{kind: miekg.TypeSOA, body: start.body, plain: []record{soa.record(zoneTTL)}})
	}
	s.zones[z.name] = z
	s.maxLabels = max(s.maxLabels, z.labels)
	return nil
}

// zoneOf returns the zone that the question's name is in, nil when it is in
// none of ours: the one with the longest name.
func (s *snapshot) zoneOf(q *query) *zone {
	for i := max(0, q.labels-s.maxLabels); i < q.labels; i++ {
		if z := s.zones[wireName(q.suffix(i))]; z != nil {
			return z
		}
	}
	return nil
}

// view is the tree that a client sees; nil is everybody who is no environment.
func (z *zone) view(c *client) *node {
	if c == nil {
		return z.outside
	}
	if view := z.inside[c.project]; view != nil {
		return view
	}
	return z.inside[everybody]
}

// top are the sets at the zone's own name that a client sees.
func (z *zone) top(c *client) []set { return z.apex[side(c != nil)] }

// ptr is the answer to who has an address, nil when the client may not know.
func (s *snapshot) ptr(c *client, address netip.Addr) *body {
	if address == s.node {
		return &s.nodePTR
	}
	owner := s.clients[address]
	switch {
	case owner == nil:
		return nil
	case c == nil:
		return owner.outside
	case c.project == owner.project:
		return owner.inside
	}
	return nil
}
