package runtime

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	"github.com/remotegpu/remotegpu/gpu"
)

// restTicks is how many ticks of the reconciler's timer there are to a pass while a
// node is calm: half an hour with a tick each minute.
const restTicks = 30

// calmPasses is how many passes in a row must have found that all is well: what
// fails behind a change is found by the second one after it.
const calmPasses = 2

// rest spares a node most passes of the timer while it is calm: the last passes
// found nothing to do, and since then no environment has changed and nothing failed.
// Events of the kernel and of the engine, and people, have their passes as ever, and
// each tick has a glance at what environments live by: what waits is what nobody told
// of and nobody lacks. A pass costs the daemon and containerd more than a
// millisecond for each environment, which is most of what an idle node uses.
type rest struct {
	mu     sync.Mutex
	calm   int    // passes in a row that found nothing to do
	seq    uint64 // of the last change of an environment before the last pass
	last   *calm  // what the last pass found; nil: something to do
	spared int    // ticks since the last pass
}

// calm is what a pass found that had nothing to do.
type calm struct {
	inhabited bool     // there are environments
	gpus      bool     // some of them have GPUs
	alive     []string // those whose processes run, and that have a network
}

// passed notes a pass that began after the change of environments number seq; found
// is nil when there was something to do.
func (r *rest) passed(seq uint64, found *calm) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if found == nil || seq != r.seq {
		r.calm = 0
	}
	if found != nil {
		r.calm++
	}
	r.seq, r.last, r.spared = seq, found, 0
}

// disturb has the next tick bring a pass.
func (r *rest) disturb() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calm = 0
}

// spare tells whether this tick of the timer needs no pass, when seq is the
// number of the last change of an environment: what the last pass found then, else
// nil.
func (r *rest) spare(seq uint64) *calm {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.calm < calmPasses || seq != r.seq || r.spared+1 >= restTicks {
		return nil
	}
	r.spared++
	return r.last
}

// leave tells of something that failed and that a pass does again, and has that come
// with the next tick.
func (m *Manager) leave(ctx context.Context, level slog.Level, what string, args ...any) {
	m.rest.disturb()
	m.cfg.Log.Log(ctx, level, what+"; the next pass of the reconciler tries again", args...) //nolint:sloglint // who calls has a message that stands still
}

// spare tells whether a tick of the timer needs no pass, after a glance.
func (m *Manager) spare(ctx context.Context) bool {
	last := m.rest.spare(m.changes.last())
	if last == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, passTimeout)
	defer cancel()
	return m.glance(ctx, last)
}

// glance does at a tick without a pass what others give cause for and tell nobody,
// drivers and whoever uses the ports of environments, and what could not be done
// before, and tells whether those that lived in the last pass have what they live by. If
// not a pass finds out what it is.
func (m *Manager) glance(ctx context.Context, last *calm) bool {
	if !last.inhabited {
		return true
	}
	if m.cfg.GPUs != nil || last.gpus {
		m.askToTend(ctx)
	}
	m.removeStaleExecs(ctx)
	if err := m.lookForConflicts(ctx); err != nil {
		return false // it is tried again, and told
	}
	if _, err := m.cfg.Engine.Info(ctx); err != nil { // as containerd may hang
		return false
	}
	return m.cfg.Engine.Intact() && !slices.ContainsFunc(last.alive, func(id string) bool {
		pinned, err := m.cfg.Networks.Pinned(id)
		return err != nil || !pinned
	})
}

// calm tells what a pass found that succeeded and after which nobody needs another
// one soon; nil: somebody does.
func (m *Manager) calm(ctx context.Context, o *observed, findings []Finding) *calm {
	if !o.nothingToDo(findings) || !m.nothingPending(ctx) {
		return nil
	}
	found := &calm{inhabited: len(o.environments) > 0}
	for _, env := range o.environments {
		if undrawn(env) {
			return nil // a pass watches its desktop again
		}
		found.gpus = found.gpus || len(env.GPUs) > 0 || env.GPURun != nil
		if env.Alive() && o.containers[env.ID].Running {
			found.alive = append(found.alive, env.ID)
		}
	}
	return found
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
