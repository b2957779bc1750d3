package containerd

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

// lease keeps what is made under the returned context from the garbage
// collector until release is called. Its label tells it from leases of engines
// that died. A lease that could not be released, or whose making was not
// answered, is among the parts that the reconciler removes.
func (e *Engine) lease(ctx context.Context) (leased context.Context, release func(context.Context) error, err error) {
	id := "remotegpu-" + rand.Text()
	leased, done, err := e.client.WithLease(e.namespaced(ctx), leases.WithID(id), leases.WithExpiration(24*time.Hour),
		leases.WithLabel(labelEngine, e.token))
	if err != nil {
		e.loseLease(id)
		return ctx, nil, err
	}
	return leased, func(ctx context.Context) error {
		if err := done(ctx); err != nil && !errdefs.IsNotFound(err) {
			e.loseLease(id)
			return fmt.Errorf("release lease %s: %w", id, e.explain(ctx, err))
		}
		return nil
	}, nil
}

func (e *Engine) loseLease(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lostLeases[id] = struct{}{}
}

// abandoned says that nobody of this engine uses a lease of its.
func (e *Engine) abandoned(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, lost := e.lostLeases[id]
	return lost
}
