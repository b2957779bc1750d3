package operation

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/fault"
)

const (
	// scanInterval is how often the store is searched for rows that nobody
	// told of: a caller may have lost the answer to its insert.
	scanInterval  = 30 * time.Second
	purgeInterval = time.Hour
	// rereadDelay is the wait after a row could not be read or claimed.
	rereadDelay = time.Second
)

// Run takes over what an earlier process left, then runs operations until ctx
// ends. Then it ends the contexts of running handlers with ErrShutdown, waits
// for them to return and leaves their operations to the next start. It fails
// only when it cannot begin.
func (q *Queue) Run(ctx context.Context) error {
	if err := q.takeOver(ctx); err != nil {
		return fmt.Errorf("take over operations: %w", err)
	}
	work, stopWork := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stopWork(nil)
	keep, stopKeeping := context.WithCancel(context.WithoutCancel(ctx))
	var workers, keeper sync.WaitGroup
	keeper.Go(func() { q.keepLeases(keep) })
	keeper.Go(func() { q.keepStore(keep) })

	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		wait := q.readKicked(ctx)
		if next := q.dispatch(work, &workers); next > 0 && (wait == 0 || next < wait) {
			wait = next
		}
		timer.Stop()
		if wait > 0 {
			timer.Reset(wait)
		}
		select {
		case <-ctx.Done():
		case <-q.wake:
		case <-timer.C:
		}
	}
	stopWork(ErrShutdown)
	workers.Wait()
	// Leases are renewed until the last handler has returned.
	stopKeeping()
	keeper.Wait()
	return nil
}

// takeOver queues what is pending. This process is the only one that runs
// operations of its store, so at start whatever is running was interrupted,
// whatever its lease says.
func (q *Queue) takeOver(ctx context.Context) error {
	pending, err := q.cfg.Store.Pending(ctx)
	if err != nil {
		return err
	}
	for _, op := range pending {
		if op.State == Running {
			if op, err = q.takeOverOne(ctx, op, func(op *Operation) bool { return op.State == Running }); err != nil {
				return err
			}
		}
		q.mu.Lock()
		q.addTakenOver(op)
		q.mu.Unlock()
	}
	return nil
}

// addTakenOver is add for a row that was taken over. q.mu is held.
func (q *Queue) addTakenOver(op *Operation) {
	q.add(op)
	if op.State == Running { // interrupted too often
		e := q.newEntry(op)
		e.abandon = interruptedProblem(op.crashes())
	}
}

// takeOverOne queues an interrupted operation again, if it still is. One that was interrupted
// too often stays running, leased by this process, until it is given up: were
// it queued, the next crash would make its count start over.
func (q *Queue) takeOverOne(ctx context.Context, op *Operation, interrupted func(*Operation) bool) (*Operation, error) {
	limit := q.registered(op.Kind).policy.MaxAttempts
	taken, err := q.cfg.Store.UpdateOperation(ctx, op.ID, func(op *Operation) error {
		if !interrupted(op) {
			return errNotQueued
		}
		if op.crashes() >= limit {
			op.LeaseOwner, op.LeaseExpires = q.cfg.Owner, time.Now().Add(q.cfg.LeaseTTL)
			return nil
		}
		requeue(op, time.Time{})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("take over operation %s: %w", op.ID, err)
	}
	q.cfg.Log.WarnContext(ctx, "an operation was interrupted", "operation", op.ID, "kind", op.Kind,
		"target", op.Target, "attempts", op.Attempts)
	return taken, nil
}

// crashes is how many attempts ended without a word.
func (op *Operation) crashes() int { return op.Attempts - op.Retries - op.Shutdowns }

// requeue gives a running operation back.
func requeue(op *Operation, notBefore time.Time) {
	op.State, op.LeaseOwner, op.LeaseExpires, op.NotBefore = Queued, "", time.Time{}, notBefore
}

// readKicked reads the rows that callers told of. It returns how long to wait
// before those are read again that could not be, 0 for none.
func (q *Queue) readKicked(ctx context.Context) time.Duration {
	q.mu.Lock()
	ids := q.kicked
	q.kicked = nil
	q.mu.Unlock()
	var again []string
	for _, id := range ids {
		op, err := q.cfg.Store.Operation(ctx, id)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			if ctx.Err() == nil {
				q.cfg.Log.ErrorContext(ctx, "an operation could not be read", "operation", id, "error", err)
			}
			again = append(again, id)
			continue
		}
		q.mu.Lock()
		q.add(op)
		q.mu.Unlock()
	}
	if len(again) == 0 {
		return 0
	}
	q.mu.Lock()
	q.kicked = append(again, q.kicked...)
	q.mu.Unlock()
	return rereadDelay
}

// dispatch starts all that may start: in order of creation, one per target,
// within the limits. What works already and waits for room among a kind counts
// by its age as well. It returns how long until a waiting one becomes due, 0
// when only a wake-up can change something.
func (q *Queue) dispatch(work context.Context, workers *sync.WaitGroup) (next time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	blocked := make(map[string]bool)
	keptFor := make(map[string]int) // by kind: room for those that lack only a worker
	var kept []*entry
	for _, e := range q.waiting {
		if e.abandon != nil { // at once, whatever runs
			work := fault.Within(work, "", e.kind)
			q.activate(e)
			workers.Go(func() {
				// Beside those that run, and so many at once as of these.
				q.givingUp <- struct{}{}
				defer func() { <-q.givingUp }()
				q.giveUp(work, e)
			})
			continue
		}
		due := e.notBefore.Sub(now)
		if due > q.longestWait() {
			due = 0 // the clock was set back since
		}
		if due > 0 && (next == 0 || due < next) {
			next = due
		}
		limit := q.handlers[e.kind].policy.Limit
		q.admit(e.kind, keptFor[e.kind], e)
		free := due <= 0 && (e.target == "" || (!blocked[e.target] && q.busy[e.target] == 0)) &&
			(limit == 0 || q.perKind[e.kind]+keptFor[e.kind] < limit)
		if free && q.running < q.cfg.Workers {
			q.begin(work, workers, e)
			continue
		}
		if free && limit > 0 {
			keptFor[e.kind]++
		}
		blocked[e.target] = true
		kept = append(kept, e)
	}
	q.waiting = kept
	for kind := range q.entering {
		q.admit(kind, keptFor[kind], nil)
	}
	return next
}

// begin has a worker run an operation. q.mu is held.
func (q *Queue) begin(work context.Context, workers *sync.WaitGroup, e *entry) {
	work = fault.Within(work, "", e.kind)
	ctx, cancel := context.WithCancelCause(work)
	w := &worker{queue: q, entry: e, done: ctx.Done(), cause: func() error { return context.Cause(ctx) }}
	handling := context.WithValue(ctx, workerKey{}, w)
	q.activate(e)
	e.cancel = cancel
	q.occupy(w)
	q.perKind[e.kind]++
	workers.Go(func() {
		q.execute(work, handling, e)
		cancel(nil)
		q.mu.Lock()
		w.ended = true
		q.release(w)
		q.perKind[e.kind]--
		q.mu.Unlock()
		q.wakeUp()
	})
}

// activate marks an entry as being worked on. q.mu is held.
func (q *Queue) activate(e *entry) { q.busy[e.target]++ }

// deactivate ends activate: the entry waits again until notBefore, or is
// forgotten.
func (q *Queue) deactivate(e *entry, again bool, notBefore time.Time) {
	q.mu.Lock()
	if q.busy[e.target]--; q.busy[e.target] == 0 {
		delete(q.busy, e.target)
	}
	cancelled := e.cancelled
	e.cancel, e.live, e.dirty, e.cancelled, e.finishing = nil, nil, false, false, false
	if again {
		e.notBefore = notBefore
		if cancelled && e.abandon == nil {
			e.abandon = cancelledProblem()
		}
		q.enqueue(e)
	} else {
		delete(q.entries, e.id)
	}
	q.mu.Unlock()
	q.wakeUp()
}
