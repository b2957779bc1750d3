package runtime

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
)

// gpuVitals is what is remembered of how GPUs were. A daemon that starts knows
// nothing: a GPU that is too hot is given again until it was hot for a while.
type gpuVitals struct {
	mu     sync.Mutex
	heat   map[string]*gpu.Heat // by UUID
	told   map[string]bool      // whose holders know that it is too hot
	errors map[string]uint64    // uncorrected errors of memory, as the store has them
	doubt  map[string]*doubt    // by UUID
}

// doubt is how often, and since when, it was not sure of a GPU that it is well.
type doubt struct {
	since time.Time
	looks int
}

// sureLooks is how many looks in turn at a GPU make sure of what one found.
const sureLooks = 3

// resolve makes a failure of what has not been sure for long. v.mu is held.
func (v *gpuVitals) resolve(d *gpu.Device, now time.Time, sureAfter time.Duration) {
	if !d.Health.Unsure {
		delete(v.doubt, d.UUID)
		return
	}
	if v.doubt == nil {
		v.doubt = make(map[string]*doubt)
	}
	before := v.doubt[d.UUID]
	if before == nil {
		before = &doubt{since: now}
		v.doubt[d.UUID] = before
	}
	before.looks++
	d.Health.Unsure = before.looks < sureLooks || now.Sub(before.since) < sureAfter
}

// look makes GPUs unhealthy that are too hot, and those failed that were not sure
// to be well for long.
func (v *gpuVitals) look(found *gpu.Inventory, cfg *GPUConfig) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.heat == nil {
		v.heat = make(map[string]*gpu.Heat)
	}
	hotFor, coolFor := cfg.HotFor, cfg.CoolFor
	if hotFor == 0 {
		hotFor = gpu.HotFor
	}
	if coolFor == 0 {
		coolFor = gpu.CoolFor
	}
	sureAfter := cfg.SureAfter
	if sureAfter == 0 {
		sureAfter = DefaultSureAfter
	}
	now := time.Now()
	for i := range found.Devices {
		d := &found.Devices[i]
		v.resolve(d, now, sureAfter)
		heat := v.heat[d.UUID]
		if heat == nil {
			heat = new(gpu.Heat)
			v.heat[d.UUID] = heat
		}
		if health := heat.Look(&d.Vitals, now, hotFor, coolFor); !d.Health.Unhealthy {
			d.Health = health
		}
	}
}

// turned says whether it is news that a GPU is, or is not any more, too hot.
func (v *gpuVitals) turned(uuid string, hot bool) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.told == nil {
		v.told = make(map[string]bool)
	}
	before := v.told[uuid]
	v.told[uuid] = hot
	return before != hot
}

// counted says whether the store has that number of uncorrected errors.
func (v *gpuVitals) counted(uuid string, count uint64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	before, known := v.errors[uuid]
	return known && before == count
}

func (v *gpuVitals) setCounted(uuid string, count uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.errors == nil {
		v.errors = make(map[string]uint64)
	}
	v.errors[uuid] = count
}

// examineGPUs records what drivers tell of the health of GPUs. A drained one may
// not answer because somebody resets it; what is wrong with it still is when it is
// undrained.
func (m *Manager) examineGPUs(ctx context.Context, found *gpu.Inventory) error {
	books, err := m.cfg.Store.GPUBooks(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for i := range found.Devices {
		d := &found.Devices[i]
		if mark := books.Mark(d.UUID); d.Health.Failed() && !mark.Drained {
			errs = append(errs, m.markUnhealthy(ctx, d.UUID, d.Health))
		}
		errs = append(errs, m.tellOfHeat(ctx, d), m.countMemoryErrors(ctx, d))
	}
	return errors.Join(errs...)
}

// tellOfHeat tells those who have a GPU that it has become too hot to be given,
// or cool. They keep it, and it may be slower.
func (m *Manager) tellOfHeat(ctx context.Context, d *gpu.Device) error {
	hot := d.Health.Unhealthy && d.Health.Passing
	if !m.vitals.turned(d.UUID, hot) {
		return nil
	}
	message := "GPU " + d.UUID + " is cool again"
	if hot {
		message = "GPU " + d.UUID + " is slower, and given to nobody else: " + d.Health.Reason
		m.cfg.Log.WarnContext(ctx, "a GPU is too hot to be given", "gpu", d.UUID, "reason", d.Health.Reason)
	} else {
		m.cfg.Log.InfoContext(ctx, "a GPU has cooled down", "gpu", d.UUID)
	}
	books, err := m.cfg.Store.GPUBooks(ctx)
	if err != nil {
		m.vitals.turned(d.UUID, !hot) // the next pass tells
		return err
	}
	var errs []error
	for _, l := range books.Leases(d.UUID) {
		errs = append(errs, m.tell(ctx, l.EnvID, HappenedGPUs, message))
	}
	return errors.Join(errs...)
}

// countMemoryErrors marks a GPU that had more memory errors that nobody corrected
// than when that was last looked at: there may have been no event, or nobody who
// saw it. What it had before it came here is not held against it.
func (m *Manager) countMemoryErrors(ctx context.Context, d *gpu.Device) error {
	if d.Vitals.UncorrectedErrors == nil || m.vitals.counted(d.UUID, *d.Vitals.UncorrectedErrors) {
		return nil
	}
	count := *d.Vitals.UncorrectedErrors
	err := m.judgeGPU(ctx, d.UUID, func(mark *gpu.Mark) (health gpu.Health) {
		if mark.Counted && count > mark.Uncorrected {
			health = gpu.Health{
				Unhealthy: true, Reason: fmt.Sprintf("its memory had %d errors that were not corrected", count-mark.Uncorrected), Since: time.Now(),
			}
		}
		mark.Uncorrected, mark.Counted = count, true
		return health
	})
	if err != nil {
		return err
	}
	m.vitals.setCounted(d.UUID, count)
	return nil
}
