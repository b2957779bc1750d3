package dns

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// RateLimit bounds the answers to one asker over UDP, whose address may be
// forged: whoever sends questions in another's name must not have the node
// flood that other. What comes over TCP is not counted.
type RateLimit struct {
	// PerSecond is how many questions of one environment are answered in a
	// second, as many at once; 0: no limit.
	PerSecond int
	// Outside is the same for one /24 or /64 of others: behind a public zone
	// that is whom somebody may want to be flooded.
	Outside int
	// Slip is how many answers beyond that are left out before one says that
	// TCP should be used (TC), so that a real client gets on; 0: all are left
	// out.
	Slip int
	// Exempt are networks that are not limited.
	Exempt []netip.Prefix
}

// verdict is what becomes of an answer.
type verdict int

const (
	pass verdict = iota
	slip         // say that TCP is to be used
	drop
)

// buckets is how many askers are remembered; the memory is fixed, so a flood
// from forged addresses costs none.
const buckets = 1 << 14

// probes is how many places an asker may have.
const probes = 4

type limiter struct {
	RateLimit
	known, others int64 // nanoseconds between two answers; 0: no limit
	began         time.Time
	seed          maphash.Seed
	table         []bucket
	over          atomic.Uint32
}

// bucket remembers when an asker has used up what it was given (GCRA). Its
// parts are not changed together: two askers that meet in one share it for a
// moment.
type bucket struct {
	tag  atomic.Uint64
	free atomic.Int64 // nanoseconds since began
}

func newLimiter(cfg RateLimit) *limiter {
	if cfg.PerSecond <= 0 && cfg.Outside <= 0 {
		return nil
	}
	interval := func(perSecond int) int64 {
		if perSecond <= 0 {
			return 0
		}
		return int64(time.Second) / int64(perSecond)
	}
	return &limiter{
		RateLimit: cfg, known: interval(cfg.PerSecond), others: interval(cfg.Outside), began: time.Now(),
		seed: maphash.MakeSeed(), table: make([]bucket, buckets),
	}
}

// take asks for one answer. known askers count by themselves, others by their
// network.
func (l *limiter) take(from netip.Addr, known bool) verdict {
	if l == nil {
		return pass
	}
	interval := l.others
	if known {
		interval = l.known
	}
	if interval == 0 || slices.ContainsFunc(l.Exempt, func(p netip.Prefix) bool { return p.Contains(from) }) {
		return pass
	}
	bytes := from.As16()
	switch {
	case known:
	case from.Is4():
		bytes[15] = 0
	default:
		clear(bytes[8:])
	}
	now := int64(time.Since(l.began))
	b := l.bucket(maphash.Bytes(l.seed, bytes[:]))
	free := max(b.free.Load(), now)
	if free-now < int64(time.Second) {
		b.free.Store(free + interval)
		return pass
	}
	if l.Slip > 0 && l.over.Add(1)%uint32(l.Slip) == 0 {
		return slip
	}
	return drop
}

// bucket is that of an asker, or the one of its places that was idle longest.
func (l *limiter) bucket(hash uint64) *bucket {
	var idle *bucket
	for i := range uint64(probes) {
		b := &l.table[(hash+i)%buckets]
		if b.tag.Load() == hash {
			return b
		}
		if idle == nil || b.free.Load() < idle.free.Load() {
			idle = b
		}
	}
	idle.tag.Store(hash)
	idle.free.Store(0)
	return idle
}

// quota counts what each asker has at work, and all together.
type quota struct {
	each, all int

	mu    sync.Mutex
	total int
	used  map[netip.Addr]int
}

// reserve is the part of what is left that one asker may have once half of all
// is taken: many who take what they can together leave room for others.
const reserve = 8

// enter takes one place, unless there is none.
func (q *quota) enter(who netip.Addr) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	most := q.each
	if left := q.all - q.total; left <= q.all/2 {
		most = min(most, (left+reserve-1)/reserve)
	}
	if q.used[who] >= most {
		return false
	}
	if q.used == nil {
		q.used = make(map[netip.Addr]int)
	}
	q.total++
	q.used[who]++
	return true
}

// leave gives it back.
func (q *quota) leave(who netip.Addr) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.total--
	if q.used[who]--; q.used[who] == 0 {
		delete(q.used, who)
	}
}

// network is whose connections count together: one IPv4 address, or a network
// of IPv6, of which any host has all addresses.
func network(from netip.Addr) netip.Addr {
	if from.Is4() || from.Is4In6() {
		return from
	}
	prefix, err := from.Prefix(64)
	if err != nil {
		return from
	}
	return prefix.Addr()
}
