package runtime

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/drm"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// gpuClaim is a GPU, or an instance, on which nothing of others may be left when an
// environment starts.
type gpuClaim struct {
	*gpu.Lease
	mig string // UUID of the instance; "": the whole GPU
	// beside are those who share the GPU and may be starting as well.
	beside []*Environment
}

// sole says that a lease is of what nobody else uses.
func sole(l *gpu.Lease) bool { return l.Mode == gpu.Exclusive || l.Mode == gpu.MIGMode }

// gpuClaims are those of an environment that has no process: what it is to have
// alone, and GPUs that it shares with nobody who has a process. What uses these
// is of no environment then.
func (m *Manager) gpuClaims(ctx context.Context, env *Environment, run *GPURun) ([]gpuClaim, error) {
	var others []*Environment
	if slices.ContainsFunc(env.GPUs, func(l gpu.Lease) bool { return !sole(&l) }) {
		all, _, err := m.cfg.Store.Environments(ctx, Filter{})
		if err != nil {
			return nil, fmt.Errorf("list who shares the GPUs of environment %s: %w", env.ID, err)
		}
		others = slices.DeleteFunc(all, func(other *Environment) bool { return other.ID == env.ID })
	}
	var found []gpuClaim
	for i := range env.GPUs {
		c := gpuClaim{Lease: &env.GPUs[i]}
		c.mig = run.instance(c.GPU)
		if !sole(c.Lease) {
			if strings.HasPrefix(c.GPU, drm.UUIDPrefix) {
				continue // which processes use it nobody can tell
			}
			sharing := slices.DeleteFunc(slices.Clone(others), func(other *Environment) bool { return !shares(other, c.GPU) })
			strangers, err := m.strangersShare(ctx, c.GPU)
			if err != nil {
				return nil, err
			}
			if strangers || slices.ContainsFunc(sharing, (*Environment).Alive) {
				continue
			}
			c.beside = sharing
		}
		found = append(found, c)
	}
	return found, nil
}

// shares says whether an environment shares a GPU and has a process, or may be
// about to.
func shares(env *Environment, uuid string) bool {
	return (env.Alive() || env.Operation != "") && slices.ContainsFunc(env.GPUs, func(l gpu.Lease) bool {
		return l.GPU == uuid && shareOf(&l).Enforcement != ""
	})
}

// leftOn is what is left on what a claim is of; nil when it is clean. What was
// not measured is not.
func (m *Manager) leftOn(ctx context.Context, env *Environment, c *gpuClaim, usage []gpu.Usage) error {
	at := slices.IndexFunc(usage, func(u gpu.Usage) bool { return u.UUID == c.GPU })
	if at < 0 {
		return problem.New(problem.GPUUnavailable, "the driver does not tell what is left on GPU %s", c.GPU).
			WithHint("see whether nvidia-smi works on the host, and remotegpu gpu get %s", c.GPU)
	}
	u := &usage[at]
	var pids []string
	expected := len(c.beside) > 0
	for _, p := range u.Processes {
		switch {
		case p.MIG != c.mig:
		case !sole(c.Lease) && m.mayStay(ctx, c, &p):
			expected = true
		default:
			pids = append(pids, fmt.Sprintf("%d (%d MiB)", p.PID, p.MemoryBytes>>20))
		}
	}
	if len(pids) > 0 {
		what, share, hint := "GPU "+u.UUID, "which it is to have alone", "end them, or use the mode shared"
		if c.mig != "" {
			what = "MIG instance " + c.mig
		}
		if !sole(c.Lease) {
			share, hint = "a share of which it is to have, and no other environment runs there", "end them, or use another GPU"
		}
		return problem.New(problem.GPUInUse, "processes that are not of environment %q use %s, %s: %s",
			env.Name, what, share, strings.Join(pids, ", ")).WithHint("%s", hint)
	}
	if expected {
		return nil
	}
	return m.memoryLeft(u, c.mig)
}

// memoryLeft says that memory of a GPU, or of an instance of it, is in use though no
// process is there; nil when it is not.
func (m *Manager) memoryLeft(u *gpu.Usage, mig string) error {
	what, used, total, tolerated := "GPU "+u.UUID, u.MemoryUsed, u.MemoryUsed+u.MemoryFree, m.cfg.GPU.Leftover
	hint := "drain and reset it (remotegpu gpu drain %[1]s; nvidia-smi -r -i %[1]s; remotegpu gpu undrain %[1]s), or raise gpu.leftover in the node's configuration"
	if at := slices.IndexFunc(u.Instances, func(i gpu.InstanceUsage) bool { return i.UUID == mig }); mig != "" {
		whole := total
		what, used, total = "MIG instance "+mig, 0, 0
		if at >= 0 && whole > 0 {
			used, total = u.Instances[at].MemoryUsed, u.Instances[at].MemoryUsed+u.Instances[at].MemoryFree
			tolerated = uint64(float64(tolerated) * min(1, float64(total)/float64(whole)))
		}
		hint = "have it made anew: delete or stop who has it, remotegpu gpu mig delete " + mig + "; or raise gpu.leftover in the node's configuration"
	}
	switch {
	case total == 0:
		return problem.New(problem.GPUUnavailable, "the driver does not tell how much memory of %s is in use", what).
			WithHint("see whether nvidia-smi works on the host, and remotegpu gpu get %s", u.UUID)
	case used > tolerated && mig != "":
		return problem.New(problem.GPUInUse, "%d MiB of the memory of %s are in use though no process is there", used>>20, what).WithHint("%s", hint)
	case used > tolerated:
		return problem.New(problem.GPUInUse, "%d MiB of the memory of %s are in use though no process is there", used>>20, what).WithHint(hint, u.UUID)
	}
	return nil
}

// mayStay says whether a process may use a GPU that is shared: one of those who
// start at the same time, of what they share it by, or a program of the host that
// draws, as its own desktop does. One that has ended may.
func (m *Manager) mayStay(ctx context.Context, c *gpuClaim, p *gpu.Process) bool {
	is := func(mine bool, err error) bool {
		if err != nil && !errdefs.IsNotFound(err) {
			m.cfg.Log.DebugContext(ctx, "a process on a GPU cannot be told", "pid", p.PID, "error", err)
		}
		return mine && err == nil || errdefs.IsNotFound(err)
	}
	for _, other := range c.beside {
		if is(m.cfg.InEnvironment(p.PID, other.ID)) {
			return true
		}
	}
	if len(c.beside) > 0 && m.cfg.GPU.Sharing != nil && is(m.cfg.GPU.Sharing.Runs(c.GPU, p.PID)) {
		return true
	}
	return p.Graphics && !m.ofEnvironments(p.PID)
}

// ofEnvironments says whether a process is of an environment, one that is gone
// included.
func (m *Manager) ofEnvironments(pid int) bool {
	mine, err := m.cfg.InEnvironment(pid, "")
	return mine || err != nil
}
