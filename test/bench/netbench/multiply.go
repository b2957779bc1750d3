package netbench

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A program's rules for thousands of containers are made from those that it made
// for three: what the second and the third added, and where, is what each
// further one would have added there. The third must have added what is expected
// after the second, or nothing is taken for known.

// container is what rules of one container are told from those of another by.
type container struct {
	id      string
	address netip.Addr
	ports   []uint16          // of the host
	chains  map[string]string // that it has for itself, by table and what their names begin with
}

// imagined is a container that was not made.
func imagined(name string, address netip.Addr, ports []uint16) container {
	sum := sha256.Sum256([]byte(name))
	return container{id: hex.EncodeToString(sum[:]), address: address, ports: ports}
}

// shape is what a container adds to rules.
type shape struct {
	first *saved // the rules with one container
	of    container
	grown []addition
	own   []ownChain
}

// addition is what a container adds to a chain that is there: in front of the
// last rules, or behind the first.
type addition struct {
	table, chain string
	rules        []string
	before       int // rules that are always before it, where atFront
	behind       int // rules that are always behind it
	atFront      bool
}

// ownChain is a chain that a container has for itself.
type ownChain struct {
	table, prefix string
	rules         []string
}

// learn finds the shape in the rules with one, two and three containers, and in
// the two after the first notes the chains that they have for themselves.
func learn(saves [3]*saved, second, third *container) (*shape, error) {
	two, err := difference(saves[0], saves[1], second)
	if err != nil {
		return nil, fmt.Errorf("what the second container added: %w", err)
	}
	three, err := difference(saves[1], saves[2], third)
	if err != nil {
		return nil, fmt.Errorf("what the third container added: %w", err)
	}
	if len(two.grown) == 0 {
		return nil, errors.New("no rules are there for a container")
	}
	if len(two.grown) != len(three.grown) || len(two.own) != len(three.own) {
		return nil, errors.New("the third container added other rules than the second")
	}
	rename := renamer(second, third)
	for i := range two.grown {
		a, b := &two.grown[i], &three.grown[i]
		if a.table != b.table || a.chain != b.chain || !alike(a.rules, b.rules, rename) {
			return nil, fmt.Errorf("table %s, chain %s: the third container did not add what the second did", a.table, a.chain)
		}
		switch {
		case a.behind == b.behind:
		case a.before == b.before:
			a.atFront = true
		default:
			return nil, fmt.Errorf("table %s, chain %s: containers add rules at no certain place", a.table, a.chain)
		}
	}
	for i := range two.own {
		a, b := &two.own[i], &three.own[i]
		if a.table != b.table || a.prefix != b.prefix || !alike(a.rules, b.rules, rename) {
			return nil, fmt.Errorf("table %s: the third container's chain %s… is not as that of the second", a.table, a.prefix)
		}
	}
	return &shape{first: saves[0], of: *second, grown: two.grown, own: two.own}, nil
}

// hashed is the name of a chain that ends in a hash.
var hashed = regexp.MustCompile(`^(.*-)([0-9a-f]{8,})$`)

// difference is what a container added; it notes the container's own chains.
func difference(before, after *saved, added *container) (*shape, error) {
	s := &shape{}
	added.chains = make(map[string]string)
	for _, table := range after.tables {
		old := before.table(table.name)
		if old == nil {
			return nil, fmt.Errorf("table %s is new", table.name)
		}
		for _, chain := range old.chains {
			if table.chain(chain.name) == nil {
				return nil, fmt.Errorf("chain %s of table %s is gone", chain.name, table.name)
			}
		}
		for _, chain := range table.chains {
			was := old.chain(chain.name)
			if was == nil {
				parts := hashed.FindStringSubmatch(chain.name)
				if parts == nil || added.chains[table.name+" "+parts[1]] != "" {
					return nil, fmt.Errorf("chain %s of table %s is new", chain.name, table.name)
				}
				added.chains[table.name+" "+parts[1]] = chain.name
				s.own = append(s.own, ownChain{table.name, parts[1], chain.rules})
				continue
			}
			one, err := grew(was.rules, chain.rules)
			if err != nil {
				return nil, fmt.Errorf("chain %s of table %s: %w", chain.name, table.name, err)
			}
			if len(one.rules) > 0 {
				one.table, one.chain = table.name, chain.name
				s.grown = append(s.grown, one)
			}
		}
	}
	slices.SortFunc(s.own, func(a, b ownChain) int { return strings.Compare(a.table+" "+a.prefix, b.table+" "+b.prefix) })
	return s, nil
}

// grew finds the rules that were added to a chain, all at one place.
func grew(before, after []string) (addition, error) {
	added := len(after) - len(before)
	same := 0
	for same < len(before) && same < len(after) && before[same] == after[same] {
		same++
	}
	if added < 0 || !slices.Equal(before[same:], after[same+added:]) {
		return addition{}, errors.New("rules were removed, or added at more than one place")
	}
	return addition{rules: after[same : same+added], before: same, behind: len(before) - same}, nil
}

// words are what names, numbers and addresses in rules are made of.
var words = regexp.MustCompile(`[0-9A-Za-z_.-]+`)

// renamer makes rules of one container those of another.
func renamer(from, to *container) func(rule string) string {
	names := map[string]string{from.id: to.id, from.address.String(): to.address.String()}
	for i, port := range from.ports {
		names[strconv.Itoa(int(port))] = strconv.Itoa(int(to.ports[i]))
	}
	for role, chain := range from.chains {
		names[chain] = to.chain(role, chain)
	}
	return func(rule string) string {
		return words.ReplaceAllStringFunc(rule, func(word string) string {
			if name, ok := names[word]; ok {
				return name
			}
			return word
		})
	}
}

// chain is the name of a container's chain. One that was not made has a name as
// long as that of another's.
func (c *container) chain(role, like string) string {
	if name, ok := c.chains[role]; ok {
		return name
	}
	parts := hashed.FindStringSubmatch(like)
	sum := sha256.Sum256([]byte(c.id + role))
	return parts[1] + hex.EncodeToString(sum[:])[:len(parts[2])]
}

// alike tells whether rules are those of another container, in whatever order
// programs go through a container's ports.
func alike(rules, others []string, rename func(string) string) bool {
	renamed := make([]string, 0, len(rules))
	for _, rule := range rules {
		renamed = append(renamed, sortedPorts(rename(rule)))
	}
	others = slices.Clone(others)
	for i := range others {
		others[i] = sortedPorts(others[i])
	}
	slices.Sort(renamed)
	slices.Sort(others)
	return slices.Equal(renamed, others)
}

// sortedPorts has the ports of a list in ascending order.
func sortedPorts(rule string) string {
	list := option(rule, "--dports")
	if list == "" {
		return rule
	}
	ports := strings.Split(list, ",")
	slices.Sort(ports)
	return strings.Replace(rule, list, strings.Join(ports, ","), 1)
}

// with is the rules with further containers, which were started one after the
// other behind the first.
func (s *shape) with(further []container) *saved {
	all := &saved{}
	for _, table := range s.first.tables {
		grown := &savedTable{name: table.name}
		for _, chain := range table.chains {
			one := *chain
			for i := range s.grown {
				if g := &s.grown[i]; g.table == table.name && g.chain == chain.name {
					one.rules = s.grow(chain.rules, g, further)
				}
			}
			grown.chains = append(grown.chains, &one)
		}
		for i := range further {
			rename := renamer(&s.of, &further[i])
			for _, own := range s.own {
				if own.table != table.name {
					continue
				}
				chain := &savedChain{name: rename(s.of.chains[own.table+" "+own.prefix]), policy: "-"}
				for _, rule := range own.rules {
					chain.rules = append(chain.rules, rename(rule))
				}
				grown.chains = append(grown.chains, chain)
			}
		}
		all.tables = append(all.tables, grown)
	}
	return all
}

// grow is a chain with the rules of further containers.
func (s *shape) grow(rules []string, g *addition, further []container) (all []string) {
	at := len(rules) - g.behind
	if g.atFront {
		at = g.before
	}
	var added []string
	for i := range further {
		one := &further[i]
		if g.atFront { // the last one is in front
			one = &further[len(further)-1-i]
		}
		rename := renamer(&s.of, one)
		for _, rule := range g.rules {
			added = append(added, rename(rule))
		}
	}
	return slices.Concat(rules[:at], added, rules[at:])
}
