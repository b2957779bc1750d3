package runtime

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
)

// letGo is how long who drains a GPU waits until the watch has closed it.
const letGo = 5 * time.Second

// errWatchAnew ends a watch because others are to be watched.
var errWatchAnew = errors.New("other GPUs are to be watched")

// gpuWatch is the watch that there may be.
type gpuWatch struct {
	mu     sync.Mutex
	asked  int      // how often it was asked for others
	only   []string // PCI addresses; nil: all
	cancel context.CancelCauseFunc
	ended  chan struct{} // closed when it has; nil: there is none
	found  chan struct{} // has one when GPUs are found on a host that had none
}

// wake has who waits for GPUs watch those that were found.
func (w *gpuWatch) wake() {
	select {
	case w.found <- struct{}{}:
	default:
	}
}

// questions is how often others were asked for.
func (w *gpuWatch) questions() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
}

// begin says that a watch begins, unless others were asked for since.
func (w *gpuWatch) begin(asked int, only []string, cancel context.CancelCauseFunc) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if asked != w.asked {
		return false
	}
	w.only, w.cancel, w.ended = only, cancel, make(chan struct{})
	return true
}

func (w *gpuWatch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.ended)
	w.ended = nil
}

// change ends a watch of others than only. It returns what is closed then; nil
// when there is nothing to wait for.
func (w *gpuWatch) change(only []string) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended != nil && (only == nil) == (w.only == nil) && slices.Equal(only, w.only) {
		return nil
	}
	w.asked++
	if w.ended == nil {
		return nil
	}
	w.cancel(errWatchAnew)
	return w.ended
}

// toWatch are the PCI addresses of the GPUs to watch; nil: all. A GPU that is
// watched is open and cannot be reset, so those that somebody may be about to
// reset are left out: drained ones, and those whose MIG mode waits for it.
func (m *Manager) toWatch(ctx context.Context, found *gpu.Inventory) ([]string, error) {
	books, err := m.cfg.Store.GPUBooks(ctx)
	if err != nil {
		return nil, err
	}
	only, out := []string{}, false
	for i := range found.Devices {
		switch d := &found.Devices[i]; {
		case !ofNVIDIA(*d):
		case books.Mark(d.UUID).Drained, d.MIG.Pending:
			out = true
		default:
			only = append(only, d.PCI)
		}
	}
	if !out {
		return nil, nil
	}
	return only, nil
}

// watchSome watches GPUs until the watch breaks or others are to be watched,
// which is errWatchAnew.
func (m *Manager) watchSome(ctx context.Context, found *gpu.Inventory) error {
	asked := m.watch.questions()
	only, err := m.toWatch(ctx, found)
	if err != nil {
		return err
	}
	watching, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if !m.watch.begin(asked, only, cancel) {
		return errWatchAnew
	}
	defer m.watch.end()
	if only != nil && len(only) == 0 {
		<-watching.Done()
	} else {
		m.unwatched.begin()
		timer := time.AfterFunc(watchProven, func() { m.watchWorks(watching) })
		defer timer.Stop()
		err = m.cfg.GPUs.Watch(watching, only, func(event gpu.Event) {
			if !event.Unwatched {
				m.watchWorks(watching)
			}
			m.gpuHappened(ctx, event)
		})
	}
	if errors.Is(context.Cause(watching), errWatchAnew) {
		return errWatchAnew
	}
	return err
}

// watchWorks says that the watch does, unless it has ended.
func (m *Manager) watchWorks(watching context.Context) {
	if watching.Err() == nil && m.unwatched.works() {
		m.reportWatch(watching)
	}
}

// watchBroke says that a watch broke.
func (m *Manager) watchBroke(ctx context.Context, err error) {
	if m.unwatched.broke(err) {
		m.reportWatch(ctx)
	}
}

func (m *Manager) reportWatch(ctx context.Context) {
	if err := m.reportGPUs(ctx); err != nil && ctx.Err() == nil {
		m.leave(ctx, slog.LevelWarn, "the condition of GPUs is not up to date", "error", err)
	}
}

// watchAnew has the watch let go of GPUs that are not to be watched any more, and
// take up those that are again. It waits a moment for that: who has drained a
// GPU may reset it at once.
func (m *Manager) watchAnew(ctx context.Context) {
	if m.cfg.GPUs == nil {
		return
	}
	found := m.gpus.seen()
	only, err := m.toWatch(ctx, &found)
	if err != nil {
		m.leave(ctx, slog.LevelWarn, "the watch of GPUs does not follow drains", "error", err)
		return
	}
	ended := m.watch.change(only)
	if ended == nil {
		return
	}
	timer := time.NewTimer(letGo)
	defer timer.Stop()
	select {
	case <-ended:
	case <-ctx.Done():
	case <-timer.C:
		m.cfg.Log.WarnContext(ctx, "the watch of GPUs does not end; a drained GPU may still be open")
	}
}
