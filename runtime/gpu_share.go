package runtime

import (
	"context"
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
	if err := m.cfg.GPU.Sharing.Keep(ctx, func(ctx context.Context, uuid string) (bool, error) {
		envs, _, err := m.cfg.Store.Environments(ctx, Filter{})
		if err != nil {
			return false, err
		}
		return slices.ContainsFunc(envs, func(env *Environment) bool {
			return (env.Alive() || env.Operation != "") && slices.ContainsFunc(env.GPUs, func(l gpu.Lease) bool {
				return l.GPU == uuid && shareOf(&l).Enforcement != ""
			})
		}), nil
	}); err != nil {
		return fmt.Errorf("tend what GPUs are shared by: %w", err)
	}
	return nil
}
