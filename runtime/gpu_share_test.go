package runtime_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/gputest"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// sharing asks whether the GPU of a share is needed, and keeps the answer.
type sharing struct {
	uuid    string
	needed  bool
	settled []string // GPUs one by one, with whether they were needed

	mu    sync.Mutex
	since time.Time // of what runs; zero: nothing
	pid   int       // of what runs
	fails error     // what Keep fails with
}

func (s *sharing) Since(string) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.since, !s.since.IsZero()
}

func (s *sharing) Runs(_ string, pid int) (bool, error) { return pid == s.pid, nil }

func (s *sharing) begin(at time.Time, fails error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.since, s.fails = at, fails
}

func (s *sharing) Settle(ctx context.Context, uuid string, needed func(context.Context, string) (bool, error)) error {
	is, err := needed(ctx, uuid)
	s.settled = append(s.settled, fmt.Sprint(uuid, " ", is))
	return err
}

func (s *sharing) Keep(ctx context.Context, needed func(context.Context, string) (bool, error)) (err error) {
	s.needed, err = needed(ctx, s.uuid)
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(err, s.fails)
}

// What a GPU is shared by is there while somebody who shares it has a process.
func TestWhatSharesTakeIsKeptWhileSomebodyRuns(t *testing.T) {
	h := gpuHost(t)
	kept := &sharing{}
	h.gpu.Sharing, h.gpu.Rules.Enforcers = kept, []gpu.Enforcement{gpu.ByMPS}
	d := start(t, h)
	share := gpu.Request{Mode: gpu.VGPU, MemoryBytes: 1 << 30, ComputePercent: 30}
	env, op := d.create(withGPU("one", share))
	if op.State != operation.Succeeded {
		t.Fatalf("created by %+v", op)
	}
	want := gpu.Share{Enforcement: gpu.ByMPS, MemoryBytes: 1 << 30, ComputePercent: 30}
	if got := env.GPURun.Targets[0].Share; got != want {
		t.Errorf("share %+v, want %+v", got, want)
	}
	kept.uuid = env.GPUs[0].GPU
	pass := func() bool {
		t.Helper()
		if err := d.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		return kept.needed
	}
	if !pass() {
		t.Error("it is not needed though its holder runs")
	}
	d.act(d.Stop, "one")
	if pass() {
		t.Error("it is needed though nobody runs")
	}
	d.act(d.Start, "one")
	whole, _ := d.create(withGPU("two", gpu.Request{}))
	if whole.GPURun.Targets[0].Share != (gpu.Share{}) {
		t.Errorf("a whole GPU is a share: %+v", whole.GPURun.Targets)
	}
	if !pass() {
		t.Error("it is not needed though its holder runs again")
	}
	kept.uuid = whole.GPUs[0].GPU
	if pass() {
		t.Error("a GPU that nobody shares needs it")
	}
}

// Nobody is given a GPU that is still closed to all but those who shared it.
func TestWhatSharesTakeIsGoneBeforeTheNextHas(t *testing.T) {
	h := gpuHost(t)
	kept := &sharing{}
	h.gpu.Sharing, h.gpu.Rules.Enforcers = kept, []gpu.Enforcement{gpu.ByMPS}
	d := start(t, h)
	uuid := gputest.UUID(0)
	settled := func(what, want string) {
		t.Helper()
		if len(kept.settled) != 1 || kept.settled[0] != uuid+" "+want {
			t.Errorf("%s: %q, want it needed: %s", what, kept.settled, want)
		}
		kept.settled = nil
	}
	d.create(withGPU("one", gpu.Request{Mode: gpu.Shared, UUIDs: []string{uuid}}))
	settled("the first start", "false")
	d.create(withGPU("two", gpu.Request{Mode: gpu.Shared, UUIDs: []string{uuid}}))
	settled("a start beside another", "true")
	d.act(d.Stop, "one")
	settled("a stop beside another", "true")
	d.act(d.Stop, "two")
	settled("the last stop", "false")
	d.act(d.Start, "two")
	settled("the first start again", "false")
	for _, name := range []string{"one", "two"} {
		d.remove(name)
	}
	kept.settled = kept.settled[1:]
	settled("the last delete", "false")
	d.create(withGPU("alone", gpu.Request{UUIDs: []string{uuid}}))
	settled("the next, who has it alone", "false")
}

// Who is the first to share a GPU finds nothing of others on it, however it is
// shared; whoever comes next is beside somebody.
func TestTheFirstToShareAGPUFindsItClean(t *testing.T) {
	h := gpuHost(t)
	kept := &sharing{pid: 50}
	h.gpu.Sharing, h.gpu.Rules.Enforcers = kept, []gpu.Enforcement{gpu.ByMPS}
	var mu sync.Mutex
	mine := map[int]string{}
	h.inEnvironment = func(pid int, envID string) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		return mine[pid] != "" && (envID == "" || envID == mine[pid]), nil
	}
	d := start(t, h)
	uuid := gputest.UUID(0)
	use := func(processes ...gpu.Process) {
		h.gpus.Use(uuid, gpu.Usage{MemoryUsed: 10 << 30, Processes: processes})
	}
	inUse := func(what string, op *operation.Operation, want bool) {
		t.Helper()
		if refused := op.State == operation.Failed && op.Problem.Reason == string(problem.GPUInUse); refused != want {
			t.Errorf("%s: %s %+v, want it refused: %v", what, op.State, op.Problem, want)
		}
	}
	for name, req := range map[string]gpu.Request{
		"shared": {Mode: gpu.Shared, UUIDs: []string{uuid}}, "mps": {Mode: gpu.VGPU, MemoryBytes: 1 << 30, UUIDs: []string{uuid}},
	} {
		use(gpu.Process{PID: 4711})
		_, op := d.create(withGPU("one", req))
		inUse(name+": a stranger", op, true)
		d.act(d.Delete, "one")
		use()
		_, op = d.create(withGPU("one", req))
		inUse(name+": memory", op, true)
		d.act(d.Delete, "one")
		use(gpu.Process{PID: 4711, Graphics: true})
		_, op = d.create(withGPU("one", req))
		inUse(name+": the host's desktop", op, false)
		use(gpu.Process{PID: 4711})
		_, op = d.create(withGPU("two", req))
		inUse(name+": beside another", op, false)
		// They keep their leases while they are stopped, and whoever starts is the first.
		d.act(d.Stop, "one")
		d.act(d.Stop, "two")
		inUse(name+": a stranger since", d.act(d.Start, "two"), true)
		// What another environment left that is gone.
		mu.Lock()
		mine[4712] = "gone"
		mu.Unlock()
		use(gpu.Process{PID: 4712, Graphics: true})
		inUse(name+": a desktop that was left", d.act(d.Start, "one"), true)
		h.gpus.Use(uuid, gpu.Usage{})
		inUse(name+": nobody", d.act(d.Start, "one"), false)
		d.remove("one")
		d.remove("two")
	}
	// Of two that start at a time each lets the other be, and what both share it by.
	reached, release := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	h.faults.Hook(func(method string) {
		if method == "Engine.Start" && first.CompareAndSwap(false, true) {
			close(reached)
			<-release
		}
	})
	req := gpu.Request{Mode: gpu.Shared, UUIDs: []string{uuid}}
	env, op, err := d.Create(t.Context(), withGPU("one", req))
	if err != nil {
		t.Fatal(err)
	}
	<-reached
	mu.Lock()
	mine[40] = env.ID
	mu.Unlock()
	use(gpu.Process{PID: 40}, gpu.Process{PID: 50})
	_, second := d.create(withGPU("two", req))
	inUse("two at a time", second, false)
	close(release)
	if op = d.done(op); op.State != operation.Succeeded {
		t.Errorf("got %+v", op.Problem)
	}
}

// Who waits for a GPU to be free keeps no worker from others, and no gate.
func TestWaitingForAGPUTakesNoWorker(t *testing.T) {
	h := gpuHost(t)
	h.workers, h.gpu.HandOver = 1, time.Minute
	d := start(t, h)
	uuid := gputest.UUID(0)
	h.gpus.Use(uuid, gpu.Usage{Processes: []gpu.Process{{PID: 4711}}})
	_, waiting, err := d.Create(t.Context(), withGPU("waits", gpu.Request{UUIDs: []string{uuid}}))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"plain", "other"} {
		req := runtime.CreateRequest{Name: name, Spec: runtime.Spec{Image: image}}
		if name == "other" {
			req.Spec.GPU = &gpu.Request{UUIDs: []string{gputest.UUID(1)}}
		}
		if _, op := d.create(req); op.State != operation.Succeeded {
			t.Errorf("%s: %+v", name, op.Problem)
		}
	}
	if op, err := d.store.Operation(t.Context(), waiting.ID); err != nil || op.State != operation.Running {
		t.Errorf("it does not wait: %+v, %v", op, err)
	}
	h.gpus.Use(uuid, gpu.Usage{})
	if op := d.done(waiting); op.State != operation.Succeeded {
		t.Errorf("got %+v", op.Problem)
	}
}

// Those who run are told once when what they share a GPU by has ended under them.
func TestWhoSharesIsToldThatItWasInterrupted(t *testing.T) {
	h := gpuHost(t)
	kept := &sharing{since: time.Now().Add(-time.Hour)}
	h.gpu.Sharing, h.gpu.Rules.Enforcers = kept, []gpu.Enforcement{gpu.ByMPS}
	d := start(t, h)
	env, _ := d.create(withGPU("one", gpu.Request{Mode: gpu.VGPU, MemoryBytes: 1 << 30, UUIDs: []string{gputest.UUID(0)}}))
	alone, _ := d.create(withGPU("alone", gpu.Request{UUIDs: []string{gputest.UUID(1)}}))
	kept.uuid = env.GPUs[0].GPU
	told := func(id string) (count int) {
		_, entries := d.history(id)
		for _, entry := range entries {
			if entry.Kind == runtime.HappenedGPUFail && strings.Contains(entry.Message, "started again") {
				count++
			}
		}
		return count
	}
	d.reconcile(false)
	if told(env.ID) != 0 {
		t.Error("it is told of what has not happened")
	}
	kept.begin(time.Now().Add(time.Second), nil)
	for range 2 {
		d.reconcile(false)
	}
	if told(env.ID) != 1 || told(alone.ID) != 0 {
		t.Errorf("it was told %d times, another %d times", told(env.ID), told(alone.ID))
	}
	kept.begin(time.Now().Add(2*time.Second), errors.New("it does not start"))
	if err := d.Reconcile(t.Context()); err != nil {
		t.Error(err) // GPUs are looked after beside
	}
	if got := conditionOf(d, problem.GPUSharingFailed); !strings.Contains(got, "does not start") || told(env.ID) != 2 {
		t.Errorf("condition %q, told %d times", got, told(env.ID))
	}
	kept.begin(time.Now(), nil)
	d.reconcile(false)
	if got := conditionOf(d, problem.GPUSharingFailed); got != "" || told(env.ID) != 2 {
		t.Errorf("condition %q, told %d times", got, told(env.ID))
	}
}

// MPS was turned off while environments run: what ran for it ends, they are told,
// and do not pass for being held to their share.
func TestSharingThatWasTurnedOff(t *testing.T) {
	for _, enabled := range []bool{true, false} {
		h := gpuHost(t)
		driver := h.gpus
		kept := &sharing{since: time.Now()}
		h.gpu.Sharing, h.gpu.Rules.Enforcers = kept, []gpu.Enforcement{gpu.ByMPS}
		d := start(t, h)
		env, _ := d.create(withGPU("one", gpu.Request{Mode: gpu.VGPU, MemoryBytes: 1 << 30}))
		d.stop()
		kept = &sharing{uuid: env.GPUs[0].GPU} // which has ended what there was
		h.gpu.Sharing, h.gpu.Rules.Enforcers = kept, nil
		if !enabled {
			h.gpus = nil
		}
		d = start(t, h)
		waitFor(t, "it to be told", func() bool {
			_, entries := d.history(env.ID)
			return slices.ContainsFunc(entries, func(e runtime.History) bool { return strings.Contains(e.Message, "turned off on this node") })
		})
		if enabled {
			waitFor(t, "the loss", func() bool { return strings.Contains(d.get("one").GPURun.Lost, "turned off on this node") })
		}
		d.stop()
		h.gpus = driver
	}
}

// After the database was lost, containers run on: what they share a GPU by stays
// while they do, and whoever comes next is beside them.
func TestSharingWithContainersThatNobodyKnows(t *testing.T) {
	h := gpuHost(t)
	kept := &sharing{}
	h.gpu.Sharing, h.gpu.Rules.Enforcers = kept, []gpu.Enforcement{gpu.ByMPS}
	uuid := gputest.UUID(0)
	share := gpu.Request{Mode: gpu.VGPU, MemoryBytes: 1 << 30, UUIDs: []string{uuid}}
	d := start(t, h)
	lost, _ := d.create(withGPU("one", share))
	d.stop()
	files, err := filepath.Glob(filepath.Join(h.dir, "node.db*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	kept = &sharing{uuid: uuid}
	h.gpu.Sharing = kept
	d = start(t, h)
	d.reconcile(false)
	if !kept.needed {
		t.Error("what a container uses that nobody knows is ended")
	}
	h.gpus.Use(uuid, gpu.Usage{Processes: []gpu.Process{{PID: 4711}}})
	if _, op := d.create(withGPU("two", share)); op.State != operation.Succeeded {
		t.Errorf("got %+v", op.Problem)
	}
	d.remove("two")
	if err := h.engine.Delete(t.Context(), lost.ID); err != nil {
		t.Fatal(err)
	}
	d.reconcile(false)
	if kept.needed {
		t.Error("what nobody uses any more is kept")
	}
}

// An environment is the client of one MPS daemon, which serves one GPU: it is told
// so at once, not when its process does not start.
func TestSeveralGPUsByMPSAreRefusedAtOnce(t *testing.T) {
	h := gpuHost(t)
	h.gpu.Rules.SharedBy = gpu.MPS
	d := start(t, h)
	refused := func(err error) {
		t.Helper()
		d.refusedGPU(err, problem.GPUNotEnforceable)
		if p := problem.Of(err); p == nil || p.Field != "spec.gpu.count" {
			t.Errorf("got %+v", p)
		}
	}
	two := gpu.Request{Mode: gpu.Shared, Count: 2}
	_, _, err := d.Create(t.Context(), withGPU("one", two))
	refused(err)
	d.create(withGPU("one", gpu.Request{Mode: gpu.Shared}))
	change := runtime.UpdateRequest{Environment: "one", Fields: []string{"spec.gpu"}, Spec: runtime.Spec{GPU: &two}}
	_, err = d.Update(t.Context(), change)
	refused(err)
	d.act(d.Stop, "one")
	_, err = d.Update(t.Context(), change)
	refused(err)
	// One of before MPS is told when it is to start.
	d.stop()
	h.gpu.Rules.SharedBy = gpu.TimeSlicing
	d = start(t, h)
	if _, op := d.update(change); op.State != operation.Succeeded {
		t.Errorf("in turns: %+v", op.Problem)
	}
	d.stop()
	h.gpu.Rules.SharedBy = gpu.MPS
	d = start(t, h)
	_, _, err = d.Start(t.Context(), runtime.ActionRequest{Environment: "one"})
	refused(err)
	if env := d.get("one"); env.State != runtime.Stopped || len(env.GPUs) != 2 {
		t.Errorf("a start that was refused leaves it %s with %+v", env.State, env.GPUs)
	}
}

// One worker is enough for many who take and give back GPUs at a time, though each
// waits for the others to decide.
func TestOneWorkerIsEnoughForGPUs(t *testing.T) {
	h := gpuHost(t)
	h.workers, h.gpu.ReleaseOnStop, h.gpu.Rules.MaxShared = 1, true, 8
	d := start(t, h)
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			name := fmt.Sprint("env-", i)
			if _, op := d.create(withGPU(name, gpu.Request{Mode: gpu.Shared})); op.State != operation.Succeeded {
				t.Errorf("%s: %+v", name, op.Problem)
			}
			for range 3 {
				for _, do := range []func(context.Context, runtime.ActionRequest) (*runtime.Environment, *operation.Operation, error){d.Stop, d.Start} {
					if op := d.act(do, name); op.State != operation.Succeeded {
						t.Errorf("%s: %+v", name, op.Problem)
					}
				}
			}
		})
	}
	group.Wait()
}
