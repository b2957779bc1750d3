package runtime

import (
	"context"
	"slices"
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
	earlier []numbered       // of a resumed one: what is known of before
}

// subscribe begins a watch, after a token when it is not "".
func (b *broadcaster) subscribe(after string) (s subscription, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if after != "" {
		if s.missed, s.seen, err = b.recent.after(after); err != nil {
			return s, err
		}
		s.earlier = slices.Clone(b.recent.changes[:len(b.recent.changes)-len(s.missed)])
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

// last is the number of the last change.
func (b *broadcaster) last() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.recent.seq
}

// token names the place after a change.
func (b *broadcaster) token(seq uint64) string { return b.recent.token(seq) }

// Change is one message of a watch.
type Change struct {
	Environment *Environment // nil when Synced
	Synced      bool         // all that existed at the beginning was sent
	Left        bool         // its labels do not match any more: the last of it until they do
	Token       string       // where to go on after it; "" before Synced
}

// Watch calls send with every selected environment as it is, then with Synced,
// then with each change, until ctx ends or send fails. The change that takes an
// environment out of the selection has Left. A watcher that is too
// slow ends with ErrSlowWatcher. With after, a Token of an earlier watch with
// the same filter, it begins with the changes since then instead;
// RESUME_TOKEN_TOO_OLD when they are not known. Left may then also come for one
// that was not selected before, and changed last too long ago to know.
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
	w := &watcher{m: m, filter: filter, seen: s.seen, selected: make(map[string]bool), gone: make(map[string]struct{}), resumed: after != "", send: send}
	if w.resumed {
		for _, change := range s.earlier {
			w.selected[change.env.ID] = filter.Labels.Matches(change.env.Labels)
		}
	} else {
		for id := range s.seen {
			w.selected[id] = true
		}
	}
	s.earlier = nil
	for _, change := range s.missed {
		if err := w.pass(change); err != nil {
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
			if err := w.pass(change); err != nil {
				return err
			}
		}
	}
}

// watcher is what a watch knows of environments.
type watcher struct {
	m        *Manager
	filter   Filter
	seen     map[string]int64    // newest revisions that were sent or passed over
	selected map[string]bool     // whether they were in the selection
	gone     map[string]struct{} // deleted of late
	resumed  bool                // it does not know of all whether they were
	send     func(Change) error
}

// pass sends a change that the watch has not seen yet.
func (w *watcher) pass(change numbered) error {
	env := change.env
	if _, ok := w.gone[env.ID]; ok {
		return nil // a change before the delete, told after it
	}
	if (w.filter.Project != "" && env.Project != w.filter.Project) || env.Revision <= w.seen[env.ID] {
		return nil
	}
	was, known := w.selected[env.ID]
	if !known && w.resumed {
		was = env.Revision > 1 // else it is new
	}
	matches := w.filter.Labels.Matches(env.Labels)
	w.seen[env.ID], w.selected[env.ID] = env.Revision, matches
	if env.State == Deleted {
		delete(w.seen, env.ID)
		delete(w.selected, env.ID)
		if len(w.gone) >= watchBuffer { // what is told late is late by moments
			clear(w.gone)
		}
		w.gone[env.ID] = struct{}{}
	}
	if !matches && !was {
		return nil
	}
	return w.send(Change{Environment: env, Left: !matches, Token: w.m.changes.token(change.seq)})
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
