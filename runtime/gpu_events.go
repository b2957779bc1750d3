package runtime

import (
	"maps"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
)

const (
	// eventBurst is how many like events of a GPU are followed in each
	// eventWindow; the others are counted. A program can bring about thousands.
	eventBurst  = 5
	eventWindow = time.Minute
	// eventKinds bounds what is remembered.
	eventKinds = 1024
)

// eventKind is what like events have in common.
type eventKind struct {
	gpu, mig, detail string
	xid              int
	fatal            bool
}

// eventFlow is the like events of a window.
type eventFlow struct {
	began        time.Time
	passed, held int
}

// eventGate keeps those events of GPUs back that tell nothing new.
type eventGate struct {
	mu    sync.Mutex
	flows map[eventKind]*eventFlow
}

// heldBack are like events that were not followed.
type heldBack struct {
	eventKind
	count int
}

// pass says whether an event is to be followed, and how many like it were not in
// the window before.
func (g *eventGate) pass(event *gpu.Event, now time.Time) (follow bool, held int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	kind := eventKind{event.UUID, event.MIG, event.Detail, event.XID, event.Fatal}
	flow := g.flows[kind]
	if flow == nil || now.Sub(flow.began) >= eventWindow {
		if flow != nil {
			held = flow.held
		}
		if g.flows == nil || len(g.flows) >= eventKinds {
			g.flows = make(map[eventKind]*eventFlow)
		}
		flow = &eventFlow{began: now}
		g.flows[kind] = flow
	}
	if flow.passed >= eventBurst {
		flow.held++
		return false, 0
	}
	flow.passed++
	return true, held
}

// over returns what was held back in windows that are over.
func (g *eventGate) over(now time.Time) []heldBack {
	g.mu.Lock()
	defer g.mu.Unlock()
	var found []heldBack
	for kind, flow := range g.flows {
		if now.Sub(flow.began) < eventWindow {
			continue
		}
		if flow.held > 0 {
			found = append(found, heldBack{kind, flow.held})
		}
		delete(g.flows, kind)
	}
	return found
}

// forget lets the next event of a GPU pass.
func (g *eventGate) forget(uuid string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for kind := range g.flows {
		if kind.gpu == uuid || kind.gpu == "" {
			delete(g.flows, kind)
		}
	}
}

// GPUErrors are the XIDs of a GPU since the daemon was started.
type GPUErrors struct {
	Last int           // 0: none
	XIDs map[int]int64 // how often each; those beyond errorKinds are 0
}

// errorKinds bounds the XIDs of a GPU that are counted apart.
const errorKinds = 64

// errorCounts counts them.
type errorCounts struct {
	mu    sync.Mutex
	byGPU map[string]*GPUErrors
}

func (c *errorCounts) count(event *gpu.Event) {
	if event.XID == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byGPU == nil {
		c.byGPU = make(map[string]*GPUErrors)
	}
	errs := c.byGPU[event.UUID]
	if errs == nil {
		errs = &GPUErrors{XIDs: make(map[int]int64)}
		c.byGPU[event.UUID] = errs
	}
	errs.Last = event.XID
	xid := event.XID
	if _, known := errs.XIDs[xid]; !known && len(errs.XIDs) >= errorKinds {
		xid = 0
	}
	errs.XIDs[xid]++
}

// GPUErrors are the XIDs of a GPU since the daemon was started.
func (m *Manager) GPUErrors(uuid string) GPUErrors { return m.gpuErrors.of(uuid) }

// of returns a copy of a GPU's.
func (c *errorCounts) of(uuid string) GPUErrors {
	c.mu.Lock()
	defer c.mu.Unlock()
	errs := GPUErrors{XIDs: make(map[int]int64)}
	if counted := c.byGPU[uuid]; counted != nil {
		errs.Last = counted.Last
		maps.Copy(errs.XIDs, counted.XIDs)
	}
	return errs
}
