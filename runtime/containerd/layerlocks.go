package containerd

import (
	"context"

	"github.com/remotegpu/remotegpu/internal/keylock"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// layerLocks keep those apart who change what builds on what; gigabytes may be
// written under them, so nobody waits but for the same snapshot or container,
// and only until its context ends.
//
// Of each kind one is held at a time, that of a snapshot before that of a
// container, so nobody waits in a circle.
type layerLocks struct {
	// snapshots, by id: who makes one, or puts a container on it, against its
	// removal.
	snapshots keylock.Map[string]
	// containers, by id: who makes, replaces or removes a writable layer,
	// against who finishes one that a crash left half made.
	containers keylock.Map[string]
}

// snapshot waits for a snapshot.
func (l *layerLocks) snapshot(ctx context.Context, id string) (unlock func(), err error) {
	return acquire(ctx, &l.snapshots, id)
}

// container waits for a container.
func (l *layerLocks) container(ctx context.Context, id string) (unlock func(), err error) {
	return acquire(ctx, &l.containers, id)
}

// both waits for a snapshot, then for a container.
func (l *layerLocks) both(ctx context.Context, snapshot, container string) (unlock func(), err error) {
	leave, err := l.snapshot(ctx, snapshot)
	if err != nil {
		return nil, err
	}
	free, err := l.container(ctx, container)
	if err != nil {
		leave()
		return nil, err
	}
	return func() { free(); leave() }, nil
}

// acquire gives the worker of an operation back while it waits: who has the lock
// may be waiting for one.
func acquire(ctx context.Context, locks *keylock.Map[string], id string) (unlock func(), err error) {
	if unlock, locked := locks.TryLock(id); locked {
		return unlock, nil
	}
	err = operation.Idle(ctx, func() (err error) { unlock, err = locks.Lock(ctx, id); return err })
	return unlock, err
}
