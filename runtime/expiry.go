package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/network/port"
)

// followExpiry takes over what the store now says of an environment's mappings.
func (m *Manager) followExpiry(env *Environment) {
	var next time.Time
	for i := range env.Ports {
		if at := env.Ports[i].ExpiresAt; !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	if env.State == Deleted {
		next = time.Time{}
	}
	m.expiry.set(env.ID, next)
}

// runExpiry ends mappings whose time is over until ctx ends. What the store
// says is looked up first: nobody may have read it since the daemon began, as
// when containerd is away. One that could not be recorded, for example because
// an operation works on its environment, leads nowhere meanwhile.
func (m *Manager) runExpiry(ctx context.Context) {
	envs, _, err := m.cfg.Store.Environments(ctx, Filter{})
	if err != nil && ctx.Err() == nil {
		m.cfg.Log.ErrorContext(ctx, "listing environments failed; mappings end with the next pass", "error", err)
	}
	for _, env := range envs {
		m.followExpiry(env)
	}
	m.expiry.run(ctx, m.expirePorts, func(id string, err error) {
		if !errors.Is(err, errWorkedOn) {
			m.cfg.Log.ErrorContext(ctx, "port mappings whose time is over were not released; it is tried again", "environment", id, "error", err)
		}
	})
}

// errWorkedOn says that an operation works on the environment.
var errWorkedOn = errors.New("an operation works on the environment")

// expirePorts withdraws the mappings of an environment whose time is over, at
// once, and releases them when no operation works on it.
func (m *Manager) expirePorts(ctx context.Context, id string) error {
	env, err := m.cfg.Store.Environment(ctx, id)
	if err != nil {
		return ignoreNotFound(err)
	}
	m.fill(env)
	over := overPorts(env)
	if len(over) == 0 {
		m.followExpiry(env) // it was changed meanwhile
		return nil
	}
	// At once, whatever works on the environment: an operation that publishes
	// its ports beside this leaves out what is over.
	if err := m.cfg.Networks.Withdraw(ctx, id, over); err != nil {
		return err
	}
	m.names.again(ctx, id)
	if env.Operation != "" {
		return errWorkedOn
	}
	unlock, env, err := m.lockIdle(ctx, id)
	if env == nil {
		if err == nil {
			err = errWorkedOn
		}
		return err
	}
	defer unlock()
	if over = overPorts(env); len(over) == 0 {
		return nil
	}
	requests := env.Spec.Ports
	var gone []int
	for _, mapping := range over {
		gone = append(gone, m.cfg.Ports.RequestOf(env.Ports, requests, mapping))
	}
	_, err = m.dropPorts(ctx, env, over, ": its time is over", func(now *Environment) error {
		if now.Operation != "" || now.Revision != env.Revision {
			return errWorkedOn
		}
		spec := now.Spec
		spec.Ports = nil
		for i, request := range now.Spec.Ports {
			if !slices.Contains(gone, i) {
				spec.Ports = append(spec.Ports, request)
			}
		}
		respec(now, &spec)
		return nil
	})
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("release ports of environment %s: %w", id, err)
	}
	return nil
}

// overPorts are the mappings of an environment whose time is over.
func overPorts(env *Environment) []port.Mapping {
	now := time.Now()
	var over []port.Mapping
	for i := range env.Ports {
		if !env.Ports[i].Live(now) {
			over = append(over, env.Ports[i])
		}
	}
	return over
}
