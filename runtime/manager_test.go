package runtime_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

func TestLife(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, op := d.create(full("desk"))
	if op.State != operation.Succeeded || env.State != runtime.Running || !env.Held || env.Operation != "" || len(env.Ports) != 2 || !env.Address.IsValid() {
		t.Fatalf("created: %+v by %+v", env, op)
	}
	if env.Spec.Resources.Pids != runtime.DefaultPids || env.Spec.Resources.ShmBytes != runtime.DefaultDesktopShm || env.Spec.Desktop.Width != 1920 || env.Spec.Hostname != "desk" {
		t.Errorf("defaults are not filled in: %+v", env.Spec)
	}
	for _, mapping := range env.Ports {
		if mapping.Status != port.Active {
			t.Errorf("mapping is %s, want active: %+v", mapping.Status, mapping)
		}
	}
	if got := h.networks.Published(env.ID); len(got) != 2 {
		t.Errorf("published: %v", got)
	}
	container, _ := h.engine.Container(env.ID)
	if !slices.Contains(container.Env, "A=b") || !slices.Contains(container.Env, "VNC_RESOLUTION=1920x1080") || container.Hostname != "desk" || len(container.Mounts) != 5 {
		t.Errorf("container: %+v", container)
	}
	for _, span := range []string{"span.prepare", "span.network", "span.container", "span.start", "span.publish"} {
		if op.Result[span] == "" {
			t.Errorf("the operation does not say how long %s took: %v", span, op.Result)
		}
	}
	h.desktops.Draw()
	waitFor(t, "the desktop to be ready", func() bool { env, _ := d.Get(t.Context(), "", "desk"); return env != nil && env.Ready })

	d.act(d.Stop, "desk")
	stopped, _ := d.Get(t.Context(), "", "desk")
	if stopped.State != runtime.Stopped || stopped.Exit == nil || len(stopped.Ports) != 2 || stopped.Address != env.Address || stopped.Ready {
		t.Errorf("stopped: %+v", stopped)
	}
	if _, op, err := d.Stop(t.Context(), runtime.ActionRequest{Environment: "desk"}); err != nil || op != nil {
		t.Errorf("stopping a stopped environment: %v %v, want nothing to do", op, err)
	}
	d.act(d.Start, "desk")
	d.act(d.Restart, env.ID)
	running, _ := d.Get(t.Context(), "", "desk")
	if running.State != runtime.Running || running.Exit != nil {
		t.Errorf("restarted: %+v", running)
	}
	if _, _, err := d.Delete(t.Context(), runtime.ActionRequest{Environment: "desk"}); reasonOf(err) != problem.EnvRunning {
		t.Errorf("deleting a running environment: %v", err)
	}
	d.act(d.Delete, "desk")
	if _, err := d.Get(t.Context(), "", "desk"); !errdefs.IsNotFound(err) {
		t.Errorf("a deleted environment is found: %v", err)
	}
	d.holdsNothing()
	if again, _ := d.create(full("desk")); again.State != runtime.Running || again.Address == env.Address {
		t.Errorf("the name of a deleted environment, another address: %+v", again)
	}
}

// The most valuable test: every call of a create fails in turn, before or
// after it did its work, and nothing is left behind.
func TestCreateGivesEverythingBack(t *testing.T) {
	probe := newHost(t)
	node := start(t, probe)
	calls := callsOf(probe, func() { node.create(full("desk")) })
	for _, want := range []string{"Engine.Create", "Engine.Start", "Networks.Attach", "Networks.Publish", "Volumes.Stage", "Desktops.Prepare", "Store.ActivateEnvironment"} {
		if !slices.Contains(calls, want) {
			t.Fatalf("a create makes no call %s: %v", want, calls)
		}
	}
	broken := errors.New("broken on purpose")
	t.Logf("%-28s %-7s %-9s %s", "call that fails", "when", "refused", "state then")
	for _, call := range calls {
		for _, when := range []runtimetest.When{runtimetest.Before, runtimetest.After} {
			t.Run(fmt.Sprintf("%s/%d", call, when), func(t *testing.T) {
				h := newHost(t)
				d := start(t, h)
				// A call that the request itself makes is refused there; the
				// second one is made by the operation.
				for n := 1; n <= 2; n++ {
					h.faults.Reset()
					h.faults.Fail(call, n, when, broken)
					name := fmt.Sprintf("desk-%d", n)
					env, op, err := d.Create(t.Context(), full(name))
					if err != nil { // refused
						t.Logf("%-28s %-7d %-9v", call, when, true)
						d.holdsNothing()
						continue
					}
					op = d.done(op)
					env, err = d.Get(t.Context(), "", env.ID)
					if err != nil {
						t.Fatal(err)
					}
					if op.State == operation.Succeeded {
						if h.faults.Count(call) >= n && env.State != runtime.Running {
							t.Errorf("the operation succeeded, the environment is %s", env.State)
						}
						h.faults.Reset() // the second publish is the delete's
						d.act(d.Delete, name)
						d.holdsNothing()
						continue
					}
					t.Logf("%-28s %-7d %-9v %s", call, when, false, env.State)
					if env.State != runtime.Failed || env.Problem == nil || env.Held || env.Operation != "" || op.Problem == nil {
						t.Errorf("after a failed create: %+v, operation %+v", env, op)
					}
					d.holdsNothing()
					if _, _, err := d.Start(t.Context(), runtime.ActionRequest{Environment: name}); reasonOf(err) != problem.EnvNotStartable {
						t.Errorf("starting what was never made: %v", err)
					}
					h.faults.Reset()
					d.act(d.Delete, name)
				}
				h.faults.Reset()
				if env, op := d.create(full("after")); env.State != runtime.Running {
					t.Errorf("the next create: %+v", op)
				}
			})
		}
	}
}

// When even the undoing fails, the environment stays held until the reconciler
// has undone it.
func TestReconcilerFinishesAnUndo(t *testing.T) {
	for _, call := range []string{"Engine.Delete", "Networks.Detach", "Networks.Publish", "Volumes.Unstage", "Desktops.Remove"} {
		t.Run(call, func(t *testing.T) {
			h := newHost(t)
			d := start(t, h)
			h.faults.Fail("Store.ActivateEnvironment", 1, runtimetest.Before, errors.New("broken on purpose"))
			n := 1
			if call == "Networks.Publish" {
				n = 2 // the first one publishes
			}
			h.faults.Fail(call, n, runtimetest.Before, errors.New("broken as well"))
			env, _ := d.create(full("desk"))
			if env.State != runtime.Failed || !env.Held || len(env.Ports) == 0 {
				t.Fatalf("what could not be undone is not held: %+v", env)
			}
			if err := d.Reconcile(t.Context()); err != nil {
				t.Fatal(err)
			}
			d.holdsNothing()
			if env, _ := d.Get(t.Context(), "", "desk"); env.Held || env.State != runtime.Failed {
				t.Errorf("after reconciling: %+v", env)
			}
		})
	}
}

func TestDeleteThatFailsCanBeRepeated(t *testing.T) {
	for _, call := range []string{"Engine.Delete", "Networks.Detach", "Networks.Publish", "Volumes.Unstage", "Desktops.Remove"} {
		t.Run(call, func(t *testing.T) {
			h := newHost(t)
			d := start(t, h)
			d.create(full("desk"))
			h.faults.Fail(call, 1, runtimetest.Before, errors.New("broken on purpose"))
			if op := d.act(d.Delete, "desk"); op.State != operation.Failed {
				t.Fatalf("delete: %+v", op)
			}
			env, err := d.Get(t.Context(), "", "desk")
			if err != nil || env.State != runtime.Failed || !env.Held {
				t.Fatalf("after a failed delete: %+v %v", env, err)
			}
			if op := d.act(d.Delete, "desk"); op.State != operation.Succeeded {
				t.Fatalf("second delete: %+v", op)
			}
			d.holdsNothing()
		})
	}
}

func TestStartThatFailsKeepsWhatIsOwned(t *testing.T) {
	for _, call := range []string{"Engine.Start", "Networks.Attach", "Networks.Publish", "Volumes.Stage", "Desktops.Prepare"} {
		t.Run(call, func(t *testing.T) {
			h := newHost(t)
			d := start(t, h)
			before, _ := d.create(full("desk"))
			d.act(d.Stop, "desk")
			h.faults.Fail(call, 1, runtimetest.After, errors.New("broken on purpose"))
			if op := d.act(d.Start, "desk"); op.State != operation.Failed {
				t.Fatalf("start: %+v", op)
			}
			env, _ := d.Get(t.Context(), "", "desk")
			if env.State != runtime.Failed || !env.Held || len(env.Ports) != 2 || env.Address != before.Address {
				t.Errorf("after a failed start: %+v", env)
			}
			if status, err := h.engine.Status(t.Context(), env.ID); err != nil || status.Running {
				t.Errorf("a process is left: %+v %v", status, err)
			}
			d.act(d.Start, "desk")
			if env, _ := d.Get(t.Context(), "", "desk"); env.State != runtime.Running || env.Problem != nil {
				t.Errorf("the second start: %+v", env)
			}
		})
	}
}

// The daemon dies at each call of a create; the next one finishes the work.
func TestCreateGoesOnAfterTheDaemonDied(t *testing.T) {
	probe := newHost(t)
	node := start(t, probe)
	calls := callsOf(probe, func() { node.create(full("desk")) })
	for _, call := range calls {
		if call == "Volumes.Check" {
			continue // only the request makes it
		}
		t.Run(call, func(t *testing.T) {
			h := newHost(t)
			first := start(t, h)
			reached, release := make(chan struct{}), make(chan struct{})
			var once sync.Once
			count := 0
			var mu sync.Mutex
			h.faults.Hook(func(method string) {
				mu.Lock()
				hit := method == call
				if hit {
					count++
				}
				// Images.Image and the like are called by the request first.
				hit = hit && (count == 2 || (call != "Images.Image" && call != "Networks.Resolvers"))
				mu.Unlock()
				if hit {
					once.Do(func() { close(reached); <-release })
				}
			})
			_, op, err := first.Create(t.Context(), full("desk"))
			if err != nil {
				t.Fatal(err)
			}
			select {
			case <-reached:
			case <-time.After(20 * time.Second):
				t.Fatalf("the operation does not reach %s", call)
			}
			stopped := make(chan struct{})
			go func() { first.stop(); close(stopped) }()
			time.Sleep(10 * time.Millisecond) // the queue cancels the handler
			h.faults.Hook(nil)
			close(release)
			<-stopped

			second := start(t, h)
			done := second.done(op)
			env, err := second.Get(t.Context(), "", "desk")
			if err != nil || env.State != runtime.Running || done.State != operation.Succeeded {
				t.Fatalf("after the restart: %+v %v, operation %+v", env, err, done)
			}
			second.act(second.Delete, "desk")
			second.holdsNothing()
		})
	}
}

func TestProcessesThatEnd(t *testing.T) {
	for _, test := range []struct {
		name  string
		exit  runtime.Exit
		state runtime.State
		says  string
	}{
		{"by itself", runtime.Exit{Code: 0}, runtime.Stopped, ""},
		{"with an error", runtime.Exit{Code: 3}, runtime.Failed, "exit code 3"},
		{"by a signal", runtime.Exit{Code: 139, Signal: 11}, runtime.Failed, "signal 11"},
		{"for lack of memory", runtime.Exit{Code: 137, Signal: 9, OOMKilled: true}, runtime.Failed, "was killed because memory"},
		{"with an error after another was killed", runtime.Exit{Code: 1, OOMKilled: true}, runtime.Failed, "exit code 1; memory had run out"},
		{"well though another was killed", runtime.Exit{Code: 0, OOMKilled: true}, runtime.Stopped, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHost(t)
			d := start(t, h)
			env, _ := d.create(full("desk"))
			if err := h.engine.Exit(env.ID, test.exit); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the exit to be recorded", func() bool { env, _ = d.Get(t.Context(), "", "desk"); return env.State != runtime.Running })
			if env.State != test.state || env.Exit == nil || env.Exit.Code != test.exit.Code || len(env.Ports) != 2 {
				t.Errorf("got %+v", env)
			}
			if test.says != "" && (env.Problem == nil || !strings.Contains(env.Problem.Message, test.says)) {
				t.Errorf("problem %+v does not say %q", env.Problem, test.says)
			}
			d.act(d.Start, "desk")
		})
	}
}

func TestAdoptRecordsWhatEndedMeanwhile(t *testing.T) {
	h := newHost(t)
	first := start(t, h)
	stays, _ := first.create(full("stays"))
	ends, _ := first.create(full("ends"))
	vanishes, _ := first.create(full("vanishes"))
	first.stop()
	if err := h.engine.Exit(ends.ID, runtime.Exit{Code: 2}); err != nil {
		t.Fatal(err)
	}
	if err := h.engine.Delete(t.Context(), vanishes.ID); err != nil {
		t.Fatal(err)
	}
	second := start(t, h)
	for id, want := range map[string]runtime.State{stays.ID: runtime.Running, ends.ID: runtime.Failed, vanishes.ID: runtime.Failed} {
		if env, err := second.Get(t.Context(), "", id); err != nil || env.State != want {
			t.Errorf("%s is %+v %v, want %s", id, env, err, want)
		}
	}
	if got := h.networks.Published(stays.ID); len(got) != 2 {
		t.Errorf("ports of the one that stays: %v", got)
	}
}

func TestReconcileRemovesLeftoversAndSparesStrangers(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(full("gone"))
	d.act(d.Delete, "gone")
	// Pieces of a deleted environment, and pieces of nobody.

	for slot, id := range []string{env.ID, nobody, stranger} {
		if err := h.networks.Attach(t.Context(), id, slot+10); err != nil {
			t.Fatal(err)
		}
		if _, err := h.volumes.Stage(t.Context(), id, []volume.Mount{{Type: volume.Tmpfs, Target: "/x"}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.engine.Create(t.Context(), runtime.Container{ID: stranger, Image: image}); err != nil {
		t.Fatal(err)
	}
	if err := d.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	left := h.leftovers()
	for _, piece := range left {
		if !strings.Contains(piece, stranger) {
			t.Errorf("left behind: %s", piece)
		}
	}
	if len(left) != 3 {
		t.Errorf("the unknown container and its pieces are to be spared: %v", left)
	}
	if conditions := d.Conditions(); !slices.ContainsFunc(conditions, func(c runtime.Condition) bool { return c.Reason == problem.ContainerUnknown }) {
		t.Errorf("nothing is said of the unknown container: %v", conditions)
	}
}

func TestEngineThatComesBack(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(full("desk"))
	h.engine.SetDown(true)
	h.engine.BreakEvents(errdefs.ErrUnavailable)
	waitFor(t, "the condition", func() bool { return len(d.Conditions()) > 0 })
	if _, _, err := d.Create(t.Context(), full("other")); err == nil {
		_, op, _ := d.Delete(t.Context(), runtime.ActionRequest{Environment: "other", Force: true})
		d.done(op)
	}
	h.engine.SetDown(false)
	waitFor(t, "the condition to go", func() bool { return len(d.Conditions()) == 0 })
	if err := h.engine.Exit(env.ID, runtime.Exit{Code: 1}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the exit to be recorded", func() bool { env, _ := d.Get(t.Context(), "", "desk"); return env.State == runtime.Failed })
}

// What ends is recorded although the stream of events broke while a pass hangs.
func TestEventsGoOnBesideAPassThatHangs(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(full("desk"))
	hanging, proceed := make(chan struct{}), make(chan struct{})
	var first sync.Once
	h.faults.Hook(func(method string) {
		if method == "Engine.Parts" {
			first.Do(func() { close(hanging) })
			<-proceed
		}
	})
	release := sync.OnceFunc(func() { close(proceed) })
	t.Cleanup(release) // before the daemon is stopped
	h.engine.BreakEvents(errdefs.ErrUnavailable)
	<-hanging // the pass after the subscription
	subscribed := h.faults.Count("Engine.Events")
	h.engine.BreakEvents(errdefs.ErrUnavailable)
	waitFor(t, "the next subscription", func() bool { return h.faults.Count("Engine.Events") > subscribed })
	if err := h.engine.Exit(env.ID, runtime.Exit{Code: 1}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the exit to be recorded", func() bool { env, _ := d.Get(t.Context(), "", "desk"); return env.State == runtime.Failed })
	release()
	waitFor(t, "the pass after it", func() bool { return len(d.Conditions()) == 0 })
}

func TestBadRequestsAreRefusedWhole(t *testing.T) {
	h := newHost(t)
	h.volumes.Refuse = func(m volume.Mount) error {
		if m.Source != "/etc" {
			return nil
		}
		return problem.New(problem.MountNotAllowed, "no").WithField("spec.mounts[0].source")
	}
	d := start(t, h)
	d.create(full("taken"))
	taken, _ := d.Get(t.Context(), "", "taken")
	for _, test := range []struct {
		name   string
		change func(*runtime.CreateRequest)
		reason problem.Reason
		field  string
	}{
		{"no name", func(r *runtime.CreateRequest) { r.Name = "" }, problem.EnvNameInvalid, "name"},
		{"a name with capitals", func(r *runtime.CreateRequest) { r.Name = "Desk" }, problem.EnvNameInvalid, "name"},
		{"a name of 64", func(r *runtime.CreateRequest) { r.Name = strings.Repeat("a", 64) }, problem.EnvNameInvalid, "name"},
		{"the name of the environment itself", func(r *runtime.CreateRequest) { r.Name = "localhost" }, problem.EnvNameInvalid, "name"},
		{"a user of three parts", func(r *runtime.CreateRequest) { r.Spec.User = "1000:1000:1" }, problem.FieldInvalid, "spec.user"},
		{"a name that exists", func(r *runtime.CreateRequest) { r.Name = "taken" }, problem.EnvNameExists, "name"},
		{"a bad project", func(r *runtime.CreateRequest) { r.Project = "a b" }, problem.FieldInvalid, "project"},
		{"a bad reference", func(r *runtime.CreateRequest) { r.Spec.Image = "UPPER//x" }, problem.ImageReferenceBad, "spec.image"},
		{"an unknown image", func(r *runtime.CreateRequest) { r.Spec.Image = "nobody/nothing"; r.Spec.PullPolicy = runtime.PullNever }, problem.ImageNotFound, "spec.image"},
		{"an image that no registry has", func(r *runtime.CreateRequest) { r.Spec.Image = "nobody/nothing" }, problem.ImageNotFound, "spec.image"},
		{"too little memory", func(r *runtime.CreateRequest) { r.Spec.Resources.MemoryBytes = 1 << 20 }, problem.MemoryTooSmall, "spec.resources.memory_bytes"},
		{"less memory than the image needs", func(r *runtime.CreateRequest) { r.Spec.Resources.MemoryBytes = 32 << 20 }, problem.MemoryTooSmall, "spec.resources.memory_bytes"},
		{"swap without memory", func(r *runtime.CreateRequest) { r.Spec.Resources.SwapBytes = 1 << 30 }, problem.FieldInvalid, "spec.resources.swap_bytes"},
		{"a soft limit above the hard one", func(r *runtime.CreateRequest) {
			r.Spec.Resources.Ulimits = []runtime.Ulimit{{Name: "nofile", Soft: 2, Hard: 1}}
		}, problem.FieldInvalid, "spec.resources.ulimits[0].soft"},
		{"a relative workdir", func(r *runtime.CreateRequest) { r.Spec.Workdir = "x" }, problem.FieldInvalid, "spec.workdir"},
		{"a reserved variable", func(r *runtime.CreateRequest) { r.Spec.Env = map[string]string{"REMOTEGPU_X": "1"} }, problem.EnvVariableReserved, `spec.env["REMOTEGPU_X"]`},
		{"a variable that asks for GPUs", func(r *runtime.CreateRequest) { r.Spec.Env = map[string]string{"NVIDIA_VISIBLE_DEVICES": "all"} }, problem.EnvVariableReserved, `spec.env["NVIDIA_VISIBLE_DEVICES"]`},
		{"a mount that asks for GPUs", func(r *runtime.CreateRequest) {
			r.Spec.Mounts[0].Target = "/var/run/nvidia-container-devices/all"
		}, problem.FieldInvalid, "spec.mounts[0].target"},
		{"a bad variable", func(r *runtime.CreateRequest) { r.Spec.Env = map[string]string{"1 X": "1"} }, problem.FieldInvalid, `spec.env["1 X"]`},
		{"a desktop of no size", func(r *runtime.CreateRequest) { r.Spec.Desktop.Width = 10 }, problem.FieldInvalid, "spec.desktop"},
		{"a mount that is not allowed", func(r *runtime.CreateRequest) { r.Spec.Mounts[0].Source = "/etc" }, problem.MountNotAllowed, "spec.mounts[0].source"},
		{"a port outside its pool", func(r *runtime.CreateRequest) { r.Spec.Ports[0].External = 80 }, problem.PortOutsidePool, "spec.ports[0].external_port"},
		{"a port that is taken", func(r *runtime.CreateRequest) { r.Spec.Ports[0].External = taken.Ports[1].External }, problem.PortTaken, "spec.ports[0].external_port"},
		{"a custom port of no number", func(r *runtime.CreateRequest) { r.Spec.Ports[1].Internal = 0 }, problem.FieldInvalid, "spec.ports[1].internal_port"},
	} {
		t.Run(test.name, func(t *testing.T) {
			req := full("new")
			test.change(&req)
			if test.reason == problem.PortTaken {
				req.Spec.Ports[0].External = 0
				for _, mapping := range taken.Ports {
					if mapping.Service == port.SSH {
						req.Spec.Ports[0].External = mapping.External
					}
				}
			}
			_, _, err := d.Create(t.Context(), req)
			p := problem.Of(err)
			if err == nil || p.Reason != test.reason || p.Field != test.field || p.Hint == "" && test.reason != problem.MountNotAllowed {
				t.Errorf("got %+v, want %s at %s with a hint", p, test.reason, test.field)
			}
			if _, err := d.Get(t.Context(), "", "new"); !errdefs.IsNotFound(err) {
				t.Errorf("a refused create left something: %v", err)
			}
		})
	}
	// Several faults are named at once.
	req := full("Bad Name")
	req.Spec.Workdir, req.Spec.Resources.MemoryBytes = "x", 1
	if _, _, err := d.Create(t.Context(), req); len(problem.All(err)) != 3 {
		t.Errorf("want three problems, got %v", err)
	}
}

func TestPoolThatIsExhausted(t *testing.T) {
	h := newHost(t)
	h.networks.Range = 1
	d := start(t, h)
	d.create(full("first"))
	if _, _, err := d.Create(t.Context(), full("second")); reasonOf(err) != problem.AddressPoolExhausted || problem.Of(err).Hint == "" {
		t.Errorf("no address left: %v", err)
	}
	if envs, _, _ := d.List(t.Context(), runtime.Filter{}); len(envs) != 1 {
		t.Errorf("a refused create left something: %v", envs)
	}
}

func TestListSelectsByLabel(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	for i, team := range []string{"vision", "speech", "vision"} {
		req := full(fmt.Sprintf("desk-%d", i))
		req.Labels = map[string]string{"team": team}
		d.create(req)
	}
	selector, err := runtime.ParseSelector("team=vision", "label_selector")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	filter := runtime.Filter{Labels: selector, Limit: 1}
	for range 10 {
		envs, next, err := d.List(t.Context(), filter)
		if err != nil {
			t.Fatal(err)
		}
		for _, env := range envs {
			names = append(names, env.Name)
		}
		if filter.After = next; next == "" {
			break
		}
	}
	if !slices.Equal(names, []string{"desk-0", "desk-2"}) {
		t.Errorf("got %v", names)
	}
}

func TestEtag(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(full("desk"))
	if _, _, err := d.Stop(t.Context(), runtime.ActionRequest{Environment: "desk", Etag: "1"}); reasonOf(err) != problem.EtagMismatch {
		t.Errorf("an old etag: %v", err)
	}
	if _, op, err := d.Stop(t.Context(), runtime.ActionRequest{Environment: "desk", Etag: runtime.Etag(env.Revision)}); err != nil || op == nil {
		t.Errorf("the present etag: %v", err)
	}
}
