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
	err := m.Reconcile(ctx)
	if err != nil && ctx.Err() == nil {
		m.cfg.Log.ErrorContext(ctx, "adopting environments failed; it is tried again", "error", err)
	}
}

// Run follows the engine's events and reconciles on a timer until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	m.drawing.open(ctx)
	defer m.drawing.wait()
	group.Go(func() error { m.followEvents(ctx); return nil })
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
			m.drawing.start(env.ID)
		}
	}
}

// started watches a desktop that begins to draw and tells the watchers.
func (m *Manager) started(env *Environment) {
	m.fill(env)
	m.changes.publish(env)
	if env.Spec.Desktop != nil {
		m.drawing.start(env.ID)
	}
}

// followEvents turns the engine's events into state changes. After each break
// it subscribes anew and reconciles, so that nothing is missed.
func (m *Manager) followEvents(ctx context.Context) {
	for first := true; ctx.Err() == nil; first = false {
		events, errs := m.cfg.Engine.Events(ctx)
		if !first {
			if err := m.Reconcile(ctx); err != nil && ctx.Err() == nil {
				m.cfg.Log.WarnContext(ctx, "reconciling after a break failed", "error", err)
			}
		}
		for event := range events {
			if event.Kind != EventExit {
				continue
			}
			if err := m.ended(ctx, event.ID, &event.Exit); err != nil && ctx.Err() == nil {
				m.cfg.Log.ErrorContext(ctx, "recording an exit failed; the reconciler will try again", "environment", event.ID, "error", err)
			}
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

// errNotOurs ends a transaction on an environment that another writer owns.
var errNotOurs = errors.New("an operation owns the environment")

// ended records that the process of a running environment has ended. While an
// operation works on the environment, the operation records it. It asks the
// engine again first: an event of an earlier run may come late.
func (m *Manager) ended(ctx context.Context, id string, exit *Exit) error {
	status, err := m.cfg.Engine.Status(ctx, id)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("ask for container of environment %s: %w", id, err)
	}
	if status.Running {
		return nil
	}
	if exit == nil {
		exit = status.Exit
	}
	env, err := m.update(ctx, id, func(env *Environment) error {
		if env.Operation != "" || env.State != Running {
			return errNotOurs
		}
		env.Exit, env.Ready = exit, false
		env.State, env.Problem = afterExit(exit)
		return nil
	})
	if errors.Is(err, errNotOurs) || errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	m.drawing.stop(id)
	m.cfg.Log.InfoContext(ctx, "the process of an environment has ended", "environment", id, "state", env.State)
	// The dead task goes, the container stays for the next start.
	if _, err := m.cfg.Engine.Stop(ctx, id, 0); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove ended task of environment %s: %w", id, err)
	}
	return nil
}

// afterExit is the state of an environment whose process ended unasked: it
// stopped by itself, or it is in error.
func afterExit(exit *Exit) (State, *operation.Problem) {
	if exit != nil && exit.Code == 0 && !exit.OOMKilled {
		return Stopped, nil
	}
	p := &operation.Problem{Reason: string(problem.ProcessExited), Message: "the process ended while nobody watched", Hint: "start it again; its files are kept"}
	switch {
	case exit == nil:
	case exit.OOMKilled:
		p.Message, p.Hint = "the process was killed because memory ran out", "give it more memory, or find what uses it"
	case exit.Signal != 0:
		p.Message = fmt.Sprintf("signal %d ended the process", exit.Signal)
	default:
		p.Message = fmt.Sprintf("the process ended with exit code %d", exit.Code)
	}
	return Failed, p
}

// Reconcile compares what should be with what is, once: it records processes
// that ended, finishes what could not be undone, removes what belongs to
// environments that are gone, and declares all published ports.
func (m *Manager) Reconcile(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, passTimeout)
	defer cancel()
	statuses, err := m.cfg.Engine.List(ctx)
	m.setCondition(problem.ContainerdDown, err)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	containers := make(map[string]ContainerStatus, len(statuses))
	for _, status := range statuses {
		containers[status.ID] = status
	}
	envs, _, err := m.cfg.Store.Environments(ctx, Filter{})
	if err != nil {
		return fmt.Errorf("list environments: %w", err)
	}
	var errs []error
	published := make([]port.Published, 0, len(envs))
	known := make(map[string]*Environment, len(envs))
	for _, env := range envs {
		m.fill(env)
		known[env.ID] = env
		errs = append(errs, m.reconcileOne(ctx, env, containers[env.ID]))
		if env.Held && !env.StartedAt.IsZero() && len(env.Ports) > 0 {
			published = append(published, port.Published{EnvID: env.ID, Address: env.Address, Mappings: env.Ports})
		}
	}
	restoreErr := m.cfg.Networks.Restore(ctx, published)
	m.setCondition(problem.FirewallFailed, restoreErr)
	errs = append(errs, restoreErr, m.removeLeftovers(ctx, known, containers), m.purge(ctx, keepDeleted))
	return errors.Join(errs...)
}

// reconcileOne brings one environment and its container together.
func (m *Manager) reconcileOne(ctx context.Context, env *Environment, status ContainerStatus) error {
	switch {
	case env.Operation != "" || !env.Held:
		return nil // an operation owns it, or it owns nothing
	case env.State == Running && !status.Running:
		return m.ended(ctx, env.ID, status.Exit)
	case env.State == Failed && env.StartedAt.IsZero():
		// A failed create that could not be undone.
		if err := m.teardown(ctx, env); err != nil {
			return fmt.Errorf("undo failed create of environment %s: %w", env.ID, err)
		}
		return m.release(ctx, env.ID, func(*Environment) {})
	case env.State != Running && env.State != Creating && status.Running:
		// Started behind our back, or by an attempt that died: it runs, so it is running.
		env, err := m.update(ctx, env.ID, func(env *Environment) error {
			if env.Operation != "" {
				return errNotOurs
			}
			env.State, env.Problem = Running, nil
			return nil
		})
		if errors.Is(err, errNotOurs) {
			return nil
		}
		if err == nil {
			m.started(env)
		}
		return err
	}
	return nil
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
