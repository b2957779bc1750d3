package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/remotegpu/remotegpu/internal/tick"
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

// Protect declares published ports, policies and names as the store has them.
// Call it first of all: it does not wait for the engine, which may not answer
// for long. What fails is tried again by each pass.
func (m *Manager) Protect(ctx context.Context) {
	if err := m.restorePorts(ctx); err != nil && ctx.Err() == nil {
		m.cfg.Log.ErrorContext(ctx, "declaring ports and network policies failed; it is tried again", "error", err)
	}
	if err := m.names.load(ctx); err != nil && ctx.Err() == nil {
		m.cfg.Log.ErrorContext(ctx, "the names of environments were not all read; it is tried again", "error", err)
	}
}

// Adopt makes the store follow what survived the daemon: containers that run
// are kept, those that ended meanwhile are recorded, published ports are
// declared anew. Call it after Protect and before serving; what was left behind,
// dead tasks and commands of the daemon before among it, is removed by Run. When
// the engine does not answer the node serves what it knows, and Run tries again.
func (m *Manager) Adopt(ctx context.Context) {
	m.thawInterrupted(ctx)
	err := m.noticeReboot(ctx)
	if err == nil {
		err = m.reconcile(ctx, adoptPass)
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
	group.Go(func() error { m.dead.run(ctx); return nil })
	group.Go(func() error { m.runRestarts(ctx); return nil })
	group.Go(func() error { m.runExpiry(ctx); return nil })
	group.Go(func() error { m.health.run(ctx); return nil })
	group.Go(func() error { m.watchGPUs(ctx); return nil })
	group.Go(func() error { m.runTending(ctx); return nil })
	group.Go(func() error {
		m.watchUndrawn(ctx)
		for tick.Wait(ctx, m.cfg.Reconcile) {
			if m.spare(ctx) {
				continue
			}
			if err := m.Reconcile(ctx); err != nil && ctx.Err() == nil {
				m.cfg.Log.ErrorContext(ctx, "reconciling failed", "error", err)
			}
		}
		return nil
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
		if env.Effective().Desktop != nil && !env.Ready {
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
	if env.Effective().Desktop != nil {
		m.drawing.start(env.ID)
	}
}

// followEvents turns the engine's events into state changes, one after the
// other: what takes its time is not done here. It subscribes first and
// reconciles then, at boot and after each break, so that nothing is missed. A
// pass that takes its time holds up neither events nor the next subscription,
// which has a pass of its own after it.
func (m *Manager) followEvents(ctx context.Context) {
	subscribed := make(chan struct{}, 1)
	var passing sync.WaitGroup
	defer passing.Wait()
	passing.Go(func() { m.reconcileAfter(ctx, subscribed) })
	for ctx.Err() == nil {
		events, errs := m.cfg.Engine.Events(ctx)
		select {
		case subscribed <- struct{}{}:
		default: // one that has not begun will do
		}
		for event := range events {
			m.happened(ctx, event)
		}
		err := <-errs
		if ctx.Err() != nil {
			return
		}
		m.setContainerdCondition(err)
		m.cfg.Log.WarnContext(ctx, "the event stream broke; subscribing anew", "error", err)
		timer := time.NewTimer(resubscribe)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// reconcileAfter reconciles after each subscription to events, until ctx ends.
func (m *Manager) reconcileAfter(ctx context.Context, subscribed <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-subscribed:
		}
		if err := m.Reconcile(ctx); err != nil && ctx.Err() == nil {
			m.cfg.Log.WarnContext(ctx, "reconciling after subscribing to events failed", "error", err)
		}
	}
}

// happened makes the store follow one event.
func (m *Manager) happened(ctx context.Context, event Event) {
	var err error
	switch event.Kind {
	case EventOOM:
		err = m.outOfMemory(ctx, event.ID, event.OOMKills)
	case EventExit:
		err = m.ended(ctx, event.ID, &event.Exit)
	case EventPaused, EventResumed:
		err = m.frozen(ctx, event.ID)
	}
	if err != nil && ctx.Err() == nil {
		m.leave(ctx, slog.LevelError, "recording an event failed",
			"environment", event.ID, "event", event.Kind, "error", err)
	}
}

// Reconcile compares what should be with what is, once, and brings it in order:
// it records processes that ended, finishes what could not be undone, removes
// what belongs to environments that are gone, and declares all published ports.
func (m *Manager) Reconcile(ctx context.Context) error { return m.reconcile(ctx, wholePass) }

func (m *Manager) reconcile(ctx context.Context, mode passMode) error {
	findings, err := m.pass(ctx, mode)
	errs := []error{err}
	for i := range findings {
		errs = append(errs, findings[i].err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return m.reconciled(ctx)
}

// ReconcileNow tells how what is differs from what should be and brings it in
// order, or, when dryRun, changes nothing. A finding says whether that was
// done; an action that failed does not fail the call and is tried again by the
// next pass. CONTAINERD_UNAVAILABLE; with part of the host unread an error
// too, though what was found is brought in order.
func (m *Manager) ReconcileNow(ctx context.Context, dryRun bool) ([]Finding, error) {
	if dryRun {
		return m.pass(ctx, dryPass)
	}
	return m.pass(ctx, wholePass)
}

// passMode is what a pass does about what it finds.
type passMode int

const (
	dryPass   passMode = iota // nothing
	adoptPass                 // all but what takes its time and nobody waits for: removing what was left behind
	wholePass                 // everything
)

// pass is one pass of the reconciler.
func (m *Manager) pass(ctx context.Context, mode passMode) ([]Finding, error) {
	ctx, cancel := context.WithTimeout(ctx, passTimeout)
	defer cancel()
	// The timer, the events and people all ask for passes; two at once would
	// trip over each other.
	done, err := m.passes.Lock(ctx, struct{}{})
	if err != nil {
		return nil, fmt.Errorf("wait for the pass before: %w", err)
	}
	defer done()
	if mode != dryPass { // whether or not the engine answers
		if err := m.names.ensure(ctx); err != nil && ctx.Err() == nil {
			m.leave(ctx, slog.LevelError, "the names of environments were not all read", "error", err)
		}
	}
	seq := m.changes.last()
	o, err := m.observe(ctx)
	if o == nil {
		m.rest.passed(seq, nil)
		return nil, err
	}
	findings := plan(o)
	if mode == dryPass {
		m.rest.disturb() // what it has seen no glance finds any more
		return findings, err
	}
	err = errors.Join(err, m.carryOut(ctx, o, findings, mode))
	var found *calm
	if err == nil && mode == wholePass {
		found = m.calm(ctx, o, findings)
	}
	m.rest.passed(seq, found)
	return findings, err
}
