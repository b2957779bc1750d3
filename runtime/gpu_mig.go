package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/cleanup"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// alter has change alter how a GPU is partitioned, while nobody is given any.
func (m *Manager) alter(ctx context.Context, name string, change func(g *GPU, books *gpu.Books) error) (GPU, error) {
	done, err := m.gpuGate.Lock(ctx, struct{}{})
	if err != nil {
		return GPU{}, fmt.Errorf("wait for who is given GPUs: %w", err)
	}
	defer done()
	m.gpus.outdate()
	if _, err := m.GPUInventory(ctx, freshInventory); err != nil {
		return GPU{}, err
	}
	g, err := m.GPU(ctx, name, true)
	if err != nil {
		return g, err
	}
	if !g.MIG.Capable {
		return g, problem.New(problem.GPUModeConflict, "GPU %s (%s) cannot be partitioned", g.UUID, g.Model).WithField("gpu").
			WithHint("use the mode shared or vgpu")
	}
	books, _, err := m.books(ctx, freshInventory)
	if err != nil {
		return g, err
	}
	err = change(&g, &books)
	m.gpus.outdate()
	if err != nil {
		return g, err
	}
	return m.GPU(ctx, g.UUID, false)
}

// journal has write note what is to be done and do do it. When that is refused
// undo takes back what was written down. A daemon that dies in between finishes it
// with its next pass, and so is finished what may have been done for all that is
// known: the driver goes on when nobody waits for it any more.
func journal(ctx context.Context, write, do, undo func(context.Context) error) error {
	if err := write(ctx); err != nil {
		return err
	}
	err := do(ctx)
	if err == nil || ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	ctx, cancel := cleanup.Context(ctx)
	defer cancel()
	return errors.Join(err, undo(ctx))
}

// CreateMIG makes an instance on a partitioned GPU, which stays until it is
// deleted, and is made again when the host has lost it: at the place, or, nil,
// where it leaves the largest hole. GPU_NOT_FOUND, GPU_MODE_CONFLICT,
// GPU_EXHAUSTED, GPU_PLACEMENT_TAKEN.
func (m *Manager) CreateMIG(ctx context.Context, name, profile string, at *gpu.Span) (made gpu.MIGInstance, _ GPU, err error) {
	g, err := m.alter(ctx, name, func(g *GPU, books *gpu.Books) error {
		if !g.MIG.Enabled {
			return problem.New(problem.GPUModeConflict, "MIG is off on GPU %s", g.UUID).WithField("gpu").
				WithHint("turn it on: remotegpu gpu mig mode %s on", g.UUID)
		}
		p, found := g.Profile(profile)
		if !found {
			names := make([]string, len(g.MIG.Profiles))
			for i := range g.MIG.Profiles {
				names[i] = g.MIG.Profiles[i].Name
			}
			return problem.New(problem.GPUNotFound, "GPU %s has no profile %s", g.UUID, profile).WithField("profile").
				WithHint("use one of %s", strings.Join(names, ", "))
		}
		place, err := choosePlace(g, books, p, at)
		if err != nil {
			return err
		}
		wanted := gpu.Planned{GPU: g.UUID, Profile: profile, Placement: place, CreatedAt: time.Now()}
		return journal(ctx,
			func(ctx context.Context) error { return m.cfg.Store.PlanInstance(ctx, wanted) },
			func(ctx context.Context) (err error) {
				made, err = m.cfg.GPUs.CreateMIG(ctx, g.UUID, profile, place)
				return err
			},
			func(ctx context.Context) error { return m.planAsBefore(ctx, g, &wanted) })
	})
	return made, g, err
}

// planAsBefore has of an instance planned what was before.
func (m *Manager) planAsBefore(ctx context.Context, g *GPU, p *gpu.Planned) error {
	for i := range g.Planned {
		if before := &g.Planned[i].Planned; before.Profile == p.Profile && before.Placement == p.Placement {
			return m.cfg.Store.PlanInstance(ctx, *before)
		}
	}
	return m.cfg.Store.ForgetInstance(ctx, *p)
}

func choosePlace(g *GPU, books *gpu.Books, profile gpu.MIGProfile, at *gpu.Span) (gpu.Span, error) {
	if at == nil {
		place, found := books.FreePlace(&g.Device, profile)
		if !found {
			return place, problem.New(problem.GPUExhausted, "GPU %s has no place left for %s", g.UUID, profile.Name).WithField("profile").
				WithHint("see what is on it: remotegpu gpu get %s", g.UUID)
		}
		return place, nil
	}
	index := slices.IndexFunc(profile.Placements, func(s gpu.Span) bool { return s.Start == at.Start })
	if index < 0 {
		starts := make([]string, len(profile.Placements))
		for i, s := range profile.Placements {
			starts[i] = fmt.Sprint(s.Start)
		}
		return *at, problem.New(problem.FieldInvalid, "%s cannot be at %d", profile.Name, at.Start).WithField("start").
			WithHint("use one of %s", strings.Join(starts, ", "))
	}
	place := profile.Placements[index]
	if what := books.Taken(&g.Device, profile.Name, place); what != "" {
		return place, problem.New(problem.GPUPlacementTaken, "%s", what).WithField("start").
			WithHint("leave the place out, or see what is free: remotegpu gpu get %s", g.UUID)
	}
	return place, nil
}

// DeleteMIG removes an instance that no environment has, by its UUID, or one
// that is to be made again by "GPU:PLACE", and has it not made again.
// MIG_INSTANCE_NOT_FOUND, GPU_IN_USE.
func (m *Manager) DeleteMIG(ctx context.Context, name string) error {
	if colon := strings.LastIndexByte(name, ':'); colon > 0 {
		return m.forgetMIG(ctx, name[:colon], name[colon+1:])
	}
	found, err := m.GPUInventory(ctx, 0)
	if err != nil {
		return err
	}
	var instance gpu.MIGInstance
	owner := slices.IndexFunc(found.Devices, func(d gpu.Device) bool {
		at := slices.IndexFunc(d.MIG.Instances, func(i gpu.MIGInstance) bool { return i.UUID == name })
		if at >= 0 {
			instance = d.MIG.Instances[at]
		}
		return at >= 0
	})
	if owner < 0 {
		return noInstance(name)
	}
	_, err = m.alter(ctx, found.Devices[owner].UUID, func(g *GPU, _ *gpu.Books) error {
		if err := free(g, &instance); err != nil {
			return err
		}
		gone := gpu.Planned{GPU: g.UUID, Profile: instance.Profile, Placement: instance.Placement, Remove: true, CreatedAt: time.Now()}
		err := journal(ctx,
			func(ctx context.Context) error { return m.cfg.Store.PlanInstance(ctx, gone) },
			func(ctx context.Context) error { return m.cfg.GPUs.DestroyMIG(ctx, name) },
			func(ctx context.Context) error { return m.planAsBefore(ctx, g, &gone) })
		if err != nil {
			return err
		}
		return m.cfg.Store.ForgetInstance(ctx, gone)
	})
	return err
}

func noInstance(name string) error {
	return problem.New(problem.MIGInstanceNotFound, "there is no MIG instance %s", name).WithField("instance").
		WithHint("see those there are: remotegpu gpu ls")
}

// free says that no environment has an instance: GPU_IN_USE.
func free(g *GPU, instance *gpu.MIGInstance) error {
	for i := range g.Leases {
		if l := &g.Leases[i]; l.Mode == gpu.MIGMode && l.Placement == instance.Placement && l.Profile == instance.Profile {
			return problem.New(problem.GPUInUse, "environment %s has MIG instance %s at %d", l.EnvName, instance.Profile, instance.Placement.Start).
				WithField("instance").WithHint("delete that environment first, or change it to have another GPU")
		}
	}
	return nil
}

// forgetMIG has an instance not made again that is not there.
func (m *Manager) forgetMIG(ctx context.Context, name, start string) error {
	done, err := m.gpuGate.Lock(ctx, struct{}{})
	if err != nil {
		return fmt.Errorf("wait for who is given GPUs: %w", err)
	}
	defer done()
	g, err := m.GPU(ctx, name, false)
	if err != nil {
		return err
	}
	place, err := strconv.Atoi(start)
	at := slices.IndexFunc(g.Planned, func(p PlannedInstance) bool { return !p.Remove && p.Placement.Start == place })
	if err != nil || at < 0 {
		return noInstance(name + ":" + start)
	}
	p := &g.Planned[at]
	if p.UUID != "" {
		return problem.New(problem.GPUInUse, "instance %s is at %s of GPU %s", p.UUID, start, g.UUID).WithField("instance").
			WithHint("remove it: remotegpu gpu mig delete %s", p.UUID)
	}
	if err := free(&g, &gpu.MIGInstance{Profile: p.Profile, Placement: p.Placement}); err != nil {
		return err
	}
	return m.cfg.Store.ForgetInstance(ctx, p.Planned)
}

// SetMIGMode turns MIG on or off on a GPU that nobody has or uses, and tells
// whether the GPU has to be reset before that is so. What is turned on is turned
// on again when the host has lost it. GPU_IN_USE, GPU_MODE_CONFLICT.
func (m *Manager) SetMIGMode(ctx context.Context, name string, on bool) (resetNeeded bool, _ GPU, err error) {
	if !on {
		if g, forgotten, err := m.forgetPartitions(ctx, name); forgotten || err != nil {
			return false, g, err
		}
	}
	g, err := m.alter(ctx, name, func(g *GPU, books *gpu.Books) error {
		if err := idle(g, on); err != nil {
			return err
		}
		wanted := slices.Contains(books.MIG, g.UUID)
		return journal(ctx,
			func(ctx context.Context) error {
				err := m.cfg.Store.PlanMIG(ctx, g.UUID, on)
				for i := range g.Planned {
					if err == nil && !on && !g.Planned[i].Remove {
						err = m.cfg.Store.ForgetInstance(ctx, g.Planned[i].Planned)
					}
				}
				return err
			},
			func(ctx context.Context) (err error) {
				if g.MIG.Enabled != on || g.MIG.Pending {
					resetNeeded, err = m.cfg.GPUs.SetMIGMode(ctx, g.UUID, on)
				}
				return err
			},
			func(ctx context.Context) error {
				err := m.cfg.Store.PlanMIG(ctx, g.UUID, wanted)
				for i := range g.Planned {
					if err == nil && !on {
						err = m.cfg.Store.PlanInstance(ctx, g.Planned[i].Planned)
					}
				}
				return err
			})
	})
	if err == nil && resetNeeded {
		m.watchAnew(ctx)
	}
	return resetNeeded, g, err
}

// forgetPartitions has nothing made again of a GPU that is not there any more, or
// that cannot be partitioned, and tells whether it is such a one.
func (m *Manager) forgetPartitions(ctx context.Context, name string) (_ GPU, forgotten bool, err error) {
	done, err := m.gpuGate.Lock(ctx, struct{}{})
	if err != nil {
		return GPU{}, false, fmt.Errorf("wait for who is given GPUs: %w", err)
	}
	defer done()
	books, _, err := m.books(ctx, freshInventory) // who does not answer has no GPUs either
	if err != nil {
		return GPU{}, false, err
	}
	g, err := m.GPU(ctx, name, false)
	if err != nil || g.MIG.Capable || !slices.Contains(books.MIG, g.UUID) && len(g.Planned) == 0 {
		return g, false, err
	}
	if err := m.cfg.Store.PlanMIG(ctx, g.UUID, false); err != nil {
		return g, false, err
	}
	for i := range g.Planned {
		if p := &g.Planned[i].Planned; !p.Remove {
			if err := m.cfg.Store.ForgetInstance(ctx, *p); err != nil {
				return g, false, err
			}
		}
	}
	g.Planned = slices.DeleteFunc(g.Planned, func(p PlannedInstance) bool { return !p.Remove })
	return g, true, nil
}

// idle says that the MIG mode of a GPU may change: GPU_IN_USE. Those who have
// instances do not use them while MIG is off. Where the mode is that already only
// the plan is written, whoever has the GPU; but those who have instances keep what
// was planned for them.
func idle(g *GPU, on bool) error {
	parts := slices.ContainsFunc(g.Leases, func(l gpu.Lease) bool { return l.Mode == gpu.MIGMode })
	if g.MIG.Enabled == on && !g.MIG.Pending && (on || !parts) {
		return nil
	}
	inUse := func(format string, args ...any) error {
		return problem.New(problem.GPUInUse, format, args...).WithField("gpu").
			WithHint("end that first; remotegpu gpu drain %s keeps others from taking it meanwhile", g.UUID)
	}
	holders := slices.DeleteFunc(slices.Clone(g.Leases), func(l gpu.Lease) bool { return on && l.Mode == gpu.MIGMode && !g.MIG.Enabled })
	switch {
	case len(holders) > 0:
		names := make([]string, len(holders))
		for i := range holders {
			names[i] = holders[i].EnvName
		}
		return inUse("environments have GPU %s: %s", g.UUID, strings.Join(names, ", "))
	case g.Usage != nil && len(g.Usage.Processes) > 0:
		return inUse("%d processes use GPU %s, the first is %d", len(g.Usage.Processes), g.UUID, g.Usage.Processes[0].PID)
	case !on && len(g.MIG.Instances) > 0:
		return inUse("GPU %s has %d MIG instances", g.UUID, len(g.MIG.Instances))
	}
	return nil
}
