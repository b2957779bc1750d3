package runtime_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/gputest"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// lose does what a reboot does to a GPU of Hopper's: instances and mode are gone.
func (h *host) lose(mode bool) {
	h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) {
		devices[2].MIG.Instances = nil
		devices[2].MIG.Enabled = devices[2].MIG.Enabled && mode
		return devices, ""
	})
}

// hopperHost is gpuHost with a GPU whose MIG mode changes without a reset.
func hopperHost(t *testing.T) *host {
	t.Helper()
	h := gpuHost(t)
	h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) {
		devices[2].MIG.ResetNeeded, devices[2].MIG.Enabled = false, false
		return devices, ""
	})
	return h
}

// partitioned is the GPU that can be, as the daemon has it.
func (d *daemon) partitioned() runtime.GPU {
	d.t.Helper()
	g, err := d.GPU(d.t.Context(), gputest.UUID(2), false)
	if err != nil {
		d.t.Fatal(err)
	}
	return g
}

func TestWhatAnAdministratorMadeIsMadeAgain(t *testing.T) {
	h := hopperHost(t)
	d := start(t, h)
	uuid := gputest.UUID(2)
	if _, _, err := d.SetMIGMode(t.Context(), uuid, true); err != nil {
		t.Fatal(err)
	}
	made, g, err := d.CreateMIG(t.Context(), uuid, "2g.10gb", &gpu.Span{Start: 2})
	if err != nil || !g.Kept(&made) {
		t.Fatalf("made %+v on %+v, %v", made, g, err)
	}
	holder := gpu.Request{Mode: gpu.MIGMode, Profile: "2g.10gb"}
	env, _ := d.create(withGPU("holder", holder))
	if l := env.GPUs[0]; !l.Static || l.MIG != made.UUID {
		t.Fatalf("it has %+v", l)
	}
	d.create(withGPU("own", smallest))
	// The host boots. Others do not get the GPU whole before it is partitioned
	// again, and who has an instance finds it in its place.
	reboot := func(mode bool) {
		t.Helper()
		for _, name := range []string{"holder", "own"} {
			if d.get(name).State == runtime.Running {
				d.act(d.Stop, name)
			}
		}
		d.stop()
		h.lose(mode)
		d = start(t, h)
	}
	again := func() {
		t.Helper()
		waitFor(t, "the instance", func() bool { return h.gpus.Instances()["2/2"] == "2g.10gb" })
	}
	for _, mode := range []bool{false, true} {
		reboot(mode)
		again()
		for _, name := range []string{"holder", "own"} {
			if op := d.act(d.Start, name); op.State != operation.Succeeded {
				t.Fatalf("%s: %+v", name, op.Problem)
			}
		}
		if l := d.get("holder").GPUs[0]; l.MIG == made.UUID || l.MIG == "" || l.Placement.Start != 2 {
			t.Errorf("it has %+v", l)
		}
		if len(h.gpus.Instances()) != 2 || conditionOf(d, problem.GPUPartitionMissing) != "" {
			t.Errorf("instances are %v, condition %q", h.gpus.Instances(), conditionOf(d, problem.GPUPartitionMissing))
		}
	}
	// While somebody uses it the mode is left alone, and what is missing is told.
	h.gpus.Use(uuid, gpu.Usage{Processes: []gpu.Process{{PID: 4711}}})
	reboot(false)
	waitFor(t, "the condition", func() bool { return strings.Contains(conditionOf(d, problem.GPUPartitionMissing), "4711") })
	if g := d.partitioned(); !g.WantsMIG || !strings.Contains(g.MIGProblem, "4711") || len(g.Planned) != 1 || g.Planned[0].UUID != "" || g.Planned[0].Problem != "MIG is off" {
		t.Errorf("got %+v", g)
	}
	if op := d.act(d.Start, "own"); op.State != operation.Failed || op.Problem.Reason != string(problem.GPUModeConflict) || !strings.Contains(op.Problem.Message, "4711") {
		t.Errorf("got %+v", op.Problem)
	}
	_, _, err = d.Create(t.Context(), withGPU("whole", gpu.Request{UUIDs: []string{uuid}}))
	d.refusedGPU(err, problem.GPUModeConflict)
	h.gpus.Use(uuid, gpu.Usage{})
	if op := d.act(d.Start, "own"); op.State != operation.Succeeded { // it need not wait for a pass
		t.Errorf("got %+v", op.Problem)
	}
	again()
	// What others put in its place is theirs.
	reboot(true)
	again()
	d.stop()
	h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) {
		devices[2].MIG.Instances = []gpu.MIGInstance{{UUID: "MIG-theirs", Profile: "4g.20gb", Placement: gpu.Span{Start: 0, Size: 4}}}
		return devices, ""
	})
	d = start(t, h)
	waitFor(t, "the condition", func() bool { return strings.Contains(conditionOf(d, problem.GPUPartitionMissing), "MIG-theirs") })
	d.refusedGPU(d.DeleteMIG(t.Context(), uuid+":2"), problem.GPUInUse)
	d.act(d.Delete, "holder")
	d.refusedGPU(d.DeleteMIG(t.Context(), uuid+":0"), problem.MIGInstanceNotFound)
	if err := d.DeleteMIG(t.Context(), uuid+":2"); err != nil {
		t.Fatal(err)
	}
	d.act(d.Delete, "own")
	if err := d.DeleteMIG(t.Context(), "MIG-theirs"); err != nil {
		t.Fatal(err)
	}
	d.reconcile(false)
	waitFor(t, "the end of the condition", func() bool { return conditionOf(d, problem.GPUPartitionMissing) == "" })
	d.freeOfGPUs()
	// What was turned off stays off.
	if _, _, err := d.SetMIGMode(t.Context(), uuid, false); err != nil {
		t.Fatal(err)
	}
	d.stop()
	d = start(t, h)
	d.reconcile(false)
	if g := d.partitioned(); g.WantsMIG || g.MIG.Enabled {
		t.Errorf("got %+v", g)
	}
}

// A failure leaves planned what was before, and a daemon that dies after it has
// written down what is to be done has it done by the next one.
func TestPartitionsAreJournaled(t *testing.T) {
	h := hopperHost(t)
	d := start(t, h)
	uuid, ctx := gputest.UUID(2), t.Context()
	planned := func() (mig bool, planned []gpu.Planned) {
		t.Helper()
		books, err := d.store.GPUBooks(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return len(books.MIG) > 0, books.Planned
	}
	h.faults.FailCall("GPUs.SetMIGMode", 1, errors.New("no"))
	if _, _, err := d.SetMIGMode(ctx, uuid, true); err == nil {
		t.Error("a driver that fails is not told of")
	}
	if mig, _ := planned(); mig {
		t.Error("what failed is planned")
	}
	if err := d.store.PlanMIG(ctx, uuid, true); err != nil {
		t.Fatal(err)
	}
	wanted := gpu.Planned{GPU: uuid, Profile: "3g.20gb", Placement: gpu.Span{Start: 4, Size: 4}, CreatedAt: time.Now()}
	if err := d.store.PlanInstance(ctx, wanted); err != nil {
		t.Fatal(err)
	}
	d.stop()
	d = start(t, h)
	waitFor(t, "the instance", func() bool { return h.gpus.Instances()["2/4"] == "3g.20gb" })
	h.faults.FailCall("GPUs.CreateMIG", 1, errors.New("no"))
	if _, _, err := d.CreateMIG(ctx, uuid, "1g.5gb", nil); err == nil {
		t.Error("a driver that fails is not told of")
	}
	h.faults.FailCall("GPUs.DestroyMIG", 1, errors.New("no"))
	if err := d.DeleteMIG(ctx, d.partitioned().MIG.Instances[0].UUID); err == nil {
		t.Error("a driver that fails is not told of")
	}
	if mig, left := planned(); !mig || len(left) != 1 || left[0].Remove || left[0].Profile != "3g.20gb" {
		t.Errorf("planned is %v %+v", mig, left)
	}
	wanted.Remove = true
	if err := d.store.PlanInstance(ctx, wanted); err != nil {
		t.Fatal(err)
	}
	d.stop()
	d = start(t, h)
	waitFor(t, "its removal", func() bool { _, left := planned(); return len(left) == 0 && len(h.gpus.Instances()) == 0 })
}

// To give back an instance takes no driver.
func TestInstancesAreGivenBackWithoutADriver(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	d.create(withGPU("one", smallest))
	d.act(d.Stop, "one")
	h.faults.FailCall("GPUs.Probe", 0, errors.New("no answer"))
	none := func() {
		t.Helper()
		waitFor(t, "the inventory to be out of date", func() bool {
			_, found, err := d.GPUs(t.Context(), false)
			return err == nil && len(found.Notes) > 0
		})
	}
	waitFor(t, "the GPUs to be watched", func() bool { return h.gpus.Happen(gpu.Event{UUID: gputest.UUID(2), XID: 31}) })
	none()
	if _, op := d.update(runtime.UpdateRequest{Environment: "one", Fields: []string{"spec.gpu"}}); op.State != operation.Succeeded {
		t.Fatalf("updated by %+v", op.Problem)
	}
	if len(d.holders()) != 0 || len(h.gpus.Instances()) != 1 {
		t.Errorf("held %v, instances %v", d.holders(), h.gpus.Instances())
	}
	h.faults.Reset()
	// Its place is nobody's until it has gone.
	whole := gpu.Request{Mode: gpu.MIGMode, Profile: "7g.40gb"}
	h.faults.FailCall("GPUs.DestroyMIG", 0, errors.New("not now"))
	_, _, err := d.Create(t.Context(), withGPU("whole", whole))
	d.refusedGPU(err, problem.GPUExhausted)
	if !strings.Contains(err.Error(), "to be removed") {
		t.Errorf("got %v", err)
	}
	h.faults.Reset()
	d.reconcile(false)
	waitFor(t, "its removal", func() bool { return len(h.gpus.Instances()) == 0 })
	d.create(withGPU("whole", whole))
	d.act(d.Delete, "whole")
	d.stop()
	// So with a node that takes GPUs back from what stops.
	h.gpu.ReleaseOnStop = true
	d = start(t, h)
	d.create(withGPU("two", smallest))
	h.faults.FailCall("GPUs.Probe", 0, errors.New("no answer"))
	waitFor(t, "the GPUs to be watched", func() bool { return h.gpus.Happen(gpu.Event{UUID: gputest.UUID(2), XID: 31}) })
	none()
	if op := d.act(d.Stop, "two"); op.State != operation.Succeeded || len(d.holders()) != 0 {
		t.Errorf("stopped by %+v, held %v", op.Problem, d.holders())
	}
	h.faults.Reset()
	d.reconcile(false)
	waitFor(t, "its removal", func() bool { return len(h.gpus.Instances()) == 0 })
}

// Containers of a database that was lost hold what they were started with until
// they have gone.
func TestGPUsOfUnknownContainers(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	alone, _ := d.create(withGPU("alone", gpu.Request{UUIDs: []string{"0"}}))
	part, _ := d.create(withGPU("part", smallest))
	d.stop()
	h.dir = t.TempDir() // the database is lost
	d = start(t, h)
	_, _, err := d.Create(t.Context(), withGPU("one", gpu.Request{UUIDs: []string{"0"}}))
	d.refusedGPU(err, problem.GPUExhausted)
	if !strings.Contains(err.Error(), alone.ID) {
		t.Errorf("it does not say who has it: %v", err)
	}
	_, _, err = d.Create(t.Context(), withGPU("one", gpu.Request{UUIDs: []string{"0"}, Mode: gpu.Shared}))
	d.refusedGPU(err, problem.GPUExhausted)
	_, _, err = d.Create(t.Context(), withGPU("one", gpu.Request{Mode: gpu.MIGMode, Profile: "7g.40gb"}))
	d.refusedGPU(err, problem.GPUExhausted)
	d.refusedGPU(d.DeleteMIG(t.Context(), d.partitioned().MIG.Instances[0].UUID), problem.GPUInUse)
	if other, op := d.create(withGPU("other", smallest)); op.State != operation.Succeeded || other.GPUs[0].Static || other.GPUs[0].Placement == part.GPUs[0].Placement {
		t.Errorf("it has %+v, by %+v", other.GPUs, op.Problem)
	}
	g, err := d.GPU(t.Context(), "0", false)
	if err != nil || len(g.Leases) != 1 || g.Leases[0].EnvID != alone.ID {
		t.Errorf("got %+v, %v", g, err)
	}
	// Somebody removes them by hand: nobody waits for a pass.
	for _, id := range []string{alone.ID, part.ID} {
		if err := h.engine.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if _, op := d.create(withGPU("one", gpu.Request{UUIDs: []string{"0"}})); op.State != operation.Succeeded {
		t.Errorf("got %+v", op.Problem)
	}
}

// A database that was restored as it was before knows the environment, not what
// it has had since.
func TestGPUsOfARestoredDatabase(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	env, _ := d.create(withGPU("one", gpu.Request{UUIDs: []string{"0"}}))
	if _, err := d.store.ChangeGPUs(t.Context(), env.ID, func(books gpu.Books) (gpu.Change, error) {
		return gpu.Change{Drop: books.Held}, nil
	}, func(*runtime.Environment) error { return nil }); err != nil {
		t.Fatal(err)
	}
	d.reconcile(false)
	two := withGPU("two", gpu.Request{UUIDs: []string{"0"}})
	_, _, err := d.Create(t.Context(), two)
	d.refusedGPU(err, problem.GPUExhausted)
	// Another name takes nothing from what its container tells.
	if _, err := d.Rename(t.Context(), runtime.RenameRequest{Environment: "one", Name: "uno"}); err != nil {
		t.Fatal(err)
	}
	d.reconcile(false)
	_, _, err = d.Create(t.Context(), two)
	d.refusedGPU(err, problem.GPUExhausted)
	d.act(d.Stop, "uno")
	if _, op := d.create(two); op.State != operation.Succeeded {
		t.Errorf("got %+v", op.Problem)
	}
}

// What an environment held at a backup may be another's since, which the restored
// database does not know: nobody is started with it, nor is it taken away.
func TestGPUsThatOthersHaveSinceABackup(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	names := []string{"alone", "part"}
	d.create(withGPU("alone", gpu.Request{UUIDs: []string{"0"}}))
	before, _ := d.create(withGPU("part", smallest))
	for _, name := range names {
		d.act(d.Stop, name)
	}
	d.stop()
	backup := t.TempDir()
	if err := os.CopyFS(backup, os.DirFS(h.dir)); err != nil {
		t.Fatal(err)
	}
	d = start(t, h)
	for _, name := range names {
		if _, op := d.update(runtime.UpdateRequest{Environment: name, Fields: []string{"spec.gpu"}}); op.State != operation.Succeeded {
			t.Fatalf("changed by %+v", op.Problem)
		}
	}
	waitFor(t, "the instance to go", func() bool { d.reconcile(false); return len(h.gpus.Instances()) == 0 })
	d.create(withGPU("other", gpu.Request{UUIDs: []string{"0"}}))
	if since, _ := d.create(withGPU("others", smallest)); since.GPUs[0].Placement != before.GPUs[0].Placement {
		t.Fatalf("it has another place: %+v", since.GPUs)
	}
	d.stop()
	h.dir = backup
	d = start(t, h)
	_, _, err := d.Start(t.Context(), runtime.ActionRequest{Environment: "alone"})
	d.refusedGPU(err, problem.GPUExhausted)
	if op := d.act(d.Start, "part"); op.State != operation.Succeeded {
		t.Fatalf("started by %+v", op.Problem)
	}
	if now := d.get("part").GPUs[0]; now.Placement.Overlaps(before.GPUs[0].Placement) {
		t.Errorf("it has %+v, which another container has", now)
	}
	d.reconcile(false)
	if left := h.gpus.Instances(); len(left) != 2 {
		t.Errorf("instances are %v", left)
	}
}

func TestADrainedGPUIsNotWatched(t *testing.T) {
	h := hopperHost(t)
	d := start(t, h)
	watched := func(n int) bool { return h.gpus.Happen(gpu.Event{UUID: gputest.UUID(n), XID: 31}) }
	waitFor(t, "the GPUs to be watched", func() bool { return watched(0) && watched(1) && watched(2) })
	if _, err := d.DrainGPU(t.Context(), "1", ""); err != nil || watched(1) {
		t.Errorf("a drained GPU is watched, %v", err)
	}
	waitFor(t, "the others to be watched", func() bool { return watched(0) && watched(2) })
	if watched(1) {
		t.Error("a drained GPU is watched")
	}
	for _, name := range []string{"0", "2"} {
		if _, err := d.DrainGPU(t.Context(), name, ""); err != nil || watched(0) {
			t.Errorf("a drained GPU is watched, %v", err)
		}
	}
	if _, err := d.UndrainGPU(t.Context(), "1", false); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "one to be watched", func() bool { return watched(1) })
	if watched(0) || watched(2) {
		t.Error("a drained GPU is watched")
	}
	// One that waits for its reset is left alone too, until that was done.
	h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) {
		devices[2].MIG.ResetNeeded = true
		return devices, ""
	})
	for _, name := range []string{"0", "2"} {
		if _, err := d.UndrainGPU(t.Context(), name, false); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "the GPUs to be watched", func() bool { return watched(0) && watched(1) && watched(2) })
	if reset, _, err := d.SetMIGMode(t.Context(), "2", true); err != nil || !reset || watched(2) {
		t.Errorf("a GPU that waits for a reset is watched, %v %v", reset, err)
	}
	h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) {
		devices[2].MIG.Pending, devices[2].MIG.Enabled = false, true
		return devices, ""
	})
	waitFor(t, "it to be watched", func() bool { _, err := d.ReconcileNow(t.Context(), false); return err == nil && watched(2) })
}

// A desktop on an instance that cannot draw is told so.
func TestADesktopOnAnInstance(t *testing.T) {
	h := gpuHost(t)
	d := start(t, h)
	req := withGPU("desk", smallest)
	req.Spec.Desktop = &runtime.Desktop{}
	env, op := d.create(req)
	if op.State != operation.Succeeded || !strings.Contains(strings.Join(env.GPUWarnings(), " "), "cannot draw") {
		t.Errorf("warnings are %v, by %+v", env.GPUWarnings(), op.Problem)
	}
	plain, _ := d.create(withGPU("plain", smallest))
	req.Name, req.Spec.GPU = "knows", &gpu.Request{Mode: gpu.MIGMode, Profile: "1g.5gb", Capabilities: []gpu.Capability{gpu.Compute}}
	knows, _ := d.create(req)
	if len(plain.GPUWarnings())+len(knows.GPUWarnings()) > 0 {
		t.Errorf("warnings are %v and %v", plain.GPUWarnings(), knows.GPUWarnings())
	}
}

// What was planned on a GPU that has been replaced can be taken back.
func TestPlansOfAGPUThatHasGone(t *testing.T) {
	h := hopperHost(t)
	d := start(t, h)
	uuid := gputest.UUID(2)
	if _, _, err := d.SetMIGMode(t.Context(), uuid, true); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.CreateMIG(t.Context(), uuid, "2g.10gb", nil); err != nil {
		t.Fatal(err)
	}
	d.stop()
	h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) { return devices[:2], "" })
	d = start(t, h)
	waitFor(t, "the condition", func() bool { return conditionOf(d, problem.GPUPartitionMissing) != "" })
	if _, _, err := d.SetMIGMode(t.Context(), uuid, false); err != nil {
		t.Fatal(err)
	}
	d.reconcile(false)
	waitFor(t, "the end of the condition", func() bool { return conditionOf(d, problem.GPUPartitionMissing) == "" })
	_, _, err := d.SetMIGMode(t.Context(), uuid, false)
	d.refusedGPU(err, problem.GPUNotFound)
}
