package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/network/port"
)

// expiryRetry is the pause before the end of a mapping is recorded again that
// could not be, for example because an operation works on its environment. It
// leads nowhere meanwhile.
const expiryRetry = time.Second

// expirer ends port mappings whose time is over, from one goroutine. When that
// is is in the store; this is what is due next.
type expirer struct {
	manager *Manager
	wake    chan struct{} // capacity 1

	mu  sync.Mutex
	due map[string]time.Time // by environment
}

func newExpirer(m *Manager) *expirer {
	return &expirer{manager: m, wake: make(chan struct{}, 1), due: make(map[string]time.Time)}
}

// follow takes over what the store now says of an environment.
func (x *expirer) follow(env *Environment) {
	var next time.Time
	for i := range env.Ports {
		if at := env.Ports[i].ExpiresAt; !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if next.IsZero() || env.State == Deleted {
		delete(x.due, env.ID)
		return
	}
	if x.due[env.ID].Equal(next) {
		return
	}
	x.due[env.ID] = next
	select {
	case x.wake <- struct{}{}:
	default: // it is awake already
	}
}

// take returns the environments that have something due, and how long until
// more is.
func (x *expirer) take(now time.Time) (due []string, wait time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	wait = time.Hour
	for id, at := range x.due {
		if left := at.Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		due = append(due, id)
		delete(x.due, id)
	}
	return due, wait
}

// again looks at an environment once more.
func (x *expirer) again(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.due[id] = time.Now().Add(expiryRetry)
}

// run ends what is due until ctx ends. What the store says is looked up first:
// nobody may have read it since the daemon began, as when containerd is away.
func (x *expirer) run(ctx context.Context) {
	envs, _, err := x.manager.cfg.Store.Environments(ctx, Filter{})
	if err != nil && ctx.Err() == nil {
		x.manager.cfg.Log.ErrorContext(ctx, "listing environments failed; mappings end with the next pass", "error", err)
	}
	for _, env := range envs {
		x.follow(env)
	}
	for ctx.Err() == nil {
		due, wait := x.take(time.Now())
		for _, id := range due {
			if err := x.manager.expirePorts(ctx, id); err != nil && ctx.Err() == nil {
				if !errors.Is(err, errWorkedOn) {
					x.manager.cfg.Log.ErrorContext(ctx, "port mappings whose time is over were not released; it is tried again", "environment", id, "error", err)
				}
				x.again(id)
			}
		}
		if len(due) > 0 {
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-x.wake:
		}
		timer.Stop()
	}
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
		m.expiry.follow(env) // it was changed meanwhile
		return nil
	}
	// At once, whatever works on the environment: an operation that publishes
	// its ports beside this leaves out what is over.
	if err := m.cfg.Networks.Withdraw(ctx, id, over); err != nil {
		return err
	}
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
