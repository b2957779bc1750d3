package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// handOverPoll is the time between two looks at who is still on a GPU.
const handOverPoll = 500 * time.Millisecond

// awaitHandOver makes sure that nothing of others is left on GPUs, or instances,
// that an environment is to have alone, or the first share of: GPU_IN_USE.
func (m *Manager) awaitHandOver(ctx context.Context, env *Environment, run *GPURun) error {
	if len(env.GPUs) == 0 {
		return nil
	}
	if runs, err := m.runs(ctx, env.ID); err != nil || runs {
		return err
	}
	books, err := m.cfg.Store.GPUBooks(ctx)
	if err != nil {
		return err
	}
	clean := slices.DeleteFunc(slices.Clone(env.GPUs), func(l gpu.Lease) bool { return !sole(l) && !firstShare(&books, &l) })
	if len(clean) == 0 {
		return nil
	}
	return m.untilFree(ctx, func() error {
		usage, err := m.cfg.GPUs.Usage(ctx)
		if err != nil {
			return fmt.Errorf("look for what is left on the GPUs of environment %s: %w", env.ID, asGPUUnavailable(err))
		}
		for i := range clean {
			if err := m.leftOn(env, &clean[i], run, usage); err != nil {
				return err
			}
		}
		return nil
	})
}

// sole says that a lease is of what nobody else uses.
func sole(l gpu.Lease) bool { return l.Mode == gpu.Exclusive || l.Mode == gpu.MIGMode }

// firstShare says that nobody else has a share of the GPU, so that whatever uses
// it is of no environment. The server of MPS is, and may outlive its last user.
func firstShare(books *gpu.Books, l *gpu.Lease) bool {
	return l.Mode == gpu.VGPU && l.Enforcement != gpu.ByMPS &&
		!slices.ContainsFunc(books.Leases(l.GPU), func(other gpu.Lease) bool { return other.EnvID != l.EnvID })
}

// untilFree tries again for a while what fails because a GPU is in use: what
// has ended takes a moment to go.
func (m *Manager) untilFree(ctx context.Context, try func() error) error {
	limit := m.cfg.GPU.HandOver
	if limit == 0 {
		limit = DefaultHandOver
	}
	for deadline := time.Now().Add(limit); ; {
		err := try()
		if err == nil || problem.Of(err).Reason != problem.GPUInUse || !time.Now().Add(handOverPoll).Before(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(handOverPoll):
		}
	}
}

// leftOn is what is left on what a lease is of; nil when it is clean. What was
// not measured is not.
func (m *Manager) leftOn(env *Environment, l *gpu.Lease, run *GPURun, usage []gpu.Usage) error {
	tolerated := m.cfg.GPU.Leftover
	if tolerated == 0 {
		tolerated = DefaultLeftover
	}
	at := slices.IndexFunc(usage, func(u gpu.Usage) bool { return u.UUID == l.GPU })
	if at < 0 {
		return problem.New(problem.GPUUnavailable, "the driver does not tell what is left on GPU %s", l.GPU).
			WithHint("see whether nvidia-smi works on the host, and remotegpu gpu get %s", l.GPU)
	}
	u := &usage[at]
	what, mig := "GPU "+u.UUID, run.instance(u.UUID)
	if mig != "" {
		what = "MIG instance " + mig
	}
	var pids []string
	for _, p := range u.Processes {
		if p.MIG == mig {
			pids = append(pids, fmt.Sprintf("%d (%d MiB)", p.PID, p.MemoryBytes>>20))
		}
	}
	if len(pids) > 0 {
		share := "which it is to have alone"
		if !sole(*l) {
			share = "a share of which it is to have"
		}
		return problem.New(problem.GPUInUse, "processes that are not of environment %q use %s, %s: %s",
			env.Name, what, share, strings.Join(pids, ", ")).WithHint("end them, or use the mode shared")
	}
	if mig == "" && u.MemoryUsed > tolerated {
		return problem.New(problem.GPUInUse, "%d MiB of the memory of GPU %s are in use though no process is there", u.MemoryUsed>>20, u.UUID).
			WithHint("stop remotegpud, which watches it, and reset it (nvidia-smi -r -i %s), or raise gpu.leftover in the node's configuration", u.UUID)
	}
	return nil
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
