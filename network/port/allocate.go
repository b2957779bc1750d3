package port

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// requestField is where the requests of an allocation are in the API request.
const requestField = "spec.ports"

// conflictLimit bounds how often an allocation is tried again because the
// store knew of a holder that the pool did not.
const conflictLimit = 64

// rereadEvery is after how many conflicts in turn the store is read again.
const rereadEvery = 8

func isAborted(err error) bool { return errdefs.IsAborted(err) }

// normal is a request with its defaults filled in.
func (p *Pool) normal(r Request) Request {
	if r.Protocol == "" {
		r.Protocol = TCP
	}
	if r.Internal == 0 {
		p.mu.Lock()
		r.Internal = p.ranges[r.Service].Internal
		p.mu.Unlock()
	}
	return r
}

// Check refuses requests that could never be met, all of them at once:
// FIELD_INVALID, PORT_OUTSIDE_POOL, PORT_DENIED, PORT_DUPLICATE. field is where
// the requests are in the API request.
func (p *Pool) Check(requests []Request, field string) error {
	var errs []error
	type key struct {
		protocol Protocol
		port     uint16
	}
	seen := make(map[key]int)
	for i, r := range requests {
		at := fmt.Sprintf("%s[%d]", field, i)
		r = p.normal(r)
		if err := checkRequest(r, at); err != nil {
			errs = append(errs, err)
			continue
		}
		if _, bad := ParseSources(r.Sources, at+".allowed_sources", p.cfg.IPv6); len(bad) > 0 {
			errs = append(errs, bad...)
		}
		if now := p.cfg.Now(); !r.ExpiresAt.IsZero() && !r.ExpiresAt.After(now) {
			errs = append(errs, problem.New(problem.FieldInvalid, "the time is over: it is %s now", now.UTC().Format(time.RFC3339)).
				WithField(at+".expires_at").WithHint("name a time to come, or none for a mapping that stays"))
		}
		if r.External == 0 {
			continue
		}
		if err := p.checkExternal(r, at); err != nil {
			errs = append(errs, err)
			continue
		}
		if earlier, twice := seen[key{r.Protocol, r.External}]; twice {
			errs = append(errs, problem.New(problem.PortDuplicate, "host port %d/%s is asked for twice", r.External, r.Protocol).
				WithField(at+".external_port").WithHint("%s[%d] asks for it too: leave one empty to have a port picked", field, earlier))
			continue
		}
		seen[key{r.Protocol, r.External}] = i
	}
	return errors.Join(errs...)
}

func checkRequest(r Request, at string) error {
	switch {
	case !slices.Contains(Services(), r.Service):
		return problem.New(problem.FieldInvalid, "service type %q is unknown", r.Service).WithField(at+".service_type").
			WithHint("use one of %s", joinServices())
	case r.Protocol != TCP && r.Protocol != UDP:
		return problem.New(problem.FieldInvalid, "protocol %q is unknown", r.Protocol).WithField(at + ".protocol").
			WithHint("use tcp or udp")
	case r.Internal == 0:
		return problem.New(problem.FieldInvalid, "service type %s has no port of its own inside", r.Service).
			WithField(at + ".internal_port").WithHint("say which port inside the environment is meant")
	}
	return nil
}

func joinServices() string {
	var names []string
	for _, s := range Services() {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}

func (p *Pool) checkExternal(r Request, at string) error {
	p.mu.Lock()
	pool := p.ranges[r.Service]
	p.mu.Unlock()
	hint := fmt.Sprintf("choose another of %d-%d, or leave it empty to have one picked", pool.First, pool.Last)
	switch {
	case r.External < pool.First || r.External > pool.Last:
		return problem.New(problem.PortOutsidePool, "host port %d is outside the pool of %s", r.External, r.Service).
			WithField(at+".external_port").
			WithHint("choose one of %d-%d, or leave it empty to have one picked", pool.First, pool.Last)
	case p.denied[r.Protocol].has(r.External):
		return problem.New(problem.PortDenied, "host port %d is one that this node does not give out", r.External).
			WithField(at+".external_port").WithHint("%s; the node's administrator names such ports in [ports] deny", hint)
	case r.Service != Custom && openedInBrowsers(r.Service) && p.refused.has(r.External):
		return problem.New(problem.PortDenied, "browsers refuse to open port %d", r.External).
			WithField(at+".external_port").WithHint("%s", hint)
	}
	return nil
}

// Allocate picks host ports for all requests, or none, and persists them with
// insert. When insert returns a *ConflictError it is called again with other
// ports; when it returns another error, or wrote nothing for a reason of its
// own, in which case it has to return an error too, nothing is held and that
// error comes back. PORT_TAKEN, PORT_POOL_EXHAUSTED, and the errors of Check.
func (p *Pool) Allocate(ctx context.Context, owner Owner, requests []Request,
	insert func(context.Context, []Mapping) error,
) ([]Mapping, error) {
	if err := p.Check(requests, requestField); err != nil {
		return nil, err // a range may have changed since they were checked
	}
	reread := false
	for conflicts := 0; ; {
		mappings, err := p.pick(owner, wantAll(requests), nil)
		if errors.Is(err, errExhausted) && !reread {
			// Ports that others held may be free by now.
			if reread = true; p.reread(ctx) == nil {
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		err = insert(ctx, mappings)
		p.settle(mappings)
		if err == nil {
			return mappings, nil
		}
		p.giveBack(mappings, nil)
		conflict, ok := errors.AsType[*ConflictError](err)
		if !ok {
			return nil, err
		}
		p.conflicted(ctx, conflict, conflicts)
		if conflicts++; conflicts == conflictLimit {
			return nil, fmt.Errorf("allocate ports of environment %s: %d conflicts in turn: %w", owner.EnvID, conflicts,
				errors.Join(errdefs.ErrUnavailable, err))
		}
	}
}

// want is a request with its place among all.
type want struct {
	Request
	index int
}

func wantAll(requests []Request) []want {
	wants := make([]want, len(requests))
	for i, r := range requests {
		wants[i] = want{r, i}
	}
	return wants
}

// pick holds a port for each request, or none. What dropped mappings hold can
// be had by who asks for it; they hold it again when nothing comes of it.
func (p *Pool) pick(owner Owner, wants []want, dropped []Mapping) (picked []Mapping, err error) {
	normal := make([]Request, len(wants))
	sources := make([][]netip.Prefix, len(wants))
	for i, w := range wants {
		normal[i] = p.normal(w.Request)
		sources[i] = keptSources(w.Sources)
	}
	picked = make([]Mapping, len(wants))
	now := p.cfg.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rests.pass(now)
	hold := func(i int, external uint16) {
		r := normal[i]
		id := r.ID
		if id == "" {
			id = ulid.Make().String()
		}
		picked[i] = Mapping{
			ID: id, EnvID: owner.EnvID, Project: owner.Project, HostID: p.cfg.HostID,
			Service: r.Service, Internal: r.Internal, External: external, Protocol: r.Protocol,
			Description: r.Description, Sources: sources[i], ExpiresAt: r.ExpiresAt,
			Status: Reserved, CreatedAt: now, UpdatedAt: now, Revision: 1,
		}
		p.ports[r.Protocol].hold(external, id)
		p.rests.end(r.Protocol, external)
		p.unsettled[id] = true
	}
	defer func() {
		if err == nil {
			return
		}
		for _, m := range picked {
			delete(p.unsettled, m.ID)
		}
		p.undo(picked, dropped)
		picked = nil
	}()
	// Those that ask for a certain port come first, lest a picked one takes it.
	for i, r := range normal {
		if r.External == 0 {
			continue
		}
		if !p.moves(dropped, r) {
			if err := p.takeCertain(owner, r, now); err != nil {
				return picked, err.WithField(fmt.Sprintf("%s[%d].external_port", requestField, wants[i].index))
			}
		}
		hold(i, r.External)
	}
	for i, r := range normal {
		if r.External != 0 {
			continue
		}
		external, found := p.search(r.Service, r.Protocol)
		if !found {
			return picked, p.exhausted(r, wants[i].index)
		}
		hold(i, external)
	}
	return picked, nil
}

// takeCertain takes the port that a request names: PORT_TAKEN. p.mu is held.
func (p *Pool) takeCertain(owner Owner, r Request, now time.Time) *problem.Problem {
	const hint = "choose another, or leave it empty to have one picked"
	taken := problem.New(problem.PortTaken, "host port %d/%s is taken", r.External, r.Protocol).WithHint(hint)
	if p.ports[r.Protocol].taken.has(r.External) {
		return taken
	}
	if rule, foreign := p.foreign.rule(r.Protocol, r.External); foreign {
		taken.Message += " by another tool's rule (" + rule + ")"
		return taken
	}
	// Who had it may have it back: who comes by the old port means them.
	if resting, is := p.rests.of(r.Protocol, r.External); is && resting.project != owner.Project {
		until := resting.since.Add(p.rests.quarantine)
		taken.Message = fmt.Sprintf("host port %d/%s was released by another project and rests", r.External, r.Protocol)
		return taken.WithHint("%s; it can be had in %s", hint, until.Sub(now).Round(time.Second))
	}
	if !p.take(r.Protocol, r.External) {
		if p.probeFailure != nil {
			return taken.WithCause(p.probeFailure)
		}
		taken.Message += " by another program"
		return taken
	}
	return nil
}

// giveBack frees the ports that were picked for mappings which were not stored,
// and leaves to dropped ones what they held.
func (p *Pool) giveBack(picked, dropped []Mapping) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.undo(picked, dropped)
}

// undo is giveBack; p.mu is held. A port that was to move is not let go of, and
// one that rested rests on.
func (p *Pool) undo(picked, dropped []Mapping) {
	for _, m := range picked {
		if m.ID == "" {
			continue
		}
		at := slices.IndexFunc(dropped, func(d Mapping) bool { return d.External == m.External && d.Protocol == m.Protocol })
		if at >= 0 {
			p.ports[m.Protocol].hold(m.External, dropped[at].ID)
			continue
		}
		if p.free(m.Protocol, m.External, m.ID) {
			p.rests.resume(m.Protocol, m.External)
		}
	}
}

// search takes the next free port of a service after the one it gave out last
// (next fit), so that ports are used evenly. Which are free is looked up 64 at
// a time; only a port that another program has costs a look of its own. p.mu is
// held.
func (p *Pool) search(service Service, protocol Protocol) (uint16, bool) {
	pool, key := p.ranges[service], cursorKey{service, protocol}
	first, last := int(pool.First), int(pool.Last)
	start := int(p.next[key])
	if start < first || start > last {
		start = first
	}
	sets := p.unavailable(service, protocol)
	for _, part := range [][2]int{{start, last}, {first, start - 1}} {
		for from := part[0]; from <= part[1]; {
			candidate, found := inNone(from, part[1], sets)
			if !found {
				break
			}
			if p.take(protocol, candidate) {
				p.next[key] = candidate + 1 // past the end, the next search begins anew
				return candidate, true
			}
			from = int(candidate) + 1
		}
	}
	return 0, false
}

// conflicted keeps a port that the store says somebody else holds. Whoever that
// is holds others too: they are looked up now and then, lest each is met by
// itself.
func (p *Pool) conflicted(ctx context.Context, c *ConflictError, before int) {
	p.mu.Lock()
	ledger := p.ports[c.Protocol]
	if _, held := ledger.holders[c.Port]; !held {
		ledger.hold(c.Port, "")
	}
	p.mu.Unlock()
	if before%rereadEvery == 0 {
		_ = p.reread(ctx) // it has logged why not; the next port may be free
	}
}

// reread holds what the store has, and what is on its way there. It frees what
// another process released, or this one and has not said so yet (Released): it
// rests from then on.
func (p *Pool) reread(ctx context.Context) error {
	// Only what was settled before the store is read may be judged by it.
	p.mu.Lock()
	settled := make(map[Protocol]map[uint16]string)
	for protocol, ledger := range p.ports {
		settled[protocol] = make(map[uint16]string)
		for port, holder := range ledger.holders {
			if !p.unsettled[holder] {
				settled[protocol][port] = holder
			}
		}
	}
	p.mu.Unlock()
	held, err := p.held(ctx)
	var released []Mapping
	if err == nil {
		released, err = p.released(ctx) // after what is held: nothing is in neither
	}
	if err != nil {
		p.cfg.Log.WarnContext(ctx, "held ports could not be read", "error", err)
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range held {
		delete(settled[m.Protocol], m.External)
		if _, known := p.ports[m.Protocol].holders[m.External]; !known {
			p.ports[m.Protocol].hold(m.External, m.ID)
			if p.cfg.Holder != nil {
				p.take(m.Protocol, m.External) // where another process has it, that holds it
			}
		}
	}
	for protocol, gone := range settled {
		for port, holder := range gone {
			p.free(protocol, port, holder)
		}
	}
	p.letRest(released)
	return nil
}

// settle says that mappings are in the store now.
func (p *Pool) settle(mappings []Mapping) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range mappings {
		delete(p.unsettled, m.ID)
	}
}
