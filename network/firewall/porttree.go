package firewall

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/network/port"
)

// portLevel is a level of the tree of chains that leads to published ports.
type portLevel struct {
	size int    // ports of a block
	mark string // in the names of its chains
}

// portLevels are those of the tree, from the root on: fixed, aligned blocks of
// which each has sixteen of the next. A packet passes at most 32 rules of the
// root (one per protocol and block in use) and 16 of each level, whatever the
// number of environments. Blocks without a mapping have no chain. Fewer and
// larger blocks would cost a packet more (a rule is about as dear as a jump),
// smaller ones would be more chains to make.
var portLevels = [...]portLevel{{4096, "G"}, {256, "B"}, {leafSize, ""}} //nolint:gochecknoglobals // a constant but for its type

// portProtocols are the protocols in the order of the root's rules.
var portProtocols = [...]port.Protocol{port.TCP, port.UDP} //nolint:gochecknoglobals // a constant but for its type

// ports is how many there are of a protocol, with 0.
const ports = 1 << 16

// slot is a host port: the protocol's index in portProtocols, and the number.
type slot struct {
	protocol uint8
	number   uint16
}

// portTree is the published ports as chains. It is kept from one state to the next,
// so that a change costs what it changes, not what there is: ten thousand
// mappings take tens of milliseconds to render.
type portTree struct {
	layout *layout
	leaves [len(portProtocols)][ports / leafSize]*portLeaf // nil: never had a mapping
	slots  []slot                                          // that have one
	chains chains
	round  uint32 // of the state that is being taken in
}

// leafSize is how many ports a block of the lowest level has.
const leafSize = 16

// portLeaf is a block of the lowest level.
type portLeaf struct {
	mappings [leafSize]*Mapping
	seen     [leafSize]uint32 // the last round that had the port
}

// at is the leaf of a port, and the port's place in it.
func (t *portTree) at(s slot) (leaf *portLeaf, place int) {
	leaf = t.leaves[s.protocol][s.number/leafSize]
	if leaf == nil {
		leaf = new(portLeaf)
		t.leaves[s.protocol][s.number/leafSize] = leaf
	}
	return leaf, int(s.number % leafSize)
}

func newPortTree(l *layout) *portTree {
	return &portTree{layout: l, chains: chains{l.prefix + "-DNAT": nil}}
}

// portBlock is a block of ports of one level below one of the two roots.
type portBlock struct {
	protocol uint8
	near     bool
	first    int
}

// take makes the tree that of the mappings and returns the names of the chains
// that are others now, came or went. Mappings that cannot be published change
// nothing: InvalidArgument, AlreadyExists.
func (t *portTree) take(mappings []Mapping) (changed map[string]bool, err error) {
	t.round++
	slots := make([]slot, 0, len(mappings))
	var differing []*Mapping
	for i := range mappings {
		m := &mappings[i]
		protocol := slices.Index(portProtocols[:], m.Protocol)
		if protocol < 0 {
			return nil, t.layout.check(*m)
		}
		s := slot{uint8(protocol), m.HostPort}
		leaf, place := t.at(s)
		if leaf.seen[place] == t.round {
			return nil, twice(mappings[:i], m)
		}
		leaf.seen[place] = t.round
		slots = append(slots, s)
		if old := leaf.mappings[place]; old != nil && old.Equal(*m) {
			continue
		}
		if err := t.layout.check(*m); err != nil {
			return nil, err
		}
		differing = append(differing, m)
	}
	changed = make(map[string]bool)
	leaves := make(map[portBlock]bool)
	for _, s := range t.slots {
		if leaf, place := t.at(s); leaf.seen[place] != t.round {
			t.put(s, nil, leaves, changed)
		}
	}
	for _, m := range differing {
		one := *m
		t.put(slot{uint8(slices.Index(portProtocols[:], m.Protocol)), m.HostPort}, &one, leaves, changed)
	}
	t.slots = slots
	t.render(leaves, changed)
	return changed, nil
}

// twice is the refusal of a port that two mappings have.
func twice(before []Mapping, m *Mapping) error {
	other := slices.IndexFunc(before, func(o Mapping) bool { return o.Protocol == m.Protocol && o.HostPort == m.HostPort })
	return fmt.Errorf("publish %s port %d of environments %s and %s: %w",
		m.Protocol, m.HostPort, before[other].EnvID, m.EnvID, errdefs.ErrAlreadyExists)
}

// put replaces the mapping of a port, nil: there is none, with the chain of its
// sources, and notes the leaves that have to be rendered.
func (t *portTree) put(s slot, m *Mapping, leaves map[portBlock]bool, changed map[string]bool) {
	leaf, place := t.at(s)
	old := leaf.mappings[place]
	for _, one := range []*Mapping{old, m} {
		if one != nil {
			leaves[t.block(s, one.Inside)] = true
		}
	}
	if old != nil && t.listed(old) {
		name := t.sourcesOf(s)
		delete(t.chains, name)
		changed[name] = true
	}
	if m != nil && t.listed(m) {
		name := t.sourcesOf(s)
		t.chains[name] = t.layout.renderListed(name, *m)
		changed[name] = true
	}
	leaf.mappings[place] = m
}

// listed tells whether some of the family do not reach a mapping for which
// there is a list of sources.
func (t *portTree) listed(m *Mapping) bool {
	_, all := t.layout.sources(m)
	return !all
}

// block is that of a port's leaf.
func (t *portTree) block(s slot, near bool) portBlock {
	return portBlock{s.protocol, near, int(s.number) / leafSize * leafSize}
}

// name is what the chain of a block of a level is called.
func (t *portTree) name(depth int, b portBlock) string {
	near := ""
	if b.near {
		near = nearMark
	}
	return t.layout.prefix + "-" + portKinds[b.protocol] + "-" + near + portLevels[depth].mark + strconv.Itoa(b.first)
}

// sourcesOf is the chain of one mapping's sources.
func (t *portTree) sourcesOf(s slot) string {
	return t.layout.prefix + "-" + portKinds[s.protocol] + "-" + sourceMark + strconv.Itoa(int(s.number))
}

// render renders leaves, and what leads to them where they came or went.
func (t *portTree) render(leaves map[portBlock]bool, changed map[string]bool) {
	dirty := leaves
	for depth := len(portLevels) - 1; depth >= 0; depth-- {
		above := make(map[portBlock]bool)
		for b := range dirty {
			if name := t.name(depth, b); t.replace(name, t.rules(depth, b, name), changed) && depth > 0 {
				above[portBlock{b.protocol, b.near, b.first / portLevels[depth-1].size * portLevels[depth-1].size}] = true
			}
		}
		dirty = above
	}
	if len(leaves) > 0 {
		t.renderRoots(changed)
	}
}

// rules are those of a block of a level.
func (t *portTree) rules(depth int, b portBlock, name string) (rules []string) {
	if depth == len(portLevels)-1 {
		leaf, _ := t.at(slot{b.protocol, uint16(b.first)})
		for _, m := range leaf.mappings {
			if m != nil && m.Inside == b.near {
				rules = append(rules, t.rule(name, m))
			}
		}
		return rules
	}
	below := portLevels[depth+1].size
	for first := b.first; first < b.first+portLevels[depth].size; first += below {
		to := t.name(depth+1, portBlock{b.protocol, b.near, first})
		if _, there := t.chains[to]; there {
			rules = append(rules, dispatch(name, portProtocols[b.protocol], first, below, to))
		}
	}
	return rules
}

// rule is what leads from a leaf to where the mapping does.
func (t *portTree) rule(leaf string, m *Mapping) string {
	if !t.listed(m) {
		return t.layout.translate(leaf, "", "", *m)
	}
	to := t.sourcesOf(slot{uint8(slices.Index(portProtocols[:], m.Protocol)), m.HostPort})
	return fmt.Sprintf("-A %s -p %s -m %s --dport %d %s -j %s", leaf, m.Protocol, m.Protocol, m.HostPort,
		t.layout.owned(m.EnvID, word(string(m.Service))), to)
}

// replace gives a chain other rules; without rules it goes. It tells whether it
// came or went.
func (t *portTree) replace(name string, rules []string, changed map[string]bool) bool {
	before, there := t.chains[name]
	switch {
	case len(rules) == 0:
		delete(t.chains, name)
	default:
		t.chains[name] = rules
	}
	if there != (len(rules) > 0) || !slices.Equal(before, rules) {
		changed[name] = true
	}
	return there != (len(rules) > 0)
}

// renderRoots renders the chains that the trees hang from. That of what the
// host and environments alone reach is there when such a mapping is.
func (t *portTree) renderRoots(changed map[string]bool) {
	l := t.layout
	root, near := l.prefix+"-DNAT", l.prefix+"-NEAR"
	t.replace(near, t.rootRules(near, true), changed)
	rules := t.rootRules(root, false)
	if _, there := t.chains[near]; there {
		// An address of an environment counts only where environments are, or a
		// neighbour could send datagrams in its name.
		rules = append(rules,
			fmt.Sprintf("-A %s -s %s -i %s -j %s", root, l.network(), l.bridges(), near),
			fmt.Sprintf("-A %s -m addrtype --src-type LOCAL -j %s", root, near))
	}
	if !slices.Equal(t.chains[root], rules) {
		t.chains[root], changed[root] = rules, true
	}
}

func (t *portTree) rootRules(root string, near bool) (rules []string) {
	for protocol := range portProtocols {
		for first := 0; first < ports; first += portLevels[0].size {
			to := t.name(0, portBlock{uint8(protocol), near, first})
			if _, there := t.chains[to]; there {
				rules = append(rules, dispatch(root, portProtocols[protocol], first, portLevels[0].size, to))
			}
		}
	}
	return rules
}
