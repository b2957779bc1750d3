package dns

import (
	"context"
	"net/netip"
	"time"

	miekg "github.com/miekg/dns"
)

// NewTestLimiter returns a limiter's answer for others than environments.
func NewTestLimiter(cfg RateLimit) func(netip.Addr) bool {
	l := newLimiter(cfg)
	return func(from netip.Addr) bool { return l.take(from, false) == pass }
}

// NewTestQuota returns a quota's way in for an asker, whose connections count by
// network.
func NewTestQuota(each, all int) func(netip.Addr) bool {
	q := &quota{each: each, all: all}
	return func(from netip.Addr) bool { return q.enter(network(from)) }
}

// HandleMessage answers one message, sent to where environments ask, as the
// server would over UDP or TCP. later says that it would be forwarded.
func (s *Server) HandleMessage(message []byte, from netip.Addr, tcp bool) (answer []byte, later bool) {
	var q query
	answer, asked := s.handle(&q, message, nil, asker{from, true}, tcp)
	return answer, asked != nil
}

// ReverseZones are the reverse zones of a network, as text.
func ReverseZones(network netip.Prefix) []string {
	var names []string
	for _, name := range reverseZones(network) {
		names = append(names, name.text())
	}
	return names
}

// AskServers asks servers for a name in the time that the context leaves, and
// returns the order in which they would be asked next.
func (f *Forwarder) AskServers(ctx context.Context, name string, servers []netip.AddrPort) []netip.AddrPort {
	q := Question{Name: name, Type: miekg.TypeA}
	f.ask(ctx, q, keyOf(q), servers, false)
	return f.upstreams.order(servers, time.Now())
}
