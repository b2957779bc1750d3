package runtime

import (
	"context"
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

// GPUStats is what an environment uses of one of its GPUs.
type GPUStats struct {
	GPU, MIG    string // UUIDs
	MemoryBytes uint64 // used by its processes
	// MemoryUnknown says that MemoryBytes is not known: the clients of an MPS
	// server use the server's.
	MemoryUnknown bool
	// MemoryLimitBytes is what it has: of the GPU, of the instance, or its
	// share. 0: not known.
	MemoryLimitBytes uint64
	UtilPercent      int // of the GPU when it has it alone, else of its processes; -1: nobody can tell
	Processes        int // of it, on the GPU
}

// gpuUsage is what the GPUs did a moment ago.
type gpuUsage struct {
	turn keylock.Map[struct{}] // who measures
	mu   sync.Mutex
	last []gpu.Usage
	next time.Time // when it is to be measured again
}

func (u *gpuUsage) get() (last []gpu.Usage, fresh bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.last, time.Now().Before(u.next)
}

func (u *gpuUsage) set(last []gpu.Usage, age time.Duration) []gpu.Usage {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.last, u.next = last, time.Now().Add(age)
	return last
}

// read measures GPUs unless that was done a moment ago. nil: it is not known.
func (u *gpuUsage) read(ctx context.Context, driver gpu.Driver) []gpu.Usage {
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
	last, err := driver.Usage(asking)
	switch {
	case err == nil:
		return u.set(last, freshUsage)
	case ctx.Err() == nil:
		return u.set(nil, usagePause)
	default:
		return nil
	}
}

// measureGPUs sets what environments use of their GPUs, as far as that is
// known.
func (m *Manager) measureGPUs(ctx context.Context, envs []*Environment, stats []Stats) {
	for i, env := range envs {
		if m.cfg.GPUs == nil || len(env.GPUs) == 0 || !env.Alive() {
			continue
		}
		usage := m.gpuUsage.read(ctx, m.cfg.GPUs)
		m.fillInstances(env)
		for j := range env.GPUs {
			for k := range usage {
				if usage[k].UUID == env.GPUs[j].GPU {
					stats[i].GPUs = append(stats[i].GPUs, m.ofEnvironment(ctx, env, &env.GPUs[j], &usage[k]))
				}
			}
		}
	}
}

// ofEnvironment is an environment's part of what one of its GPUs does.
func (m *Manager) ofEnvironment(ctx context.Context, env *Environment, l *gpu.Lease, u *gpu.Usage) GPUStats {
	s := GPUStats{GPU: l.GPU, MIG: l.MIG, MemoryLimitBytes: l.MemoryBytes, UtilPercent: -1}
	if device, known := (&gpu.Books{Devices: m.gpus.seen().Devices}).Device(l.GPU); known && s.MemoryLimitBytes == 0 {
		s.MemoryLimitBytes = device.MemoryBytes
	}
	if l.Mode == gpu.Exclusive {
		s.UtilPercent = u.UtilPercent
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
		if p.UtilPercent >= 0 && l.Mode != gpu.Exclusive && l.Mode != gpu.MIGMode {
			s.UtilPercent = min(max(s.UtilPercent, 0)+p.UtilPercent, 100)
		}
	}
	s.MemoryUnknown = l.Enforcement == gpu.ByMPS && s.MemoryBytes == 0
	return s
}
