package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// leaveInstances removes the instances that were made for an environment's leases
// that have ended. What cannot be removed the next pass tries again: nobody waits
// for a driver that hangs, or a process on the host, to have done with an
// environment.
func (m *Manager) leaveInstances(ctx context.Context, envID string, ended []gpu.Lease) {
	if !slices.ContainsFunc(ended, func(l gpu.Lease) bool { return l.Mode == gpu.MIGMode && !l.Static }) {
		return
	}
	if err := m.removePlanned(ctx, true, func(p *gpu.Planned) bool { return p.EnvID == envID }); err != nil {
		m.leave(ctx, slog.LevelWarn, "a MIG instance is left that an environment has given back", "environment", envID, "error", err)
	}
}

// removePlanned removes the instances, of which, that are planned to be removed.
// Nobody uses them: who had them has no process, and patient waits until that has
// left the GPU. An instance whose GPU has gone is gone.
func (m *Manager) removePlanned(ctx context.Context, patient bool, which func(*gpu.Planned) bool) error {
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
	defer m.gpus.outdate()
	var errs []error
	for i := range planned {
		try := func() error { return m.tryRemove(ctx, &planned[i]) }
		if patient {
			errs = append(errs, m.untilFree(ctx, try))
		} else {
			errs = append(errs, try())
		}
	}
	return errors.Join(errs...)
}

// tryRemove removes an instance and forgets that it is to go, if it still is:
// meanwhile it may have gone, and another have its place. So nobody is given GPUs
// while it looks. One of a GPU that has failed stays until that is reset, and one
// of a container that the database does not know with it until that has gone.
func (m *Manager) tryRemove(ctx context.Context, p *gpu.Planned) error {
	var done func()
	if err := operation.Idle(ctx, func() (err error) { done, err = m.gpuGate.Lock(ctx, struct{}{}); return err }); err != nil {
		return fmt.Errorf("wait for who is given GPUs: %w", err)
	}
	defer done()
	books, err := m.cfg.Store.GPUBooks(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(books.Planned, func(now gpu.Planned) bool { return now.Remove && now.Same(p) }) {
		return nil
	}
	strange, err := m.strangeLeases(ctx)
	if err != nil {
		return err
	}
	for i := range strange {
		if l := &strange[i]; l.Mode == gpu.MIGMode && l.GPU == p.GPU && l.Placement.Overlaps(p.Placement) {
			m.cfg.Log.WarnContext(ctx, "a MIG instance that is to be removed stays while a container has it that the database does not know with it",
				"gpu", p.GPU, "start", p.Placement.Start, "container", l.EnvID)
			return nil
		}
	}
	found, err := m.GPUInventory(ctx, 0)
	if err != nil {
		return err
	}
	books.Devices = found.Devices
	device, _ := books.Device(p.GPU)
	if device.Health.Unsure { // which instances it has is not known
		return problem.New(problem.GPUUnavailable, "GPU %s cannot be asked for its instances: %s", p.GPU, device.Health.Reason).
			WithHint("see whether nvidia-smi works on the host")
	}
	if instance, there := p.Find(&device); there {
		err := m.removeInstance(ctx, instance.UUID)
		if err != nil && (device.Health.Failed() || books.Mark(p.GPU).Health.Unhealthy) {
			m.cfg.Log.WarnContext(ctx, "a MIG instance of a GPU that has failed stays until the GPU is reset", "gpu", p.GPU, "mig", instance.UUID, "error", err)
			return nil
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
	if err := m.cfg.GPUs.DestroyMIG(ctx, uuid); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove MIG instance %s: %w", uuid, asGPUUnavailable(err))
	}
	return fault.After(ctx, "destroy MIG instance")
}
