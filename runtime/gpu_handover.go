package runtime

import (
	"context"
	"fmt"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// handOverPoll is the time between two looks at who is still on a GPU.
const handOverPoll = 500 * time.Millisecond

// awaitHandOver makes sure that nothing of others is left on GPUs, or instances,
// that an environment without a process is to have alone, or as the first of those
// who share them: GPU_IN_USE.
func (m *Manager) awaitHandOver(ctx context.Context, env *Environment, run *GPURun) error {
	claims, err := m.gpuClaims(ctx, env, run)
	if err != nil || len(claims) == 0 {
		return err
	}
	return m.untilFree(ctx, func() error {
		usage, err := m.cfg.GPUs.Usage(ctx)
		if err != nil {
			return fmt.Errorf("look for what is left on the GPUs of environment %s: %w", env.ID, asGPUUnavailable(err))
		}
		for i := range claims {
			if err := m.leftOn(ctx, env, &claims[i], usage); err != nil {
				return err
			}
		}
		return nil
	})
}

// untilFree tries again for a while what fails because a GPU is in use: what
// has ended takes a moment to go. Others have the worker meanwhile; who holds
// gpuGate may wait here, since whoever waits for that has no worker either.
func (m *Manager) untilFree(ctx context.Context, try func() error) error {
	limit := m.cfg.GPU.HandOver
	if limit == 0 {
		limit = DefaultHandOver
	}
	deadline := time.Now().Add(limit)
	again := func(err error) bool {
		return err != nil && problem.Of(err).Reason == problem.GPUInUse && time.Now().Add(handOverPoll).Before(deadline)
	}
	err := try()
	if !again(err) {
		return err
	}
	return operation.Idle(ctx, func() error {
		for again(err) {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(handOverPoll):
			}
			err = try()
		}
		return err
	})
}
