package operation_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/operation/operationtest"
)

func TestMemoryStore(t *testing.T) {
	t.Parallel()
	operationtest.TestStore(t, func(*testing.T) operation.Store { return new(operationtest.Memory) })
}

func newQueue(store operation.Store, change ...func(*operation.Config)) *operation.Queue {
	cfg := operation.Config{Store: store, Log: slog.New(slog.DiscardHandler), Owner: "test"}
	for _, c := range change {
		c(&cfg)
	}
	return operation.New(cfg)
}

// run runs a queue and returns what stops it and waits.
func run(t *testing.T, q *operation.Queue) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func submit(t *testing.T, q *operation.Queue, op *operation.Operation) string {
	t.Helper()
	existing, err := q.Submit(t.Context(), op)
	if err != nil || existing != nil {
		t.Fatalf("submit: existing %v, error %v", existing, err)
	}
	return op.ID
}

func waitFor(t *testing.T, q *operation.Queue, id string) *operation.Operation {
	t.Helper()
	op, err := q.Wait(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return op
}

func wantState(t *testing.T, op *operation.Operation, state operation.State, reason problem.Reason) {
	t.Helper()
	got := problem.Reason("")
	if op.Problem != nil {
		got = problem.Reason(op.Problem.Reason)
	}
	if op.State != state || got != reason {
		t.Errorf("operation is %s with problem %+v, want %s with %q", op.State, op.Problem, state, reason)
	}
}

func TestRunSucceeds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(operationtest.Memory)
		q := newQueue(store)
		q.Handle("k", func(_ context.Context, task *operation.Task) error {
			task.Progress(operation.Progress{Step: "half", Done: 1, Total: 2})
			task.SetResult("a", "b")
			return nil
		}, operation.Policy{})
		run(t, q)
		began := time.Now()
		id := submit(t, q, operationtest.Operation("k", "x"))
		op := waitFor(t, q, id)
		wantState(t, op, operation.Succeeded, "")
		if op.Result["a"] != "b" || op.Progress.Step != "half" || op.Attempts != 1 || op.LeaseOwner != "" {
			t.Errorf("operation %+v", op)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("it waited %v for a timer", took)
		}
		// insert, claim, done: each more would be a write on the way of every create.
		if op.Revision != 3 {
			t.Errorf("%d durable writes, want 3", op.Revision)
		}
	})
}

// An operation that failed keeps why, with the cause that callers may know.
func TestFailureKeepsItsCause(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"cause", problem.New(problem.ProcessStartFailed, "start x").WithCause(errors.New("no such file")), "start x: no such file"},
		{"told in other words", problem.New(problem.ProcessStartFailed, "no such program").WithTold(errors.New("runc: ENOENT")), "no such program"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newQueue(new(operationtest.Memory))
				q.Handle("k", func(context.Context, *operation.Task) error { return operation.Permanent(tt.err) }, operation.Policy{})
				run(t, q)
				op := waitFor(t, q, submit(t, q, operationtest.Operation("k", "x")))
				wantState(t, op, operation.Failed, problem.ProcessStartFailed)
				if op.Problem != nil && op.Problem.Message != tt.want {
					t.Errorf("it says %q, want %q", op.Problem.Message, tt.want)
				}
			})
		})
	}
}

func TestKickStartsARowOfTheCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(operationtest.Memory)
		q := newQueue(store)
		q.Handle("k", func(context.Context, *operation.Task) error { return nil }, operation.Policy{})
		run(t, q)
		synctest.Wait()
		kicked, forgotten := operationtest.Operation("k", "x"), operationtest.Operation("k", "y")
		for _, op := range []*operation.Operation{kicked, forgotten} {
			if _, err := store.InsertOperation(t.Context(), op); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		q.Kick(kicked.ID)
		q.Kick("absent")
		wantState(t, waitFor(t, q, kicked.ID), operation.Succeeded, "")
		if took := time.Since(began); took != 0 {
			t.Errorf("a kicked row waited %v", took)
		}
		wantState(t, waitFor(t, q, forgotten.ID), operation.Succeeded, "") // the scan finds it
	})
}

func TestSubmitKnownRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(new(operationtest.Memory))
		first := operationtest.Operation("k", "x")
		first.RequestID = "r"
		submit(t, q, first)
		again := operationtest.Operation("k", "x")
		again.RequestID = "r"
		existing, err := q.Submit(t.Context(), again)
		if err != nil || existing == nil || existing.ID != first.ID {
			t.Errorf("existing %+v, error %v", existing, err)
		}
	})
}

func TestOneAtATimePerTargetInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(new(operationtest.Memory), func(c *operation.Config) { c.Workers = 4 })
		var (
			mu      sync.Mutex
			order   = make(map[string][]string)
			active  = make(map[string]int)
			running int
			most    int
		)
		q.Handle("k", func(_ context.Context, task *operation.Task) error {
			mu.Lock()
			target := task.Op.Target
			order[target] = append(order[target], task.Op.ID)
			active[target]++
			running++
			most = max(most, running)
			if active[target] > 1 {
				t.Errorf("two operations of %s at once", target)
			}
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			active[target]--
			running--
			mu.Unlock()
			return nil
		}, operation.Policy{})
		want := make(map[string][]string)
		var all []string
		for i := range 30 {
			op := operationtest.Operation("k", fmt.Sprint("target-", i%6))
			want[op.Target] = append(want[op.Target], submit(t, q, op))
			all = append(all, op.ID)
		}
		run(t, q)
		for _, id := range all {
			wantState(t, waitFor(t, q, id), operation.Succeeded, "")
		}
		for target, ids := range want {
			if !slices.Equal(order[target], ids) {
				t.Errorf("%s ran as %v, want %v", target, order[target], ids)
			}
		}
		if most != 4 {
			t.Errorf("%d ran at once, want 4", most)
		}
	})
}

func TestPolicyLimitLeavesWorkers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(new(operationtest.Memory), func(c *operation.Config) { c.Workers = 2 })
		release := make(chan struct{})
		q.Handle("slow", func(context.Context, *operation.Task) error { <-release; return nil }, operation.Policy{Limit: 1})
		q.Handle("quick", func(context.Context, *operation.Task) error { return nil }, operation.Policy{})
		run(t, q)
		var slow []string
		for i := range 3 {
			slow = append(slow, submit(t, q, operationtest.Operation("slow", fmt.Sprint(i))))
		}
		wantState(t, waitFor(t, q, submit(t, q, operationtest.Operation("quick", "q"))), operation.Succeeded, "")
		close(release)
		for _, id := range slow {
			wantState(t, waitFor(t, q, id), operation.Succeeded, "")
		}
	})
}

func TestTransientFailureIsRetriedWithBackoff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(new(operationtest.Memory))
		var starts []time.Time
		q.Handle("k", func(_ context.Context, task *operation.Task) error {
			starts = append(starts, time.Now())
			if task.Retried(errdefs.ErrUnavailable) != (task.Op.Attempts < 4) || task.Retried(errors.New("no")) {
				t.Errorf("attempt %d says it is retried: %v", task.Op.Attempts, task.Retried(errdefs.ErrUnavailable))
			}
			if task.Op.Attempts < 4 {
				return fmt.Errorf("not yet: %w", errdefs.ErrUnavailable)
			}
			return nil
		}, operation.Policy{MaxAttempts: 4})
		run(t, q)
		id := submit(t, q, operationtest.Operation("k", "x"))
		op := waitFor(t, q, id)
		wantState(t, op, operation.Succeeded, "")
		if len(starts) != 4 {
			t.Fatalf("%d attempts, want 4", len(starts))
		}
		for i, base := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
			if gap := starts[i+1].Sub(starts[i]); gap < base*8/10 || gap > base*12/10+time.Millisecond {
				t.Errorf("wait %d was %v, want about %v", i, gap, base)
			}
		}
	})
}

func TestFailures(t *testing.T) {
	missing := problem.New(problem.ImageNotFound, "image is missing").WithField("spec.image").WithHint("pull it")
	for _, test := range []struct {
		name      string
		fail      func() error
		attempts  int
		abandoned int32
		reason    problem.Reason
	}{
		{"final", func() error { return fmt.Errorf("pull: %w", missing) }, 1, 1, problem.ImageNotFound},
		{"permanent", func() error { return operation.Permanent(missing) }, 1, 0, problem.ImageNotFound},
		{"permanent though transient", func() error { return operation.Permanent(errdefs.ErrUnavailable) }, 1, 0, problem.Unavailable},
		{"transient to the end", func() error { return errdefs.ErrUnavailable }, 3, 1, problem.Unavailable},
		{"panic", func() error { panic("boom") }, 1, 1, problem.Internal},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				q := newQueue(new(operationtest.Memory))
				var abandoned atomic.Int32
				q.Handle("k", func(context.Context, *operation.Task) error { return test.fail() }, operation.Policy{
					MaxAttempts: 3,
					Abandon: func(_ context.Context, op *operation.Operation) error {
						abandoned.Add(1)
						if op.Problem == nil || op.Problem.Reason != string(test.reason) {
							t.Errorf("abandoned for %+v, want %s", op.Problem, test.reason)
						}
						return nil
					},
				})
				run(t, q)
				op := waitFor(t, q, submit(t, q, operationtest.Operation("k", "x")))
				wantState(t, op, operation.Failed, test.reason)
				if op.Attempts != test.attempts || abandoned.Load() != test.abandoned {
					t.Errorf("%d attempts, abandoned %d times; want %d and %d", op.Attempts, abandoned.Load(), test.attempts, test.abandoned)
				}
				next := waitFor(t, q, submit(t, q, operationtest.Operation("unknown", "x"))) // the target is free again
				wantState(t, next, operation.Failed, problem.Internal)
			})
		})
	}
}

func TestAbandonIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(new(operationtest.Memory))
		calls := 0
		q.Handle("k", func(context.Context, *operation.Task) error { return errors.New("no") }, operation.Policy{
			Abandon: func(context.Context, *operation.Operation) error {
				if calls++; calls < 3 {
					return errors.New("not yet")
				}
				return nil
			},
		})
		run(t, q)
		wantState(t, waitFor(t, q, submit(t, q, operationtest.Operation("k", "x"))), operation.Failed, problem.Internal)
		if calls != 3 {
			t.Errorf("%d calls, want 3", calls)
		}
	})
}

func TestCancelQueued(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(new(operationtest.Memory))
		block := make(chan struct{})
		var ran, abandoned []string
		q.Handle("k", func(_ context.Context, task *operation.Task) error {
			ran = append(ran, task.Op.ID)
			<-block
			return nil
		}, operation.Policy{Abandon: func(_ context.Context, op *operation.Operation) error {
			abandoned = append(abandoned, op.ID)
			return nil
		}})
		run(t, q)
		first, second := operationtest.Operation("k", "x"), operationtest.Operation("k", "x")
		submit(t, q, first)
		submit(t, q, second)
		synctest.Wait()
		op, err := q.Cancel(t.Context(), second.ID)
		if err != nil || !op.CancelRequested {
			t.Fatalf("cancel: %+v, error %v", op, err)
		}
		// It does not wait for the one that runs.
		wantState(t, waitFor(t, q, second.ID), operation.Cancelled, problem.OperationCancelled)
		close(block)
		wantState(t, waitFor(t, q, first.ID), operation.Succeeded, "")
		if !slices.Equal(ran, []string{first.ID}) || !slices.Equal(abandoned, []string{second.ID}) {
			t.Errorf("ran %v, abandoned %v", ran, abandoned)
		}
		done, err := q.Cancel(t.Context(), first.ID)
		if err != nil || done.State != operation.Succeeded || done.CancelRequested {
			t.Errorf("cancel of what is done: %+v, error %v", done, err)
		}
		if _, err := q.Cancel(t.Context(), "absent"); !errdefs.IsNotFound(err) {
			t.Errorf("cancel of what is absent: %v", err)
		}
	})
}

func TestCancelRunning(t *testing.T) {
	for name, end := range map[string]func() error{
		"unwound":  func() error { return operation.Permanent(context.Canceled) },
		"abandons": func() error { return context.Canceled },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				q := newQueue(new(operationtest.Memory))
				var abandoned atomic.Int32
				q.Handle("k", func(ctx context.Context, _ *operation.Task) error {
					<-ctx.Done()
					if !errors.Is(context.Cause(ctx), operation.ErrCancelled) {
						t.Errorf("cause %v", context.Cause(ctx))
					}
					return end()
				}, operation.Policy{Abandon: func(context.Context, *operation.Operation) error {
					abandoned.Add(1)
					return nil
				}})
				run(t, q)
				id := submit(t, q, operationtest.Operation("k", "x"))
				synctest.Wait()
				if _, err := q.Cancel(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				op := waitFor(t, q, id)
				wantState(t, op, operation.Cancelled, problem.OperationCancelled)
				if want := map[string]int32{"unwound": 0, "abandons": 1}[name]; abandoned.Load() != want {
					t.Errorf("abandoned %d times, want %d", abandoned.Load(), want)
				}
			})
		})
	}
}

// A cancellation that a transaction of the caller's requested is heeded when the queue
// is told, however long the row cannot be read, and by the next scan otherwise.
func TestCancelRequestedInTheRow(t *testing.T) {
	for _, told := range []bool{true, false} {
		t.Run(fmt.Sprintf("told %t", told), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store := new(operationtest.Memory)
				q := newQueue(store)
				q.Handle("k", func(ctx context.Context, _ *operation.Task) error {
					<-ctx.Done()
					return context.Cause(ctx)
				}, operation.Policy{})
				run(t, q)
				id := submit(t, q, operationtest.Operation("k", "x"))
				synctest.Wait()
				if _, err := store.UpdateOperation(t.Context(), id, func(op *operation.Operation) error { op.CancelRequested = true; return nil }); err != nil {
					t.Fatal(err)
				}
				began, most := time.Now(), time.Minute
				if told {
					most = 5 * time.Second
					store.Fail(func(call string) error {
						if call == "Operation" {
							return errors.New("broken on purpose")
						}
						return nil
					})
					q.Heed(t.Context(), id)
					time.Sleep(3 * time.Second)
					store.Fail(nil)
				}
				op := waitFor(t, q, id)
				wantState(t, op, operation.Cancelled, problem.OperationCancelled)
				if took := time.Since(began); took > most {
					t.Errorf("it was heeded after %v", took)
				}
			})
		})
	}
}

func TestCancelBetweenAttempts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(new(operationtest.Memory), func(c *operation.Config) { c.RetryBase, c.RetryMax = time.Hour, time.Hour })
		q.Handle("k", func(context.Context, *operation.Task) error { return errdefs.ErrUnavailable }, operation.Policy{})
		run(t, q)
		began := time.Now()
		id := submit(t, q, operationtest.Operation("k", "x"))
		synctest.Wait()
		if _, err := q.Cancel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		op := waitFor(t, q, id)
		wantState(t, op, operation.Cancelled, problem.OperationCancelled)
		if op.Attempts != 1 || time.Since(began) != 0 {
			t.Errorf("%d attempts, after %v", op.Attempts, time.Since(began))
		}
	})
}

func TestShutdownLeavesOperationsToTheNextStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(operationtest.Memory)
		q := newQueue(store)
		q.Handle("k", func(ctx context.Context, _ *operation.Task) error {
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), operation.ErrShutdown) {
				t.Errorf("cause %v", context.Cause(ctx))
			}
			return fmt.Errorf("interrupted: %w", context.Cause(ctx))
		}, operation.Policy{MaxAttempts: 1, Abandon: func(context.Context, *operation.Operation) error {
			t.Error("a shutdown abandons nothing")
			return nil
		}})
		stop := run(t, q)
		running, queued := operationtest.Operation("k", "x"), operationtest.Operation("k", "x")
		submit(t, q, running)
		submit(t, q, queued)
		synctest.Wait()
		stop()
		for _, id := range []string{running.ID, queued.ID} {
			op, err := store.Operation(t.Context(), id)
			if err != nil || op.State != operation.Queued || op.LeaseOwner != "" {
				t.Errorf("after the shutdown: %+v, error %v", op, err)
			}
		}
		next := newQueue(store)
		next.Handle("k", func(context.Context, *operation.Task) error { return nil }, operation.Policy{MaxAttempts: 1})
		run(t, next)
		wantState(t, waitFor(t, next, running.ID), operation.Succeeded, "")
		wantState(t, waitFor(t, next, queued.ID), operation.Succeeded, "")
	})
}

// A crash leaves running rows with a lease; nothing else can be simulated of
// it here. TestCrashedDaemon of package store does it with a real file.
func TestStartTakesOverInterrupted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(operationtest.Memory)
		crashed := func(attempts int, cancel bool) string {
			op := operationtest.Operation("k", "x")
			op.State, op.Attempts, op.CancelRequested = operation.Running, attempts, cancel
			op.LeaseOwner, op.LeaseExpires = "dead", time.Now().Add(time.Hour)
			if _, err := store.InsertOperation(t.Context(), op); err != nil {
				t.Fatal(err)
			}
			return op.ID
		}
		again, worn, cancelled := crashed(1, false), crashed(3, false), crashed(1, true)
		q := newQueue(store)
		var abandoned sync.Map
		q.Handle("k", func(_ context.Context, task *operation.Task) error {
			if task.Op.ID != again || task.Op.Attempts != 2 {
				t.Errorf("ran %+v", task.Op)
			}
			return nil
		}, operation.Policy{MaxAttempts: 3, Abandon: func(_ context.Context, op *operation.Operation) error {
			abandoned.Store(op.ID, op.Problem.Reason)
			return nil
		}})
		run(t, q)
		wantState(t, waitFor(t, q, again), operation.Succeeded, "")
		wantState(t, waitFor(t, q, worn), operation.Failed, problem.OperationInterrupted)
		wantState(t, waitFor(t, q, cancelled), operation.Cancelled, problem.OperationCancelled)
		for id, want := range map[string]problem.Reason{worn: problem.OperationInterrupted, cancelled: problem.OperationCancelled} {
			if got, _ := abandoned.Load(id); got != string(want) {
				t.Errorf("abandoned for %v, want %s", got, want)
			}
		}
	})
}

func TestWatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(new(operationtest.Memory))
		steps := make(chan string)
		q.Handle("k", func(_ context.Context, task *operation.Task) error {
			for step := range steps {
				task.Progress(operation.Progress{Step: step})
			}
			return nil
		}, operation.Policy{})
		id := submit(t, q, operationtest.Operation("k", "x"))
		var seen []string
		done := make(chan struct{})
		go func() {
			defer close(done)
			for op, err := range q.Watch(t.Context(), id) {
				if err != nil {
					t.Error(err)
					return
				}
				text := string(op.State)
				if op.Progress != nil {
					text += " " + op.Progress.Step
				}
				seen = append(seen, text)
			}
		}()
		synctest.Wait()
		run(t, q)
		synctest.Wait()
		for _, step := range []string{"one", "two"} {
			steps <- step
			synctest.Wait()
		}
		if op, err := q.Get(t.Context(), id); err != nil || op.Progress.Step != "two" {
			t.Errorf("live %+v, error %v", op, err)
		}
		close(steps)
		<-done
		if want := []string{"queued", "running", "running one", "running two", "succeeded two"}; !slices.Equal(seen, want) {
			t.Errorf("saw %q, want %q", seen, want)
		}
		for _, err := range q.Watch(t.Context(), "absent") {
			if !errdefs.IsNotFound(err) {
				t.Errorf("watch of what is absent: %v", err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		idle := operationtest.Operation("k", "y")
		idle.NotBefore = time.Now().Add(time.Minute)
		submit(t, q, idle)
		if _, err := q.Wait(ctx, idle.ID); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait of a caller that gave up: %v", err)
		}
	})
}

// Stops of the daemon are no crashes: however many there were, an operation
// that they interrupted runs again, also after one crash.
func TestShutdownsAreNoCrashes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(operationtest.Memory)
		last := false
		begin := func() (*operation.Queue, func()) {
			q := newQueue(store)
			q.Handle("k", func(ctx context.Context, _ *operation.Task) error {
				if last {
					return nil
				}
				<-ctx.Done()
				return context.Cause(ctx)
			}, operation.Policy{MaxAttempts: 2})
			return q, run(t, q)
		}
		q, stop := begin()
		id := submit(t, q, operationtest.Operation("k", "x"))
		for range 3 {
			synctest.Wait()
			stop()
			_, stop = begin()
		}
		synctest.Wait()
		stop()
		if _, err := store.UpdateOperation(t.Context(), id, func(op *operation.Operation) error {
			op.State, op.LeaseOwner = operation.Running, "dead"
			op.Attempts++
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		last = true
		q, _ = begin()
		op := waitFor(t, q, id)
		wantState(t, op, operation.Succeeded, "")
		if op.Attempts != 6 || op.Shutdowns != 4 || op.Retries != 0 {
			t.Errorf("operation %+v", op)
		}
	})
}

// A clock that is set back holds up no retry by more than the longest wait.
func TestRetryPlannedBeforeTheClockWasSetBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(new(operationtest.Memory))
		q.Handle("k", func(context.Context, *operation.Task) error { return nil }, operation.Policy{})
		run(t, q)
		began := time.Now()
		for _, ahead := range []time.Duration{72 * time.Second, 2 * time.Hour} {
			op := operationtest.Operation("k", "")
			op.NotBefore = began.Add(ahead)
			submit(t, q, op)
			if ahead > 72*time.Second {
				wantState(t, waitFor(t, q, op.ID), operation.Succeeded, "")
			}
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("it waited %v", waited)
		}
	})
}

// Who has learned that an operation is done reads it as done from then on, and
// whoever begins to wait then is told.
func TestDoneIsSeenByAllAtOnce(t *testing.T) {
	// Not beside others: their ids would follow its clock, which is no bubble's.
	q := newQueue(new(operationtest.Memory))
	q.Handle("k", func(context.Context, *operation.Task) error { return nil }, operation.Policy{})
	run(t, q)
	for range 1000 {
		id := submit(t, q, operationtest.Operation("k", ""))
		waitFor(t, q, id)
		if op, err := q.Get(t.Context(), id); err != nil || !op.State.Done() {
			t.Fatalf("read as %+v, %v after it was told as done", op, err)
		}
	}
}

func TestLeaseIsRenewedAndProgressWrittenNowAndThen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(operationtest.Memory)
		q := newQueue(store)
		q.Handle("k", func(_ context.Context, task *operation.Task) error {
			for i := range 1000 {
				task.Progress(operation.Progress{Done: int64(i + 1)})
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(2 * time.Minute)
			return nil
		}, operation.Policy{})
		run(t, q)
		id := submit(t, q, operationtest.Operation("k", "x"))
		time.Sleep(10 * time.Second)
		op, err := store.Operation(t.Context(), id)
		if err != nil || op.Progress == nil || op.Progress.Done < 700 || op.Revision > 8 {
			t.Errorf("after 1000 steps in 10 s: %+v, error %v", op, err)
		}
		time.Sleep(time.Minute)
		if op, err = store.Operation(t.Context(), id); err != nil || time.Until(op.LeaseExpires) < 15*time.Second {
			t.Errorf("lease expires in %v, error %v", time.Until(op.LeaseExpires), err)
		}
		wantState(t, waitFor(t, q, id), operation.Succeeded, "")
	})
}

func TestLostLeaseStopsTheHandler(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(operationtest.Memory)
		q := newQueue(store)
		stopped := make(chan error, 1)
		q.Handle("k", func(ctx context.Context, _ *operation.Task) error {
			<-ctx.Done()
			stopped <- context.Cause(ctx)
			return ctx.Err()
		}, operation.Policy{})
		run(t, q)
		id := submit(t, q, operationtest.Operation("k", "x"))
		synctest.Wait()
		if _, err := store.UpdateOperation(t.Context(), id, func(op *operation.Operation) error {
			op.LeaseOwner = "other"
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if cause := <-stopped; !errors.Is(cause, operation.ErrLeaseLost) {
			t.Errorf("cause %v", cause)
		}
		synctest.Wait()
		if op, err := store.Operation(t.Context(), id); err != nil || op.State != operation.Running || op.LeaseOwner != "other" {
			t.Errorf("the other's row was changed: %+v, error %v", op, err)
		}
	})
}

func TestStoreFailuresLoseNothing(t *testing.T) {
	for _, call := range []string{"Operation", "UpdateOperation"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store := new(operationtest.Memory)
				q := newQueue(store)
				runs := 0
				q.Handle("k", func(context.Context, *operation.Task) error { runs++; return nil }, operation.Policy{})
				run(t, q)
				synctest.Wait()
				op := operationtest.Operation("k", "x")
				if _, err := store.InsertOperation(t.Context(), op); err != nil {
					t.Fatal(err)
				}
				calls := 0
				store.Fail(func(c string) error {
					// Every other call fails: the claim as well as the outcome.
					if c == call {
						if calls++; calls < 8 && calls%2 == 1 {
							return errors.New("disk full")
						}
					}
					return nil
				})
				q.Kick(op.ID)
				time.Sleep(time.Minute)
				store.Fail(nil)
				wantState(t, waitFor(t, q, op.ID), operation.Succeeded, "")
				if runs != 1 || calls < 2 {
					t.Errorf("ran %d times over %d calls", runs, calls)
				}
			})
		})
	}
}

func TestRunFailsWithoutStore(t *testing.T) {
	t.Parallel()
	store := new(operationtest.Memory)
	store.Fail(func(string) error { return errdefs.ErrUnavailable })
	if err := newQueue(store).Run(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("error %v", err)
	}
}

func TestRetention(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(operationtest.Memory)
		q := newQueue(store, func(c *operation.Config) { c.Retention = 24 * time.Hour })
		q.Handle("k", func(context.Context, *operation.Task) error { return nil }, operation.Policy{})
		run(t, q)
		id := submit(t, q, operationtest.Operation("k", "x"))
		waitFor(t, q, id)
		time.Sleep(23 * time.Hour)
		if _, err := store.Operation(t.Context(), id); err != nil {
			t.Errorf("forgotten too early: %v", err)
		}
		time.Sleep(3 * time.Hour)
		if _, err := store.Operation(t.Context(), id); !errdefs.IsNotFound(err) {
			t.Errorf("not forgotten: %v", err)
		}
	})
}
