package runtime_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/gputest"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// gpuHost has two plain GPUs and one that is partitioned.
func gpuHost(t *testing.T) *host {
	t.Helper()
	h := newHost(t)
	h.gpus = gputest.NewDriver(append(gputest.Plain(2), gputest.A100(2, true))...)
	h.gpus.Do = h.faults.Do
	h.gpu.HandOver, h.gpu.Leftover = time.Millisecond, 2<<30
	return h
}

func withGPU(name string, req gpu.Request) runtime.CreateRequest {
	return runtime.CreateRequest{Name: name, Spec: runtime.Spec{Image: image, GPU: &req}}
}

var smallest = gpu.Request{Mode: gpu.MIGMode, Profile: "1g.5gb"}

// holders are the names of those who have leases, by GPU.
func (d *daemon) holders() map[string][]string {
	d.t.Helper()
	books, err := d.store.GPUBooks(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	held := make(map[string][]string)
	for _, l := range books.Held {
		held[l.GPU] = append(held[l.GPU], l.EnvName)
	}
	return held
}

// freeOfGPUs fails the test when anything of a GPU is held or left.
func (d *daemon) freeOfGPUs() {
	d.t.Helper()
	if held := d.holders(); len(held) > 0 {
		d.t.Errorf("GPUs are held: %v", held)
	}
	if left := d.host.gpus.Instances(); len(left) > 0 {
		d.t.Errorf("instances are left: %v", left)
	}
}

func (d *daemon) refusedGPU(err error, reason problem.Reason) {
	d.t.Helper()
	if p := problem.Of(err); p == nil || p.Reason != reason || p.Hint == "" {
		d.t.Errorf("got %+v, want %s with a hint", p, reason)
	}
}

func TestALifeWithAGPU(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	env, op := d.create(withGPU("one", gpu.Request{}))
	if op.State != operation.Succeeded || len(env.GPUs) != 1 || env.GPUs[0].Enforcement != gpu.BySole {
		t.Fatalf("created %+v by %+v", env, op)
	}
	mine := env.GPUs[0].GPU
	container, _ := h.engine.Container(env.ID)
	if container.GPU == nil || !slices.Contains(container.GPU.CDI.Env, "TEST_GPU="+mine) || env.GPURun == nil || env.GPURun.Driver != "580.1" {
		t.Errorf("container %+v, run %+v", container.GPU, env.GPURun)
	}
	d.create(withGPU("two", gpu.Request{}))
	_, _, err := d.Create(t.Context(), withGPU("three", gpu.Request{}))
	d.refusedGPU(err, problem.GPUExhausted)
	d.act(d.Stop, "one") // keeps it, as it keeps its ports
	_, _, err = d.Create(t.Context(), withGPU("three", gpu.Request{}))
	d.refusedGPU(err, problem.GPUExhausted)

	// The driver was replaced between stop and start.
	h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) { return devices, "590.2" })
	time.Sleep(time.Millisecond)
	if op := d.act(d.Start, "one"); op.State != operation.Succeeded {
		t.Fatalf("started by %+v", op)
	}
	if env := d.get("one"); env.GPUs[0].GPU != mine {
		t.Errorf("it has another GPU: %+v", env.GPUs)
	}
	// A daemon that is started anew knows what is held.
	d.stop()
	d = start(t, h)
	_, _, err = d.Create(t.Context(), withGPU("three", gpu.Request{}))
	d.refusedGPU(err, problem.GPUExhausted)
	d.act(d.Delete, "one")
	d.act(d.Delete, "two")
	d.freeOfGPUs()
	if env, op := d.create(withGPU("three", gpu.Request{Count: 2})); op.State != operation.Succeeded || len(env.GPUs) != 2 {
		t.Errorf("created %+v by %+v", env, op)
	}
}

func TestInstancesComeAndGoWithTheirLeases(t *testing.T) {
	h := gpuHost(t)
	h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) {
		devices[2].MIG.Instances = []gpu.MIGInstance{{UUID: "MIG-theirs", Profile: "1g.5gb", Placement: gpu.Span{Start: 0, Size: 1}}}
		return devices, ""
	})
	d := start(t, h)
	static, _ := d.create(withGPU("static", smallest))
	made, _ := d.create(withGPU("made", smallest))
	if l := static.GPUs[0]; !l.Static || l.MIG != "MIG-theirs" {
		t.Errorf("got %+v", l)
	}
	if l := made.GPUs[0]; l.Static || l.Placement.Start == 0 || made.GPURun == nil || made.GPURun.Targets[0].MIG == "" {
		t.Errorf("got %+v, run %+v", l, made.GPURun)
	}
	// Instances do not outlive a reset of the host: they are made again at their places.
	d.act(d.Stop, "static")
	d.act(d.Stop, "made")
	before := h.gpus.Instances()
	h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) { devices[2].MIG.Instances = nil; return devices, "" })
	d.stop()
	d = start(t, h)
	for _, name := range []string{"static", "made"} {
		if op := d.act(d.Start, name); op.State != operation.Succeeded {
			t.Fatalf("%s: %+v", name, op.Problem)
		}
	}
	if after := h.gpus.Instances(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("instances are %v, were %v", after, before)
	}
	d.act(d.Delete, "made")
	d.act(d.Delete, "static")
	if left := h.gpus.Instances(); len(left) != 1 || left["2/0"] != "1g.5gb" {
		t.Errorf("left is %v, and only that of the administrator stays", left)
	}
}

// Each call of a create and of a delete fails once, with and without its work
// being done: nothing is held afterwards that is not told of.
func TestEachCallOfAGPUMayFail(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	calls := callsOf(h, func() {
		d.create(withGPU("one", smallest))
		d.act(d.Stop, "one")
		d.act(d.Start, "one")
	})
	d.act(d.Delete, "one")
	if !slices.Contains(calls, "GPUs.CreateMIG") || !slices.Contains(calls, "GPUs.Edits") {
		t.Fatalf("calls are %v", calls)
	}
	for _, call := range calls {
		for _, when := range []runtimetest.When{runtimetest.Before, runtimetest.After} {
			h.faults.Fail(call, 1, when, errdefs.ErrUnavailable)
			if _, op, err := d.Create(t.Context(), withGPU("one", smallest)); err == nil {
				if op = d.done(op); op.State != operation.Succeeded {
					if held := d.holders(); len(held) > 0 && d.get("one").Held == false {
						t.Errorf("%s fails %v: %v is held by what failed", call, when, held)
					}
				}
			}
			if env, err := d.Get(t.Context(), "", "one"); err == nil {
				if env.State == runtime.Running && len(h.gpus.Instances()) != 1 {
					t.Errorf("%s fails %v: instances are %v", call, when, h.gpus.Instances())
				}
				d.act(d.Delete, "one")
			}
			h.faults.Reset()
			d.reconcile(false)
			d.freeOfGPUs()
			d.holdsNothing()
		}
	}
}

// An environment is gone whatever the driver says to the removal of its
// instance, whose place is nobody's until it is removed.
func TestADeleteLeavesItsInstanceToTheNextPass(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	env, _ := d.create(withGPU("one", smallest))
	h.gpus.Use(gputest.UUID(2), gpu.Usage{Processes: []gpu.Process{{PID: 1, MIG: env.GPURun.Targets[0].MIG}}})
	if op := d.act(d.Delete, "one"); op.State != operation.Succeeded {
		t.Fatalf("deleted by %+v", op)
	}
	whole := gpu.Request{Mode: gpu.MIGMode, Profile: "7g.40gb"}
	_, _, err := d.Create(t.Context(), withGPU("whole", whole))
	d.refusedGPU(err, problem.GPUExhausted)
	d.reconcile(false)
	if len(d.holders()) != 0 || len(h.gpus.Instances()) != 1 {
		t.Errorf("held %v, instances %v", d.holders(), h.gpus.Instances())
	}
	// A node that does not look for GPUs any more forgets nothing.
	d.stop()
	driver := h.gpus
	h.gpus = nil
	d = start(t, h)
	d.reconcile(false)
	d.stop()
	h.gpus = driver
	h.gpus.Use(gputest.UUID(2), gpu.Usage{})
	d = start(t, h)
	d.reconcile(false)
	d.freeOfGPUs()
	d.create(withGPU("whole", whole))
	d.act(d.Delete, "whole")
	d.freeOfGPUs()
	// What has just ended takes a moment to go.
	d.stop()
	h.gpu.HandOver = time.Minute
	d = start(t, h)
	d.create(withGPU("two", smallest))
	h.faults.FailCall("GPUs.DestroyMIG", 1, problem.New(problem.GPUInUse, "a process uses it"))
	if op := d.act(d.Delete, "two"); op.State != operation.Succeeded {
		t.Errorf("got %+v", op.Problem)
	}
	d.freeOfGPUs()
	// What a failed GPU does not give up is not waited for.
	d.create(withGPU("three", smallest))
	h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) {
		devices[2].Health = gpu.Health{Unhealthy: true, Reason: "it is lost"}
		return devices, ""
	})
	h.faults.FailCall("GPUs.DestroyMIG", 1, errors.New("it is lost"))
	if op := d.act(d.Delete, "three"); op.State != operation.Succeeded || len(d.holders()) > 0 {
		t.Errorf("got %+v, held %v", op.Problem, d.holders())
	}
}

// The daemon ends between any two calls of a create: the next one finishes or
// undoes it, and never makes an instance twice.
func TestADaemonDiesWithAnInstanceHalfMade(t *testing.T) {
	for _, call := range []string{"GPUs.CreateMIG", "GPUs.Edits", "Engine.Create", "Engine.Start"} {
		h := gpuHost(t)
		d := start(t, h)
		reached, release := make(chan struct{}), make(chan struct{})
		h.faults.Hook(func(method string) {
			if method == call {
				select {
				case <-reached:
				default:
					close(reached)
					<-release
				}
			}
		})
		_, op, err := d.Create(t.Context(), withGPU("one", smallest))
		if err != nil {
			t.Fatal(err)
		}
		<-reached
		stopped := make(chan struct{})
		go func() { d.stop(); close(stopped) }()
		time.Sleep(10 * time.Millisecond) // it begins to end
		close(release)
		<-stopped
		h.faults.Hook(nil)
		d = start(t, h)
		if op = d.done(op); op.State != operation.Succeeded {
			t.Errorf("%s: %+v", call, op.Problem)
		}
		if made := h.gpus.Instances(); len(made) != 1 || len(d.holders()) != 1 {
			t.Errorf("%s: instances %v, leases %v", call, made, d.holders())
		}
		d.act(d.Delete, "one")
		d.freeOfGPUs()
		d.stop()
	}
}

func TestAnEnvironmentGetsOtherGPUs(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	d.create(withGPU("one", gpu.Request{}))
	change := func(req *gpu.Request, restart bool) (runtime.Updated, *operation.Operation) {
		return d.update(runtime.UpdateRequest{Environment: "one", Fields: []string{"spec.gpu"}, Spec: runtime.Spec{GPU: req}, Restart: restart})
	}
	// While it runs it keeps what it has until it is restarted.
	updated, _ := change(&gpu.Request{Count: 2}, false)
	if !slices.Contains(updated.RestartNeeded, "spec.gpu") || len(d.get("one").GPUs) != 1 {
		t.Errorf("got %+v, GPUs %+v", updated, d.get("one").GPUs)
	}
	d.act(d.Restart, "one")
	if env := d.get("one"); len(env.GPUs) != 2 || len(env.GPURun.Targets) != 2 {
		t.Errorf("got %+v", env.GPUs)
	}
	if _, op := change(&smallest, true); op.State != operation.Succeeded {
		t.Errorf("got %+v", op.Problem)
	}
	if env := d.get("one"); len(env.GPUs) != 1 || env.GPUs[0].Mode != gpu.MIGMode || len(h.gpus.Instances()) != 1 {
		t.Errorf("got %+v", env.GPUs)
	}
	// Its own instance is in the way of nothing that it is to have instead.
	for _, profile := range []string{"7g.40gb", "1g.5gb"} {
		other := gpu.Request{Mode: gpu.MIGMode, Profile: profile}
		if _, op := change(&other, true); op.State != operation.Succeeded {
			t.Errorf("%s: %+v", profile, op.Problem)
		}
		if env := d.get("one"); len(env.GPUs) != 1 || env.GPUs[0].Static || env.GPUs[0].Profile != profile || len(h.gpus.Instances()) != 1 {
			t.Errorf("got %+v, instances %v", env.GPUs, h.gpus.Instances())
		}
	}
	// Stopped, it changes at once.
	d.act(d.Stop, "one")
	change(&gpu.Request{Mode: gpu.Shared}, false)
	if env := d.get("one"); len(env.GPUs) != 1 || env.GPUs[0].Mode != gpu.Shared || len(h.gpus.Instances()) != 0 {
		t.Errorf("got %+v, instances %v", env.GPUs, h.gpus.Instances())
	}
	_, err := d.Update(t.Context(), runtime.UpdateRequest{Environment: "one", Fields: []string{"spec.gpu"}, Spec: runtime.Spec{GPU: &gpu.Request{Count: 5}}})
	d.refusedGPU(err, problem.GPUNotFound)
	_, err = d.Update(t.Context(), runtime.UpdateRequest{Environment: "one", Fields: []string{"spec.gpu"}, Spec: runtime.Spec{GPU: &gpu.Request{Mode: gpu.MIGMode}}})
	d.refusedGPU(err, problem.FieldInvalid)
	change(nil, false)
	d.freeOfGPUs()
	if op := d.act(d.Start, "one"); op.State != operation.Succeeded || d.get("one").GPURun != nil {
		t.Errorf("got %+v", d.get("one"))
	}
}

// A GPU fails after it was chosen, while the instance that it takes the place of
// is removed: the next start takes another.
func TestAGPUThatFailsAfterItWasChosen(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	env, _ := d.create(withGPU("one", smallest))
	d.act(d.Stop, "one")
	h.faults.Hook(func(method string) {
		if method != "GPUs.DestroyMIG" {
			return
		}
		if _, err := d.store.MarkGPU(context.WithoutCancel(t.Context()), gputest.UUID(0), func(_ gpu.Books, mark *gpu.Mark) error {
			mark.Health = gpu.Health{Unhealthy: true, Reason: "it failed"}
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
	if _, op := d.update(runtime.UpdateRequest{Environment: "one", Fields: []string{"spec.gpu"}, Spec: runtime.Spec{GPU: &gpu.Request{}}}); op.State != operation.Succeeded {
		t.Fatalf("changed by %+v", op.Problem)
	}
	if got := d.get("one").GPUs; len(got) != 1 || got[0].GPU != gputest.UUID(0) || len(h.gpus.Instances()) > 0 {
		t.Errorf("it has %+v, instances are %v", got, h.gpus.Instances())
	}
	if op := d.act(d.Start, "one"); op.State != operation.Succeeded {
		t.Fatalf("started by %+v", op.Problem)
	}
	if got := d.get("one").GPUs; len(got) != 1 || got[0].GPU != gputest.UUID(1) {
		t.Errorf("it has %+v", got)
	}
	_, entries := d.history(env.ID)
	if last := entries[len(entries)-1].Message; !slices.ContainsFunc(entries, func(e runtime.History) bool { return strings.Contains(e.Message, "it has GPU "+gputest.UUID(1)) }) {
		t.Errorf("its history ends with %q", last)
	}
}

// While nobody can tell whether an environment has a process its leases stay.
func TestLeasesDoNotChangeUnderAProcessThatIsNotKnown(t *testing.T) {
	h := gpuHost(t)
	h.gpu.ReleaseOnStop = true
	d := start(t, h)
	d.create(withGPU("one", gpu.Request{}))
	d.act(d.Stop, "one")
	h.faults.FailCall("Engine.Status", 0, errors.New("no answer"))
	if op := d.act(d.Start, "one"); op.State != operation.Failed {
		t.Fatalf("started by %+v", op)
	}
	if held := d.holders(); len(held) > 0 {
		t.Errorf("GPUs were taken: %v", held)
	}
}

func TestStoppedEnvironmentsGiveTheirGPUsBack(t *testing.T) {
	h := gpuHost(t)
	h.gpu.ReleaseOnStop = true
	d := start(t, h)
	d.create(withGPU("one", smallest))
	d.act(d.Stop, "one")
	d.freeOfGPUs()
	d.create(withGPU("two", gpu.Request{Mode: gpu.MIGMode, Profile: "7g.40gb"}))
	_, _, err := d.Start(t.Context(), runtime.ActionRequest{Environment: "one"})
	d.refusedGPU(err, problem.GPUExhausted)
	if env := d.get("one"); env.State != runtime.Stopped {
		t.Errorf("a start that was refused leaves it %s", env.State)
	}
	d.act(d.Delete, "two")
	if op := d.act(d.Start, "one"); op.State != operation.Succeeded {
		t.Errorf("got %+v", op.Problem)
	}
	env := d.get("one")
	d.kill(env.ID, 0) // by itself: the next pass gives it back
	waitFor(t, "the end to be recorded", func() bool { return d.get("one").State == runtime.Stopped })
	d.reconcile(false)
	d.freeOfGPUs()
}

func TestWhatIsLeftOnAGPUIsNotHandedOver(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	uuid := gputest.UUID(0)
	h.gpus.Use(uuid, gpu.Usage{Processes: []gpu.Process{{PID: 4711, MemoryBytes: 3 << 20}}})
	env, op := d.create(withGPU("one", gpu.Request{UUIDs: []string{"0"}})) // by its index
	if op.State != operation.Failed || op.Problem.Reason != string(problem.GPUInUse) || !strings.Contains(op.Problem.Message, "4711 (3 MiB)") {
		t.Fatalf("got %+v", op.Problem)
	}
	d.act(d.Delete, env.ID)
	h.gpus.Use(uuid, gpu.Usage{MemoryUsed: 10 << 30})
	if _, op := d.create(withGPU("two", gpu.Request{UUIDs: []string{uuid}})); op.State != operation.Failed || !strings.Contains(op.Problem.Message, "10240 MiB") {
		t.Fatalf("got %+v", op.Problem)
	}
	h.gpus.Use(uuid, gpu.Usage{MemoryUsed: 1 << 30})
	d.act(d.Delete, "two")
	d.freeOfGPUs()
	if _, op := d.create(withGPU("one", gpu.Request{UUIDs: []string{uuid}})); op.State != operation.Succeeded {
		t.Errorf("got %+v", op.Problem)
	}
	d.act(d.Delete, "one")
	// So is a first share of it; whoever has one may use it beside others.
	h.gpus.Use(uuid, gpu.Usage{Processes: []gpu.Process{{PID: 4711}}})
	share := gpu.Request{UUIDs: []string{uuid}, Mode: gpu.VGPU, MemoryBytes: 1 << 30, AllowUnenforced: true}
	if _, op := d.create(withGPU("one", share)); op.State != operation.Failed || op.Problem.Reason != string(problem.GPUInUse) {
		t.Errorf("got %+v", op.Problem)
	}
	d.act(d.Delete, "one")
	h.gpus.Use(uuid, gpu.Usage{})
	d.create(withGPU("one", share))
	h.gpus.Use(uuid, gpu.Usage{Processes: []gpu.Process{{PID: 4711}}})
	if _, op := d.create(withGPU("two", share)); op.State != operation.Succeeded {
		t.Errorf("got %+v", op.Problem)
	}
}

// A GPU of which nothing was measured is not taken to be clean.
func TestWhatIsNotMeasuredIsNotHandedOver(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	h.faults.Hook(func(method string) {
		if method == "GPUs.Usage" {
			h.gpus.Change(func([]gpu.Device) ([]gpu.Device, string) { return nil, "" })
		}
	})
	if _, op := d.create(withGPU("one", gpu.Request{})); op.State != operation.Failed || op.Problem.Reason != string(problem.GPUUnavailable) {
		t.Errorf("got %+v", op.Problem)
	}
}
