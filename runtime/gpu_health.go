package runtime

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
)

const (
	// watchPause is the first and watchPauseMax the longest pause before GPUs
	// are watched again.
	watchPause    = time.Second
	watchPauseMax = time.Minute
	// lookForGPUs is how often a host without GPUs is looked at again.
	lookForGPUs = 10 * time.Minute
)

// missedEvents are events of GPUs that could not be recorded; the next pass
// does.
type missedEvents struct {
	mu     sync.Mutex
	events []gpu.Event
}

// missedLimit bounds them: what is lost beyond it is about GPUs that are
// unhealthy by the others.
const missedLimit = 256

func (e *missedEvents) put(event gpu.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.events) < missedLimit {
		e.events = append(e.events, event)
	}
}

func (e *missedEvents) take() []gpu.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	events := e.events
	e.events = nil
	return events
}

// watchGPUs makes the store follow what happens to GPUs until ctx ends.
func (m *Manager) watchGPUs(ctx context.Context) {
	if m.cfg.GPUs == nil {
		return
	}
	pause, said := watchPause, ""
	for ctx.Err() == nil {
		found, err := m.GPUInventory(ctx, time.Minute)
		wait := pause
		var appear <-chan struct{}
		switch {
		case err != nil:
		case !slices.ContainsFunc(found.Devices, ofNVIDIA):
			wait, appear = lookForGPUs, m.watch.found // the software of others tells of nothing
		default:
			began := time.Now()
			err = m.watchSome(ctx, &found)
			if err != nil && ctx.Err() == nil && !errors.Is(err, errWatchAnew) {
				m.watchBroke(ctx, err)
			}
			if time.Since(began) > watchPauseMax {
				pause, wait = watchPause, watchPause
			}
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errWatchAnew) {
			continue
		}
		if err != nil {
			if err.Error() != said {
				m.cfg.Log.WarnContext(ctx, "GPUs are not watched; trying again", "error", err)
				said = err.Error()
			}
			pause = min(2*pause, watchPauseMax)
		}
		select {
		case <-ctx.Done():
		case <-appear:
		case <-time.After(wait):
		}
	}
}

// gpuHappened makes the store follow one event. What no administrator has to
// look at is only logged: a process in an environment can bring it about at
// will, thousands of times. An error of a program changes nothing of the GPU.
func (m *Manager) gpuHappened(ctx context.Context, event gpu.Event) {
	m.gpuErrors.count(&event)
	if event.Unwatched {
		m.unwatched.of(&event)
	}
	follow, held := m.gpuFlow.pass(&event, time.Now())
	if !follow {
		return
	}
	if held > 0 {
		m.logHeldBack(ctx, event.UUID, event.XID, event.Detail, held)
	}
	if event.Fatal || event.XID == 0 {
		m.gpus.outdate()
	}
	if !event.Fatal {
		m.cfg.Log.InfoContext(ctx, "an error of a program on a GPU", "gpu", event.UUID, "mig", event.MIG, "xid", event.XID, "detail", event.Detail)
		return
	}
	m.cfg.Log.ErrorContext(ctx, "a GPU has failed", "gpu", event.UUID, "mig", event.MIG, "xid", event.XID, "detail", event.Detail)
	if err := m.recordGPUFailure(ctx, event); err != nil && ctx.Err() == nil {
		m.leave(ctx, slog.LevelError, "recording the failure of a GPU failed", "gpu", event.UUID, "error", err)
		m.gpuEvents.put(event)
	}
}

// logHeldBack tells of like events that were not told one by one.
func (m *Manager) logHeldBack(ctx context.Context, uuid string, xid int, detail string, count int) {
	m.cfg.Log.WarnContext(ctx, "a GPU had many errors of one kind", "gpu", uuid, "xid", xid, "detail", detail, "more", count)
}

// recordGPUFailure marks the GPU of a fatal event, or all, and tells those who
// have it.
func (m *Manager) recordGPUFailure(ctx context.Context, event gpu.Event) error {
	uuids := []string{event.UUID}
	if event.UUID == "" {
		uuids = nil
		for _, d := range m.gpus.seen().Devices {
			if d.Vendor == gpu.NVIDIA {
				uuids = append(uuids, d.UUID)
			}
		}
	}
	if event.At.IsZero() {
		event.At = time.Now()
	}
	var errs []error
	for _, uuid := range uuids {
		errs = append(errs, m.markUnhealthy(ctx, uuid, gpu.Health{Unhealthy: true, Reason: event.Detail, XID: event.XID, Since: event.At}))
	}
	return errors.Join(append(errs, m.reportGPUs(ctx))...)
}

// markUnhealthy keeps that a GPU is not well, and tells those who have it.
func (m *Manager) markUnhealthy(ctx context.Context, uuid string, health gpu.Health) error {
	return m.judgeGPU(ctx, uuid, func(*gpu.Mark) gpu.Health { return health })
}

// judgeGPU changes what is kept of a GPU; of one that judge finds unhealthy it
// keeps that, and tells those who have it. What it had before stays the reason.
func (m *Manager) judgeGPU(ctx context.Context, uuid string, judge func(mark *gpu.Mark) gpu.Health) error {
	var held []gpu.Lease
	mark, err := m.cfg.Store.MarkGPU(ctx, uuid, func(books gpu.Books, mark *gpu.Mark) error {
		before := *mark
		held = nil
		if health := judge(mark); health.Unhealthy && !mark.Health.Unhealthy {
			mark.Health, held = health, books.Leases(uuid)
		}
		if *mark == before {
			return errNothingToDo
		}
		return nil
	})
	if errors.Is(err, errNothingToDo) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for i := range held {
		errs = append(errs, m.tellOfFailure(ctx, held[i].EnvID, failed(uuid, mark.Health.Reason)))
	}
	return errors.Join(errs...)
}

// failed says that a GPU has failed.
func failed(uuid, reason string) string { return "GPU " + uuid + " failed: " + reason }

// tellOfFailure tells a holder that its GPU has failed: a process has lost it,
// which the passes see to as well.
func (m *Manager) tellOfFailure(ctx context.Context, envID, why string) error {
	env, err := m.cfg.Store.Environment(ctx, envID)
	if err != nil {
		return ignoreNotFound(err)
	}
	if !env.Alive() || env.GPURun == nil {
		return m.tell(ctx, envID, HappenedGPUFail, why)
	}
	return m.recordLost(ctx, env, why)
}

// tell adds to an environment's history what happened to its GPUs.
func (m *Manager) tell(ctx context.Context, envID string, kind, message string) error {
	_, err := m.update(ctx, envID, func(env *Environment) error {
		env.News = append(env.News, History{Time: time.Now(), Kind: kind, Message: message})
		return nil
	})
	return ignoreNotFound(err)
}

// reportGPUs keeps a condition while GPUs are unhealthy.
func (m *Manager) reportGPUs(ctx context.Context) error {
	books, err := m.cfg.Store.GPUBooks(ctx)
	if err != nil {
		return err
	}
	var sick []string
	for i := range books.Marks {
		if mark := &books.Marks[i]; mark.Health.Unhealthy {
			sick = append(sick, mark.GPU+": "+mark.Health.Reason)
		}
	}
	var unhealthy error
	if len(sick) > 0 {
		unhealthy = problem.New(problem.GPUUnhealthy, "%d GPUs are given to nobody: %s", len(sick), strings.Join(sick, "; ")).
			WithHint("look at the host's kernel log; when one is well again: remotegpu gpu undrain --reset-health GPU")
	}
	m.setCondition(problem.GPUUnhealthy, unhealthy)
	m.setCondition(problem.GPUWarning, gpuWarnings(m.gpus.seen().Devices, m.unwatched.all()))
	return nil
}

// gpuWarnings is the condition of GPUs that work and are not as they should be,
// or, broken, whose errors nobody is told of; nil: there are none.
func gpuWarnings(devices []gpu.Device, broken string) error {
	var warned []string
	for i := range devices {
		d := &devices[i]
		found := d.Vitals.Warnings()
		if d.Health.Unhealthy && !d.Health.Failed() {
			found = append(found, d.Health.Reason)
		}
		if len(found) > 0 {
			warned = append(warned, d.UUID+": "+strings.Join(found, ", "))
		}
	}
	count, unwatched := len(warned), "errors of GPUs are not watched, so what fails is found by each minute's look alone: "+broken
	switch {
	case count == 0 && broken == "":
		return nil
	case count == 0:
		return problem.New(problem.GPUWarning, "%s", unwatched).WithHint("see the daemon's log, and whether nvidia-smi works on the host")
	case broken != "":
		warned = append(warned, unwatched)
	}
	return problem.New(problem.GPUWarning, "%d GPUs work, and need to be looked at: %s", count, strings.Join(warned, "; ")).
		WithHint("heat: see to fans and air; memory: drain the GPU (remotegpu gpu drain GPU) and reset it when it is free")
}

// lookAgain is how old an inventory may be that a pass goes by: a host on which
// there is nothing to lose is seldom looked at.
func (m *Manager) lookAgain(envs []*Environment) time.Duration {
	used := slices.ContainsFunc(envs, func(env *Environment) bool { return len(env.GPUs) > 0 })
	if used || slices.ContainsFunc(m.gpus.seen().Devices, ofNVIDIA) {
		return freshInventory
	}
	return lookForGPUs
}

func ofNVIDIA(d gpu.Device) bool { return d.Vendor == gpu.NVIDIA }

// releaseStopped gives back the GPUs of an environment that has stopped by
// itself.
func (m *Manager) releaseStopped(ctx context.Context, id string) error {
	unlock, env, err := m.lockIdle(ctx, id)
	if env == nil {
		return err
	}
	defer unlock()
	return m.releaseIdle(ctx, env)
}
