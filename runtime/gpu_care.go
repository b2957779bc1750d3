package runtime

import (
	"context"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// GPU is a GPU of the host with what the node knows of it.
type GPU struct {
	gpu.Device
	Mark   gpu.Mark
	Leases []gpu.Lease // those that are held, oldest first
	// Gone says that the host does not have it though somebody has a lease, or
	// though it is marked, or instances of it are to be there.
	Gone  bool
	Usage *gpu.Usage // nil: not asked for, or not known
	// Users are the leases by which processes use it, by pid; those of Usage that
	// are not in it are of nobody who has one. Empty unless Usage was asked for.
	Users    map[int]gpu.Lease
	Warnings []string // what is wrong with it though it works, for people
	// Planned are instances that are to be there or to go. WantsMIG says that MIG
	// is to be on, and MIGProblem why it is not.
	Planned    []PlannedInstance
	WantsMIG   bool
	MIGProblem string
}

// PlannedInstance is an instance that is to be there, or to go.
type PlannedInstance struct {
	gpu.Planned
	UUID    string // "": it is not there
	Problem string // why it could not be made again; "": nothing has tried yet
}

// Kept says that an instance is made again when the host has lost it.
func (g *GPU) Kept(i *gpu.MIGInstance) bool {
	return slices.ContainsFunc(g.Planned, func(p PlannedInstance) bool { return !p.Remove && p.Of(i) })
}

// Mode is what its leases, or the way it is partitioned, make it; "": free.
func (g *GPU) Mode() gpu.Mode {
	switch {
	case len(g.Leases) > 0:
		return g.Leases[0].Mode
	case g.MIG.Enabled, g.WantsMIG:
		return gpu.MIGMode
	}
	return ""
}

// GPUs returns those of the host, by PCI address, then those that have gone.
// While their software does not answer they are what it last said, unhealthy,
// and a note tells.
func (m *Manager) GPUs(ctx context.Context, usage bool) ([]GPU, gpu.Inventory, error) {
	all, found, _, err := m.listGPUs(ctx, freshInventory, func([]gpu.Device) []gpu.Usage {
		if !usage || m.cfg.GPUs == nil {
			return nil
		}
		measured, err := m.cfg.GPUs.Usage(ctx)
		if err != nil {
			m.cfg.Log.WarnContext(ctx, "GPUs could not be measured", "error", err)
		}
		return measured
	})
	if usage && err == nil {
		for i := range all {
			all[i].Users = m.usersOf(ctx, &all[i])
		}
	}
	return all, found, err
}

// usersOf finds out whose the processes on a GPU are.
func (m *Manager) usersOf(ctx context.Context, g *GPU) map[int]gpu.Lease {
	users := make(map[int]gpu.Lease)
	if g.Usage == nil {
		return users
	}
	for _, p := range g.Usage.Processes {
		for _, l := range g.Leases {
			mine, err := m.cfg.InEnvironment(p.PID, l.EnvID)
			if err != nil && !errdefs.IsNotFound(err) { // else it has ended
				m.cfg.Log.DebugContext(ctx, "a process on a GPU cannot be told", "pid", p.PID, "error", err)
			}
			if mine {
				users[p.PID] = l
			}
		}
	}
	return users
}

// listGPUs is GPUs as they were at most age ago; what measure returns of those
// there are is their usage. stale is why their software does not answer.
func (m *Manager) listGPUs(ctx context.Context, age time.Duration, measure func([]gpu.Device) []gpu.Usage) (
	all []GPU, found gpu.Inventory, stale, err error,
) {
	books, err := m.cfg.Store.GPUBooks(ctx)
	if err != nil {
		return nil, gpu.Inventory{}, nil, err
	}
	found, stale = m.GPUInventory(ctx, age)
	if ctx.Err() != nil {
		return nil, found, stale, context.Cause(ctx)
	}
	absent := "it is not there any more"
	if stale != nil {
		absent = "the GPU software of the host does not answer"
		found = outOfDate(m.gpus.seen(), absent)
	}
	books.Devices = found.Devices
	if strange, err := m.strangeLeases(ctx); err == nil { // the engine may not answer
		books.Held = append(books.Held, strange...)
	}
	var measured []gpu.Usage
	if stale == nil && len(books.Devices) > 0 {
		measured = measure(books.Devices)
	}
	add := func(d gpu.Device, gone bool) {
		g := GPU{Device: d, Mark: books.Mark(d.UUID), Leases: books.Leases(d.UUID), Gone: gone, Warnings: d.Vitals.Warnings()}
		if why := m.unwatched.why(d.UUID); why != "" {
			g.Warnings = append(g.Warnings, why)
		}
		for i := range g.Leases {
			instance, _ := d.InstanceOf(g.Leases[i])
			g.Leases[i].MIG = instance.UUID
		}
		m.plannedOf(&g, &books)
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
	return all, found, stale, nil
}

// plannedOf fills in what is planned of a GPU.
func (m *Manager) plannedOf(g *GPU, books *gpu.Books) {
	g.WantsMIG = slices.Contains(wantedMIG(books), g.UUID)
	if g.WantsMIG && !g.MIG.Enabled {
		g.MIGProblem = m.partition.problem(g.UUID)
	}
	for _, p := range books.PlannedOn(g.UUID) {
		planned := PlannedInstance{Planned: p}
		if instance, there := p.Find(&g.Device); there {
			planned.UUID = instance.UUID
		} else {
			planned.Problem = m.partition.problem(placeOf(&p))
		}
		g.Planned = append(g.Planned, planned)
	}
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
	for _, uuid := range wantedMIG(books) {
		add(uuid)
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
// The node does not keep it open any more, so it can be reset once nobody has it.
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
	m.watchAnew(ctx)
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
	m.gpus.outdate()         // as it did not answer while it was reset
	m.watchAnew(ctx)
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
