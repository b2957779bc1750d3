package operation_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/operation/operationtest"
)

// Whatever the end of an operation, it is told once, when it is written and
// before those who wait know.
func TestEndedIsToldOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(operationtest.Memory)
		q := newQueue(store)
		var mu sync.Mutex
		var told []string
		ended := func(ctx context.Context, op *operation.Operation) {
			mu.Lock()
			defer mu.Unlock()
			written, err := store.Operation(ctx, op.ID)
			if err != nil || written.State != op.State {
				t.Errorf("told of %+v, written is %+v, %v", op, written, err)
			}
			told = append(told, fmt.Sprintf("%s %s %d", op.Target, op.State, op.Attempts))
		}
		blocked := make(chan struct{})
		q.Handle("k", func(ctx context.Context, task *operation.Task) error {
			switch task.Op.Target {
			case "fails":
				return operation.Permanent(errors.New("no"))
			case "given up":
				return errors.New("no")
			case "tried again":
				if task.Op.Attempts == 1 {
					return errdefs.ErrUnavailable
				}
			case "cancelled":
				<-ctx.Done()
				return context.Cause(ctx)
			case "busy":
				<-blocked
			}
			return nil
		}, operation.Policy{Ended: ended})
		run(t, q)
		ids := make(map[string]string)
		for _, target := range []string{"works", "fails", "given up", "tried again", "cancelled", "busy"} {
			ids[target] = submit(t, q, operationtest.Operation("k", target))
		}
		waiting := submit(t, q, operationtest.Operation("k", "busy"))
		synctest.Wait()
		for _, id := range []string{ids["cancelled"], waiting} {
			if _, err := q.Cancel(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		close(blocked)
		for target, id := range ids {
			waitFor(t, q, id)
			mu.Lock()
			if !slices.ContainsFunc(told, func(line string) bool { return strings.HasPrefix(line, target) }) {
				t.Errorf("%s was waited for before its end was told: %q", target, told)
			}
			mu.Unlock()
		}
		waitFor(t, q, waiting)
		slices.Sort(told)
		want := []string{
			"busy cancelled 0", "busy succeeded 1", "cancelled cancelled 1", "fails failed 1", "given up failed 1", "tried again succeeded 2", "works succeeded 1",
		}
		if !slices.Equal(told, want) {
			t.Errorf("told %q, want %q", told, want)
		}
	})
}
