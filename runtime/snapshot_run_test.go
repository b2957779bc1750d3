package runtime_test

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
	"github.com/remotegpu/remotegpu/store"
)

// Every call of a snapshot and of a roll back fails in turn, before or after it
// did its work: the environment goes on with its files, and the next one works.
func TestSnapshotFaults(t *testing.T) {
	broken := errors.New("broken on purpose")
	t.Logf("%-10s %-24s %-4s %-5s %s", "of", "call that fails", "n", "when", "the operation")
	for _, of := range []runtime.State{runtime.Running, runtime.Stopped} {
		calls := []string{"Engine.Status", "Engine.CopyLayer", "Store.UpdateSnapshot"}
		if of == runtime.Stopped {
			calls = []string{"Engine.Status", "Engine.CommitLayer", "Store.UpdateSnapshot"}
		}
		for _, call := range calls {
			for _, when := range []runtimetest.When{runtimetest.Before, runtimetest.After} {
				for n := 1; n <= 2; n++ {
					t.Run(fmt.Sprintf("%s/%s/%d/%d", of, call, n, when), func(t *testing.T) {
						h := newHost(t)
						d := start(t, h)
						d.create(small("desk"))
						d.run("desk", "write", "/kept", "one")
						if of == runtime.Stopped {
							d.act(d.Stop, "desk")
						}
						h.faults.Fail(call, n, when, broken)
						_, op := d.snapshot("desk", "first")
						t.Logf("%-10s %-24s %-4d %-5d %s", of, call, n, when, op.State)
						h.faults.Reset()
						d.settled(of)
						if snapshot, op := d.snapshot("desk", "second"); op.State != operation.Succeeded || snapshot.State != runtime.SnapshotReady {
							t.Errorf("the next one: %+v", op)
						}
						d.settled(of)
						if of == runtime.Stopped {
							d.act(d.Start, "desk")
						}
						if got := d.run("desk", "cat", "/kept"); got != "one" {
							t.Errorf("its files: %q", got)
						}
					})
				}
			}
		}
	}
}

func TestRollBackFaults(t *testing.T) {
	for _, call := range []string{"Engine.Stop", "Engine.ResetLayer", "Engine.Start", "Networks.Publish"} {
		for _, when := range []runtimetest.When{runtimetest.Before, runtimetest.After} {
			t.Run(fmt.Sprintf("%s/%d", call, when), func(t *testing.T) {
				h := newHost(t)
				d := start(t, h)
				d.create(small("desk"))
				d.run("desk", "write", "/kept", "one")
				d.snapshot("desk", "first")
				h.faults.Fail(call, 1, when, errors.New("broken on purpose"))
				env, op := d.rollBack(runtime.RollBackRequest{Environment: "desk", Snapshot: "first", Force: true})
				if op.State != operation.Failed || env.Operation != "" {
					t.Errorf("roll back: %+v, %+v", op, env)
				}
				h.faults.Reset()
				if err := d.Reconcile(t.Context()); err != nil {
					t.Error(err)
				}
				if env, op = d.rollBack(runtime.RollBackRequest{Environment: "desk", Snapshot: "first", Force: true}); op.State != operation.Succeeded {
					t.Fatalf("the next one: %+v", op)
				}
				if env.State != runtime.Running {
					d.act(d.Start, "desk")
				}
				if got := d.run("desk", "cat", "/kept"); got != "one" {
					t.Errorf("its files: %q", got)
				}
				d.settled(runtime.Running)
			})
		}
	}
}

// dies ends a daemon at a call and returns the next one, which runs the
// operation on. between, when not nil, is called while there is none.
func dies(t *testing.T, h *host, d *daemon, call string, at, between func(), begin func() *operation.Operation) (*daemon, *operation.Operation) {
	t.Helper()
	reached, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	h.faults.Hook(func(method string) {
		if method == call {
			once.Do(func() {
				at()
				close(reached)
				<-release
			})
		}
	})
	op := begin()
	select {
	case <-reached:
	case <-time.After(20 * time.Second):
		t.Fatalf("the operation does not reach %s", call)
	}
	stopped := make(chan struct{})
	go func() { d.stop(); close(stopped) }()
	time.Sleep(10 * time.Millisecond) // the queue cancels the handler
	h.faults.Hook(nil)
	close(release)
	<-stopped
	h.faults.Reset()
	if between != nil {
		between()
	}
	next := start(t, h)
	return next, next.done(op)
}

// The daemon dies at each call of a snapshot. The next one finishes it; what was
// paused goes on.
func TestSnapshotGoesOnAfterTheDaemonDied(t *testing.T) {
	for _, of := range []runtime.State{runtime.Running, runtime.Stopped} {
		calls := []string{"Engine.Status", "Engine.CopyLayer", "Store.UpdateSnapshot"}
		if of == runtime.Stopped {
			calls = []string{"Engine.Status", "Engine.CommitLayer", "Store.UpdateSnapshot"}
		}
		for _, call := range calls {
			t.Run(string(of)+"/"+call, func(t *testing.T) {
				h := newHost(t)
				d := start(t, h)
				env, _ := d.create(small("desk"))
				d.run("desk", "write", "/kept", "one")
				if of == runtime.Stopped {
					d.act(d.Stop, "desk")
				}
				next, op := dies(t, h, d, call, func() {
					if call == "Engine.CopyLayer" {
						h.pause(env.ID)
					}
				}, nil, func() *operation.Operation {
					_, op, err := d.CreateSnapshot(t.Context(), runtime.CreateSnapshotRequest{Environment: "desk", Name: "first"})
					if err != nil {
						t.Fatal(err)
					}
					return op
				})
				if op.State != operation.Succeeded {
					t.Fatalf("operation: %+v", op)
				}
				next.settled(of)
				if _, op := next.rollBack(runtime.RollBackRequest{Environment: "desk", Snapshot: "first", Force: true}); op.State != operation.Succeeded {
					t.Errorf("roll back: %+v", op)
				}
			})
		}
	}
}

func TestRollBackGoesOnAfterTheDaemonDied(t *testing.T) {
	for _, call := range []string{"Engine.Stop", "Engine.ResetLayer", "Engine.Start", "Networks.Publish"} {
		t.Run(call, func(t *testing.T) {
			h := newHost(t)
			d := start(t, h)
			d.create(small("desk"))
			d.run("desk", "write", "/kept", "one")
			d.snapshot("desk", "first")
			d.run("desk", "write", "/kept", "two")
			next, op := dies(t, h, d, call, func() {}, nil, func() *operation.Operation {
				_, op, err := d.RollBack(t.Context(), runtime.RollBackRequest{Environment: "desk", Snapshot: "first", Force: true})
				if err != nil {
					t.Fatal(err)
				}
				return op
			})
			if op.State != operation.Succeeded || next.run("desk", "cat", "/kept") != "one" {
				t.Errorf("operation: %+v", op)
			}
			next.settled(runtime.Running)
		})
	}
}

// A snapshot that can neither be taken nor undone is undone by the reconciler.
func TestReconcilerUndoesASnapshot(t *testing.T) {
	for _, call := range []string{"Engine.Resume", "Engine.RemoveSnapshot", "Store.DeleteSnapshot"} {
		t.Run(call, func(t *testing.T) {
			h := newHost(t)
			d := start(t, h)
			env, _ := d.create(small("desk"))
			h.faults.Hook(func(method string) {
				if method == "Engine.CopyLayer" {
					h.pause(env.ID)
				}
			})
			h.faults.Fail("Engine.CopyLayer", 1, runtimetest.After, errors.New("broken on purpose"))
			h.faults.FailCall(call, 0, errors.New("broken as well"))
			if _, op := d.snapshot("desk", "first"); op.State != operation.Failed {
				t.Errorf("operation: %+v", op)
			}
			if env, _ := d.Get(t.Context(), "", "desk"); env.Operation == "" {
				t.Error("the environment is free while it may be paused")
			}
			h.faults.Reset()
			if err := d.Reconcile(t.Context()); err != nil {
				t.Fatal(err)
			}
			d.settled(runtime.Running)
		})
	}
}

// A daemon that finds an interrupted snapshot lets the environment go on before
// it asks the engine for anything else, also when the operation is not run
// again. What protects environments comes before: the engine may not answer.
func TestSnapshotInterruptedTooOften(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(small("desk"))
	var op *operation.Operation
	d, op = dies(t, h, d, "Engine.CopyLayer", func() { h.pause(env.ID) }, func() {
		// As a daemon leaves it that was killed in the last attempt.
		db, err := store.Open(t.Context(), filepath.Join(h.dir, "node.db"), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.UpdateOperation(t.Context(), op.ID, func(op *operation.Operation) error {
			op.State, op.LeaseOwner, op.Attempts = operation.Running, "dead", 9
			return nil
		}); err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}, func() *operation.Operation {
		var err error
		if _, op, err = d.CreateSnapshot(t.Context(), runtime.CreateSnapshotRequest{Environment: "desk", Name: "first"}); err != nil {
			t.Fatal(err)
		}
		return op
	})
	if op.State != operation.Failed || op.Problem.Reason != string(problem.OperationInterrupted) {
		t.Errorf("operation: %+v", op)
	}
	calls := h.faults.Calls()
	first := slices.IndexFunc(calls, func(call string) bool { return strings.HasPrefix(call, "Engine.") })
	if first < 0 || calls[first] != "Engine.Resume" || !slices.Contains(calls[:first], "Networks.Restore") || !slices.Contains(calls[:first], "Store.DNSRecords") {
		t.Errorf("the first calls are %q", calls[:min(5, len(calls))])
	}
	d.settled(runtime.Running)
}

func TestSnapshotCancelled(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(small("desk"))
	reached, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	h.faults.Hook(func(method string) {
		if method == "Engine.CopyLayer" {
			once.Do(func() { close(reached); <-release })
		}
	})
	_, op, err := d.CreateSnapshot(t.Context(), runtime.CreateSnapshotRequest{Environment: "desk", Name: "first"})
	if err != nil {
		t.Fatal(err)
	}
	<-reached
	if _, err := d.queue.Cancel(t.Context(), op.ID); err != nil {
		t.Fatal(err)
	}
	close(release)
	if op = d.done(op); op.State != operation.Cancelled {
		t.Errorf("operation: %+v", op)
	}
	d.settled(runtime.Running)
	if _, err := d.Snapshot(t.Context(), "", "desk/first"); !errdefs.IsNotFound(err) {
		t.Errorf("the snapshot: %v", err)
	}
}

// A forced delete ends a snapshot on its way; nothing of it is left.
func TestDeleteInterruptsASnapshot(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(small("desk"))
	reached, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	h.faults.Hook(func(method string) {
		if method == "Engine.CopyLayer" {
			once.Do(func() { close(reached); <-release })
		}
	})
	if _, _, err := d.CreateSnapshot(t.Context(), runtime.CreateSnapshotRequest{Environment: "desk", Name: "first"}); err != nil {
		t.Fatal(err)
	}
	<-reached
	_, deletion, err := d.Delete(t.Context(), runtime.ActionRequest{Environment: "desk", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	close(release)
	if deletion = d.done(deletion); deletion.State != operation.Succeeded {
		t.Errorf("delete: %+v", deletion)
	}
	d.holdsNothing()
}

// The reconciler finishes deletes, removes leftovers, and reports whole
// snapshots that nobody knows.
func TestReconcileSnapshots(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(small("desk"))
	snapshot, _ := d.snapshot("desk", "first")
	h.faults.FailCall("Store.DeleteSnapshot", 1, errors.New("broken on purpose"))
	if err := d.DeleteSnapshot(t.Context(), "", snapshot.ID, ""); err == nil {
		t.Fatal("the delete worked")
	}
	if _, _, err := d.RollBack(t.Context(), runtime.RollBackRequest{Environment: "desk", Snapshot: "first", Force: true}); reasonOf(err) != problem.SnapshotBusy {
		t.Errorf("roll back to what is being deleted: %v", err)
	}
	h.engine.Spoil("01ARZ3NDEKTSV4RRFFQ69G5FAV")
	if err := d.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.settled(runtime.Running)
	known, _ := d.snapshot("desk", "second")
	h.engine.LeaveExport(known.ID)
	if err := d.Reconcile(t.Context()); err != nil || slices.Contains(h.engine.Leftovers(), "export of "+known.ID) {
		t.Errorf("what an export has left: %q, %v", h.engine.Leftovers(), err)
	}
	if err := d.store.DeleteSnapshot(t.Context(), known.ID); err != nil { // as a restored backup
		t.Fatal(err)
	}
	if err := d.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	reported := func() bool {
		return slices.ContainsFunc(d.Conditions(), func(c runtime.Condition) bool { return c.Reason == problem.SnapshotUnknown && c.Hint != "" })
	}
	if !reported() || !slices.Contains(h.engine.Leftovers(), "snapshot "+known.ID) {
		t.Errorf("a stranger: conditions %+v, there are %q", d.Conditions(), h.engine.Leftovers())
	}
	if err := h.engine.RemoveSnapshot(t.Context(), known.ID); err != nil {
		t.Fatal(err)
	}
	if err := d.Reconcile(t.Context()); err != nil || reported() {
		t.Errorf("once it has gone: %+v, %v", d.Conditions(), err)
	}
}
