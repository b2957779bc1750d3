package port

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// DefaultQuarantine is how long a released port rests: caches of names and
// tracked connections still lead to it, and so do people.
const DefaultQuarantine = 2 * time.Minute

// rest is a port that was released and is not given out yet.
type rest struct {
	protocol Protocol
	port     uint16
	project  string // that held it; it may ask for the port by its number
	since    time.Time
}

// rests are the resting ports. All rest as long, so they are through in the
// order in which they were released.
type rests struct {
	quarantine time.Duration // 0: nothing rests
	queue      []rest
	sets       map[Protocol]*bitmap
	last       map[Protocol]map[uint16]rest // by port
}

func newRests(quarantine time.Duration) *rests {
	return &rests{
		quarantine: max(quarantine, 0), sets: map[Protocol]*bitmap{TCP: {}, UDP: {}},
		last: map[Protocol]map[uint16]rest{TCP: {}, UDP: {}},
	}
}

// add lets a port rest.
func (r *rests) add(entry rest) {
	if r.quarantine == 0 {
		return
	}
	r.queue = append(r.queue, entry)
	r.sets[entry.protocol].add(entry.port)
	r.last[entry.protocol][entry.port] = entry
}

// end ends the rest of a port that was given out all the same.
func (r *rests) end(protocol Protocol, port uint16) {
	r.sets[protocol].remove(port)
	delete(r.last[protocol], port)
}

// resume lets a port rest on whose rest was ended for something that came to
// nothing.
func (r *rests) resume(protocol Protocol, port uint16) {
	for _, entry := range slices.Backward(r.queue) {
		if entry.protocol == protocol && entry.port == port {
			r.sets[protocol].add(port)
			r.last[protocol][port] = entry
			return
		}
	}
}

// pass ends the rest of those that have rested long enough.
func (r *rests) pass(now time.Time) {
	through := 0
	for _, entry := range r.queue {
		// A clock that was set back must not let ports rest for ever.
		if rested := now.Sub(entry.since); rested >= 0 && rested < r.quarantine {
			break
		}
		if r.last[entry.protocol][entry.port] == entry { // else it was released again since
			r.end(entry.protocol, entry.port)
		}
		through++
	}
	r.queue = r.queue[through:]
}

// of is the rest of a port.
func (r *rests) of(protocol Protocol, port uint16) (rest, bool) {
	entry, resting := r.last[protocol][port]
	return entry, resting
}

// released reads which mappings were released so lately that their ports rest
// still, in the order of that.
func (p *Pool) released(ctx context.Context) ([]Mapping, error) {
	if p.rests.quarantine == 0 {
		return nil, nil
	}
	released, _, err := p.cfg.Store.PortMappings(ctx, p.cfg.HostID, Filter{ReleasedSince: p.cfg.Now().Add(-p.rests.quarantine)})
	slices.SortStableFunc(released, func(a, b Mapping) int {
		return cmp.Or(a.ReleasedAt.Compare(b.ReleasedAt), cmp.Compare(a.ID, b.ID))
	})
	return released, err
}

// letRest lets the ports of released mappings rest, but for those that are held
// again. p.mu is held.
func (p *Pool) letRest(released []Mapping) {
	now := p.cfg.Now()
	for _, m := range released {
		if _, held := p.ports[m.Protocol].holders[m.External]; held {
			continue
		}
		since := m.ReleasedAt
		if since.After(now) {
			since = now // the clock was set back
		}
		if known, resting := p.rests.of(m.Protocol, m.External); !resting || known.since.Before(since) {
			p.rests.add(rest{m.Protocol, m.External, m.Project, since})
		}
	}
}
