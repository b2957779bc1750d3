package operation_test

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/operation/operationtest"
)

// Of operations that are cancelled while they wait no more are undone at once
// than there are workers.
func TestGivingUpHasALimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const workers = 3
		q := newQueue(new(operationtest.Memory), func(cfg *operation.Config) { cfg.Workers = workers })
		var at, most, undone atomic.Int32
		var running string
		q.Handle("k", func(ctx context.Context, task *operation.Task) error {
			running = task.Op.ID
			<-ctx.Done()
			return ctx.Err()
		}, operation.Policy{
			Abandon: func(context.Context, *operation.Operation) error {
				most.Store(max(most.Load(), at.Add(1)))
				time.Sleep(time.Second)
				at.Add(-1)
				undone.Add(1)
				return nil
			},
		})
		run(t, q)
		var ids []string
		for range 10 * workers {
			ids = append(ids, submit(t, q, operationtest.Operation("k", "x"))) // one target: all but one wait
		}
		synctest.Wait()
		// What runs is undone by its worker.
		ids = slices.DeleteFunc(ids, func(id string) bool { return id == running })
		for _, id := range ids {
			if _, err := q.Cancel(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		for _, id := range ids {
			if op := waitFor(t, q, id); op.State != operation.Cancelled {
				t.Errorf("operation: %+v", op)
			}
		}
		if most.Load() != workers || undone.Load() != 10*workers-1 {
			t.Errorf("%d were undone, %d of them at once", undone.Load(), most.Load())
		}
	})
}
