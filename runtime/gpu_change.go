package runtime

import (
	"context"
	"errors"
	"fmt"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// changeLeases brings the leases of an environment without a process to what a
// request asks for; nil gives all back, which takes no driver. What was made for
// a lease that ends is removed after it, by the next pass if not now. It returns
// the environment as it is then.
func (m *Manager) changeLeases(ctx context.Context, env *Environment, req *gpu.Request) (*Environment, error) {
	if req == nil && len(env.GPUs) == 0 {
		return env, nil
	}
	changed, ended, err := m.decideLeases(ctx, env, req)
	if err == nil {
		m.leaveInstances(ctx, env.ID, ended)
	}
	return changed, err
}

// decideLeases does as changeLeases but for the removal of what was made for the
// leases that ended, which it returns.
func (m *Manager) decideLeases(ctx context.Context, env *Environment, req *gpu.Request) (_ *Environment, ended []gpu.Lease, err error) {
	var done func()
	// Who has the gate may wait for a GPU to be free, and for a worker then.
	if err := operation.Idle(ctx, func() (err error) { done, err = m.gpuGate.Lock(ctx, struct{}{}); return err }); err != nil {
		return env, nil, fmt.Errorf("wait for who changes GPUs: %w", err)
	}
	defer done()
	var devices []gpu.Device
	if req != nil {
		found, err := m.inventoryOf(ctx, append(gpusOf(env.GPUs), req.UUIDs...))
		if err != nil {
			return env, nil, err
		}
		devices = found.Devices
	}
	decide, err := m.lease(ctx, env.ID, devices, req)
	if err != nil {
		return env, nil, err
	}
	var change gpu.Change
	changed, err := m.cfg.Store.ChangeGPUs(ctx, env.ID, func(held gpu.Books) (gpu.Change, error) {
		decided, err := decide(held)
		if err == nil && len(decided.Drop)+len(decided.Add) == 0 {
			err = errNothingToDo
		}
		change = decided
		return decided, err
	}, func(env *Environment) error {
		env.News = append(env.News, newsOfGPUs(&change)...)
		return nil
	})
	switch {
	case errors.Is(err, errNothingToDo):
		return env, nil, nil
	case err != nil:
		return env, nil, fmt.Errorf("change GPUs of environment %s: %w", env.ID, err)
	}
	m.fill(changed)
	m.follow(changed)
	m.changes.publish(changed)
	return changed, change.Drop, nil
}

// gpusOf are the UUIDs of the GPUs of leases.
func gpusOf(leases []gpu.Lease) []string {
	var uuids []string
	for i := range leases {
		uuids = append(uuids, leases[i].GPU)
	}
	return uuids
}
