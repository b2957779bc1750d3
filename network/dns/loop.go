package dns

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"time"

	miekg "github.com/miekg/dns"
)

// probeEvery is how often name servers are probed; new ones are with the first
// question that comes while they are there.
const probeEvery = 10 * time.Minute

// probeName is the end of the names that loops are looked for with: random, so
// that nobody has it, and directly below the root, so that everybody passes it
// on.
func probeName() string { return "." + random() + "." }

func random() string {
	var bytes [10]byte
	_, _ = rand.Read(bytes[:]) // it does not fail
	return hex.EncodeToString(bytes[:])
}

// Run looks for name servers that ask us in turn until ctx ends: a question
// that comes back would go round for ever. Such a server is not asked.
func (f *Forwarder) Run(ctx context.Context) error {
	timer := time.NewTimer(probeEvery)
	defer timer.Stop()
	for {
		servers, _ := f.cfg.Upstreams()
		if before := f.probed.Load(); before == nil || !slices.Equal(servers, *before) {
			f.upstreams.changed()
		}
		servers = slices.Clone(servers)
		f.probed.Store(&servers)
		f.Probe(ctx, servers)
		timer.Reset(probeEvery)
		select {
		case <-ctx.Done():
			return nil
		case <-f.others:
		case <-timer.C:
		}
	}
}

// noticeOthers has Run probe the servers that questions are asked of when they
// are others than those it has probed. Nobody else has to look whether they
// are: whom nobody asks is not in the way.
func (f *Forwarder) noticeOthers(servers []netip.AddrPort) {
	probed := f.probed.Load()
	if probed == nil || slices.Equal(servers, *probed) {
		return // nil: Run is about to
	}
	select {
	case f.others <- struct{}{}:
	default: // it knows
	}
}

// Probe asks each server for a name that it can only get from us.
func (f *Forwarder) Probe(ctx context.Context, servers []netip.AddrPort) {
	for _, server := range servers {
		if ctx.Err() != nil {
			return
		}
		name := random() + f.probe
		end := f.upstreams.probe(name, server)
		// Whatever it answers: what counts is whether the question comes here.
		_, err := exchange(ctx, server, Question{Name: name, Type: miekg.TypeHINFO})
		end()
		if err != nil {
			f.cfg.Log.DebugContext(ctx, "a name server did not answer", "server", server, "error", err)
		}
	}
}

// Loops are the name servers that ask us, and so are not asked.
func (f *Forwarder) Loops() []netip.AddrPort { return f.upstreams.looping() }

// saw notes that a question came that is not forwarded for its client: it may
// be one of ours. There may be no Forwarder.
func (f *Forwarder) saw(q *query) {
	if f == nil || q.labels != 2 || q.qtype != miekg.TypeHINFO {
		return
	}
	if name := strings.ToLower(q.name()); strings.HasSuffix(name, f.probe) {
		f.looped(name)
	}
}

// looped notes that a probe came back.
func (f *Forwarder) looped(name string) {
	if server, fresh := f.upstreams.looped(name); fresh {
		f.cfg.Log.Warn("a name server asks this node in turn; it is not asked any more", "server", server)
	}
}
