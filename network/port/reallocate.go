package port

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

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
		// What is kept may be outside a range that was changed since, or be over by now.
		fresh[i].External, fresh[i].ExpiresAt = 0, time.Time{}
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
		p.giveBack(added, change.Drop)
		conflict, ok := errors.AsType[*ConflictError](err)
		if !ok {
			return err
		}
		p.conflicted(ctx, conflict, conflicts)
		if conflicts++; conflicts == conflictLimit {
			return fmt.Errorf("change ports of environment %s: %d conflicts in turn: %w", owner.EnvID, conflicts,
				errors.Join(errdefs.ErrUnavailable, err))
		}
	}
}

// compare finds out which mappings are kept, and which requests none fits.
func (p *Pool) compare(held []Mapping, requests []Request) (change Change, wants []want) {
	pairs := p.pair(held, requests)
	fits := make([]bool, len(requests))
	for at, m := range held {
		i := pairs[at]
		if i < 0 {
			change.Drop = append(change.Drop, m)
			continue
		}
		fits[i] = true
		if !SameTerms(m, requests[i]) {
			m.SetTerms(requests[i])
			change.Describe = append(change.Describe, m)
		}
	}
	for i, r := range requests {
		if !fits[i] {
			wants = append(wants, want{r, i})
		}
	}
	return change, wants
}

// pair finds the request that each mapping fits: its index, -1 for none. No
// request is found twice.
func (p *Pool) pair(held []Mapping, requests []Request) []int {
	pairs := make([]int, len(held))
	for at := range pairs {
		pairs[at] = -1
	}
	fits := make([]bool, len(requests))
	// Those that ask for a certain port come first, lest another takes it, then
	// those for which a mapping is right as it is.
	for _, fit := range []func(Mapping, Request) bool{
		func(m Mapping, r Request) bool { return m.External == r.External },
		func(m Mapping, r Request) bool { return r.External == 0 && SameTerms(m, r) },
		func(_ Mapping, r Request) bool { return r.External == 0 },
	} {
		for i, r := range requests {
			if fits[i] {
				continue
			}
			r = p.normal(r)
			for at, m := range held {
				if pairs[at] < 0 && m.Service == r.Service && m.Internal == r.Internal && m.Protocol == r.Protocol && fit(m, r) {
					pairs[at], fits[i] = i, true
					break
				}
			}
		}
	}
	return pairs
}

// RequestOf is the index of the request that one of the held mappings comes of,
// -1 when it comes of none.
func (p *Pool) RequestOf(held []Mapping, requests []Request, m Mapping) int {
	at := slices.IndexFunc(held, func(h Mapping) bool { return h.ID == m.ID })
	if at < 0 {
		return -1
	}
	return p.pair(held, requests)[at]
}

// SetTerms gives a mapping what a request says that can be changed while it is
// held: description, sources, expiry.
func (m *Mapping) SetTerms(r Request) {
	m.Description, m.ExpiresAt = r.Description, r.ExpiresAt
	m.Sources = keptSources(r.Sources)
}

// SameTerms says that a mapping is on the terms of a request. A time is kept to
// the millisecond.
func SameTerms(m Mapping, r Request) bool {
	return m.Description == r.Description && slices.Equal(m.Sources, keptSources(r.Sources)) &&
		(m.ExpiresAt.Equal(r.ExpiresAt) || m.ExpiresAt.UnixMilli() == r.ExpiresAt.UnixMilli())
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
