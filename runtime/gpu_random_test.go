package runtime_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
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

// randomLives is how long the lives of daemons go on, and fewestLives how many
// there are on a slow machine.
const (
	randomLives = 8 * time.Second
	fewestLives = 4
)

// lives are daemons of one host, each of which dies amid what it does.
type lives struct {
	*daemon
	random *rand.Rand
	dying  *atomic.Bool
	died   chan struct{}
	die    func() // as SIGKILL has it die
}

// overlapping finds two leases that cannot both be true.
func overlapping(leases []gpu.Lease) error {
	memory, percent := make(map[string]uint64), make(map[string]int)
	for i, l := range leases {
		memory[l.GPU] += l.MemoryBytes
		percent[l.GPU] += l.ComputePercent
		if l.Mode == gpu.VGPU && (memory[l.GPU] > 24<<30 || percent[l.GPU] > 100) {
			return fmt.Errorf("GPU %s is given beyond what it has", l.GPU)
		}
		for _, other := range leases[:i] {
			switch {
			case l.GPU != other.GPU:
			case l.Mode != other.Mode, l.Mode == gpu.Exclusive, l.EnvID == other.EnvID:
				return fmt.Errorf("%+v beside %+v", l, other)
			case l.Mode == gpu.MIGMode && l.Placement.Overlaps(other.Placement):
				return fmt.Errorf("%+v over %+v", l, other)
			}
		}
	}
	return nil
}

// inUse are the leases that running containers say they were started with.
func (h *host) inUse(t *testing.T) (leases []gpu.Lease, instances []string) {
	t.Helper()
	for _, line := range h.engine.Leftovers() {
		id, is := strings.CutPrefix(line, "container ")
		status, err := h.engine.Status(t.Context(), id)
		if !is || err != nil || !status.Running {
			continue
		}
		c, _ := h.engine.Container(id)
		for name, text := range status.Labels {
			var l gpu.Lease
			if strings.HasPrefix(name, "remotegpu.dev/gpu.") {
				if err := json.Unmarshal([]byte(text), &l); err != nil {
					t.Fatal(err)
				}
				leases = append(leases, l)
			}
		}
		if c.GPU != nil {
			for _, variable := range c.GPU.CDI.Env {
				if uuid, is := strings.CutPrefix(variable, "TEST_GPU=MIG-"); is {
					instances = append(instances, uuid)
				}
			}
		}
	}
	return leases, instances
}

// check fails the test when two have what one alone can have, by the books or in
// truth.
func (l *lives) check(when string) {
	l.t.Helper()
	leases, instances := l.host.inUse(l.t)
	if err := overlapping(leases); err != nil {
		l.t.Fatalf("%s processes have %v", when, err)
	}
	slices.Sort(instances)
	if len(slices.Compact(slices.Clone(instances))) != len(instances) {
		l.t.Fatalf("%s processes share instances: %v", when, instances)
	}
	if books, err := l.store.GPUBooks(l.t.Context()); err == nil {
		if err := overlapping(books.Held); err != nil {
			l.t.Fatalf("%s the books have %v", when, err)
		}
	}
}

// settled waits until all operations are done and what was left is removed, and
// compares the books with the driver.
func (l *lives) settled() {
	l.t.Helper()
	ctx := l.t.Context()
	waitFor(l.t, "the operations", func() bool {
		envs, _, err := l.store.Environments(ctx, runtime.Filter{})
		return err == nil && !slices.ContainsFunc(envs, func(e *runtime.Environment) bool { return e.Operation != "" })
	})
	l.reconcile(false)
	var why string
	agree := func() bool {
		l.reconcile(false)
		books, err := l.store.GPUBooks(ctx)
		if err != nil {
			l.t.Fatal(err)
		}
		why = disagreement(&books, l.host.gpus)
		return why == ""
	}
	for deadline := time.Now().Add(20 * time.Second); !agree(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Fatalf("the books and the driver disagree: %s", why)
		}
	}
	l.check("after a reconcile")
	_, instances := l.host.inUse(l.t)
	for _, uuid := range instances {
		if !slices.ContainsFunc(l.host.gpus.Devices(), func(d gpu.Device) bool {
			return slices.ContainsFunc(d.MIG.Instances, func(i gpu.MIGInstance) bool { return i.UUID == "MIG-"+uuid })
		}) {
			l.t.Fatalf("a process has instance %s, which is not there", uuid)
		}
	}
}

// disagreement says what of a driver the books do not explain, or what they want
// and it has not.
func disagreement(books *gpu.Books, driver *gputest.Driver) string {
	devices := driver.Devices()
	for i := range devices {
		d := &devices[i]
		for _, instance := range d.MIG.Instances {
			leased := slices.ContainsFunc(books.Leases(d.UUID), func(l gpu.Lease) bool {
				return l.Placement == instance.Placement && l.Profile == instance.Profile
			})
			kept := slices.ContainsFunc(books.PlannedOn(d.UUID), func(p gpu.Planned) bool { return !p.Remove && p.Of(&instance) })
			if !leased && !kept {
				return fmt.Sprintf("instance %+v of %s is nobody's", instance, d.UUID)
			}
		}
		for _, p := range books.PlannedOn(d.UUID) {
			if _, there := p.Find(d); there == p.Remove || p.Remove {
				return fmt.Sprintf("%+v is not so", p)
			}
		}
	}
	return ""
}

func (l *lives) request() *gpu.Request {
	r := l.random
	req := &gpu.Request{Mode: []gpu.Mode{gpu.Exclusive, gpu.Shared, gpu.MIGMode, gpu.MIGMode, gpu.MIGMode, gpu.VGPU}[r.IntN(6)]}
	switch req.Mode {
	case gpu.MIGMode:
		req.Profile = []string{"1g.5gb", "2g.10gb", "3g.20gb", "7g.40gb"}[r.IntN(4)]
	case gpu.VGPU:
		req.MemoryBytes, req.ComputePercent, req.AllowUnenforced = uint64(1+r.IntN(20))<<30, r.IntN(60), true
	case gpu.Exclusive, gpu.Shared:
		req.Count = 1 + r.IntN(2)
	}
	return req
}

// act does one thing at random. What is refused is fine, what fails by itself is
// not while the daemon lives.
func (l *lives) actAtRandom() {
	ctx, r := l.t.Context(), l.random
	name, partitioned := fmt.Sprintf("env-%d", r.IntN(6)), gputest.UUID(2+r.IntN(2))
	action := runtime.ActionRequest{Environment: name, Force: true}
	var op *operation.Operation
	var err error
	switch r.IntN(14) {
	case 0, 1, 2, 3:
		_, op, err = l.Create(ctx, withGPU(name, *l.request()))
	case 4, 5:
		_, op, err = l.Stop(ctx, action)
	case 6, 7:
		_, op, err = l.Start(ctx, action)
	case 8, 9:
		_, op, err = l.Delete(ctx, action)
	case 10:
		spec := runtime.Spec{GPU: l.request()}
		if r.IntN(3) == 0 {
			spec.GPU = nil
		}
		var updated runtime.Updated
		updated, err = l.Update(ctx, runtime.UpdateRequest{Environment: name, Fields: []string{"spec.gpu"}, Spec: spec, Restart: r.IntN(2) == 0})
		op = updated.Operation
	case 11:
		_, _, err = l.CreateMIG(ctx, partitioned, []string{"1g.5gb", "2g.10gb"}[r.IntN(2)], nil)
	case 12:
		g, getErr := l.GPU(ctx, partitioned, false)
		if err = getErr; err == nil && len(g.MIG.Instances) > 0 {
			err = l.DeleteMIG(ctx, g.MIG.Instances[r.IntN(len(g.MIG.Instances))].UUID)
		}
	case 13:
		if env, getErr := l.Get(ctx, "", name); getErr == nil {
			_ = l.host.engine.Exit(env.ID, runtime.Exit{}) // it may not run
		}
	}
	if l.dying.Load() {
		return
	}
	if err != nil && problem.Of(err).Reason == problem.Internal {
		l.t.Errorf("got %v", err)
	}
	if op != nil && r.IntN(3) > 0 {
		for done := false; !done; {
			select {
			case <-l.died:
				return
			case <-time.After(2 * time.Millisecond):
				now, err := l.store.Operation(ctx, op.ID)
				done = err != nil || now.State.Done() || l.dying.Load()
			}
		}
	}
}

// live begins a life. It ends as SIGKILL ends it: nothing that the daemon calls
// does anything any more, and its database is closed.
func (l *lives) live() {
	l.t.Helper()
	l.daemon, l.died, l.dying = start(l.t, l.host), make(chan struct{}), new(atomic.Bool)
	died, dying, store := l.died, l.dying, l.store
	l.die = sync.OnceFunc(func() {
		dying.Store(true)
		l.host.faults.Kill(errors.New("the daemon is dead"))
		_ = store.Close()
		close(died)
	})
	l.settled()
}

// Whatever is asked for, and wherever the daemon dies: no two environments have
// what one alone can have, no instance is left to nobody, and the books agree
// with the driver when the next daemon has looked.
func TestGPUsOverManyLives(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	h := gpuHost(t)
	h.gpus = gputest.NewDriver(append(gputest.Plain(2), gputest.A100(2, true), gputest.A100(3, true))...)
	h.gpus.Do = h.faults.Do
	h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) {
		for i := range devices {
			devices[i].MIG.ResetNeeded = false
		}
		return devices, ""
	})
	h.gpu.Rules.Enforcers = []gpu.Enforcement{gpu.ByDriver}
	l := &lives{daemon: &daemon{t: t, host: h}, random: rand.New(rand.NewPCG(seed, 6))}
	began, life := time.Now(), 0
	for ; life < fewestLives || time.Since(began) < randomLives; life++ {
		h.gpu.ReleaseOnStop = l.random.IntN(3) == 0
		l.live()
		for n := 2; n < 4 && life == 0; n++ {
			if _, _, err := l.SetMIGMode(t.Context(), gputest.UUID(n), true); err != nil {
				t.Fatal(err)
			}
		}
		var left atomic.Int64 // calls to live for
		left.Store(1 + l.random.Int64N(500))
		die := l.die
		h.faults.Hook(func(string) {
			if left.Add(-1) == 0 {
				die()
			}
		})
		for range 40 {
			l.actAtRandom()
			l.check("in a life")
			select {
			case <-l.died:
			default:
				continue
			}
			break
		}
		l.die()
		h.faults.Hook(nil)
		l.stop()
		h.faults.Kill(nil)
		if l.random.IntN(4) == 0 { // the host boots
			h.engine.Forget()
			h.gpus.Change(func(devices []gpu.Device) ([]gpu.Device, string) {
				for i := range devices {
					devices[i].MIG.Instances = nil
					devices[i].MIG.Enabled = false
				}
				return devices, ""
			})
		}
	}
	t.Logf("%d lives, %d starts, %d instances made and %d removed", life, h.faults.Count("Engine.Start"), h.faults.Count("GPUs.CreateMIG"), h.faults.Count("GPUs.DestroyMIG"))
	l.live()
	envs, _, err := l.store.Environments(t.Context(), runtime.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, env := range envs {
		l.act(l.Delete, env.ID)
	}
	for _, n := range []int{2, 3} {
		g, err := l.GPU(t.Context(), gputest.UUID(n), false)
		if err != nil {
			t.Fatal(err)
		}
		for _, instance := range g.MIG.Instances {
			if err := l.DeleteMIG(t.Context(), instance.UUID); err != nil {
				t.Error(err)
			}
		}
	}
	l.settled()
	l.freeOfGPUs()
	l.holdsNothing()
}
