package dns

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	miekg "github.com/miekg/dns"
)

// Config says how a Server answers.
type Config struct {
	// Allow are the networks whose questions are answered besides those of
	// environments. They get what is ours, nothing is forwarded for them.
	Allow []netip.Prefix
	// Environments are the networks of environments. From there questions are
	// answered where environments ask only: anywhere else it is somebody who
	// forges their addresses.
	Environments []netip.Prefix
	// Forwarder asks others for environments; nil: nothing is forwarded.
	Forwarder *Forwarder
	RateLimit RateLimit
	// Sockets is how many UDP sockets share an address, each with a thread of
	// its own; 0: one per CPU, at most 4.
	Sockets int
	Log     *slog.Logger
}

// Bounds of what is at work at a time, whoever asks how much.
const (
	maxForwards          = 1024 // questions that wait for name servers
	maxForwardsOfOne     = 128
	maxConnections       = 1024
	maxConnectionsOfOne  = 64
	idleTimeout          = 20 * time.Second // of a connection without a question
	writeTimeout         = 5 * time.Second
	maxQuestion          = 4096 // bytes of a message that is read
	forwardTimeout       = 5 * time.Second
	maxPendingOfOneConn  = 64
	connectionBufferSize = 8 << 10
)

// Server answers questions about what was last Set. Its methods are safe for
// concurrent use.
type Server struct {
	cfg      Config
	limiter  *limiter
	forwards quota
	snapshot atomic.Pointer[snapshot]

	mu       sync.Mutex // held while a snapshot is made
	compiler compiler
	serial   uint32
}

// NewServer returns a server that refuses every question until Set.
func NewServer(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		cfg: cfg, limiter: newLimiter(cfg.RateLimit),
		forwards: quota{each: maxForwardsOfOne, all: maxForwards},
		// A daemon that starts later serves a later serial, unless it changed
		// something more often than once a second for all its life.
		serial: uint32(time.Now().Unix()),
	}
	s.snapshot.Store(&snapshot{})
	return s
}

// Set declares everything that is served. Questions that come after it returns
// are answered from it. On InvalidArgument, for names that are none, what was
// served before stays.
func (s *Server) Set(desired Desired) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, err := s.compiler.build(&desired, s.serial+1)
	if err != nil {
		return err
	}
	s.serial++
	s.snapshot.Store(next)
	return nil
}

// asked is a question that is forwarded, kept while that takes.
type asked struct {
	query
	client *client
	from   netip.Addr
	limit  int
	rest   wireName // of an answer of ours: what it leads to
	prefix []byte   // of an answer of ours: its packed form
}

// handle answers a message into out, which is empty. An answer of no bytes is
// none. later, when not nil, is to be forwarded.
func (s *Server) handle(q *query, message, out []byte, from asker, tcp bool) (answer []byte, later *asked) {
	rcode, ok := q.parse(message)
	if !ok {
		return nil, nil
	}
	current := s.snapshot.Load()
	a := answerer{snapshot: current, client: current.client(from)}
	a.recurse = a.client != nil && a.client.forward && s.cfg.Forwarder != nil
	limit := maxTCP
	if !tcp {
		limit = q.size
		switch s.limiter.take(from.address, a.client != nil) {
		case pass:
		case slip:
			return q.respond(out, a.flags(false)|flagTC, noError, nil, 0, limit), nil
		default:
			return nil, nil
		}
	}
	if rcode != noError {
		return q.respond(out, a.flags(false), rcode, nil, 0, limit), nil
	}
	if a.client == nil && !s.allowed(from) {
		return q.respond(out, 0, miekg.RcodeRefused, nil, 0, limit), nil
	}
	answer, result, rest := a.answer(q, out, limit)
	if result == abroad || (rest != "" && a.recurse) {
		if !a.recurse {
			s.cfg.Forwarder.saw(q)
			return q.respond(out, 0, miekg.RcodeRefused, nil, 0, limit), nil
		}
		later = &asked{query: *q, client: a.client, from: from.address, limit: limit, rest: rest}
		later.question = slices.Clone(q.question) // the message is reused
		if rest != "" {
			later.prefix = slices.Clone(answer)
		}
		return nil, later
	}
	return answer, nil
}

// asker is who sent a question, and whether it came to where environments ask.
type asker struct {
	address netip.Addr
	ours    bool
}

// client is the environment that an asker is, nil when it is none. An address
// proves that only where environments ask: the firewall sees to it there.
func (s *snapshot) client(from asker) *client {
	if !from.ours {
		return nil
	}
	return s.clients[from.address]
}

// allowed says whether somebody who is no environment is answered.
func (s *Server) allowed(from asker) bool {
	holds := func(p netip.Prefix) bool { return p.Contains(from.address) }
	return (from.ours || !slices.ContainsFunc(s.cfg.Environments, holds)) && slices.ContainsFunc(s.cfg.Allow, holds)
}

// forward has a question answered by others and hands the answer to send: at
// once when it is known, else on a goroutine of its own; or refuses it when too
// many are at work.
func (s *Server) forward(ctx context.Context, later *asked, done func(), send func([]byte)) {
	if answer, known := s.known(ctx, later); known {
		if answer != nil {
			send(answer)
		}
		done()
		return
	}
	if !s.forwards.enter(later.from) {
		send(later.respond(nil, flagRA, miekg.RcodeRefused, nil, 0, later.limit))
		done()
		return
	}
	go func() {
		defer done()
		defer s.forwards.leave(later.from)
		ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
		defer cancel()
		if answer := s.ask(ctx, later); answer != nil {
			send(answer)
		}
	}()
}

// known is the answer to a question that nobody has to be asked for, nil when
// it cannot be sent.
func (s *Server) known(ctx context.Context, later *asked) (answer []byte, known bool) {
	question, ours, ok := later.abroad()
	if !ok {
		return nil, true
	}
	theirs, known := s.cfg.Forwarder.Known(question)
	if !known {
		return nil, false
	}
	return s.join(ctx, later, ours, theirs), true
}

// ask is the answer to a question that is forwarded, nil when it cannot be
// sent.
func (s *Server) ask(ctx context.Context, later *asked) []byte {
	question, ours, ok := later.abroad()
	if !ok {
		return nil
	}
	return s.join(ctx, later, ours, s.cfg.Forwarder.Resolve(ctx, question))
}

// abroad is what others are asked, and the part of the answer that is ours.
func (a *asked) abroad() (question Question, ours miekg.Msg, ok bool) {
	question = Question{Name: a.name(), Type: a.qtype, DNSSEC: a.do, CheckingDisabled: a.flags&flagCD != 0}
	if a.rest != "" {
		if ours.Unpack(a.prefix) != nil {
			return question, ours, false
		}
		question.Name = a.rest.text()
	}
	return question, ours, true
}

// join makes an answer of ours and theirs, nil when it cannot be sent.
func (s *Server) join(ctx context.Context, later *asked, ours miekg.Msg, theirs Answer) []byte {
	reply := &miekg.Msg{
		MsgHdr: miekg.MsgHdr{
			Id: later.id, Response: true, RecursionDesired: later.flags&flagRD != 0, RecursionAvailable: true,
			CheckingDisabled: later.flags&flagCD != 0, Rcode: theirs.Rcode, Authoritative: later.rest != "",
		},
		Compress: true,
		Question: []miekg.Question{{Name: later.name(), Qtype: later.qtype, Qclass: later.class}},
		Answer:   theirs.Answer, Ns: theirs.Ns,
	}
	if later.rest != "" {
		reply.Answer = slices.Concat(ours.Answer, theirs.Answer)
	}
	if later.edns {
		opt := &miekg.OPT{Hdr: miekg.RR_Header{Name: ".", Rrtype: miekg.TypeOPT}}
		opt.SetUDPSize(maxUDP)
		opt.SetDo(later.do)
		reply.Extra = []miekg.RR{opt}
	}
	reply.Truncate(later.limit)
	packed, err := reply.Pack()
	if err != nil {
		s.cfg.Log.DebugContext(ctx, "the answer of a name server cannot be passed on", "error", err)
		return later.respond(nil, flagRA, miekg.RcodeServerFailure, nil, 0, later.limit)
	}
	copy(packed[headerSize:], later.question) // as it was asked for, byte for byte
	return packed
}

// text is the name as text.
func (n wireName) text() string {
	name, _, err := miekg.UnpackDomainName([]byte(n), 0)
	if err != nil {
		return "."
	}
	return name
}
