package runtime_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/store"
)

// What a daemon did and recorded is not done once more when it died before it
// could say that the operation has ended.
func TestNothingIsDoneTwice(t *testing.T) {
	action := func(do func(*daemon) func(context.Context, runtime.ActionRequest) (*runtime.Environment, *operation.Operation, error)) func(*daemon) *operation.Operation {
		return func(d *daemon) *operation.Operation { return d.act(do(d), "desk") }
	}
	for name, act := range map[string]func(*daemon) *operation.Operation{
		"restart": action(func(d *daemon) func(context.Context, runtime.ActionRequest) (*runtime.Environment, *operation.Operation, error) {
			return d.Restart
		}),
		"start": func(d *daemon) *operation.Operation { d.act(d.Stop, "desk"); return d.act(d.Start, "desk") },
		"roll back": func(d *daemon) *operation.Operation {
			_, op := d.rollBack(runtime.RollBackRequest{Environment: "desk", Snapshot: "first", Force: true})
			return op
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			d := start(t, h)
			env, _ := d.create(small("desk"))
			d.snapshot("desk", "first")
			op := act(d)
			if op.State != operation.Succeeded {
				t.Fatalf("operation: %+v", op)
			}
			if name != "restart" { // it may end by itself meanwhile
				d.kill(env.ID, 0)
				waitFor(t, "its end", func() bool { return d.get("desk").State == runtime.Stopped })
			}
			before := d.get("desk")
			d.stop()
			db, err := store.Open(t.Context(), filepath.Join(h.dir, "node.db"), slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := db.UpdateOperation(t.Context(), op.ID, func(op *operation.Operation) error {
				op.State, op.LeaseOwner, op.FinishedAt = operation.Running, "dead", time.Time{}
				return nil
			}); err != nil {
				t.Error(err)
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
			h.faults.Reset()
			d = start(t, h)
			if op = d.done(op); op.State != operation.Succeeded {
				t.Errorf("operation: %+v", op)
			}
			if i := slices.IndexFunc(h.faults.Calls(), func(call string) bool {
				return strings.HasPrefix(call, "Engine.Start") || strings.HasPrefix(call, "Engine.Stop")
			}); i >= 0 {
				t.Errorf("it was done again: %q", h.faults.Calls()[i])
			}
			if after := d.get("desk"); after.State != before.State || !after.StartedAt.Equal(before.StartedAt) {
				t.Errorf("it is %s since %s, was %s since %s", after.State, after.StartedAt, before.State, before.StartedAt)
			}
		})
	}
}
