package runtime

import (
	"container/heap"
	"context"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// Health is how a health check goes.
type Health string

// What a health check finds.
const (
	HealthUnknown  Health = ""
	HealthStarting Health = "starting"
	Healthy        Health = "healthy"
	Unhealthy      Health = "unhealthy"
)

const (
	// HealthDetailLimit is how much of what a check says is kept, in bytes.
	HealthDetailLimit = 4 << 10
	// healthWorkers is how many checks run at once. A check takes a minute at
	// most (MaxHealthTimeout); one that waits for a worker is late, not failed.
	healthWorkers = 64
)

// monitor is the health check of one run of an environment.
type monitor struct {
	id      string
	address string // without port
	check   HealthCheck
	started time.Time // tells the run from others
	since   time.Time // the start on the clock that nobody sets: the start period counts from here

	// Of the scheduler, under its lock:
	next     time.Time
	index    int // in the heap; -1: being checked, or removed
	removed  bool
	failures int // one after another
	health   Health
	detail   string
	freezes  int // begins and ends of what has frozen it
}

// monitors is a heap of those that wait, by time.
type monitors []*monitor

func (h monitors) Len() int           { return len(h) }
func (h monitors) Less(i, j int) bool { return h[i].next.Before(h[j].next) }
func (h monitors) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push and Pop implement heap.Interface.
func (h *monitors) Push(x any) {
	m := x.(*monitor) //nolint:forcetypeassert // nothing else is pushed
	m.index = len(*h)
	*h = append(*h, m)
}

// Pop implements heap.Interface.
func (h *monitors) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	last.index = -1
	return last
}

// healthChecks runs the health checks of all environments: one goroutine keeps
// the time, a bounded number of others check.
type healthChecks struct {
	manager *Manager
	wake    chan struct{} // capacity 1

	mu      sync.Mutex
	byID    map[string]*monitor
	frozen  map[string]int // by environment, what freezes it at this moment
	waiting monitors
}

func newHealthChecks(m *Manager) *healthChecks {
	return &healthChecks{manager: m, wake: make(chan struct{}, 1), byID: make(map[string]*monitor), frozen: make(map[string]int)}
}

// follow begins to check an environment that runs and ends the check of one
// that does not.
func (h *healthChecks) follow(env *Environment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.byID[env.ID]
	if env.State != Running || env.Spec.HealthCheck == nil || !env.Address.IsValid() {
		h.remove(old)
		return
	}
	if old != nil && old.started.Equal(env.StartedAt) && reflect.DeepEqual(old.check, *env.Spec.HealthCheck) {
		return
	}
	h.remove(old)
	now := time.Now()
	m := &monitor{
		id: env.ID, address: env.Address.String(), check: *env.Spec.HealthCheck, started: env.StartedAt, health: HealthStarting,
		// A start in the future is one before the clock was set back.
		since: now.Add(-max(0, now.Sub(env.StartedAt))),
		next:  now.Add(jitter(min(env.Spec.HealthCheck.Interval, firstCheck))),
	}
	h.byID[env.ID] = m
	heap.Push(&h.waiting, m)
	h.kick()
}

// firstHealth is the health of an environment that has just started.
func firstHealth(env *Environment) Health {
	if env.Spec.HealthCheck == nil {
		return HealthUnknown
	}
	return HealthStarting
}

// firstCheck is how long after a start the first check comes, or the interval
// when that is shorter.
const firstCheck = time.Second

// jitter spreads checks that began together: a tenth more or less.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.9 + 0.2*rand.Float64())) //nolint:gosec // chance, not a secret
}

// remove ends a check. h.mu is held.
func (h *healthChecks) remove(m *monitor) {
	if m == nil {
		return
	}
	m.removed = true
	delete(h.byID, m.id)
	if m.index >= 0 {
		heap.Remove(&h.waiting, m.index)
	}
}

// detail is what the last check of an environment said.
func (h *healthChecks) detail(env *Environment) (string, bool) {
	if env.Health == HealthUnknown {
		return "", false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.byID[env.ID]
	if m == nil || m.detail == "" || !m.started.Equal(env.StartedAt) {
		return "", false
	}
	return m.detail, true
}

func (h *healthChecks) kick() {
	select {
	case h.wake <- struct{}{}:
	default: // it is awake already
	}
}

// take returns a check that is due, or how long until one is.
func (h *healthChecks) take(now time.Time) (*monitor, time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.waiting) == 0 {
		return nil, time.Hour
	}
	if wait := h.waiting[0].next.Sub(now); wait > 0 {
		return nil, wait
	}
	return heap.Pop(&h.waiting).(*monitor), 0 //nolint:forcetypeassert // nothing else is pushed
}

// run checks until ctx ends.
func (h *healthChecks) run(ctx context.Context) {
	var checking sync.WaitGroup
	defer checking.Wait()
	slots := make(chan struct{}, healthWorkers)
	for ctx.Err() == nil {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		m, wait := h.take(time.Now())
		if m != nil {
			checking.Go(func() {
				defer func() { <-slots }()
				h.checkOne(ctx, m)
			})
			continue
		}
		<-slots
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-h.wake:
		}
		timer.Stop()
	}
}

// checkOne checks once, keeps what was found and puts the next check in line.
func (h *healthChecks) checkOne(ctx context.Context, m *monitor) {
	moved := h.watchMoving(m)
	limited, cancel := context.WithTimeout(ctx, m.check.Timeout)
	detail, err := h.manager.probe(limited, m)
	cancel()
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		detail = err.Error()
	}
	var health Health
	news := false
	if err == nil || !notChecked(err) && moved(ctx) {
		health, news = h.judge(m, err == nil, shorten(detail), time.Now())
	}
	if news {
		recorded, err := h.manager.foundHealth(ctx, m, health, shorten(detail))
		if err != nil && ctx.Err() == nil {
			h.manager.cfg.Log.ErrorContext(ctx, "recording the health of an environment failed; the next check tries again",
				"environment", m.id, "error", err)
		}
		if recorded { // else it is news at the next check too
			h.settle(m, health)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if m.removed {
		return
	}
	m.next = time.Now().Add(jitter(m.check.Interval))
	heap.Push(&h.waiting, m)
	h.kick()
}

// notChecked says that a check failed on the way to the environment, which
// tells nothing of its health: containerd or a shim is away, also when the end of
// a command was to be asked for, a snapshot of it is being taken, or the node has
// no room to look at its desktop.
func notChecked(err error) bool {
	return errors.Is(err, ErrPaused) || errors.Is(err, ErrUnseen) || slices.ContainsFunc(problem.All(err), func(p *problem.Problem) bool {
		return containerdAway(p) || p.Reason == problem.Unavailable || p.Reason == problem.CommandTimeout && notChecked(p.Err)
	})
}

// freezing says that something may freeze an environment until it calls over.
func (h *healthChecks) freezing(id string) (over func()) {
	add := func(n int) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.frozen[id] += n; h.frozen[id] == 0 {
			delete(h.frozen, id)
		}
		if m := h.byID[id]; m != nil {
			m.freezes++
		}
	}
	add(1)
	return func() { add(-1) }
}

// watchMoving begins to watch whether an environment stands still. moved is asked
// after a failure: what was frozen at any time since did not answer, or not in
// time, and may be well. A snapshot that a daemon has left without resuming what it
// froze, and who else pauses a container, is seen in its status.
func (h *healthChecks) watchMoving(m *monitor) (moved func(ctx context.Context) bool) {
	look := func() (freezes int, frozen bool) {
		h.mu.Lock()
		defer h.mu.Unlock()
		return m.freezes, h.frozen[m.id] > 0
	}
	before, _ := look()
	return func(ctx context.Context) bool {
		if now, frozen := look(); frozen || now != before {
			return false
		}
		status, err := h.manager.cfg.Engine.Status(ctx, m.id)
		if p := problem.Of(err); p != nil && p.Reason == problem.ContainerdTimeout {
			return false // its shim, or containerd, says nothing now
		}
		return err != nil || !status.Paused
	}
}

// judge counts what a check found. news says that the health is another one
// than is recorded.
func (h *healthChecks) judge(m *monitor, works bool, detail string, now time.Time) (health Health, news bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m.detail = detail
	health = m.health
	switch {
	case works:
		m.failures, health = 0, Healthy
	case m.health == HealthStarting && now.Sub(m.since) < m.check.StartPeriod:
	default:
		if m.failures++; m.failures >= m.check.Retries {
			health = Unhealthy
		}
	}
	return health, health != m.health && !m.removed
}

func (h *healthChecks) settle(m *monitor, health Health) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m.health = health
}

// foundHealth records the health of a run. One that was found unhealthy is
// restarted where the policy says so, and is not when it recovers before.
// recorded is false when it is not this health's time: the next check says it
// again, to whatever the environment is by then.
func (m *Manager) foundHealth(ctx context.Context, of *monitor, health Health, detail string) (recorded bool, err error) {
	_, err = m.update(ctx, of.id, func(env *Environment) error {
		if env.State != Running || !env.StartedAt.Equal(of.started) || env.Spec.HealthCheck == nil || !reflect.DeepEqual(of.check, *env.Spec.HealthCheck) {
			return errNotOurs
		}
		if env.Operation != "" && health == Unhealthy {
			return errNotOurs // it is about to be another run; if not, the next check says so
		}
		env.Health, env.HealthDetail = health, detail
		if p := env.Spec.Restart; health == Unhealthy && p != nil && p.OnUnhealthy {
			planRestart(env, true, time.Since(env.StartedAt), time.Now())
		} else {
			env.RestartAt = time.Time{}
		}
		return nil
	})
	if errdefs.IsNotFound(err) {
		m.health.forget(of)
	}
	if errors.Is(err, errNotOurs) || errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// checkAnew makes environments that run begin at starting again: what an
// earlier daemon found may have changed since.
func (m *Manager) checkAnew(ctx context.Context) {
	envs, _, err := m.cfg.Store.Environments(ctx, Filter{States: []State{Running}})
	if err != nil {
		m.cfg.Log.ErrorContext(ctx, "listing running environments failed", "error", err)
		return
	}
	for _, env := range envs {
		if env.Health == firstHealth(env) {
			continue
		}
		if _, err := m.update(ctx, env.ID, func(env *Environment) error {
			if env.State != Running {
				return errNotOurs
			}
			env.Health, env.HealthDetail = firstHealth(env), ""
			return nil
		}); err != nil && !errors.Is(err, errNotOurs) {
			m.cfg.Log.ErrorContext(ctx, "resetting the health of an environment failed", "environment", env.ID, "error", err)
		}
	}
}

// forget ends the check of an environment that is gone.
func (h *healthChecks) forget(m *monitor) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.byID[m.id] == m {
		h.remove(m)
	}
}

// shorten makes what a tenant's program said fit to be kept and shown.
func shorten(text string) string {
	text = strings.TrimSpace(strings.ToValidUTF8(text, "�"))
	if len(text) > HealthDetailLimit {
		text = strings.ToValidUTF8(text[:HealthDetailLimit], "")
	}
	return text
}
