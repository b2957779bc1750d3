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
	whose := c.Mapping.EnvID
	if c.Mapping.EnvName != "" {
		whose = c.Mapping.EnvName + " in project " + c.Mapping.Project
	}
	return fmt.Sprintf("host port %d/%s of environment %s is used by %s too", c.Mapping.External, c.Mapping.Protocol, whose, c.Owner)
}

// holdAll takes the ports of mappings that exist. Those that cannot be taken
// are found, and tried again, by Conflicts.
func (p *Pool) holdAll(mappings []Mapping) {
	for _, m := range mappings {
		p.ports[m.Protocol].hold(m.External, m.ID)
		if p.cfg.Holder != nil {
			p.take(m.Protocol, m.External)
		}
	}
}

// Conflicts tries again to take the ports that should be held and are not, and
// tells which are used by something else, by port. An error may come with those
// that were found.
func (p *Pool) Conflicts(ctx context.Context) ([]Conflict, error) {
	if p.undisturbed() {
		return nil, nil
	}
	held, err := p.held(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for ports in conflict: %w", err)
	}
	conflicts, failure := p.conflicting(held)
	slices.SortFunc(conflicts, func(a, b Conflict) int {
		return cmp.Or(cmp.Compare(a.Mapping.External, b.Mapping.External), cmp.Compare(a.Mapping.Protocol, b.Mapping.Protocol))
	})
	nameOwners(conflicts)
	if failure != nil {
		failure = fmt.Errorf("hold host ports: %w", failure)
	}
	return conflicts, failure
}

// undisturbed tells whether all ports that mappings have are held, and no rule of
// another tool leads one elsewhere, without a look at what the mappings are.
func (p *Pool) undisturbed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cfg.Holder == nil {
		return len(p.foreign.spans) == 0
	}
	for protocol, ledger := range p.ports {
		for port, holder := range ledger.holders {
			if _, foreign := p.foreign.rule(protocol, port); foreign || holder == "" || !p.take(protocol, port) {
				return false
			}
		}
	}
	return true
}

// conflicting are the conflicts, those with a program without its name. failure
// is why ports cannot be held for another reason, as too many open files.
func (p *Pool) conflicting(held []Mapping) (conflicts []Conflict, failure error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range held {
		if p.ports[m.Protocol].holders[m.External] != m.ID {
			continue // it was released since the store was read
		}
		if p.cfg.Holder != nil && !p.take(m.Protocol, m.External) {
			if p.probeFailure != nil {
				failure = p.probeFailure
				continue
			}
			conflicts = append(conflicts, Conflict{Mapping: m})
		} else if rule, foreign := p.foreign.rule(m.Protocol, m.External); foreign {
			conflicts = append(conflicts, Conflict{Mapping: m, Owner: "another tool's rule (" + rule + ")"})
		}
	}
	return conflicts, failure
}
