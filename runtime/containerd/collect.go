package containerd

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

const (
	// gatherTime is from a removal to the collection that gives its space back:
	// what is removed at about the same time costs one.
	gatherTime = time.Second
	// collectShare is how many times as long as a collection took the next one
	// waits: containerd writes nothing meanwhile, and its database may be large.
	collectShare = 20
	// collectAgain is the least time from a collection that failed to the next.
	collectAgain = time.Minute
)

// collector has containerd collect what was removed. The files of a layer go
// only then, and containerd's own scheduler may let minutes pass
// (pause_threshold). While nothing was removed it has no goroutine.
type collector struct {
	collect func(context.Context) error
	failed  func(context.Context, error)
	closed  chan struct{}

	mu      sync.Mutex
	asked   bool // something was removed since the last collection began
	running bool
	ended   bool
	next    time.Time // none before
	work    sync.WaitGroup
}

func newCollector(collect func(context.Context) error, failed func(context.Context, error)) *collector {
	return &collector{collect: collect, failed: failed, closed: make(chan struct{})}
}

// soon asks for a collection, and does not wait for it. ctx gives its values.
func (c *collector) soon(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = true
	if c.running || c.ended {
		return
	}
	c.running = true
	c.work.Go(func() { c.run(context.WithoutCancel(ctx)) })
}

func (c *collector) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-c.closed:
			cancel()
		case <-ctx.Done():
		}
	}()
	told := false
	for c.wait(ctx) {
		began := time.Now()
		err := c.collect(ctx)
		took := time.Since(began)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !told {
			c.failed(ctx, err)
		}
		told = err != nil
		if c.done(err, took) {
			return
		}
	}
}

// wait is false when the collector was closed.
func (c *collector) wait(ctx context.Context) bool {
	c.mu.Lock()
	timer := time.NewTimer(max(gatherTime, time.Until(c.next)))
	c.mu.Unlock()
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = false
	return true
}

// done says whether nothing is left to collect.
func (c *collector) done(err error, took time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	pause := collectShare * took
	if err != nil {
		c.asked, pause = true, max(pause, collectAgain)
	}
	c.next = time.Now().Add(pause)
	c.running = c.asked
	return !c.running
}

// close ends a collection that goes on; containerd does by itself what is left.
func (c *collector) close() {
	c.mu.Lock()
	if !c.ended {
		c.ended = true
		close(c.closed)
	}
	c.mu.Unlock()
	c.work.Wait()
}

// collect has containerd collect and waits for it, by way of a lease that keeps
// nothing: to give one back is the one call that does so and needs nothing that
// is there already. The lease goes, too, when ctx ends amid this, as it does when
// the daemon stops; should it stay behind all the same, as when the answer to its
// making was lost, the reconciler gives it back.
func (e *Engine) collect(ctx context.Context) error {
	ctx, id := e.namespaced(ctx), newLease()
	e.holdLease(id, 1) // Parts does not name it meanwhile
	defer e.holdLease(id, -1)
	service := e.client.LeasesService()
	// Not broken off: containerd may make the lease after it was given back.
	taking, cancel := afterwards(ctx)
	defer cancel()
	if _, err := service.Create(taking, leases.WithID(id), leases.WithLabels(map[string]string{labelEngine: e.token})); err != nil {
		return fmt.Errorf("take lease: %w", e.explain(ctx, err))
	}
	if err := service.Delete(ctx, leases.Lease{ID: id}, leases.SynchronousDelete); err != nil && !errdefs.IsNotFound(err) {
		undo, cancel := afterwards(ctx)
		defer cancel()
		_ = service.Delete(undo, leases.Lease{ID: id})
		return fmt.Errorf("give back lease: %w", e.explain(ctx, err))
	}
	return nil
}

// collected is a snapshotter of which what is removed is collected soon.
type collected struct {
	snapshots.Snapshotter
	removed func(context.Context)
}

func (c collected) Remove(ctx context.Context, key string) error {
	err := c.Snapshotter.Remove(ctx, key)
	if err == nil {
		c.removed(ctx)
	}
	return err
}
