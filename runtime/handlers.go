package runtime

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// registerHandlers tells the queue what the Manager can do. A create that
// failed is not tried again by itself: the caller has its reason at once.
// Interrupted work (the daemon died) is begun anew a few times. Pulls and
// builds may hang on a registry for long: they leave workers to the others.
func (m *Manager) registerHandlers() {
	const interruptions = 4
	environment := operation.Policy{MaxAttempts: interruptions, Abandon: m.abandon}
	m.cfg.Queue.Handle(KindCreate, m.alone(m.runCreate), environment)
	m.cfg.Queue.Handle(KindStart, m.alone(m.runStart), environment)
	m.cfg.Queue.Handle(KindStop, m.alone(m.runStop), environment)
	m.cfg.Queue.Handle(KindRestart, m.alone(m.runRestart), environment)
	m.cfg.Queue.Handle(KindDelete, m.alone(m.runDelete), environment)
	m.cfg.Queue.Handle(KindPull, m.runPull, operation.Policy{MaxAttempts: interruptions, Limit: 3})
	m.cfg.Queue.Handle(KindBuild, m.runBuild, operation.Policy{MaxAttempts: interruptions, Limit: 2})
}

// abandon unwinds an operation that will not be tried again though its handler
// did not end it: it was cancelled while it waited, or interrupted too often.
func (m *Manager) abandon(ctx context.Context, op *operation.Operation) error {
	release, err := m.locks.Lock(ctx, op.Target)
	if err != nil {
		return err
	}
	defer release()
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
		if op.CancelRequested {
			return m.unlockCancelled(ctx, env.ID, op.ID)
		}
		return m.unlock(ctx, env.ID, op.ID)
	}
	cause := &problem.Problem{Reason: problem.OperationInterrupted, Message: "the operation was given up", Hint: "delete the environment and create it anew"}
	if p := op.Problem; p != nil {
		cause = &problem.Problem{Reason: problem.Reason(p.Reason), Message: p.Message, Field: p.Field, Hint: p.Hint}
	}
	if err := m.failCreate(ctx, env, op.ID, cause); !operation.IsPermanent(err) {
		return err
	}
	return nil
}
