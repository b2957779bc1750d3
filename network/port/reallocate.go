package port

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// Reallocate brings an environment from the mappings it holds to what is
// requested: those that fit a request are kept with their host port, the
// others are released, and what is missing is picked. A host port can move
// from a mapping that goes to one that comes. apply persists the change, as
// insert of Allocate does; when it fails, all is held as before. The errors of
// Check, PORT_TAKEN, PORT_POOL_EXHAUSTED.
func (p *Pool) Reallocate(ctx context.Context, owner Owner, held []Mapping, requests []Request,
	apply func(context.Context, Change) error,
) error {
	change, wants := p.compare(held, requests)
	fresh := append([]Request(nil), requests...)
	for i := range fresh {
		fresh[i].External = 0 // what is kept may be outside a range that was changed since
	}
	for _, w := range wants {
		fresh[w.index].External = w.External
	}
	if err := p.Check(fresh, requestField); err != nil {
		return err
	}
	reread := false
	for conflicts := 0; ; {
		added, err := p.pick(owner, wants, change.Drop)
		if errors.Is(err, errExhausted) && !reread {
			if reread = true; p.reread(ctx) == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
		change.Add = added
		err = apply(ctx, change)
		p.settle(added)
		if err == nil {
			p.Released(change.Drop)
			return nil
		}
		p.Released(added)
		p.mu.Lock()
		p.holdAgain(change.Drop)
		p.mu.Unlock()
		conflict, ok := errors.AsType[*ConflictError](err)
		if !ok {
			return err
		}
		p.conflicted(conflict)
		if conflicts++; conflicts == conflictLimit {
			return fmt.Errorf("change ports of environment %s: %d conflicts in turn: %w", owner.EnvID, conflicts,
				errors.Join(errdefs.ErrUnavailable, err))
		}
	}
}

// compare finds out which mappings are kept, and which requests none fits.
func (p *Pool) compare(held []Mapping, requests []Request) (change Change, wants []want) {
	kept := make(map[string]bool)
	fits := make([]bool, len(requests))
	take := func(i int, r Request) {
		for _, m := range held {
			if kept[m.ID] || m.Service != r.Service || m.Internal != r.Internal || m.Protocol != r.Protocol ||
				r.External != 0 && m.External != r.External {
				continue
			}
			kept[m.ID], fits[i] = true, true
			if m.Description != r.Description {
				m.Description = r.Description
				change.Describe = append(change.Describe, m)
			}
			return
		}
	}
	// Those that ask for a certain port come first, lest another takes it.
	for _, certain := range []bool{true, false} {
		for i, r := range requests {
			if (r.External != 0) == certain {
				take(i, p.normal(r))
			}
		}
	}
	for i, r := range requests {
		if !fits[i] {
			wants = append(wants, want{r, i})
		}
	}
	for _, m := range held {
		if !kept[m.ID] {
			change.Drop = append(change.Drop, m)
		}
	}
	return change, wants
}

// moves says that a request asks for the host port of a mapping that goes.
// p.mu is held.
func (p *Pool) moves(dropped []Mapping, r Request) bool {
	for _, m := range dropped {
		if m.External == r.External && m.Protocol == r.Protocol {
			return p.ports[r.Protocol].holders[r.External] == m.ID
		}
	}
	return false
}

// holdAgain holds what mappings held that do not go after all. p.mu is held.
func (p *Pool) holdAgain(dropped []Mapping) {
	for _, m := range dropped {
		if ledger := p.ports[m.Protocol]; !ledger.taken.has(m.External) {
			ledger.hold(m.External, m.ID)
		}
	}
}
