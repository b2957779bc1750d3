package runtime_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
	"github.com/remotegpu/remotegpu/store"
)

// plain is a request without a desktop.
func plain(name string) runtime.CreateRequest {
	req := full(name)
	req.Spec.Desktop = nil
	return req
}

// blockCall holds the next call of method until release is called.
func blockCall(t *testing.T, h *host, method string) (reached chan struct{}, release func()) {
	t.Helper()
	reached = make(chan struct{})
	freed := make(chan struct{})
	var held atomic.Bool
	h.faults.Hook(func(called string) {
		if called == method && held.CompareAndSwap(false, true) {
			close(reached)
			<-freed
		}
	})
	release = sync.OnceFunc(func() { h.faults.Hook(nil); close(freed) })
	t.Cleanup(release)
	return reached, release
}

func await(t *testing.T, what string, reached <-chan struct{}) {
	t.Helper()
	select {
	case <-reached:
	case <-time.After(20 * time.Second):
		t.Fatalf("no %s", what)
	}
}

// A host that reboots keeps container records and loses tasks, namespaces and
// all of /run. A start brings everything back.
func TestStartAfterAReboot(t *testing.T) {
	h := newHost(t)
	first := start(t, h)
	h.desktops.Draw()
	env, _ := first.create(full("desk"))
	first.stop()
	h.engine.Forget()
	h.networks, h.volumes, h.desktops = runtimetest.FakeNetworks{Faults: &h.faults}, runtimetest.FakeVolumes{Faults: &h.faults},
		runtimetest.FakeDesktops{Faults: &h.faults}
	h.desktops.Draw()

	second := start(t, h)
	got, err := second.Get(t.Context(), "", env.ID)
	if err != nil || got.State != runtime.Failed || got.Problem == nil || got.Problem.Reason != string(problem.ProcessExited) ||
		got.Problem.Hint == "" || !got.Held || got.Ready || len(got.Ports) != 2 || got.Address != env.Address {
		t.Fatalf("after the reboot: %+v %v", got, err)
	}
	if op := second.act(second.Start, "desk"); op.State != operation.Succeeded {
		t.Fatalf("start: %+v", op.Problem)
	}
	got, err = second.Get(t.Context(), "", env.ID)
	if err != nil || got.State != runtime.Running || got.Problem != nil || got.Exit != nil {
		t.Errorf("after the start: %+v %v", got, err)
	}
	left := strings.Join(h.leftovers(), "\n")
	for _, part := range []string{"container ", "network of ", "published ports of "} {
		if !strings.Contains(left, part+env.ID) {
			t.Errorf("no %s%s among\n%s", part, env.ID, left)
		}
	}
	for name, list := range map[string]func(context.Context) ([]string, error){
		"mounts": h.volumes.Staged, "desktop": h.desktops.Prepared,
	} {
		if ids, err := list(t.Context()); err != nil || len(ids) != 1 || ids[0] != env.ID {
			t.Errorf("%s: %v %v", name, ids, err)
		}
	}
	waitFor(t, "the desktop to be ready", func() bool { got, _ = second.Get(t.Context(), "", "desk"); return got.Ready })
	second.act(second.Delete, "desk")
	second.holdsNothing()
}

// A process that ends before its create or start has recorded that it runs is
// found at the end of the operation, not by the next pass.
func TestProcessThatEndsAtOnce(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	reached, release := blockCall(t, h, "Networks.Publish")
	_, op, err := d.Create(t.Context(), plain("desk"))
	if err != nil {
		t.Fatal(err)
	}
	await(t, "publish", reached)
	waitFor(t, "the process to run", func() bool { // it is started beside that
		status, err := h.engine.Status(t.Context(), op.Target)
		return err == nil && status.Running
	})
	if err := h.engine.Exit(op.Target, runtime.Exit{Code: 3}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // the event arrives while the create is at work
	release()
	d.done(op)
	var env *runtime.Environment
	waitFor(t, "the exit to be recorded", func() bool { env, _ = d.Get(t.Context(), "", "desk"); return env.State != runtime.Running })
	if env.State != runtime.Failed || env.Exit == nil || env.Exit.Code != 3 {
		t.Errorf("got %+v", env)
	}
}

// An exit that comes while an operation waits for its turn is recorded, and followed by
// the restart, when that is cancelled.
func TestProcessThatEndsBeforeACancelledOperation(t *testing.T) {
	h := newHost(t)
	h.workers = 1
	d := start(t, h)
	env, _ := d.create(kept("desk", runtime.RestartAlways))
	reached, release := blockCall(t, h, "Engine.Create")
	_, other, err := d.Create(t.Context(), plain("other"))
	if err != nil {
		t.Fatal(err)
	}
	await(t, "create", reached)
	_, op, err := d.Restart(t.Context(), runtime.ActionRequest{Environment: "desk"})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.engine.Exit(env.ID, runtime.Exit{Code: 3}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // the event arrives while the operation waits
	if _, err := d.queue.Cancel(t.Context(), op.ID); err != nil {
		t.Fatal(err)
	}
	if op = d.done(op); op.State != operation.Cancelled {
		t.Errorf("operation: %+v", op)
	}
	waitFor(t, "the exit to be recorded", func() bool { return d.get("desk").State == runtime.Failed })
	release()
	d.done(other)
	waitFor(t, "the restart", func() bool { got := d.get("desk"); return got.State == runtime.Running && got.RestartCount == 1 })
}

// A forced delete that is cancelled in the grace period takes nothing from an
// environment whose process runs on, nor does one that could not end it. The next one
// gives the process its time again.
func TestDeleteThatDoesNotEndTheProcess(t *testing.T) {
	for _, cancelled := range []bool{true, false} {
		t.Run(fmt.Sprintf("cancelled %t", cancelled), func(t *testing.T) {
			h := newHost(t)
			d := start(t, h)
			want := operation.Failed
			if !cancelled {
				for _, call := range []string{"Engine.Stop", "Engine.Delete"} {
					h.faults.FailCall(call, 1, errors.New("broken on purpose"))
				}
			}
			op := d.deaf("desk", d.Delete)
			if cancelled {
				want = operation.Cancelled
				waitFor(t, "the grace period", func() bool { return h.faults.Count("Engine.Stop") == 1 })
				if _, err := d.queue.Cancel(t.Context(), op.ID); err != nil {
					t.Fatal(err)
				}
			}
			if op = d.done(op); op.State != want {
				t.Errorf("operation: %+v", op)
			}
			got := d.get("desk")
			if got.State != runtime.Running || got.Operation != "" || !got.Held || len(h.networks.Published(got.ID)) != 2 {
				t.Errorf("got %+v, published %v", got, h.networks.Published(got.ID))
			}
			if status, err := h.engine.Status(t.Context(), got.ID); err != nil || !status.Running {
				t.Errorf("the process: %+v, %v", status, err)
			}
			if n := h.faults.Count("Engine.Delete"); cancelled && n != 0 {
				t.Errorf("the container was deleted %d times", n)
			}
			stops := h.faults.Count("Engine.Stop")
			d.remove("desk")
			if h.faults.Count("Engine.Stop") != stops+1 {
				t.Error("the next delete did not stop the process")
			}
			d.holdsNothing()
		})
	}
}

// A start that follows an exit at once is not ended by what tidies up after
// that exit.
func TestStartRightAfterAnExit(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(plain("desk"))
	reached, release := blockCall(t, h, "Engine.Stop")
	if err := h.engine.Exit(env.ID, runtime.Exit{Code: 1}); err != nil {
		t.Fatal(err)
	}
	await(t, "tidying", reached)
	_, op, err := d.Start(t.Context(), runtime.ActionRequest{Environment: "desk"})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // the start begins, if it may
	release()
	if op = d.done(op); op.State != operation.Succeeded {
		t.Fatalf("start: %+v", op)
	}
	time.Sleep(100 * time.Millisecond)
	status, err := h.engine.Status(t.Context(), env.ID)
	if err != nil || !status.Running {
		t.Errorf("the new run is gone: %+v %v", status, err)
	}
}

// A pass whose list of containers is older than a stop does not call the
// stopped environment running.
func TestReconcileWithAStaleList(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(plain("desk"))
	reached := make(chan struct{})
	freed := make(chan struct{})
	wait := func() { close(reached); <-freed }
	h.afterList.Store(&wait)
	pass := make(chan error, 1)
	go func() { pass <- d.Reconcile(t.Context()) }()
	await(t, "listing", reached)
	d.act(d.Stop, "desk")
	close(freed)
	if err := <-pass; err != nil {
		t.Fatal(err)
	}
	if got, err := d.Get(t.Context(), "", env.ID); err != nil || got.State != runtime.Stopped {
		t.Errorf("got %+v %v", got, err)
	}
}

// A desktop that was ready is not ready any more when it has been started anew.
func TestRestartMustDrawAgain(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	h.desktops.Draw()
	env, _ := d.create(full("desk"))
	waitFor(t, "the desktop", func() bool { env, _ = d.Get(t.Context(), "", "desk"); return env.Ready })
	reached, release := blockCall(t, h, "Desktops.AwaitDrawn")
	if op := d.act(d.Restart, "desk"); op.State != operation.Succeeded {
		t.Fatalf("restart: %+v", op.Problem)
	}
	await(t, "look at the desktop", reached)
	if env, _ = d.Get(t.Context(), "", "desk"); env.Ready {
		t.Error("it is called ready before it has drawn")
	}
	release()
	waitFor(t, "the desktop", func() bool { env, _ = d.Get(t.Context(), "", "desk"); return env.Ready })
}

// An operation that could not record its end, as with a full disk, does not
// keep its environment for ever.
func TestOperationThatCouldNotLetGo(t *testing.T) {
	for _, state := range []runtime.State{runtime.Stopped, runtime.Creating} {
		t.Run(string(state), func(t *testing.T) {
			h := newHost(t)
			d := start(t, h)
			env, op := d.create(plain("desk"))
			// What a crash of the disk between the two rows leaves.
			if _, _, err := d.store.UpdateEnvironment(t.Context(), env.ID, nil, func(env *runtime.Environment) error {
				env.State, env.Operation = state, op.ID
				if state == runtime.Creating {
					env.StartedAt = time.Time{}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if err := d.Reconcile(t.Context()); err != nil {
				t.Fatal(err)
			}
			got, err := d.Get(t.Context(), "", env.ID)
			if err != nil || got.Operation != "" || got.State == runtime.Creating {
				t.Fatalf("got %+v %v", got, err)
			}
			if state == runtime.Creating && (got.Held || got.Problem == nil || got.Problem.Reason != string(problem.OperationInterrupted)) {
				t.Errorf("got %+v, problem %+v", got, got.Problem)
			}
			d.act(d.Delete, "desk")
			d.holdsNothing()
		})
	}
}

// An environment says why its create was given up, in the API's words.
func TestCancelledCreateSaysSo(t *testing.T) {
	for _, call := range []string{"Engine.Create", "Networks.Attach"} {
		h := newHost(t)
		d := start(t, h)
		reached, release := blockCall(t, h, call)
		_, op, err := d.Create(t.Context(), plain("desk"))
		if err != nil {
			t.Fatal(err)
		}
		await(t, call, reached)
		if _, err := d.queue.Cancel(t.Context(), op.ID); err != nil {
			t.Fatal(err)
		}
		release()
		if op = d.done(op); op.State != operation.Cancelled {
			t.Errorf("operation: %+v", op)
		}
		env, err := d.Get(t.Context(), "", "desk")
		if err != nil || env.State != runtime.Failed || env.Problem == nil || env.Problem.Reason != string(problem.OperationCancelled) {
			t.Errorf("%s: got %+v %v, problem %+v", call, env, err, env.Problem)
		}
		d.holdsNothing()
	}
}

// A cancellation that comes when the process has stopped already is too late.
func TestStopThatIsCancelledTooLate(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(plain("desk"))
	h.faults.Hook(func(method string) {
		if method != "Engine.Stop" {
			return
		}
		h.faults.Hook(nil)
		got, err := d.Get(t.Context(), "", env.ID)
		if err == nil {
			_, err = d.queue.Cancel(context.WithoutCancel(t.Context()), got.Operation)
		}
		if err != nil {
			t.Error(err)
		}
	})
	d.act(d.Stop, "desk")
	// Whichever of the two was faster, the record follows the container.
	waitFor(t, "the record to follow", func() bool {
		got, err := d.Get(t.Context(), "", env.ID)
		status, statusErr := h.engine.Status(t.Context(), env.ID)
		return err == nil && statusErr == nil && got.Operation == "" && status.Running == (got.State == runtime.Running)
	})
}

// A forced delete that takes an environment over keeps it, whatever the
// interrupted operation writes at its end.
func TestDeleteKeepsWhatItTookOver(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(plain("desk"))
	d.act(d.Stop, "desk")
	reached, release := blockCall(t, h, "Engine.Start")
	_, op, err := d.Start(t.Context(), runtime.ActionRequest{Environment: "desk"})
	if err != nil {
		t.Fatal(err)
	}
	await(t, "start", reached)
	changes := make(chan *runtime.Environment, 100)
	watching, stop := context.WithCancel(t.Context())
	synced := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		_ = d.Watch(watching, runtime.Filter{}, "", func(c runtime.Change) error {
			if c.Synced {
				close(synced)
			} else {
				changes <- c.Environment
			}
			return nil
		})
	})
	<-synced
	_, deletion, err := d.Delete(t.Context(), runtime.ActionRequest{Environment: "desk", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	release()
	d.done(op)
	d.done(deletion)
	waitFor(t, "the end", func() bool {
		for {
			select {
			case c := <-changes:
				if c.State == runtime.Deleted {
					return true
				}
				if c.Revision > env.Revision+3 && c.Operation != deletion.ID {
					t.Errorf("revision %d, %s, belongs to operation %q", c.Revision, c.State, c.Operation)
				}
			default:
				return false
			}
		}
	})
	stop()
	watch.Wait()
	d.holdsNothing()
}

// A create that failed, was recorded and then lost its daemon is reported as
// the failure it was.
func TestFailedCreateStaysFailedAfterACrash(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	h.faults.FailCall("Engine.Start", 1, problem.New(problem.ProcessStartFailed, "no such program"))
	_, op := d.create(plain("desk"))
	if op.State != operation.Failed {
		t.Fatalf("operation: %+v", op)
	}
	d.stop()
	h.reopen(t, op.ID) // the row as it was before the end was written
	d = start(t, h)
	op = d.done(op)
	if op.State != operation.Failed || op.Problem == nil || op.Problem.Reason != string(problem.ProcessStartFailed) {
		t.Errorf("operation: %+v, problem %+v", op, op.Problem)
	}
}

// A change that is told late does not bring back what was deleted after it.
func TestWatchForgetsWhatIsGone(t *testing.T) {
	h := newHost(t)
	reached, freed := make(chan struct{}), make(chan struct{})
	var held atomic.Bool
	late := func(env *runtime.Environment) {
		if env.Ready && held.CompareAndSwap(false, true) {
			close(reached)
			<-freed
		}
	}
	h.afterUpdate.Store(&late)
	d := start(t, h)
	d.create(full("desk"))
	watching, stop := context.WithCancel(t.Context())
	synced := make(chan struct{})
	var mu sync.Mutex
	var states []runtime.State
	var watch sync.WaitGroup
	watch.Go(func() {
		_ = d.Watch(watching, runtime.Filter{}, "", func(c runtime.Change) error {
			if c.Synced {
				close(synced)
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			states = append(states, c.Environment.State)
			return nil
		})
	})
	<-synced
	h.desktops.Draw()
	await(t, "drawn desktop", reached)
	d.act(d.Delete, "desk")
	close(freed)
	other, _ := d.create(plain("other"))
	waitFor(t, "the other one", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(states) > 0 && states[len(states)-1] == other.State
	})
	d.stop() // the late one has been told
	time.Sleep(50 * time.Millisecond)
	stop()
	watch.Wait()
	var after []runtime.State
	for i, state := range states {
		if state == runtime.Deleted {
			after = states[i+1:]
		}
	}
	if !slices.Equal(after, []runtime.State{runtime.Creating, runtime.Running}) {
		t.Errorf("after the delete: %v", after)
	}
}

// reopen makes an operation running again, as a daemon leaves it that dies
// before it has written the end.
func (h *host) reopen(t *testing.T, id string) {
	t.Helper()
	h.change(t, id, func(op *operation.Operation) {
		op.State, op.FinishedAt, op.Problem, op.LeaseOwner = operation.Running, time.Time{}, nil, "dead"
	})
}

// change changes an operation while there is no daemon.
func (h *host) change(t *testing.T, id string, change func(*operation.Operation)) {
	t.Helper()
	db, err := store.Open(t.Context(), filepath.Join(h.dir, "node.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.UpdateOperation(t.Context(), id, func(op *operation.Operation) error { change(op); return nil })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// lateEngine is an engine whose lists may be old when they arrive.
type lateEngine struct {
	*runtimetest.FakeEngine
	host *host
}

func (e lateEngine) List(ctx context.Context) ([]runtime.ContainerStatus, error) {
	all, err := e.FakeEngine.List(ctx)
	if wait := e.host.afterList.Swap(nil); wait != nil {
		(*wait)()
	}
	return all, err
}
