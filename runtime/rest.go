package runtime

import (
	"context"
	"slices"
	"sync"

	"github.com/remotegpu/remotegpu/gpu"
)

// restTicks is how many ticks of the reconciler's timer there are to a pass while a
// node rests: half an hour with a pass each minute.
const restTicks = 30

// rest spares a node without environments most passes of the timer. Events of
// the kernel and of the engine, and people, have their passes as ever: what waits
// is what nobody told of, on a host where nobody has anything yet. A pass costs
// the daemon and containerd some ten milliseconds, which at rest is most of what
// they use.
type rest struct {
	mu     sync.Mutex
	begun  bool   // the last pass found nothing to do, and no environment
	seq    uint64 // of the last change of an environment before that pass
	spared int    // ticks since
}

// passed notes a pass that began after the change of environments number seq.
func (r *rest) passed(seq uint64, nothing bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begun, r.seq, r.spared = nothing, seq, 0
}

// spare tells whether this tick of the timer needs no pass, when seq is the
// number of the last change of an environment.
func (r *rest) spare(seq uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.begun || seq != r.seq || r.spared+1 >= restTicks {
		return false
	}
	r.spared++
	return true
}

// nothingToDo tells whether a pass that succeeded leaves nothing behind and has
// nobody to look after.
func (o *observed) nothingToDo(findings []Finding) bool {
	for i := range findings {
		if findings[i].Ours {
			return false
		}
	}
	return len(o.environments) == 0 && len(o.creating) == 0
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
