package containerd

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/runtime/operation"
)

// Labels of leases of ours. They do not expire, since a pull may take days:
// Parts names those that no call holds, as of an engine that died.
const (
	labelEngine  = "remotegpu.dev/engine"  // the engine that took it first
	labelPulling = "remotegpu.dev/pulling" // the image that is pulled under it
)

// pullLease is the id of the lease under which a reference is pulled, always
// the same: a pull that is begun anew goes on from what the one before it got.
func pullLease(name string) string {
	sum := sha256.Sum256([]byte(name))
	return "remotegpu-pull-" + hex.EncodeToString(sum[:12])
}

// newLease is the id of a lease that only one call knows.
func newLease() string { return "remotegpu-" + rand.Text() }

// takeLease returns a context under which containerd keeps what is written, until
// release. Whoever holds the same id at the same time shares the lease; pulling
// is the image that is pulled under it, or "". release, given how the call
// ended, takes everything back that no image has come to need; a pull that is
// to be tried again, now or by the next daemon, leaves what it got to that.
func (e *Engine) takeLease(ctx context.Context, id, pulling string) (held context.Context, release func(*error), err error) {
	ctx = e.namespaced(ctx)
	// The lock keeps others from removing a lease that is just taken over.
	unlock, err := e.leaseLocks.Lock(ctx, id)
	if err != nil {
		return nil, nil, fmt.Errorf("take lease: %w", err)
	}
	defer unlock()
	e.holdLease(id, 1) // Parts does not name it meanwhile
	defer func() {
		if err != nil {
			e.holdLease(id, -1)
		}
	}()
	creating, cancel := uninterrupted(ctx)
	defer cancel()
	labels := map[string]string{labelEngine: e.token}
	if pulling != "" {
		labels[labelPulling] = pulling
	}
	_, err = e.client.LeasesService().Create(creating, leases.WithID(id), leases.WithLabels(labels))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		if pulling == "" { // it may be there: the answer was lost
			undo, cancel := afterwards(ctx)
			defer cancel()
			_ = e.client.LeasesService().Delete(undo, leases.Lease{ID: id}) // else the reconciler does it
		}
		return nil, nil, fmt.Errorf("take lease: %w", e.explain(ctx, err))
	}
	return leases.WithLease(ctx, id), func(outcome *error) { e.release(ctx, id, pulling, *outcome) }, nil
}

func (e *Engine) release(ctx context.Context, id, pulling string, outcome error) {
	undo, cancel := afterwards(ctx)
	defer cancel()
	unlock, err := e.leaseLocks.Lock(undo, id)
	if err != nil { // somebody has waited long for containerd
		e.holdLease(id, -1)
		e.leftLease(ctx, id, err)
		return
	}
	defer unlock()
	defer e.holdLease(id, -1) // before the lock goes: who is next counts without this call
	if e.holders(id) > 1 {
		return
	}
	if pulling != "" && outcome != nil && (errors.Is(context.Cause(ctx), operation.ErrShutdown) || ctx.Err() == nil && errdefs.IsUnavailable(outcome)) {
		return // where it is not, Parts names it
	}
	var options []leases.DeleteOpt
	if pulling == "" || outcome != nil { // of a pull that went well, nothing is left to collect
		options = append(options, leases.SynchronousDelete)
	}
	err = e.client.LeasesService().Delete(undo, leases.Lease{ID: id}, options...)
	if err != nil && !errdefs.IsNotFound(err) {
		e.leftLease(ctx, id, err)
	}
}

// leftLease tells of a lease that Parts names, once nobody holds it.
func (e *Engine) leftLease(ctx context.Context, id string, err error) {
	e.cfg.Log.WarnContext(ctx, "a lease could not be given back; the reconciler will do it", "lease", id, "error", err)
}

// holdLease notes that calls more are at work under a lease.
func (e *Engine) holdLease(id string, calls int) {
	e.leaseMu.Lock()
	defer e.leaseMu.Unlock()
	if e.leases[id] += calls; e.leases[id] <= 0 {
		delete(e.leases, id)
	}
}

// holdContent keeps content that is here from being collected, with all that
// it refers to, until release.
func (e *Engine) holdContent(ctx context.Context, digests ...string) (context.Context, func(*error), error) {
	id := newLease()
	held, release, err := e.takeLease(ctx, id, "")
	if err != nil {
		return nil, nil, err
	}
	for _, digest := range digests {
		resource := leases.Resource{ID: digest, Type: "content"}
		if err := e.client.LeasesService().AddResource(held, leases.Lease{ID: id}, resource); err != nil {
			err = fmt.Errorf("hold content %s: %w", digest, e.explain(ctx, err))
			release(&err)
			return nil, nil, err
		}
	}
	return held, release, nil
}

// holders is how many calls are at work under a lease, those included that take or
// give it back.
func (e *Engine) holders(id string) int {
	e.leaseMu.Lock()
	defer e.leaseMu.Unlock()
	return e.leases[id]
}

// removeLease removes a lease that no call holds, with what it alone kept.
func (e *Engine) removeLease(ctx context.Context, id string) error {
	unlock, err := e.leaseLocks.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if e.holders(id) > 0 {
		return nil
	}
	err = e.client.LeasesService().Delete(e.namespaced(ctx), leases.Lease{ID: id}, leases.SynchronousDelete)
	return ignoreAbsent(err)
}
