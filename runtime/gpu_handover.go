package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/fault"
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

// removeInstances removes the MIG instances that were made for leases. Nobody
// uses them: their environments have no process. An instance whose GPU has gone
// is gone, and one of a GPU that has failed goes with its reset.
func (m *Manager) removeInstances(ctx context.Context, leases []gpu.Lease) error {
	made := slices.DeleteFunc(slices.Clone(leases), func(l gpu.Lease) bool { return l.Mode != gpu.MIGMode || l.Static })
	switch {
	case len(made) == 0:
		return nil
	case m.cfg.GPUs == nil:
		return problem.New(problem.GPUUnavailable, "a MIG instance cannot be removed by a node that does not look for GPUs").
			WithHint("turn it on in the section gpu of the node's configuration")
	}
	books, _, err := m.books(ctx, 0)
	if err != nil {
		return err
	}
	defer m.gpus.outdate()
	var errs []error
	for _, l := range made {
		device, _ := books.Device(l.GPU)
		instance, there := device.InstanceOf(l)
		if !there {
			continue
		}
		err := m.removeInstance(ctx, instance.UUID)
		if err != nil && (device.Health.Failed() || books.Mark(l.GPU).Health.Unhealthy) {
			m.cfg.Log.WarnContext(ctx, "a MIG instance of a GPU that has failed stays until the GPU is reset", "gpu", l.GPU, "mig", instance.UUID, "error", err)
			continue
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// endInstances removes the instances that were made for an environment that is
// gone, and ends its leases, which keep their places until then.
func (m *Manager) endInstances(ctx context.Context, envID string) error {
	books, err := m.cfg.Store.GPUBooks(ctx)
	if err != nil {
		return err
	}
	left := slices.DeleteFunc(books.Held, func(l gpu.Lease) bool { return l.EnvID != envID })
	if len(left) == 0 {
		return nil
	}
	if err := m.removeInstances(ctx, left); err != nil {
		return err
	}
	return m.cfg.Store.EndGPULeases(ctx, envID)
}

// endAbandoned ends what environments that are gone have left of GPUs. What
// cannot be removed is tried again by the next pass.
func (m *Manager) endAbandoned(ctx context.Context) error {
	books, err := m.cfg.Store.GPUBooks(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for i := range books.Held {
		id := books.Held[i].EnvID
		fate, err := m.cfg.Store.Fate(ctx, id)
		if err == nil && fate != FateHeld {
			err = m.endInstances(ctx, id)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (m *Manager) removeInstance(ctx context.Context, uuid string) error {
	if err := fault.Before(ctx, "destroy MIG instance"); err != nil {
		return err
	}
	err := m.untilFree(ctx, func() error { return m.cfg.GPUs.DestroyMIG(ctx, uuid) })
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove MIG instance %s: %w", uuid, asGPUUnavailable(err))
	}
	return fault.After(ctx, "destroy MIG instance")
}
