package runtime

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/keylock"
)

const (
	// freshUsage is how old a measurement of the GPUs may be: asking takes a
	// round trip to another process.
	freshUsage = time.Second
	// usageTimeout bounds it, so that stats come without GPUs when their
	// software hangs, and usagePause is how long it is left alone then.
	usageTimeout = 3 * time.Second
	usagePause   = 30 * time.Second
)

// errNotMeasured is that of GPUs whose software told of them, and does not say
// what they do.
var errNotMeasured = errors.New("GPUs cannot be measured")

// GPUStats is what an environment uses of one of its GPUs.
type GPUStats struct {
	GPU, MIG string // UUIDs
	// MemoryBytes is used by its processes; what the driver counts for its control
	// group where it limits that.
	MemoryBytes uint64
	// MemoryUnknown says that MemoryBytes is not known: the clients of an MPS
	// server use the server's.
	MemoryUnknown bool
	// MemoryLimitBytes is what it has: of the GPU, of the instance, or its
	// share. 0: not known.
	MemoryLimitBytes uint64
	UtilPercent      int // of the GPU when it has it alone, else of its processes; -1: nobody can tell
	// EncoderPercent and DecoderPercent are the share of time in which these worked
	// for it, as UtilPercent.
	EncoderPercent, DecoderPercent int
	Processes                      int // of it, on the GPU
}

// gpuReading is what the GPUs do. nil: it is not known.
type gpuReading struct {
	usage []gpu.Usage
	// memory is what the driver counts for environments that it limits, in bytes.
	memory map[memoryOf]uint64
}

// memoryOf is an environment on a GPU.
type memoryOf struct{ gpu, env string }

// gpuUsage is what the GPUs did a moment ago.
type gpuUsage struct {
	turn keylock.Map[struct{}] // who measures
	mu   sync.Mutex
	last *gpuReading
	next time.Time // when it is to be measured again
}

func (u *gpuUsage) get() (last *gpuReading, fresh bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.last, time.Now().Before(u.next)
}

func (u *gpuUsage) set(last *gpuReading, age time.Duration) *gpuReading {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.last, u.next = last, time.Now().Add(age)
	return last
}

// read measures GPUs unless that was done a moment ago. nil: it is not known.
func (u *gpuUsage) read(ctx context.Context, measure func(context.Context) (*gpuReading, error)) *gpuReading {
	if last, fresh := u.get(); fresh {
		return last
	}
	done, err := u.turn.Lock(ctx, struct{}{})
	if err != nil {
		return nil
	}
	defer done()
	if last, fresh := u.get(); fresh {
		return last
	}
	asking, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	last, err := measure(asking)
	switch {
	case err == nil:
		return u.set(last, freshUsage)
	case ctx.Err() == nil:
		return u.set(nil, usagePause)
	default:
		return nil
	}
}

// readGPUs measures all GPUs.
func (m *Manager) readGPUs(ctx context.Context) (*gpuReading, error) {
	usage, err := m.cfg.GPUs.Usage(ctx)
	if err != nil {
		return nil, err
	}
	return &gpuReading{usage: usage, memory: m.limitedMemory(ctx)}, nil
}

// limitedMemory is what the driver counts for environments that it limits. Where
// it does not, their processes tell.
func (m *Manager) limitedMemory(ctx context.Context) map[memoryOf]uint64 {
	if m.cfg.Cgroup == nil || !slices.Contains(m.cfg.GPU.Rules.Enforcers, gpu.ByDriver) {
		return nil
	}
	books, err := m.cfg.Store.GPUBooks(ctx)
	if err != nil {
		return nil
	}
	cgroups := make(map[string][]string) // by GPU
	for i := range books.Held {
		if l := &books.Held[i]; l.Enforcement == gpu.ByDriver {
			cgroups[l.GPU] = append(cgroups[l.GPU], m.cfg.Cgroup(l.EnvID))
		}
	}
	found := make(map[memoryOf]uint64)
	for uuid, paths := range cgroups {
		used, err := m.cfg.GPUs.MemoryUsed(ctx, uuid, paths)
		if err != nil {
			m.cfg.Log.DebugContext(ctx, "the driver does not tell what memory it has given", "gpu", uuid, "error", err)
			continue
		}
		for i := range books.Held {
			l := &books.Held[i]
			if bytes, told := used[m.cfg.Cgroup(l.EnvID)]; told && l.GPU == uuid {
				found[memoryOf{uuid, l.EnvID}] = bytes
			}
		}
	}
	return found
}

// measureGPUs sets what environments use of their GPUs, as far as that is
// known.
func (m *Manager) measureGPUs(ctx context.Context, envs []*Environment, stats []Stats) {
	for i, env := range envs {
		if m.cfg.GPUs == nil || len(env.GPUs) == 0 || !env.Alive() {
			continue
		}
		stats[i].GPUs = m.statsOfGPUs(ctx, env, m.gpuUsage.read(ctx, m.readGPUs))
	}
}

// statsOfGPUs are what an environment uses of its GPUs, as far as that is known.
func (m *Manager) statsOfGPUs(ctx context.Context, env *Environment, reading *gpuReading) (stats []GPUStats) {
	if reading == nil {
		return nil
	}
	m.fillInstances(env)
	for i := range env.GPUs {
		for j := range reading.usage {
			if reading.usage[j].UUID == env.GPUs[i].GPU {
				stats = append(stats, m.ofEnvironment(ctx, env, &env.GPUs[i], reading, &reading.usage[j]))
			}
		}
	}
	return stats
}

// ofEnvironment is an environment's part of what one of its GPUs does.
func (m *Manager) ofEnvironment(ctx context.Context, env *Environment, l *gpu.Lease, reading *gpuReading, u *gpu.Usage) GPUStats {
	s := GPUStats{GPU: l.GPU, MIG: l.MIG, MemoryLimitBytes: l.MemoryBytes, UtilPercent: -1, EncoderPercent: -1, DecoderPercent: -1}
	if device, known := (&gpu.Books{Devices: m.gpus.seen().Devices}).Device(l.GPU); known && s.MemoryLimitBytes == 0 {
		s.MemoryLimitBytes = device.MemoryBytes
	}
	if l.Mode == gpu.Exclusive {
		s.UtilPercent, s.EncoderPercent, s.DecoderPercent = u.UtilPercent, u.EncoderPercent, u.DecoderPercent
	}
	for _, p := range u.Processes {
		if l.Mode == gpu.MIGMode && p.MIG != "" && p.MIG != l.MIG {
			continue
		}
		if mine, err := m.cfg.InEnvironment(p.PID, env.ID); err != nil || !mine {
			if err != nil && !errdefs.IsNotFound(err) { // else it has ended
				m.cfg.Log.DebugContext(ctx, "a process on a GPU cannot be told", "pid", p.PID, "error", err)
			}
			continue
		}
		s.MemoryBytes += p.MemoryBytes
		s.Processes++
		if l.Mode != gpu.Exclusive && l.Mode != gpu.MIGMode {
			s.UtilPercent = together(s.UtilPercent, p.UtilPercent)
			s.EncoderPercent = together(s.EncoderPercent, p.EncoderPercent)
			s.DecoderPercent = together(s.DecoderPercent, p.DecoderPercent)
		}
	}
	if bytes, told := reading.memory[memoryOf{l.GPU, env.ID}]; told {
		s.MemoryBytes = bytes
		return s
	}
	s.MemoryUnknown = s.MemoryBytes == 0 && m.hiddenByMPS(l)
	return s
}

// together is the sum of two shares of time, of which a negative one is not
// known.
func together(a, b int) int {
	if b < 0 {
		return a
	}
	return min(max(a, 0)+b, 100)
}

// hiddenByMPS says that an environment uses a GPU through an MPS server, for
// which the driver tells what all have together.
func (m *Manager) hiddenByMPS(l *gpu.Lease) bool {
	return m.cfg.GPU.Rules.SharedBy.ServedByMPS(shareOf(l).Enforcement)
}
