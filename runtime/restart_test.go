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

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// kept is a request that is started again, with every part.
func kept(name string, mode runtime.RestartMode) runtime.CreateRequest {
	req := full(name)
	req.Spec.Restart = &runtime.RestartPolicy{Mode: mode}
	return req
}

func (d *daemon) get(name string) *runtime.Environment {
	d.t.Helper()
	env, err := d.Get(d.t.Context(), "", name)
	if err != nil {
		d.t.Fatal(err)
	}
	return env
}

// kill ends an environment's process.
func (d *daemon) kill(id string, code int) {
	d.t.Helper()
	if err := d.host.engine.Exit(id, runtime.Exit{Code: code}); err != nil {
		d.t.Fatal(err)
	}
}

// restarted waits until an environment runs again.
func (d *daemon) restarted(name string, count int) *runtime.Environment {
	d.t.Helper()
	var env *runtime.Environment
	waitFor(d.t, fmt.Sprintf("restart %d of %s", count, name), func() bool {
		env = d.get(name)
		return env.State == runtime.Running && env.RestartCount >= count && env.Operation == ""
	})
	return env
}

func (d *daemon) history(id string) (kinds []string, entries []runtime.History) {
	d.t.Helper()
	entries, _, err := d.History(d.t.Context(), "", id, 0, "")
	if err != nil {
		d.t.Fatal(err)
	}
	for _, entry := range slices.Backward(entries) {
		kinds = append(kinds, entry.Kind)
	}
	return kinds, entries
}

func TestRestartPolicies(t *testing.T) {
	for _, test := range []struct {
		mode    runtime.RestartMode
		code    int
		restart bool
	}{
		{runtime.RestartNo, 1, false},
		{runtime.RestartOnFailure, 0, false},
		{runtime.RestartOnFailure, 1, true},
		{runtime.RestartAlways, 0, true},
		{runtime.RestartUnlessStopped, 1, true},
	} {
		t.Run(fmt.Sprintf("%s/%d", test.mode, test.code), func(t *testing.T) {
			h := newHost(t)
			d := start(t, h)
			env, _ := d.create(kept("desk", test.mode))
			d.kill(env.ID, test.code)
			if test.restart {
				again := d.restarted("desk", 1)
				if again.RestartCount != 1 || !again.RestartAt.IsZero() || again.Address != env.Address || len(again.Ports) != 2 || again.Problem != nil {
					t.Errorf("after the restart: %+v", again)
				}
				if kinds, _ := d.history(env.ID); !slices.Equal(kinds, []string{"created", "started", "exited", "restarting", "started"}) {
					t.Errorf("history: %v", kinds)
				}
				return
			}
			waitFor(t, "the exit", func() bool { return d.get("desk").State != runtime.Running })
			if ended := d.get("desk"); !ended.RestartAt.IsZero() || ended.Operation != "" {
				t.Errorf("a restart is planned: %+v", ended)
			}
		})
	}
}

func TestOnFailureGivesUp(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	req := kept("desk", runtime.RestartOnFailure)
	req.Spec.Restart.MaxRetries = 2
	req.Spec.Command = []string{"exit", "3"} // a crash loop
	env, _, err := d.Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "it to give up", func() bool {
		env = d.get("desk")
		return env.State == runtime.Failed && env.RestartCount == 2 && env.RestartAt.IsZero() && env.Operation == ""
	})
	if env.Problem == nil || !strings.Contains(env.Problem.Hint, "2 times") || env.Exit == nil || env.Exit.Code != 3 {
		t.Errorf("after giving up: %+v, problem %+v", env, env.Problem)
	}
	_, entries := d.history("desk")
	waits := []string{}
	for _, entry := range slices.Backward(entries) {
		if entry.Kind == runtime.HappenedRestarting {
			waits = append(waits, entry.Message)
		}
	}
	if len(waits) != 2 || !strings.Contains(waits[0], "restart 1") || !strings.Contains(waits[1], "restart 2") {
		t.Errorf("restarts: %q", waits)
	}
	d.act(d.Start, "desk") // begins to count anew
	waitFor(t, "it to give up again", func() bool {
		env = d.get("desk")
		return env.State == runtime.Failed && env.RestartCount == 2 && env.RestartAt.IsZero() && env.Operation == ""
	})
}

func TestBackoffDoubles(t *testing.T) {
	for count, want := range map[int]time.Duration{
		0: 100 * time.Millisecond, 1: 200 * time.Millisecond, 5: 3200 * time.Millisecond, 9: 51200 * time.Millisecond, 10: time.Minute, 1 << 30: time.Minute,
	} {
		if got := runtime.RestartWait(count); got != want {
			t.Errorf("after %d restarts %s, want %s", count, got, want)
		}
	}
}

// pending makes an environment wait long for its restart.
func (d *daemon) pending(name string) *runtime.Environment {
	d.t.Helper()
	env, _ := d.create(kept(name, runtime.RestartAlways))
	d.holdOff(env.ID)
	d.kill(env.ID, 1)
	waitFor(d.t, "the restart to be planned", func() bool { return !d.get(name).RestartAt.IsZero() })
	return d.get(name)
}

// Who asks something of an environment that does not run is told in words for
// people why it does not, and what makes it run: with a restart pending, that it
// comes by itself and when.
func TestNotRunningSaysWhatMakesItRun(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	pending := d.pending("pending")
	dead, _ := d.create(kept("dead", runtime.RestartNo))
	d.kill(dead.ID, 1)
	waitFor(t, "the end", func() bool { return d.get("dead").State == runtime.Failed })
	d.create(kept("stopped", runtime.RestartNo))
	d.act(d.Stop, "stopped")
	for _, test := range []struct{ name, says, hint string }{
		{"pending", `environment "pending" has ended and waits for its restart`, "it restarts by itself at " + pending.RestartAt.UTC().Format(time.RFC3339)},
		{"dead", `environment "dead" has failed`, "start it again: remotegpu env start dead"},
		{"stopped", `environment "stopped" is stopped`, "start it first: remotegpu env start stopped"},
	} {
		_, err := d.RunCommand(t.Context(), runtime.CommandRequest{Environment: test.name, Argv: []string{"true"}})
		p := problem.Of(err)
		if p == nil || p.Reason != problem.EnvNotRunning || p.Message != test.says || !strings.Contains(p.Hint, test.hint) {
			t.Errorf("a command in %s: %+v", test.name, p)
		}
		_, _, err = d.Resume(t.Context(), runtime.ActionRequest{Environment: test.name})
		if p := problem.Of(err); p == nil || p.Reason != problem.EnvNotPaused || strings.Contains(p.Message, "error") {
			t.Errorf("resuming %s: %+v", test.name, p)
		}
	}
}

// holdOff makes the next restart of an environment come a minute later.
func (d *daemon) holdOff(id string) {
	d.t.Helper()
	if _, _, err := d.store.UpdateEnvironment(d.t.Context(), id, nil, func(env *runtime.Environment) error { env.RestartCount = 12; return nil }); err != nil {
		d.t.Fatal(err)
	}
}

func TestSomebodyEndsAPendingRestart(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.pending("stopped")
	d.act(d.Stop, "stopped")
	if env := d.get("stopped"); env.State != runtime.Stopped || !env.RestartAt.IsZero() || env.Problem != nil {
		t.Errorf("stopped: %+v", env)
	}
	d.pending("deleted")
	d.act(d.Delete, "deleted")
	d.pending("started")
	d.act(d.Start, "started")
	if env := d.get("started"); env.State != runtime.Running || env.RestartCount != 0 || !env.RestartAt.IsZero() {
		t.Errorf("started: %+v", env)
	}
	d.act(d.Delete, "stopped")
	d.act(d.Delete, "started")
	d.holdsNothing()
}

// A restart that comes due while an operation holds the environment waits for
// that, and nobody need be told.
func TestRestartWaitsForAnOperationQuietly(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env := d.pending("desk")
	due := time.Now().Add(200 * time.Millisecond)
	if _, _, err := d.store.UpdateEnvironment(t.Context(), env.ID, nil, func(env *runtime.Environment) error { env.RestartAt = due; return nil }); err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	h.faults.Hook(func(method string) {
		if method == "Networks.Publish" {
			<-release
		}
	})
	_, op, err := d.CreatePort(t.Context(), runtime.PortCreateRequest{Environment: "desk", Port: web(8080)})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(due.Add(300 * time.Millisecond)))
	if now := d.get("desk"); now.Operation != op.ID || now.State != runtime.Failed {
		t.Errorf("while an operation holds it: %s, operation %q", now.State, now.Operation)
	}
	h.faults.Hook(nil)
	close(release)
	d.settle(op, nil)
	d.restarted("desk", env.RestartCount+1)
	if said := h.logs.String(); strings.Contains(said, "restart") {
		t.Errorf("logged: %s", said)
	}
}

func TestRestartAcrossTheDaemonsDeath(t *testing.T) {
	h := newHost(t)
	first := start(t, h)
	env := first.pending("desk")
	first.stop()
	// The next daemon honours what is written, and finds its time has come.
	second := start(t, h)
	if got := second.get("desk"); !got.RestartAt.Equal(env.RestartAt) || got.State != runtime.Failed {
		t.Errorf("after the daemon's death: %+v", got)
	}
	if _, _, err := second.store.UpdateEnvironment(t.Context(), env.ID, nil, func(env *runtime.Environment) error {
		env.RestartAt = time.Now().Add(-time.Second)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	second.stop()
	third := start(t, h)
	if got := third.restarted("desk", 13); got.RestartCount != 13 {
		t.Errorf("count: %+v", got)
	}
}

// restartCalls are the calls that a restart makes.
func restartCalls(t *testing.T) []string {
	t.Helper()
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(kept("desk", runtime.RestartAlways))
	calls := callsOf(h, func() { d.kill(env.ID, 1); d.restarted("desk", 1) })
	for _, want := range []string{"Engine.Status", "Engine.Start", "Networks.Attach", "Networks.Publish", "Volumes.Stage", "Desktops.Prepare"} {
		if !slices.Contains(calls, want) {
			t.Fatalf("a restart makes no call %s: %v", want, calls)
		}
	}
	return calls
}

// Every call of a restart fails in turn, before or after its work, once; the
// environment comes back all the same, with all it owns.
func TestRestartThatFailsIsTriedAgain(t *testing.T) {
	for _, call := range restartCalls(t) {
		for _, when := range []runtimetest.When{runtimetest.Before, runtimetest.After} {
			t.Run(fmt.Sprintf("%s/%d", call, when), func(t *testing.T) {
				h := newHost(t)
				d := start(t, h)
				env, _ := d.create(kept("desk", runtime.RestartAlways))
				h.faults.Fail(call, 1, when, errors.New("broken on purpose"))
				d.kill(env.ID, 1)
				if call == "Engine.Status" { // the exit is not recorded; the reconciler finds it
					waitFor(t, "the call", func() bool { return h.faults.Count(call) > 0 })
					waitFor(t, "the reconciler", func() bool { return d.Reconcile(t.Context()) == nil })
				}
				again := d.restarted("desk", 1)
				t.Logf("%-20s %d: running after %d restarts", call, when, again.RestartCount)
				if again.Address != env.Address || len(again.Ports) != 2 || len(h.networks.Published(env.ID)) != 2 {
					t.Errorf("came back without what it owns: %+v", again)
				}
				d.act(d.Delete, "desk")
				d.holdsNothing()
			})
		}
	}
}

// The daemon dies at each call of a restart; the next one finishes it.
func TestRestartGoesOnAfterTheDaemonDied(t *testing.T) {
	for _, call := range restartCalls(t) {
		t.Run(call, func(t *testing.T) {
			h := newHost(t)
			first := start(t, h)
			env, _ := first.create(kept("desk", runtime.RestartAlways))
			reached, release := make(chan struct{}), make(chan struct{})
			var once sync.Once
			h.faults.Hook(func(method string) {
				if method == call {
					once.Do(func() { close(reached); <-release })
				}
			})
			first.kill(env.ID, 1)
			select {
			case <-reached:
			case <-time.After(20 * time.Second):
				t.Fatalf("the restart does not reach %s", call)
			}
			stopped := make(chan struct{})
			go func() { first.stop(); close(stopped) }()
			time.Sleep(10 * time.Millisecond)
			h.faults.Hook(nil)
			close(release)
			<-stopped
			second := start(t, h)
			if again := second.restarted("desk", 1); again.RestartCount != 1 {
				t.Errorf("it was restarted %d times", again.RestartCount)
			}
			second.act(second.Delete, "desk")
			second.holdsNothing()
		})
	}
}

func TestReboot(t *testing.T) {
	h := newHost(t)
	h.boot = "boot-1"
	first := start(t, h)
	envs := map[string]*runtime.Environment{}
	for _, mode := range []runtime.RestartMode{runtime.RestartNo, runtime.RestartOnFailure, runtime.RestartAlways, runtime.RestartUnlessStopped} {
		envs[string(mode)], _ = first.create(kept(string(mode), mode))
	}
	first.create(kept("stopped", runtime.RestartAlways))
	first.act(first.Stop, "stopped")
	first.stop()
	h.engine.Forget()
	for _, env := range envs { // namespaces, mounts and sockets went with the kernel
		for _, err := range []error{
			h.networks.Detach(t.Context(), env.ID), h.volumes.Unstage(t.Context(), env.ID), h.desktops.Remove(t.Context(), env.ID),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	h.boot = "boot-2"
	second := start(t, h)
	for name, before := range envs {
		if name == string(runtime.RestartNo) {
			continue
		}
		after := second.restarted(name, 1)
		if after.Address != before.Address || !slices.EqualFunc(after.Ports, before.Ports, func(a, b port.Mapping) bool { return a.External == b.External }) ||
			len(h.networks.Published(before.ID)) != 2 {
			t.Errorf("%s came back as %+v", name, after)
		}
	}
	if env := second.get("no"); env.State != runtime.Failed || env.Problem == nil || env.Problem.Reason != string(problem.HostRebooted) {
		t.Errorf("without a policy: %+v %+v", env, env.Problem)
	}
	if env := second.get("stopped"); env.State != runtime.Stopped || !env.RestartAt.IsZero() {
		t.Errorf("what somebody stopped: %+v", env)
	}
	second.act(second.Start, "no")
	second.stop()
	// A daemon that starts again in the same boot finds no reboot.
	h.engine.Forget()
	third := start(t, h)
	if env := third.get("no"); env.Problem == nil || env.Problem.Reason != string(problem.ProcessExited) {
		t.Errorf("in the same boot: %+v", env.Problem)
	}
}

func TestHistoryAndOOM(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(full("desk"))
	h.engine.OOM(env.ID)
	waitFor(t, "the event", func() bool { kinds, _ := d.history("desk"); return slices.Contains(kinds, runtime.HappenedOOM) })
	d.act(d.Stop, "desk")
	d.act(d.Start, "desk")
	h.faults.FailCall("Engine.Start", 1, errdefs.ErrUnavailable)
	d.act(d.Restart, "desk")
	d.act(d.Delete, "desk")
	kinds, entries := d.history(env.ID) // by its id, though deleted
	if want := []string{"created", "started", "oom", "stopped", "started", "stopped", "error", "deleted"}; !slices.Equal(kinds, want) {
		t.Errorf("history %v, want %v", kinds, want)
	}
	for _, stopped := range []runtime.History{entries[2], entries[4]} { // a restart keeps how the process ended that it replaces
		if stopped.Kind != "stopped" || stopped.Exit == nil {
			t.Errorf("stopped without an exit: %+v", stopped)
		}
	}
	page, next, err := d.History(t.Context(), "", env.ID, 3, "")
	if err != nil || len(page) != 3 || next == "" {
		t.Fatalf("first page: %v %q %v", page, next, err)
	}
	rest, last, err := d.History(t.Context(), "", env.ID, 10, next)
	if err != nil || len(rest) != 5 || last != "" || rest[0].Kind != "started" {
		t.Errorf("second page: %v %q %v", rest, last, err)
	}
	if _, _, err := d.History(t.Context(), "", "nobody", 0, ""); reasonOf(err) != problem.EnvNotFound {
		t.Errorf("history of nobody: %v", err)
	}
}

// What the kernel kills in an environment is a change of it, also when nobody
// heard of it or an operation was at work. The next run begins at 0.
func TestOOMKills(t *testing.T) {
	h := newHost(t)
	first := start(t, h)
	env, _ := first.create(full("desk"))
	changed := make(chan *runtime.Environment, 100)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = first.Watch(ctx, runtime.Filter{}, "", func(c runtime.Change) error {
			if !c.Synced && c.Environment.OOMKills > 0 {
				changed <- c.Environment
			}
			return nil
		})
	}()
	for kills := 1; kills <= 2; kills++ {
		h.engine.OOM(env.ID)
		select {
		case env := <-changed:
			if env.OOMKills != kills || env.State != runtime.Running {
				t.Errorf("told %+v, want %d kills", env, kills)
			}
		case <-time.After(time.Minute):
			t.Fatal("watchers are not told")
		}
	}
	cancel()
	<-ended
	if again := first.get("desk"); again.OOMKills != 2 {
		t.Errorf("kept %d kills, want 2", again.OOMKills)
	}
	first.stop()
	h.engine.OOM(env.ID)
	second := start(t, h)
	waitFor(t, "the pass to find it", func() bool { return second.get("desk").OOMKills == 3 })
	// It comes while a stop is at work.
	h.faults.Hook(func(method string) {
		if method == "Engine.Stop" {
			h.engine.OOM(env.ID)
		}
	})
	second.act(second.Stop, "desk")
	h.faults.Hook(nil)
	waitFor(t, "the end of the stop to look", func() bool { return second.get("desk").OOMKills == 4 })
	if stopped := second.get("desk"); stopped.State != runtime.Stopped || stopped.Exit == nil || !stopped.Exit.OOMKilled {
		t.Errorf("stopped: %+v", stopped)
	}
	second.act(second.Start, "desk")
	if started := second.get("desk"); started.State != runtime.Running || started.OOMKills != 0 || started.Exit != nil {
		t.Errorf("the next run: %+v", started)
	}
	h.engine.OOM(env.ID)
	waitFor(t, "the next kill", func() bool { return second.get("desk").OOMKills == 1 })
	kinds, entries := second.history("desk")
	count := 0
	for _, kind := range kinds {
		if kind == runtime.HappenedOOM {
			count++
		}
	}
	if count != 5 || !strings.Contains(entries[0].Message, "killed a process") {
		t.Errorf("history %v, want five times oom", kinds)
	}
}

func TestWatchResumes(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	watch := func(d *daemon, after string, until func(runtime.Change) bool) (changes []runtime.Change, err error) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		enough := errors.New("enough")
		err = d.Watch(ctx, runtime.Filter{}, after, func(c runtime.Change) error {
			changes = append(changes, c)
			if until(c) {
				return enough
			}
			return nil
		})
		if errors.Is(err, enough) {
			err = nil
		}
		return changes, err
	}
	synced, err := watch(d, "", func(c runtime.Change) bool { return c.Synced })
	if err != nil || len(synced) != 1 || synced[0].Token == "" {
		t.Fatalf("empty watch: %+v %v", synced, err)
	}
	d.create(full("desk"))
	d.act(d.Stop, "desk")
	all, err := watch(d, synced[0].Token, func(c runtime.Change) bool { return c.Environment.State == runtime.Stopped })
	if err != nil || all[0].Environment.State != runtime.Creating {
		t.Fatalf("resumed: %+v %v", all, err)
	}
	for i := range all { // from each place exactly the rest
		if i == len(all)-1 {
			break
		}
		rest, err := watch(d, all[i].Token, func(c runtime.Change) bool { return c.Environment.State == runtime.Stopped })
		if err != nil || len(rest) != len(all)-i-1 {
			t.Errorf("resumed after %d: %d changes %v, want %d", i, len(rest), err, len(all)-i-1)
		}
	}
	never := func(runtime.Change) bool { return true }
	if _, err := watch(d, "nonsense", never); reasonOf(err) != problem.FieldInvalid {
		t.Errorf("no token: %v", err)
	}
	// As many changes as are kept are told, one more is too many.
	stopped := all[len(all)-1].Token
	rename := func(i int) {
		if _, err := d.Rename(t.Context(), runtime.RenameRequest{Environment: all[0].Environment.ID, Name: fmt.Sprintf("desk-%d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range runtime.KeepChanges {
		rename(i)
	}
	named := func(i int) func(runtime.Change) bool {
		return func(c runtime.Change) bool { return c.Environment.Name == fmt.Sprintf("desk-%d", i) }
	}
	kept, err := watch(d, stopped, named(runtime.KeepChanges-1))
	if err != nil || len(kept) != runtime.KeepChanges || kept[0].Environment.Name != "desk-0" {
		t.Errorf("resumed over all that is kept: %d changes %v, want %d", len(kept), err, runtime.KeepChanges)
	}
	rename(runtime.KeepChanges)
	if _, err := watch(d, stopped, never); reasonOf(err) != problem.ResumeTokenTooOld || !strings.Contains(err.Error(), "more than the last") {
		t.Errorf("a token with too many changes since: %v", err)
	}
	if rest, err := watch(d, kept[0].Token, named(runtime.KeepChanges)); err != nil || len(rest) != runtime.KeepChanges {
		t.Errorf("the oldest token that is known: %d changes %v, want %d", len(rest), err, runtime.KeepChanges)
	}
	d.stop()
	if _, err := watch(start(t, h), kept[0].Token, never); reasonOf(err) != problem.ResumeTokenTooOld || !errdefs.IsOutOfRange(err) {
		t.Errorf("a token of another life: %v", err)
	}
}
