package helper

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// Watch implements gpu.Driver, in a process of its own.
func (c *Client) Watch(ctx context.Context, only []string, report func(gpu.Event)) error {
	for {
		process, err := c.watching.start(ctx, c.cfg)
		if err != nil {
			return err
		}
		err = follow(ctx, process, only, report)
		paused := c.watching.stop(process)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !paused {
			return err
		}
	}
}

// follow reports what a process says until it ends, or the context.
func follow(ctx context.Context, process *process, only []string, report func(gpu.Event)) error {
	if err := process.ask(question{ID: 1, Method: methodWatch, Only: only}); err != nil {
		process.kill() // so that it says why
		return brokenWatch(process.failure())
	}
	for {
		select {
		case a, ok := <-process.answers:
			switch {
			case !ok:
				return brokenWatch(process.failure())
			case a.Event != nil:
				report(*a.Event)
			default:
				return errors.Join(a.err(), brokenWatch(nil))
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func brokenWatch(cause error) error {
	return problem.New(problem.GPUUnavailable, "GPUs are not watched any more").WithCause(cause).
		WithHint("see the daemon's log and the host's kernel log (NVRM)")
}

// watching are the processes that watch. Nothing is started or ended while mu is
// held: both may take seconds.
type watching struct {
	stuck     *stuck
	mu        sync.Mutex
	closed    bool
	pauses    int
	resumed   chan struct{}     // closed when nothing pauses any more
	processes map[*process]bool // true: it was ended by a pause
}

// start waits while something pauses watches, and runs a process. Until it is
// asked it has no GPU open.
func (w *watching) start(ctx context.Context, cfg Config) (*process, error) {
	for {
		if err := w.wait(ctx); err != nil {
			return nil, err
		}
		if err := w.stuck.check(); err != nil {
			return nil, err
		}
		started, err := start(ctx, cfg)
		if err != nil {
			return nil, brokenWatch(err)
		}
		if w.add(started) {
			return started, nil
		}
		w.stuck.kill(started)
	}
}

// wait returns when nothing pauses watches.
func (w *watching) wait(ctx context.Context) error {
	for {
		w.mu.Lock()
		closed, paused, resumed := w.closed, w.pauses > 0, w.resumed
		w.mu.Unlock()
		if closed {
			return problem.New(problem.NodeStopping, "the daemon stops")
		}
		if !paused {
			return nil
		}
		select {
		case <-resumed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// add says whether the process may watch: nothing pauses watches.
func (w *watching) add(started *process) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.pauses > 0 {
		return false
	}
	if w.processes == nil {
		w.processes = map[*process]bool{}
	}
	w.processes[started] = false
	return true
}

// stop ends a process and says whether a pause had.
func (w *watching) stop(process *process) (paused bool) {
	w.stuck.kill(process)
	w.mu.Lock()
	defer w.mu.Unlock()
	paused = w.processes[process]
	delete(w.processes, process)
	return paused
}

// pause ends all watches until resume is called; then they go on.
func (w *watching) pause() (resume func()) {
	w.mu.Lock()
	if w.pauses == 0 {
		w.resumed = make(chan struct{})
	}
	w.pauses++
	running := slices.Collect(maps.Keys(w.processes))
	for _, process := range running {
		w.processes[process] = true
	}
	w.mu.Unlock()
	for _, process := range running {
		w.stuck.kill(process)
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.pauses--; w.pauses == 0 {
			close(w.resumed)
		}
	}
}

// close ends all watches for good.
func (w *watching) close() {
	w.mu.Lock()
	w.closed = true
	running := slices.Collect(maps.Keys(w.processes))
	w.mu.Unlock()
	for _, process := range running {
		w.stuck.kill(process)
	}
}
