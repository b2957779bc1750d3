package runtime

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	"github.com/remotegpu/remotegpu/gpu"
)

// Ticks of the reconciler's timer to a pass: with a tick each minute, five minutes
// and half an hour.
const (
	calmTicks = 5  // while all is well with environments
	restTicks = 30 // and while there is none
)

// calmPasses is how many passes in a row must have found that all is well: what
// fails behind a change is found by the second one after it.
const calmPasses = 2

// rest spares a node most passes of the timer while it is calm: the last passes
// found nothing to do, and since then no environment has changed and nothing failed.
// Events of the kernel and of the engine, and people, have their passes as ever, and
// rules, settings, ports and GPUs are looked at all the same: what waits is what
// nobody told of. A pass costs the daemon and containerd more than a millisecond for each
// environment, which is most of what an idle node uses.
type rest struct {
	mu     sync.Mutex
	calm   int    // passes in a row that found nothing to do
	seq    uint64 // of the last change of an environment before the last pass
	ticks  int    // to the next pass, when it was calm
	spared int    // ticks since the last pass
}

// passed notes a pass that began after the change of environments number seq. ticks
// is how many there may be to the next one; 0: it found something.
func (r *rest) passed(seq uint64, ticks int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ticks == 0 || seq != r.seq {
		r.calm = 0
	}
	if ticks > 0 {
		r.calm++
	}
	r.seq, r.ticks, r.spared = seq, ticks, 0
}

// disturb has the next tick bring a pass.
func (r *rest) disturb() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calm = 0
}

// spare tells whether this tick of the timer needs no pass, when seq is the
// number of the last change of an environment, and whether the last pass found
// environments.
func (r *rest) spare(seq uint64) (spared, inhabited bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.calm < calmPasses || seq != r.seq || r.spared+1 >= r.ticks {
		return false, false
	}
	r.spared++
	return true, r.ticks == calmTicks
}

// leave tells of something that failed and that a pass does again, and has that come
// with the next tick.
func (m *Manager) leave(ctx context.Context, level slog.Level, what string, args ...any) {
	m.rest.disturb()
	m.cfg.Log.Log(ctx, level, what+"; the next pass of the reconciler tries again", args...) //nolint:sloglint // who calls has a message that stands still
}

// lookAfter does at a tick without a pass what others give cause for and tell nobody:
// drivers, and whoever uses the ports of environments.
func (m *Manager) lookAfter(ctx context.Context) {
	m.askToTend(ctx)
	if err := m.lookForConflicts(ctx); err != nil && ctx.Err() == nil {
		m.leave(ctx, slog.LevelError, "looking for others who use ports of environments failed", "error", err)
	}
}

// mayRest is for how many ticks nobody needs another pass, after one that found this;
// 0: somebody does.
func (m *Manager) mayRest(ctx context.Context, o *observed, findings []Finding) int {
	switch {
	case !o.nothingToDo(findings), !m.nothingPending(ctx):
		return 0
	case len(o.environments) > 0:
		return calmTicks
	}
	return restTicks
}

// nothingToDo tells whether a pass that succeeded leaves nothing behind, and no
// environment with somebody at work.
func (o *observed) nothingToDo(findings []Finding) bool {
	for i := range findings {
		if findings[i].Ours {
			return false
		}
	}
	return len(o.creating) == 0 && !slices.ContainsFunc(o.environments, func(env *Environment) bool { return env.Operation != "" })
}

// nothingPending tells whether no pass is waited for by what is in no finding: a
// condition, or an instance of a GPU that could not be removed yet.
func (m *Manager) nothingPending(ctx context.Context) bool {
	if len(m.Conditions()) > 0 {
		return false
	}
	books, err := m.cfg.Store.GPUBooks(ctx)
	return err == nil && !slices.ContainsFunc(books.Planned, func(p gpu.Planned) bool { return p.Remove })
}
