package runtime

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// carryOut does what a plan says and notes it in the findings. What was
// observed is a while ago by now: each step looks again, under the lock of the
// environment, before it changes anything. The error is of what belongs to no
// finding.
func (m *Manager) carryOut(ctx context.Context, o *observed, findings []Finding, mode passMode) error {
	declared := m.bringUp(ctx, o, findings)
	for i := range findings {
		if f := &findings[i]; f.step == stepDeclare {
			f.settle(declared)
		}
	}
	if mode == wholePass {
		m.removeLeftovers(ctx, findings)
		m.removeDeletedVolumes(ctx, findings)
		m.removeStaleExecs(ctx)
		m.askToTend(ctx)
	}
	m.reportStrangers(findings)
	m.reportSnapshots(o)
	m.reportLostLogs(o)
	m.reportCutOff(o)
	if settled(findings, stepDeclare) {
		declared = nil // the findings have it
	}
	return errors.Join(declared, m.purge(ctx, keepDeleted))
}

// mendersAtOnce is how many environments are brought in order at the same time:
// each is mostly waited for, and a shim that hangs is waited for long.
const mendersAtOnce = 8

// bringUp makes the database follow what is, and then the host follow the
// database. The error is of the host's ports.
func (m *Manager) bringUp(ctx context.Context, o *observed, findings []Finding) error {
	differ := make(map[string][]*Finding) // by environment; of one in their order
	for i := range findings {
		if f := &findings[i]; f.step != stepSnapshot {
			differ[f.EnvID] = append(differ[f.EnvID], f)
		}
	}
	group := new(errgroup.Group)
	group.SetLimit(mendersAtOnce)
	for _, found := range differ {
		group.Go(func() error {
			for _, f := range found {
				m.mend(ctx, o, f)
			}
			return nil
		})
	}
	_ = group.Wait() // each finding has its error
	for i := range findings {
		if f := &findings[i]; f.step == stepSnapshot { // these may depend on each other
			f.settle(m.mendSnapshot(ctx, f.Name))
		}
	}
	m.countKills(ctx, o)
	m.removeDeadLeft(ctx, o)
	m.ensureDrawing(o.environments)
	return m.restorePorts(ctx)
}

// mend makes the database follow what is of one environment.
func (m *Manager) mend(ctx context.Context, o *observed, f *Finding) {
	switch f.step { //nolint:exhaustive // the others are not about the database
	case stepEnded:
		f.settle(m.ended(ctx, f.EnvID, o.containers[f.EnvID].Exit))
	case stepFree:
		f.settle(m.freeAbandoned(ctx, f.EnvID, f.Name))
	case stepUndo:
		f.settle(m.finishUndo(ctx, f.EnvID))
	case stepFrozen:
		f.settle(m.frozen(ctx, f.EnvID))
	case stepAdopt:
		f.settle(m.adoptRunning(ctx, f.EnvID))
	case stepRelabel:
		f.settle(m.relabel(ctx, f.EnvID))
	case stepGone:
		f.settle(m.containerGone(ctx, f.EnvID))
	case stepPin:
		f.settle(m.pinAgain(ctx, o, f.EnvID))
	}
}

// removersAtOnce is how many leftovers are removed at the same time: each is
// mostly waited for.
const removersAtOnce = 4

// removeLeftovers removes what belongs to nobody.
func (m *Manager) removeLeftovers(ctx context.Context, findings []Finding) {
	left := make(map[string][]*Finding) // by environment
	for i := range findings {
		if f := &findings[i]; f.step == stepTeardown {
			left[f.EnvID] = append(left[f.EnvID], f)
		}
	}
	group := new(errgroup.Group)
	group.SetLimit(removersAtOnce)
	for id, found := range left {
		group.Go(func() error {
			err := m.removeLeftover(ctx, id)
			for _, f := range found {
				f.settle(err)
			}
			return nil
		})
	}
	_ = group.Wait() // each finding has its error
	// These may depend on each other, as snapshots do.
	for i := range findings {
		if f := &findings[i]; f.step == stepPart {
			f.settle(m.removePart(ctx, Part{Kind: f.Kind, Name: f.Name}))
		}
	}
}

// ensureDrawing has the desktops watched that have not drawn.
func (m *Manager) ensureDrawing(envs []*Environment) {
	for _, env := range envs {
		if env.Operation == "" && env.Held && undrawn(env) {
			m.drawing.ensure(env.ID)
		}
	}
}

// undrawn tells of a desktop that runs and has not drawn.
func undrawn(env *Environment) bool {
	return env.State == Running && env.Effective().Desktop != nil && !env.Ready
}

// settle notes how the action went.
func (f *Finding) settle(err error) {
	f.Done, f.err = err == nil, err
	if err != nil {
		f.Problem = operation.ProblemOf(err)
	}
}

// settled says whether a finding of that step was made.
func settled(findings []Finding, step step) bool {
	for i := range findings {
		if findings[i].step == step {
			return true
		}
	}
	return false
}

// restorePorts declares all published ports and policies. It reads them anew: the pass may
// have taken minutes by now.
func (m *Manager) restorePorts(ctx context.Context) error {
	creating := m.creating.ids() // before the store, which may say by now that they run
	envs, _, err := m.cfg.Store.Environments(ctx, Filter{})
	if err != nil {
		return fmt.Errorf("list environments: %w", err)
	}
	for _, env := range envs {
		m.fill(env)
	}
	err = m.cfg.Networks.Restore(ctx, published(envs, creating), policies(envs))
	m.setCondition(problem.FirewallFailed, err)
	return errors.Join(err, m.lookForConflicts(ctx))
}

// freeAbandoned frees an environment from an operation that is done and could
// not say so, as when the disk was full: nothing else ever would. An operation
// lets go of its environment before it is done.
func (m *Manager) freeAbandoned(ctx context.Context, envID, opID string) error {
	op, err := m.cfg.Store.Operation(ctx, opID)
	switch {
	case errdefs.IsNotFound(err):
		op = &operation.Operation{ID: opID, Target: envID}
	case err != nil:
		return err
	case !op.State.Done():
		return nil
	}
	if err := m.abandon(ctx, op); err != nil {
		return fmt.Errorf("free environment %s from operation %s: %w", envID, opID, err)
	}
	return nil
}

// finishUndo gives back what a failed create could not.
func (m *Manager) finishUndo(ctx context.Context, id string) error {
	unlock, env, err := m.lockIdle(ctx, id)
	if env == nil {
		return err
	}
	defer unlock()
	if env.State != Failed || !env.StartedAt.IsZero() || !env.Held {
		return nil
	}
	if err := m.teardown(ctx, env); err != nil {
		return fmt.Errorf("undo failed create of environment %s: %w", env.ID, err)
	}
	return m.release(ctx, env.ID, func(*Environment) {})
}

// adoptRunning records that an environment runs that was started behind our
// back, or by an attempt that died.
func (m *Manager) adoptRunning(ctx context.Context, id string) error {
	unlock, env, err := m.lockIdle(ctx, id)
	if env == nil {
		return err
	}
	defer unlock()
	status, err := m.cfg.Engine.Status(ctx, id)
	if err != nil || !status.Running {
		return ignoreNotFound(err) // it has been stopped since the list was read
	}
	env, err = m.update(ctx, id, func(env *Environment) error {
		if env.Operation != "" || env.Alive() {
			return errNotOurs
		}
		env.State, env.Problem = Running, nil
		if status.Paused {
			pauseNow(env)
		}
		return nil
	})
	if errors.Is(err, errNotOurs) {
		return nil
	}
	if err == nil && !env.Paused {
		m.started(env)
	}
	return err
}

// removeLeftover removes what an environment left behind that is gone: one the
// store knows as deleted or holding nothing, or one that nobody knows and that
// has no container.
func (m *Manager) removeLeftover(ctx context.Context, id string) error {
	waiting, cancel := context.WithTimeout(ctx, idleWait)
	defer cancel()
	unlock, err := m.locks.Lock(waiting, id)
	if err != nil {
		return ctx.Err() // an operation works on it, which does as much
	}
	defer unlock()
	fate, err := m.cfg.Store.Fate(ctx, id)
	if err != nil || fate == FateHeld {
		return err // it was made since the list was read
	}
	if fate == FateUnknown {
		// The database may have been lost: its container is the only copy of
		// somebody's work.
		if _, err := m.cfg.Engine.Status(ctx, id); !errdefs.IsNotFound(err) {
			return err
		}
	}
	m.cfg.Log.InfoContext(ctx, "removing what an environment left behind", "environment", id)
	if err := m.teardown(ctx, &Environment{ID: id}); err != nil {
		return fmt.Errorf("remove what environment %s left: %w", id, err)
	}
	return nil
}

// removePart removes something that belongs to no environment.
func (m *Manager) removePart(ctx context.Context, part Part) error {
	m.cfg.Log.InfoContext(ctx, "removing what belongs to nobody", "kind", string(part.Kind), "name", part.Name)
	switch part.Kind {
	case FoundInterface:
		return m.cfg.Networks.RemoveStray(ctx, part.Name)
	case FoundCredentials:
		return m.logins.forget(part.Name)
	default:
		return m.cfg.Engine.RemovePart(ctx, part)
	}
}

// reportStrangers keeps a condition while there are containers that the
// database does not know.
func (m *Manager) reportStrangers(findings []Finding) {
	var strangers int
	for i := range findings {
		if findings[i].Kind == FoundContainer && !findings[i].Ours {
			strangers++
		}
	}
	var stranger error
	if strangers > 0 {
		stranger = problem.New(problem.ContainerUnknown, "%d containers in our namespace belong to no environment of this node's database", strangers).
			WithHint("see remotegpu node reconcile --dry-run; if the database was lost restore it, otherwise remove them with ctr")
	}
	m.setCondition(problem.ContainerUnknown, stranger)
}
