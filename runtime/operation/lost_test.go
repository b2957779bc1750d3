package operation_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/operation/operationtest"
)

// A write may be done though its answer says that it failed. Each of the
// writes of an operation is answered so once: the claim, the retry, the claim
// after it, the end. Nobody may wait for ever, and nothing may run twice.
func TestLostAnswers(t *testing.T) {
	for lost := 1; lost <= 4; lost++ {
		t.Run(fmt.Sprintf("write %d", lost), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store := new(operationtest.Memory)
				q := newQueue(store)
				runs := 0
				q.Handle("k", func(_ context.Context, task *operation.Task) error {
					if runs++; task.Op.Attempts != runs {
						t.Errorf("run %d is attempt %d", runs, task.Op.Attempts)
					}
					if runs == 1 {
						return fmt.Errorf("not yet: %w", errdefs.ErrUnavailable)
					}
					return nil
				}, operation.Policy{})
				run(t, q)
				synctest.Wait()
				writes := 0
				store.Lose(func(string) error {
					if writes++; writes == lost {
						return errors.New("the answer was lost")
					}
					return nil
				})
				begin := time.Now()
				op := waitFor(t, q, submit(t, q, operationtest.Operation("k", "x")))
				wantState(t, op, operation.Succeeded, "")
				if runs != 2 || writes < lost {
					t.Errorf("%d runs over %d writes, want 2", runs, writes)
				}
				if took := time.Since(begin); took > 5*time.Second { // of synctest's clock
					t.Errorf("the lost answer was made up for after %v only", took)
				}
			})
		})
	}
}

// Retries and interruptions are counted apart: whoever waits long for
// containerd is not given up because the daemon is restarted then.
func TestRetriesAreNotInterruptions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(operationtest.Memory)
		op := operationtest.Operation("k", "x")
		op.State, op.Attempts, op.Retries, op.LeaseOwner = operation.Running, 9, 8, "dead"
		if _, err := store.InsertOperation(t.Context(), op); err != nil {
			t.Fatal(err)
		}
		q := newQueue(store)
		retried := 0
		q.Handle("k", func(_ context.Context, task *operation.Task) error {
			if task.Retried(errdefs.ErrUnavailable) {
				retried++
			}
			return errdefs.ErrUnavailable
		}, operation.Policy{MaxAttempts: 2, MaxRetries: 10})
		run(t, q)
		op = waitFor(t, q, op.ID)
		wantState(t, op, operation.Failed, problem.Unavailable)
		if op.Attempts != 12 || op.Retries != 10 || retried != 2 {
			t.Errorf("%d attempts, %d retries, of them %d announced; want 12, 10 and 2", op.Attempts, op.Retries, retried)
		}
	})
}

// A cancelled operation waits for no retry.
func TestCancelBetweenRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(new(operationtest.Memory), func(c *operation.Config) { c.RetryBase, c.RetryMax = time.Hour, time.Hour })
		abandoned := 0
		q.Handle("k", func(context.Context, *operation.Task) error { return errdefs.ErrUnavailable }, operation.Policy{
			Abandon: func(context.Context, *operation.Operation) error { abandoned++; return nil },
		})
		run(t, q)
		begin := time.Now()
		id := submit(t, q, operationtest.Operation("k", "x"))
		synctest.Wait()
		if waiting, err := q.Get(t.Context(), id); err != nil || waiting.State != operation.Queued || waiting.Problem == nil || waiting.NotBefore.IsZero() {
			t.Errorf("between the attempts: %+v, error %v", waiting, err)
		}
		if _, err := q.Cancel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		wantState(t, waitFor(t, q, id), operation.Cancelled, problem.OperationCancelled)
		if abandoned != 1 || time.Since(begin) > time.Minute {
			t.Errorf("abandoned %d times, after %v", abandoned, time.Since(begin))
		}
	})
}

// A lease that nobody renews ends: the row is queued again.
func TestExpiredLeaseIsTakenOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(operationtest.Memory)
		q := newQueue(store)
		q.Handle("k", func(context.Context, *operation.Task) error { return nil }, operation.Policy{MaxAttempts: 2})
		run(t, q)
		synctest.Wait()
		leased := func(attempts int) string {
			op := operationtest.Operation("k", "x")
			op.State, op.Attempts, op.LeaseOwner, op.LeaseExpires = operation.Running, attempts, "other", time.Now().Add(time.Minute)
			if _, err := store.InsertOperation(t.Context(), op); err != nil {
				t.Fatal(err)
			}
			return op.ID
		}
		id, worn := leased(1), leased(2)
		time.Sleep(50 * time.Second)
		if op, err := store.Operation(t.Context(), id); err != nil || op.LeaseOwner != "other" {
			t.Errorf("a lease that had not expired was taken: %+v, error %v", op, err)
		}
		time.Sleep(time.Minute)
		wantState(t, waitFor(t, q, id), operation.Succeeded, "")
		wantState(t, waitFor(t, q, worn), operation.Failed, problem.OperationInterrupted)
	})
}
