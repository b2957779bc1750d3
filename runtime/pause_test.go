package runtime_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// paused says whether the engine has the process of an environment paused.
func (h *host) paused(t *testing.T, id string) bool {
	t.Helper()
	status, err := h.engine.Status(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return status.Running && status.Paused
}

func TestPauseAndResume(t *testing.T) {
	h := newHost(t)
	h.desktops.Draw()
	d := start(t, h)
	env, _ := d.create(full("desk"))
	waitFor(t, "the desktop", func() bool { return d.get("desk").Ready })
	before := d.get("desk")
	if _, _, err := d.Resume(t.Context(), runtime.ActionRequest{Environment: "desk"}); err != nil {
		t.Errorf("resuming what runs: %v", err)
	}
	d.act(d.Pause, "desk")
	got := d.get("desk")
	if got.State != runtime.Stopped || !got.Paused || got.Ready || !got.Held || len(got.Ports) != 2 || got.Exit != nil || !h.paused(t, env.ID) {
		t.Fatalf("paused: %+v", got)
	}
	if _, op, err := d.Pause(t.Context(), runtime.ActionRequest{Environment: "desk"}); err != nil || op != nil {
		t.Errorf("pausing a paused one: %v %v, want nothing to do", op, err)
	}
	if _, err := d.RunCommand(t.Context(), runtime.CommandRequest{Environment: "desk", Argv: []string{"true"}}); reasonOf(err) != problem.EnvNotRunning {
		t.Errorf("a command in a paused one: %v", err)
	}
	if _, _, err := d.Delete(t.Context(), runtime.ActionRequest{Environment: "desk"}); reasonOf(err) != problem.EnvRunning {
		t.Errorf("deleting a paused one: %v", err)
	}
	for _, do := range []string{"resume", "start"} {
		if do == "resume" {
			d.act(d.Resume, "desk")
		} else {
			d.act(d.Pause, "desk")
			d.act(d.Start, "desk")
		}
		got = d.get("desk")
		if got.State != runtime.Running || got.Paused || !got.StartedAt.Equal(before.StartedAt) || h.paused(t, env.ID) {
			t.Errorf("after %s: %+v, want the same run", do, got)
		}
		waitFor(t, "the desktop to be ready again", func() bool { return d.get("desk").Ready })
	}
	if started := h.faults.Count("Engine.Start"); started != 1 {
		t.Errorf("started %d times", started)
	}
	if kinds, _ := d.history(env.ID); !slices.Equal(kinds, []string{"created", "started", "paused", "resumed", "paused", "resumed"}) {
		t.Errorf("history: %v", kinds)
	}
	d.act(d.Stop, "desk")
	for name, do := range map[string]func() error{
		"pause": func() error {
			_, _, err := d.Pause(t.Context(), runtime.ActionRequest{Environment: "desk"})
			return err
		},
		"resume": func() error {
			_, _, err := d.Resume(t.Context(), runtime.ActionRequest{Environment: "desk"})
			return err
		},
	} {
		want := problem.EnvNotRunning
		if name == "resume" {
			want = problem.EnvNotPaused
		}
		if err := do(); reasonOf(err) != want || problem.Of(err).Hint == "" {
			t.Errorf("%s of a stopped one: %v, want %s", name, err, want)
		}
	}
}

// What ends the process of a paused environment ends it as any other.
func TestPausedIsEnded(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(d *daemon)
		want []string
	}{
		{"stop", func(d *daemon) { d.act(d.Stop, "desk") }, []string{"stopped"}},
		{"restart", func(d *daemon) { d.act(d.Restart, "desk") }, []string{"stopped", "started"}},
		{"delete", func(d *daemon) { d.act(d.Delete, "desk") }, []string{"deleted"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHost(t)
			d := start(t, h)
			env, _ := d.create(plain("desk"))
			d.act(d.Pause, "desk")
			test.do(d)
			kinds, _ := d.history(env.ID)
			if got := kinds[3:]; !slices.Equal(got, test.want) {
				t.Errorf("history then: %v, want %v", got, test.want)
			}
			if test.name == "delete" {
				d.holdsNothing()
				return
			}
			got := d.get("desk")
			status, err := h.engine.Status(t.Context(), env.ID)
			if got.Paused || got.Operation != "" || err != nil || status.Paused || status.Running != (got.State == runtime.Running) {
				t.Errorf("got %+v, %+v %v", got, status, err)
			}
		})
	}
}

// Each call of a pause and a resume fails, before and after its work: the
// record says how the process is, and the next try works.
func TestPauseAndResumeThatFail(t *testing.T) {
	t.Logf("%-8s %-14s %-7s %s", "doing", "call", "when", "paused then")
	for _, pausing := range []bool{true, false} {
		for _, undone := range []bool{true, false} {
			for _, when := range []runtimetest.When{runtimetest.Before, runtimetest.After} {
				do, undo := "Resume", "Pause"
				if pausing {
					do, undo = undo, do
				}
				t.Run(fmt.Sprintf("%s/%d/undone %t", do, when, undone), func(t *testing.T) {
					h := newHost(t)
					d := start(t, h)
					env, _ := d.create(plain("desk"))
					act := d.Pause
					if !pausing {
						d.act(d.Pause, "desk")
						act = d.Resume
					}
					h.faults.Fail("Engine."+do, 1, when, errors.New("broken on purpose"))
					if !undone {
						h.faults.Fail("Engine."+undo, 1, runtimetest.Before, errors.New("broken as well"))
					}
					if op := d.act(act, "desk"); op.State != operation.Failed || op.Problem == nil {
						t.Errorf("operation: %+v", op)
					}
					var got *runtime.Environment
					waitFor(t, "the record to follow", func() bool {
						got = d.get("desk")
						return got.Operation == "" && got.Paused == h.paused(t, env.ID) && got.Paused == (got.State == runtime.Stopped)
					})
					t.Logf("%-8s %-14s %-7d %t", do, "Engine."+do, when, got.Paused)
					if undone && got.Paused == pausing {
						t.Errorf("what failed was done: %+v", got)
					}
					h.faults.Reset()
					if !got.Paused {
						d.act(d.Pause, "desk")
					}
					d.act(d.Resume, "desk")
					if got := d.get("desk"); got.State != runtime.Running || h.paused(t, env.ID) {
						t.Errorf("the next try: %+v", got)
					}
				})
			}
		}
	}
}

// The daemon dies while it pauses or resumes; the next one goes on.
func TestPauseGoesOnAfterTheDaemonDied(t *testing.T) {
	for _, call := range []string{"Engine.Pause", "Engine.Resume"} {
		t.Run(call, func(t *testing.T) {
			h := newHost(t)
			first := start(t, h)
			env, _ := first.create(plain("desk"))
			act := first.Pause
			if call == "Engine.Resume" {
				first.act(first.Pause, "desk")
				act = first.Resume
			}
			reached, release := blockCall(t, h, call)
			_, op, err := act(t.Context(), runtime.ActionRequest{Environment: "desk"})
			if err != nil {
				t.Fatal(err)
			}
			await(t, call, reached)
			stopped := make(chan struct{})
			go func() { first.stop(); close(stopped) }()
			time.Sleep(10 * time.Millisecond) // the queue cancels the handler
			release()
			<-stopped
			second := start(t, h)
			if op = second.done(op); op.State != operation.Succeeded {
				t.Errorf("operation: %+v", op)
			}
			got := second.get("desk")
			if want := call == "Engine.Pause"; got.Paused != want || h.paused(t, env.ID) != want || got.Operation != "" {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// Others pause and resume too, while the daemon listens and while it is away.
func TestOthersPauseAndResume(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(kept("desk", runtime.RestartAlways))
	for range 2 {
		for _, paused := range []bool{true, false} {
			if err := h.engine.SetPaused(env.ID, paused); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the record", func() bool {
				got := d.get("desk")
				return got.Paused == paused && (got.State == runtime.Running) != paused
			})
		}
	}
	for _, paused := range []bool{true, false} {
		d.stop()
		if err := h.engine.SetPaused(env.ID, paused); err != nil {
			t.Fatal(err)
		}
		d = start(t, h)
		if got := d.get("desk"); got.Paused != paused || (got.State == runtime.Running) == paused || !got.StartedAt.Equal(env.StartedAt) {
			t.Errorf("after the daemon was away, paused %t: %+v", paused, got)
		}
	}
}

// A paused process that ends is recorded, and no policy starts another.
func TestPausedProcessEnds(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(h *host, id string)
		away bool
		want problem.Reason
	}{
		{"killed", func(h *host, id string) { _ = h.engine.Exit(id, runtime.Exit{Code: 137, Signal: 9}) }, false, problem.ProcessExited},
		{"killed while the daemon was away", func(h *host, id string) { _ = h.engine.Exit(id, runtime.Exit{Code: 137, Signal: 9}) }, true, problem.ProcessExited},
		{"a reboot", func(h *host, _ string) { h.engine.Forget(); h.boot = "next" }, true, problem.HostRebooted},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHost(t)
			h.boot = "first"
			d := start(t, h)
			env, _ := d.create(kept("desk", runtime.RestartAlways))
			d.act(d.Pause, "desk")
			if test.away {
				d.stop()
			}
			test.end(h, env.ID)
			if test.away {
				d = start(t, h)
			}
			waitFor(t, "the end", func() bool { return !d.get("desk").Paused })
			got := d.get("desk")
			if got.State != runtime.Failed || got.Problem == nil || got.Problem.Reason != string(test.want) || !got.RestartAt.IsZero() || got.Operation != "" {
				t.Errorf("got %+v, problem %+v", got, got.Problem)
			}
			d.act(d.Start, "desk")
			if got := d.get("desk"); got.State != runtime.Running || got.Paused {
				t.Errorf("started again: %+v", got)
			}
		})
	}
}

// Its process ends behind everybody's back: a resume says so, a start brings
// another one.
func TestResumeWithoutAProcess(t *testing.T) {
	for _, start1 := range []bool{false, true} {
		h := newHost(t)
		d := start(t, h)
		d.create(plain("desk"))
		d.act(d.Pause, "desk")
		h.engine.Forget()
		if start1 {
			if op := d.act(d.Start, "desk"); op.State != operation.Succeeded || d.get("desk").State != runtime.Running {
				t.Errorf("start: %+v", op)
			}
			continue
		}
		op := d.act(d.Resume, "desk")
		got := d.get("desk")
		if op.State != operation.Failed || op.Problem.Reason != string(problem.ProcessExited) || got.Paused || got.State != runtime.Failed {
			t.Errorf("operation %+v, environment %+v", op.Problem, got)
		}
	}
}

// A pause ends the wait for a restart, and stops health checks.
func TestPauseStopsHealthChecks(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	req := kept("desk", runtime.RestartAlways)
	req.Spec.Restart.OnUnhealthy = true
	req.Spec.HealthCheck = &runtime.HealthCheck{Command: []string{"true"}, Interval: 100 * time.Millisecond, Timeout: 5 * time.Second, Retries: 1}
	d.create(req)
	waitFor(t, "its health", func() bool { return d.get("desk").Health == runtime.Healthy })
	d.act(d.Pause, "desk")
	runs := h.faults.Count("Engine.Run")
	time.Sleep(400 * time.Millisecond)
	if got := d.get("desk"); got.Health != runtime.HealthUnknown || !got.Paused || !got.RestartAt.IsZero() || h.faults.Count("Engine.Run") > runs+1 {
		t.Errorf("%d checks more, %+v", h.faults.Count("Engine.Run")-runs, got)
	}
	d.act(d.Resume, "desk")
	waitFor(t, "its health", func() bool { return d.get("desk").Health == runtime.Healthy })
	if got := d.get("desk"); got.RestartCount != 0 {
		t.Errorf("it was restarted: %+v", got)
	}
}

// A pause or a resume that is cancelled between two attempts is undone: what serves the
// container may have carried out the first one late.
func TestPauseCancelledBetweenAttempts(t *testing.T) {
	for _, pausing := range []bool{true, false} {
		for _, silent := range []bool{false, true} {
			t.Run(fmt.Sprintf("pausing %t/silent %t", pausing, silent), func(t *testing.T) {
				h := newHost(t)
				first := start(t, h)
				env, _ := first.create(plain("desk"))
				call, act := "Engine.Pause", first.Pause
				if !pausing {
					first.act(first.Pause, "desk")
					call, act = "Engine.Resume", first.Resume
				}
				reached, release := blockCall(t, h, call)
				_, op, err := act(t.Context(), runtime.ActionRequest{Environment: "desk"})
				if err != nil {
					t.Fatal(err)
				}
				await(t, call, reached)
				stopped := make(chan struct{})
				go func() { first.stop(); close(stopped) }()
				time.Sleep(10 * time.Millisecond) // the queue ends the attempt
				release()
				<-stopped
				if err := h.engine.SetPaused(env.ID, pausing); err != nil {
					t.Fatal(err)
				}
				h.change(t, op.ID, func(op *operation.Operation) { op.CancelRequested = true })
				h.engine.SetSilent(env.ID, silent)
				second := start(t, h)
				if op = second.done(op); op.State != operation.Cancelled {
					t.Errorf("operation: %+v", op)
				}
				want := !pausing
				if silent { // it is not held for ever: somebody may want to end it
					if err := second.Reconcile(t.Context()); err != nil {
						t.Error(err)
					}
					if got := second.get("desk"); got.Operation != "" || got.Paused == pausing {
						t.Errorf("while it is silent: %+v", got)
					}
					h.engine.SetSilent(env.ID, false)
					if err := second.Reconcile(t.Context()); err != nil {
						t.Error(err)
					}
					want = pausing // and the record follows
				}
				waitFor(t, "the record", func() bool { return second.get("desk").Operation == "" })
				if got := second.get("desk"); got.Paused != want || h.paused(t, env.ID) != want || got.State == runtime.Running == want {
					t.Errorf("got %+v, the process is paused: %t", got, h.paused(t, env.ID))
				}
			})
		}
	}
}
