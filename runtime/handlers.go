package runtime

import (
	"context"
	"errors"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// registerHandlers tells the queue what the Manager can do. A create that
// failed is not tried again by itself, unless for a containerd that is away:
// the caller has its reason at once.
// Interrupted work (the daemon died) is begun anew a few times. Pulls, pushes
// and builds may hang on a registry for long: they hold no worker meanwhile,
// and only a few of them go on at once. The pull of a create is one of these.
func (m *Manager) registerHandlers() {
	const interruptions = 4
	// patience is how often an operation asks again for a containerd that does
	// not answer: for about seven minutes, with waits of up to one.
	const patience = 12
	environment := operation.Policy{MaxAttempts: interruptions, MaxRetries: patience, Abandon: m.abandon}
	m.cfg.Queue.Handle(KindCreate, m.alone(m.runCreate), environment)
	m.cfg.Queue.Handle(KindStart, m.alone(m.runStart), environment)
	m.cfg.Queue.Handle(KindStop, m.alone(m.runStop), environment)
	m.cfg.Queue.Handle(KindRestart, m.alone(m.runRestart), environment)
	m.cfg.Queue.Handle(KindDelete, m.alone(m.runDelete), environment)
	m.cfg.Queue.Handle(KindPause, m.alone(m.runPause), environment)
	m.cfg.Queue.Handle(KindResume, m.alone(m.runResume), environment)
	m.cfg.Queue.Handle(KindSnapshot, m.alone(m.runSnapshot), environment)
	m.cfg.Queue.Handle(KindRollBack, m.alone(m.runRollBack), environment)
	m.cfg.Queue.Handle(KindExport, m.alone(m.runExport), operation.Policy{MaxAttempts: interruptions, Limit: 2, Abandon: m.abandon})
	m.cfg.Queue.Handle(KindUpdate, m.alone(m.runUpdate), environment)
	for _, kind := range []string{KindPortCreate, KindPortUpdate, KindPortDelete} {
		m.cfg.Queue.Handle(kind, m.alone(m.runPort), environment)
	}
	transfer := operation.Policy{MaxAttempts: interruptions, Limit: 3, Ended: m.forgetLogin}
	m.cfg.Queue.Handle(KindPull, m.runPull, transfer)
	m.cfg.Queue.Handle(KindPush, m.runPush, transfer)
	m.cfg.Queue.Handle(KindBuild, m.runBuild, operation.Policy{MaxAttempts: interruptions, Limit: 2, Ended: m.forgetBuild})
}

// abandon unwinds an operation that will not be tried again though its handler
// did not end it: it was cancelled while it waited, or interrupted too often.
func (m *Manager) abandon(ctx context.Context, op *operation.Operation) error {
	defer m.lookAtExit(ctx, op.Target) // as alone, once the lock is free
	release, err := m.locks.Lock(ctx, op.Target)
	if err != nil {
		return err
	}
	defer release()
	if err := m.abandonSnapshots(ctx, op.ID); err != nil {
		return err
	}
	env, err := m.cfg.Store.Environment(ctx, op.Target)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if env.Operation != op.ID {
		return nil // a later operation owns it
	}
	m.fill(env)
	if env.State != Creating {
		if op.Kind == KindDelete && op.Attempts > 0 {
			err := m.failDelete(ctx, env, op.ID, asProblem(op.Problem))
			if operation.IsPermanent(err) {
				return nil
			}
			return err
		}
		if op.Kind == KindUpdate && op.Attempts > 0 {
			return m.undoUpdate(ctx, env, op)
		}
		return m.abandonIdle(ctx, env, op)
	}
	if err := m.failCreate(ctx, env, op.ID, asProblem(op.Problem)); !operation.IsPermanent(err) {
		return err
	}
	return nil
}

// abandonIdle frees an environment from an operation that has changed nothing, unless it
// has paused the process or let it go on, which is undone. Somebody may want to end one
// whose shim does not answer, so what cannot be undone does not hold the environment once
// the operation is done: the record follows.
func (m *Manager) abandonIdle(ctx context.Context, env *Environment, op *operation.Operation) error {
	if op.Attempts > 0 && freezes(op.Kind, env) {
		if err := m.undoFreeze(ctx, env); err != nil && !op.State.Done() {
			return err
		} else if err != nil {
			m.cfg.Log.ErrorContext(ctx, "what an operation has begun could not be undone", "environment", env.ID, "operation", op.ID, "error", err)
		}
	}
	if err := m.unlockAs(ctx, env.ID, op.ID, op.CancelRequested || cancelledByUser(ctx)); err != nil {
		return err
	}
	if op.Attempts > 0 && (env.Paused || freezes(op.Kind, env)) {
		m.followFrozen(ctx, env.ID)
	}
	return nil
}

// asProblem is why an operation was given up.
func asProblem(p *operation.Problem) *problem.Problem {
	if p == nil {
		return problem.New(problem.OperationInterrupted, "the operation was given up").
			WithHint("delete the environment and create it anew")
	}
	return &problem.Problem{Reason: problem.Reason(p.Reason), Message: p.Message, Field: p.Field, Hint: p.Hint}
}

// triedAgain says that a handler returns err without undoing or recording
// anything, because it is called again: the daemon stops, containerd is
// away and will be back, or an image was set to another one meanwhile. Other
// failures of making something do not mend by themselves.
func triedAgain(ctx context.Context, task *operation.Task, err error) bool {
	if errors.Is(context.Cause(ctx), operation.ErrShutdown) {
		return true
	}
	return task.Retried(err) && slices.ContainsFunc(problem.All(err), func(p *problem.Problem) bool {
		return containerdAway(p) || p.Reason == problem.ImageChanged
	})
}

// containerdAway says that containerd is not there, or does not answer in time.
func containerdAway(p *problem.Problem) bool {
	return p.Reason == problem.ContainerdDown || p.Reason == problem.ContainerdTimeout
}
