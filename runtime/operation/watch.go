package operation

import (
	"context"
	"errors"
	"fmt"
	"iter"
)

// watcher gets the newest form of an operation. A slow one misses forms in
// between, never the last.
type watcher struct {
	changed chan struct{} // capacity 1
	newest  *Operation    // guarded by Queue.mu
}

// publish gives watchers the newest form. q.mu is held.
func (q *Queue) publish(op *Operation) {
	for w := range q.watchers[op.ID] {
		w.newest = op
		select {
		case w.changed <- struct{}{}:
		default: // it has not taken the one before yet
		}
	}
}

// Get returns an operation with its progress as it is this moment, NotFound
// (OPERATION_NOT_FOUND).
func (q *Queue) Get(ctx context.Context, id string) (*Operation, error) {
	var held *Operation
	q.mu.Lock()
	if e := q.entries[id]; e != nil && e.live != nil {
		op := *e.live
		if !e.finishing {
			q.mu.Unlock()
			return &op, nil
		}
		held = &op
	}
	q.mu.Unlock()
	if held == nil {
		return q.cfg.Store.Operation(ctx, id)
	}
	if op, err := q.cfg.Store.Operation(ctx, id); err == nil && op.State.Done() {
		return op, nil
	}
	return held, nil // its outcome is not written yet
}

// Watch delivers an operation as it is, then as it is after each change, and
// ends after the form in which it is done. A receiver that is slower than the
// changes gets the newest form. It ends with an error when the operation is
// not there (OPERATION_NOT_FOUND) or ctx ends.
func (q *Queue) Watch(ctx context.Context, id string) iter.Seq2[*Operation, error] {
	return func(yield func(*Operation, error) bool) {
		w := &watcher{changed: make(chan struct{}, 1)}
		q.mu.Lock()
		if q.watchers[id] == nil {
			q.watchers[id] = make(map[*watcher]struct{})
		}
		q.watchers[id][w] = struct{}{}
		q.mu.Unlock()
		defer q.unwatch(id, w)
		// Watched first and read then, so that no change is missed.
		op, err := q.Get(ctx, id)
		if err != nil {
			yield(nil, err)
			return
		}
		for {
			if !yield(op, nil) || op.State.Done() {
				return
			}
			select {
			case <-w.changed:
			case <-ctx.Done():
				yield(nil, context.Cause(ctx))
				return
			}
			q.mu.Lock()
			newest := *w.newest
			q.mu.Unlock()
			if newest.Revision < op.Revision {
				continue // published before the first read
			}
			op = &newest
		}
	}
}

func (q *Queue) unwatch(id string, w *watcher) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.watchers[id], w)
	if len(q.watchers[id]) == 0 {
		delete(q.watchers, id)
	}
}

// Wait waits until an operation is done and returns it.
func (q *Queue) Wait(ctx context.Context, id string) (*Operation, error) {
	for op, err := range q.Watch(ctx, id) {
		if err != nil {
			return nil, fmt.Errorf("wait for operation %s: %w", id, err)
		}
		if op.State.Done() {
			return op, nil
		}
	}
	return nil, fmt.Errorf("wait for operation %s: %w", id, errors.ErrUnsupported) // Watch ends with one of the above
}

// errNothing ends a change that has nothing to do.
var errNothing = errors.New("nothing to change")

// Cancel asks an operation to stop and returns it as it is then; Wait tells
// when what it took is given back. One that waits does not run any more; the
// context of one that runs ends with ErrCancelled. Cancelling what is done
// changes nothing. NotFound (OPERATION_NOT_FOUND).
func (q *Queue) Cancel(ctx context.Context, id string) (*Operation, error) {
	var present Operation
	op, err := q.cfg.Store.UpdateOperation(ctx, id, func(op *Operation) error {
		present = *op
		if op.State.Done() || op.CancelRequested {
			return errNothing
		}
		op.CancelRequested = true
		return nil
	})
	if errors.Is(err, errNothing) {
		op, err = &present, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cancel operation %s: %w", id, err)
	}
	if op.State.Done() {
		return op, nil
	}
	q.mu.Lock()
	e := q.entries[id]
	if e == nil { // its row was not read yet
		q.kicked = append(q.kicked, id)
	} else {
		q.cancelEntry(e, op)
	}
	if e == nil || e.live == nil {
		q.publish(op)
	}
	q.mu.Unlock()
	q.wakeUp()
	return op, nil
}
