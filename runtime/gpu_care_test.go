package runtime_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/gputest"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

func conditionOf(d *daemon, reason problem.Reason) string {
	for _, c := range d.Conditions() {
		if c.Reason == reason {
			return c.Message
		}
	}
	return ""
}

func TestAFailedGPUIsGivenToNobody(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	env, _ := d.create(withGPU("one", gpu.Request{}))
	mine := env.GPUs[0].GPU
	waitFor(t, "the GPUs to be watched", func() bool {
		return h.gpus.Happen(gpu.Event{UUID: mine, XID: 31, Detail: "page fault"})
	})
	h.gpus.Happen(gpu.Event{UUID: mine, XID: 79, Fatal: true, Detail: "XID 79: GPU has fallen off the bus"})
	waitFor(t, "the holder to be told", func() bool {
		kinds, _ := d.history(env.ID)
		return slices.Contains(kinds, runtime.HappenedGPUFail)
	})
	_, entries := d.history(env.ID)
	for _, entry := range entries {
		if entry.Kind == runtime.HappenedGPUFail && !strings.Contains(entry.Message, "XID 79") {
			t.Errorf("got %q", entry.Message)
		}
	}
	waitFor(t, "the condition", func() bool { return strings.Contains(conditionOf(d, problem.GPUUnhealthy), "XID 79") })
	d.act(d.Delete, "one")
	_, _, err := d.Create(t.Context(), withGPU("one", gpu.Request{UUIDs: []string{mine}}))
	d.refusedGPU(err, problem.GPUUnhealthy)
	// It is known after a restart of the daemon too, until somebody has looked.
	d.stop()
	d = start(t, h)
	waitFor(t, "the condition", func() bool { return strings.Contains(conditionOf(d, problem.GPUUnhealthy), mine) })
	if _, err := d.UndrainGPU(t.Context(), mine, false); err != nil {
		t.Fatal(err)
	}
	_, _, err = d.Create(t.Context(), withGPU("one", gpu.Request{UUIDs: []string{mine}}))
	d.refusedGPU(err, problem.GPUUnhealthy)
	if _, err := d.UndrainGPU(t.Context(), mine, true); err != nil || conditionOf(d, problem.GPUUnhealthy) != "" {
		t.Fatal(err)
	}
	d.create(withGPU("one", gpu.Request{UUIDs: []string{mine}}))
}

func TestEnvironmentsThatRunWithoutTheirGPU(t *testing.T) {
	h := gpuHost(t)
	h.gpu.Cure = runtime.CureRestart
	d := start(t, h)
	env, _ := d.create(withGPU("one", smallest))
	was := env.GPURun.Targets[0].MIG
	d.stop() // what happens while no daemon looks
	h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) { devices[2].MIG.Instances = nil; return devices, "" })
	d = start(t, h)
	waitFor(t, "the restart that makes the instance again", func() bool {
		env := d.get("one")
		return env.State == runtime.Running && env.Operation == "" && env.GPURun.Targets[0].MIG != was && len(h.gpus.Instances()) == 1
	})
	if kinds, _ := d.history(env.ID); !slices.Contains(kinds, runtime.HappenedGPUFail) {
		t.Errorf("its history is %v", kinds)
	}
	// Its GPU goes: nothing can be done but tell.
	d.stop()
	h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) { return devices[:2], "" })
	d = start(t, h)
	waitFor(t, "the condition", func() bool { return strings.Contains(conditionOf(d, problem.GPULost), "one: GPU") })
	if env := d.get("one"); env.State != runtime.Running || env.GPURun.Lost == "" {
		t.Errorf("got %+v", env.GPURun)
	}
	all, _, err := d.GPUs(t.Context(), true)
	if err != nil || len(all) != 3 || !all[2].Gone || len(all[2].Leases) != 1 {
		t.Errorf("got %+v, %v", all, err)
	}
	d.act(d.Delete, "one") // what has gone needs no removal
	d.freeOfGPUs()
}

// A process whose GPU failed has lost it, and does not have it again because the
// GPU is well again.
func TestAFailedGPUIsLostToItsProcess(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	env, _ := d.create(withGPU("one", gpu.Request{}))
	mine := env.GPUs[0].GPU
	health := func(health gpu.Health) {
		d.stop()
		h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) {
			for i := range devices {
				if devices[i].UUID == mine {
					devices[i].Health = health
				}
			}
			return devices, ""
		})
		d = start(t, h)
	}
	lost := func() bool { return strings.Contains(d.get("one").GPURun.Lost, "fallen off") }
	health(gpu.Health{Unhealthy: true, Reason: "it has fallen off the bus", Since: time.Now()})
	waitFor(t, "the loss", lost)
	waitFor(t, "the condition", func() bool { return strings.Contains(conditionOf(d, problem.GPULost), "one: GPU") })
	health(gpu.Health{})
	if _, err := d.UndrainGPU(t.Context(), mine, true); err != nil {
		t.Fatal(err)
	}
	d.reconcile(false)
	if !lost() || conditionOf(d, problem.GPULost) == "" || !strings.Contains(strings.Join(d.get("one").GPUWarnings(), ""), "fallen off") {
		t.Errorf("got %+v, condition %q", d.get("one").GPURun, conditionOf(d, problem.GPULost))
	}
	told := 0
	_, entries := d.history(env.ID)
	for _, entry := range entries {
		if entry.Kind == runtime.HappenedGPUFail {
			told++
		}
	}
	if told != 1 {
		t.Errorf("it was told %d times: %+v", told, entries)
	}
	d.act(d.Restart, "one")
	d.reconcile(false)
	if lost() || conditionOf(d, problem.GPULost) != "" {
		t.Errorf("got %+v, condition %q", d.get("one").GPURun, conditionOf(d, problem.GPULost))
	}
	// A mark is enough: the driver itself may not tell.
	waitFor(t, "the event", func() bool {
		return h.gpus.Happen(gpu.Event{UUID: mine, XID: 79, Fatal: true, Detail: "it has fallen off, XID 79"})
	})
	waitFor(t, "the loss", lost)
	if _, err := d.DrainGPU(t.Context(), mine, "to be replaced"); err != nil {
		t.Fatal(err)
	}
	_, entries = d.history(env.ID)
	if !slices.ContainsFunc(entries, func(e runtime.History) bool { return strings.Contains(e.Message, "nobody else: to be replaced") }) {
		t.Errorf("nobody told it of the drain: %+v", entries)
	}
}

// What the node itself keeps of GPUs is told and changed without their software.
func TestGPUsWhoseSoftwareDoesNotAnswer(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	env, _ := d.create(withGPU("one", gpu.Request{}))
	mine := env.GPUs[0].GPU
	check := func(known int) {
		t.Helper()
		g, err := d.DrainGPU(t.Context(), mine, "")
		if err != nil || !g.Mark.Drained || g.Gone || !g.Health.Unhealthy || len(g.Leases) != 1 {
			t.Errorf("drained %+v, %v", g, err)
		}
		all, found, err := d.GPUs(t.Context(), true)
		if err != nil || len(all) != known || !strings.Contains(strings.Join(found.Notes, ""), "does not answer") {
			t.Errorf("got %+v, %+v, %v", all, found.Notes, err)
		}
		if _, err := d.UndrainGPU(t.Context(), mine, false); err != nil {
			t.Error(err)
		}
		_, _, err = d.SetMIGMode(t.Context(), mine, true)
		d.refusedGPU(err, problem.GPUUnavailable)
	}
	h.faults.FailCall("GPUs.Probe", 0, errors.New("no answer"))
	waitFor(t, "the GPUs to be watched", func() bool { return h.gpus.Happen(gpu.Event{UUID: mine, Detail: "something"}) })
	waitFor(t, "the inventory to be out of date", func() bool {
		_, found, err := d.GPUs(t.Context(), false)
		return err == nil && len(found.Notes) > 0
	})
	check(3)
	d.stop()
	d = start(t, h) // what was never read is known by the books
	check(1)
	if d.get("one").GPURun.Lost != "" {
		t.Error("it has lost its GPU though nobody can tell")
	}
}

// While a driver hangs the node does everything else.
func TestADriverThatHangsHoldsNoPassUp(t *testing.T) {
	h := gpuHost(t)
	release := make(chan struct{})
	h.faults.Hook(func(method string) {
		if method == "GPUs.Probe" {
			<-release
		}
	})
	d := start(t, h)
	t.Cleanup(sync.OnceFunc(func() { close(release) }))
	env, _ := d.create(runtime.CreateRequest{Name: "plain", Spec: runtime.Spec{Image: image}})
	d.reconcile(false)
	d.kill(env.ID, 0)
	waitFor(t, "the end to be recorded", func() bool { return d.get("plain").State == runtime.Stopped })
	d.reconcile(false)
}

func TestAdministratorsPartitionIdleGPUsOnly(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	d.create(withGPU("one", smallest))
	ctx, a100, plain := t.Context(), gputest.UUID(2), gputest.UUID(0)
	_, _, err := d.SetMIGMode(ctx, a100, false)
	d.refusedGPU(err, problem.GPUInUse)
	_, _, err = d.SetMIGMode(ctx, plain, true)
	d.refusedGPU(err, problem.GPUModeConflict)
	_, _, err = d.SetMIGMode(ctx, "GPU-other", true)
	d.refusedGPU(err, problem.GPUNotFound)

	made, _, err := d.CreateMIG(ctx, a100, "2g.10gb", nil)
	if err != nil || made.Profile != "2g.10gb" {
		t.Fatalf("got %+v, %v", made, err)
	}
	lease := d.get("one").GPUs[0]
	_, _, err = d.CreateMIG(ctx, a100, "1g.5gb", &lease.Placement)
	d.refusedGPU(err, problem.GPUPlacementTaken)
	_, _, err = d.CreateMIG(ctx, a100, "7g.40gb", nil)
	d.refusedGPU(err, problem.GPUExhausted)
	_, _, err = d.CreateMIG(ctx, a100, "9g.90gb", nil)
	d.refusedGPU(err, problem.GPUNotFound)
	_, _, err = d.CreateMIG(ctx, a100, "2g.10gb", &gpu.Span{Start: 1})
	d.refusedGPU(err, problem.FieldInvalid)
	d.refusedGPU(d.DeleteMIG(ctx, d.get("one").GPUs[0].MIG), problem.GPUInUse)
	d.refusedGPU(d.DeleteMIG(ctx, "MIG-other"), problem.MIGInstanceNotFound)
	if err := d.DeleteMIG(ctx, made.UUID); err != nil {
		t.Fatal(err)
	}
	d.act(d.Delete, "one")
	h.gpus.Use(a100, gpu.Usage{Processes: []gpu.Process{{PID: 1}}})
	_, _, err = d.SetMIGMode(ctx, a100, false)
	d.refusedGPU(err, problem.GPUInUse)
	h.gpus.Use(a100, gpu.Usage{})
	if reset, g, err := d.SetMIGMode(ctx, a100, false); err != nil || !reset || !g.MIG.Pending {
		t.Errorf("got %v %+v %v", reset, g, err)
	}

	if g, err := d.DrainGPU(ctx, plain[:12], "fan"); err != nil || !g.Mark.Drained {
		t.Fatalf("got %+v, %v", g, err)
	}
	_, _, err = d.Create(ctx, withGPU("two", gpu.Request{UUIDs: []string{plain}}))
	d.refusedGPU(err, problem.GPUDrained)
	if _, err := d.UndrainGPU(ctx, plain, false); err != nil {
		t.Fatal(err)
	}
	d.create(withGPU("two", gpu.Request{UUIDs: []string{plain}}))
}

func TestNodesWithoutGPUs(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	_, _, err := d.Create(t.Context(), withGPU("one", gpu.Request{}))
	d.refusedGPU(err, problem.GPUNotFound)
	all, found, err := d.GPUs(t.Context(), true)
	if err != nil || len(all) != 0 || len(found.Notes) == 0 {
		t.Errorf("got %+v, %+v, %v", all, found, err)
	}
	d.stop()
	h.gpus = gputest.NewDriver(gputest.Plain(1)...)
	h.gpus.Do = h.faults.Do
	h.faults.FailCall("GPUs.Probe", 0, errors.New("no answer"))
	d = start(t, h)
	_, _, err = d.Create(t.Context(), withGPU("one", gpu.Request{}))
	d.refusedGPU(err, problem.GPUUnavailable)
	waitFor(t, "the condition", func() bool { return conditionOf(d, problem.GPUUnavailable) != "" })
	if _, op := d.create(runtime.CreateRequest{Name: "plain", Spec: runtime.Spec{Image: image}}); op.State != operation.Succeeded {
		t.Errorf("an environment without a GPU: %+v", op.Problem)
	}
}

// At most one of many that ask at once gets each GPU.
func TestManyAskForOneGPUAtOnce(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	results := make(chan error, 12)
	for i := range cap(results) {
		go func() {
			_, _, err := d.Create(context.WithoutCancel(t.Context()), withGPU(fmt.Sprintf("env-%d", i), gpu.Request{}))
			results <- err
		}()
	}
	got := 0
	for range cap(results) {
		if err := <-results; err == nil {
			got++
		} else {
			d.refusedGPU(err, problem.GPUExhausted)
		}
	}
	if got != 2 {
		t.Errorf("%d have one of 2 GPUs alone", got)
	}
}

// Stats tell what an environment's own processes use of its GPUs.
func TestStatsOfGPUs(t *testing.T) {
	h := gpuHost(t)
	mine := make(map[int]string) // environments by pid
	h.inEnvironment = func(pid int, envID string) (bool, error) { return mine[pid] == envID, nil }
	d := start(t, h)
	alone, _ := d.create(withGPU("alone", gpu.Request{UUIDs: []string{gputest.UUID(0)}}))
	shared, _ := d.create(withGPU("shared", gpu.Request{Mode: gpu.Shared, UUIDs: []string{gputest.UUID(1)}}))
	part, _ := d.create(withGPU("part", smallest))
	mine[1], mine[2], mine[3] = alone.ID, shared.ID, part.ID
	use := func(pid int, mebibytes uint64, mig string) gpu.Process {
		return gpu.Process{PID: pid, MemoryBytes: mebibytes << 20, MIG: mig, UtilPercent: 10 * pid, EncoderPercent: pid, DecoderPercent: -1}
	}
	h.gpus.Use(gputest.UUID(0), gpu.Usage{UtilPercent: 70, EncoderPercent: 8, DecoderPercent: 9, Processes: []gpu.Process{use(1, 10, "")}})
	h.gpus.Use(gputest.UUID(1), gpu.Usage{UtilPercent: 50, Processes: []gpu.Process{use(2, 20, ""), use(99, 30, "")}})
	h.gpus.Use(gputest.UUID(2), gpu.Usage{UtilPercent: 5, Processes: []gpu.Process{use(3, 40, part.GPURun.Targets[0].MIG), use(3, 50, "MIG-other")}})
	stats, err := d.Stats(t.Context(), runtime.StatsRequest{})
	if err != nil || len(stats) != 3 {
		t.Fatalf("got %+v, %v", stats, err)
	}
	for i, want := range []runtime.GPUStats{
		{GPU: gputest.UUID(0), MemoryBytes: 10 << 20, MemoryLimitBytes: 24 << 30, UtilPercent: 70, EncoderPercent: 8, DecoderPercent: 9, Processes: 1},
		{GPU: gputest.UUID(1), MemoryBytes: 20 << 20, MemoryLimitBytes: 24 << 30, UtilPercent: 20, EncoderPercent: 2, DecoderPercent: -1, Processes: 1},
		{GPU: gputest.UUID(2), MIG: part.GPURun.Targets[0].MIG, MemoryBytes: 40 << 20, MemoryLimitBytes: 5 << 30, UtilPercent: -1, EncoderPercent: -1, DecoderPercent: -1, Processes: 1},
	} {
		if len(stats[i].GPUs) != 1 || stats[i].GPUs[0] != want {
			t.Errorf("%s: got %+v, want %+v", stats[i].Name, stats[i].GPUs, want)
		}
	}
}

// Where the driver limits an environment, what it counts is what is used.
func TestStatsOfMemoryThatTheDriverLimits(t *testing.T) {
	h := gpuHost(t)
	h.gpu.Rules.Enforcers = []gpu.Enforcement{gpu.ByDriver}
	h.inEnvironment = func(pid int, _ string) (bool, error) { return pid == 1, nil }
	d := start(t, h)
	env, _ := d.create(withGPU("one", gpu.Request{Mode: gpu.VGPU, MemoryBytes: 4 << 30, UUIDs: []string{gputest.UUID(0)}}))
	h.gpus.Use(gputest.UUID(0), gpu.Usage{Processes: []gpu.Process{{PID: 1, MemoryBytes: 5 << 20}}})
	h.gpus.UseMemory(gputest.UUID(0), "/test/"+env.ID, 7<<20)
	for _, want := range []uint64{7 << 20, 5 << 20} {
		waitFor(t, "the memory to be told", func() bool {
			stats, err := d.Stats(t.Context(), runtime.StatsRequest{})
			return err == nil && len(stats) == 1 && len(stats[0].GPUs) == 1 && stats[0].GPUs[0].MemoryBytes == want
		})
		h.faults.FailCall("GPUs.MemoryUsed", 0, errors.New("it does not tell"))
	}
}

// What the clients of an MPS server use is not told apart.
func TestStatsOfClientsOfMPS(t *testing.T) {
	h := gpuHost(t)
	h.gpu.Rules.Enforcers = []gpu.Enforcement{gpu.ByMPS}
	h.inEnvironment = func(pid int, _ string) (bool, error) { return pid == 1, nil }
	d := start(t, h)
	d.create(withGPU("one", gpu.Request{Mode: gpu.VGPU, MemoryBytes: 4 << 30, UUIDs: []string{gputest.UUID(0)}}))
	for _, test := range []struct {
		used uint64
		want runtime.GPUStats
	}{
		{0, runtime.GPUStats{GPU: gputest.UUID(0), MemoryUnknown: true, MemoryLimitBytes: 4 << 30, UtilPercent: 30, Processes: 1}},
		{5, runtime.GPUStats{GPU: gputest.UUID(0), MemoryBytes: 5, MemoryLimitBytes: 4 << 30, UtilPercent: 30, Processes: 1}},
	} {
		h.gpus.Use(gputest.UUID(0), gpu.Usage{Processes: []gpu.Process{{PID: 1, UtilPercent: 30, MemoryBytes: test.used}, {PID: 2, MemoryBytes: 1 << 30}}})
		var got []runtime.GPUStats
		for until := time.Now().Add(10 * time.Second); time.Now().Before(until) && (len(got) != 1 || got[0] != test.want); time.Sleep(50 * time.Millisecond) {
			stats, err := d.Stats(t.Context(), runtime.StatsRequest{})
			if err != nil || len(stats) != 1 {
				t.Fatalf("got %+v, %v", stats, err)
			}
			got = stats[0].GPUs
		}
		if len(got) != 1 || got[0] != test.want {
			t.Errorf("got %+v, want %+v", got, test.want)
		}
	}
}

// A driver that hangs holds up neither the start of the daemon nor what has no
// GPU.
func TestADriverThatHangs(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	d.create(runtime.CreateRequest{Name: "plain", Spec: runtime.Spec{Image: image}})
	d.stop()
	released := make(chan struct{})
	h.faults.Hook(func(call string) {
		if strings.HasPrefix(call, "GPUs.") {
			<-released
		}
	})
	d = start(t, h) // its passes do not end
	for _, do := range []func(context.Context, runtime.ActionRequest) (*runtime.Environment, *operation.Operation, error){d.Stop, d.Start} {
		if op := d.act(do, "plain"); op.State != operation.Succeeded {
			t.Errorf("got %+v", op.Problem)
		}
	}
	close(released)
	h.faults.Hook(nil)
}
