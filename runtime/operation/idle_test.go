package operation_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/operation/operationtest"
)

// gates are what handlers wait for, by target, and what they did.
type gates struct {
	mu    sync.Mutex
	gates map[string]chan struct{}
	done  []string
}

func (g *gates) of(target string) chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gates == nil {
		g.gates = make(map[string]chan struct{})
	}
	if g.gates[target] == nil {
		g.gates[target] = make(chan struct{})
	}
	return g.gates[target]
}

func (g *gates) open(target string) { close(g.of(target)) }

func (g *gates) note(what string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.done = append(g.done, what)
}

// wait waits for the gate of a target.
func (g *gates) wait(ctx context.Context, target string) error {
	select {
	case <-g.of(target):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g *gates) want(t *testing.T, when string, want ...string) {
	t.Helper()
	synctest.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	if !slices.Equal(g.done, want) {
		t.Errorf("%s: %q, want %q", when, g.done, want)
	}
}

// inOrder is submit of an operation that is younger than all before, and begins
// what can begin.
func inOrder(t *testing.T, q *operation.Queue, op *operation.Operation) string {
	t.Helper()
	time.Sleep(time.Second)
	id := submit(t, q, op)
	synctest.Wait()
	return id
}

// gated returns a queue of the kinds "idle", "pulled" and "pull", which wait
// for the gate of their target without a worker, the latter two as pulls, of
// which one is allowed, "hold", which keeps its worker, and "work", which does
// not wait. Each notes when it goes on, pulls also when they begin.
func gated(store operation.Store, workers int) (*operation.Queue, *gates) {
	g := new(gates)
	q := newQueue(store, func(c *operation.Config) { c.Workers = workers })
	q.Handle("idle", func(ctx context.Context, task *operation.Task) error {
		err := operation.Idle(ctx, func() error { return g.wait(ctx, task.Op.Target) })
		g.note(task.Op.Target)
		return err
	}, operation.Policy{})
	pull := func(ctx context.Context, task *operation.Task) func() error {
		return func() error {
			g.note("pull " + task.Op.Target)
			return g.wait(ctx, task.Op.Target)
		}
	}
	q.Handle("pulled", func(ctx context.Context, task *operation.Task) error {
		err := operation.IdleAs(ctx, "pull", pull(ctx, task))
		g.note(task.Op.Target)
		return err
	}, operation.Policy{})
	q.Handle("pull", func(ctx context.Context, task *operation.Task) error {
		err := operation.Idle(ctx, pull(ctx, task))
		g.note(task.Op.Target)
		return err
	}, operation.Policy{Limit: 1})
	q.Handle("hold", func(ctx context.Context, task *operation.Task) error {
		err := g.wait(ctx, task.Op.Target)
		g.note(task.Op.Target)
		return err
	}, operation.Policy{})
	q.Handle("work", func(_ context.Context, task *operation.Task) error {
		g.note(task.Op.Target)
		return nil
	}, operation.Policy{})
	return q, g
}

func TestIdleLeavesWorkersToOthers(t *testing.T) {
	t.Parallel()
	for _, workers := range []int{1, 2} {
		t.Run(fmt.Sprint(workers), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store := new(operationtest.Memory)
				q, g := gated(store, workers)
				run(t, q)
				a, b := inOrder(t, q, operationtest.Operation("idle", "a")), inOrder(t, q, operationtest.Operation("idle", "b"))
				next := inOrder(t, q, operationtest.Operation("work", "a"))
				began := time.Now()
				wantState(t, waitFor(t, q, submit(t, q, operationtest.Operation("work", "c"))), operation.Succeeded, "")
				if took := time.Since(began); took != 0 {
					t.Errorf("it waited %v for those that only wait", took)
				}
				time.Sleep(10 * time.Minute)
				g.want(t, "while two wait", "c") // the target of one that waits is its own
				for _, id := range []string{a, b} {
					op, err := store.Operation(t.Context(), id)
					if err != nil || op.State != operation.Running || op.LeaseOwner != "test" || !op.LeaseExpires.After(time.Now()) {
						t.Errorf("it has no lease: %+v, %v", op, err)
					}
				}
				g.open("a")
				g.want(t, "one goes on", "c", "a", "a")
				g.open("b")
				for _, id := range []string{a, b, next} {
					if op := waitFor(t, q, id); op.State != operation.Succeeded || op.Attempts != 1 {
						t.Errorf("%+v", op)
					}
				}
			})
		})
	}
}

func TestIdleComesBackBeforeNewOnes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, g := gated(new(operationtest.Memory), 1)
		run(t, q)
		inOrder(t, q, operationtest.Operation("idle", "first"))
		inOrder(t, q, operationtest.Operation("idle", "second"))
		inOrder(t, q, operationtest.Operation("hold", "holds"))
		last := inOrder(t, q, operationtest.Operation("work", "new"))
		synctest.Wait()
		g.open("second")
		synctest.Wait()
		g.open("first")
		g.want(t, "while there is no worker")
		g.open("holds")
		waitFor(t, q, last)
		g.want(t, "in the end", "holds", "second", "first", "new")
	})
}

func TestIdleCancelled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, g := gated(new(operationtest.Memory), 1)
		run(t, q)
		idle, returning := inOrder(t, q, operationtest.Operation("idle", "idle")), inOrder(t, q, operationtest.Operation("idle", "returning"))
		inOrder(t, q, operationtest.Operation("hold", "holds"))
		inOrder(t, q, operationtest.Operation("hold", "also"))
		last := inOrder(t, q, operationtest.Operation("work", "last"))
		synctest.Wait()
		g.open("returning")
		g.want(t, "while there is no worker")
		cancel := func(id string) *operation.Operation {
			if _, err := q.Cancel(t.Context(), id); err != nil {
				t.Error(err)
			}
			return waitFor(t, q, id)
		}
		// What waits for a worker goes on without: it is told how it ended.
		wantState(t, cancel(returning), operation.Succeeded, "")
		wantState(t, cancel(idle), operation.Cancelled, problem.OperationCancelled)
		g.want(t, "cancelled", "returning", "idle")
		g.open("holds") // there is one worker still, neither none nor two
		g.want(t, "the next holds it", "returning", "idle", "holds")
		g.open("also")
		waitFor(t, q, last)
		g.want(t, "in the end", "returning", "idle", "holds", "also", "last")
	})
}

func TestIdleShutDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(operationtest.Memory)
		q, g := gated(store, 1)
		stop := run(t, q)
		ids := []string{
			inOrder(t, q, operationtest.Operation("pulled", "pulls")), inOrder(t, q, operationtest.Operation("pulled", "enters")),
			inOrder(t, q, operationtest.Operation("idle", "idle")), inOrder(t, q, operationtest.Operation("idle", "returning")),
			inOrder(t, q, operationtest.Operation("hold", "holds")),
		}
		synctest.Wait()
		g.open("returning")
		synctest.Wait()
		began := time.Now()
		stop()
		if took := time.Since(began); took != 0 {
			t.Errorf("the shutdown took %v", took)
		}
		next, g := gated(store, 1)
		run(t, next)
		for _, target := range []string{"pulls", "enters", "idle", "holds"} {
			g.open(target)
		}
		for i, id := range ids {
			op := waitFor(t, next, id)
			wantState(t, op, operation.Succeeded, "")
			if again := op.Attempts == 2; again == (i == 3) { // that one had what it waited for
				t.Errorf("%s took %d attempts", op.Target, op.Attempts)
			}
		}
	})
}

func TestIdleAsCountsAgainstTheLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, g := gated(new(operationtest.Memory), 2)
		run(t, q)
		inOrder(t, q, operationtest.Operation("pulled", "a"))
		b := inOrder(t, q, operationtest.Operation("pulled", "b"))
		inOrder(t, q, operationtest.Operation("pull", "c"))
		inOrder(t, q, operationtest.Operation("pulled", "d"))
		last := inOrder(t, q, operationtest.Operation("pull", "f"))
		wantState(t, waitFor(t, q, inOrder(t, q, operationtest.Operation("work", "e"))), operation.Succeeded, "")
		g.want(t, "the first pulls", "pull a", "e")
		// One that leaves before its turn does not pull, and takes no room.
		if _, err := q.Cancel(t.Context(), b); err != nil {
			t.Error(err)
		}
		wantState(t, waitFor(t, q, b), operation.Cancelled, problem.OperationCancelled)
		g.open("a")
		g.want(t, "by age, whatever the kind", "pull a", "e", "b", "a", "pull c")
		for _, target := range []string{"c", "d", "f"} {
			g.open(target)
		}
		wantState(t, waitFor(t, q, last), operation.Succeeded, "")
		g.want(t, "in the end", "pull a", "e", "b", "a", "pull c", "c", "pull d", "d", "pull f", "f")
	})
}

// Operations that have begun do not take the room for ever from an older one
// that lacks a worker as well.
func TestIdleAsKeepsRoomForOlder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, g := gated(new(operationtest.Memory), 1)
		run(t, q)
		old := operationtest.Operation("pull", "old")
		old.NotBefore = time.Now().Add(time.Minute)
		inOrder(t, q, old)
		time.Sleep(time.Second)
		inOrder(t, q, operationtest.Operation("pulled", "first"))
		young := inOrder(t, q, operationtest.Operation("pulled", "young"))
		inOrder(t, q, operationtest.Operation("hold", "holds"))
		time.Sleep(2 * time.Minute)
		g.open("first")
		g.want(t, "while there is no worker", "pull first")
		g.open("old")
		g.open("young")
		g.open("holds")
		waitFor(t, q, young)
		g.want(t, "in the end", "pull first", "holds", "first", "pull old", "old", "pull young", "young")
	})
}

// Whatever a handler does in Idle, there are as many workers afterwards.
func TestIdleCountsWorkers(t *testing.T) {
	t.Parallel()
	nothing := func() error { return nil }
	for name, handler := range map[string]operation.Handler{
		"panic": func(ctx context.Context, _ *operation.Task) error {
			return operation.Idle(ctx, func() error { panic("no") })
		},
		"panic as": func(ctx context.Context, _ *operation.Task) error {
			return operation.IdleAs(ctx, "pull", func() error { panic("no") })
		},
		"within": func(ctx context.Context, _ *operation.Task) error {
			return operation.Idle(ctx, func() error { return operation.Idle(ctx, nothing) })
		},
		"as within": func(ctx context.Context, _ *operation.Task) error {
			return operation.Idle(ctx, func() error { return operation.IdleAs(ctx, "pull", nothing) })
		},
		"unlimited": func(ctx context.Context, _ *operation.Task) error { return operation.IdleAs(ctx, "other", nothing) },
		"ended": func(ctx context.Context, _ *operation.Task) error {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			if err := operation.IdleAs(ctx, "pull", func() error { return context.Cause(ctx) }); !errors.Is(err, context.Canceled) {
				return fmt.Errorf("got %w", err)
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				q, g := gated(new(operationtest.Memory), 1)
				q.Handle("odd", handler, operation.Policy{})
				run(t, q)
				for range 3 {
					waitFor(t, q, inOrder(t, q, operationtest.Operation("odd", "x")))
				}
				time.Sleep(time.Minute)
				inOrder(t, q, operationtest.Operation("pulled", "pulls"))
				inOrder(t, q, operationtest.Operation("hold", "holds"))
				last := inOrder(t, q, operationtest.Operation("work", "last"))
				g.want(t, "there is one worker, and room for one pull", "pull pulls")
				g.open("holds")
				waitFor(t, q, last)
				g.want(t, "in the end", "pull pulls", "holds", "last")
				g.open("pulls")
			})
		})
	}
}

// A context that outlives the attempt, as what is undone has, does not hold up
// a shutdown.
func TestIdleEndsWithTheAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, g := gated(new(operationtest.Memory), 1)
		var undone atomic.Bool
		q.Handle("undone", func(ctx context.Context, _ *operation.Task) error {
			defer undone.Store(true)
			return operation.Idle(context.WithoutCancel(ctx), func() error { return g.wait(ctx, "undone") })
		}, operation.Policy{})
		q.Handle("stubborn", func(context.Context, *operation.Task) error { <-g.of("stubborn"); return nil }, operation.Policy{})
		var told error
		q.Handle("undone as", func(ctx context.Context, _ *operation.Task) error {
			told = operation.IdleAs(context.WithoutCancel(ctx), "pull", func() error { return nil })
			return told
		}, operation.Policy{})
		stop := run(t, q)
		inOrder(t, q, operationtest.Operation("pulled", "pulls"))
		inOrder(t, q, operationtest.Operation("undone", "x"))
		inOrder(t, q, operationtest.Operation("undone as", "y"))
		inOrder(t, q, operationtest.Operation("stubborn", "z"))
		g.open("undone")
		synctest.Wait()
		if undone.Load() {
			t.Error("it goes on without a worker")
		}
		go stop()
		synctest.Wait()
		if !undone.Load() {
			t.Error("it waits for a worker while the daemon stops")
		}
		g.open("stubborn")
		stop()
		if !errors.Is(told, operation.ErrShutdown) {
			t.Errorf("error %v", told)
		}
	})
}

// A goroutine that a handler leaves behind takes no worker from others.
func TestIdleLeftBehind(t *testing.T) {
	t.Parallel()
	for _, wait := range []time.Duration{time.Second, time.Minute} { // it wants its worker before and after the attempt has ended
		t.Run(wait.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				q, g := gated(new(operationtest.Memory), 1)
				q.Handle("leaves", func(ctx context.Context, _ *operation.Task) error {
					go func() {
						_ = operation.Idle(ctx, func() error { time.Sleep(wait); return nil })
					}()
					time.Sleep(10 * time.Second)
					return nil
				}, operation.Policy{})
				run(t, q)
				inOrder(t, q, operationtest.Operation("leaves", "x"))
				inOrder(t, q, operationtest.Operation("hold", "first"))
				inOrder(t, q, operationtest.Operation("hold", "second"))
				last := inOrder(t, q, operationtest.Operation("work", "last"))
				time.Sleep(2 * time.Minute)
				g.want(t, "while there is no worker")
				g.open("first")
				g.want(t, "while there is no worker again", "first")
				g.open("second")
				waitFor(t, q, last)
				g.want(t, "in the end", "first", "second", "last")
			})
		})
	}
}

func TestIdleOutsideOfAHandler(t *testing.T) {
	t.Parallel()
	failed := errors.New("failed")
	for _, err := range []error{
		operation.Idle(t.Context(), func() error { return failed }),
		operation.IdleAs(t.Context(), "pull", func() error { return failed }),
	} {
		if !errors.Is(err, failed) {
			t.Errorf("error %v", err)
		}
	}
}

// Many at once, some of them cancelled: all end, and what works at a time and
// pulls at a time stays within the limits.
func TestIdleMany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const workers, limit = 2, 3
		q := newQueue(new(operationtest.Memory), func(c *operation.Config) { c.Workers = workers })
		var working, pulling atomic.Int32
		use := func(ctx context.Context, count *atomic.Int32, most int32, d time.Duration) {
			if ctx.Err() != nil {
				return // cancelled: it goes on without a worker
			}
			if now := count.Add(1); now > most {
				t.Errorf("%d at a time", now)
			}
			select {
			case <-time.After(d):
			case <-ctx.Done():
			}
			count.Add(-1)
		}
		q.Handle("pull", func(ctx context.Context, _ *operation.Task) error {
			use(ctx, &working, workers, time.Millisecond)
			return operation.Idle(ctx, func() error { use(ctx, &pulling, limit, time.Second); return nil })
		}, operation.Policy{Limit: limit})
		q.Handle("create", func(ctx context.Context, _ *operation.Task) error {
			use(ctx, &working, workers, time.Millisecond)
			if err := operation.IdleAs(ctx, "pull", func() error { use(ctx, &pulling, limit, time.Second); return nil }); err != nil {
				return err
			}
			use(ctx, &working, workers, time.Millisecond)
			return operation.Idle(ctx, func() error { time.Sleep(time.Second); return nil })
		}, operation.Policy{})
		run(t, q)
		var ids []string
		for i := range 200 {
			ids = append(ids, submit(t, q, operationtest.Operation([]string{"create", "pull", "create"}[i%3], fmt.Sprint(i%50))))
		}
		for i, id := range ids {
			if i%7 == 0 {
				time.Sleep(time.Second / 2)
				if _, err := q.Cancel(t.Context(), id); err != nil {
					t.Error(err)
				}
			}
		}
		for i, id := range ids {
			if op := waitFor(t, q, id); op.State != operation.Succeeded && i%7 != 0 {
				t.Errorf("%+v, %+v", op, op.Problem)
			}
		}
	})
}
