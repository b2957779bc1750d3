package runtime

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// GPUCure is what is done about an environment that runs without its GPU.
type GPUCure string

// The cures.
const (
	CureReport  GPUCure = "report"  // its history and a condition of the node tell of it
	CureRestart GPUCure = "restart" // and it is started again
)

// GPUConfig is how the node gives its GPUs.
type GPUConfig struct {
	Rules gpu.Rules
	// ReleaseOnStop has stopped environments give their GPUs back; their next
	// start takes what is free then.
	ReleaseOnStop bool
	Cure          GPUCure // "": CureReport
	// HandOver is how long a start waits for what others left on a GPU that the
	// environment is to have alone. 0: DefaultHandOver.
	HandOver time.Duration
	// Leftover is how much memory (bytes) may be in use on such a GPU though no
	// process is there; of an instance as much as it has of the GPU. The driver
	// itself takes some.
	Leftover uint64
	// HotFor is how long a GPU is hot before it is given to nobody, and CoolFor how
	// long it is cool before it is. 0: gpu.HotFor and gpu.CoolFor.
	HotFor, CoolFor time.Duration
	// SureAfter is how long a GPU does not answer some question before it is taken
	// to have failed, seen by three inventories at least. 0: DefaultSureAfter.
	SureAfter time.Duration
	// Sharing is what holds environments to their shares; nil: nothing that
	// would have to be tended.
	Sharing Sharing
}

// Defaults of a GPUConfig.
const (
	DefaultHandOver = 15 * time.Second
	// A reset of a GPU takes less, looks are a minute apart.
	DefaultSureAfter = 3 * time.Minute
)

const (
	fieldGPU = "spec.gpu"
	// freshInventory is how old an inventory may be that something is decided
	// by: reading it may take seconds.
	freshInventory = 5 * time.Second
	// probeTimeout bounds the reading of it. When that failed after slowProbe, or
	// later, it is not tried again for probePause: all would wait for it in turn.
	probeTimeout = 30 * time.Second
	slowProbe    = 2 * time.Second
	probePause   = 10 * time.Second
)

// GPURun is what a process was started with.
type GPURun struct {
	Driver   string       `json:"driver,omitempty"` // version
	Targets  []gpu.Target `json:"targets,omitempty"`
	Warnings []string     `json:"warnings,omitempty"` // for people
	// Lost says that the process does not have its GPUs any more, and why; ""
	// while nothing of the kind is known. It stays until the next start.
	Lost string `json:"lost,omitempty"`
	// Interrupted is when what it shares a GPU by was last begun anew, or ended,
	// under it, which it was told of.
	Interrupted time.Time `json:"interrupted,omitzero"`
}

// GPUWarnings are what the caller should know about the GPUs of an environment.
func (e *Environment) GPUWarnings() []string {
	if e.GPURun == nil || !e.Alive() {
		return nil
	}
	if e.GPURun.Lost == "" {
		return e.GPURun.Warnings
	}
	return append(slices.Clone(e.GPURun.Warnings), "it runs without its GPU: "+e.GPURun.Lost)
}

// inventory is what the host's GPU software last said.
type inventory struct {
	mu      sync.Mutex
	last    gpu.Inventory
	asked   time.Time // when that was asked for; zero: not to be used any more
	changes int       // how often it was outdated
	err     error     // of the last time, if it is not to be tried again before retry
	retry   time.Time
}

// failed keeps a failure that took a while.
func (i *inventory) failed(err error, took time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if took >= slowProbe {
		i.err, i.retry = err, time.Now().Add(probePause)
	}
}

// failure is the last failure while nobody is to try again; nil otherwise.
func (i *inventory) failure() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if time.Now().Before(i.retry) {
		return i.err
	}
	return nil
}

// get returns what was asked for at most age before the given time.
func (i *inventory) get(at time.Time, age time.Duration) (gpu.Inventory, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.last, !i.asked.IsZero() && at.Sub(i.asked) <= age
}

// begin is to be called before the question whose answer set keeps.
func (i *inventory) begin() (asked time.Time, changes int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return time.Now(), i.changes
}

// set keeps an answer. One that may be of before a change serves nobody else.
func (i *inventory) set(last gpu.Inventory, asked time.Time, changes int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.last, i.asked = last, time.Time{}
	if changes == i.changes {
		i.asked = asked
	}
}

// seen is what was last said, however old.
func (i *inventory) seen() gpu.Inventory {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.last
}

// current says that an answer is the last, and of no time before a change.
func (i *inventory) current(found *gpu.Inventory) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return !i.asked.IsZero() && i.last.At.Equal(found.At)
}

// outdate has the next question read it anew.
func (i *inventory) outdate() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked = time.Time{}
	i.changes++
}

// noGPUSoftware is the inventory of a node that does not look for GPUs.
func noGPUSoftware() gpu.Inventory {
	return gpu.Inventory{At: time.Now(), Notes: []string{"this node does not look for GPUs"}}
}

// asGPUUnavailable is the failure of a question to the GPU software as callers
// get it; nil of nil.
func asGPUUnavailable(err error) error {
	if err == nil {
		return nil
	}
	p := problem.Of(err)
	known := strings.HasPrefix(string(p.Reason), "GPU_") || strings.HasPrefix(string(p.Reason), "MIG_")
	if known || errdefs.IsFailedPrecondition(err) || errdefs.IsInvalidArgument(err) || errdefs.IsAlreadyExists(err) || errdefs.IsNotFound(err) {
		return err // it has answered
	}
	hint := p.Hint
	if hint == "" {
		hint = "see the daemon's log, and whether nvidia-smi works on the host"
	}
	return problem.New(problem.GPUUnavailable, "the GPU software of the host does not answer").WithHint("%s", hint).WithCause(err)
}

// books returns devices, leases and marks.
func (m *Manager) books(ctx context.Context, age time.Duration) (gpu.Books, gpu.Inventory, error) {
	found, err := m.GPUInventory(ctx, age)
	if err != nil {
		return gpu.Books{}, found, err
	}
	books, err := m.cfg.Store.GPUBooks(ctx)
	if err != nil {
		return books, found, err
	}
	strange, err := m.strangeLeases(ctx)
	books.Devices, books.Held = found.Devices, append(books.Held, strange...)
	return books, found, err
}

// fillInstances tells what the instances of an environment's leases are called
// now, as far as is known.
func (m *Manager) fillInstances(env *Environment) {
	if len(env.GPUs) == 0 {
		return
	}
	books := gpu.Books{Devices: m.gpus.seen().Devices}
	for i := range env.GPUs {
		l := &env.GPUs[i]
		if device, found := books.Device(l.GPU); found {
			instance, _ := device.InstanceOf(*l)
			l.MIG = instance.UUID
		}
		if env.Alive() && env.GPURun != nil { // its process has that one
			l.MIG = env.GPURun.instance(l.GPU)
		}
	}
}

// instance is the MIG instance of a GPU that a process was started with; "":
// none.
func (r *GPURun) instance(uuid string) string {
	for _, target := range r.Targets {
		if target.GPU == uuid {
			return target.MIG
		}
	}
	return ""
}

// checkGPU checks what can be checked of a request without touching anything.
func checkGPU(spec *Spec) error {
	if spec.GPU == nil {
		return nil
	}
	req := *spec.GPU // the caller may use the request again
	spec.GPU = &req
	return req.Check(fieldGPU)
}

// capabilities are those that an environment gets of its GPUs: what was asked
// for, or what its spec lets expect.
func capabilities(spec *Spec, device *gpu.Device) []gpu.Capability {
	if len(spec.GPU.Capabilities) > 0 {
		return spec.GPU.Capabilities
	}
	if device.Vendor != gpu.NVIDIA {
		return []gpu.Capability{gpu.Graphics, gpu.Video}
	}
	found := []gpu.Capability{gpu.Compute, gpu.Utility}
	if spec.Desktop == nil {
		return found
	}
	if spec.GPU.Mode == gpu.MIGMode {
		if profile, _ := device.Profile(spec.GPU.Profile); !profile.Graphics {
			return found
		}
	}
	return append(found, gpu.Graphics)
}

// resolveGPUs makes of the names of GPUs in a request their UUIDs.
func resolveGPUs(books *gpu.Books, req *gpu.Request) error {
	uuids := slices.Clone(req.UUIDs)
	for i, name := range uuids {
		found := books.Find(name)
		field := fmt.Sprintf("%s.uuids[%d]", fieldGPU, i)
		switch {
		case len(found) == 0:
			return gpuNotFound(name).WithField(field)
		case len(found) > 1:
			return problem.New(problem.FieldInvalid, "%q names %d GPUs", name, len(found)).WithField(field).
				WithHint("write more of the UUID")
		case slices.Contains(uuids[:i], found[0].UUID):
			return problem.New(problem.FieldInvalid, "GPU %s is named twice", found[0].UUID).WithField(field).WithHint("name each once")
		}
		uuids[i] = found[0].UUID
	}
	req.UUIDs = uuids
	return nil
}

func gpuNotFound(name string) *problem.Problem {
	return problem.New(problem.GPUNotFound, "this host has no GPU %s", name).WithField("gpu").
		WithHint("see what there is: remotegpu gpu ls")
}

// lease decides which GPUs an environment gets for a request; nil gives all
// back.
func (m *Manager) lease(ctx context.Context, envID string, devices []gpu.Device, req *gpu.Request) (LeaseFunc, error) {
	var strange []gpu.Lease
	if req != nil {
		var err error
		if strange, err = m.strangeLeases(ctx); err != nil {
			return nil, err
		}
	}
	return func(held gpu.Books) (gpu.Change, error) {
		held.Devices, held.Held = devices, append(held.Held, strange...)
		change, err := gpu.Allocate(held, m.cfg.GPU.Rules, envID, req, fieldGPU)
		for i := range change.Add {
			change.Add[i].ID, change.Add[i].EnvID, change.Add[i].CreatedAt = ulid.Make().String(), envID, time.Now()
		}
		return change, err
	}, nil
}

// wantGPUs checks that an environment could have the GPUs that a spec asks for,
// which it names by their UUIDs then. Nothing is taken.
func (m *Manager) wantGPUs(ctx context.Context, envID string, spec *Spec) error {
	if spec.GPU == nil {
		return nil
	}
	found, err := m.inventoryOf(ctx, spec.GPU.UUIDs)
	if err != nil {
		return err
	}
	books, err := m.cfg.Store.GPUBooks(ctx)
	if err != nil {
		return err
	}
	strange, err := m.strangeLeases(ctx)
	if err != nil {
		return err
	}
	books.Devices, books.Held = found.Devices, append(books.Held, strange...)
	req := *spec.GPU
	if err := resolveGPUs(&books, &req); err != nil {
		return err
	}
	spec.GPU = &req
	_, err = gpu.Allocate(books, m.cfg.GPU.Rules, envID, spec.GPU, fieldGPU)
	return err
}

// createLease is what a create takes of GPUs, and what is to be called when it
// has been written: until then no administrator changes how they are
// partitioned.
func (m *Manager) createLease(ctx context.Context, env *Environment) (LeaseFunc, func(), error) {
	if env.Spec.GPU == nil {
		return nil, func() {}, nil
	}
	done, err := m.gpuGate.Lock(ctx, struct{}{})
	if err != nil {
		return nil, nil, fmt.Errorf("wait for who changes GPUs: %w", err)
	}
	found, err := m.inventoryOf(ctx, env.Spec.GPU.UUIDs)
	if err != nil {
		done()
		return nil, nil, err
	}
	lease, err := m.lease(ctx, env.ID, found.Devices, env.Spec.GPU)
	if err != nil {
		done()
		return nil, nil, err
	}
	return lease, done, nil
}

// newsOfGPUs is what a change of leases means for an environment's history.
func newsOfGPUs(change *gpu.Change) []History {
	var news []History
	add := func(verb string, leases []gpu.Lease) {
		for i := range leases {
			news = append(news, History{Time: time.Now(), Kind: HappenedGPUs, Message: verb + describeLease(&leases[i])})
		}
	}
	add("it gives back ", change.Drop)
	add("it has ", change.Add)
	return news
}

// describeLease says what a lease is of.
func describeLease(l *gpu.Lease) string {
	text := "GPU " + l.GPU
	switch l.Mode {
	case gpu.MIGMode:
		return fmt.Sprintf("instance %s at %d of %s", l.Profile, l.Placement.Start, text)
	case gpu.VGPU:
		text = fmt.Sprintf("%d MiB of %s", l.MemoryBytes>>20, text)
		if l.ComputePercent > 0 {
			text += fmt.Sprintf(" and %d %% of its compute", l.ComputePercent)
		}
		return text
	case gpu.Shared:
		return text + ", shared"
	default:
		return text + " alone"
	}
}
