package dns

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	miekg "github.com/miekg/dns"
)

// ForwarderConfig says whom a Forwarder asks.
type ForwarderConfig struct {
	// Upstreams returns the name servers to ask, the preferred one first, and
	// the domains that are the site's own: it is asked before each question
	// that no answer is kept for, so it should be fast.
	Upstreams func() (servers []netip.AddrPort, private []string)
	// Private are further domains whose answers may hold private addresses and
	// whose names are asked for though they look private.
	Private []string
	// CacheSize is how many answers are kept; 0: 8192.
	CacheSize int
	Log       *slog.Logger
}

// Question is a question to name servers.
type Question struct {
	Name             string // fully qualified, in the case the answer is to have
	Type             uint16
	DNSSEC           bool // the client wants signatures
	CheckingDisabled bool
}

// Answer is what name servers know. Its records are the caller's own.
type Answer struct {
	Rcode  int
	Answer []miekg.RR
	Ns     []miekg.RR
}

// Forwarder asks name servers and keeps what they say for a while. Its methods
// are safe for concurrent use.
type Forwarder struct {
	cfg       ForwarderConfig
	cache     cache
	upstreams upstreams
	probe     string // the name that loops are found with
	guard     atomic.Pointer[guard]
	probed    atomic.Pointer[[]netip.AddrPort] // servers that Run has probed; nil: none yet
	others    chan struct{}                    // holds one when there are others now

	mu     sync.Mutex
	flight map[cacheKey]*flight
}

// flight is a question that is being asked; others with the same one wait.
type flight struct {
	done   chan struct{}
	answer *kept
}

// NewForwarder returns a Forwarder. It asks nobody yet.
func NewForwarder(cfg ForwarderConfig) *Forwarder {
	if cfg.CacheSize <= 0 {
		cfg.CacheSize = 8192
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	f := &Forwarder{cfg: cfg, probe: probeName(), others: make(chan struct{}, 1), flight: make(map[cacheKey]*flight)}
	f.cache.size = cfg.CacheSize
	f.guard.Store(new(guard))
	return f
}

// Guard says in which networks of the site public names must not lead, besides
// private ones: those that the host is in, and those of environments. When they
// are others than before, what is kept is asked for again.
func (f *Forwarder) Guard(site []netip.Prefix) {
	if slices.Equal(f.guard.Load().site, site) {
		return
	}
	f.guard.Store(&guard{site: slices.Clone(site)})
	f.cache.clear()
}

// Resolve asks. It always answers: with SERVFAIL when nobody did.
func (f *Forwarder) Resolve(ctx context.Context, q Question) Answer {
	key := keyOf(q)
	servers, private, answer, known := f.known(q, key)
	if known {
		return answer
	}
	found := f.once(ctx, key, func(ctx context.Context) *kept { return f.ask(ctx, q, key, servers, private) })
	if found == nil {
		return Answer{Rcode: miekg.RcodeServerFailure}
	}
	return found.answer(q, time.Now())
}

// Known answers a question that nobody has to be asked for.
func (f *Forwarder) Known(q Question) (answer Answer, known bool) {
	_, _, answer, known = f.known(q, keyOf(q))
	return answer, known
}

// known answers without asking, or says whom to ask, and whether the answer may
// have private addresses.
func (f *Forwarder) known(q Question, key cacheKey) (servers []netip.AddrPort, private bool, answer Answer, known bool) {
	servers, site := f.cfg.Upstreams()
	f.noticeOthers(servers)
	if strings.HasSuffix(key.name, f.probe) {
		f.looped(key.name)
		return nil, false, Answer{Rcode: miekg.RcodeRefused}, true
	}
	private = f.isPrivate(key.name, site)
	if answer, ours := local(key.name, q, private); ours {
		return nil, false, answer, true
	}
	now := time.Now()
	if found := f.cache.get(key, now); found != nil {
		return nil, false, found.answer(q, now), true
	}
	return servers, private, Answer{}, false
}

func keyOf(q Question) cacheKey {
	return cacheKey{name: strings.ToLower(q.Name), kind: q.Type, dnssec: q.DNSSEC, unchecked: q.CheckingDisabled}
}

// once has a question asked by one of those who have it at the same time. Who
// leaves does not end it for the others.
func (f *Forwarder) once(ctx context.Context, key cacheKey, ask func(context.Context) *kept) *kept {
	f.mu.Lock()
	running := f.flight[key]
	if running == nil {
		running = &flight{done: make(chan struct{})}
		f.flight[key] = running
		go func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forwardTimeout)
			defer cancel()
			running.answer = ask(ctx)
			f.mu.Lock()
			delete(f.flight, key)
			f.mu.Unlock()
			close(running.done)
		}()
	}
	f.mu.Unlock()
	select {
	case <-running.done:
		return running.answer
	case <-ctx.Done():
		return nil
	}
}

// ask asks the servers one after the other until one answers.
func (f *Forwarder) ask(ctx context.Context, q Question, key cacheKey, servers []netip.AddrPort, private bool) *kept {
	var last *miekg.Msg
	var errs []error
	for _, server := range f.upstreams.order(servers, time.Now()) {
		if ctx.Err() != nil {
			break
		}
		began := time.Now()
		reply, err := exchange(ctx, server, q)
		if err != nil {
			if !cutShort(ctx, began, err) {
				f.upstreams.failed(server, time.Now())
			}
			errs = append(errs, err)
			continue
		}
		f.upstreams.worked(server)
		last = reply
		if reply.Rcode == miekg.RcodeSuccess || reply.Rcode == miekg.RcodeNameError {
			break // the others have nothing to add
		}
	}
	if last == nil {
		if len(servers) == 0 {
			errs = append(errs, errors.New("the host names no name server"))
		}
		f.cfg.Log.DebugContext(ctx, "a question was not answered by any name server", "name", q.Name, "error", errors.Join(errs...))
		last = &miekg.Msg{MsgHdr: miekg.MsgHdr{Rcode: miekg.RcodeServerFailure}}
	}
	current := f.guard.Load()
	guard := current
	if private {
		guard = nil
	}
	answer := keep(last, key.name, guard, time.Now())
	f.cache.put(key, answer)
	if f.guard.Load() != current { // what was cleared since has not had this answer
		f.cache.clear()
	}
	return answer
}

// cutShort tells that a server did not answer because those before it had used
// up its time: that says nothing about it.
func cutShort(ctx context.Context, began time.Time, err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		return false
	}
	deadline, bounded := ctx.Deadline()
	return ctx.Err() != nil || bounded && deadline.Before(began.Add(tryTimeout))
}

// isPrivate says whether a name is in a domain whose answers may be private.
func (f *Forwarder) isPrivate(name string, site []string) bool {
	for _, domains := range [][]string{f.cfg.Private, site} {
		for _, domain := range domains {
			domain = miekg.Fqdn(strings.ToLower(strings.TrimPrefix(domain, ".")))
			if domain != "." && (name == domain || strings.HasSuffix(name, "."+domain)) {
				return true
			}
		}
	}
	return false
}
