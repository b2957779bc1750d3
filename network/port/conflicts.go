package port

import (
	"cmp"
	"context"
	"fmt"
	"slices"
)

// Conflict is a host port that a mapping has and that something else on the
// host uses too. The mapping stays published: packets get to the environment,
// not to the other.
type Conflict struct {
	Mapping Mapping
	Owner   string // who uses it, for people: a program, a rule
}

// String says it in a sentence.
func (c Conflict) String() string {
	return fmt.Sprintf("host port %d/%s of environment %s is used by %s too", c.Mapping.External, c.Mapping.Protocol, c.Mapping.EnvID, c.Owner)
}

// holdAll takes the ports of mappings that exist. Those that cannot be taken
// are remembered, and tried again by Conflicts.
func (p *Pool) holdAll(mappings []Mapping) {
	for _, m := range mappings {
		p.ports[m.Protocol].hold(m.External, m.ID)
		if p.cfg.Holder != nil && !p.take(m.Protocol, m.External) {
			p.unheld[m.ID] = m
		}
	}
}

// Conflicts tries again to take the ports that could not be taken when the pool
// began, and tells which are used by something else still, by port.
func (p *Pool) Conflicts(ctx context.Context) ([]Conflict, error) {
	p.mu.Lock()
	none := len(p.unheld) == 0 && len(p.foreign.spans) == 0
	p.mu.Unlock()
	if none {
		return nil, nil
	}
	held, err := p.held(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for ports in conflict: %w", err)
	}
	conflicts := p.conflicting(held)
	slices.SortFunc(conflicts, func(a, b Conflict) int {
		return cmp.Or(cmp.Compare(a.Mapping.External, b.Mapping.External), cmp.Compare(a.Mapping.Protocol, b.Mapping.Protocol))
	})
	nameOwners(conflicts)
	return conflicts, nil
}

// conflicting are the conflicts, those with a program without its name.
func (p *Pool) conflicting(held []Mapping) []Conflict {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, m := range p.unheld {
		if p.ports[m.Protocol].holders[m.External] != id || p.take(m.Protocol, m.External) {
			delete(p.unheld, id)
		}
	}
	var conflicts []Conflict
	for _, m := range held {
		if _, unheld := p.unheld[m.ID]; unheld {
			conflicts = append(conflicts, Conflict{Mapping: m})
		} else if rule, foreign := p.foreign.rule(m.Protocol, m.External); foreign {
			conflicts = append(conflicts, Conflict{Mapping: m, Owner: "another tool's rule (" + rule + ")"})
		}
	}
	return conflicts
}
