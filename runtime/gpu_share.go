package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/remotegpu/remotegpu/gpu"
)

// Sharing runs what holds environments to their shares of GPUs while they have a
// process; *mps.Daemons does. It is begun by the edits of a start.
type Sharing interface {
	// Keep ends what runs for GPUs that are not needed, and mends what runs for
	// the others. needed is asked while no start begins for that GPU.
	Keep(ctx context.Context, needed func(ctx context.Context, gpuUUID string) (bool, error)) error
	// Settle does as Keep for one GPU.
	Settle(ctx context.Context, gpuUUID string, needed func(ctx context.Context, gpuUUID string) (bool, error)) error
}

// shareOf is the share that a lease gives; nothing for a whole GPU or an
// instance.
func shareOf(l *gpu.Lease) gpu.Share {
	switch l.Mode {
	case gpu.VGPU:
		return gpu.Share{Enforcement: l.Enforcement, MemoryBytes: l.MemoryBytes, ComputePercent: l.ComputePercent}
	case gpu.Shared: // without a quota
		return gpu.Share{Enforcement: gpu.ByNone}
	case gpu.Exclusive, gpu.MIGMode:
	}
	return gpu.Share{}
}

// keepSharing ends what the last holder of a GPU's share has left behind. One
// that an operation works on may be about to start: that is written down before
// anything begins.
func (m *Manager) keepSharing(ctx context.Context) error {
	if m.cfg.GPU.Sharing == nil {
		return nil
	}
	if err := m.cfg.GPU.Sharing.Keep(ctx, m.sharingNeeded); err != nil {
		return fmt.Errorf("tend what GPUs are shared by: %w", err)
	}
	return nil
}

// settleSharing does as keepSharing for the GPUs of leases. Who is given one
// next must not find it closed to all but clients of a daemon.
func (m *Manager) settleSharing(ctx context.Context, leases []gpu.Lease) error {
	if m.cfg.GPU.Sharing == nil {
		return nil
	}
	var errs []error
	for i := range leases {
		if err := m.cfg.GPU.Sharing.Settle(ctx, leases[i].GPU, m.sharingNeeded); err != nil {
			errs = append(errs, fmt.Errorf("end what GPU %s was shared by: %w", leases[i].GPU, err))
		}
	}
	return errors.Join(errs...)
}

// leaveSharing settles it for GPUs that an environment has done with. What fails
// the reconciler, or the next who is given one, tries again.
func (m *Manager) leaveSharing(ctx context.Context, id string, leases []gpu.Lease) {
	if err := m.settleSharing(ctx, leases); err != nil {
		m.cfg.Log.WarnContext(ctx, "what an environment shared GPUs by is still there", "environment", id, "error", err)
	}
}

// sharingNeeded says whether somebody who shares a GPU has a process, or may be
// about to.
func (m *Manager) sharingNeeded(ctx context.Context, uuid string) (bool, error) {
	envs, _, err := m.cfg.Store.Environments(ctx, Filter{})
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(envs, func(env *Environment) bool {
		return (env.Alive() || env.Operation != "") && slices.ContainsFunc(env.GPUs, func(l gpu.Lease) bool {
			return l.GPU == uuid && shareOf(&l).Enforcement != ""
		})
	}), nil
}
