package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// leaveInstances removes the instances that were made for an environment's leases
// that have ended. What cannot be removed the next pass tries again: nobody waits
// for a driver that hangs, or a process on the host, to have done with an
// environment.
func (m *Manager) leaveInstances(ctx context.Context, envID string, ended []gpu.Lease) {
	if !slices.ContainsFunc(ended, func(l gpu.Lease) bool { return l.Mode == gpu.MIGMode && !l.Static }) {
		return
	}
	if err := m.removePlanned(ctx, func(p *gpu.Planned) bool { return p.EnvID == envID }); err != nil {
		m.cfg.Log.WarnContext(ctx, "a MIG instance is left that an environment has given back; the reconciler will try again", "environment", envID, "error", err)
	}
}

// removePlanned removes the instances, of which, that are planned to be removed.
// Nobody uses them: who had them has no process. An instance whose GPU has gone
// is gone.
func (m *Manager) removePlanned(ctx context.Context, which func(*gpu.Planned) bool) error {
	books, err := m.cfg.Store.GPUBooks(ctx)
	if err != nil {
		return err
	}
	planned := slices.DeleteFunc(books.Planned, func(p gpu.Planned) bool { return !p.Remove || !which(&p) })
	switch {
	case len(planned) == 0:
		return nil
	case m.cfg.GPUs == nil:
		return problem.New(problem.GPUUnavailable, "a MIG instance cannot be removed by a node that does not look for GPUs").
			WithHint("turn it on in the section gpu of the node's configuration")
	}
	found, err := m.GPUInventory(ctx, 0)
	if err != nil {
		return err
	}
	books.Devices = found.Devices
	defer m.gpus.outdate()
	var errs []error
	for i := range planned {
		errs = append(errs, m.removeOne(ctx, &books, &planned[i]))
	}
	return errors.Join(errs...)
}

// removeOne removes an instance and forgets that it is to go. One of a GPU that
// has failed goes with its reset.
func (m *Manager) removeOne(ctx context.Context, books *gpu.Books, p *gpu.Planned) error {
	device, _ := books.Device(p.GPU)
	if instance, there := p.Find(&device); there {
		err := m.removeInstance(ctx, instance.UUID)
		if err != nil && (device.Health.Failed() || books.Mark(p.GPU).Health.Unhealthy) {
			m.cfg.Log.WarnContext(ctx, "a MIG instance of a GPU that has failed stays until the GPU is reset", "gpu", p.GPU, "mig", instance.UUID, "error", err)
			err = nil
		}
		if err != nil {
			return err
		}
	}
	return m.cfg.Store.ForgetInstance(ctx, *p)
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
