package runtime

import (
	"context"
	"errors"
	"sync"
	"time"
)

// drawTimeout is how long a desktop is watched until it has drawn. It takes
// 2 to 3 s on an idle host; a longer wait covers a busy one.
const drawTimeout = 10 * time.Minute

// drawWatch watches the desktops that have not drawn yet, one goroutine each,
// and marks their environments ready.
type drawWatch struct {
	manager *Manager
	mu      sync.Mutex
	ctx     context.Context //nolint:containedctx // the life of Run, which owns the goroutines
	group   sync.WaitGroup
	watches map[string]*context.CancelFunc // by environment; what ends it
}

// open lets watches begin; they end with ctx.
func (d *drawWatch) open(ctx context.Context) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ctx, d.watches = ctx, make(map[string]*context.CancelFunc)
}

// wait waits for the watches to end. Call it when their context has ended.
func (d *drawWatch) wait() {
	d.mu.Lock()
	d.ctx = nil
	d.mu.Unlock()
	d.group.Wait()
}

// ensure watches a desktop unless it is watched: one that did not draw in time
// may do so later.
func (d *drawWatch) ensure(id string) {
	d.mu.Lock()
	watched := d.watches[id] != nil
	d.mu.Unlock()
	if !watched {
		d.start(id)
	}
}

// ended forgets a watch, unless another one has taken its place.
func (d *drawWatch) ended(id string, end *context.CancelFunc) {
	(*end)()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.watches[id] == end {
		delete(d.watches, id)
	}
}

// start watches the desktop of a running environment.
func (d *drawWatch) start(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx == nil {
		return // not running: adopt starts the watch at the next boot
	}
	if end := d.watches[id]; end != nil {
		(*end)()
	}
	ctx, cancel := context.WithTimeout(d.ctx, drawTimeout)
	d.watches[id] = &cancel
	d.group.Go(func() {
		defer d.ended(id, &cancel)
		if err := d.manager.cfg.Desktops.AwaitDrawn(ctx, id); err != nil {
			if !errors.Is(ctx.Err(), context.Canceled) {
				d.manager.cfg.Log.WarnContext(ctx, "a desktop has not drawn", "environment", id, "error", err)
			}
			return
		}
		if _, err := d.manager.update(ctx, id, func(env *Environment) error {
			if ctx.Err() != nil { // the run that has drawn is over
				return ctx.Err()
			}
			env.Ready = env.State == Running
			return nil
		}); err != nil && ctx.Err() == nil {
			d.manager.cfg.Log.WarnContext(ctx, "a drawn desktop was not recorded", "environment", id, "error", err)
		}
	})
}

// stop ends the watch of an environment's desktop.
func (d *drawWatch) stop(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if end := d.watches[id]; end != nil {
		(*end)()
		delete(d.watches, id)
	}
}
