package runtime_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

func TestDeleteInterruptsACreate(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	reached := make(chan struct{})
	var once sync.Once
	release := make(chan struct{})
	h.faults.Hook(func(method string) {
		if method == "Engine.Start" {
			once.Do(func() { close(reached); <-release })
		}
	})
	_, op, err := d.Create(t.Context(), full("desk"))
	if err != nil {
		t.Fatal(err)
	}
	<-reached
	if _, _, err := d.Stop(t.Context(), runtime.ActionRequest{Environment: "desk"}); reasonOf(err) != problem.EnvBusy {
		t.Errorf("stopping while it is created: %v", err)
	}
	_, deletion, err := d.Delete(t.Context(), runtime.ActionRequest{Environment: "desk", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	close(release)
	if op = d.done(op); op.State == operation.Queued || op.State == operation.Running {
		t.Errorf("the create is %s", op.State)
	}
	if deletion = d.done(deletion); deletion.State != operation.Succeeded {
		t.Errorf("delete: %+v", deletion)
	}
	if _, err := d.Get(t.Context(), "", "desk"); !errdefs.IsNotFound(err) {
		t.Errorf("it is still there: %v", err)
	}
	d.holdsNothing()
}

// A forced delete ends what is in its way though who asked for it is gone as soon as it
// is written down.
func TestDeleteInterruptsThoughItsCallerIsGone(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	op := d.deaf("desk", d.Stop)
	waitFor(t, "the grace period", func() bool { return h.faults.Count("Engine.Stop") == 1 })
	ctx, leave := context.WithCancel(t.Context())
	after := func(env *runtime.Environment) {
		if env.Operation != op.ID {
			leave()
		}
	}
	h.afterUpdate.Store(&after)
	_, deletion, err := d.Delete(ctx, runtime.ActionRequest{Environment: "desk", Force: true, Timeout: new(time.Duration)})
	if err != nil {
		t.Fatal(err)
	}
	if op = d.done(op); op.State != operation.Cancelled {
		t.Errorf("the stop: %+v", op)
	}
	if deletion = d.done(deletion); deletion.State != operation.Succeeded {
		t.Errorf("delete: %+v", deletion)
	}
	d.holdsNothing()
}

// The daemon dies when a forced delete is written down: what was in its way is not begun
// anew.
func TestDeleteInterruptsThoughTheDaemonDies(t *testing.T) {
	h := newHost(t)
	h.images.AddRemote(runtime.Image{Name: "registry.test/slow:1"})
	first := start(t, h)
	reached, release := blockCall(t, h, "Images.Pull")
	req := plain("desk")
	req.Spec.Image = "registry.test/slow:1"
	env, op, err := first.Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	await(t, "pull", reached)
	deletion := &operation.Operation{
		ID: "01K00000000000000000000000", Project: env.Project, Kind: runtime.KindDelete, Target: env.ID,
		Args: []byte(`{"timeout":0,"force":true}`), CreatedAt: time.Now(), State: operation.Queued,
	}
	if _, _, err := first.store.UpdateEnvironment(t.Context(), env.ID, deletion, func(env *runtime.Environment) error {
		env.Operation = deletion.ID
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() { first.stop(); close(stopped) }()
	time.Sleep(10 * time.Millisecond) // the queue ends the attempt
	release()
	<-stopped
	pulls := h.faults.Count("Images.Pull")
	second := start(t, h)
	if op = second.done(op); op.State != operation.Cancelled {
		t.Errorf("the create: %+v", op)
	}
	if deletion = second.done(deletion); deletion.State != operation.Succeeded {
		t.Errorf("delete: %+v", deletion)
	}
	if n := h.faults.Count("Images.Pull"); n != pulls {
		t.Errorf("pulled %d times more", n-pulls)
	}
	second.holdsNothing()
}
