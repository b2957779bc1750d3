package runtime

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/drm"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// GPUInventory returns the GPUs of the host, as they were at most age before
// the call. GPU_UNAVAILABLE when the software of the host does not answer.
func (m *Manager) GPUInventory(ctx context.Context, age time.Duration) (gpu.Inventory, error) {
	found, err := m.knownGPUs(ctx, age)
	if err == nil && found.Missing != nil {
		return gpu.Inventory{}, found.Missing
	}
	return found, err
}

// inventoryOf is a fresh inventory for who is about GPUs of these names. Those
// of other vendors are known also while the software of NVIDIA does not answer.
func (m *Manager) inventoryOf(ctx context.Context, names []string) (gpu.Inventory, error) {
	if len(names) == 0 || slices.ContainsFunc(names, func(name string) bool { return !strings.HasPrefix(name, drm.UUIDPrefix) }) {
		return m.GPUInventory(ctx, freshInventory)
	}
	found, err := m.knownGPUs(ctx, freshInventory)
	if found.Missing != nil { // nor are those that were known before
		found.Devices = slices.DeleteFunc(slices.Clone(found.Devices), ofNVIDIA)
	}
	return found, err
}

// knownGPUs is GPUInventory but for Missing, which is no error. Devices has GPUs
// of NVIDIA as they were then.
func (m *Manager) knownGPUs(ctx context.Context, age time.Duration) (gpu.Inventory, error) {
	if m.cfg.GPUs == nil {
		return noGPUSoftware(), nil
	}
	now := time.Now()
	if last, fresh := m.gpus.get(now, age); fresh {
		return last, nil
	}
	// Who asks at the same time gets one answer.
	done, err := m.measuring.Lock(ctx, "gpus")
	if err != nil {
		return gpu.Inventory{}, fmt.Errorf("wait for the inventory of GPUs: %w", err)
	}
	defer done()
	if last, fresh := m.gpus.get(now, age); fresh {
		return last, nil
	}
	if err := m.gpus.failure(); err != nil {
		if last := m.gpus.seen(); last.Missing != nil {
			return last, nil
		}
		return gpu.Inventory{}, err
	}
	probing, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	asked, changes := m.gpus.begin()
	last, err := m.cfg.GPUs.Probe(probing)
	last.Missing = asGPUUnavailable(last.Missing)
	if ctx.Err() == nil {
		failure := last.Missing
		if err != nil {
			failure = asGPUUnavailable(err)
		}
		m.setCondition(problem.GPUUnavailable, failure)
	}
	if err != nil {
		if ctx.Err() == nil {
			m.gpus.failed(asGPUUnavailable(err), time.Since(asked))
		}
		return gpu.Inventory{}, asGPUUnavailable(err)
	}
	if last.Missing != nil {
		m.gpus.failed(last.Missing, time.Since(asked))
		for _, d := range m.gpus.seen().Devices {
			if ofNVIDIA(d) {
				last.Devices = append(last.Devices, d)
			}
		}
	}
	if last.Missing == nil { // else it is what was seen before
		m.vitals.look(&last, &m.cfg.GPU)
	}
	before := m.gpus.seen()
	m.gpus.set(last, asked, changes)
	if !slices.ContainsFunc(before.Devices, ofNVIDIA) && slices.ContainsFunc(last.Devices, ofNVIDIA) {
		m.watch.wake()
	}
	return last, nil
}
