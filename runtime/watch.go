package runtime

import (
	"context"
	"sync"
)

// watchBuffer is how many changes a watcher may be behind before it is cut
// off; it then has to begin anew.
const watchBuffer = 1024

// broadcaster tells watchers of every change.
type broadcaster struct {
	mu       sync.Mutex
	watchers map[chan *Environment]struct{}
}

func (b *broadcaster) subscribe() chan *Environment {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.watchers == nil {
		b.watchers = make(map[chan *Environment]struct{})
	}
	ch := make(chan *Environment, watchBuffer)
	b.watchers[ch] = struct{}{}
	return ch
}

func (b *broadcaster) unsubscribe(ch chan *Environment) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.watchers[ch]; ok {
		delete(b.watchers, ch)
		close(ch)
	}
}

// publish sends a copy to every watcher; one that does not keep up is closed.
func (b *broadcaster) publish(env *Environment) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ch := range b.watchers {
		copied := *env
		select {
		case ch <- &copied:
		default:
			delete(b.watchers, ch)
			close(ch)
		}
	}
}

// Change is one message of a watch.
type Change struct {
	Environment *Environment // nil when Synced
	Synced      bool         // all that existed at the beginning was sent
}

// Watch calls send with every selected environment as it is, then with Synced,
// then with each change, until ctx ends or send fails. A watcher that is too
// slow ends with ErrSlowWatcher.
func (m *Manager) Watch(ctx context.Context, filter Filter, send func(Change) error) error {
	changes := m.changes.subscribe()
	defer m.changes.unsubscribe(changes)
	filter.Limit, filter.After = 0, ""
	envs, _, err := m.List(ctx, filter)
	if err != nil {
		return err
	}
	seen, gone := make(map[string]int64, len(envs)), make(map[string]struct{})
	for _, env := range envs {
		seen[env.ID] = env.Revision
		if err := send(Change{Environment: env}); err != nil {
			return err
		}
	}
	if err := send(Change{Synced: true}); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case env, ok := <-changes:
			if !ok {
				return ErrSlowWatcher
			}
			if (filter.Project != "" && env.Project != filter.Project) || !filter.Labels.Matches(env.Labels) || env.Revision <= seen[env.ID] {
				continue
			}
			if _, ok := gone[env.ID]; ok {
				continue // a change before the delete, told after it
			}
			seen[env.ID] = env.Revision
			if env.State == Deleted {
				delete(seen, env.ID)
				if len(gone) >= watchBuffer { // what is told late is late by moments
					clear(gone)
				}
				gone[env.ID] = struct{}{}
			}
			if err := send(Change{Environment: env}); err != nil {
				return err
			}
		}
	}
}
