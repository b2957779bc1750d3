package port

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// Config is what a Pool works with.
type Config struct {
	// HostID names the host whose ports these are. Required.
	HostID string
	// Store keeps mappings and ranges. Required.
	Store Store
	// Probe tells ports of other programs. nil: BindProbe.
	Probe Probe
	// Holder holds the ports that are given out. nil: they are probed, and
	// another program may take one later.
	Holder Holder
	// Deny are ports that are never given out; what is held stays.
	Deny []Span
	// IPv6 says that environments are reached by it, so that sources of it make
	// sense.
	IPv6 bool
	// ClosedByDefault says that a mapping without sources is reached from the
	// host and environments only.
	ClosedByDefault bool
	// Quarantine is how long a released port rests before it is given out
	// again. 0: DefaultQuarantine; negative: not at all.
	Quarantine time.Duration
	// Now is the clock. nil: time.Now.
	Now func() time.Time
	// Log gets probes that failed. nil: they are not logged.
	Log *slog.Logger
}

// refusedByBrowsers are the ports, of those that a range may have, that browsers
// do not connect to (WHATWG fetch, "bad ports"); no service that people open in
// a browser is given one, but a custom port when it is asked for.
func refusedByBrowsers() []uint16 {
	return []uint16{1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080}
}

func openedInBrowsers(s Service) bool { return s == Jupyter || s == NoVNC || s == Custom }

// AnyRevision makes SetRange change a range whatever its revision is.
const AnyRevision int64 = -1

// Pool hands out the host ports of one host.
type Pool struct {
	cfg     Config
	refused bitmap
	denied  map[Protocol]*bitmap

	mu      sync.Mutex
	ranges  map[Service]Range
	next    map[cursorKey]uint16 // where the next search begins
	ports   map[Protocol]*ledger
	rests   *rests
	foreign *foreign

	unsettled map[string]bool // mapping ids that insert is writing

	probeFailure error // of the last probe
}

type cursorKey struct {
	service  Service
	protocol Protocol
}

// ledger is what is known of the ports of one protocol.
type ledger struct {
	taken   bitmap            // held, or conflicting
	holders map[uint16]string // mapping id by held port; "" while conflicting
}

func (l *ledger) hold(p uint16, id string) {
	l.taken.add(p)
	l.holders[p] = id
}

// drop frees a port if that mapping, or a conflict, still holds it: a late or
// repeated notice must not free the port of the next holder.
func (l *ledger) drop(p uint16, id string) bool {
	holder, held := l.holders[p]
	if !held || holder != id && holder != "" {
		return false
	}
	l.taken.remove(p)
	delete(l.holders, p)
	return true
}

// free frees a port as drop does and lets go of it. p.mu is held.
func (p *Pool) free(protocol Protocol, port uint16, id string) bool {
	if !p.ports[protocol].drop(port, id) {
		return false
	}
	if p.cfg.Holder != nil {
		p.cfg.Holder.Let(protocol, port)
	}
	return true
}

// New returns the pool of a host with what the store has of it.
func New(ctx context.Context, cfg Config) (*Pool, error) {
	if cfg.Probe == nil {
		cfg.Probe = BindProbe
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Quarantine == 0 {
		cfg.Quarantine = DefaultQuarantine
	}
	p := &Pool{
		cfg:     cfg,
		denied:  newForeign(cfg.Deny).sets,
		ranges:  make(map[Service]Range),
		next:    make(map[cursorKey]uint16),
		rests:   newRests(cfg.Quarantine),
		foreign: newForeign(nil),

		unsettled: make(map[string]bool),
		ports: map[Protocol]*ledger{
			TCP: {holders: make(map[uint16]string)},
			UDP: {holders: make(map[uint16]string)},
		},
	}
	for _, port := range refusedByBrowsers() {
		p.refused.add(port)
	}
	for _, r := range DefaultRanges() {
		p.ranges[r.Service] = r
	}
	changed, err := cfg.Store.PortRanges(ctx, cfg.HostID)
	if err != nil {
		return nil, fmt.Errorf("load port pool: %w", err)
	}
	for _, r := range changed {
		p.ranges[r.Service] = r
	}
	held, err := p.held(ctx)
	if err != nil {
		return nil, fmt.Errorf("load port pool: %w", err)
	}
	released, err := p.released(ctx)
	if err != nil {
		return nil, fmt.Errorf("load port pool: %w", err)
	}
	p.holdAll(held)
	p.mu.Lock()
	p.letRest(released)
	p.mu.Unlock()
	// Searches go on after the youngest mapping, so that a restart does not
	// make the pool give out again at once what was just released.
	youngest := slices.SortedFunc(slices.Values(held), func(a, b Mapping) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	for _, m := range youngest {
		p.next[cursorKey{m.Service, m.Protocol}] = m.External + 1
	}
	return p, nil
}

func (p *Pool) held(ctx context.Context) ([]Mapping, error) {
	held, _, err := p.cfg.Store.PortMappings(ctx, p.cfg.HostID, Filter{})
	return held, err
}

// Mapping returns a mapping of this host, released ones too:
// PORT_MAPPING_NOT_FOUND.
func (p *Pool) Mapping(ctx context.Context, id string) (Mapping, error) {
	found, _, err := p.Mappings(ctx, Filter{ID: id, IncludeReleased: true})
	if err != nil {
		return Mapping{}, err
	}
	if len(found) == 0 {
		return Mapping{}, problem.New(problem.PortNotFound, "there is no port mapping %q", id).WithField("id").
			WithHint("list them with: remotegpu port ls")
	}
	return found[0], nil
}

// Mappings returns the mappings of this host that a filter selects, by host
// port, then by age, and the cursor of the next page.
func (p *Pool) Mappings(ctx context.Context, filter Filter) ([]Mapping, string, error) {
	found, next, err := p.cfg.Store.PortMappings(ctx, p.cfg.HostID, filter)
	for i := range found {
		if found[i].Reach = p.Reach(&found[i]); !filter.At.IsZero() {
			found[i].Reach = p.reachThen(found[i].Sources)
		}
	}
	return found, next, err
}

// Ranges returns the range of each service.
func (p *Pool) Ranges() []Range {
	p.mu.Lock()
	defer p.mu.Unlock()
	found := make([]Range, 0, len(p.ranges))
	for _, service := range Services() {
		found = append(found, p.ranges[service])
	}
	return found
}

// Reservable returns the ranges of all services, and one more for each port that
// is held outside of them, as after a change of ranges: outgoing connections
// must have none of these.
func (p *Pool) Reservable() []Range {
	found := p.Ranges()
	ranges := slices.Clone(found)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, protocol := range []Protocol{TCP, UDP} {
		for _, held := range slices.Sorted(maps.Keys(p.ports[protocol].holders)) {
			if !slices.ContainsFunc(ranges, func(r Range) bool { return r.First <= held && held <= r.Last }) {
				found = append(found, Range{First: held, Last: held})
			}
		}
	}
	return found
}

// Usage returns the range of each service and how full it is. Free counts TCP
// ports and leaves out those that other programs have at this moment.
func (p *Pool) Usage(ctx context.Context) ([]Usage, error) {
	held, err := p.held(ctx)
	if err != nil {
		return nil, err
	}
	var found []Usage
	for _, r := range p.Ranges() {
		u := Usage{Range: r}
		for i := range held {
			if held[i].Service == r.Service && (held[i].External < r.First || held[i].External > r.Last) {
				u.Outside++
			}
		}
		// In small steps: an allocation must not wait for thousands of probes,
		// nor may a probe happen beside it, since it would see ours.
		const step = 256
		for first := int(r.First); first <= int(r.Last); first += step {
			if err := ctx.Err(); err != nil {
				return nil, context.Cause(ctx)
			}
			p.count(&u, first, min(first+step-1, int(r.Last)))
		}
		found = append(found, u)
	}
	return found, nil
}

func (p *Pool) count(u *Usage, first, last int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rests.pass(p.cfg.Now())
	for i := first; i <= last; i++ {
		port := uint16(i)
		taken := p.ports[TCP].taken.has(port) || p.ports[UDP].taken.has(port)
		if taken {
			u.InUse++
		} else if p.rests.sets[TCP].has(port) || p.rests.sets[UDP].has(port) {
			u.Resting++
		}
		if _, available := inNone(i, i, p.unavailable(u.Service, TCP)); available && p.probe(TCP, port) {
			u.Free++
		}
	}
}

// unavailable are the ports that the pool does not pick for a service, beside
// those that other programs have. p.mu is held.
func (p *Pool) unavailable(service Service, protocol Protocol) []*bitmap {
	sets := []*bitmap{&p.ports[protocol].taken, p.rests.sets[protocol], p.denied[protocol], p.foreign.sets[protocol]}
	if openedInBrowsers(service) {
		sets = append(sets, &p.refused)
	}
	return sets
}

// probe says whether no other program has a port; what cannot be inspected is
// not free. p.mu is held.
func (p *Pool) probe(protocol Protocol, port uint16) bool {
	free, err := p.cfg.Probe(protocol, port)
	return p.probed(free, err, protocol, port)
}

// take makes sure that no other program has a port, and that none gets it
// where there is a Holder. p.mu is held.
func (p *Pool) take(protocol Protocol, port uint16) bool {
	if p.cfg.Holder == nil {
		return p.probe(protocol, port)
	}
	free, err := p.cfg.Holder.Hold(protocol, port)
	return p.probed(free, err, protocol, port)
}

func (p *Pool) probed(free bool, err error, protocol Protocol, port uint16) bool {
	if err != nil && p.probeFailure == nil {
		p.cfg.Log.Warn("host ports cannot be probed; none is given out meanwhile", "port", port,
			"protocol", string(protocol), "error", err)
	}
	p.probeFailure = err // said once, not for each port of a range
	return free && err == nil
}

// SetRange changes the range of a service, if its revision is still
// ifRevision or that is AnyRevision. Mappings outside the new range stay
// valid. Setting what is set already changes nothing. PORT_RANGE_INVALID,
// ETAG_MISMATCH.
func (p *Pool) SetRange(ctx context.Context, service Service, first, last uint16, ifRevision int64) (Range, error) {
	if err := checkRange(service, first, last); err != nil {
		return Range{}, err
	}
	p.mu.Lock()
	present := p.ranges[service]
	p.mu.Unlock()
	if present.First == first && present.Last == last {
		return present, nil
	}
	if ifRevision != AnyRevision && ifRevision != present.Revision {
		return Range{}, rangeChanged(service)
	}
	wanted := present
	wanted.First, wanted.Last, wanted.Revision = first, last, present.Revision+1
	// The store decides between two changes at once.
	if err := p.cfg.Store.SetPortRange(ctx, p.cfg.HostID, wanted); err != nil {
		if isAborted(err) {
			return Range{}, rangeChanged(service).WithCause(err)
		}
		return Range{}, fmt.Errorf("set range of %s: %w", service, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ranges[service].Revision < wanted.Revision {
		p.ranges[service] = wanted
	}
	return wanted, nil
}

func rangeChanged(service Service) *problem.Problem {
	return problem.New(problem.EtagMismatch, "the range of %s has changed since it was read", service).
		WithField("etag").WithHint("read the pools again and decide anew")
}

func checkRange(service Service, first, last uint16) error {
	switch {
	case !slices.Contains(Services(), service):
		return problem.New(problem.FieldInvalid, "service type %q is unknown", service).WithField("service_type")
	case first < 1024:
		return problem.New(problem.PortRangeInvalid, "port %d belongs to the host's own services", first).
			WithField("first_port").WithHint("begin at 1024 or above")
	case last < first:
		return problem.New(problem.PortRangeInvalid, "the range %d-%d ends before it begins", first, last).
			WithField("last_port").WithHint("give a last port that is not below the first")
	}
	return nil
}

// Release releases what an environment holds and returns it.
func (p *Pool) Release(ctx context.Context, envID string) ([]Mapping, error) {
	released, err := p.cfg.Store.ReleasePortMappings(ctx, p.cfg.HostID, envID, p.cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("release ports of environment %s: %w", envID, err)
	}
	p.Released(released)
	return released, nil
}

// Released tells the pool that the store has released these mappings. Their
// ports rest from now on.
func (p *Pool) Released(mappings []Mapping) {
	now := p.cfg.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range mappings {
		if m.HostID == p.cfg.HostID && p.free(m.Protocol, m.External, m.ID) {
			p.rests.add(rest{m.Protocol, m.External, m.Project, now})
		}
	}
}
