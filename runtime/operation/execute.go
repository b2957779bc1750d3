package operation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	goruntime "runtime"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// Reasons for which a change of a row is not made.
var (
	errCancelRequested = errors.New("cancellation was requested")
	errNotQueued       = errors.New("operation is not queued")
	errWritten         = errors.New("it is written already")
)

// execute claims an operation, runs its handler and settles it.
func (q *Queue) execute(work, ctx context.Context, e *entry) {
	op, err := q.cfg.Store.UpdateOperation(context.WithoutCancel(ctx), e.id, q.claim(e))
	switch {
	case errors.Is(err, errCancelRequested):
		e.abandon = cancelledProblem()
		q.giveUp(work, e)
		return
	case errors.Is(err, errNotQueued), errdefs.IsNotFound(err):
		q.deactivate(e, false, time.Time{})
		return
	case err != nil:
		q.cfg.Log.ErrorContext(ctx, "an operation could not be claimed", "operation", e.id, "error", err)
		q.deactivate(e, true, time.Now().Add(rereadDelay))
		return
	}
	q.mu.Lock()
	q.enliven(e, op)
	q.publish(op)
	q.mu.Unlock()
	r := q.registered(e.kind)
	given := *op
	task := &Task{Op: &given, queue: q, entry: e, last: op.Retries >= r.policy.MaxRetries, done: ctx.Done()}
	err = q.call(ctx, r.handler, task)
	q.settle(work, ctx, e, r.policy, err)
}

func (q *Queue) claim(e *entry) func(*Operation) error {
	return func(op *Operation) error {
		// The answer to a claim may be lost though it was written: then the row
		// is ours, and nobody works on it but the caller.
		if ours := op.State == Running && op.LeaseOwner == q.cfg.Owner; op.State != Queued && (!ours || !e.claiming) {
			return errNotQueued
		} else if !ours {
			op.Attempts++
		}
		if op.CancelRequested {
			return errCancelRequested
		}
		e.claiming = true
		now := time.Now()
		op.State, op.StartedAt = Running, now
		op.LeaseOwner, op.LeaseExpires = q.cfg.Owner, now.Add(q.cfg.LeaseTTL)
		op.NotBefore, op.Problem, op.Progress = time.Time{}, nil, nil
		return nil
	}
}

// errPanic is what a handler's panic becomes.
var errPanic error = problem.New(problem.Internal, "the operation hit a bug of the daemon").
	WithHint("the daemon's log has the details; report them")

func (q *Queue) call(ctx context.Context, handler Handler, task *Task) (err error) {
	defer func() {
		if p := recover(); p != nil {
			stack := make([]byte, 16<<10)
			stack = stack[:goruntime.Stack(stack, false)]
			q.cfg.Log.ErrorContext(ctx, "a handler panicked", "operation", task.Op.ID, "kind", task.Op.Kind,
				"panic", fmt.Sprint(p), "stack", string(stack))
			err = errPanic
		}
	}()
	return handler(ctx, task)
}

// settle writes how an attempt ended and what comes next.
func (q *Queue) settle(work, ctx context.Context, e *entry, policy Policy, err error) {
	if errors.Is(context.Cause(ctx), ErrLeaseLost) {
		q.cfg.Log.WarnContext(ctx, "the lease of an operation was lost", "operation", e.id)
		q.deactivate(e, false, time.Time{})
		return
	}
	q.mu.Lock()
	live := *e.live
	q.mu.Unlock()
	switch {
	case err == nil:
		q.finish(work, e, Succeeded, nil)
	case shuttingDown(ctx) && !IsPermanent(err):
		e.shutdowns = live.Shutdowns + 1
		q.retry(work, e, time.Time{}, err)
	case transient(err) && live.Retries < policy.MaxRetries && ctx.Err() == nil:
		wait := q.backoff(live.Retries + 1)
		q.cfg.Log.WarnContext(ctx, "an operation will be tried again", "operation", e.id, "kind", e.kind,
			"attempts", live.Attempts, "wait", wait, "error", err)
		e.retries = live.Retries + 1
		q.retry(work, e, time.Now().Add(wait), err)
	case IsPermanent(err):
		q.finish(work, e, Failed, ProblemOf(err))
	default:
		if e.abandon = ProblemOf(err); errors.Is(context.Cause(ctx), ErrCancelled) {
			e.abandon = cancelledProblem() // whatever the call that was interrupted made of it
		}
		q.giveUp(work, e)
	}
}

// longestWait is the longest that an operation is ever made to wait.
func (q *Queue) longestWait() time.Duration {
	return max(rereadDelay, time.Duration(1.2*float64(max(q.cfg.RetryBase, q.cfg.RetryMax))))
}

// backoff is the wait after so many attempts, a fifth more or less by chance.
func (q *Queue) backoff(attempts int) time.Duration {
	wait := q.cfg.RetryBase
	for range attempts - 1 {
		if wait *= 2; wait >= q.cfg.RetryMax {
			wait = q.cfg.RetryMax
			break
		}
	}
	return time.Duration(float64(wait) * (0.8 + 0.4*rand.Float64())) //nolint:gosec // chance, not a secret
}

// retry queues a running operation again.
func (q *Queue) retry(work context.Context, e *entry, notBefore time.Time, cause error) {
	e.claiming = false
	written := 0 // tries; their answers may be lost
	var present Operation
	op, err := q.write(work, e, func(op *Operation) error {
		if present = *op; op.State == Queued && written > 0 {
			return errWritten
		}
		if op.State != Running || op.LeaseOwner != q.cfg.Owner {
			return ErrLeaseLost
		}
		written++
		op.Problem = ProblemOf(cause)
		op.Retries, op.Shutdowns = max(op.Retries, e.retries), max(op.Shutdowns, e.shutdowns)
		requeue(op, notBefore)
		return nil
	})
	if errors.Is(err, errWritten) {
		op, err = &present, nil
	}
	if err != nil { // it stays running; the next start takes it over
		q.deactivate(e, false, time.Time{})
		return
	}
	// A cancellation that came meanwhile is in the row.
	q.mu.Lock()
	e.cancelled = e.cancelled || op.CancelRequested
	q.publish(op)
	q.mu.Unlock()
	q.deactivate(e, true, op.NotBefore)
}

// giveUp has an operation undone that is not run again, and ends it. When the
// daemon stops first, the row stays pending and the next start does it.
func (q *Queue) giveUp(work context.Context, e *entry) {
	defer q.wakeUp()
	policy := q.registered(e.kind).policy
	why := e.abandon
	const tries = 5
	for try := 1; policy.Abandon != nil; try++ {
		err := q.abandonOnce(work, policy, e, why)
		if err == nil {
			break
		}
		if work.Err() != nil {
			q.deactivate(e, false, time.Time{})
			return
		}
		q.cfg.Log.ErrorContext(work, "an operation could not be undone", "operation", e.id, "kind", e.kind,
			"target", e.target, "try", try, "error", err)
		if try == tries {
			break // what is left is for the owner's reconciler
		}
		wait(work, q.backoff(try))
	}
	q.finish(work, e, Failed, why)
}

func (q *Queue) abandonOnce(work context.Context, policy Policy, e *entry, why *Problem) (err error) {
	if work.Err() != nil {
		return context.Cause(work)
	}
	op, err := q.cfg.Store.Operation(work, e.id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	op.Problem = why
	return q.call(work, func(ctx context.Context, _ *Task) error { return policy.Abandon(ctx, op) }, &Task{Op: op})
}

// finish ends an operation, as cancelled when that was asked for and it did
// not succeed.
func (q *Queue) finish(work context.Context, e *entry, state State, why *Problem) {
	q.mu.Lock()
	live := e.live
	e.finishing = true // whoever reads the row from now on may find that it is done
	q.mu.Unlock()
	var present Operation
	op, err := q.write(work, e, func(op *Operation) error {
		// Done is final, so whoever wrote it, this is what watchers are to
		// learn: most likely this very call, whose answer was lost.
		if present = *op; op.State.Done() {
			return errWritten
		}
		if op.State == Running && op.LeaseOwner != q.cfg.Owner {
			return ErrLeaseLost
		}
		op.State, op.Problem, op.FinishedAt = state, why, time.Now()
		if state != Succeeded && op.CancelRequested {
			op.State = Cancelled
			op.Problem = cancelledProblem()
		}
		op.LeaseOwner, op.LeaseExpires, op.NotBefore = "", time.Time{}, time.Time{}
		if live != nil {
			op.Progress, op.Result = live.Progress, maps.Clone(live.Result)
		}
		return nil
	})
	if errors.Is(err, errWritten) {
		op, err = &present, nil
	}
	if err == nil {
		if ended := q.registered(e.kind).policy.Ended; ended != nil {
			ended(context.WithoutCancel(work), op)
		}
		// A watch that begins after this word reads the row: what is held of the
		// work never says that it is done.
		q.mu.Lock()
		e.live = nil
		q.publish(op)
		q.mu.Unlock()
	}
	q.deactivate(e, false, time.Time{})
}

// write changes a row and does not give up while the daemon runs: an outcome
// must not be lost to a full disk. When it cannot, the row stays as it is and
// the next start takes it over.
func (q *Queue) write(work context.Context, e *entry, change func(*Operation) error) (*Operation, error) {
	for try := 1; ; try++ {
		op, err := q.cfg.Store.UpdateOperation(context.WithoutCancel(work), e.id, change)
		if err == nil || errors.Is(err, errWritten) || errors.Is(err, ErrLeaseLost) || errdefs.IsNotFound(err) {
			return op, err
		}
		q.cfg.Log.ErrorContext(work, "the outcome of an operation could not be written", "operation", e.id,
			"kind", e.kind, "try", try, "error", err)
		if !wait(work, q.backoff(try)) {
			return nil, err
		}
	}
}

// wait waits and says whether it waited to the end.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
