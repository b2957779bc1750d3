package runtime_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/remotegpu/remotegpu/runtime"
)

// hang holds up the next calls of a method, so many of them, until it is
// released. reached gets one value for each.
func (h *host) hang(method string, calls int) (reached <-chan struct{}, release func()) {
	began, over := make(chan struct{}, calls), make(chan struct{})
	var count atomic.Int64
	h.faults.Hook(func(called string) {
		if called == method && int(count.Add(1)) <= calls {
			began <- struct{}{}
			<-over
		}
	})
	return began, sync.OnceFunc(func() { close(over) })
}

// A shim that hangs while its dead task is removed holds up nobody else's
// events, and the next start of its own environment waits for it.
func TestDeadTaskThatHangsHoldsUpNobody(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	envs := make(map[string]*runtime.Environment)
	for _, name := range []string{"slow", "other", "again"} {
		req := full(name)
		if name == "again" {
			req.Spec.Restart = &runtime.RestartPolicy{Mode: runtime.RestartAlways}
		}
		envs[name], _ = d.create(req)
	}
	reached, release := h.hang("Engine.Stop", 1)
	defer release()
	d.kill(envs["slow"].ID, 3)
	<-reached
	if env := d.get("slow"); env.State != runtime.Failed || env.Exit == nil || env.Exit.Code != 3 {
		t.Errorf("while its task is removed it is %+v", env)
	}
	d.kill(envs["other"].ID, 0)
	waitFor(t, "the end of another", func() bool { return d.get("other").State == runtime.Stopped })
	d.kill(envs["again"].ID, 1)
	d.restarted("again", 1)
	if err := d.Reconcile(t.Context()); err != nil {
		t.Error(err)
	}
	starts := h.faults.Count("Engine.Start")
	_, op, err := d.Start(t.Context(), runtime.ActionRequest{Environment: "slow"})
	if err != nil {
		t.Fatal(err)
	}
	d.act(d.Start, "other") // it began later, and is done
	if got := h.faults.Count("Engine.Start"); got != starts+1 {
		t.Errorf("%d starts, want 1: the dead task of the other is still there", got-starts)
	}
	release()
	d.settle(op, nil)
	if status, err := h.engine.Status(t.Context(), envs["slow"].ID); err != nil || !status.Running {
		t.Errorf("its new run: %+v, %v", status, err)
	}
}

// The node serves while the tasks of what ended without it are still removed,
// and knows by then how each ended; tasks that could not be removed go with a
// later pass.
func TestServingWaitsForNoDeadTask(t *testing.T) {
	const count = 20 // more than are removed at once
	h := newHost(t)
	first := start(t, h)
	var ids []string
	for i := range count {
		env, _ := first.create(full(fmt.Sprintf("desk-%d", i)))
		ids = append(ids, env.ID)
	}
	first.stop()
	for _, id := range ids {
		if err := h.engine.Exit(id, runtime.Exit{Code: 7}); err != nil {
			t.Fatal(err)
		}
	}
	_, release := h.hang("Engine.Stop", count)
	defer release()
	h.faults.FailCall("Engine.Stop", 3, errors.New("broken on purpose"))
	second := start(t, h)
	for i := range count {
		if env := second.get(fmt.Sprintf("desk-%d", i)); env.State != runtime.Failed || env.Exit == nil || env.Exit.Code != 7 {
			t.Errorf("while no task is removed: %+v", env)
		}
	}
	release()
	dead := func() (left int) {
		for _, id := range ids {
			if status, err := h.engine.Status(t.Context(), id); err != nil || status.Exit != nil {
				left++
			}
		}
		return left
	}
	waitFor(t, "the dead tasks to be removed", func() bool { return dead() == 1 })
	waitFor(t, "a pass to remove the last", func() bool {
		if err := second.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		return dead() == 0
	})
}
