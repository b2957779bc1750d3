package runtime_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

func (d *daemon) update(req runtime.UpdateRequest) (runtime.Updated, *operation.Operation) {
	d.t.Helper()
	if req.Environment == "" {
		req.Environment = "desk"
	}
	updated, err := d.Update(d.t.Context(), req)
	if err != nil {
		d.t.Fatalf("update: %v", err)
	}
	if updated.Operation == nil {
		return updated, nil
	}
	return updated, d.done(updated.Operation)
}

// agrees fails the test unless store, container and published ports say the
// same of an environment.
func (d *daemon) agrees(when string) *runtime.Environment {
	d.t.Helper()
	env := d.get("desk")
	if env.Operation != "" {
		d.t.Errorf("%s: operation %s owns it", when, env.Operation)
	}
	container, _ := d.host.engine.Container(env.ID)
	if env.Alive() {
		have, want := container.Resources, env.Spec.Resources
		if have.CPUMillis != want.CPUMillis || have.MemoryBytes != want.MemoryBytes || have.SwapBytes != want.SwapBytes || have.Pids != want.Pids {
			d.t.Errorf("%s: the container has %+v, the store %+v", when, have, want)
		}
	}
	held, _, err := d.store.PortMappings(d.t.Context(), "host", port.Filter{EnvID: env.ID})
	if err != nil {
		d.t.Fatal(err)
	}
	for name, mappings := range map[string][]port.Mapping{"held": held, "published": d.host.networks.Published(env.ID)} {
		if got, want := externals(mappings), externals(env.Ports); !slices.Equal(got, want) {
			d.t.Errorf("%s: %s ports %v, the environment has %v", when, name, got, want)
		}
	}
	for _, m := range held {
		if m.Status != port.Active {
			d.t.Errorf("%s: port %d is %s", when, m.External, m.Status)
		}
	}
	if len(env.Ports) != len(env.Spec.Ports) {
		d.t.Errorf("%s: %d ports of %d that are asked for", when, len(env.Ports), len(env.Spec.Ports))
	}
	return env
}

func externals(mappings []port.Mapping) []string {
	var found []string
	for _, m := range mappings {
		found = append(found, fmt.Sprintf("%d:%d/%s", m.External, m.Internal, m.Protocol))
	}
	slices.Sort(found)
	return found
}

func limits(memory, cpu int64) runtime.Spec {
	return runtime.Spec{Resources: runtime.Resources{MemoryBytes: memory, CPUMillis: cpu}}
}

var limitFields = []string{"spec.resources.memory_bytes", "spec.resources.cpu_millis"}

func TestUpdateLimitsAndLabels(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	before, _ := d.create(full("desk"))
	updated, op := d.update(runtime.UpdateRequest{
		Fields: append([]string{"labels"}, limitFields...), Labels: map[string]string{"team": "audio"}, Spec: limits(256<<20, 500),
	})
	if op.State != operation.Succeeded || len(updated.RestartNeeded) != 0 {
		t.Fatalf("update: %+v, %+v", updated, op)
	}
	env := d.agrees("updated")
	if env.Spec.Resources.MemoryBytes != 256<<20 || env.Spec.Resources.CPUMillis != 500 || env.Spec.Resources.Pids != before.Spec.Resources.Pids ||
		env.Labels["team"] != "audio" || len(env.RestartNeeded()) != 0 || !env.StartedAt.Equal(before.StartedAt) {
		t.Errorf("updated: %+v", env)
	}
	d.update(runtime.UpdateRequest{Fields: []string{"spec.resources.memory_bytes"}})
	if env = d.agrees("unlimited"); env.Spec.Resources.MemoryBytes != 0 || env.Spec.Resources.CPUMillis != 500 {
		t.Errorf("unlimited: %+v", env.Spec.Resources)
	}
	if updated, op := d.update(runtime.UpdateRequest{Fields: limitFields, Spec: limits(0, 500)}); op != nil || updated.Environment == nil {
		t.Errorf("an update that changes nothing: %+v", op)
	}
	kinds, entries := d.history(env.ID)
	if !slices.Equal(kinds, []string{"created", "started", "updated", "updated"}) || !strings.Contains(entries[1].Message, "labels, spec.resources.cpu_millis, spec.resources.memory_bytes") {
		t.Errorf("history: %v, %q", kinds, entries[1].Message)
	}
	// A paused process is updated as any other, a stopped one gets it at its start.
	d.act(d.Pause, "desk")
	d.update(runtime.UpdateRequest{Fields: limitFields, Spec: limits(512<<20, 0)})
	if env = d.agrees("paused"); !env.Paused {
		t.Errorf("it is not paused any more: %+v", env)
	}
	d.act(d.Stop, "desk")
	d.update(runtime.UpdateRequest{Fields: limitFields, Spec: limits(128<<20, 0)})
	d.act(d.Start, "desk")
	if env = d.agrees("started"); env.Spec.Resources.MemoryBytes != 128<<20 {
		t.Errorf("started: %+v", env.Spec.Resources)
	}
}

func TestUpdateThatTheKernelRefuses(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	req := plain("desk")
	req.Spec.Resources.MemoryBytes, req.Spec.Command = 1<<30, []string{"eat-memory", "536870912"}
	before, _ := d.create(req)
	_, op := d.update(runtime.UpdateRequest{
		Fields: append([]string{"labels", "spec.ports"}, limitFields...), Labels: map[string]string{"new": "yes"}, Spec: limits(256<<20, 100),
	})
	if op.State != operation.Failed || op.Problem == nil || op.Problem.Reason != string(problem.LimitsRefused) || op.Problem.Hint == "" {
		t.Errorf("operation %+v, problem %+v", op, op.Problem)
	}
	env := d.agrees("refused")
	if env.Labels["new"] != "" || env.Spec.Resources.CPUMillis != 0 || len(env.Ports) != 2 || env.Spec.Resources.MemoryBytes != before.Spec.Resources.MemoryBytes {
		t.Errorf("a part of it was done: %+v", env)
	}
}

func TestUpdatePorts(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	before, _ := d.create(full("desk"))
	var ssh, web port.Mapping
	for _, m := range before.Ports {
		if ssh = m; m.Service == port.Custom {
			web = m
		}
	}
	if before.Ports[0].Service == port.SSH {
		ssh = before.Ports[0]
	}
	set := func(when string, ports ...port.Request) *runtime.Environment {
		t.Helper()
		if _, op := d.update(runtime.UpdateRequest{Fields: []string{"spec.ports"}, Spec: runtime.Spec{Ports: ports}}); op.State != operation.Succeeded {
			t.Fatalf("%s: %+v", when, op.Problem)
		}
		return d.agrees(when)
	}
	env := set("one more", port.Request{Service: port.Custom, Internal: 80, Protocol: port.TCP},
		port.Request{Service: port.Custom, Internal: 81, Protocol: port.TCP}, port.Request{Service: port.SSH, Protocol: port.TCP})
	got := externals(env.Ports)
	for _, kept := range []port.Mapping{ssh, web} {
		if !slices.Contains(got, externals([]port.Mapping{kept})[0]) {
			t.Errorf("%d -> %d was not kept: %v", kept.External, kept.Internal, got)
		}
	}
	env = set("described", port.Request{Service: port.SSH, Protocol: port.TCP, Description: "for people"})
	if len(env.Ports) != 1 || env.Ports[0].ID != ssh.ID || env.Ports[0].Description != "for people" {
		t.Errorf("described: %+v", env.Ports)
	}
	// A host port moves from one port inside to another.
	set("pinned", port.Request{Service: port.Custom, Internal: 80, External: 15000, Protocol: port.TCP})
	env = set("moved", port.Request{Service: port.Custom, Internal: 8080, External: 15000, Protocol: port.TCP})
	if len(env.Ports) != 1 || env.Ports[0].External != 15000 || env.Ports[0].Internal != 8080 {
		t.Errorf("moved: %+v", env.Ports)
	}
	other := plain("other")
	other.Spec.Ports = []port.Request{{Service: port.Custom, Internal: 80, External: 15001, Protocol: port.TCP}}
	d.create(other)
	_, op := d.update(runtime.UpdateRequest{Fields: []string{"spec.ports"}, Spec: runtime.Spec{Ports: []port.Request{
		{Service: port.Custom, Internal: 8080, External: 15000, Protocol: port.TCP}, {Service: port.Custom, Internal: 1, External: 15001, Protocol: port.TCP},
	}}})
	if op.State != operation.Failed || op.Problem.Reason != string(problem.PortTaken) || op.Problem.Field != "spec.ports[1].external_port" {
		t.Errorf("a port of another environment: %+v", op.Problem)
	}
	d.agrees("refused")
	// Ports of a stopped environment follow at once as well; an image starts
	// its VNC server when it starts.
	d.act(d.Stop, "desk")
	set("stopped", port.Request{Service: port.SSH, Protocol: port.TCP})
	d.act(d.Start, "desk")
	env = set("with a server", port.Request{Service: port.SSH, Protocol: port.TCP}, port.Request{Service: port.VNC, Protocol: port.TCP})
	if needed := env.RestartNeeded(); !slices.Equal(needed, []string{"spec.ports"}) {
		t.Errorf("a VNC server is started by a start: %v", needed)
	}
	env = set("without ports")
	if len(env.Ports) != 0 || len(env.RestartNeeded()) != 0 {
		t.Errorf("without ports: %+v", env)
	}
	d.act(d.Delete, "desk")
	d.act(d.Delete, "other")
	d.holdsNothing()
}

// What only a start can change waits for one, or is started for.
func TestUpdateThatNeedsARestart(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	before, _ := d.create(full("desk"))
	change := runtime.Spec{
		Env: map[string]string{"A": "c"}, Command: []string{"tick"}, Hostname: "other", Workdir: "/tmp", Resources: runtime.Resources{ShmBytes: 1 << 20},
	}
	paths := []string{"spec.resources.shm_bytes", "spec.command", "spec.workdir", "spec.env", "spec.hostname", "spec.mounts", "spec.desktop"}
	updated, op := d.update(runtime.UpdateRequest{Fields: paths, Spec: change})
	if op.State != operation.Succeeded || !slices.Equal(updated.RestartNeeded, paths) {
		t.Fatalf("update: %v, %+v", updated.RestartNeeded, op)
	}
	env := d.agrees("waiting")
	if !slices.Equal(env.RestartNeeded(), paths) || env.Spec.Env["A"] != "c" || env.Effective().Desktop == nil || len(env.Effective().Mounts) != 1 {
		t.Errorf("waiting: %+v, needs %v", env, env.RestartNeeded())
	}
	container, _ := h.engine.Container(env.ID)
	if !slices.Contains(container.Env, "A=b") {
		t.Errorf("the container was changed: %v", container.Env)
	}
	// Limits follow at once all the same, and a change back needs nothing.
	d.update(runtime.UpdateRequest{Fields: append(slices.Clone(limitFields), "spec.workdir"), Spec: limits(256<<20, 0)})
	if env = d.agrees("waiting"); slices.Contains(env.RestartNeeded(), "spec.workdir") {
		t.Errorf("what was changed back is waited for: %v", env.RestartNeeded())
	}
	d.stop()
	d = start(t, h)
	if env = d.get("desk"); len(env.RestartNeeded()) != len(paths)-1 {
		t.Errorf("after the daemon's end: %v", env.RestartNeeded())
	}
	d.act(d.Restart, "desk")
	env = d.agrees("restarted")
	container, _ = h.engine.Container(env.ID)
	if len(env.RestartNeeded()) != 0 || !slices.Contains(container.Env, "A=c") || container.Hostname != "other" || !slices.Equal(container.Command, []string{"tick"}) ||
		container.Resources.ShmBytes != 1<<20 || len(container.Mounts) != 3 || env.Clear {
		t.Errorf("restarted: %+v, container %+v", env, container)
	}
	if left := append(h.volumes.Leftovers(), h.desktops.Leftovers()...); len(left) != 0 {
		t.Errorf("of the former spec is left: %v", left)
	}
	// In one step, with what was given back.
	updated, op = d.update(runtime.UpdateRequest{
		Fields: []string{"spec.mounts", "spec.hostname"}, Restart: true,
		Spec: runtime.Spec{Mounts: []volume.Mount{{Type: volume.Tmpfs, Target: "/scratch"}}},
	})
	again := d.agrees("in one step")
	if op.State != operation.Succeeded || len(updated.RestartNeeded) != 0 || len(again.RestartNeeded()) != 0 || again.StartedAt.Equal(env.StartedAt) ||
		again.Spec.Hostname != "desk" || again.Address != before.Address {
		t.Errorf("in one step: %+v, %+v", again, op)
	}
	// A stopped one waits for nothing.
	d.act(d.Stop, "desk")
	if updated, _ := d.update(runtime.UpdateRequest{Fields: []string{"spec.env"}, Spec: runtime.Spec{Env: map[string]string{"B": "1"}}, Restart: true}); len(updated.RestartNeeded) != 0 {
		t.Errorf("stopped: %v", updated.RestartNeeded)
	}
	if env = d.agrees("stopped"); env.State != runtime.Stopped || env.Applied != nil {
		t.Errorf("stopped: %+v", env)
	}
	d.act(d.Delete, "desk")
	d.holdsNothing()
}

// One that is in error has failed with what it had: a restart starts it with
// what it is given.
func TestUpdateStartsWhatIsInError(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(plain("desk"))
	h.faults.FailCall("Engine.Start", 1, problem.New(problem.UserNotFound, "the image has no user"))
	if _, op := d.update(runtime.UpdateRequest{Fields: []string{"spec.user"}, Spec: runtime.Spec{User: "nosuch"}, Restart: true}); op.State != operation.Failed {
		t.Fatalf("a start that fails: %+v", op)
	}
	if env := d.get("desk"); env.State != runtime.Failed {
		t.Fatalf("after a start that failed: %+v", env)
	}
	// Without a restart it waits for somebody to start it.
	d.update(runtime.UpdateRequest{Fields: []string{"spec.workdir"}, Spec: runtime.Spec{Workdir: "/tmp"}})
	if env := d.agrees("not started"); env.State != runtime.Failed {
		t.Errorf("it was started: %+v", env)
	}
	updated, op := d.update(runtime.UpdateRequest{Fields: []string{"spec.user"}, Spec: runtime.Spec{User: "root"}, Restart: true})
	if env := d.agrees("started"); op.State != operation.Succeeded || len(updated.RestartNeeded) != 0 || env.State != runtime.Running || env.Problem != nil || env.Spec.User != "root" {
		t.Errorf("started: %+v, %+v", env, op)
	}
	// Ended by itself, and nothing else is to change.
	d.kill(d.get("desk").ID, 1)
	waitFor(t, "its end", func() bool { return d.get("desk").State == runtime.Failed })
	if _, op := d.update(runtime.UpdateRequest{Restart: true}); op == nil || op.State != operation.Succeeded || d.get("desk").State != runtime.Running {
		t.Errorf("a restart alone: %+v, %+v", op, d.get("desk"))
	}
	d.act(d.Stop, "desk")
	d.act(d.Delete, "desk")
	d.holdsNothing()
}

func TestUpdateHealthCheckAndRestartPolicy(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(plain("desk"))
	check := func(argv ...string) runtime.Spec {
		return runtime.Spec{
			HealthCheck: &runtime.HealthCheck{Command: argv, Interval: 100 * time.Millisecond, Timeout: 5 * time.Second, Retries: 1},
			Restart:     &runtime.RestartPolicy{Mode: runtime.RestartAlways},
		}
	}
	d.update(runtime.UpdateRequest{Fields: []string{"spec.health_check", "spec.restart"}, Spec: check("true")})
	waitFor(t, "its health", func() bool { return d.get("desk").Health == runtime.Healthy })
	d.update(runtime.UpdateRequest{Fields: []string{"spec.health_check"}, Spec: check("cat", "/absent")})
	waitFor(t, "another check", func() bool { return d.get("desk").Health == runtime.Unhealthy })
	d.update(runtime.UpdateRequest{Fields: []string{"spec.health_check"}})
	if env := d.get("desk"); env.Health != runtime.HealthUnknown || env.HealthDetail != "" {
		t.Errorf("without a check: %+v", env)
	}
	env := d.get("desk")
	d.holdOff(env.ID)
	d.kill(env.ID, 1)
	waitFor(t, "a restart to be planned", func() bool { return !d.get("desk").RestartAt.IsZero() })
	d.update(runtime.UpdateRequest{Fields: []string{"spec.restart"}})
	if env := d.get("desk"); !env.RestartAt.IsZero() || env.State != runtime.Failed {
		t.Errorf("without a policy: %+v", env)
	}
}

// policy updates the restart policy of the environment "desk".
func (d *daemon) policy(p runtime.RestartPolicy) *runtime.Environment {
	d.t.Helper()
	if _, op := d.update(runtime.UpdateRequest{Fields: []string{"spec.restart"}, Spec: runtime.Spec{Restart: &p}}); op == nil || op.State != operation.Succeeded {
		d.t.Fatalf("update to %+v: %+v", p, op)
	}
	return d.get("desk")
}

// A policy that is changed is in force at once, also for what is unhealthy
// already: no news of its health would come.
func TestUpdateRestartsWhatIsUnhealthy(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(checked("desk", runtime.HealthCheck{Command: []string{"testprog", "exit", "1"}}))
	d.awaitHealth("desk", runtime.Unhealthy)
	if now := d.policy(runtime.RestartPolicy{Mode: runtime.RestartOnFailure, MaxRetries: 1}); !now.RestartAt.IsZero() || now.RestartCount != 0 {
		t.Errorf("not to be restarted for its health: %+v", now)
	}
	d.policy(runtime.RestartPolicy{Mode: runtime.RestartOnFailure, MaxRetries: 1, OnUnhealthy: true})
	waitFor(t, "the restart", func() bool { return d.get("desk").StartedAt.After(env.StartedAt) })
	d.awaitHealth("desk", runtime.Unhealthy)
	if now := d.get("desk"); now.RestartCount != 1 || !now.RestartAt.IsZero() {
		t.Errorf("beyond its retries: %+v", now)
	}
	d.policy(runtime.RestartPolicy{Mode: runtime.RestartOnFailure, MaxRetries: 2, OnUnhealthy: true})
	d.restarted("desk", 2)
}

// An update that takes away why a restart was planned takes that with it; one
// that does not leaves its time.
func TestUpdateWithdrawsAPendingRestart(t *testing.T) {
	t.Run("unhealthy", func(t *testing.T) {
		for name, end := range map[string]runtime.UpdateRequest{
			"policy": {Fields: []string{"spec.restart"}, Spec: runtime.Spec{Restart: &runtime.RestartPolicy{Mode: runtime.RestartAlways}}},
			"check":  {Fields: []string{"spec.restart", "spec.health_check"}, Spec: runtime.Spec{Restart: &runtime.RestartPolicy{Mode: runtime.RestartAlways}}},
		} {
			h := newHost(t)
			d := start(t, h)
			req := checked("desk", runtime.HealthCheck{Command: []string{"testprog", "exit", "1"}})
			req.Spec.HealthCheck.Retries = 20
			req.Spec.Restart = &runtime.RestartPolicy{Mode: runtime.RestartAlways, OnUnhealthy: true}
			env, _ := d.create(req)
			d.holdOff(env.ID)
			if now := d.awaitHealth("desk", runtime.Unhealthy); now.RestartAt.IsZero() {
				t.Fatalf("%s: no restart is planned: %+v", name, now)
			}
			planned := d.get("desk").RestartAt
			if now := d.policy(runtime.RestartPolicy{Mode: runtime.RestartOnFailure, OnUnhealthy: true}); !now.RestartAt.Equal(planned) {
				t.Errorf("%s: planned for %s, now for %s", name, planned, now.RestartAt)
			}
			d.update(end)
			if now := d.get("desk"); !now.RestartAt.IsZero() || now.State != runtime.Running {
				t.Errorf("%s: %+v", name, now)
			}
		}
	})
	for _, test := range []struct {
		name string
		code int
		to   runtime.RestartPolicy
		kept bool
	}{
		{"it failed", 1, runtime.RestartPolicy{Mode: runtime.RestartOnFailure}, true},
		{"it ended well", 0, runtime.RestartPolicy{Mode: runtime.RestartOnFailure}, false},
		{"fewer retries", 1, runtime.RestartPolicy{Mode: runtime.RestartOnFailure, MaxRetries: 12}, false},
		{"more retries", 1, runtime.RestartPolicy{Mode: runtime.RestartOnFailure, MaxRetries: 13}, true},
		{"no", 1, runtime.RestartPolicy{Mode: runtime.RestartNo}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHost(t)
			d := start(t, h)
			env, _ := d.create(kept("desk", runtime.RestartAlways))
			d.holdOff(env.ID)
			d.kill(env.ID, test.code)
			waitFor(t, "the restart to be planned", func() bool { return !d.get("desk").RestartAt.IsZero() })
			planned := d.get("desk").RestartAt
			if now := d.policy(test.to); now.RestartAt.Equal(planned) != test.kept || now.RestartAt.IsZero() == test.kept {
				t.Errorf("planned for %s, now for %s", planned, now.RestartAt)
			}
		})
	}
}

// One that is in error because its retries are used up is restarted when it is
// given more; one that nobody was to restart waits for a start.
func TestUpdateGivesMoreRetries(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(plain("desk"))
	d.kill(d.get("desk").ID, 1)
	waitFor(t, "the end", func() bool { return d.get("desk").State == runtime.Failed })
	if now := d.policy(runtime.RestartPolicy{Mode: runtime.RestartOnFailure, MaxRetries: 1}); !now.RestartAt.IsZero() || now.State != runtime.Failed {
		t.Fatalf("it ended under no policy: %+v", now)
	}
	d.act(d.Start, "desk")
	d.kill(d.get("desk").ID, 1)
	d.restarted("desk", 1)
	d.kill(d.get("desk").ID, 1)
	waitFor(t, "it to give up", func() bool { env := d.get("desk"); return env.State == runtime.Failed && env.RestartAt.IsZero() })
	d.policy(runtime.RestartPolicy{Mode: runtime.RestartOnFailure, MaxRetries: 3})
	d.restarted("desk", 2)
}

// Who has an update or a roll back start a process starts it: its restarts are
// counted from there.
func TestCountOfRestartsBeginsAnew(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(kept("desk", runtime.RestartOnFailure))
	d.snapshot("desk", "first")
	for name, again := range map[string]func(){
		"update of what runs": func() {
			d.update(runtime.UpdateRequest{Fields: []string{"spec.workdir"}, Spec: runtime.Spec{Workdir: "/tmp"}, Restart: true})
		},
		"roll back": func() { d.rollBack(runtime.RollBackRequest{Environment: "desk", Snapshot: "first", Force: true}) },
		"update of what is in error": func() {
			d.policy(runtime.RestartPolicy{Mode: runtime.RestartNo})
			d.kill(env.ID, 1)
			waitFor(t, "the end", func() bool { return d.get("desk").State == runtime.Failed })
			d.update(runtime.UpdateRequest{Restart: true})
			d.policy(runtime.RestartPolicy{Mode: runtime.RestartOnFailure})
		},
	} {
		d.holdOff(env.ID)
		again()
		if now := d.get("desk"); now.State != runtime.Running || now.RestartCount != 0 || now.Operation != "" {
			t.Errorf("%s: %s after %d restarts", name, now.State, now.RestartCount)
		}
		// What starts nothing counts on.
		d.holdOff(env.ID)
		d.update(runtime.UpdateRequest{Labels: map[string]string{"of": strings.ReplaceAll(name, " ", "-")}, Fields: []string{"labels"}, Restart: true})
		if now := d.get("desk"); now.RestartCount != 12 {
			t.Errorf("after an update that starts nothing: %d", now.RestartCount)
		}
		d.update(runtime.UpdateRequest{Fields: []string{"spec.workdir"}})
	}
}

func TestUpdateRefuses(t *testing.T) {
	h := newHost(t)
	h.volumes.Refuse = func(m volume.Mount) error {
		if m.Source == "/etc" {
			return problem.New(problem.MountNotAllowed, "no").WithField("spec.mounts[0].source").WithHint("another")
		}
		return nil
	}
	d := start(t, h)
	before, _ := d.create(full("desk"))
	for _, test := range []struct {
		name   string
		req    runtime.UpdateRequest
		reason problem.Reason
		field  string
	}{
		{"nothing", runtime.UpdateRequest{}, problem.FieldInvalid, "update_mask"},
		{"an unknown field", runtime.UpdateRequest{Fields: []string{"spec.colour"}}, problem.FieldInvalid, "update_mask"},
		{"its name", runtime.UpdateRequest{Fields: []string{"name"}}, problem.FieldInvalid, "update_mask"},
		{"its image", runtime.UpdateRequest{Fields: []string{"spec.image"}}, problem.FieldInvalid, "update_mask"},
		{"no environment", runtime.UpdateRequest{Environment: "absent", Fields: []string{"labels"}}, problem.EnvNotFound, "environment"},
		{"another etag", runtime.UpdateRequest{Fields: []string{"labels"}, Etag: "1"}, problem.EtagMismatch, "etag"},
		{"too little memory", runtime.UpdateRequest{Fields: limitFields, Spec: limits(1<<20, 0)}, problem.MemoryTooSmall, "spec.resources.memory_bytes"},
		{"less than the image needs", runtime.UpdateRequest{Fields: limitFields, Spec: limits(32<<20, 0)}, problem.MemoryTooSmall, "spec.resources.memory_bytes"},
		{
			"swap without memory",
			runtime.UpdateRequest{Fields: []string{"spec.resources"}, Spec: runtime.Spec{Resources: runtime.Resources{SwapBytes: 1}}},
			problem.FieldInvalid, "spec.resources.swap_bytes",
		},
		{"a mount", runtime.UpdateRequest{Fields: []string{"spec.mounts"}, Spec: runtime.Spec{Mounts: []volume.Mount{{Type: volume.Bind, Source: "/etc", Target: "/x"}}}}, problem.MountNotAllowed, "spec.mounts[0].source"},
		{"a port", runtime.UpdateRequest{Fields: []string{"spec.ports"}, Spec: runtime.Spec{Ports: []port.Request{{Service: port.SSH, External: 80}}}}, problem.PortOutsidePool, "spec.ports[0].external_port"},
		{"a variable", runtime.UpdateRequest{Fields: []string{"spec.env"}, Spec: runtime.Spec{Env: map[string]string{"REMOTEGPU_X": "1"}}}, problem.EnvVariableReserved, `spec.env["REMOTEGPU_X"]`},
		{"a host name", runtime.UpdateRequest{Fields: []string{"spec.hostname"}, Spec: runtime.Spec{Hostname: "-"}}, problem.FieldInvalid, "spec.hostname"},
	} {
		if test.req.Environment == "" {
			test.req.Environment = "desk"
		}
		_, err := d.Update(t.Context(), test.req)
		if p := problem.Of(err); err == nil || p.Reason != test.reason || p.Field != test.field || p.Hint == "" {
			t.Errorf("%s: %v at %q, want %s at %q with a hint", test.name, err, problem.Of(err).Field, test.reason, test.field)
		}
	}
	if env := d.agrees("refused"); env.Revision != before.Revision {
		t.Errorf("a refused update changed something: %+v", env)
	}
	// What was allowed once is not asked about again.
	h.volumes.Refuse = func(volume.Mount) error { return errors.New("not any more") }
	if _, op := d.update(runtime.UpdateRequest{Fields: limitFields, Spec: limits(256<<20, 0)}); op.State != operation.Succeeded {
		t.Errorf("update of limits: %+v", op.Problem)
	}
	// Nothing can be changed of what was never made, but its labels.
	h.volumes.Refuse = nil
	h.faults.FailCall("Engine.Start", 1, errors.New("broken on purpose"))
	d.create(plain("failed"))
	if _, err := d.Update(t.Context(), runtime.UpdateRequest{Environment: "failed", Fields: limitFields, Spec: limits(256<<20, 0)}); reasonOf(err) != problem.EnvNotStartable {
		t.Errorf("update of what was never made: %v", err)
	}
	if _, op := d.update(runtime.UpdateRequest{Environment: "failed", Fields: []string{"labels"}, Labels: map[string]string{"a": "b"}}); op.State != operation.Succeeded {
		t.Errorf("labels of what was never made: %+v", op.Problem)
	}
}

func TestUpdateIsRepeatable(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(full("desk"))
	req := runtime.UpdateRequest{RequestID: "r1", Fields: []string{"spec.env", "labels"}, Labels: map[string]string{"n": "1"}}
	first, op := d.update(req)
	d.update(runtime.UpdateRequest{Fields: []string{"labels"}, Labels: map[string]string{"n": "2"}})
	again, _ := d.update(req)
	if again.Operation.ID != op.ID || !slices.Equal(again.RestartNeeded, first.RestartNeeded) || len(first.RestartNeeded) != 1 || d.get("desk").Labels["n"] != "2" {
		t.Errorf("repeated: %+v, first %+v", again, first)
	}
	req.Labels = nil
	req.Environment = "desk"
	if _, err := d.Update(t.Context(), req); reasonOf(err) != problem.RequestIDReused {
		t.Errorf("another request with the same id: %v", err)
	}
	reached, release := blockCall(t, h, "Engine.Update")
	slow, err := d.Update(t.Context(), runtime.UpdateRequest{Environment: "desk", Fields: limitFields, Spec: limits(256<<20, 0)})
	if err != nil {
		t.Fatal(err)
	}
	await(t, "update", reached)
	if _, err := d.Update(t.Context(), runtime.UpdateRequest{Environment: "desk", Fields: []string{"labels"}}); reasonOf(err) != problem.EnvBusy {
		t.Errorf("a second one meanwhile: %v", err)
	}
	if _, err := d.Rename(t.Context(), runtime.RenameRequest{Environment: "desk", Name: "lab"}); reasonOf(err) != problem.EnvBusy {
		t.Errorf("a rename meanwhile: %v", err)
	}
	if _, err := d.queue.Cancel(t.Context(), slow.Operation.ID); err != nil {
		t.Fatal(err)
	}
	release()
	d.done(slow.Operation)
	d.agrees("cancelled")
}

// everything is an update of all that the host has to follow, with a restart.
func everything(restart bool) runtime.UpdateRequest {
	return runtime.UpdateRequest{
		Environment: "desk", Fields: append([]string{"labels", "spec.ports", "spec.env"}, limitFields...), Labels: map[string]string{"new": "yes"}, Restart: restart,
		Spec: runtime.Spec{
			Resources: runtime.Resources{MemoryBytes: 256 << 20, CPUMillis: 500}, Env: map[string]string{"A": "new"},
			Ports: []port.Request{{Service: port.SSH, Protocol: port.TCP}, {Service: port.Custom, Internal: 8081, Protocol: port.TCP}},
		},
	}
}

// Each call of an update fails in turn, before or after its work: store,
// container and ports agree afterwards, and the next try works.
func TestUpdateThatFailsLeavesAgreement(t *testing.T) {
	for _, restart := range []bool{false, true} {
		probe := newHost(t)
		node := start(t, probe)
		node.create(full("desk"))
		before := len(probe.faults.Calls())
		calls := callsOf(probe, func() { node.update(everything(restart)) })
		made := map[string]int{}
		for _, call := range probe.faults.Calls()[before:] {
			made[call]++
		}
		for _, want := range []string{"Engine.Update", "Networks.Publish", "Store.ChangePorts"} {
			if !slices.Contains(calls, want) {
				t.Fatalf("an update makes no call %s: %v", want, calls)
			}
		}
		t.Logf("%-20s %-3s %-5s %-8s %-10s %s", "call that fails", "nth", "when", "restart", "operation", "changed")
		for _, call := range calls {
			for n := 1; n <= made[call]; n++ {
				for _, when := range []runtimetest.When{runtimetest.Before, runtimetest.After} {
					t.Run(fmt.Sprintf("restart %t/%s %d/%d", restart, call, n, when), func(t *testing.T) {
						h := newHost(t)
						d := start(t, h)
						d.create(full("desk"))
						h.faults.Fail(call, n, when, errors.New("broken on purpose"))
						updated, err := d.Update(t.Context(), everything(restart))
						state := operation.State("refused")
						if err == nil {
							state = d.done(updated.Operation).State
						}
						h.faults.Reset()
						if err := d.Reconcile(t.Context()); err != nil {
							t.Fatal(err)
						}
						env := d.agrees("after the failure")
						t.Logf("%-20s %-3d %-5d %-8t %-10s %t", call, n, when, restart, state, env.Labels["new"] == "yes")
						if changed := env.Labels["new"] == "yes"; changed != (env.Spec.Resources.CPUMillis == 500) || changed != (env.Spec.Env["A"] == "new") {
							t.Errorf("a part of it was done: %+v", env)
						} else if !changed && state == operation.Succeeded {
							t.Errorf("it succeeded and changed nothing: %+v", env)
						}
						if env.State != runtime.Running { // in the middle of its restart
							d.act(d.Start, "desk")
						}
						d.update(everything(true))
						if env := d.agrees("the next try"); env.State != runtime.Running || env.Labels["new"] != "yes" || len(env.RestartNeeded()) != 0 {
							t.Errorf("the next try: %+v", env)
						}
						d.act(d.Delete, "desk")
						d.holdsNothing()
					})
				}
			}
		}
	}
}

// The daemon dies at each call of an update; the next one finishes it.
func TestUpdateGoesOnAfterTheDaemonDied(t *testing.T) {
	probe := newHost(t)
	node := start(t, probe)
	node.create(full("desk"))
	calls := callsOf(probe, func() { node.update(everything(true)) })
	for _, call := range calls {
		if call == "Volumes.Check" || strings.HasPrefix(call, "Images.") {
			continue // only the request makes it
		}
		t.Run(call, func(t *testing.T) {
			h := newHost(t)
			first := start(t, h)
			first.create(full("desk"))
			reached, release := blockCall(t, h, call)
			updated, err := first.Update(t.Context(), everything(true))
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
			if op := second.done(updated.Operation); op.State != operation.Succeeded {
				t.Errorf("operation: %+v", op)
			}
			second.reconcile(false) // an older pass may be about to publish the ports of before; real networks know which is newer
			env := second.agrees("after the restart")
			if env.State != runtime.Running || env.Labels["new"] != "yes" || env.Spec.Env["A"] != "new" || len(env.RestartNeeded()) != 0 {
				t.Errorf("after the restart: %+v", env)
			}
			second.act(second.Delete, "desk")
			second.holdsNothing()
		})
	}
}
