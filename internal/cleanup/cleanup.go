// Package cleanup is the one way to unwind: a stack of undo steps that run in
// reverse order, all of them, under a context that outlives the cancelled one.
package cleanup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Timeout is how long a whole unwind may take.
const Timeout = 2 * time.Minute

// Stack is a stack of undo steps. Its zero value is ready. It is safe for
// concurrent use, so that steps taken side by side can each add theirs.
type Stack struct {
	mu    sync.Mutex
	steps []step
}

type step struct {
	name string
	undo func(context.Context) error
}

// Add pushes an undo step. The name says what it gives back.
func (s *Stack) Add(name string, undo func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, step{name, undo})
}

// Unwind runs the steps in reverse order, every one even when others fail,
// and joins their errors. ctx's cancellation does not stop it; Timeout does.
// The stack is empty afterwards.
func (s *Stack) Unwind(ctx context.Context) error {
	s.mu.Lock()
	steps := s.steps
	s.steps = nil
	s.mu.Unlock()
	ctx, cancel := Context(ctx)
	defer cancel()
	var errs []error
	for _, step := range slices.Backward(steps) {
		if err := step.undo(ctx); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", step.name, err))
		}
	}
	return errors.Join(errs...)
}

// Context returns a context with ctx's values that is not cancelled with it
// but ends after Timeout.
func Context(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), Timeout)
}
