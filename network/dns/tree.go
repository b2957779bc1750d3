package dns

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"strings"

	miekg "github.com/miekg/dns"
)

// node is a name of a zone. Nodes do not change once they are in a snapshot;
// snapshots share those of hosts that did not change.
type node struct {
	children map[string]*node // by label in lower case
	wild     *node            // the child "*"
	sets     []set
	// near are the sets for those in one of groups, nil: sets for all.
	near   []set
	groups []string
}

// set is all records of a type at a name.
type set struct {
	kind   uint16
	body   body       // ready to be sent
	target wireName   // of a CNAME
	far    []wireName // what SRV records lead to whose addresses are not in body
	plain  []record   // what body was made of
}

// child returns the child of that label, which it makes when there is none.
func (n *node) child(label string) *node {
	if found := n.children[label]; found != nil {
		return found
	}
	if n.children == nil {
		n.children = make(map[string]*node)
	}
	made := &node{}
	n.children[label] = made
	if label == "*" {
		n.wild = made
	}
	return made
}

// adopt puts a finished subtree at label, in place of what is there.
func (n *node) adopt(label string, subtree *node) {
	if n.children == nil {
		n.children = make(map[string]*node)
	}
	n.children[label] = subtree
	if label == "*" {
		n.wild = subtree
	}
}

// cede puts the names of a project at label. An environment of another project
// that is called so keeps the name itself and its services there ("_ssh._tcp");
// all that can be an environment's name belongs to the project, whether or not
// it has that name now.
func (n *node) cede(label string, project *node) {
	there := n.children[label]
	if there == nil {
		n.adopt(label, project)
		return
	}
	both := &node{sets: there.sets, near: there.near, groups: there.groups, children: maps.Clone(project.children), wild: project.wild}
	for name, child := range there.children {
		if strings.HasPrefix(name, "_") {
			both.adopt(name, child)
		}
	}
	n.adopt(label, both)
}

// override puts sets at a name below n, in place of those that are there, and
// leaves alone what is below it. labels are from the top. n itself must be in no
// snapshot yet; the nodes on the way are copied, which may be in others.
func (n *node) override(labels []string, sets []set) {
	child := &node{}
	if there := n.children[labels[0]]; there != nil {
		*child = *there
		child.children = maps.Clone(there.children)
	}
	if n.children == nil {
		n.children = make(map[string]*node)
	}
	n.children[labels[0]] = child
	if len(labels) > 1 {
		child.override(labels[1:], sets)
		return
	}
	child.sets, child.near, child.groups = sets, nil, nil
}

// find looks the labels [0, labels) of the question up below n, as RFC 1034
// section 4.3.2 and RFC 4592 have it: the name itself, or, unless something
// closer to it is there, the wildcard at the closest name that is.
func (n *node) find(q *query, labels int) *node {
	for i := labels - 1; i >= 0; i-- {
		next := n.children[string(q.label(i))]
		if next == nil {
			return n.wild
		}
		n = next
	}
	return n
}

// of returns the sets that somebody in these groups sees.
func (n *node) of(groups []string) []set {
	if n.near != nil {
		for _, group := range groups {
			if slices.Contains(n.groups, group) {
				return n.near
			}
		}
	}
	return n.sets
}

// pick returns the set of a type, or the CNAME in its place, nil when the name
// has neither.
func pick(sets []set, kind uint16) *set {
	for i := range sets {
		if sets[i].kind == kind || sets[i].kind == miekg.TypeCNAME {
			return &sets[i]
		}
	}
	return nil
}

// fill makes the sets of a node ready. extras are the records of names that
// those of the node lead to, by name.
func fill(records []record, extras map[wireName][]record) []set {
	sets := gather(records)
	for i := range sets {
		var p packer
		for _, r := range sets[i].plain {
			p.add(answerSection, "", r)
		}
		if sets[i].kind == miekg.TypeSRV || sets[i].kind == miekg.TypeNS {
			done := make(map[wireName]bool)
			for _, r := range sets[i].plain {
				if done[r.target] {
					continue
				}
				done[r.target] = true
				if sets[i].kind == miekg.TypeSRV && len(extras[r.target]) == 0 {
					sets[i].far = append(sets[i].far, r.target)
				}
				for _, extra := range extras[r.target] {
					p.add(additionalSection, r.target, extra)
				}
			}
		}
		sets[i].body = p.body
	}
	return sets
}

// gather makes sets of records as RFC 2181 has them: each record once
// (section 5), all of a set with the least of their TTLs (5.2), a CNAME alone at
// its name (10.1). It is the CNAME that gives way: what the node itself says of
// a port may come to where somebody had put one.
func gather(records []record) []set {
	var sets []set
	position := make(map[uint16]int)
	for _, r := range records {
		at, ok := position[r.kind]
		if !ok {
			at = len(sets)
			position[r.kind] = at
			sets = append(sets, set{kind: r.kind})
		}
		sets[at].plain = append(sets[at].plain, r)
	}
	for i := range sets {
		all := sets[i].plain
		least := slices.MinFunc(all, func(a, b record) int { return cmp.Compare(a.ttl, b.ttl) }).ttl
		var once []record
		for _, r := range all {
			if !slices.ContainsFunc(once, func(o record) bool { return bytes.Equal(o.data, r.data) }) {
				r.ttl = least
				once = append(once, r)
			}
		}
		if sets[i].kind == miekg.TypeCNAME {
			once, sets[i].target = once[:1], once[0].target
		}
		sets[i].plain = once
	}
	if len(sets) > 1 {
		sets = slices.DeleteFunc(sets, func(s set) bool { return s.kind == miekg.TypeCNAME })
	}
	return sets
}
