package runtime

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// walks counts the walks of disks; other measuring is none of it.
type walks struct {
	Meters
	count atomic.Int64
	fails atomic.Bool
}

func (w *walks) DiskUsage(ctx context.Context, _ string) (int64, error) {
	select {
	case <-time.After(3 * time.Second): // a walk is long
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	n := w.count.Add(1)
	if w.fails.Load() {
		return 0, errors.New("cannot be walked")
	}
	return n * 1000, nil
}

// However many watch, and however often, an environment is measured every 10 s
// at most, and nobody waits for it.
func TestWatchedDisksAreMeasuredNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		meters := &walks{}
		m := &Manager{cfg: Config{Meters: meters, Log: slog.New(slog.DiscardHandler)}}
		ctx, cancel := context.WithCancel(t.Context())
		first, second := walker{manager: m, busy: make(chan struct{}, 1)}, walker{manager: m, busy: make(chan struct{}, 1)}
		defer second.wait()
		defer first.wait()
		defer cancel()
		var told []int64
		tick := func() {
			began := time.Now()
			for _, w := range []*walker{&first, &second} {
				stats := []Stats{{EnvID: "a", DiskBytes: -1}}
				w.show(ctx, stats)
				if told = append(told, stats[0].DiskBytes); time.Since(began) > 0 {
					t.Error("a message waited for a walk")
				}
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
		for range 60 {
			tick()
		}
		if told[0] != -1 || told[len(told)-1] < 1000 || !slices.IsSorted(told) {
			t.Errorf("told %v", told)
		}
		// A walk of 3 s and then 10 s of rest: at most five in a minute.
		if count := meters.count.Load(); count < 4 || count > 5 {
			t.Errorf("%d walks in a minute", count)
		}
		// What cannot be measured keeps its last size, and is not tried more often.
		meters.fails.Store(true)
		before, last := meters.count.Load(), told[len(told)-1]
		told = nil
		for range 30 {
			tick()
		}
		if count := meters.count.Load() - before; count < 2 || count > 3 {
			t.Errorf("%d failed walks in half a minute", count)
		}
		if told[len(told)-1] < last {
			t.Errorf("told %v, want the last size", told)
		}
	})
}
