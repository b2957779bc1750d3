package runtime

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// diskInterval is how long watches make do with the last size of a writable
	// layer.
	diskInterval = 10 * time.Second
	// diskForget is how long a size is kept that nobody asks for.
	diskForget = 10 * time.Minute
)

// diskSizes are the sizes of writable layers that watches were last told.
type diskSizes struct {
	mu    sync.Mutex
	sizes map[string]diskSize
}

type diskSize struct {
	bytes int64     // -1: it could not be measured yet
	tried time.Time // when measuring ended
}

// fill sets the disk use of each as it was last measured, and returns those
// whose turn it is again.
func (d *diskSizes) fill(stats []Stats, now time.Time) (due []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range stats {
		size, known := d.sizes[stats[i].EnvID]
		if known {
			stats[i].DiskBytes = size.bytes
		}
		if !known || now.Sub(size.tried) >= diskInterval {
			due = append(due, stats[i].EnvID)
		}
	}
	return due
}

// due says whether it is an environment's turn.
func (d *diskSizes) due(id string, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	size, known := d.sizes[id]
	return !known || now.Sub(size.tried) >= diskInterval
}

// put keeps what measuring gave; -1 keeps the last size.
func (d *diskSizes) put(id string, bytes int64, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sizes == nil {
		d.sizes = make(map[string]diskSize)
	}
	maps.DeleteFunc(d.sizes, func(_ string, size diskSize) bool { return now.Sub(size.tried) > diskForget })
	if last, known := d.sizes[id]; known && bytes < 0 {
		bytes = last.bytes
	}
	d.sizes[id] = diskSize{bytes: bytes, tried: now}
}

// walker measures disks beside one watch: its messages do not wait for walks,
// which can be long.
type walker struct {
	manager *Manager
	busy    chan struct{}
	walks   sync.WaitGroup
}

// show gives stats the disk use that is known, and has the rest measured.
func (w *walker) show(ctx context.Context, stats []Stats) {
	due := w.manager.disks.fill(stats, time.Now())
	if len(due) == 0 {
		return
	}
	select {
	case w.busy <- struct{}{}:
		w.walks.Go(func() {
			defer func() { <-w.busy }()
			w.manager.walkDisks(ctx, due)
		})
	default: // at it
	}
}

func (w *walker) wait() { w.walks.Wait() }

// walkDisks measures those of the environments that no other watch has
// measured meanwhile, one at a time, as measureDisks does.
func (m *Manager) walkDisks(ctx context.Context, ids []string) {
	unlock, err := m.measuring.Lock(ctx, "disk")
	if err != nil {
		return // the watch has ended
	}
	defer unlock()
	for _, id := range ids {
		if !m.disks.due(id, time.Now()) {
			continue
		}
		walking, cancel := context.WithTimeout(ctx, diskTime)
		bytes, err := m.cfg.Meters.DiskUsage(walking, id)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			bytes = -1
			if !errdefs.IsNotFound(err) { // else its create failed, or it went meanwhile
				m.cfg.Log.WarnContext(ctx, "measuring a disk failed; it is tried again", "environment", id, "error", err)
			}
		}
		m.disks.put(id, bytes, time.Now())
	}
}
