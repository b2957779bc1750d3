package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
)

// tendPatience is how long a pass waits until GPUs have been looked after.
const tendPatience = 2 * time.Second

// tending is the looking after GPUs that passes ask for. It has a goroutine of
// its own, as a driver may hang: neither passes nor the engine's events wait for
// one that does.
type tending struct {
	asked chan chan struct{} // a pass waits for each to be closed
	late  atomic.Bool        // who waited last did so in vain
}

// askToTend has GPUs looked after, and waits for that unless it takes long.
func (m *Manager) askToTend(ctx context.Context) {
	if m.cfg.GPUs == nil && m.cfg.GPU.Sharing == nil {
		return
	}
	done := make(chan struct{})
	select {
	case m.tending.asked <- done:
	default: // somebody has asked, and it has not begun
		return
	}
	if m.tending.late.Load() {
		return
	}
	timer := time.NewTimer(tendPatience)
	defer timer.Stop()
	select {
	case <-done:
	case <-ctx.Done():
	case <-timer.C:
		m.tending.late.Store(true)
	}
}

// runTending looks after GPUs when passes ask for it, until ctx ends.
func (m *Manager) runTending(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case done := <-m.tending.asked:
			if err := m.tendGPUs(ctx); err != nil && ctx.Err() == nil {
				m.leave(ctx, slog.LevelError, "looking after GPUs failed", "error", err)
			}
			close(done)
			m.tending.late.Store(false)
		}
	}
}

// tendGPUs records what the driver says of the health of GPUs, finds
// environments that run without theirs, gives back what stopped ones hold where
// the node does so, removes instances that nobody has any more, and makes again
// what an administrator made and the host has lost. Nothing is concluded from a
// driver that does not answer.
func (m *Manager) tendGPUs(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, passTimeout)
	defer cancel()
	if m.cfg.GPUs == nil {
		return m.keepSharing(ctx) // what ran for GPUs before they were turned off
	}
	var errs []error
	for _, held := range m.gpuFlow.over(time.Now()) {
		m.logHeldBack(ctx, held.gpu, held.xid, held.detail, held.count)
	}
	for _, event := range m.gpuEvents.take() {
		if err := m.recordGPUFailure(ctx, event); err != nil {
			m.gpuEvents.put(event)
			errs = append(errs, err)
		}
	}
	errs = append(errs, m.removePlanned(ctx, false, func(*gpu.Planned) bool { return true }))
	envs, _, err := m.cfg.Store.Environments(ctx, Filter{})
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("list environments: %w", err))...)
	}
	for _, env := range envs {
		if env.Operation == "" && len(env.GPUs) > 0 && m.cfg.GPU.ReleaseOnStop {
			errs = append(errs, m.releaseStopped(ctx, env.ID))
		}
	}
	found, err := m.GPUInventory(ctx, m.lookAgain(envs))
	if err == nil {
		if m.gpus.current(&found) { // else it may be of a GPU that was reset then
			errs = append(errs, m.examineGPUs(ctx, &found))
		}
		errs = append(errs, m.lookForLost(ctx, envs, &found), m.remakePartitions(ctx))
		m.watchAnew(ctx)
	} // else the condition tells
	return errors.Join(append(errs, m.keepSharing(ctx), m.reportGPUs(ctx))...)
}
