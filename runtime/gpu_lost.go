package runtime

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// lookForLost finds processes that do not have their GPUs any more. That the GPU
// is there again helps none: a process keeps what it opened, which is dead.
func (m *Manager) lookForLost(ctx context.Context, envs []*Environment, found *gpu.Inventory) error {
	books, err := m.cfg.Store.GPUBooks(ctx)
	if err != nil {
		return err
	}
	books.Devices = found.Devices
	var (
		errs []error
		lost []string
	)
	for _, env := range envs {
		if !env.Alive() || env.GPURun == nil || env.Operation != "" {
			continue
		}
		why := env.GPURun.Lost
		if why == "" {
			why = cmp.Or(lostGPUs(env, &books, found.Driver), m.lostShare(env))
		}
		if why != "" {
			lost = append(lost, env.Name+": "+why)
		}
		if why != env.GPURun.Lost {
			errs = append(errs, m.recordLost(ctx, env, why))
		}
		if why != "" && m.cfg.GPU.Cure == CureRestart && env.State == Running {
			errs = append(errs, m.cureLost(ctx, env))
		}
	}
	var condition error
	if len(lost) > 0 {
		condition = problem.New(problem.GPULost, "%d environments run without their GPUs: %s", len(lost), strings.Join(lost, "; ")).
			WithHint("restart them: remotegpu env restart NAME; gpu.cure in the node's configuration can do so")
	}
	m.setCondition(problem.GPULost, condition)
	return errors.Join(errs...)
}

// cureLost restarts an environment that runs without its GPU. Where it could
// not have one again the next pass tries anew.
func (m *Manager) cureLost(ctx context.Context, env *Environment) error {
	_, _, err := m.Restart(ctx, ActionRequest{Project: env.Project, Environment: env.ID})
	if err == nil {
		return nil
	}
	if reason := problem.Of(err).Reason; reason == problem.EnvBusy || strings.HasPrefix(string(reason), "GPU_") {
		return nil
	}
	return fmt.Errorf("restart environment %s, which has lost its GPU: %w", env.ID, err)
}

// recordLost keeps until the next start that a process has lost its GPUs, and
// tells of it.
func (m *Manager) recordLost(ctx context.Context, seen *Environment, why string) error {
	_, err := m.update(ctx, seen.ID, func(env *Environment) error {
		if env.GPURun == nil || env.Operation != "" || !env.StartedAt.Equal(seen.StartedAt) || env.GPURun.Lost != "" {
			return errNotOurs
		}
		run := *env.GPURun
		run.Lost = why
		env.GPURun = &run
		env.News = append(env.News, History{Time: time.Now(), Kind: HappenedGPUFail, Message: why})
		return nil
	})
	if errors.Is(err, errNotOurs) {
		return nil
	}
	return ignoreNotFound(err)
}

// lostGPUs says why a process does not have its GPUs any more; "" when it has.
func lostGPUs(env *Environment, books *gpu.Books, driver string) string {
	run := env.GPURun
	for _, target := range run.Targets {
		device, there := books.Device(target.GPU)
		mark := books.Mark(target.GPU).Health
		switch {
		case !there:
			return "GPU " + target.GPU + " is not there any more"
		case device.Health.Failed():
			return failed(target.GPU, device.Health.Reason)
		case mark.Unhealthy: // also one of while it was started: none is given before
			return failed(target.GPU, mark.Reason)
		case device.Health.Unsure:
		case target.MIG != "" && !slices.ContainsFunc(device.MIG.Instances, func(i gpu.MIGInstance) bool { return i.UUID == target.MIG }):
			return "MIG instance " + target.MIG + " is not there any more"
		}
	}
	if run.Driver != "" && driver != "" && run.Driver != driver {
		return "the driver was replaced by version " + driver + " while the process has libraries of version " + run.Driver
	}
	return ""
}
