package dns

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// deadFor is for how long a server that did not answer is asked last.
const deadFor = 10 * time.Second

// upstreams is what is known of name servers.
type upstreams struct {
	mu      sync.Mutex
	dead    map[netip.AddrPort]time.Time // until when others come first
	loops   map[netip.AddrPort]bool      // it asks us
	probing map[string]netip.AddrPort    // by the name of a probe that is on its way
}

// order puts those that answered before those that did not, and leaves those
// out that would only ask us.
func (u *upstreams) order(servers []netip.AddrPort, now time.Time) []netip.AddrPort {
	u.mu.Lock()
	defer u.mu.Unlock()
	good, bad := make([]netip.AddrPort, 0, len(servers)), []netip.AddrPort(nil)
	for _, server := range servers {
		switch {
		case u.loops[server]:
		case now.Before(u.dead[server]):
			bad = append(bad, server)
		default:
			good = append(good, server)
		}
	}
	return append(good, bad...)
}

func (u *upstreams) failed(server netip.AddrPort, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.dead == nil {
		u.dead = make(map[netip.AddrPort]time.Time)
	}
	u.dead[server] = now.Add(deadFor)
}

func (u *upstreams) worked(server netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.dead, server)
}

// changed forgets what was known of servers: the same addresses may be those
// of others.
func (u *upstreams) changed() {
	u.mu.Lock()
	defer u.mu.Unlock()
	clear(u.loops)
	clear(u.dead)
}

// probe notes that a name is on its way to a server, until end is called.
func (u *upstreams) probe(name string, server netip.AddrPort) (end func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.probing == nil {
		u.probing = make(map[string]netip.AddrPort)
	}
	u.probing[name] = server
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.probing, name)
	}
}

// looped notes that a probe came back. fresh says of which server that was not
// known before.
func (u *upstreams) looped(name string) (server netip.AddrPort, fresh bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	server, ok := u.probing[name]
	if !ok || u.loops[server] {
		return server, false
	}
	if u.loops == nil {
		u.loops = make(map[netip.AddrPort]bool)
	}
	u.loops[server] = true
	return server, true
}

// looping are those that ask us, sorted.
func (u *upstreams) looping() []netip.AddrPort {
	u.mu.Lock()
	defer u.mu.Unlock()
	found := make([]netip.AddrPort, 0, len(u.loops))
	for server := range u.loops {
		found = append(found, server)
	}
	slices.SortFunc(found, func(a, b netip.AddrPort) int { return strings.Compare(a.String(), b.String()) })
	return found
}
