package runtime

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/runtime/operation"
)

// registerHandlers tells the queue what the Manager can do. A create that
// failed is not tried again by itself: the caller has its reason at once.
// Interrupted work (the daemon died) is begun anew a few times.
func (m *Manager) registerHandlers() {
	const interruptions = 4
	environment := operation.Policy{MaxAttempts: interruptions, Abandon: m.abandon}
	m.cfg.Queue.Handle(KindCreate, m.runCreate, environment)
	m.cfg.Queue.Handle(KindStart, m.runStart, environment)
	m.cfg.Queue.Handle(KindStop, m.runStop, environment)
	m.cfg.Queue.Handle(KindRestart, m.runRestart, environment)
	m.cfg.Queue.Handle(KindDelete, m.runDelete, environment)
	m.cfg.Queue.Handle(KindPull, m.runPull, operation.Policy{MaxAttempts: interruptions})
	m.cfg.Queue.Handle(KindBuild, m.runBuild, operation.Policy{MaxAttempts: interruptions})
}

// abandon unwinds an operation that will not be tried again though its handler
// did not end it: it was cancelled while it waited, or interrupted too often.
func (m *Manager) abandon(ctx context.Context, op *operation.Operation) error {
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
	cause := errors.New("the operation was given up")
	if op.Problem != nil {
		cause = errors.New(op.Problem.Message)
	}
	if env.State != Creating {
		return m.unlock(ctx, env.ID)
	}
	if err := m.failCreate(ctx, env, cause); !operation.IsPermanent(err) {
		return err
	}
	return nil
}
