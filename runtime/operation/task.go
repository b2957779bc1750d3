package operation

import (
	"maps"
	"slices"
)

// Task is one attempt at an operation, as its handler sees it. Its methods
// are safe for concurrent use.
type Task struct {
	// Op is the operation as this attempt began; Op.Attempts counts this one.
	Op *Operation

	queue *Queue
	entry *entry
	last  bool // no failure is tried again any more
	done  <-chan struct{}
}

// Retried says whether the queue will start the handler again when it returns
// err now: err is transient, and neither are the retries used up nor has
// somebody cancelled the operation. A handler that undoes and records its
// failures leaves that to the last attempt.
func (t *Task) Retried(err error) bool {
	select {
	case <-t.done:
		return false
	default:
		return transient(err) && !t.last
	}
}

// Progress says how far the work is. Watchers learn it at once; it is written
// down now and then.
func (t *Task) Progress(p Progress) {
	p.Log, p.Layers = slices.Clone(p.Log), slices.Clone(p.Layers)
	t.change(func(op *Operation) { op.Progress = &p })
}

// SetResult sets one value of the operation's result, which is written down
// with its end.
func (t *Task) SetResult(key, value string) {
	t.change(func(op *Operation) {
		op.Result = maps.Clone(op.Result)
		if op.Result == nil {
			op.Result = make(map[string]string)
		}
		op.Result[key] = value
	})
}

// change replaces the live form of the operation and tells watchers.
func (t *Task) change(change func(*Operation)) {
	q, e := t.queue, t.entry
	q.mu.Lock()
	defer q.mu.Unlock()
	// A goroutine that the handler left behind may still talk.
	if e.live == nil || e.live.Attempts != t.Op.Attempts {
		return
	}
	next := *e.live
	change(&next)
	e.live, e.dirty = &next, true
	q.publish(&next)
}
