package runtime

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// GPU is a GPU of the host with what the node knows of it.
type GPU struct {
	gpu.Device
	Mark   gpu.Mark
	Leases []gpu.Lease // those that are held, oldest first
	// Gone says that the host does not have it though somebody has a lease, or
	// though it is marked.
	Gone  bool
	Usage *gpu.Usage // nil: not asked for, or not known
}

// Mode is what its leases, or the way it is partitioned, make it; "": free.
func (g *GPU) Mode() gpu.Mode {
	switch {
	case len(g.Leases) > 0:
		return g.Leases[0].Mode
	case g.MIG.Enabled:
		return gpu.MIGMode
	}
	return ""
}

// GPUs returns those of the host, by PCI address, then those that have gone.
// While their software does not answer they are what it last said, unhealthy,
// and a note tells.
func (m *Manager) GPUs(ctx context.Context, usage bool) ([]GPU, gpu.Inventory, error) {
	books, err := m.cfg.Store.GPUBooks(ctx)
	if err != nil {
		return nil, gpu.Inventory{}, err
	}
	found, stale := m.GPUInventory(ctx, freshInventory)
	if ctx.Err() != nil {
		return nil, found, context.Cause(ctx)
	}
	absent := "it is not there any more"
	if stale != nil {
		absent = "the GPU software of the host does not answer"
		found = outOfDate(m.gpus.seen(), absent)
	}
	books.Devices = found.Devices
	var measured []gpu.Usage
	if usage && stale == nil && m.cfg.GPUs != nil && len(books.Devices) > 0 {
		if measured, err = m.cfg.GPUs.Usage(ctx); err != nil {
			m.cfg.Log.WarnContext(ctx, "GPUs could not be measured", "error", err)
		}
	}
	var all []GPU
	add := func(d gpu.Device, gone bool) {
		g := GPU{Device: d, Mark: books.Mark(d.UUID), Leases: books.Leases(d.UUID), Gone: gone}
		for i := range g.Leases {
			instance, _ := d.InstanceOf(g.Leases[i])
			g.Leases[i].MIG = instance.UUID
		}
		for i := range measured {
			if measured[i].UUID == d.UUID {
				g.Usage = &measured[i]
			}
		}
		all = append(all, g)
	}
	for _, d := range books.Devices {
		add(d, false)
	}
	for _, uuid := range gone(&books) {
		add(gpu.Device{
			UUID: uuid, Index: -1, Minor: -1, NUMANode: -1,
			Health: gpu.Health{Unhealthy: true, Reason: absent},
		}, stale == nil)
	}
	return all, found, nil
}

// outOfDate is an inventory that nobody can tell to be still true, and why.
func outOfDate(last gpu.Inventory, why string) gpu.Inventory {
	last.Notes = append(slices.Clone(last.Notes), why+": this is what it last said")
	last.Devices = slices.Clone(last.Devices)
	for i := range last.Devices {
		if health := &last.Devices[i].Health; !health.Unhealthy {
			*health = gpu.Health{Unhealthy: true, Reason: why, Since: time.Now()}
		}
	}
	return last
}

// GPUSummary is what there is of GPUs in a few words.
type GPUSummary struct {
	gpu.Inventory
	Free      int // nobody has them, and somebody could get them
	Models    []string
	Enforcers []gpu.Enforcement
}

// GPUSummary sums the GPUs of the host up, as they were lately.
func (m *Manager) GPUSummary(ctx context.Context) (GPUSummary, error) {
	books, found, err := m.books(ctx, time.Minute)
	if err != nil {
		return GPUSummary{}, err
	}
	sum := GPUSummary{Inventory: found, Enforcers: m.cfg.GPU.Rules.On(found.Devices).Enforcers}
	for i := range books.Devices {
		d := &books.Devices[i]
		mark := books.Mark(d.UUID)
		if len(books.Leases(d.UUID)) == 0 && !mark.Drained && !mark.Health.Unhealthy && !d.Health.Unhealthy {
			sum.Free++
		}
		if !slices.Contains(sum.Models, d.Model) {
			sum.Models = append(sum.Models, d.Model)
		}
	}
	return sum, nil
}

// gone are the GPUs that the books know and the host does not have.
func gone(books *gpu.Books) (uuids []string) {
	add := func(uuid string) {
		if _, there := books.Device(uuid); !there && !slices.Contains(uuids, uuid) {
			uuids = append(uuids, uuid)
		}
	}
	for i := range books.Held {
		add(books.Held[i].GPU)
	}
	for i := range books.Marks {
		if mark := &books.Marks[i]; mark.Drained || mark.Health.Unhealthy {
			add(mark.GPU)
		}
	}
	return uuids
}

// GPU returns one by its UUID, the beginning of it, its PCI address or index.
// GPU_NOT_FOUND.
func (m *Manager) GPU(ctx context.Context, name string, usage bool) (GPU, error) {
	all, _, err := m.GPUs(ctx, usage)
	if err != nil {
		return GPU{}, err
	}
	books := gpu.Books{}
	for i := range all {
		books.Devices = append(books.Devices, all[i].Device)
	}
	found := books.Find(name)
	switch {
	case len(found) == 0:
		return GPU{}, gpuNotFound(name)
	case len(found) > 1:
		return GPU{}, problem.New(problem.FieldInvalid, "%q names %d GPUs", name, len(found)).WithField("gpu").WithHint("write more of the UUID")
	}
	at := slices.IndexFunc(all, func(g GPU) bool { return g.UUID == found[0].UUID })
	return all[at], nil
}

// DrainGPU keeps a GPU from new leases; those who have it keep it, and are told.
func (m *Manager) DrainGPU(ctx context.Context, name, why string) (GPU, error) {
	var before bool
	g, err := m.mark(ctx, name, func(mark *gpu.Mark) {
		if before = mark.Drained; !before {
			mark.DrainedAt = time.Now()
		}
		mark.Drained, mark.Why = true, why
	})
	if err != nil || before {
		return g, err
	}
	message := "GPU " + g.UUID + " is to be given to nobody else"
	if why != "" {
		message += ": " + why
	}
	for i := range g.Leases {
		if err := m.tell(ctx, g.Leases[i].EnvID, HappenedGPUs, message); err != nil {
			m.cfg.Log.WarnContext(ctx, "a holder of a GPU was not told that it is drained", "gpu", g.UUID, "environment", g.Leases[i].EnvID, "error", err)
		}
	}
	return g, nil
}

// UndrainGPU lets a GPU be given again; with resetHealth also one that had
// failed.
func (m *Manager) UndrainGPU(ctx context.Context, name string, resetHealth bool) (GPU, error) {
	g, err := m.mark(ctx, name, func(mark *gpu.Mark) {
		mark.Drained, mark.Why, mark.DrainedAt = false, "", time.Time{}
		if resetHealth {
			mark.Health = gpu.Health{}
		}
	})
	if err != nil {
		return g, err
	}
	m.gpuFlow.forget(g.UUID) // what happens from now on is news
	return g, m.reportGPUs(ctx)
}

func (m *Manager) mark(ctx context.Context, name string, change func(*gpu.Mark)) (GPU, error) {
	g, err := m.GPU(ctx, name, false)
	if err != nil {
		return g, err
	}
	g.Mark, err = m.cfg.Store.MarkGPU(ctx, g.UUID, func(_ gpu.Books, mark *gpu.Mark) error {
		change(mark)
		return nil
	})
	return g, err
}

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

// CreateMIG makes an instance on a partitioned GPU, which stays until it is
// deleted: at the place, or, nil, where it leaves the largest hole. GPU_NOT_FOUND,
// GPU_MODE_CONFLICT, GPU_EXHAUSTED, GPU_PLACEMENT_TAKEN.
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
		made, err = m.cfg.GPUs.CreateMIG(ctx, g.UUID, profile, place)
		return err
	})
	return made, g, err
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
	if what := books.Taken(&g.Device, place); what != "" {
		return place, problem.New(problem.GPUPlacementTaken, "%s", what).WithField("start").
			WithHint("leave the place out, or see what is free: remotegpu gpu get %s", g.UUID)
	}
	return place, nil
}

// DeleteMIG removes an instance that no environment has: MIG_INSTANCE_NOT_FOUND,
// GPU_IN_USE.
func (m *Manager) DeleteMIG(ctx context.Context, uuid string) error {
	found, err := m.GPUInventory(ctx, 0)
	if err != nil {
		return err
	}
	owner := slices.IndexFunc(found.Devices, func(d gpu.Device) bool {
		return slices.ContainsFunc(d.MIG.Instances, func(i gpu.MIGInstance) bool { return i.UUID == uuid })
	})
	if owner < 0 {
		return problem.New(problem.MIGInstanceNotFound, "there is no MIG instance %s", uuid).WithField("instance").
			WithHint("see those there are: remotegpu gpu ls")
	}
	_, err = m.alter(ctx, found.Devices[owner].UUID, func(g *GPU, _ *gpu.Books) error {
		for i := range g.Leases {
			if g.Leases[i].MIG == uuid {
				return problem.New(problem.GPUInUse, "environment %s has MIG instance %s", g.Leases[i].EnvName, uuid).WithField("instance").
					WithHint("delete that environment first, or change it to have another GPU")
			}
		}
		return m.cfg.GPUs.DestroyMIG(ctx, uuid)
	})
	return err
}

// SetMIGMode turns MIG on or off on a GPU that nobody has or uses, and tells
// whether the GPU has to be reset before that is so. GPU_IN_USE,
// GPU_MODE_CONFLICT.
func (m *Manager) SetMIGMode(ctx context.Context, name string, on bool) (resetNeeded bool, _ GPU, err error) {
	g, err := m.alter(ctx, name, func(g *GPU, _ *gpu.Books) error {
		inUse := func(format string, args ...any) error {
			return problem.New(problem.GPUInUse, format, args...).WithField("gpu").
				WithHint("end that first; remotegpu gpu drain %s keeps others from taking it meanwhile", g.UUID)
		}
		switch {
		case len(g.Leases) > 0:
			names := make([]string, len(g.Leases))
			for i := range g.Leases {
				names[i] = g.Leases[i].EnvName
			}
			return inUse("environments have GPU %s: %s", g.UUID, strings.Join(names, ", "))
		case g.Usage != nil && len(g.Usage.Processes) > 0:
			return inUse("%d processes use GPU %s, the first is %d", len(g.Usage.Processes), g.UUID, g.Usage.Processes[0].PID)
		case !on && len(g.MIG.Instances) > 0:
			return inUse("GPU %s has %d MIG instances", g.UUID, len(g.MIG.Instances))
		case g.MIG.Enabled == on && !g.MIG.Pending:
			return nil
		}
		resetNeeded, err = m.cfg.GPUs.SetMIGMode(ctx, g.UUID, on)
		return err
	})
	return resetNeeded, g, err
}
