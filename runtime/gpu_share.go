package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// Sharing runs what holds environments to their shares of GPUs while they have a
// process; *mps.Daemons does. It is begun by the edits of a start.
type Sharing interface {
	// Keep ends what runs for GPUs that are not needed, and mends what runs for
	// the others. needed is asked while no start begins for that GPU.
	Keep(ctx context.Context, needed func(ctx context.Context, gpuUUID string) (bool, error)) error
	// Settle does as Keep for one GPU.
	Settle(ctx context.Context, gpuUUID string, needed func(ctx context.Context, gpuUUID string) (bool, error)) error
	// Since is when what runs for a GPU was begun; false when nothing is to run.
	Since(gpuUUID string) (time.Time, bool)
	// Runs says whether a process is of what runs for a GPU. NotFound when there
	// is none.
	Runs(gpuUUID string, pid int) (bool, error)
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

// keepSharing ends what the last holder of a GPU's share has left behind, and
// mends what others share theirs by. One that an operation works on may be about
// to start: that is written down before anything begins. What cannot be ended or
// mended is a condition.
func (m *Manager) keepSharing(ctx context.Context) error {
	if m.cfg.GPU.Sharing == nil {
		return nil
	}
	var needed []string
	err := m.cfg.GPU.Sharing.Keep(ctx, func(ctx context.Context, uuid string) (bool, error) {
		is, err := m.sharingNeeded(ctx, uuid, "")
		if is {
			needed = append(needed, uuid)
		}
		return is, err
	})
	if ctx.Err() == nil {
		var failed error
		if err != nil {
			failed = problem.New(problem.GPUSharingFailed, "what GPUs are shared by does not run, or does not end").WithCause(err).
				WithHint("see the message; it is tried again every minute, and with the next start of who shares the GPU")
		}
		m.setCondition(problem.GPUSharingFailed, failed)
	}
	return errors.Join(err, m.tellInterrupted(ctx, needed))
}

// settleSharing does as keepSharing for the GPUs of leases, as if an environment
// (without, "": none) did not need it. Who is given one next must not find it
// closed to all but clients of a daemon.
func (m *Manager) settleSharing(ctx context.Context, leases []gpu.Lease, without string) error {
	if m.cfg.GPU.Sharing == nil {
		return nil
	}
	var errs []error
	for i := range leases {
		err := m.cfg.GPU.Sharing.Settle(ctx, leases[i].GPU, func(ctx context.Context, uuid string) (bool, error) {
			return m.sharingNeeded(ctx, uuid, without)
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("end what GPU %s was shared by: %w", leases[i].GPU, err))
		}
	}
	return errors.Join(errs...)
}

// leaveSharing settles it for GPUs that an environment has done with. What fails
// the reconciler, or the next who is given one, tries again.
func (m *Manager) leaveSharing(ctx context.Context, id string, leases []gpu.Lease) {
	if err := m.settleSharing(ctx, leases, ""); err != nil {
		m.cfg.Log.WarnContext(ctx, "what an environment shared GPUs by is still there", "environment", id, "error", err)
	}
}

// sharingNeeded says whether somebody else than an environment ("": than nobody)
// who shares a GPU has a process, or may be about to.
func (m *Manager) sharingNeeded(ctx context.Context, uuid, without string) (bool, error) {
	envs, _, err := m.cfg.Store.Environments(ctx, Filter{})
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(envs, func(env *Environment) bool { return env.ID != without && shares(env, uuid) }) {
		return true, nil
	}
	return m.strangersShare(ctx, uuid)
}

// strangersShare says whether containers that the database does not know share a
// GPU.
func (m *Manager) strangersShare(ctx context.Context, uuid string) (bool, error) {
	strange, err := m.strangeLeases(ctx)
	return slices.ContainsFunc(strange, func(l gpu.Lease) bool { return l.GPU == uuid && shareOf(&l).Enforcement != "" }), err
}

// tellInterrupted tells those who run that what they share a GPU by has ended
// under them, once each time: CUDA fails in the processes that used it until they
// are started again. needed are the GPUs of which it was to be there.
func (m *Manager) tellInterrupted(ctx context.Context, needed []string) error {
	envs, _, err := m.cfg.Store.Environments(ctx, Filter{})
	if err != nil {
		return fmt.Errorf("list who shares GPUs: %w", err)
	}
	var errs []error
	for _, env := range envs {
		if !env.Alive() || env.GPURun == nil || env.Operation != "" {
			continue
		}
		for i := range env.GPUs {
			uuid := env.GPUs[i].GPU
			if !shares(env, uuid) {
				continue
			}
			since, there := m.cfg.GPU.Sharing.Since(uuid)
			switch {
			case there && since.After(env.StartedAt) && since.After(env.GPURun.Interrupted):
				errs = append(errs, m.recordInterrupted(ctx, env, since,
					"what GPU "+uuid+" is shared by had ended and was begun anew: programs that used CUDA have to be started again"))
			case !there && slices.Contains(needed, uuid):
				errs = append(errs, m.recordInterrupted(ctx, env, time.Now(),
					"what GPU "+uuid+" was shared by was turned off on this node: programs that used CUDA have to be started again"))
			}
		}
	}
	return errors.Join(errs...)
}

// recordInterrupted adds to the history of a process what happened to what it
// shares a GPU by.
func (m *Manager) recordInterrupted(ctx context.Context, seen *Environment, at time.Time, what string) error {
	m.cfg.Log.WarnContext(ctx, "what a GPU is shared by ended under an environment", "environment", seen.ID, "detail", what)
	_, err := m.update(ctx, seen.ID, func(env *Environment) error {
		if env.GPURun == nil || env.Operation != "" || !env.StartedAt.Equal(seen.StartedAt) || !at.After(env.GPURun.Interrupted) {
			return errNotOurs
		}
		run := *env.GPURun
		run.Interrupted = at
		env.GPURun = &run
		env.News = append(env.News, History{Time: time.Now(), Kind: HappenedGPUFail, Message: what})
		return nil
	})
	if errors.Is(err, errNotOurs) {
		return nil
	}
	return ignoreNotFound(err)
}

// lostShare says that nothing holds a process to its share any more; "" when
// something does.
func (m *Manager) lostShare(env *Environment) string {
	for _, target := range env.GPURun.Targets {
		if target.Share.Enforcement == gpu.ByMPS && !slices.Contains(m.cfg.GPU.Rules.Enforcers, gpu.ByMPS) {
			return "MPS, which held it to its share of GPU " + target.GPU + ", was turned off on this node"
		}
	}
	return ""
}
