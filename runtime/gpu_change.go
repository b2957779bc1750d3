package runtime

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// changeLeases brings the leases of an environment without a process to what a
// request asks for; nil gives all back. What was made for a lease that ends is
// gone before. It returns the environment as it is then.
func (m *Manager) changeLeases(ctx context.Context, env *Environment, req *gpu.Request) (*Environment, error) {
	if req == nil && len(env.GPUs) == 0 {
		return env, nil
	}
	var done func()
	// Who has the gate may wait for a GPU to be free, and for a worker then.
	if err := operation.Idle(ctx, func() (err error) { done, err = m.gpuGate.Lock(ctx, struct{}{}); return err }); err != nil {
		return env, fmt.Errorf("wait for who changes GPUs: %w", err)
	}
	defer done()
	var devices []gpu.Device
	if req != nil {
		found, err := m.inventoryOf(ctx, append(gpusOf(env.GPUs), req.UUIDs...))
		if err != nil {
			return env, err
		}
		devices = found.Devices
	}
	decide := m.lease(env.ID, devices, req)
	for range decisions {
		changed, err := m.changeOnce(ctx, env, decide)
		if !errors.Is(err, errDecideAnew) {
			return changed, err
		}
	}
	return env, fmt.Errorf("change GPUs of environment %s: %w", env.ID, errDecideAnew)
}

// gpusOf are the UUIDs of the GPUs of leases.
func gpusOf(leases []gpu.Lease) []string {
	var uuids []string
	for i := range leases {
		uuids = append(uuids, leases[i].GPU)
	}
	return uuids
}

// decisions bounds how often a change of leases is decided anew: each takes
// that somebody changed what it goes by meanwhile.
const decisions = 8

// errDecideAnew says that what a change of leases goes by has changed.
var errDecideAnew = fmt.Errorf("who has which GPU, or their health, keeps changing: %w", errdefs.ErrUnavailable)

// changeOnce makes the change of leases that decide decides. Instances of ending
// leases are gone before that is written, so it must be that very change then:
// errDecideAnew. The caller has the gate.
func (m *Manager) changeOnce(ctx context.Context, env *Environment, decide LeaseFunc) (*Environment, error) {
	books, err := m.cfg.Store.GPUBooks(ctx)
	if err != nil {
		return env, err
	}
	change, err := decide(books)
	if err != nil {
		return env, err
	}
	if len(change.Drop)+len(change.Add) == 0 {
		return env, nil
	}
	if err := m.removeInstances(ctx, change.Drop); err != nil {
		return env, err
	}
	changed, err := m.cfg.Store.ChangeGPUs(ctx, env.ID, func(held gpu.Books) (gpu.Change, error) {
		now, err := decide(held)
		if err == nil && !now.Same(&change) {
			err = errDecideAnew
		}
		return change, err
	}, func(env *Environment) error {
		env.News = append(env.News, newsOfGPUs(&change)...)
		return nil
	})
	if err != nil {
		return env, fmt.Errorf("change GPUs of environment %s: %w", env.ID, err)
	}
	m.fill(changed)
	m.follow(changed)
	m.changes.publish(changed)
	return changed, nil
}
