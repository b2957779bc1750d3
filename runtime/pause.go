package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/cleanup"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// Pause freezes all processes of a running environment, which is stopped then:
// nothing of it runs, all that it has in memory is kept, and it goes on where
// it was when it is resumed or started. The operation is nil when it is paused
// already.
func (m *Manager) Pause(ctx context.Context, req ActionRequest) (*Environment, *operation.Operation, error) {
	return m.act(ctx, KindPause, req, func(env *Environment) (bool, error) {
		switch {
		case env.Paused:
			return false, nil
		case env.State != Running:
			return false, NotRunning(env)
		}
		return true, nil
	})
}

// Resume lets a paused environment go on. The operation is nil when it runs.
func (m *Manager) Resume(ctx context.Context, req ActionRequest) (*Environment, *operation.Operation, error) {
	return m.act(ctx, KindResume, req, func(env *Environment) (bool, error) {
		switch {
		case env.State == Running:
			return false, nil
		case !env.Paused:
			return false, problem.New(problem.EnvNotPaused, "environment %q is not paused: it %s", env.Name, env.Standing()).WithField("environment").
				WithHint("start it: remotegpu env start %s", env.Name)
		}
		return true, nil
	})
}

func (m *Manager) runPause(ctx context.Context, task *operation.Task) error {
	env, _, err := m.target(ctx, task)
	if env == nil || err != nil {
		return err
	}
	spans := startSpans(task)
	defer spans.end("pause")
	if err := m.cfg.Engine.Pause(ctx, env.ID); err != nil {
		if errdefs.IsNotFound(err) {
			err = problem.New(problem.EnvNotRunning, "the process of environment %q has ended", env.Name).WithField("environment").
				WithHint("start it again: remotegpu env start %s", env.Name).WithCause(err)
		}
		return m.failFreeze(ctx, env, task, fmt.Errorf("pause environment %s: %w", env.ID, err))
	}
	// It stands still: a cancellation that comes now must not hide that.
	recording, cancel := cleanup.Context(ctx)
	defer cancel()
	m.drawing.stop(env.ID)
	_, err = m.update(recording, env.ID, func(env *Environment) error {
		pauseNow(env)
		leave(env, task.Op.ID)
		return nil
	})
	return err
}

func (m *Manager) runResume(ctx context.Context, task *operation.Task) error {
	env, _, err := m.target(ctx, task)
	if env == nil || err != nil {
		return err
	}
	err = m.resume(ctx, env, task)
	if !errdefs.IsNotFound(err) {
		return err
	}
	// There is nothing to go on with. The record follows as soon as the
	// operation has let go.
	ended := problem.New(problem.ProcessExited, "the process of environment %q ended while it was paused", env.Name).
		WithHint("start it again: remotegpu env start %s; its files are kept", env.Name).WithCause(err)
	if err := m.unlock(ctx, env.ID, task.Op.ID); err != nil {
		return errors.Join(ended, err)
	}
	recording, cancel := cleanup.Context(ctx)
	defer cancel()
	dead, err := m.recordEnd(recording, env.ID, nil)
	if dead {
		err = m.removeDead(recording, env.ID)
	}
	if err != nil {
		m.leave(ctx, slog.LevelError, "recording an exit failed", "environment", env.ID, "error", err)
	}
	return operation.Permanent(ended)
}

// resume lets the process of an environment go on, which runs as before then.
// NotFound, with nothing changed, when it has none.
func (m *Manager) resume(ctx context.Context, env *Environment, task *operation.Task) error {
	spans := startSpans(task)
	if err := m.cfg.Engine.Resume(ctx, env.ID); errdefs.IsNotFound(err) {
		return err
	} else if err != nil {
		return m.failFreeze(ctx, env, task, fmt.Errorf("resume environment %s: %w", env.ID, err))
	}
	spans.end("resume")
	// It runs: a cancellation that comes now must not hide that.
	recording, cancel := cleanup.Context(ctx)
	defer cancel()
	running, err := m.update(recording, env.ID, func(env *Environment) error {
		resumeNow(env)
		leave(env, task.Op.ID)
		return nil
	})
	if err != nil {
		return err
	}
	m.watchDrawing(running)
	return nil
}

// failFreeze frees an environment that could not be paused or resumed, and
// undoes what the call may have done all the same: it is as it was, or the
// record says how it is. While the undoing fails the queue has abandon do it again.
func (m *Manager) failFreeze(ctx context.Context, env *Environment, task *operation.Task, cause error) error {
	if triedAgain(ctx, task, cause) {
		return cause
	}
	cause = asCancelled(ctx, cause)
	err := m.undoFreeze(ctx, env)
	if err == nil {
		err = m.unlock(ctx, env.ID, task.Op.ID)
	}
	if err != nil {
		return errors.Join(cause, err)
	}
	m.followFrozen(ctx, env.ID)
	return operation.Permanent(cause)
}

// freezes says that an operation pauses an environment, or lets it go on.
func freezes(kind string, env *Environment) bool {
	return kind == KindPause || kind == KindResume || kind == KindStart && env.Paused
}

// undoFreeze brings an environment back to what its record says, paused or not.
func (m *Manager) undoFreeze(ctx context.Context, env *Environment) error {
	ctx, cancel := cleanup.Context(ctx)
	defer cancel()
	undo, verb := m.cfg.Engine.Resume, "resume"
	if env.Paused {
		undo, verb = m.cfg.Engine.Pause, "pause"
	}
	if err := undo(ctx, env.ID); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("%s environment %s again: %w", verb, env.ID, err)
	}
	return nil
}

// followFrozen does as recordFrozen, under the environment's lock as well, for who
// has let go of an environment whose process may be otherwise than it was.
func (m *Manager) followFrozen(ctx context.Context, id string) {
	ctx, cancel := cleanup.Context(ctx)
	defer cancel()
	if err := m.recordFrozen(ctx, id); err != nil {
		m.leave(ctx, slog.LevelError, "looking at an environment failed", "environment", id, "error", err)
	}
}

// frozen records that somebody else has paused or resumed an environment.
func (m *Manager) frozen(ctx context.Context, id string) error {
	env, err := m.cfg.Store.Environment(ctx, id)
	if err != nil || env.Operation != "" {
		return ignoreNotFound(err) // an operation records what it has done
	}
	unlock, env, err := m.lockIdle(ctx, id)
	if env == nil {
		return err
	}
	defer unlock()
	return m.recordFrozen(ctx, id)
}

// recordFrozen does the work of frozen under the environment's lock.
func (m *Manager) recordFrozen(ctx context.Context, id string) error {
	status, err := m.cfg.Engine.Status(ctx, id)
	if err != nil || !status.Running {
		return ignoreNotFound(err)
	}
	env, err := m.update(ctx, id, func(env *Environment) error {
		if env.Operation != "" || !env.Alive() || env.Paused == status.Paused {
			return errNotOurs
		}
		if status.Paused {
			pauseNow(env)
		} else {
			resumeNow(env)
		}
		return nil
	})
	if errors.Is(err, errNotOurs) || errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	m.cfg.Log.InfoContext(ctx, "somebody has paused or resumed an environment", "environment", id, "paused", env.Paused)
	if env.Paused {
		m.drawing.stop(id)
	} else {
		m.watchDrawing(env)
	}
	return nil
}

// pauseNow makes an environment one that is paused. Health checks and restarts
// stand still with it.
func pauseNow(env *Environment) {
	env.State, env.Paused, env.Ready, env.Problem, env.Exit = Stopped, true, false, nil, nil
	env.Health, env.HealthDetail, env.RestartAt, env.ByPolicy = HealthUnknown, "", time.Time{}, false
}

// resumeNow makes it one that runs.
func resumeNow(env *Environment) {
	env.State, env.Paused, env.Problem, env.Exit = Running, false, nil, nil
	env.Health, env.HealthDetail, env.RestartAt, env.ByPolicy = firstHealth(env), "", time.Time{}, false
}
