package runtimetest

import (
	"context"
	"fmt"
	"maps"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// Pause freezes the pretended program.
func (e *FakeEngine) Pause(ctx context.Context, id string) error {
	return e.freeze(ctx, "Pause", id, true)
}

// Resume lets it go on.
func (e *FakeEngine) Resume(ctx context.Context, id string) error {
	return e.freeze(ctx, "Resume", id, false)
}

func (e *FakeEngine) freeze(ctx context.Context, method, id string, paused bool) error {
	return e.call(method, func() error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := e.answers(id); err != nil {
			return fmt.Errorf("freeze or thaw %s: %w", id, err)
		}
		return e.setPaused(id, paused)
	})
}

// Update changes limits. A pretended program that eats memory has as much in
// use as it was told to eat.
func (e *FakeEngine) Update(ctx context.Context, id string, r runtime.Resources) error {
	return e.call("Update", func() error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c := e.containers[id]
		if c == nil || !c.running() {
			return fmt.Errorf("update %s: %w", id, errdefs.ErrNotFound)
		}
		if r.MemoryBytes > 0 && c.eaten() > r.MemoryBytes {
			return problem.New(problem.LimitsRefused, "%d bytes of memory are in use", c.eaten()).
				WithField("spec.resources.memory_bytes").WithHint("ask for more")
		}
		to := &c.Resources
		to.CPUMillis, to.MemoryBytes, to.SwapBytes, to.Pids = r.CPUMillis, r.MemoryBytes, r.SwapBytes, r.Pids
		return nil
	})
}

// Relabel replaces the labels.
func (e *FakeEngine) Relabel(ctx context.Context, id string, labels map[string]string) error {
	return e.call("Relabel", func() error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c := e.containers[id]
		if c == nil {
			return fmt.Errorf("label %s: %w", id, errdefs.ErrNotFound)
		}
		c.Labels = maps.Clone(labels)
		return nil
	})
}

// SetPaused pauses or resumes a container as another program would.
func (e *FakeEngine) SetPaused(id string, paused bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.setPaused(id, paused)
}

func (e *FakeEngine) setPaused(id string, paused bool) error {
	c := e.containers[id]
	if c == nil || !c.running() {
		return fmt.Errorf("freeze or thaw %s: %w", id, errdefs.ErrNotFound)
	}
	if c.process.paused == paused {
		return nil
	}
	c.process.paused = paused
	kind := runtime.EventResumed
	if paused {
		kind = runtime.EventPaused
	}
	e.publish(runtime.Event{ID: id, Kind: kind})
	return nil
}
