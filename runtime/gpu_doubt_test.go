package runtime_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/gputest"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// sicken has a GPU be of some health, as its driver says.
func (h *host) sicken(uuid string, health gpu.Health) {
	h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) {
		for i := range devices {
			if devices[i].UUID == uuid {
				devices[i].Health = health
			}
		}
		return devices, ""
	})
}

// A GPU fails while the image of its environment is pulled, or while that is started.
func TestAGPUThatFailsUnderACreate(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	fail := func(when string) {
		h.faults.Hook(func(method string) {
			if method != when {
				return
			}
			if _, err := d.store.MarkGPU(context.WithoutCancel(t.Context()), gputest.UUID(0), func(_ gpu.Books, mark *gpu.Mark) error {
				mark.Health = gpu.Health{Unhealthy: true, Reason: "XID 79", Since: time.Now()}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	fail("Images.Image")
	env, op := d.create(withGPU("pulled", gpu.Request{}))
	if op.State != operation.Succeeded || len(env.GPUs) != 1 || env.GPUs[0].GPU != gputest.UUID(1) {
		t.Fatalf("it has %+v, by %+v", env.GPUs, op.Problem)
	}
	if container, _ := h.engine.Container(env.ID); strings.Contains(strings.Join(container.GPU.CDI.Env, " "), gputest.UUID(0)) {
		t.Errorf("its process has %v", container.GPU.CDI.Env)
	}
	h.faults.Reset()
	if _, err := d.UndrainGPU(t.Context(), gputest.UUID(0), true); err != nil {
		t.Fatal(err)
	}
	fail("Engine.Start")
	if env, op := d.create(withGPU("started", gpu.Request{})); op.State != operation.Succeeded || env.GPUs[0].GPU != gputest.UUID(0) {
		t.Fatalf("it has %+v, by %+v", env.GPUs, op.Problem)
	}
	h.faults.Reset()
	waitFor(t, "the loss", func() bool { d.reconcile(false); return strings.Contains(d.get("started").GPURun.Lost, "XID 79") })
}

// One question that fails makes nobody lose anything; when it goes on to, all do.
func TestAGPUThatIsNotSureToBeWell(t *testing.T) {
	h := gpuHost(t)
	h.gpu.SureAfter = time.Hour
	d := start(t, h)
	whole, _ := d.create(withGPU("whole", gpu.Request{UUIDs: []string{"0"}}))
	d.create(withGPU("part", smallest))
	doubtful := gpu.Health{Unhealthy: true, Unsure: true, Reason: "it does not tell its MIG instances", Since: time.Now()}
	h.sicken(gputest.UUID(0), doubtful)
	h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) {
		devices[2].Health, devices[2].MIG.Instances = doubtful, nil
		return devices, ""
	})
	d.look("the condition", func() bool { return strings.Contains(conditionOf(d, problem.GPUWarning), "MIG instances") })
	for _, name := range []string{"whole", "part"} {
		if lost := d.get(name).GPURun.Lost; lost != "" {
			t.Errorf("%s is told to have lost its GPU: %s", name, lost)
		}
	}
	if said := conditionOf(d, problem.GPUUnhealthy); said != "" {
		t.Errorf("the condition says %s", said)
	}
	_, _, err := d.Create(t.Context(), withGPU("late", smallest))
	d.refusedGPU(err, problem.GPUUnhealthy)
	d.act(d.Stop, "whole")
	if op := d.act(d.Start, "whole"); op.State != operation.Succeeded || d.get("whole").GPUs[0].ID != whole.GPUs[0].ID {
		t.Errorf("it does not keep its GPU: %+v, %+v", d.get("whole").GPUs, op.Problem)
	}
	d.stop()
	h.gpu.SureAfter = time.Nanosecond
	d = start(t, h)
	d.look("the loss", func() bool { return d.get("whole").GPURun.Lost != "" })
	if said := conditionOf(d, problem.GPUUnhealthy); !strings.Contains(said, gputest.UUID(0)) {
		t.Errorf("the condition says %q", said)
	}
}

// Who resets a GPU drains it first: that it does not answer meanwhile is nothing to
// be kept.
func TestAGPUThatIsResetIsNotMarked(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	mine := gputest.UUID(0)
	if _, err := d.DrainGPU(t.Context(), mine, "to be reset"); err != nil {
		t.Fatal(err)
	}
	h.sicken(mine, gpu.Health{Unhealthy: true, Reason: "it does not answer: GPU is lost", Since: time.Now()})
	d.look("the inventory", func() bool {
		g, err := d.GPU(t.Context(), mine, false)
		return err == nil && g.Health.Failed()
	})
	d.reconcile(false)
	h.sicken(mine, gpu.Health{})
	if _, err := d.UndrainGPU(t.Context(), mine, false); err != nil {
		t.Fatal(err)
	}
	d.look("it to be well", func() bool {
		g, err := d.GPU(t.Context(), mine, false)
		return err == nil && !g.Health.Failed() && !g.Mark.Health.Unhealthy
	})
	if _, op := d.create(withGPU("one", gpu.Request{UUIDs: []string{mine}})); op.State != operation.Succeeded {
		t.Errorf("got %+v", op.Problem)
	}
}

// What is left on an instance is not handed over either, nor one that nobody measured.
func TestWhatIsLeftOnAnInstance(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	made, _, err := d.CreateMIG(t.Context(), gputest.UUID(2), "1g.5gb", nil) // stays when leases end
	if err != nil {
		t.Fatal(err)
	}
	use := func(used, free uint64) {
		h.gpus.Use(gputest.UUID(2), gpu.Usage{Instances: []gpu.InstanceUsage{{UUID: made.UUID, MemoryUsed: used, MemoryFree: free}}})
	}
	for _, test := range []struct {
		used, free uint64
		want       problem.Reason
	}{
		{0, 0, problem.GPUUnavailable},
		{1 << 30, 4 << 30, problem.GPUInUse}, // of the GPU that would be tolerated
		{200 << 20, 4800 << 20, ""},          // an eighth of it
	} {
		use(test.used, test.free)
		_, op := d.create(withGPU("one", smallest))
		if op.State == operation.Succeeded != (test.want == "") || test.want != "" && op.Problem.Reason != string(test.want) {
			t.Errorf("with %d bytes in use: %s, %+v", test.used, op.State, op.Problem)
		}
		d.act(d.Delete, "one")
	}
	d.stop()
	h.gpu.Leftover = 0 // none
	d = start(t, h)
	use(1<<20, 4800<<20)
	if _, op := d.create(withGPU("one", smallest)); op.State != operation.Failed || op.Problem.Reason != string(problem.GPUInUse) {
		t.Errorf("with 1 MiB in use: %s, %+v", op.State, op.Problem)
	}
}

// A mode that a GPU has is set again, whoever uses it: that is what is kept.
func TestAMIGModeThatAGPUHasIsSetAgain(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	part, alone := gputest.UUID(2), gputest.UUID(0)
	h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) {
		devices[0].MIG.Capable = true
		return devices, ""
	})
	d.create(withGPU("part", smallest))
	d.create(withGPU("alone", gpu.Request{UUIDs: []string{alone}}))
	for uuid, on := range map[string]bool{part: true, alone: false} {
		reset, g, err := d.SetMIGMode(t.Context(), uuid, on)
		if err != nil || reset || g.WantsMIG != on {
			t.Errorf("%s: %v, %+v, %v", uuid, reset, g, err)
		}
		_, _, err = d.SetMIGMode(t.Context(), uuid, !on)
		d.refusedGPU(err, problem.GPUInUse)
	}
}

// A watch of GPUs that does not work is told until one does, not until one is tried.
func TestAWatchThatBreaksIsTold(t *testing.T) {
	h := gpuHost(t)
	h.faults.FailCall("GPUs.Watch", 0, errors.New("the helper has ended"))
	d := start(t, h)
	waitFor(t, "the condition", func() bool { return strings.Contains(conditionOf(d, problem.GPUWarning), "the helper has ended") })
	d.reconcile(false)
	if conditionOf(d, problem.GPUWarning) == "" {
		t.Error("a pass has cleared it")
	}
	h.faults.Reset()
	waitFor(t, "the watch to work", func() bool {
		h.gpus.Happen(gpu.Event{UUID: gputest.UUID(0), XID: 31, Detail: "page fault"})
		return conditionOf(d, problem.GPUWarning) == ""
	})
}

// GPUs that appear on a host that had none are watched at once.
func TestGPUsThatAppearAreWatched(t *testing.T) {
	h := gpuHost(t)
	h.gpus.Change(func([]gpu.Device) ([]gpu.Device, string) { return nil, "" })
	d := start(t, h)
	d.reconcile(false)
	h.gpus.Change(func([]gpu.Device) ([]gpu.Device, string) { return gputest.Plain(1), "" })
	if _, err := d.GPUInventory(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the watch", func() bool { return h.gpus.Happen(gpu.Event{UUID: gputest.UUID(0), XID: 31, Detail: "page fault"}) })
}
