package operation

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/tick"
)

// keepLeases renews the leases of running operations and writes their
// progress, until ctx ends. While none runs it sleeps.
func (q *Queue) keepLeases(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.begun:
		}
		q.keepRunning(ctx)
	}
}

// keepRunning does so until none runs.
func (q *Queue) keepRunning(ctx context.Context) {
	ticker := time.NewTicker(min(q.cfg.ProgressInterval, q.cfg.LeaseTTL/3))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		due, running := q.due()
		if !running {
			return // who begins from now on says so
		}
		for _, e := range due {
			q.renew(ctx, e)
		}
	}
}

// due returns the running entries whose row is to be written, and whether any
// runs.
func (q *Queue) due() (found []*entry, running bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, e := range q.entries {
		if e.live == nil {
			continue
		}
		running = true
		age := time.Since(e.written)
		if (e.dirty && age >= q.cfg.ProgressInterval) || age >= q.cfg.LeaseTTL/3 {
			found = append(found, e)
		}
	}
	return found, running
}

func (q *Queue) renew(ctx context.Context, e *entry) {
	q.mu.Lock()
	live := e.live
	e.dirty, e.written = false, time.Now()
	q.mu.Unlock()
	if live == nil {
		return
	}
	op, err := q.cfg.Store.UpdateOperation(ctx, e.id, func(op *Operation) error {
		if op.State != Running || op.LeaseOwner != q.cfg.Owner {
			return ErrLeaseLost
		}
		op.LeaseExpires = time.Now().Add(q.cfg.LeaseTTL)
		op.Progress, op.Result = live.Progress, live.Result
		return nil
	})
	q.mu.Lock()
	defer q.mu.Unlock()
	if e.live == nil || e.live.Attempts != live.Attempts {
		return // it ended meanwhile
	}
	switch {
	case errors.Is(err, ErrLeaseLost):
		// The end of the operation may be written and not yet known here; then
		// its handler has returned and nobody listens.
		e.cancel(ErrLeaseLost)
	case err != nil:
		e.dirty = true
		if ctx.Err() == nil {
			q.cfg.Log.WarnContext(ctx, "a lease could not be renewed", "operation", e.id, "error", err)
		}
	case op.Revision > e.live.Revision:
		next := *op
		next.Progress, next.Result = e.live.Progress, e.live.Result
		e.live = &next
		q.publish(&next)
	}
}

// keepStore looks for rows that nobody told of and forgets old ones, until ctx
// ends.
func (q *Queue) keepStore(ctx context.Context) {
	q.purge(ctx)
	purged := time.Now()
	for tick.Wait(ctx, scanInterval) {
		q.scan(ctx)
		if time.Since(purged) >= purgeInterval {
			q.purge(ctx)
			purged = time.Now()
		}
	}
}

func (q *Queue) scan(ctx context.Context) {
	pending, err := q.cfg.Store.Pending(ctx)
	if err != nil {
		if ctx.Err() == nil {
			q.cfg.Log.WarnContext(ctx, "pending operations could not be listed", "error", err)
		}
		return
	}
	for _, op := range pending {
		if op = q.takeOverExpired(ctx, op); op == nil {
			continue
		}
		q.mu.Lock()
		q.add(op)
		q.mu.Unlock()
	}
	q.wakeUp()
}

// takeOverExpired queues an operation again that nobody renews the lease of,
// and returns any operation as it is then; nil when that could not be read.
func (q *Queue) takeOverExpired(ctx context.Context, op *Operation) *Operation {
	q.mu.Lock()
	_, known := q.entries[op.ID]
	q.mu.Unlock()
	expired := func(op *Operation) bool { return op.State == Running && op.LeaseExpires.Before(time.Now()) }
	if known || !expired(op) {
		return op
	}
	taken, err := q.takeOverOne(ctx, op, expired)
	switch {
	case errors.Is(err, errNotQueued), errdefs.IsNotFound(err):
		return nil // somebody renewed or ended it
	case err != nil:
		q.cfg.Log.WarnContext(ctx, "an operation whose lease has expired could not be taken over", "operation", op.ID, "error", err)
		return nil
	}
	q.mu.Lock()
	q.addTakenOver(taken)
	q.mu.Unlock()
	return taken
}

func (q *Queue) purge(ctx context.Context) {
	purged, err := q.cfg.Store.PurgeOperations(ctx, time.Now().Add(-q.cfg.Retention))
	if err != nil && ctx.Err() == nil {
		q.cfg.Log.WarnContext(ctx, "old operations could not be forgotten", "error", err)
	}
	if purged > 0 {
		q.cfg.Log.InfoContext(ctx, "old operations were forgotten", "count", purged)
	}
}
