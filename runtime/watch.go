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
	watchers map[chan numbered]struct{}
	recent   recent
}

// subscription is where a watch begins.
type subscription struct {
	changes chan numbered
	token   string           // of the place it begins at
	missed  []numbered       // of a resumed one: what it comes first with
	seen    map[string]int64 // of a resumed one: revisions that it knows
}

// subscribe begins a watch, after a token when it is not "".
func (b *broadcaster) subscribe(after string) (s subscription, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if after != "" {
		if s.missed, s.seen, err = b.recent.after(after); err != nil {
			return s, err
		}
	}
	if b.watchers == nil {
		b.watchers = make(map[chan numbered]struct{})
	}
	s.changes, s.token = make(chan numbered, watchBuffer), b.recent.token(b.recent.seq)
	b.watchers[s.changes] = struct{}{}
	return s, nil
}

func (b *broadcaster) unsubscribe(ch chan numbered) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.watchers[ch]; ok {
		delete(b.watchers, ch)
		close(ch)
	}
}

// publish numbers a change and sends it to every watcher, who only read it;
// one that does not keep up is closed.
func (b *broadcaster) publish(env *Environment) {
	b.mu.Lock()
	defer b.mu.Unlock()
	copied := *env
	change := b.recent.add(&copied)
	for ch := range b.watchers {
		select {
		case ch <- change:
		default:
			delete(b.watchers, ch)
			close(ch)
		}
	}
}

// token names the place after a change.
func (b *broadcaster) token(seq uint64) string { return b.recent.token(seq) }

// Change is one message of a watch.
type Change struct {
	Environment *Environment // nil when Synced
	Synced      bool         // all that existed at the beginning was sent
	Token       string       // where to go on after it; "" before Synced
}

// Watch calls send with every selected environment as it is, then with Synced,
// then with each change, until ctx ends or send fails. A watcher that is too
// slow ends with ErrSlowWatcher. With after, a Token of an earlier watch with
// the same filter, it begins with the changes since then instead;
// RESUME_TOKEN_TOO_OLD when they are not known.
func (m *Manager) Watch(ctx context.Context, filter Filter, after string, send func(Change) error) error {
	s, err := m.changes.subscribe(after)
	if err != nil {
		return err
	}
	defer m.changes.unsubscribe(s.changes)
	if after == "" {
		if s.seen, err = m.sendAll(ctx, filter, send); err != nil {
			return err
		}
		if err := send(Change{Synced: true, Token: s.token}); err != nil {
			return err
		}
	}
	pass := m.passer(filter, s.seen, send)
	for _, change := range s.missed {
		if err := pass(change); err != nil {
			return err
		}
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case change, ok := <-s.changes:
			if !ok {
				return ErrSlowWatcher
			}
			if err := pass(change); err != nil {
				return err
			}
		}
	}
}

// passer sends the changes that a watch has not seen yet.
func (m *Manager) passer(filter Filter, seen map[string]int64, send func(Change) error) func(numbered) error {
	gone := make(map[string]struct{})
	return func(change numbered) error {
		env := change.env
		if _, ok := gone[env.ID]; ok {
			return nil // a change before the delete, told after it
		}
		if (filter.Project != "" && env.Project != filter.Project) || !filter.Labels.Matches(env.Labels) || env.Revision <= seen[env.ID] {
			return nil
		}
		seen[env.ID] = env.Revision
		if env.State == Deleted {
			delete(seen, env.ID)
			if len(gone) >= watchBuffer { // what is told late is late by moments
				clear(gone)
			}
			gone[env.ID] = struct{}{}
		}
		return send(Change{Environment: env, Token: m.changes.token(change.seq)})
	}
}

// sendAll sends every selected environment as it is and returns the revisions.
func (m *Manager) sendAll(ctx context.Context, filter Filter, send func(Change) error) (map[string]int64, error) {
	filter.Limit, filter.After = 0, ""
	envs, _, err := m.List(ctx, filter)
	if err != nil {
		return nil, err
	}
	seen := make(map[string]int64, len(envs))
	for _, env := range envs {
		seen[env.ID] = env.Revision
		if err := send(Change{Environment: env}); err != nil {
			return nil, err
		}
	}
	return seen, nil
}
