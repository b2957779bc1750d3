package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

const (
	// keepDeleted is how long a deleted environment's row tells that its
	// leftovers are ours to remove.
	keepDeleted = 7 * 24 * time.Hour
	// resubscribe is the pause before the engine's events are asked for again.
	resubscribe = time.Second
	// passTimeout bounds one pass of the reconciler.
	passTimeout = 5 * time.Minute
)

// Adopt makes the store follow what survived the daemon: containers that run
// are kept, those that ended meanwhile are recorded, published ports are
// declared anew. Call it before serving. When the engine does not answer the
// node serves what it knows, and Run tries again.
func (m *Manager) Adopt(ctx context.Context) {
	err := m.noticeReboot(ctx)
	if err == nil {
		err = m.Reconcile(ctx)
	}
	if err != nil && ctx.Err() == nil {
		m.cfg.Log.ErrorContext(ctx, "adopting environments failed; it is tried again", "error", err)
	}
	m.checkAnew(ctx)
}

// Run follows the engine's events and reconciles on a timer until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	m.drawing.open(ctx)
	defer m.drawing.wait()
	group.Go(func() error { m.followEvents(ctx); return nil })
	group.Go(func() error { m.restart.run(ctx); return nil })
	group.Go(func() error { m.health.run(ctx); return nil })
	group.Go(func() error {
		m.watchUndrawn(ctx)
		ticker := time.NewTicker(m.cfg.Reconcile)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
				if err := m.Reconcile(ctx); err != nil && ctx.Err() == nil {
					m.cfg.Log.ErrorContext(ctx, "reconciling failed", "error", err)
				}
			}
		}
	})
	return group.Wait()
}

// watchUndrawn watches the desktops that had not drawn when the daemon ended.
func (m *Manager) watchUndrawn(ctx context.Context) {
	envs, _, err := m.cfg.Store.Environments(ctx, Filter{States: []State{Running}})
	if err != nil {
		m.cfg.Log.ErrorContext(ctx, "listing running environments failed", "error", err)
		return
	}
	for _, env := range envs {
		if env.Spec.Desktop != nil && !env.Ready {
			m.drawing.ensure(env.ID)
		}
	}
}

// started watches a desktop that begins to draw and tells the watchers.
func (m *Manager) started(env *Environment) {
	m.fill(env)
	m.follow(env)
	m.changes.publish(env)
	m.watchDrawing(env)
}

// watchDrawing watches the desktop of an environment that begins or goes on to
// run.
func (m *Manager) watchDrawing(env *Environment) {
	if env.Spec.Desktop != nil {
		m.drawing.start(env.ID)
	}
}

// followEvents turns the engine's events into state changes. It subscribes first
// and reconciles then, at boot and after each break, so that nothing is missed.
func (m *Manager) followEvents(ctx context.Context) {
	for ctx.Err() == nil {
		events, errs := m.cfg.Engine.Events(ctx)
		if err := m.Reconcile(ctx); err != nil && ctx.Err() == nil {
			m.cfg.Log.WarnContext(ctx, "reconciling after subscribing to events failed", "error", err)
		}
		for event := range events {
			m.happened(ctx, event)
		}
		err := <-errs
		if ctx.Err() != nil {
			return
		}
		m.setCondition(problem.ContainerdDown, err)
		m.cfg.Log.WarnContext(ctx, "the event stream broke; subscribing anew", "error", err)
		timer := time.NewTimer(resubscribe)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// happened makes the store follow one event.
func (m *Manager) happened(ctx context.Context, event Event) {
	var err error
	switch event.Kind {
	case EventOOM:
		m.outOfMemory(ctx, event.ID)
	case EventExit:
		err = m.ended(ctx, event.ID, &event.Exit)
	case EventPaused, EventResumed:
		err = m.frozen(ctx, event.ID)
	}
	if err != nil && ctx.Err() == nil {
		m.cfg.Log.ErrorContext(ctx, "recording an event failed; the reconciler will try again",
			"environment", event.ID, "event", event.Kind, "error", err)
	}
}

// Reconcile compares what should be with what is, once: it records processes
// that ended, finishes what could not be undone, removes what belongs to
// environments that are gone, and declares all published ports.
func (m *Manager) Reconcile(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, passTimeout)
	defer cancel()
	// The timer and the events both ask for passes; two at once would trip
	// over each other.
	done, err := m.passes.Lock(ctx, struct{}{})
	if err != nil {
		return fmt.Errorf("wait for the pass before: %w", err)
	}
	defer done()
	statuses, err := m.cfg.Engine.List(ctx)
	m.setCondition(problem.ContainerdDown, err)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	m.removeStaleExecs(ctx)
	containers := make(map[string]ContainerStatus, len(statuses))
	for _, status := range statuses {
		containers[status.ID] = status
	}
	envs, _, err := m.cfg.Store.Environments(ctx, Filter{})
	if err != nil {
		return fmt.Errorf("list environments: %w", err)
	}
	var errs []error
	known := make(map[string]*Environment, len(envs))
	for _, env := range envs {
		m.fill(env)
		m.follow(env)
		known[env.ID] = env
		errs = append(errs, m.reconcileOne(ctx, env, containers[env.ID]))
	}
	errs = append(errs, m.restorePorts(ctx), m.removeLeftovers(ctx, known, containers), m.purge(ctx, keepDeleted))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return m.reconciled(ctx)
}

// restorePorts declares all published ports. It reads them anew: the pass may
// have taken minutes by now.
func (m *Manager) restorePorts(ctx context.Context) error {
	envs, _, err := m.cfg.Store.Environments(ctx, Filter{})
	if err != nil {
		return fmt.Errorf("list environments: %w", err)
	}
	published := make([]port.Published, 0, len(envs))
	for _, env := range envs {
		m.fill(env)
		if env.Held && !env.StartedAt.IsZero() && len(env.Ports) > 0 {
			published = append(published, port.Published{EnvID: env.ID, Address: env.Address, Mappings: env.Ports})
		}
	}
	err = m.cfg.Networks.Restore(ctx, published)
	m.setCondition(problem.FirewallFailed, err)
	return err
}

// reconcileOne brings one environment and its container together. Both were
// read a while ago: what seems wrong is looked at again before it is changed.
func (m *Manager) reconcileOne(ctx context.Context, env *Environment, status ContainerStatus) error {
	switch {
	case env.Operation != "":
		return m.freeAbandoned(ctx, env)
	case !env.Held:
		return nil // it owns nothing
	case env.Alive() && !status.Running:
		return m.ended(ctx, env.ID, status.Exit)
	case env.Alive() && env.Paused != status.Paused:
		return m.frozen(ctx, env.ID)
	case env.State == Running && env.Spec.Desktop != nil && !env.Ready:
		m.drawing.ensure(env.ID)
		return nil
	case env.State == Failed && env.StartedAt.IsZero():
		return m.finishUndo(ctx, env.ID)
	case !env.Alive() && env.State != Creating && status.Running:
		return m.adoptRunning(ctx, env.ID)
	}
	return nil
}

// freeAbandoned frees an environment from an operation that is done and could
// not say so, as when the disk was full: nothing else ever would. An operation
// lets go of its environment before it is done.
func (m *Manager) freeAbandoned(ctx context.Context, env *Environment) error {
	op, err := m.cfg.Store.Operation(ctx, env.Operation)
	switch {
	case errdefs.IsNotFound(err):
		op = &operation.Operation{ID: env.Operation, Target: env.ID}
	case err != nil:
		return err
	case !op.State.Done():
		return nil
	}
	if err := m.abandon(ctx, op); err != nil {
		return fmt.Errorf("free environment %s from operation %s: %w", env.ID, op.ID, err)
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

// removeLeftovers removes what environments left behind that are gone: those
// the store knows as deleted or holding nothing, and pieces without a
// container whose environment nobody knows. A container that nobody knows is
// reported and never touched: the database may have been lost.
func (m *Manager) removeLeftovers(ctx context.Context, known map[string]*Environment, containers map[string]ContainerStatus) error {
	ids, err := m.pieces(ctx)
	for id := range containers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	errs := []error{err}
	var strangers int
	for _, id := range slices.Compact(ids) {
		if env := known[id]; env != nil && env.Held {
			continue
		}
		fate, err := m.cfg.Store.Fate(ctx, id)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if _, exists := containers[id]; fate == FateUnknown && exists {
			strangers++
			continue
		}
		if fate == FateHeld {
			continue // made since the list was read
		}
		m.cfg.Log.InfoContext(ctx, "removing what an environment left behind", "environment", id)
		errs = append(errs, m.teardown(ctx, &Environment{ID: id}))
	}
	var stranger error
	if strangers > 0 {
		stranger = problem.New(problem.ContainerUnknown, "%d containers in our namespace belong to no environment of this node's database", strangers).
			WithHint("if the database was lost restore it; otherwise remove them with ctr")
	}
	m.setCondition(problem.ContainerUnknown, stranger)
	return errors.Join(errs...)
}

// pieces lists the ids that own anything on the host besides a container.
func (m *Manager) pieces(ctx context.Context) ([]string, error) {
	attached, err1 := m.cfg.Networks.Attached(ctx)
	staged, err2 := m.cfg.Volumes.Staged(ctx)
	prepared, err3 := m.cfg.Desktops.Prepared(ctx)
	files, err4 := m.files.list()
	return slices.Concat(attached, staged, prepared, files), errors.Join(err1, err2, err3, err4)
}
