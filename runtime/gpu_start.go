package runtime

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// prepareGPUs makes what the leases of an environment name and computes what
// its container needs for it, fresh: the driver, and the UUIDs of instances,
// may be others than at the last start. The environment has no process.
func (m *Manager) prepareGPUs(ctx context.Context, env *Environment) (*gpu.Edits, *GPURun, error) {
	if len(env.GPUs) == 0 {
		return nil, nil, nil
	}
	if m.cfg.GPUs == nil {
		return nil, nil, problem.New(problem.GPUUnavailable, "this node does not look for GPUs any more").
			WithHint("turn it on in the section gpu of the node's configuration, or change the environment to have none")
	}
	found, err := m.inventoryOf(ctx, gpusOf(env.GPUs))
	if err != nil {
		return nil, nil, err
	}
	runs, err := m.runs(ctx, env.ID)
	if err != nil {
		return nil, nil, err
	}
	// What the last holders shared it by is not left to whoever comes next: the
	// first of those who share it has it anew.
	without := env.ID
	if runs {
		without = ""
	}
	if err := m.settleSharing(ctx, env.GPUs, without); err != nil {
		return nil, nil, err
	}
	run := &GPURun{Driver: found.Driver}
	req := gpu.EditsRequest{}
	for i := range env.GPUs {
		l := &env.GPUs[i]
		device, there := (&gpu.Books{Devices: found.Devices}).Device(l.GPU)
		if !there {
			return nil, nil, problem.New(problem.GPUUnavailable, "GPU %s of environment %q is not there any more", l.GPU, env.Name).
				WithHint("see remotegpu gpu ls; start the environment again to get another")
		}
		target := gpu.Target{GPU: l.GPU, Share: shareOf(l)}
		if l.Mode == gpu.MIGMode {
			if target.MIG, err = m.ensureInstance(ctx, &device, l); err != nil {
				return nil, nil, err
			}
		}
		run.Targets = append(run.Targets, target)
		for _, c := range capabilities(&env.Spec, &device) {
			if !slices.Contains(req.Capabilities, c) {
				req.Capabilities = append(req.Capabilities, c)
			}
		}
	}
	if !runs {
		if err := m.awaitHandOver(ctx, env, run); err != nil {
			return nil, nil, err
		}
	}
	req.Targets = run.Targets
	edits, err := m.cfg.GPUs.Edits(ctx, req)
	if err != nil {
		return nil, nil, fmt.Errorf("find out what environment %s needs for its GPUs: %w", env.ID, asGPUUnavailable(err))
	}
	run.Warnings = append(edits.Warnings, cannotDraw(env, found.Devices)...)
	return &edits, run, nil
}

// cannotDraw says that the desktop of an environment draws by software though it
// has a GPU: instances draw with +gfx profiles alone.
func cannotDraw(env *Environment, devices []gpu.Device) []string {
	req := env.Spec.GPU
	if env.Spec.Desktop == nil || req == nil || req.Mode != gpu.MIGMode || len(req.Capabilities) > 0 || len(env.GPUs) == 0 {
		return nil
	}
	device, _ := (&gpu.Books{Devices: devices}).Device(env.GPUs[0].GPU)
	if profile, _ := device.Profile(env.GPUs[0].Profile); profile.Graphics {
		return nil
	}
	return []string{"its MIG instance (" + env.GPUs[0].Profile + ") cannot draw, so the desktop is drawn by software: " +
		"use a profile with +gfx or a whole GPU for graphics, or name the capabilities to leave them out knowingly"}
}

// memoryLimits are the limits that the driver holds leases to.
func memoryLimits(leases []gpu.Lease) []gpu.MemoryLimit {
	var limits []gpu.MemoryLimit
	for i := range leases {
		if l := &leases[i]; l.Enforcement == gpu.ByDriver {
			limits = append(limits, gpu.MemoryLimit{GPU: l.GPU, Bytes: l.MemoryBytes})
		}
	}
	return limits
}

// ensureInstance makes the MIG instance of a lease unless it is there, and
// returns its UUID.
func (m *Manager) ensureInstance(ctx context.Context, device *gpu.Device, l *gpu.Lease) (string, error) {
	if instance, there := device.InstanceOf(*l); there {
		return instance.UUID, nil
	}
	if !device.MIG.Enabled {
		off := problem.New(problem.GPUModeConflict, "MIG is off on GPU %s, of which the environment has an instance", device.UUID).
			WithHint("turn it on again: remotegpu gpu mig mode %s on", device.UUID)
		if why := m.partition.problem(device.UUID); why != "" {
			off.Message += ": " + why
		}
		return "", off
	}
	// What the environment had there before is in the way.
	if err := m.removePlanned(ctx, true, func(p *gpu.Planned) bool { return p.GPU == device.UUID && p.Placement.Overlaps(l.Placement) }); err != nil {
		return "", fmt.Errorf("remove what was at %d of GPU %s: %w", l.Placement.Start, device.UUID, err)
	}
	defer m.gpus.outdate()
	if err := fault.Before(ctx, "create MIG instance"); err != nil {
		return "", err
	}
	instance, err := m.cfg.GPUs.CreateMIG(ctx, device.UUID, l.Profile, l.Placement)
	if err != nil {
		return "", fmt.Errorf("make MIG instance %s at %d of GPU %s: %w", l.Profile, l.Placement.Start, device.UUID, asGPUUnavailable(err))
	}
	return instance.UUID, fault.After(ctx, "create MIG instance")
}

// runs says that a container has a process, as one has whose start was not
// recorded. While nobody can tell nothing is to be taken from it.
func (m *Manager) runs(ctx context.Context, id string) (bool, error) {
	status, err := m.cfg.Engine.Status(ctx, id)
	switch {
	case errdefs.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("find out whether environment %s has a process: %w", id, err)
	}
	return status.Running, nil
}

// startLeases brings the leases of an environment that is to be started to what
// its spec asks for: what it was given may have failed since.
func (m *Manager) startLeases(ctx context.Context, env *Environment) (*Environment, error) {
	if env.Spec.GPU == nil && len(env.GPUs) == 0 {
		return env, nil
	}
	if runs, err := m.runs(ctx, env.ID); err != nil || runs {
		return env, err
	}
	if err := m.mendPartitions(ctx, env); err != nil {
		return env, err
	}
	return m.changeLeases(ctx, env, env.Spec.GPU)
}

// mendPartitions has an environment of a partitioned GPU find that as it is to
// be: a host that has just booted may not have come this far. What could not be
// made the start itself tells.
func (m *Manager) mendPartitions(ctx context.Context, env *Environment) error {
	if env.Spec.GPU == nil || env.Spec.GPU.Mode != gpu.MIGMode {
		return nil
	}
	if err := m.removePlanned(ctx, true, func(p *gpu.Planned) bool { return p.EnvID == env.ID }); err != nil {
		m.leave(ctx, slog.LevelWarn, "a MIG instance is left that an environment has given back", "environment", env.ID, "error", err)
	}
	return m.remakePartitions(ctx)
}

// releaseIdle gives the GPUs of a stopped environment back where the node does
// so. What fails the reconciler tries again.
func (m *Manager) releaseIdle(ctx context.Context, env *Environment) error {
	if !m.cfg.GPU.ReleaseOnStop || env.Alive() || len(env.GPUs) == 0 || !env.RestartAt.IsZero() || env.StartedAt.IsZero() {
		return nil
	}
	_, err := m.changeLeases(ctx, env, nil)
	return err
}
