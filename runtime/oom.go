package runtime

import (
	"context"
	"errors"
	"log/slog"

	"github.com/containerd/errdefs"
)

// outOfMemory keeps that the kernel has killed so many processes of an
// environment's task up to now. Its first process may live on. While an
// operation works on the environment, the end of the operation does.
func (m *Manager) outOfMemory(ctx context.Context, id string, kills int) error {
	// Kept first and looked at then, as in ended.
	m.missed.putKills(id, kills)
	env, err := m.cfg.Store.Environment(ctx, id)
	if err == nil && env.Operation != "" {
		return nil
	}
	m.missed.takeKills(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	unlock, env, err := m.lockIdle(ctx, id)
	if env == nil {
		if err == nil {
			m.missed.putKills(id, kills) // an operation has begun
		}
		return err
	}
	defer unlock()
	// The engine knows better: what is told may be of an earlier run. Of a task
	// that is gone nobody knows more.
	status, err := m.cfg.Engine.Status(ctx, id)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if status.Running || status.Exit != nil {
		kills = status.OOMKills
	}
	_, err = m.update(ctx, id, func(env *Environment) error {
		if env.Operation != "" || env.OOMKills >= kills {
			return errNotOurs
		}
		env.OOMKills = kills
		return nil
	})
	if errors.Is(err, errNotOurs) || errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// countKills records what no event told of, as while the daemon was away.
func (m *Manager) countKills(ctx context.Context, o *observed) {
	for _, env := range o.environments {
		status := o.containers[env.ID]
		if env.Operation != "" || !env.Alive() || !status.Running || status.OOMKills <= env.OOMKills {
			continue
		}
		if err := m.outOfMemory(ctx, env.ID, status.OOMKills); err != nil && ctx.Err() == nil {
			m.leave(ctx, slog.LevelWarn, "recording that memory ran out failed", "environment", env.ID, "error", err)
		}
	}
}
