package helper

import (
	"context"
	"errors"
	"sync"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// Watch implements gpu.Driver, in a process of its own.
func (c *Client) Watch(ctx context.Context, report func(gpu.Event)) error {
	for {
		process, err := c.watching.start(ctx, c.cfg)
		if err != nil {
			return err
		}
		err = follow(ctx, process, report)
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
func follow(ctx context.Context, process *process, report func(gpu.Event)) error {
	if err := process.ask(question{ID: 1, Method: methodWatch}); err != nil {
		process.kill()
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

// watching are the processes that watch.
type watching struct {
	mu        sync.Mutex
	closed    bool
	pauses    int
	resumed   chan struct{}     // closed when nothing pauses any more
	processes map[*process]bool // true: it was ended by a pause
}

// start waits while something pauses watches, and runs a process.
func (w *watching) start(ctx context.Context, cfg Config) (*process, error) {
	for {
		w.mu.Lock()
		if w.closed {
			w.mu.Unlock()
			return nil, problem.New(problem.NodeStopping, "the daemon stops")
		}
		if w.pauses == 0 {
			break
		}
		resumed := w.resumed
		w.mu.Unlock()
		select {
		case <-resumed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	defer w.mu.Unlock()
	if w.processes == nil {
		w.processes = map[*process]bool{}
	}
	started, err := start(ctx, cfg)
	if err != nil {
		return nil, brokenWatch(err)
	}
	w.processes[started] = false
	return started, nil
}

// stop ends a process and says whether a pause had.
func (w *watching) stop(process *process) (paused bool) {
	process.kill()
	w.mu.Lock()
	defer w.mu.Unlock()
	paused = w.processes[process]
	delete(w.processes, process)
	return paused
}

// pause ends all watches until resume is called; then they go on.
func (w *watching) pause() (resume func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pauses == 0 {
		w.resumed = make(chan struct{})
	}
	w.pauses++
	for process := range w.processes {
		w.processes[process] = true
		process.kill()
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
	defer w.mu.Unlock()
	w.closed = true
	for process := range w.processes {
		process.kill()
	}
}
