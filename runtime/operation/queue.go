package operation

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/internal/fault"
)

// Config is what a Queue works with. Store and Log are required.
type Config struct {
	Store Store
	Log   *slog.Logger
	// Owner names this process in leases. "": a random name.
	Owner string
	// Workers is how many handlers work at once, without those that only wait
	// (Idle). As many operations more are given up at once. 0: 8.
	Workers int
	// LeaseTTL is how long a lease lasts unless renewed. 0: 30 s.
	LeaseTTL time.Duration
	// ProgressInterval is the least time between two durable writes of one
	// operation's progress; watchers see every step at once. 0: 2 s.
	ProgressInterval time.Duration
	// RetryBase is the wait before the second attempt; it doubles with each
	// up to RetryMax, a fifth more or less by chance. 0: 1 s.
	RetryBase time.Duration
	// RetryMax bounds the wait between attempts. 0: 1 min.
	RetryMax time.Duration
	// Retention is how long what is done is kept. 0: 7 days.
	Retention time.Duration
}

func (c Config) withDefaults() Config {
	c.Owner = cmp.Or(c.Owner, ulid.Make().String())
	c.Workers = cmp.Or(c.Workers, 8)
	c.LeaseTTL = cmp.Or(c.LeaseTTL, 30*time.Second)
	c.ProgressInterval = cmp.Or(c.ProgressInterval, 2*time.Second)
	c.RetryBase = cmp.Or(c.RetryBase, time.Second)
	c.RetryMax = cmp.Or(c.RetryMax, time.Minute)
	c.Retention = cmp.Or(c.Retention, 7*24*time.Hour)
	return c
}

// Handler does the work of one kind of operation. It may be called again for
// an operation that it has begun: after a crash, a shutdown or a transient
// error. It returns nil when the work is done; an Unavailable error to be
// tried again later; an error marked Permanent when it has ended the operation
// and undone what was to be undone; any other error to end it and have
// Policy.Abandon undo. Its context ends with ErrCancelled, ErrShutdown or
// ErrLeaseLost.
type Handler func(ctx context.Context, task *Task) error

// Policy is how operations of one kind are treated.
type Policy struct {
	// MaxAttempts is how often the handler is started at most for an operation
	// that ends without saying how: the daemon died. 0: 5.
	MaxAttempts int
	// MaxRetries is how often, beside those, the handler is started again
	// after a transient failure, with growing waits. 0: MaxAttempts - 1.
	MaxRetries int
	// Limit is how many operations of the kind run at once, those that only
	// wait and what other operations do of the kind (IdleAs) included. 0: no
	// limit but the queue's.
	Limit int
	// Abandon undoes an operation that will not be tried again though its
	// handler did not end it: cancelled while it waited, interrupted or tried
	// too often, panicked, failed without saying Permanent. op.Problem says
	// why. It may be called more than once, and while an earlier operation of
	// the same target runs. nil: there is nothing to undo.
	Abandon func(ctx context.Context, op *Operation) error
	// Ended is called once the end of an operation is written, whatever end,
	// before anybody is told of it. A daemon that dies in between never calls
	// it. nil: nothing is to be done.
	Ended func(ctx context.Context, op *Operation)
}

type registration struct {
	handler Handler
	policy  Policy
}

// entry is an operation that is not done, as the queue knows it.
type entry struct {
	id      string
	kind    string
	target  string
	created time.Time
	arrived uint64 // its place among all entries

	notBefore time.Time
	abandon   *Problem // why it shall be given up instead of run
	claiming  bool     // a claim was written, though perhaps not answered

	// Of an active one:
	live      *Operation // its newest form; replaced, never changed
	cancel    context.CancelCauseFunc
	cancelled bool
	retries   int  // transient failures, the present one included
	shutdowns int  // as retries, of attempts that a stop of the daemon ended
	dirty     bool // live has progress that is not written yet
	finishing bool // the outcome is being written: the row may be ahead of live
	written   time.Time
}

// Queue runs operations. Its methods are safe for concurrent use.
type Queue struct {
	cfg  Config
	wake chan struct{} // capacity 1: there may be something to start
	// begun has capacity 1: an operation runs whose lease is to be kept.
	begun chan struct{}
	// givingUp holds one for each operation that is being given up.
	givingUp chan struct{}

	mu       sync.Mutex
	handlers map[string]registration
	entries  map[string]*entry // all that are not done, by id
	arrivals uint64            // entries that have come since the daemon began
	waiting  []*entry          // those not active, in order of creation
	kicked   []string          // ids whose rows are still to be read
	busy     map[string]int    // active ones by target
	perKind  map[string]int    // running handlers by kind, and what others do of it
	running  int               // handlers that have a worker

	returning []*turn            // those who wait for a worker again, first come first served
	entering  map[string][]*turn // those who wait for room among a kind, in order of creation

	watchers map[string]map[*watcher]struct{}
}

// New returns a Queue. It starts nothing: register handlers, then call Run.
func New(cfg Config) *Queue {
	cfg = cfg.withDefaults()
	return &Queue{
		cfg:      cfg,
		wake:     make(chan struct{}, 1),
		begun:    make(chan struct{}, 1),
		givingUp: make(chan struct{}, cfg.Workers),
		handlers: make(map[string]registration),
		entries:  make(map[string]*entry),
		busy:     make(map[string]int),
		perKind:  make(map[string]int),
		entering: make(map[string][]*turn),
		watchers: make(map[string]map[*watcher]struct{}),
	}
}

// Handle registers the handler of a kind. Call it before Run.
func (q *Queue) Handle(kind string, handler Handler, policy Policy) {
	fault.Declare(kind)
	policy.MaxAttempts = cmp.Or(policy.MaxAttempts, 5)
	policy.MaxRetries = cmp.Or(policy.MaxRetries, policy.MaxAttempts-1)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.handlers[kind] = registration{handler, policy}
}

func (q *Queue) registered(kind string) registration {
	q.mu.Lock()
	defer q.mu.Unlock()
	if r, ok := q.handlers[kind]; ok {
		return r
	}
	return registration{
		handler: func(context.Context, *Task) error {
			return Permanent(fmt.Errorf("operations of kind %q are unknown to this release", kind))
		},
		policy: Policy{MaxAttempts: 1, MaxRetries: 0},
	}
}

// Submit inserts an operation and has it run. When the project has used the
// request id before, it writes nothing and returns that operation: compare
// its RequestHash. Missing ID and CreatedAt are filled in.
func (q *Queue) Submit(ctx context.Context, op *Operation) (existing *Operation, err error) {
	if op.ID == "" {
		op.ID = ulid.Make().String()
	}
	if op.CreatedAt.IsZero() {
		op.CreatedAt = time.Now()
	}
	op.State = Queued
	existing, err = q.cfg.Store.InsertOperation(ctx, op)
	if err != nil || existing != nil {
		return existing, err
	}
	q.mu.Lock()
	q.add(op)
	q.mu.Unlock()
	q.wakeUp()
	return nil, nil //nolint:nilnil // no existing operation is the usual answer
}

// Kick tells of a row that the caller inserted in a transaction of its own.
// Without it the row would be found only at the next scan, or start.
func (q *Queue) Kick(id string) {
	q.mu.Lock()
	q.kicked = append(q.kicked, id)
	q.mu.Unlock()
	q.wakeUp()
}

// Heed tells of a row whose cancellation the caller requested in a transaction of its
// own, if it did. When it returns the operation knows, as after Cancel, unless the row
// cannot be read: then it does as soon as that can be.
func (q *Queue) Heed(ctx context.Context, id string) {
	op, err := q.cfg.Store.Operation(ctx, id)
	if err != nil {
		q.Kick(id)
		return
	}
	q.mu.Lock()
	q.add(op)
	if e := q.entries[id]; e == nil || e.live == nil {
		q.publish(op)
	}
	q.mu.Unlock()
	q.wakeUp()
}

func (q *Queue) wakeUp() {
	select {
	case q.wake <- struct{}{}:
	default: // it is awake already
	}
}

// enliven makes an entry one that runs. q.mu is held.
func (q *Queue) enliven(e *entry, op *Operation) {
	e.live, e.written = op, time.Now()
	select {
	case q.begun <- struct{}{}:
	default: // its lease is being kept, or is about to be
	}
}

// add makes a row an entry, unless it is one or is done. q.mu is held.
func (q *Queue) add(op *Operation) {
	e := q.entries[op.ID]
	if e == nil {
		if op.State != Queued {
			return
		}
		e = q.newEntry(op)
	}
	if op.CancelRequested && !e.cancelled {
		q.cancelEntry(e, op)
	}
}

// cancelEntry has an entry follow a row whose cancellation was requested: one that
// runs is told, one that waits is given up. q.mu is held.
func (q *Queue) cancelEntry(e *entry, op *Operation) {
	switch {
	case e.cancel != nil:
		e.cancelled = true
		e.cancel(ErrCancelled)
		if e.live != nil && e.live.Revision < op.Revision {
			next := *op
			next.Progress, next.Result = e.live.Progress, e.live.Result
			e.live = &next
		}
	case e.abandon == nil:
		e.abandon = cancelledProblem()
	default:
		return
	}
	if e.live != nil {
		q.publish(e.live)
	}
}

// newEntry makes the entry of a row and lets it wait. q.mu is held.
func (q *Queue) newEntry(op *Operation) *entry {
	q.arrivals++
	e := &entry{id: op.ID, kind: op.Kind, target: op.Target, created: op.CreatedAt, arrived: q.arrivals, notBefore: op.NotBefore}
	q.entries[op.ID] = e
	q.enqueue(e)
	return e
}

// enqueue puts an entry among those that wait, in order of creation: several
// transactions may tell of their rows in another order than they made them.
// q.mu is held.
func (q *Queue) enqueue(e *entry) {
	at, _ := slices.BinarySearchFunc(q.waiting, e, byAge)
	q.waiting = slices.Insert(q.waiting, at, e)
}

// byAge compares entries by their creation, the older one being less. Of the same
// moment the one that came first is: their ids tell nothing within a millisecond
// when the clock was set back.
func byAge(a, b *entry) int {
	return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.arrived, b.arrived))
}
