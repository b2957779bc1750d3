// Package keylock is a lock per key: context-aware, and forgotten when nobody
// holds or waits for it.
package keylock

import (
	"context"
	"sync"
)

// Map is a set of locks by key. Its zero value is ready.
type Map[K comparable] struct {
	mu    sync.Mutex
	locks map[K]*entry
}

type entry struct {
	held chan struct{} // capacity 1; full while held
	refs int
}

// Lock waits for the key's lock and returns what releases it, or ctx's error.
// Releasing twice does nothing.
func (m *Map[K]) Lock(ctx context.Context, key K) (unlock func(), err error) {
	e := m.take(key)
	select {
	case e.held <- struct{}{}:
		return m.unlock(key, e), nil
	case <-ctx.Done():
		m.drop(key, e)
		return nil, context.Cause(ctx)
	}
}

// TryLock takes the key's lock if nobody has it.
func (m *Map[K]) TryLock(key K) (unlock func(), locked bool) {
	e := m.take(key)
	select {
	case e.held <- struct{}{}:
		return m.unlock(key, e), true
	default:
		m.drop(key, e)
		return nil, false
	}
}

func (m *Map[K]) take(key K) *entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.locks == nil {
		m.locks = make(map[K]*entry)
	}
	e := m.locks[key]
	if e == nil {
		e = &entry{held: make(chan struct{}, 1)}
		m.locks[key] = e
	}
	e.refs++
	return e
}

func (m *Map[K]) unlock(key K, e *entry) func() {
	return sync.OnceFunc(func() { <-e.held; m.drop(key, e) })
}

func (m *Map[K]) drop(key K, e *entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.refs--; e.refs == 0 {
		delete(m.locks, key)
	}
}
