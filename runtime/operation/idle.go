package operation

import (
	"context"
	"slices"
)

// Idle calls wait while the operation whose handler ctx belongs to has given
// its worker back to others, and returns what wait returns once it has one
// again; those who come back are served before any operation begins. In
// between it is still the one operation of its target, keeps its lease and can
// be cancelled. When ctx ends it goes on without waiting for a worker, so that
// what wait brought about is not lost and a shutdown is not held up. Outside
// of a handler it only calls wait. wait holds nothing that a handler may wait
// for while it has a worker.
func Idle(ctx context.Context, wait func() error) error {
	w, ok := ctx.Value(workerKey{}).(*worker)
	if !ok {
		return wait()
	}
	w.giveBack(nil)
	defer w.takeBack(ctx)
	return wait()
}

// IdleAs is Idle for a wait that counts as an operation of another kind, under
// its Policy.Limit: wait is called when there is room, in order of age among
// the operations of that kind. When ctx ends before, it is not called, and the
// cause returned.
func IdleAs(ctx context.Context, kind string, wait func() error) error {
	w, ok := ctx.Value(workerKey{}).(*worker)
	if !ok {
		return wait()
	}
	t := &turn{worker: w, given: make(chan struct{})}
	w.giveBack(func() { w.queue.line(kind, t) }) // at once, so that no younger one comes between
	defer w.takeBack(ctx)
	if err := w.enter(ctx, kind, t); err != nil {
		return err
	}
	defer w.queue.leave(kind) // before it waits for a worker: nothing is held meanwhile
	return wait()
}

// workerKey is the key of a handler's worker in its context.
type workerKey struct{}

// worker is the worker of one attempt, which its handler gives back and takes
// again. Its fields are guarded by Queue.mu, but for those that never change.
type worker struct {
	queue *Queue
	entry *entry
	done  <-chan struct{} // closed when the handler's context has ended
	cause func() error    // why it has

	idle  int  // calls of Idle that are under way: one may be within another
	held  bool // it counts as running
	ended bool // the attempt is over
}

// turn is one that waits for its turn.
type turn struct {
	worker *worker
	given  chan struct{} // closed, under Queue.mu, when it is its turn
}

func (t *turn) isGiven() bool {
	select {
	case <-t.given:
		return true
	default:
		return false
	}
}

// giveBack lets others have the worker. also, unless nil, is called with q.mu
// held.
func (w *worker) giveBack(also func()) {
	q := w.queue
	q.mu.Lock()
	w.idle++
	q.release(w)
	if also != nil {
		also()
	}
	q.mu.Unlock()
	q.wakeUp()
}

// takeBack waits for a worker, unless ctx or the attempt ends.
func (w *worker) takeBack(ctx context.Context) {
	q := w.queue
	q.mu.Lock()
	if w.idle--; w.idle > 0 {
		q.mu.Unlock()
		return
	}
	if q.running < q.cfg.Workers {
		q.occupy(w)
		q.mu.Unlock()
		return
	}
	t := &turn{worker: w, given: make(chan struct{})}
	q.returning = append(q.returning, t)
	q.mu.Unlock()
	select {
	case <-t.given:
		return
	case <-ctx.Done():
	case <-w.done:
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if !t.isGiven() {
		q.returning = without(q.returning, t)
		q.occupy(w) // one more than there are, until one of them ends
	}
}

// line has t wait for room among the operations of a kind, which dispatch
// gives: it knows who else waits. q.mu is held.
func (q *Queue) line(kind string, t *turn) {
	at, _ := slices.BinarySearchFunc(q.entering[kind], t, func(a, b *turn) int { return byAge(a.worker.entry, b.worker.entry) })
	q.entering[kind] = slices.Insert(q.entering[kind], at, t)
}

// enter waits until there is room for t, which leave gives back. When ctx or
// the attempt ends before, it returns the cause, and there is nothing to leave.
func (w *worker) enter(ctx context.Context, kind string, t *turn) (err error) {
	q := w.queue
	select {
	case <-t.given:
		return nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-w.done:
		err = w.cause()
	}
	q.mu.Lock()
	given := t.isGiven()
	if !given {
		q.entering[kind] = without(q.entering[kind], t)
	}
	q.mu.Unlock()
	if given {
		q.leave(kind)
	}
	return err
}

// leave gives back the room that one had among the operations of a kind.
func (q *Queue) leave(kind string) {
	q.mu.Lock()
	q.perKind[kind]--
	q.mu.Unlock()
	q.wakeUp()
}

// occupy counts a worker as held, unless it is a goroutine that wants it which
// the handler left behind. q.mu is held.
func (q *Queue) occupy(w *worker) {
	if w.ended {
		return
	}
	w.held = true
	q.running++
}

// release ends occupy and gives the worker to those who come back. It does so
// itself, not dispatch, since those who come back while the daemon stops need
// one as well. q.mu is held.
func (q *Queue) release(w *worker) {
	if !w.held {
		return
	}
	w.held = false
	q.running--
	for len(q.returning) > 0 && q.running < q.cfg.Workers {
		t := q.returning[0]
		q.returning = q.returning[1:]
		q.occupy(t.worker)
		close(t.given)
	}
}

// admit lets in those who wait for room among the operations of a kind: as
// many as there is room for beside what is kept for older ones, and only those
// older than before, when that is given. q.mu is held.
func (q *Queue) admit(kind string, kept int, before *entry) {
	limit := q.handlers[kind].policy.Limit
	for len(q.entering[kind]) > 0 && (limit == 0 || q.perKind[kind]+kept < limit) {
		t := q.entering[kind][0]
		if before != nil && byAge(before, t.worker.entry) < 0 {
			return
		}
		q.entering[kind] = q.entering[kind][1:]
		q.perKind[kind]++
		close(t.given)
	}
	if len(q.entering[kind]) == 0 {
		delete(q.entering, kind)
	}
}

// without returns turns without t.
func without(turns []*turn, t *turn) []*turn {
	return slices.DeleteFunc(turns, func(other *turn) bool { return other == t })
}
