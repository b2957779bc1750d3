package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/cleanup"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// idleWait is how long to wait for an environment that an operation works on
// by all appearances. The operation, or the next pass, does what is to be done.
const idleWait = time.Second

// errNotOurs ends a transaction on an environment that another writer owns.
var errNotOurs = errors.New("an operation owns the environment")

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// missedExits are the exits, and counts of processes killed for memory, that
// came while an operation worked on their environment. Its end looks at them: a
// process may end before the operation has recorded that it runs.
type missedExits struct {
	mu    sync.Mutex
	exits map[string]*Exit
	kills map[string]int
}

func (x *missedExits) put(id string, exit *Exit) {
	if exit == nil { // the reconciler does not know more than the engine
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.exits == nil {
		x.exits = make(map[string]*Exit)
	}
	x.exits[id] = exit
}

func (x *missedExits) take(id string) *Exit {
	x.mu.Lock()
	defer x.mu.Unlock()
	exit := x.exits[id]
	delete(x.exits, id)
	return exit
}

func (x *missedExits) putKills(id string, kills int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.kills == nil {
		x.kills = make(map[string]int)
	}
	x.kills[id] = kills
}

// takeKills returns 0 when none came.
func (x *missedExits) takeKills(id string) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	kills := x.kills[id]
	delete(x.kills, id)
	return kills
}

// alone makes a handler the only one that changes its environment and the
// container of it, and looks afterwards whether an exit came meanwhile.
func (m *Manager) alone(handler operation.Handler) operation.Handler {
	return func(ctx context.Context, task *operation.Task) error {
		id := task.Op.Target
		unlock, locked := m.locks.TryLock(id)
		if !locked { // a dead task of it may be being removed, by a shim that hangs
			err := operation.Idle(ctx, func() (err error) { unlock, err = m.locks.Lock(ctx, id); return err })
			if err != nil {
				return err
			}
		}
		defer m.lookAtExit(ctx, id)
		defer unlock()
		return handler(ctx, task)
	}
}

// lookAtExit records the exit that came while an operation was at work, and
// what was killed for memory.
func (m *Manager) lookAtExit(ctx context.Context, id string) {
	kills, exit := m.missed.takeKills(id), m.missed.take(id)
	if exit == nil && kills == 0 {
		return
	}
	ctx, cancel := cleanup.Context(ctx)
	defer cancel()
	if kills > 0 {
		if err := m.outOfMemory(ctx, id, kills); err != nil {
			m.leave(ctx, slog.LevelError, "recording that memory ran out failed", "environment", id, "error", err)
		}
	}
	if exit == nil {
		return
	}
	if err := m.ended(ctx, id, exit); err != nil {
		m.leave(ctx, slog.LevelError, "recording an exit failed", "environment", id, "error", err)
	}
}

// lockIdle returns an environment that no operation works on, and what lets
// one begin again; nil when there is none.
func (m *Manager) lockIdle(ctx context.Context, id string) (unlock func(), env *Environment, err error) {
	waiting, cancel := context.WithTimeout(ctx, idleWait)
	defer cancel()
	unlock, err = m.locks.Lock(waiting, id)
	if err != nil {
		return nil, nil, ctx.Err() // an operation works on it
	}
	env, err = m.cfg.Store.Environment(ctx, id)
	if err != nil || env.Operation != "" {
		unlock()
		return nil, nil, ignoreNotFound(err)
	}
	m.fill(env)
	return unlock, env, nil
}

// ended records that the process of a running or paused environment has ended. While an
// operation works on the environment, the end of the operation does.
func (m *Manager) ended(ctx context.Context, id string, exit *Exit) error {
	// Kept first and looked at then: an operation that ends meanwhile finds it.
	m.missed.put(id, exit)
	env, err := m.cfg.Store.Environment(ctx, id)
	if err == nil && env.Operation != "" {
		return nil
	}
	m.missed.take(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	unlock, env, err := m.lockIdle(ctx, id)
	if env == nil {
		if err == nil {
			m.missed.put(id, exit) // an operation has begun
		}
		return err
	}
	dead := false
	if env.Alive() {
		dead, err = m.recordEnd(ctx, id, exit)
	}
	if !dead {
		unlock()
		return err
	}
	m.dead.put(id, unlock)
	return nil
}

// containerGone records of an environment that does not run that it never will:
// somebody has removed its container.
func (m *Manager) containerGone(ctx context.Context, id string) error {
	unlock, env, err := m.lockIdle(ctx, id)
	if env == nil {
		return err
	}
	defer unlock()
	_, gone := m.cfg.Engine.Status(ctx, id)
	if !errdefs.IsNotFound(gone) {
		return gone
	}
	_, err = m.update(ctx, id, func(env *Environment) error {
		if env.Alive() || env.Operation != "" || !env.Held {
			return errNotOurs
		}
		env.State, env.Problem, env.RestartAt = Failed, operation.ProblemOf(ContainerGone(GoneContainer, gone)), time.Time{}
		return nil
	})
	if errors.Is(err, errNotOurs) || errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// recordEnd does the work of ended under the environment's lock. It asks the
// engine again first: an event of an earlier run may come late. dead says that
// the dead task is left to be removed before the lock is given up; the
// container stays for the next start.
func (m *Manager) recordEnd(ctx context.Context, id string, exit *Exit) (dead bool, err error) {
	status, err := m.cfg.Engine.Status(ctx, id)
	if err != nil && !errdefs.IsNotFound(err) {
		return false, fmt.Errorf("ask for container of environment %s: %w", id, err)
	}
	gone := err
	if status.Running {
		return false, nil
	}
	if last := status.Exit; last != nil && (exit == nil || !last.At.Equal(exit.At)) {
		exit = last
	}
	env, err := m.update(ctx, id, func(env *Environment) error {
		if !env.Alive() {
			return errNotOurs
		}
		wasPaused := env.Paused
		env.Exit, env.Ready, env.Health, env.Paused, env.Applied = exit, false, HealthUnknown, false, nil
		env.State, env.Problem = afterExit(exit)
		env.OOMKills = max(env.OOMKills, status.OOMKills)
		if exit == nil && m.rebooted.Load() {
			env.State, env.Problem = Failed, operation.ProblemOf(hostRebooted())
		}
		if gone != nil {
			env.State, env.Problem, env.RestartAt = Failed, operation.ProblemOf(ContainerGone(GoneContainer, gone)), time.Time{}
		} else if !wasPaused { // somebody wanted it to stand still
			planAfterExit(env, exit, time.Now())
		}
		return nil
	})
	if errors.Is(err, errNotOurs) || errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	m.drawing.stop(id)
	m.cfg.Log.InfoContext(ctx, "the process of an environment has ended", "environment", id, "state", env.State)
	return env.RestartAt.IsZero(), nil // a restart removes the dead task
}

// afterExit is the state of an environment whose process ended unasked: it
// stopped by itself, or it is in error.
func afterExit(exit *Exit) (State, *operation.Problem) {
	if exit != nil && exit.Code == 0 {
		return Stopped, nil
	}
	p := &operation.Problem{Reason: string(problem.ProcessExited), Message: "the process ended while nobody watched", Hint: "start it again; its files are kept"}
	switch {
	case exit == nil:
	case exit.OOMKilled && exit.Signal == int(syscall.SIGKILL):
		p.Message, p.Hint = "the process was killed because memory ran out", "give it more memory, or find what uses it"
	case exit.Signal != 0:
		p.Message = fmt.Sprintf("signal %d ended the process", exit.Signal)
	default:
		p.Message = fmt.Sprintf("the process ended with exit code %d", exit.Code)
	}
	if exit != nil && exit.OOMKilled && exit.Signal != int(syscall.SIGKILL) {
		p.Message += "; memory had run out and the kernel had killed another"
		p.Hint = "if it ended for that, give it more memory, or find what uses it"
	}
	return Failed, p
}
