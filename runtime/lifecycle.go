package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/cleanup"
	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// ActionRequest asks for a change of an environment's life.
type ActionRequest struct {
	RequestID   string
	Project     string
	Environment string // id or name
	Etag        string // "": whatever it is
	Force       bool   // Delete: though it runs
	// Timeout is the time between SIGTERM and SIGKILL. nil: DefaultStopTimeout.
	Timeout *time.Duration
}

// actionArgs are the arguments that an operation keeps of an ActionRequest.
type actionArgs struct {
	Timeout time.Duration `json:"timeout"` // nanoseconds
	Force   bool          `json:"force,omitempty"`
}

// Start starts a stopped or failed environment, or lets a paused one go on. The
// operation is nil when it runs already.
func (m *Manager) Start(ctx context.Context, req ActionRequest) (*Environment, *operation.Operation, error) {
	if err := m.checkStart(ctx, &req, false); err != nil {
		return nil, nil, err
	}
	return m.act(ctx, KindStart, req, func(env *Environment) (bool, error) {
		switch {
		case env.State == Running:
			return false, nil
		case !env.Held || env.StartedAt.IsZero():
			return false, neverMade(env)
		}
		return true, nil
	})
}

// checkStart refuses a start, or a restart, that could not have the GPUs that
// the environment asks for, before anything is taken.
func (m *Manager) checkStart(ctx context.Context, req *ActionRequest, again bool) error {
	if m.cfg.GPUs == nil {
		return nil
	}
	env, err := m.Get(ctx, req.Project, req.Environment)
	if err != nil || env.Spec.GPU == nil || env.Operation != "" || !env.Held {
		return nil //nolint:nilerr // the request itself tells
	}
	if env.Alive() && (!again || len(env.RestartNeeded()) == 0 && (env.GPURun == nil || env.GPURun.Lost == "")) {
		return nil // it keeps what it has
	}
	spec := env.Spec
	return m.wantGPUs(ctx, env.ID, &spec)
}

// Stop stops a running or paused environment; its writable layer, address and ports are
// kept. The operation is nil when it is stopped already.
func (m *Manager) Stop(ctx context.Context, req ActionRequest) (*Environment, *operation.Operation, error) {
	return m.act(ctx, KindStop, req, func(env *Environment) (bool, error) {
		switch {
		case !env.RestartAt.IsZero():
			return true, nil // it ended, and would be started again
		case env.Paused:
			return true, nil // its process is to end
		case env.State == Stopped:
			return false, nil
		case env.State != Running:
			return false, NotRunning(env)
		}
		return true, nil
	})
}

// Restart stops and starts an environment.
func (m *Manager) Restart(ctx context.Context, req ActionRequest) (*Environment, *operation.Operation, error) {
	if err := m.checkStart(ctx, &req, true); err != nil {
		return nil, nil, err
	}
	return m.act(ctx, KindRestart, req, func(env *Environment) (bool, error) {
		if !env.Held || env.StartedAt.IsZero() {
			return false, neverMade(env)
		}
		return true, nil
	})
}

// Delete removes an environment and gives back all it took. A running one, or
// one that an operation works on, needs Force. So does a paused one.
func (m *Manager) Delete(ctx context.Context, req ActionRequest) (*Environment, *operation.Operation, error) {
	var interrupted string
	env, op, err := m.act(ctx, KindDelete, req, func(env *Environment) (bool, error) {
		if env.Alive() && !req.Force {
			what := "runs"
			if env.Paused {
				what = "is paused: its process has not ended"
			}
			return false, problem.New(problem.EnvRunning, "environment %q %s", env.Name, what).WithField("force").
				WithHint("stop it first, or delete it with force (remotegpu env rm --force %s)", env.Name)
		}
		interrupted = env.Operation
		return true, nil
	})
	// What is in the way of a forced delete was cancelled with it, unless that is a
	// delete itself: to break it off amid its teardown would only have the work
	// done twice. The later one waits for it in the queue, and finds nothing left
	// to do or does what the first could not.
	if interrupted != "" { // whoever asks may be gone by now
		ctx, cancel := cleanup.Context(ctx)
		defer cancel()
		m.cfg.Queue.Heed(ctx, interrupted)
	}
	return env, op, err
}

// act writes down an operation on an environment, when check says that there
// is something to do, and has it done.
func (m *Manager) act(ctx context.Context, kind string, req ActionRequest, check func(*Environment) (bool, error)) (*Environment, *operation.Operation, error) {
	if req.Project == "" {
		req.Project = DefaultProject
	}
	hash := hashOf(kind, req)
	if op, err := m.known(ctx, req.Project, req.RequestID, hash); op != nil || err != nil {
		return m.answer(ctx, op, err)
	}
	env, err := m.Get(ctx, req.Project, req.Environment)
	if err != nil {
		return nil, nil, err
	}
	timeout := DefaultStopTimeout
	if req.Timeout != nil {
		timeout = *req.Timeout
	}
	op := m.newOperation(kind, env.Project, env.ID, req.RequestID, hash, actionArgs{Timeout: timeout, Force: req.Force && kind == KindDelete})
	updated, existing, err := m.cfg.Store.UpdateEnvironment(fault.Within(ctx, "request ", kind), env.ID, op, recorded(func(env *Environment) error {
		if req.Etag != "" && req.Etag != Etag(env.Revision) {
			return etagMismatch(env.Name)
		}
		if env.Operation != "" && (kind != KindDelete || !req.Force) {
			return busy(env)
		}
		if proceed, err := check(env); err != nil {
			return err
		} else if !proceed {
			return errNothingToDo
		}
		userActs(env, kind)
		env.Operation = op.ID
		return nil
	}))
	switch {
	case errors.Is(err, errNothingToDo):
		return env, nil, nil
	case err != nil:
		m.cfg.Queue.Kick(op.ID) // the answer was lost, perhaps not the row
		return nil, nil, err
	case existing != nil:
		return m.answer(ctx, existing, checkHash(existing, hash))
	}
	m.fill(updated)
	m.follow(updated)
	m.changes.publish(updated)
	m.cfg.Queue.Kick(op.ID)
	return updated, op, nil
}

// errNothingToDo ends a transaction that has nothing to change.
var errNothingToDo = errors.New("nothing to do")

// Etag is the etag of a revision.
func Etag(revision int64) string { return strconv.FormatInt(revision, 10) }

// NotRunning is the ENV_NOT_RUNNING of an environment that does not run, with
// what makes it run.
func NotRunning(env *Environment) *problem.Problem {
	p := problem.New(problem.EnvNotRunning, "environment %q %s", env.Name, env.Standing()).WithField("environment")
	switch {
	case env.Paused:
		return p.WithHint("let it go on first: remotegpu env resume %s", env.Name)
	case !env.RestartAt.IsZero():
		return p.WithHint("it restarts by itself at %s; not to wait, start it: remotegpu env start %s", env.RestartAt.UTC().Format(time.RFC3339), env.Name)
	case env.Operation != "" && (env.State == Creating || env.ByPolicy):
		return p.WithHint("wait for it: remotegpu op watch %s", env.Operation)
	case env.State == Failed && (!env.Held || env.StartedAt.IsZero()):
		return p.WithHint("see why: remotegpu env get %s; delete it and create it anew", env.Name)
	case env.State == Failed:
		return p.WithHint("see why: remotegpu env get %s; start it again: remotegpu env start %s", env.Name, env.Name)
	}
	return p.WithHint("start it first: remotegpu env start %s", env.Name)
}

// target returns the environment of an operation, nil when it has gone, or when
// it is not the operation's any more: an attempt that died before it could say
// so has done all of it.
func (m *Manager) target(ctx context.Context, task *operation.Task) (*Environment, actionArgs, error) {
	var args actionArgs
	if err := json.Unmarshal(task.Op.Args, &args); err != nil {
		return nil, args, fmt.Errorf("read arguments of operation %s: %w", task.Op.ID, err)
	}
	env, err := m.cfg.Store.Environment(ctx, task.Op.Target)
	if errdefs.IsNotFound(err) {
		return nil, args, nil
	}
	if err != nil {
		return nil, args, err
	}
	if env.Operation != task.Op.ID {
		return nil, args, nil
	}
	m.fill(env)
	return env, args, nil
}

func (m *Manager) runStop(ctx context.Context, task *operation.Task) error {
	env, args, err := m.target(ctx, task)
	if env == nil || err != nil {
		return err
	}
	spans := startSpans(task)
	defer spans.end("stop")
	return m.stop(ctx, env, task, args.Timeout)
}

// stop ends the environment's process. An error leaves the environment as it
// was, but free for the next operation.
func (m *Manager) stop(ctx context.Context, env *Environment, task *operation.Task, timeout time.Duration) error {
	exit, err := m.cfg.Engine.Stop(ctx, env.ID, timeout)
	switch {
	case errdefs.IsNotFound(err): // it ended by itself; the event or the reconciler kept how
	case err != nil:
		if triedAgain(ctx, task, err) {
			return err
		}
		return m.failStop(ctx, env, task.Op.ID, err)
	}
	m.drawing.stop(env.ID)
	// It has stopped: a cancellation that comes now must not hide that.
	recording, cancel := cleanup.Context(ctx)
	defer cancel()
	stopped, updateErr := m.update(recording, env.ID, func(env *Environment) error {
		env.State, env.Problem, env.Ready, env.Paused, env.Applied = Stopped, nil, false, false, nil
		env.Health, env.RestartAt = HealthUnknown, time.Time{}
		leave(env, task.Op.ID)
		if err == nil {
			env.Exit = &exit
		}
		return nil
	})
	if updateErr != nil {
		return updateErr
	}
	m.leaveSharing(recording, env.ID, stopped.GPUs)
	if err := m.releaseIdle(recording, stopped); err != nil {
		m.leave(ctx, slog.LevelWarn, "a stopped environment still holds its GPUs", "environment", env.ID, "error", err)
	}
	return nil
}

// failStop frees an environment whose process could not be stopped. While that
// cannot be recorded the failure is not final: the queue tries abandon.
func (m *Manager) failStop(ctx context.Context, env *Environment, opID string, cause error) error {
	cause = fmt.Errorf("stop environment %s: %w", env.ID, asCancelled(ctx, cause))
	if err := m.unlock(ctx, env.ID, opID); err != nil {
		return errors.Join(cause, err)
	}
	if env.Paused { // a process is let go on to end
		m.followFrozen(ctx, env.ID)
	}
	return operation.Permanent(cause)
}

// asCancelled says of the failure of a cancelled operation that it was
// cancelled, whatever the call that was interrupted made of that.
func asCancelled(ctx context.Context, cause error) error {
	if errors.Is(context.Cause(ctx), operation.ErrCancelled) {
		return operation.ErrCancelled
	}
	return cause
}

// leave ends an operation's hold of an environment, unless another one, a
// forced delete, has taken it over.
func leave(env *Environment, opID string) {
	if env.Operation == opID {
		env.Operation = ""
	}
}

// unlock frees an environment from an operation that changed nothing.
func (m *Manager) unlock(ctx context.Context, id, opID string) error {
	return m.unlockAs(ctx, id, opID, cancelledByUser(ctx))
}

// unlockAs does as unlock, for an operation that somebody has cancelled, or not; a
// restart ends with one that was.
func (m *Manager) unlockAs(ctx context.Context, id, opID string, cancelled bool) error {
	ctx, cancel := cleanup.Context(ctx)
	defer cancel()
	_, err := m.update(ctx, id, func(env *Environment) error {
		if env.Operation != opID {
			return errNotOurs
		}
		env.Operation = ""
		planAgain(env, cancelled)
		return nil
	})
	if errors.Is(err, errNotOurs) || errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

func (m *Manager) runStart(ctx context.Context, task *operation.Task) error {
	env, _, err := m.target(ctx, task)
	if env == nil || err != nil {
		return err
	}
	if env.Paused {
		if err := m.resume(ctx, env, task); !errdefs.IsNotFound(err) {
			return err
		} // else its process has ended: it gets another one
	}
	return m.start(ctx, env, task)
}

// start starts the process of an environment that has its container. What an
// environment owns while stopped stays when it fails; it is in error then.
func (m *Manager) start(ctx context.Context, env *Environment, task *operation.Task) error {
	spans := startSpans(task)
	var container Container
	err := m.clear(ctx, env)
	if err == nil {
		env, err = m.startLeases(ctx, env)
	}
	if err == nil {
		container, err = m.prepare(ctx, env, spans, nil)
	}
	if err == nil {
		spans.end("prepare")
		err = m.startPublished(ctx, env, container, spans)
		if errdefs.IsAlreadyExists(err) { // an attempt that died before saying so
			err = nil
		}
	}
	if err == nil {
		spans.end("start")
	}
	if err != nil {
		if triedAgain(ctx, task, err) {
			return err
		}
		return m.failStart(ctx, env, task.Op.ID, err)
	}
	// It runs: a cancellation that comes now must not hide that.
	recording, cancel := cleanup.Context(ctx)
	defer cancel()
	running, err := m.update(recording, env.ID, func(env *Environment) error {
		env.State, env.Problem, env.Exit, env.StartedAt, env.Ready = Running, nil, nil, time.Now(), false
		env.Health, env.HealthDetail, env.ByPolicy, env.RestartAt = firstHealth(env), "", false, time.Time{}
		env.Paused, env.Applied, env.Clear, env.Disk, env.OOMKills = false, nil, false, container.Disk, 0
		env.GPURun = container.GPURun
		leave(env, task.Op.ID)
		return nil
	})
	if err != nil {
		return err
	}
	m.started(running)
	return nil
}

// failStart keeps why a start failed and makes sure that no process is left.
func (m *Manager) failStart(ctx context.Context, env *Environment, opID string, cause error) error {
	cancelled := cancelledByUser(ctx)
	cause = asCancelled(ctx, cause)
	ctx, cancel := cleanup.Context(ctx)
	defer cancel()
	if _, err := m.cfg.Engine.Stop(ctx, env.ID, 0); err != nil && !errdefs.IsNotFound(err) {
		cause = errors.Join(cause, err)
	}
	_, err := m.update(ctx, env.ID, func(env *Environment) error {
		env.State, env.Problem, env.Ready, env.Health = Failed, operation.ProblemOf(cause), false, HealthUnknown
		env.Paused, env.Applied = false, nil
		leave(env, opID)
		planAgain(env, cancelled || isGone(cause)) // what is gone stays so
		return nil
	})
	return final(fmt.Errorf("start environment %s: %w", env.ID, cause), err)
}

func (m *Manager) runRestart(ctx context.Context, task *operation.Task) error {
	env, args, err := m.target(ctx, task)
	if env == nil || err != nil {
		return err
	}
	return m.restartNow(ctx, env, task, args.Timeout)
}

// restartNow ends the process of an environment and starts another.
func (m *Manager) restartNow(ctx context.Context, env *Environment, task *operation.Task, timeout time.Duration) error {
	task.Progress(operation.Progress{Step: "stopping", Total: 2})
	m.drawing.stop(env.ID)
	exit, err := m.cfg.Engine.Stop(ctx, env.ID, timeout)
	switch {
	case errdefs.IsNotFound(err): // it ended by itself; the event or the reconciler kept how
	case err != nil:
		if triedAgain(ctx, task, err) {
			return err
		}
		return m.failStop(ctx, env, task.Op.ID, err)
	default:
		// How it ended is kept though another follows, and whatever becomes of that.
		recording, cancel := cleanup.Context(ctx)
		defer cancel()
		if env, err = m.update(recording, env.ID, func(env *Environment) error {
			env.Exit = &exit
			env.News = append(env.News, History{Time: time.Now(), Kind: HappenedStopped, Exit: &exit, Message: "it was stopped, to be restarted"})
			return nil
		}); err != nil {
			return err
		}
	}
	task.Progress(operation.Progress{Step: "starting", Done: 1, Total: 2})
	return m.start(ctx, env, task)
}

func (m *Manager) runDelete(ctx context.Context, task *operation.Task) error {
	env, args, err := m.target(ctx, task)
	if env == nil || err != nil {
		return err
	}
	spans := startSpans(task)
	if env.Alive() {
		task.Progress(operation.Progress{Step: "stopping", Total: 2})
		_, err := m.cfg.Engine.Stop(ctx, env.ID, args.Timeout)
		switch {
		case err == nil, errdefs.IsNotFound(err):
		case ctx.Err() != nil: // it keeps all that it has: its process may run on
			if triedAgain(ctx, task, err) {
				return err
			}
			return m.failStop(ctx, env, task.Op.ID, err)
		default:
			m.cfg.Log.WarnContext(ctx, "an environment that is deleted did not stop; it is killed", "environment", env.ID, "error", err)
		}
		spans.end("stop")
	}
	m.drawing.stop(env.ID)
	task.Progress(operation.Progress{Step: "removing", Done: 1, Total: 2})
	if err := m.teardown(ctx, env); err != nil {
		if task.Retried(err) {
			return err // what is to go goes in the end
		}
		return m.failDelete(ctx, env, task.Op.ID, err)
	}
	spans.end("remove")
	// It has gone: a cancellation that comes now must not hide that.
	recording, cancel := cleanup.Context(ctx)
	defer cancel()
	return m.release(recording, env.ID, func(env *Environment) {
		env.State, env.Operation, env.Problem, env.Paused = Deleted, "", nil, false
	})
}

// failDelete leaves an environment in error, still holding what it holds, so
// that it can be deleted again. One whose process runs is as it was, and so is one
// of which nobody can tell when the delete was cancelled.
func (m *Manager) failDelete(ctx context.Context, env *Environment, opID string, cause error) error {
	if cause := context.Cause(ctx); errors.Is(cause, operation.ErrShutdown) {
		return cause
	}
	cause = asCancelled(ctx, cause)
	cancelled := ctx.Err() != nil
	ctx, cancel := cleanup.Context(ctx)
	defer cancel()
	if env.Alive() {
		status, err := m.cfg.Engine.Status(ctx, env.ID)
		if err == nil && status.Running || err != nil && !errdefs.IsNotFound(err) && cancelled {
			return final(fmt.Errorf("delete environment %s: %w", env.ID, cause), m.keepRunning(ctx, env, opID))
		}
	}
	_, err := m.update(ctx, env.ID, func(env *Environment) error {
		env.State, env.Problem, env.Ready, env.Paused = Failed, operation.ProblemOf(cause), false, false
		env.Applied = nil
		leave(env, opID)
		return nil
	})
	return final(fmt.Errorf("delete environment %s: %w", env.ID, cause), err)
}

// keepRunning frees an environment from a delete that could not end its process, and
// publishes its ports again. What fails of that the next pass does.
func (m *Manager) keepRunning(ctx context.Context, env *Environment, opID string) error {
	if err := m.unlock(ctx, env.ID, opID); err != nil {
		return err
	}
	if env.Paused { // a process is let go on to end
		m.followFrozen(ctx, env.ID)
	} else if undrawn(env) {
		m.drawing.ensure(env.ID)
	}
	// A later operation may have taken it over, and waits for the lock.
	if err := m.publish(ctx, env); err != nil {
		m.leave(ctx, slog.LevelError, "the ports of an environment are not published again", "environment", env.ID, "error", err)
	}
	return nil
}

// final marks a failure as ended and recorded, unless recording it failed: then
// the queue has abandon free the environment.
func final(cause, recording error) error {
	if recording != nil {
		return errors.Join(cause, recording)
	}
	return operation.Permanent(cause)
}
