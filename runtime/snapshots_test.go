package runtime_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// small is a request whose environment runs testprog.
func small(name string) runtime.CreateRequest {
	return runtime.CreateRequest{Name: name, Spec: runtime.Spec{
		Image: image, Entrypoint: []string{"/bin/testprog"}, Command: []string{"sleep"},
		Ports: []port.Request{{Service: port.SSH, Protocol: port.TCP}},
	}}
}

// run runs testprog in an environment.
func (d *daemon) run(name string, args ...string) string {
	d.t.Helper()
	result, err := d.RunCommand(d.t.Context(), runtime.CommandRequest{Environment: name, Argv: append([]string{"testprog"}, args...)})
	if err != nil || result.ExitCode != 0 {
		d.t.Fatalf("run %q in %s: %+v, %v", args, name, result, err)
	}
	return strings.TrimSpace(string(result.Stdout))
}

func (d *daemon) snapshot(env, name string) (*runtime.Snapshot, *operation.Operation) {
	d.t.Helper()
	snapshot, op, err := d.CreateSnapshot(d.t.Context(), runtime.CreateSnapshotRequest{Environment: env, Name: name})
	if err != nil {
		d.t.Fatalf("snapshot: %v", err)
	}
	op = d.done(op)
	if now, err := d.Snapshot(d.t.Context(), "", snapshot.ID); err == nil {
		snapshot = now
	}
	return snapshot, op
}

func (d *daemon) rollBack(req runtime.RollBackRequest) (*runtime.Environment, *operation.Operation) {
	d.t.Helper()
	env, op, err := d.RollBack(d.t.Context(), req)
	if err != nil {
		d.t.Fatalf("roll back: %v", err)
	}
	op = d.done(op)
	if env, err = d.Get(d.t.Context(), "", env.ID); err != nil {
		d.t.Fatal(err)
	}
	return env, op
}

// pause pauses a container as a copy does.
func (h *host) pause(id string) { _ = h.engine.SetPaused(id, true) }

// settled fails the test unless the environment "desk" is as it was, nobody works on
// it, and snapshots are whole and known or not there at all.
func (d *daemon) settled(state runtime.State) {
	d.t.Helper()
	env, err := d.Get(d.t.Context(), "", "desk")
	if err != nil || env.State != state || env.Operation != "" {
		d.t.Errorf("environment: %+v, %v, want it idle and %s", env, err, state)
		return
	}
	if d.host.engine.IsPaused(env.ID) {
		d.t.Error("the environment is paused")
	}
	rows, _, err := d.store.Snapshots(d.t.Context(), runtime.SnapshotFilter{})
	if err != nil {
		d.t.Fatal(err)
	}
	var known, there []string
	for _, row := range rows {
		known = append(known, "snapshot "+row.ID)
		if row.State != runtime.SnapshotReady || row.Operation != "" || row.Freezes {
			d.t.Errorf("snapshot: %+v", row)
		}
	}
	for _, left := range d.host.engine.Leftovers() {
		if strings.HasPrefix(left, "snapshot ") {
			there = append(there, left)
		}
	}
	slices.Sort(known)
	if !slices.Equal(known, there) {
		d.t.Errorf("known are %q, there are %q", known, there)
	}
}

func TestSnapshots(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(small("desk"))
	d.run("desk", "write", "/kept", "one")
	first, op := d.snapshot("desk", "first")
	if op.State != operation.Succeeded || op.Result["snapshot"] != first.ID || first.State != runtime.SnapshotReady || first.EnvID != env.ID ||
		first.Method != runtime.SnapshotCopy || first.Layer.Parent != "" || first.Layer.Image != image || first.Spec.Image != image || first.EnvName != "desk" {
		t.Fatalf("first: %+v by %+v", first, op)
	}
	d.settled(runtime.Running)
	d.run("desk", "write", "/kept", "two")
	d.act(d.Stop, "desk")
	second, op := d.snapshot("desk", "")
	if op.State != operation.Succeeded || second.Method != runtime.SnapshotCommit || !strings.HasPrefix(second.Name, "s20") {
		t.Fatalf("second: %+v by %+v", second, op)
	}
	d.settled(runtime.Stopped)
	d.act(d.Start, "desk")
	d.run("desk", "write", "/kept", "three")
	if third, _ := d.snapshot("desk", "third"); third.Layer.Parent != second.ID {
		t.Errorf("third: %+v, want it on top of %s", third.Layer, second.ID)
	}

	if _, _, err := d.RollBack(t.Context(), runtime.RollBackRequest{Environment: "desk", Snapshot: "first"}); reasonOf(err) != problem.EnvRunning {
		t.Errorf("roll back of what runs: %v", err)
	}
	rolled, op := d.rollBack(runtime.RollBackRequest{Environment: "desk", Snapshot: "first", Force: true})
	if op.State != operation.Succeeded || rolled.State != runtime.Running || rolled.Address != env.Address || d.run("desk", "cat", "/kept") != "one" {
		t.Errorf("rolled back: %+v by %+v", rolled, op)
	}
	d.act(d.Stop, "desk")
	if rolled, _ = d.rollBack(runtime.RollBackRequest{Environment: "desk", Snapshot: second.ID}); rolled.State != runtime.Stopped {
		t.Errorf("rolled back while stopped: %+v", rolled)
	}

	request := small("clone")
	request.Spec.Image, request.Spec.Snapshot = "", "desk/first"
	clone, op := d.create(request)
	if op.State != operation.Succeeded || clone.Spec.Snapshot != first.ID || clone.Spec.Image != image || clone.Digest != env.Digest ||
		clone.Address == env.Address || clone.Ports[0].External == env.Ports[0].External || d.run("clone", "cat", "/kept") != "one" {
		t.Errorf("clone: %+v by %+v", clone, op)
	}
	d.run("clone", "write", "/kept", "lost")
	if _, op := d.rollBack(runtime.RollBackRequest{Environment: "clone", Snapshot: "desk/first", Force: true}); op.State != operation.Succeeded || d.run("clone", "cat", "/kept") != "one" {
		t.Errorf("roll back to what it was made from: %+v", op)
	}

	reference, op, err := d.Export(t.Context(), runtime.ExportRequest{Snapshot: "desk/third"})
	if err != nil || reference != "docker.io/remotegpu/snapshot/desk:third" {
		t.Fatalf("export: %s, %v", reference, err)
	}
	if op = d.done(op); op.State != operation.Succeeded || op.Result["image"] != reference || op.Result["digest"] == "" {
		t.Errorf("export: %+v", op)
	}
	request = small("exported")
	request.Spec.Image = reference
	if _, op := d.create(request); op.State != operation.Succeeded || d.run("exported", "cat", "/kept") != "three" {
		t.Errorf("environment of the image: %+v", op)
	}

	history, _, err := d.History(t.Context(), "", "desk", 0, "")
	if err != nil || !slices.ContainsFunc(history, func(e runtime.History) bool { return e.Kind == runtime.HappenedRolledBack }) ||
		!slices.ContainsFunc(history, func(e runtime.History) bool { return e.Kind == runtime.HappenedSnapshot }) {
		t.Errorf("history: %+v, %v", history, err)
	}
	// Snapshots outlive their environment, and what is made from them.
	d.act(d.Delete, "desk")
	if all, _, err := d.ListSnapshots(t.Context(), env.ID, runtime.SnapshotFilter{}); err != nil || len(all) != 3 || all[0].ID != first.ID {
		t.Errorf("snapshots of a deleted environment: %+v, %v", all, err)
	}
	if err := d.DeleteSnapshot(t.Context(), "", env.ID+"/third", ""); err != nil {
		t.Errorf("delete by name of a deleted environment: %v", err)
	}
	for _, id := range []string{first.ID, second.ID} {
		if err := d.DeleteSnapshot(t.Context(), "", id, ""); err != nil {
			t.Error(err)
		}
	}
	if err := d.DeleteSnapshot(t.Context(), "", first.ID, ""); reasonOf(err) != problem.SnapshotNotFound {
		t.Errorf("delete again: %v", err)
	}
	for _, name := range []string{"clone", "exported"} {
		d.act(d.Delete, name)
	}
	d.holdsNothing()
}

// TestSnapshotsOfDeletedEnvironments: the name that a list tells finds them, as
// long as it can mean one only.
func TestSnapshotsOfDeletedEnvironments(t *testing.T) {
	d := start(t, newHost(t))
	d.create(small("early"))
	d.run("early", "write", "/kept", "one")
	first, _ := d.snapshot("early", "first")
	d.snapshot("early", "both")
	if _, err := d.Rename(t.Context(), runtime.RenameRequest{Environment: "early", Name: "desk"}); err != nil {
		t.Fatal(err)
	}
	is := func(when, name string, want *runtime.Snapshot, gone bool) {
		t.Helper()
		if got, err := d.Snapshot(t.Context(), "", name); err != nil || got.ID != want.ID || got.EnvDeleted != gone || got.EnvName != "desk" {
			t.Errorf("%s, %s: %+v, %v, want %s", when, name, got, err, want.ID)
		}
	}
	is("renamed", "desk/first", first, false)
	d.act(d.Delete, "desk")
	is("deleted", "desk/first", first, true)
	if _, err := d.store.PurgeDeleted(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	is("forgotten", "desk/first", first, true)
	if all, _, err := d.ListSnapshots(t.Context(), "desk", runtime.SnapshotFilter{}); err != nil || len(all) != 2 || !all[0].EnvDeleted {
		t.Errorf("snapshots by the name of a deleted environment: %+v, %v", all, err)
	}
	if _, err := d.Snapshot(t.Context(), "elsewhere", "desk/first"); reasonOf(err) != problem.SnapshotNotFound {
		t.Errorf("from another project: %v", err)
	}

	// The next of that name is made from one of its snapshots, and has its own.
	request := small("desk")
	request.Spec.Image, request.Spec.Snapshot = "", "desk/first"
	desk, op := d.create(request)
	if op.State != operation.Succeeded || desk.Spec.Snapshot != first.ID || d.run("desk", "cat", "/kept") != "one" {
		t.Fatalf("made of it: %+v by %+v", desk, op)
	}
	both, _ := d.snapshot("desk", "both")
	is("a new one", "desk/first", first, true)
	is("a new one", "desk/both", both, false)
	if all, _, err := d.ListSnapshots(t.Context(), "desk", runtime.SnapshotFilter{}); err != nil || len(all) != 1 || all[0].ID != both.ID {
		t.Errorf("snapshots of the new one: %+v, %v", all, err)
	}
	// A delete that is repeated takes no other one.
	err := d.DeleteSnapshot(t.Context(), "", "desk/first", "")
	if p := problem.Of(err); err == nil || p.Reason != problem.SnapshotNotFound || !strings.Contains(p.Hint, first.ID) {
		t.Errorf("delete by the name of a new one: %v", err)
	}
	d.run("desk", "write", "/kept", "two")
	if _, op := d.rollBack(runtime.RollBackRequest{Environment: "desk", Snapshot: "desk/first", Force: true}); op.State != operation.Succeeded || d.run("desk", "cat", "/kept") != "one" {
		t.Errorf("rolled back to what it was made from: %+v", op)
	}

	d.act(d.Delete, "desk")
	_, err = d.Snapshot(t.Context(), "", "desk/both")
	if p := problem.Of(err); err == nil || p.Reason != problem.SnapshotAmbiguous || !strings.Contains(p.Hint, both.ID) {
		t.Errorf("of two deleted environments: %v", err)
	}
	if _, _, err := d.Export(t.Context(), runtime.ExportRequest{Snapshot: "desk/both"}); reasonOf(err) != problem.SnapshotAmbiguous {
		t.Errorf("export of either: %v", err)
	}
	if err := d.DeleteSnapshot(t.Context(), "", both.ID, ""); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"desk/both", "desk/first"} {
		if err := d.DeleteSnapshot(t.Context(), "", name, ""); err != nil {
			t.Errorf("delete %s: %v", name, err)
		}
	}
	if _, _, err := d.ListSnapshots(t.Context(), "desk", runtime.SnapshotFilter{}); reasonOf(err) != problem.EnvNotFound {
		t.Errorf("snapshots of nobody: %v", err)
	}
	d.holdsNothing()
}

func TestSnapshotRefuses(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(small("desk"))
	d.create(small("other"))
	kept, _ := d.snapshot("desk", "kept")
	of, _ := d.snapshot("other", "kept")
	failing := small("never")
	failing.Spec.Entrypoint = []string{"/absent"}
	d.create(failing)
	for _, test := range []struct {
		name string
		do   func() error
		want problem.Reason
	}{
		{"of nothing", func() error { return refused(d, "nobody", "", "") }, problem.EnvNotFound},
		{"of what was never made", func() error { return refused(d, "never", "", "") }, problem.EnvNotStartable},
		{"name", func() error { return refused(d, "desk", "No Name", "") }, problem.SnapshotNameInvalid},
		{"name twice", func() error { return refused(d, "desk", "kept", "") }, problem.SnapshotNameExists},
		{"etag", func() error { return refused(d, "desk", "x", "999") }, problem.EtagMismatch},
		{"get", func() error { _, err := d.Snapshot(t.Context(), "", "kept"); return err }, problem.SnapshotNotFound},
		{"get of nothing", func() error { _, err := d.Snapshot(t.Context(), "", "nobody/kept"); return err }, problem.SnapshotNotFound},
		{"list of nothing", func() error {
			_, _, err := d.ListSnapshots(t.Context(), "nobody", runtime.SnapshotFilter{})
			return err
		}, problem.EnvNotFound},
		{"roll back to another's", func() error {
			_, _, err := d.RollBack(t.Context(), runtime.RollBackRequest{Environment: "desk", Snapshot: of.ID, Force: true})
			return err
		}, problem.FieldInvalid},
		{"roll back to nothing", func() error {
			_, _, err := d.RollBack(t.Context(), runtime.RollBackRequest{Environment: "desk", Snapshot: "x", Force: true})
			return err
		}, problem.SnapshotNotFound},
		{"delete with an old etag", func() error { return d.DeleteSnapshot(t.Context(), "", kept.ID, "999") }, problem.EtagMismatch},
		{"export to no reference", func() error {
			_, _, err := d.Export(t.Context(), runtime.ExportRequest{Snapshot: kept.ID, Reference: "Not One"})
			return err
		}, problem.ImageReferenceBad},
		{"export to a digest", func() error {
			_, _, err := d.Export(t.Context(), runtime.ExportRequest{Snapshot: kept.ID, Reference: "team/app@sha256:" + strings.Repeat("0", 64)})
			return err
		}, problem.ImageReferenceBad},
		{"create from nothing", func() error { return notMade(d, func(s *runtime.Spec) { s.Image, s.Snapshot = "", "desk/x" }) }, problem.SnapshotNotFound},
		{"create from another image", func() error { return notMade(d, func(s *runtime.Spec) { s.Image, s.Snapshot = "other", "desk/kept" }) }, problem.FieldInvalid},
		{"create and pull", func() error {
			return notMade(d, func(s *runtime.Spec) { s.Image, s.Snapshot, s.PullPolicy = "", "desk/kept", runtime.PullAlways })
		}, problem.FieldInvalid},
		{"create from neither", func() error { return notMade(d, func(s *runtime.Spec) { s.Image = "" }) }, problem.ImageReferenceBad},
	} {
		err := test.do()
		if p := problem.Of(err); err == nil || p.Reason != test.want || p.Hint == "" {
			t.Errorf("%s: %v, want %s with a hint", test.name, err, test.want)
		}
	}
	d.settled(runtime.Running)
	// What no layer can hold fails the operation, and nothing else.
	d.run("desk", "write", "/.wh.x", "y")
	if _, op := d.snapshot("desk", "bad"); op.State != operation.Failed || op.Problem.Reason != string(problem.SnapshotNotCopyable) {
		t.Errorf("not copyable: %+v", op)
	}
	d.settled(runtime.Running)
	// While an operation works on one, nobody else does.
	held := make(chan struct{})
	h.faults.Hook(func(method string) {
		if method == "Engine.ExportSnapshot" {
			<-held
		}
	})
	_, op, err := d.Export(t.Context(), runtime.ExportRequest{Snapshot: kept.ID, Reference: "one"})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.DeleteSnapshot(t.Context(), "", kept.ID, ""); reasonOf(err) != problem.SnapshotBusy {
		t.Errorf("delete during an export: %v", err)
	}
	if _, _, err := d.Export(t.Context(), runtime.ExportRequest{Snapshot: kept.ID, Reference: "two"}); reasonOf(err) != problem.SnapshotBusy {
		t.Errorf("two exports: %v", err)
	}
	close(held)
	if op = d.done(op); op.State != operation.Succeeded {
		t.Errorf("export: %+v", op)
	}
}

func refused(d *daemon, env, name, etag string) error {
	_, _, err := d.CreateSnapshot(d.t.Context(), runtime.CreateSnapshotRequest{Environment: env, Name: name, Etag: etag})
	return err
}

func notMade(d *daemon, change func(*runtime.Spec)) error {
	request := small("made")
	change(&request.Spec)
	_, _, err := d.Create(d.t.Context(), request)
	return err
}

// The same request again answers with the first one's operation.
func TestSnapshotRequestsRepeat(t *testing.T) {
	d := start(t, newHost(t))
	d.create(small("desk"))
	take := runtime.CreateSnapshotRequest{RequestID: "r1", Environment: "desk", Name: "kept"}
	first, op1, err := d.CreateSnapshot(t.Context(), take)
	if err != nil {
		t.Fatal(err)
	}
	d.done(op1)
	if again, op, err := d.CreateSnapshot(t.Context(), take); err != nil || op.ID != op1.ID || again.ID != first.ID {
		t.Errorf("again: %+v, %+v, %v", again, op, err)
	}
	take.Name = "other"
	if _, _, err := d.CreateSnapshot(t.Context(), take); reasonOf(err) != problem.RequestIDReused {
		t.Errorf("another request: %v", err)
	}
	export := runtime.ExportRequest{RequestID: "r2", Snapshot: first.ID}
	reference, op2, err := d.Export(t.Context(), export)
	if err != nil {
		t.Fatal(err)
	}
	d.done(op2)
	if again, op, err := d.Export(t.Context(), export); err != nil || op.ID != op2.ID || again != reference {
		t.Errorf("again: %s, %+v, %v", again, op, err)
	}
	back := runtime.RollBackRequest{RequestID: "r3", Environment: "desk", Snapshot: "kept", Force: true}
	_, op3 := d.rollBack(back)
	if _, op, err := d.RollBack(t.Context(), back); err != nil || op.ID != op3.ID {
		t.Errorf("again: %+v, %v", op, err)
	}
}

// Snapshots that name none have names of their own however fast they come, and
// a repeated request is the same one.
func TestSnapshotsOfOneSecond(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(small("desk"))
	d.act(d.Stop, "desk")
	names := make(map[string]bool)
	for i := range 5 {
		request := runtime.CreateSnapshotRequest{Environment: "desk", RequestID: fmt.Sprint("r", i)}
		taken, op, err := d.CreateSnapshot(t.Context(), request)
		if err != nil {
			t.Fatalf("the %d. snapshot: %v", i+1, err)
		}
		if op = d.done(op); op.State != operation.Succeeded {
			t.Fatalf("the %d. snapshot: %+v", i+1, op)
		}
		again, same, err := d.CreateSnapshot(t.Context(), request)
		if err != nil || again.ID != taken.ID || same.ID != op.ID {
			t.Errorf("repeated: %+v, %+v, %v, want %s", again, same, err, taken.ID)
		}
		names[taken.Name] = true
	}
	if len(names) != 5 {
		t.Errorf("names: %v", names)
	}
	if _, _, err := d.CreateSnapshot(t.Context(), runtime.CreateSnapshotRequest{Environment: "desk", Name: slices.Collect(maps.Keys(names))[0]}); reasonOf(err) != problem.SnapshotNameExists {
		t.Errorf("a name that was asked for: %v", err)
	}
}

// An export that names no reference takes none of another project's.
func TestExportsOfProjectsAreApart(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	for project, want := range map[string]string{"": "docker.io/remotegpu/snapshot/desk:first", "lab": "docker.io/remotegpu/snapshot/lab/desk:first"} {
		request := small("desk")
		request.Project = project
		env, _ := d.create(request)
		snapshot, _ := d.snapshot(env.ID, "first")
		reference, op, err := d.Export(t.Context(), runtime.ExportRequest{Project: project, Snapshot: snapshot.ID})
		if err != nil || reference != want {
			t.Fatalf("export of project %q: %s, %v", project, reference, err)
		}
		if op = d.done(op); op.State != operation.Succeeded || op.Result["image"] != want {
			t.Errorf("export of project %q: %+v", project, op)
		}
	}
}

// Nothing is deleted that an environment is being rolled back to: it would be
// stopped and not start again.
func TestSnapshotThatIsRolledBackTo(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(small("desk"))
	d.run("desk", "write", "/kept", "one")
	d.snapshot("desk", "first")
	d.snapshot("desk", "second")
	d.run("desk", "write", "/kept", "two")
	reached, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	h.faults.Hook(func(method string) {
		if method == "Engine.Stop" {
			once.Do(func() { close(reached); <-release })
		}
	})
	_, op, err := d.RollBack(t.Context(), runtime.RollBackRequest{Environment: "desk", Snapshot: "first", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	<-reached
	p := problem.Of(d.DeleteSnapshot(t.Context(), "", "desk/first", ""))
	if p == nil || p.Reason != problem.SnapshotInUse || p.Field != "snapshot" || !strings.Contains(p.Message, "rolled back") || !strings.Contains(p.Hint, op.ID) {
		t.Errorf("delete: %+v", p)
	}
	if err := d.DeleteSnapshot(t.Context(), "", "desk/second", ""); err != nil {
		t.Errorf("delete of another: %v", err)
	}
	close(release)
	if op = d.done(op); op.State != operation.Succeeded || d.run("desk", "cat", "/kept") != "one" {
		t.Errorf("roll back: %+v", op)
	}
	d.settled(runtime.Running)
	if err := d.DeleteSnapshot(t.Context(), "", "desk/first", ""); err != nil {
		t.Errorf("delete after that: %v", err)
	}
}

// Nothing is deleted that an environment is being made from.
func TestSnapshotInUse(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(small("desk"))
	d.snapshot("desk", "first")
	reached, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	h.faults.Hook(func(method string) {
		if method == "Engine.Create" {
			once.Do(func() { close(reached); <-release })
		}
	})
	request := small("clone")
	request.Spec.Image, request.Spec.Snapshot = "", "desk/first"
	_, op, err := d.Create(context.WithoutCancel(t.Context()), request)
	if err != nil {
		t.Fatal(err)
	}
	<-reached
	if err := d.DeleteSnapshot(t.Context(), "", "desk/first", ""); reasonOf(err) != problem.SnapshotInUse {
		t.Errorf("delete: %v", err)
	}
	close(release)
	if op = d.done(op); op.State != operation.Succeeded {
		t.Errorf("create: %+v", op)
	}
	if err := d.DeleteSnapshot(t.Context(), "", "desk/first", ""); err != nil {
		t.Errorf("delete once it is made: %v", err)
	}
}

// A snapshot of what runs makes it stand still for a moment. Commands, copies and
// health checks of that moment are no failures: they wait for its end. What stays
// so for longer, or is paused for its user, says which of both it is.
func TestCallsWaitForASnapshot(t *testing.T) {
	h := newHost(t)
	h.engine.Dir = t.TempDir()
	d := start(t, h)
	request := small("desk")
	request.Spec.HealthCheck = &runtime.HealthCheck{Command: []string{"testprog", "true"}, Interval: 10 * time.Millisecond, Retries: 1}
	env, _ := d.create(request)
	waitFor(t, "a health check", func() bool { return d.get("desk").Health == runtime.Healthy })

	run := func(timeout time.Duration) error {
		_, err := d.RunCommand(t.Context(), runtime.CommandRequest{Environment: "desk", Argv: []string{"testprog", "true"}, Timeout: timeout})
		return err
	}
	exec := func(ctx context.Context) error {
		var out bytes.Buffer
		_, err := d.Exec(ctx, runtime.ExecRequest{Environment: "desk", Argv: []string{"cat"}},
			runtime.Streams{Stdin: strings.NewReader("whole"), Stdout: &out, Stderr: io.Discard})
		if err == nil && out.String() != "whole" {
			t.Errorf("the command got %q", out.String())
		}
		return err
	}
	stat := func() error {
		_, err := d.StatFile(t.Context(), runtime.Place{Environment: "desk", Path: "/etc/passwd"}, false)
		return err
	}
	reached, release := make(chan struct{}), make(chan struct{})
	h.faults.Hook(func(method string) {
		if method == "Engine.CopyLayer" {
			h.pause(env.ID)
			close(reached)
			<-release
			_ = h.engine.SetPaused(env.ID, false)
		}
	})
	_, op, err := d.CreateSnapshot(t.Context(), runtime.CreateSnapshotRequest{Environment: "desk", Name: "first"})
	if err != nil {
		t.Fatal(err)
	}
	<-reached
	if err := run(10 * time.Millisecond); reasonOf(err) != problem.EnvBusy || problem.Of(err).Hint == "" {
		t.Errorf("a command that does not wait for long: %v", err)
	}
	gone, leave := context.WithTimeoutCause(t.Context(), 10*time.Millisecond, errors.New("the caller has left"))
	defer leave()
	if err := exec(gone); !errors.Is(err, context.Cause(gone)) {
		t.Errorf("a command whose caller leaves: %v", err)
	}
	results := make(chan error, 3)
	go func() { results <- run(0) }()
	go func() { results <- exec(t.Context()) }()
	go func() { results <- stat() }()
	for _, method := range []string{"Engine.Run", "Engine.Exec"} {
		before := h.faults.Count(method)
		waitFor(t, method+" to be tried again", func() bool { return h.faults.Count(method) > before+1 })
	}
	select {
	case err := <-results:
		t.Errorf("a call did not wait: %v", err)
	default:
	}
	if health := d.get("desk").Health; health != runtime.Healthy {
		t.Errorf("health meanwhile: %q", health)
	}
	close(release)
	for range 3 {
		if err := <-results; err != nil {
			t.Errorf("once it went on: %v", err)
		}
	}
	d.done(op)

	d.act(d.Pause, "desk")
	for what, err := range map[string]error{"run": run(0), "exec": exec(t.Context())} {
		if reasonOf(err) != problem.EnvNotRunning || !strings.Contains(problem.Of(err).Hint, "resume") {
			t.Errorf("%s in one that is paused: %v", what, err)
		}
	}
	if err := stat(); err != nil {
		t.Errorf("a file of one that is paused: %v", err)
	}
}
