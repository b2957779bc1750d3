package runtime

import (
	"context"
	"log/slog"
	"sync"

	"golang.org/x/sync/errgroup"
)

// deadTasksAtOnce is how many dead tasks are removed at the same time. Each is
// waited for, and one whose shim hangs takes minutes.
const deadTasksAtOnce = 16

// deadTasks removes the tasks of processes that have ended, beside what
// recorded their ends: events and the begin of serving do not wait for a shim.
// The lock of an environment goes along with its task, so whatever operation
// comes next waits until the task is gone, and is never what is ended here.
type deadTasks struct {
	manager *Manager
	wake    chan struct{} // capacity 1

	mu      sync.Mutex
	waiting []deadTask
	ids     map[string]bool // waiting or being removed
	over    bool            // nobody removes any more
}

type deadTask struct {
	id     string
	unlock func()
}

func newDeadTasks(m *Manager) *deadTasks {
	return &deadTasks{manager: m, wake: make(chan struct{}, 1), ids: make(map[string]bool)}
}

// put hands over a dead task and the lock of its environment. Before run it
// waits; when run has returned the next daemon finds the task.
func (d *deadTasks) put(id string, unlock func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		unlock()
		return
	}
	d.waiting, d.ids[id] = append(d.waiting, deadTask{id, unlock}), true
	select {
	case d.wake <- struct{}{}:
	default: // it is awake already
	}
}

// has says whether an environment's dead task is about to be removed.
func (d *deadTasks) has(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ids[id]
}

// take waits for the next dead task; false when ctx has ended.
func (d *deadTasks) take(ctx context.Context) (deadTask, bool) {
	for ctx.Err() == nil {
		d.mu.Lock()
		if len(d.waiting) > 0 {
			task := d.waiting[0]
			d.waiting = d.waiting[1:]
			d.mu.Unlock()
			return task, true
		}
		d.mu.Unlock()
		select {
		case <-d.wake:
		case <-ctx.Done():
		}
	}
	return deadTask{}, false
}

// run removes dead tasks until ctx ends, and lets go of those that are left.
func (d *deadTasks) run(ctx context.Context) {
	group := new(errgroup.Group)
	group.SetLimit(deadTasksAtOnce)
	for {
		task, ok := d.take(ctx)
		if !ok {
			break
		}
		group.Go(func() error { d.remove(ctx, task); return nil })
	}
	_ = group.Wait() // each has told of its failure
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	for _, task := range d.waiting {
		task.unlock()
	}
	d.waiting = nil
}

func (d *deadTasks) remove(ctx context.Context, task deadTask) {
	defer task.unlock()
	err := d.manager.removeDead(ctx, task.id)
	d.mu.Lock()
	delete(d.ids, task.id)
	d.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		d.manager.leave(ctx, slog.LevelWarn, "removing the task of a process that has ended failed",
			"environment", task.id, "error", err)
	}
}

// removeDead removes a dead task under its environment's lock. The container
// stays for the next start.
func (m *Manager) removeDead(ctx context.Context, id string) error {
	_, err := m.cfg.Engine.Stop(ctx, id, 0)
	return ignoreNotFound(err)
}

// removeDeadLeft hands over the dead tasks of environments whose ends are
// recorded: those of a daemon that died in between, and those that could not be
// removed.
func (m *Manager) removeDeadLeft(ctx context.Context, o *observed) {
	for _, env := range o.environments {
		if !leftDead(env, o.containers[env.ID]) || m.dead.has(env.ID) {
			continue
		}
		if err := m.removeDeadOf(ctx, env.ID); err != nil && ctx.Err() == nil {
			m.leave(ctx, slog.LevelWarn, "looking at the task of a process that has ended failed",
				"environment", env.ID, "error", err)
		}
	}
}

// removeDeadOf looks again, under the environment's lock, and hands both over.
func (m *Manager) removeDeadOf(ctx context.Context, id string) error {
	unlock, env, err := m.lockIdle(ctx, id)
	if env == nil {
		return err
	}
	status, err := m.cfg.Engine.Status(ctx, id)
	if err != nil || !leftDead(env, status) {
		unlock()
		return ignoreNotFound(err)
	}
	m.dead.put(id, unlock)
	return nil
}

// leftDead says that an environment that has ended still has its dead task,
// and that no restart is about to remove it.
func leftDead(env *Environment, status ContainerStatus) bool {
	return env.Operation == "" && env.Held && env.State != Creating && !env.Alive() && !env.StartedAt.IsZero() &&
		env.RestartAt.IsZero() && !status.Running && status.Exit != nil
}
