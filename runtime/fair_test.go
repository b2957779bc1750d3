package runtime_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// deaf makes environments whose process ignores SIGTERM, and has do end them
// within an hour.
func (d *daemon) deaf(name string, do func(context.Context, runtime.ActionRequest) (*runtime.Environment, *operation.Operation, error)) *operation.Operation {
	d.t.Helper()
	req := full(name)
	req.Spec.Command = []string{"ignore-term"}
	d.create(req)
	hour := time.Hour
	_, op, err := do(d.t.Context(), runtime.ActionRequest{Environment: name, Force: true, Timeout: &hour})
	if err != nil {
		d.t.Fatal(err)
	}
	return op
}

// remove deletes an environment at once, whatever works on it.
func (d *daemon) remove(name string) {
	d.t.Helper()
	_, op, err := d.Delete(d.t.Context(), runtime.ActionRequest{Environment: name, Force: true, Timeout: new(time.Duration)})
	if err != nil {
		d.t.Fatal(err)
	}
	if op = d.done(op); op.State != operation.Succeeded {
		d.t.Errorf("delete of %s: %+v, %+v", name, op, op.Problem)
	}
}

// With one worker, environments in their grace period hold up no other one. A
// forced delete ends what waits for its environment, but for another delete.
func TestGracePeriodsHoldNoWorker(t *testing.T) {
	h := newHost(t)
	h.workers = 1
	d := start(t, h)
	ops := map[string]*operation.Operation{
		"stopped": d.deaf("stopped", d.Stop), "restarted": d.deaf("restarted", d.Restart), "deleted": d.deaf("deleted", d.Delete),
	}
	waitFor(t, "all to be told to end", func() bool { return h.faults.Count("Engine.Stop") == len(ops) })
	if env, op := d.create(full("other")); op.State != operation.Succeeded || env.State != runtime.Running {
		t.Errorf("created: %+v by %+v", env, op)
	}
	d.act(d.Restart, "other")
	d.remove("other")
	for name, op := range ops {
		if op, err := d.queue.Get(t.Context(), op.ID); err != nil || op.State != operation.Running {
			t.Errorf("what waits for %s: %+v, %v", name, op, err)
		}
	}
	for _, name := range []string{"stopped", "restarted"} {
		d.remove(name)
		if op := d.done(ops[name]); op.State != operation.Cancelled {
			t.Errorf("what waited for %s: %+v", name, op)
		}
	}
	_, second, err := d.Delete(t.Context(), runtime.ActionRequest{Environment: "deleted", Force: true, Timeout: new(time.Duration)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.queue.Cancel(t.Context(), ops["deleted"].ID); err != nil {
		t.Error(err)
	}
	if first, second := d.done(ops["deleted"]), d.done(second); first.State != operation.Cancelled || second.State != operation.Succeeded {
		t.Errorf("deletes: %+v, %+v", first, second)
	}
	d.holdsNothing()
}

// With one worker, a registry that does not answer holds up nobody but those
// who want something from it: no more of these pull at once than may, and each
// image that came for one is there for the next.
func TestPullsHoldNoWorker(t *testing.T) {
	const limit = 3 // of registerHandlers
	h := newHost(t)
	h.workers = 1
	h.images.AddRemote(runtime.Image{Name: "registry.test/slow:1"})
	h.images.AddRemote(runtime.Image{Name: "registry.test/other:1"})
	d := start(t, h)
	came := make(chan struct{})
	let := sync.OnceFunc(func() { close(came) })
	defer let()
	h.faults.Hook(func(method string) {
		if method == "Images.Pull" {
			<-came
		}
	})
	var ops []*operation.Operation
	for i := range limit + 2 {
		req := full(fmt.Sprintf("slow-%d", i))
		req.Spec.Image = "registry.test/slow:1"
		_, op, err := d.Create(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		ops = append(ops, op)
	}
	pull, err := d.Pull(t.Context(), runtime.PullRequest{Reference: "registry.test/other:1"})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the pulls to begin", func() bool { return h.faults.Count("Images.Pull") == limit })
	if env, op := d.create(full("other")); op.State != operation.Succeeded || env.State != runtime.Running {
		t.Errorf("created: %+v by %+v", env, op)
	}
	d.act(d.Stop, "other")
	d.remove("other")
	d.remove("slow-4") // before its turn
	if begun := h.faults.Count("Images.Pull"); begun != limit {
		t.Errorf("%d pulls at once, want %d", begun, limit)
	}
	if op, err := d.queue.Get(t.Context(), pull.ID); err != nil || op.State != operation.Queued {
		t.Errorf("the pull: %+v, %v", op, err)
	}
	let()
	for i, op := range append(ops[:limit+1:limit+1], pull) {
		if op := d.done(op); op.State != operation.Succeeded {
			t.Errorf("%d: %+v, %+v", i, op, op.Problem)
		}
	}
	if pulled := h.faults.Count("Images.Pull"); pulled != limit+1 {
		t.Errorf("%d pulls, want those that began and that of the other image", pulled)
	}
}
