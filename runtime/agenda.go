package runtime

import (
	"context"
	"sync"
	"time"
)

// agendaRetry is the pause before something of an agenda is tried again.
const agendaRetry = time.Second

// agenda does things for environments when their time has come, from one
// goroutine. What is to be done, and when, is in the store; this is what is due
// next.
type agenda struct {
	wake chan struct{} // capacity 1
	// longest is how far ahead anything can be due. What lies further ahead is
	// due now: the clock was set back since it was planned. 0: any time.
	longest time.Duration

	mu  sync.Mutex
	due map[string]time.Time // by environment
}

func newAgenda(longest time.Duration) *agenda {
	return &agenda{wake: make(chan struct{}, 1), longest: longest, due: make(map[string]time.Time)}
}

// set says when something is due for an environment; zero: nothing is.
func (a *agenda) set(id string, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at.IsZero() {
		delete(a.due, id)
		return
	}
	if a.due[id].Equal(at) {
		return
	}
	a.due[id] = at
	select {
	case a.wake <- struct{}{}:
	default: // it is awake already
	}
}

// take returns the environments that have something due, and how long until
// more is.
func (a *agenda) take(now time.Time) (due []string, wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	wait = time.Hour
	for id, at := range a.due {
		if left := at.Sub(now); left > 0 && (a.longest == 0 || left <= a.longest) {
			wait = min(wait, left)
			continue
		}
		due = append(due, id)
		delete(a.due, id)
	}
	return due, wait
}

// again has an environment looked at once more.
func (a *agenda) again(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.due[id] = time.Now().Add(agendaRetry)
}

// run calls do for what is due until ctx ends, again after a moment where it
// fails, with failed told of it.
func (a *agenda) run(ctx context.Context, do func(ctx context.Context, id string) error, failed func(id string, err error)) {
	for ctx.Err() == nil {
		due, wait := a.take(time.Now())
		for _, id := range due {
			if err := do(ctx, id); err != nil && ctx.Err() == nil {
				failed(id, err)
				a.again(id)
			}
		}
		if len(due) > 0 {
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-a.wake:
		}
		timer.Stop()
	}
}
