package runtime_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/gputest"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// ail changes what a GPU tells of its state.
func (h *host) ail(uuid string, vitals gpu.Vitals) {
	h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) {
		for i := range devices {
			if devices[i].UUID == uuid {
				devices[i].Vitals = vitals
			}
		}
		return devices, ""
	})
}

// look has the daemon read the inventory anew until what is waited for has come.
func (d *daemon) look(what string, done func() bool) {
	d.t.Helper()
	count := 0
	waitFor(d.t, what, func() bool {
		count++ // like events are held back
		d.host.gpus.Happen(gpu.Event{UUID: gputest.UUID(1), Detail: fmt.Sprint(what, " ", count)})
		d.reconcile(false)
		return done()
	})
}

// told says whether an environment's history has something.
func (d *daemon) told(id, words string) bool {
	_, entries := d.history(id)
	return slices.ContainsFunc(entries, func(e runtime.History) bool { return strings.Contains(e.Message, words) })
}

// A GPU that is too hot is given to nobody until it is cool; who has it keeps it.
func TestHeatTakesNoGPUAway(t *testing.T) {
	h := gpuHost(t)
	h.gpu.CoolFor = time.Millisecond
	d := start(t, h)
	env, _ := d.create(withGPU("one", gpu.Request{}))
	mine := env.GPUs[0].GPU
	h.ail(mine, gpu.Vitals{Temperature: 91, SlowdownAt: 90, ShutdownAt: 100})
	d.look("a warning", func() bool { return strings.Contains(conditionOf(d, problem.GPUWarning), mine+": it is hot: 91 °C") })
	if d.told(env.ID, "hot") {
		t.Error("a hot moment is told of as if it took anything away")
	}
	h.ail(mine, gpu.Vitals{Temperature: 101, SlowdownAt: 90, ShutdownAt: 100})
	d.look("the holder to be told", func() bool { return d.told(env.ID, "given to nobody else: it is too hot: 101 °C") })
	if got := d.get("one"); got.GPURun.Lost != "" || conditionOf(d, problem.GPULost) != "" || conditionOf(d, problem.GPUUnhealthy) != "" {
		t.Errorf("it has lost its GPU: %+v", got.GPURun)
	}
	if op := d.act(d.Restart, "one"); op.State != operation.Succeeded || d.get("one").GPUs[0].GPU != mine {
		t.Errorf("restarted by %+v with %+v", op, d.get("one").GPUs)
	}
	if g, err := d.GPU(t.Context(), mine, false); err != nil || !g.Health.Passing || g.Mark.Health.Unhealthy {
		t.Errorf("got %+v, %v", g, err)
	}
	d.act(d.Delete, "one")
	_, _, err := d.Create(t.Context(), withGPU("two", gpu.Request{UUIDs: []string{mine}}))
	d.refusedGPU(err, problem.GPUUnhealthy)
	if p := problem.Of(err); !strings.Contains(p.Message, "too hot") || strings.Contains(p.Hint, "reset-health") {
		t.Errorf("refused: %s; %s", p.Message, p.Hint)
	}
	if other, _ := d.create(withGPU("two", gpu.Request{})); other.GPUs[0].GPU == mine {
		t.Error("it was given all the same")
	}
	h.ail(mine, gpu.Vitals{Temperature: 60, SlowdownAt: 90, ShutdownAt: 100})
	d.look("the condition to end", func() bool { return conditionOf(d, problem.GPUWarning) == "" })
	d.create(withGPU("one", gpu.Request{UUIDs: []string{mine}}))
}

// Memory errors that nobody corrected make a GPU unhealthy, also those that came
// while no daemon looked, and those of before it came here do not.
func TestMemoryErrorsMakeAGPUUnhealthy(t *testing.T) {
	h := gpuHost(t)
	errs := func(count uint64) gpu.Vitals { return gpu.Vitals{UncorrectedErrors: &count} }
	mine := gputest.UUID(0)
	h.ail(mine, errs(3))
	d := start(t, h)
	env, _ := d.create(withGPU("one", gpu.Request{UUIDs: []string{mine}}))
	d.reconcile(false)
	if sick := conditionOf(d, problem.GPUUnhealthy); sick != "" {
		t.Errorf("unhealthy from the start: %s", sick)
	}
	d.stop()
	h.ail(mine, errs(5))
	d = start(t, h)
	waitFor(t, "the condition", func() bool {
		return strings.Contains(conditionOf(d, problem.GPUUnhealthy), "memory had 2 errors that were not corrected")
	})
	if !d.told(env.ID, "2 errors") || d.get("one").GPURun.Lost == "" {
		t.Error("who has it was not told")
	}
	if _, err := d.UndrainGPU(t.Context(), mine, true); err != nil {
		t.Fatal(err)
	}
	h.ail(mine, errs(0)) // its memory of errors was cleared
	d.look("that to be seen", func() bool {
		g, err := d.GPU(t.Context(), mine, false)
		return err == nil && g.Mark.Counted && g.Mark.Uncorrected == 0
	})
	if sick := conditionOf(d, problem.GPUUnhealthy); sick != "" {
		t.Errorf("fewer errors make it unhealthy: %s", sick)
	}
	h.ail(mine, gpu.Vitals{RemapPending: true})
	d.look("a warning", func() bool { return strings.Contains(conditionOf(d, problem.GPUWarning), "rows of its memory") })
	h.ail(mine, errs(1))
	d.look("the next error", func() bool { return strings.Contains(conditionOf(d, problem.GPUUnhealthy), "memory had 1 errors") })
}

// A program that brings errors about by the thousand has no inventory read, and no
// line of the log written, for each.
func TestAStormOfErrorsCostsNothing(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	mine := gputest.UUID(0)
	waitFor(t, "the GPUs to be watched", func() bool { return h.gpus.Happen(gpu.Event{UUID: mine, XID: 31}) })
	if _, err := d.GPUInventory(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	before, began := len(h.faults.Calls()), time.Now()
	for range 5000 {
		h.gpus.Happen(gpu.Event{UUID: mine, XID: 31, Detail: "page fault"})
	}
	waitFor(t, "all to be counted", func() bool { return d.GPUErrors(mine).XIDs[31] >= 5000 })
	if _, err := d.GPUInventory(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	probes := slices.DeleteFunc(h.faults.Calls()[before:], func(call string) bool { return call != "GPUs.Probe" })
	// Passes read it as well, when it is five seconds old.
	if len(probes) > 2+int(time.Since(began)/(5*time.Second)) || d.GPUErrors(mine).Last != 31 {
		t.Errorf("it was read %d times; counted %+v", len(probes), d.GPUErrors(mine))
	}
	// One that matters gets through.
	h.gpus.Happen(gpu.Event{UUID: mine, XID: 79, Fatal: true, Detail: "XID 79"})
	waitFor(t, "the condition", func() bool { return conditionOf(d, problem.GPUUnhealthy) != "" })
}

// A GPU whose errors nobody is told of is given all the same, and says so; whose
// the processes on it are is known.
func TestWhatIsToldOfAGPU(t *testing.T) {
	h := gpuHost(t)
	var mine string
	h.inEnvironment = func(pid int, id string) (bool, error) { return pid == 1 && id == mine, nil }
	d := start(t, h)
	env, _ := d.create(withGPU("one", gpu.Request{UUIDs: []string{gputest.UUID(0)}}))
	mine = env.ID
	h.gpus.Use(gputest.UUID(0), gpu.Usage{Processes: []gpu.Process{{PID: 1}, {PID: 2}}})
	waitFor(t, "a warning", func() bool {
		h.gpus.Happen(gpu.Event{UUID: gputest.UUID(0), Unwatched: true, Detail: "its errors cannot be watched"})
		g, err := d.GPU(t.Context(), "0", true)
		return err == nil && slices.Equal(g.Warnings, []string{"its errors cannot be watched"}) && len(g.Users) == 1 && g.Users[1].EnvName == "one"
	})
	if sick := conditionOf(d, problem.GPUWarning); sick != "" {
		t.Errorf("it is a condition for good: %s", sick)
	}
}

func TestWhoHadAGPU(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	d.create(withGPU("first", gpu.Request{UUIDs: []string{gputest.UUID(0)}}))
	d.act(d.Delete, "first")
	d.create(withGPU("second", gpu.Request{UUIDs: []string{gputest.UUID(0)}}))
	part, _ := d.create(withGPU("part", smallest))
	list := func(name string, want ...string) {
		t.Helper()
		leases, _, err := d.GPULeases(t.Context(), name, 0, "")
		var got []string
		for _, l := range leases {
			got = append(got, fmt.Sprint(l.EnvName, " ", l.EnvDeleted))
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: got %q, %v, want %q", name, got, err, want)
		}
	}
	list("0", "second false", "first true")
	list("", "part false", "second false", "first true")
	leases, next, err := d.GPULeases(t.Context(), "", 1, "")
	if err != nil || next == "" || leases[0].MIG != part.GPURun.Targets[0].MIG || leases[0].MIG == "" {
		t.Errorf("got %+v, %q, %v", leases, next, err)
	}
	// A GPU that has gone is remembered.
	d.act(d.Delete, "second")
	d.stop()
	h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) { return devices[1:], "" })
	d = start(t, h)
	list(gputest.UUID(0), "second true", "first true")
	_, _, err = d.GPULeases(t.Context(), "GPU-never", 0, "")
	d.refusedGPU(err, problem.GPUNotFound)
}

// A start that finds the GPU of its environment failed takes another, and where
// there is none it is refused: the environment is as it was, and says why.
func TestAStartWhoseGPUHasFailed(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	env, _ := d.create(withGPU("one", gpu.Request{}))
	d.create(withGPU("two", gpu.Request{}))
	mine := env.GPUs[0].GPU
	d.act(d.Stop, "one")
	waitFor(t, "the event", func() bool {
		return h.gpus.Happen(gpu.Event{UUID: mine, XID: 79, Fatal: true, Detail: "XID 79: it has fallen off the bus"})
	})
	waitFor(t, "the holder to be told", func() bool { return d.told(env.ID, "XID 79") })
	for range 2 {
		_, op, err := d.Start(t.Context(), runtime.ActionRequest{Environment: "one"})
		if err == nil {
			op = d.done(op)
			t.Fatalf("started by %+v", op)
		}
		d.refusedGPU(err, problem.GPUExhausted)
		if p := problem.Of(err); !strings.Contains(p.Message, "is unhealthy: XID 79") {
			t.Errorf("it says %q", p.Message)
		}
		if now := d.get("one"); now.State != runtime.Stopped || now.Problem != nil || len(now.GPUs) != 1 || now.GPUs[0].GPU != mine {
			t.Errorf("it is %s with %+v, %+v", now.State, now.GPUs, now.Problem)
		}
	}
	d.act(d.Delete, "two")
	if op := d.act(d.Start, "one"); op.State != operation.Succeeded || d.get("one").GPUs[0].GPU == mine {
		t.Errorf("started by %+v with %+v", op, d.get("one").GPUs)
	}
	// One that wants that very GPU is told what to do about it.
	d.act(d.Stop, "one")
	d.act(d.Delete, "one")
	if _, err := d.UndrainGPU(t.Context(), mine, true); err != nil {
		t.Fatal(err)
	}
	env, _ = d.create(withGPU("one", gpu.Request{UUIDs: []string{mine}}))
	d.act(d.Stop, "one")
	h.gpus.Happen(gpu.Event{UUID: mine, XID: 79, Fatal: true, Detail: "XID 79: again"})
	waitFor(t, "the holder to be told", func() bool { return d.told(env.ID, "XID 79: again") })
	_, _, err := d.Start(t.Context(), runtime.ActionRequest{Environment: "one"})
	d.refusedGPU(err, problem.GPUUnhealthy)
	if p := problem.Of(err); !strings.Contains(p.Hint, "reset-health") || !strings.Contains(p.Message, "XID 79: again") {
		t.Errorf("it says %q, %q", p.Message, p.Hint)
	}
}

// A report costs a host without GPUs of NVIDIA nothing: each question starts a
// process there.
func TestReportsOfAHostWithoutGPUs(t *testing.T) {
	h := gpuHost(t)
	h.gpus.Change(func([]gpu.Device) ([]gpu.Device, string) { return nil, "" })
	d := start(t, h)
	d.reconcile(false)
	before := len(h.faults.Calls())
	for range 10 {
		if report := d.ReportGPUs(t.Context()); report.Err != nil || len(report.GPUs) != 0 {
			t.Fatalf("got %+v", report)
		}
	}
	asked := slices.DeleteFunc(h.faults.Calls()[before:], func(call string) bool { return call != "GPUs.Probe" && call != "GPUs.Usage" })
	if len(asked) > 1 { // by the start's own pass
		t.Errorf("its software was asked: %v", asked)
	}
}

func TestReports(t *testing.T) {
	h := gpuHost(t)
	h.inEnvironment = func(pid int, _ string) (bool, error) { return pid == 1, nil }
	d := start(t, h)
	env, _ := d.create(withGPU("one", gpu.Request{}))
	d.create(withGPU("part", smallest))
	d.act(d.Stop, "part")
	mine := env.GPUs[0].GPU
	h.gpus.Use(mine, gpu.Usage{UtilPercent: 7, Processes: []gpu.Process{{PID: 1, MemoryBytes: 5}}})
	report := d.ReportGPUs(t.Context())
	if report.Err != nil || len(report.GPUs) != 3 || report.GPUs[0].Usage == nil || len(report.Holders) != 2 {
		t.Fatalf("got %+v", report)
	}
	one, part := report.Holders[0], report.Holders[1]
	if one.Lease.EnvName != "one" || one.Project != "default" || one.Stats == nil || one.Stats.MemoryBytes != 5 || one.Stats.UtilPercent != 7 {
		t.Errorf("got %+v, %+v", one, one.Stats)
	}
	if part.Lease.EnvName != "part" || part.Lease.MIG == "" || part.Stats != nil {
		t.Errorf("got %+v", part)
	}
	// What cannot be measured, or asked, is not gone.
	d.stop()
	for _, call := range []string{"GPUs.Usage", "GPUs.Probe"} {
		d = start(t, h)
		d.reconcile(false)
		h.faults.FailCall(call, 0, errors.New("no answer"))
		d.look("the failure", func() bool { return d.ReportGPUs(t.Context()).Err != nil })
		if report := d.ReportGPUs(t.Context()); len(report.GPUs) != 3 || len(report.Holders) != 2 || report.GPUs[0].Usage != nil {
			t.Errorf("%s fails: %+v", call, report)
		}
		h.faults.Reset()
		d.stop()
	}
}
