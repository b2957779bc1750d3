package rootfs

import (
	"context"
	"sync"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// Uses keeps account of who works in which root, so that whoever starts,
// stops or removes what it belongs to can end that first. Its zero value is
// ready.
type Uses struct {
	mu    sync.Mutex
	roots map[string]*uses
}

type uses struct {
	changing int
	at       map[*Use]struct{}
	left     chan struct{} // closed when one leaves
}

// Use is one use of a root.
type Use struct {
	all    *Uses
	id     string
	live   bool
	cancel context.CancelCauseFunc
}

// Enter begins a use. Its context ends, with the reason as cause, when somebody
// needs it to end. Leave must follow. COPY_INTERRUPTED while somebody changes
// the root.
func (u *Uses) Enter(ctx context.Context, id string) (context.Context, *Use, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	root := u.root(id)
	if root.changing > 0 {
		u.forget(id)
		return nil, nil, interrupted()
	}
	use := &Use{all: u, id: id}
	ctx, use.cancel = context.WithCancelCause(ctx)
	root.at[use] = struct{}{}
	return ctx, use, nil
}

func interrupted() *problem.Problem {
	return problem.New(problem.CopyInterrupted, "the environment was started, stopped, deleted or rolled back meanwhile, or a snapshot was taken").WithField("environment").
		WithHint("copy again; files that were copied whole are there")
}

// Live marks a use as one of the root of a process, which EndLive ends.
func (use *Use) Live() {
	use.all.mu.Lock()
	defer use.all.mu.Unlock()
	use.live = true
}

// Interrupt ends a use as a change of the root does.
func (use *Use) Interrupt() { use.cancel(interrupted()) }

// Leave ends a use. Leaving twice does nothing.
func (use *Use) Leave() {
	use.cancel(nil)
	u := use.all
	u.mu.Lock()
	defer u.mu.Unlock()
	root := u.roots[use.id]
	if root == nil {
		return
	}
	if _, here := root.at[use]; !here {
		return
	}
	delete(root.at, use)
	close(root.left)
	root.left = make(chan struct{})
	u.forget(use.id)
}

// Change ends all uses of a root, waits for them, and keeps new ones out until
// done is called. An error is that of ctx.
func (u *Uses) Change(ctx context.Context, id string) (done func(), err error) {
	u.mu.Lock()
	u.root(id).changing++
	u.mu.Unlock()
	done = sync.OnceFunc(func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.roots[id].changing--
		u.forget(id)
	})
	if err := u.end(ctx, id, func(*Use) bool { return true }); err != nil {
		done()
		return nil, err
	}
	return done, nil
}

// EndLive ends the uses of a root that belong to a process, and waits for them.
func (u *Uses) EndLive(ctx context.Context, id string) error {
	return u.end(ctx, id, func(use *Use) bool { return use.live })
}

func (u *Uses) end(ctx context.Context, id string, which func(*Use) bool) error {
	for {
		u.mu.Lock()
		root, found := u.roots[id], false
		var left chan struct{}
		if root != nil {
			left = root.left
			for use := range root.at {
				if which(use) {
					use.Interrupt()
					found = true
				}
			}
		}
		u.mu.Unlock()
		if !found {
			return nil
		}
		select {
		case <-left:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (u *Uses) root(id string) *uses {
	root := u.roots[id]
	if root == nil {
		if u.roots == nil {
			u.roots = make(map[string]*uses)
		}
		root = &uses{at: make(map[*Use]struct{}), left: make(chan struct{})}
		u.roots[id] = root
	}
	return root
}

func (u *Uses) forget(id string) {
	if root := u.roots[id]; root.changing == 0 && len(root.at) == 0 {
		delete(u.roots, id)
	}
}
