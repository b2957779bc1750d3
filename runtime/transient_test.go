package runtime_test

import (
	"context"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// While containerd is away, or does not answer in time, no operation fails: it is
// tried again until containerd is back.
func TestContainerdAway(t *testing.T) {
	away := problem.New(problem.ContainerdDown, "containerd does not answer").WithHint("see whether it runs")
	late := problem.New(problem.ContainerdTimeout, "containerd did not answer in time").WithHint("see what it does")
	type action func(context.Context, runtime.ActionRequest) (*runtime.Environment, *operation.Operation, error)
	for _, test := range []struct {
		name  string
		call  string // of the engine; fails a few times
		act   func(*daemon) action
		state runtime.State // "": gone
	}{
		{"create", "Engine.Create", nil, runtime.Running},
		{"create that starts", "Engine.Start", nil, runtime.Running},
		{"stop", "Engine.Stop", func(d *daemon) action { return d.Stop }, runtime.Stopped},
		{"restart that stops", "Engine.Stop", func(d *daemon) action { return d.Restart }, runtime.Running},
		{"restart that starts", "Engine.Start", func(d *daemon) action { return d.Restart }, runtime.Running},
		{"delete", "Engine.Delete", func(d *daemon) action { return d.Delete }, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHost(t)
			d := start(t, h)
			fail := func() {
				for n := range 3 {
					h.faults.Fail(test.call, n+1, []runtimetest.When{runtimetest.Before, runtimetest.After}[n%2], []error{away, late}[n%2])
				}
			}
			if test.act == nil {
				fail()
			}
			env, _ := d.create(full("one"))
			if test.act != nil {
				fail()
				_, op, err := test.act(d)(t.Context(), runtime.ActionRequest{Environment: "one", Force: true})
				if err != nil {
					t.Fatal(err)
				}
				if op, err = d.queue.Wait(t.Context(), op.ID); err != nil || op.State != operation.Succeeded || op.Retries == 0 {
					t.Fatalf("operation %+v, error %v", op, err)
				}
			}
			got, err := d.store.Environment(t.Context(), env.ID)
			if test.state == "" {
				if reasonOf(err) != problem.EnvNotFound || len(h.leftovers()) > 0 {
					t.Errorf("deleted: %+v, error %v, left %q", got, err, h.leftovers())
				}
				return
			}
			if err != nil || got.State != test.state || got.Operation != "" {
				t.Errorf("environment %+v, error %v, want %s", got, err, test.state)
			}
		})
	}
}

// A delete that waits for containerd can be cancelled, and says then that it
// was: what it has removed by then is gone.
func TestCancelledWhileContainerdIsAway(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(full("one"))
	h.faults.FailCall("Engine.Delete", 0, problem.New(problem.ContainerdDown, "containerd does not answer"))
	_, op, err := d.Delete(t.Context(), runtime.ActionRequest{Environment: "one", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the first retry", func() bool { op, err := d.queue.Get(t.Context(), op.ID); return err == nil && op.Retries > 0 })
	if _, err := d.queue.Cancel(t.Context(), op.ID); err != nil {
		t.Fatal(err)
	}
	if op, err = d.queue.Wait(t.Context(), op.ID); err != nil || op.State != operation.Cancelled {
		t.Fatalf("operation %+v, error %v", op, err)
	}
	got, err := d.store.Environment(t.Context(), env.ID)
	if err != nil || got.State != runtime.Failed || got.Operation != "" || got.Problem == nil || got.Problem.Reason != string(problem.OperationCancelled) {
		t.Errorf("environment %+v, problem %+v, error %v", got, got.Problem, err)
	}
	h.faults.Reset()
	d.act(d.Delete, "one")
	if left := h.leftovers(); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}
