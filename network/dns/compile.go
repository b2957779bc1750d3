package dns

import (
	"net/netip"
	"slices"
	"strings"

	miekg "github.com/miekg/dns"
)

// side says for whom names are compiled: environments, or everybody else.
type side bool

const (
	outside side = false
	inside  side = true
)

// place is where the names of a project hang, for one side.
type place struct {
	domain wireName // such as gpu.internal, or default.gpu.internal
	side   side
}

// compiled is a host as a subtree, and what it has beside its name.
type compiled struct {
	host    *Host
	node    *node
	aliases map[string]*node
	ptr     *body // the answer to who has its address
}

// compiler turns hosts into subtrees. It keeps them from one snapshot to the
// next, for the hosts that are the same.
type compiler struct {
	node       netip.Addr
	advertised []netip.Addr
	kept       map[place]map[*Host]*compiled
	next       map[place]map[*Host]*compiled
}

// begin starts a snapshot.
func (c *compiler) begin(node netip.Addr, advertised []netip.Addr) {
	if node != c.node || !slices.Equal(advertised, c.advertised) {
		c.node, c.advertised, c.kept = node, slices.Clone(advertised), nil
	}
	c.next = make(map[place]map[*Host]*compiled)
}

// end forgets what the snapshot did not use.
func (c *compiler) end() { c.kept, c.next = c.next, nil }

// compile returns hosts at a place, in their order, without those whose name
// would be too long there.
func (c *compiler) compile(hosts []*Host, at place) []*compiled {
	kept, next := c.kept[at], c.next[at] // several projects may be at one place
	if next == nil {
		next = make(map[*Host]*compiled, max(len(hosts), len(kept)))
		c.next[at] = next
	}
	all := make([]*compiled, 0, len(hosts))
	for _, h := range hosts {
		if below(h.Name, at.domain) == "" {
			continue
		}
		done := kept[h]
		if done == nil {
			done = c.make(h, at)
		}
		next[h] = done
		all = append(all, done)
	}
	return all
}

// addresses are those that a host has.
func (h *Host) addresses() []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{h.Address, h.Address6}, func(a netip.Addr) bool { return !a.IsValid() })
}

// make compiles a host. Those of its group get its own address and ports,
// others those of the node that lead to it.
func (c *compiler) make(h *Host, at place) *compiled {
	far := c.advertised
	if at.side == inside {
		far = []netip.Addr{c.node}
	}
	made := c.subtree(h, at, far, func(s Service) uint16 { return s.Port })
	if at.side == inside && len(h.Groups) > 0 {
		near := c.subtree(h, at, h.addresses(), func(s Service) uint16 { return s.Internal })
		made.node = pair(made.node, near.node, h.Groups)
		for label, alias := range near.aliases {
			made.aliases[label] = pair(made.aliases[label], alias, h.Groups)
		}
	}
	var p packer
	p.add(answerSection, "", nameRecord(miekg.TypePTR, below(h.Name, at.domain), DefaultTTL))
	made.ptr = &p.body
	return made
}

// pair gives a tree the sets of one of the same shape for those in groups.
func pair(far, near *node, groups []string) *node {
	far.near, far.groups = near.sets, groups
	for label, child := range far.children {
		pair(child, near.children[label], groups)
	}
	return far
}

func (c *compiler) subtree(h *Host, at place, addresses []netip.Addr, port func(Service) uint16) *compiled {
	own := below(h.Name, at.domain)
	made := &compiled{host: h, node: &node{}, aliases: make(map[string]*node)}
	records := make(map[*node][]record)
	var addressed []record
	for _, address := range addresses {
		addressed = append(addressed, addressRecord(address.Unmap(), DefaultTTL))
	}
	extras := map[wireName][]record{own: addressed}
	add := func(n *node, rs ...record) { records[n] = append(records[n], rs...) }
	add(made.node, addressed...)
	for _, text := range h.Text {
		add(made.node, textRecord(text, DefaultTTL))
	}
	add(made.node.child("*"), addressed...)
	for _, s := range h.Services {
		n := made.node.child("_" + s.Protocol).child("_" + s.Name)
		add(n, srvRecord(0, 0, port(s), own, DefaultTTL))
	}
	for _, r := range h.Records {
		parsed, err := r.parse(own, at.domain)
		if err != nil {
			continue // who adds records is told then; the others must not suffer
		}
		n := made.node
		switch {
		case r.Alias:
			if made.aliases[r.Name] == nil {
				made.aliases[r.Name] = &node{}
			}
			n = made.aliases[r.Name]
		case r.Name != "":
			for _, label := range slices.Backward(strings.Split(strings.ToLower(r.Name), ".")) {
				n = n.child(label)
			}
		}
		add(n, parsed)
	}
	for n, rs := range records {
		n.sets = fill(rs, extras)
	}
	return made
}
