package runtime_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/gputest"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
	"github.com/remotegpu/remotegpu/runtime/volume"
	"github.com/remotegpu/remotegpu/store"
)

const image = "docker.io/test/app:latest"

// host is what outlives a daemon: the fakes and the state directory.
type host struct {
	dir     string
	boot    string // names the boot
	workers int    // of the queue; 0: its default
	// addresses is where people reach the node. nil: nowhere.
	addresses runtime.Addresses
	dial      func(context.Context, string, string) (net.Conn, error)
	faults    runtimetest.Faults
	engine    *runtimetest.FakeEngine
	images    *runtimetest.FakeImages
	networks  runtimetest.FakeNetworks
	volumes   runtimetest.FakeVolumes
	named     runtime.NamedVolumes // nil: none
	desktops  runtimetest.FakeDesktops
	names     runtimetest.FakeNames
	gpus      *gputest.Driver // nil: the node does not look for GPUs
	gpu       runtime.GPUConfig
	full      error           // what a request for something new gets
	logs      logged          // what the daemons log, from warnings on
	builder   runtime.Builder // nil: nothing can be built
	// inEnvironment says whose a process is. nil: nobody's.
	inEnvironment func(int, string) (bool, error)
	// afterList, when set, is called once between a list of containers and its use.
	afterList atomic.Pointer[func()]
	// afterRead, when set, is called when an environment was read by its id.
	afterRead atomic.Pointer[func(context.Context)]
	// afterUpdate, when set, is called between a change in the store and what follows.
	afterUpdate atomic.Pointer[func(*runtime.Environment)]
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{dir: t.TempDir()}
	h.engine = runtimetest.NewFakeEngine(&h.faults)
	h.images = h.engine.Images
	h.networks.Faults, h.volumes.Faults, h.desktops.Faults = &h.faults, &h.faults, &h.faults
	h.images.Add(runtime.Image{Name: image, Digest: "sha256:1", Labels: map[string]string{
		runtime.LabelMinMemory: "67108864", runtime.LabelDesktop: "vnc", runtime.LabelUser: "gpu",
	}})
	return h
}

// logged keeps what is logged.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write implements io.Writer.
func (l *logged) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

// String is all of it.
func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// leftovers names everything that is held on the host.
func (h *host) leftovers() []string {
	return slices.Concat(h.engine.Leftovers(), h.networks.Leftovers(), h.volumes.Leftovers(), h.desktops.Leftovers())
}

// daemon is one life of the daemon: the real store, pool and queue under the
// Manager.
type daemon struct {
	*runtime.Manager
	t     *testing.T
	host  *host
	store *store.Store
	queue *operation.Queue
	stop  func()
}

// faultyStore fails the calls of the store that a create makes while it runs.
type faultyStore struct {
	runtime.Store
	faults *runtimetest.Faults
	host   *host
}

func (s faultyStore) Environment(ctx context.Context, id string) (*runtime.Environment, error) {
	env, err := s.Store.Environment(ctx, id)
	if after := s.host.afterRead.Load(); after != nil {
		(*after)(ctx)
	}
	return env, err
}

func (s faultyStore) UpdateEnvironment(ctx context.Context, id string, op *operation.Operation,
	change func(*runtime.Environment) error,
) (env *runtime.Environment, existing *operation.Operation, err error) {
	env, existing, err = s.Store.UpdateEnvironment(ctx, id, op, change)
	if after := s.host.afterUpdate.Load(); after != nil && err == nil {
		(*after)(env)
	}
	return env, existing, err
}

func (s faultyStore) ActivateEnvironment(ctx context.Context, id string, change func(*runtime.Environment) error) (env *runtime.Environment, err error) {
	err = s.faults.Do("Store.ActivateEnvironment", func() error { env, err = s.Store.ActivateEnvironment(ctx, id, change); return err })
	return env, err
}

func (s faultyStore) UpdateSnapshot(ctx context.Context, id string, op *operation.Operation, change func(*runtime.Snapshot) error) (
	snapshot *runtime.Snapshot, existing *operation.Operation, err error,
) {
	err = s.faults.Do("Store.UpdateSnapshot", func() error { snapshot, existing, err = s.Store.UpdateSnapshot(ctx, id, op, change); return err })
	return snapshot, existing, err
}

func (s faultyStore) DNSRecords(ctx context.Context, filter runtime.DNSFilter) (records []*runtime.DNSRecord, err error) {
	err = s.faults.Do("Store.DNSRecords", func() error { records, err = s.Store.DNSRecords(ctx, filter); return err })
	return records, err
}

func (s faultyStore) CreateDNSRecord(ctx context.Context, record *runtime.DNSRecord,
	check func(*runtime.Environment, []*runtime.DNSRecord, func(string) (bool, error)) error,
) (existing *runtime.DNSRecord, err error) {
	err = s.faults.Do("Store.CreateDNSRecord", func() error { existing, err = s.Store.CreateDNSRecord(ctx, record, check); return err })
	return existing, err
}

func (s faultyStore) DeleteDNSRecord(ctx context.Context, id string, revision int64) error {
	return s.faults.Do("Store.DeleteDNSRecord", func() error { return s.Store.DeleteDNSRecord(ctx, id, revision) })
}

func (s faultyStore) DeleteSnapshot(ctx context.Context, id string) error {
	return s.faults.Do("Store.DeleteSnapshot", func() error { return s.Store.DeleteSnapshot(ctx, id) })
}

func (s faultyStore) ChangePorts(ctx context.Context, id string, ports port.Change, change func(*runtime.Environment) error) (
	env *runtime.Environment, released []port.Mapping, err error,
) {
	err = s.faults.Do("Store.ChangePorts", func() error {
		env, released, err = s.Store.ChangePorts(ctx, id, ports, change)
		return err
	})
	return env, released, err
}

func start(t *testing.T, h *host) *daemon {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), &h.logs), &slog.HandlerOptions{Level: slog.LevelWarn}))
	db, err := store.Open(t.Context(), filepath.Join(h.dir, "node.db"), log)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := port.New(t.Context(), port.Config{HostID: "host", Store: db, Probe: freePorts, Quarantine: -1})
	if err != nil {
		t.Fatal(err)
	}
	queue := operation.New(operation.Config{Store: db, Log: log, RetryBase: time.Millisecond, RetryMax: 10 * time.Millisecond, Workers: h.workers})
	d := &daemon{t: t, host: h, store: db, queue: queue}
	var gpus gpu.Driver
	if h.gpus != nil {
		gpus = h.gpus
	}
	d.Manager = runtime.New(runtime.Config{
		GPUs: gpus, GPU: h.gpu, InEnvironment: h.inEnvironment, Cgroup: func(id string) string { return "/test/" + id }, Meters: noMeters{},
		Node: "node", StateDir: filepath.Join(h.dir, "environments"), LogDir: filepath.Join(h.dir, "logs"),
		Store: faultyStore{db, &h.faults, h}, Queue: queue, Engine: lateEngine{h.engine, h}, Executor: h.engine, Roots: h.engine, Snapshotter: h.engine, Images: h.images,
		Networks: &h.networks, Ports: pool, Volumes: &h.volumes, NamedVolumes: h.named, Desktops: &h.desktops, Log: log, Reconcile: time.Hour, Builder: h.builder,
		BootID: h.boot, Dial: h.dial, Addresses: h.addresses, LoginDir: filepath.Join(h.dir, "credentials"), Room: func() error { return h.full }, Names: &h.names, Host: runtime.HostSize{CPUs: 2, MemoryBytes: 8 << 30},
	})
	// Adopting, which restores twice, and after subscribing: what a pass sees
	// first and does last.
	seen, restored, subscribed := h.faults.Count("Desktops.Prepared")+2, h.faults.Count("Networks.Restore")+3, h.faults.Count("Engine.Events")
	listed := h.faults.Count("Engine.List") + 2
	d.Protect(t.Context())
	d.Adopt(t.Context())
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() { _ = queue.Run(ctx) })
	running.Go(func() { _ = d.Run(ctx) })
	d.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		if err := db.Close(); err != nil && !strings.Contains(err.Error(), "database is closed") { // a test may have closed it
			t.Error(err)
		}
	})
	t.Cleanup(d.stop)
	for range 6000 {
		if h.faults.Count("Desktops.Prepared") >= seen && h.faults.Count("Networks.Restore") >= restored {
			break
		}
		// An engine that is down lets no pass end.
		if h.faults.Count("Engine.Events") > subscribed+1 || h.faults.Count("Engine.List") >= listed && h.faults.Count("Desktops.Prepared") == seen-2 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return d
}

// noMeters measures nothing.
type noMeters struct{}

func (noMeters) Usage(context.Context, []string) (map[string]runtime.Usage, error) { return nil, nil }

func (noMeters) DiskUsage(context.Context, string) (int64, error) { return 0, nil }

// freePorts is a probe on a host where no other program listens.
func freePorts(port.Protocol, uint16) (bool, error) { return true, nil }

// full is a request that needs every part.
func full(name string) runtime.CreateRequest {
	return runtime.CreateRequest{
		Name: name, Labels: map[string]string{"team": "vision"},
		Spec: runtime.Spec{
			Image: image, Desktop: &runtime.Desktop{}, Env: map[string]string{"A": "b"},
			Mounts: []volume.Mount{{Type: volume.Volume, Source: "data", Target: "/data"}},
			Ports:  []port.Request{{Service: port.SSH, Protocol: port.TCP}, {Service: port.Custom, Internal: 80, Protocol: port.TCP}},
		},
	}
}

// done waits for an operation and returns it.
func (d *daemon) done(op *operation.Operation) *operation.Operation {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 30*time.Second)
	defer cancel()
	op, err := d.queue.Wait(ctx, op.ID)
	if err != nil {
		d.t.Fatalf("wait: %v", err)
	}
	return op
}

func (d *daemon) create(req runtime.CreateRequest) (*runtime.Environment, *operation.Operation) {
	d.t.Helper()
	env, op, err := d.Create(d.t.Context(), req)
	if err != nil {
		d.t.Fatalf("create: %v", err)
	}
	op = d.done(op)
	env, err = d.Get(d.t.Context(), "", env.ID)
	if err != nil {
		d.t.Fatalf("get: %v", err)
	}
	return env, op
}

func (d *daemon) act(do func(context.Context, runtime.ActionRequest) (*runtime.Environment, *operation.Operation, error), name string) *operation.Operation {
	d.t.Helper()
	_, op, err := do(d.t.Context(), runtime.ActionRequest{Environment: name, Force: true})
	if err != nil {
		d.t.Fatal(err)
	}
	return d.done(op)
}

// holdsNothing fails the test when anything is held on the host or in the
// store.
func (d *daemon) holdsNothing() {
	d.t.Helper()
	if left := d.host.leftovers(); len(left) > 0 {
		d.t.Errorf("left behind: %v", left)
	}
	mappings, _, err := d.store.PortMappings(d.t.Context(), "host", port.Filter{})
	if err != nil || len(mappings) > 0 {
		d.t.Errorf("ports are held: %v %v", mappings, err)
	}
	entries, _ := filepath.Glob(filepath.Join(d.host.dir, "environments", "*"))
	if len(entries) > 0 {
		d.t.Errorf("files are left: %v", entries)
	}
}

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

func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func reasonOf(err error) problem.Reason {
	if err == nil {
		return ""
	}
	return problem.Of(err).Reason
}

// callsOf returns the calls that a run makes, each with its number, without
// those that only look.
func callsOf(h *host, run func()) []string {
	before := len(h.faults.Calls())
	run()
	var calls []string
	for _, call := range h.faults.Calls()[before:] {
		switch call {
		case "Engine.Events", "Engine.Info", "Desktops.AwaitDrawn", "Engine.List", "Networks.Restore":
			continue
		}
		if !slices.Contains(calls, call) {
			calls = append(calls, call)
		}
	}
	return calls
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

func TestRequestIDMakesARetrySafe(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	req := full("desk")
	req.RequestID = "r1"
	first, op, err := d.Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	d.done(op)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			env, again, err := d.Create(t.Context(), req)
			if err != nil || env.ID != first.ID || again.ID != op.ID {
				t.Errorf("a retry made another environment: %v %v %v", env, again, err)
			}
		})
	}
	group.Wait()
	other := full("other")
	other.RequestID = "r1"
	if _, _, err := d.Create(t.Context(), other); reasonOf(err) != problem.RequestIDReused {
		t.Errorf("another request with the same id: %v", err)
	}
	remove := runtime.ActionRequest{Environment: "desk", Force: true, RequestID: "r2"}
	_, deletion, err := d.Delete(t.Context(), remove)
	if err != nil {
		t.Fatal(err)
	}
	d.done(deletion)
	if _, again, err := d.Delete(t.Context(), remove); err != nil || again.ID != deletion.ID {
		t.Errorf("repeating a delete: %v %v", again, err)
	}
}

func TestRacingRetriesMakeOneEnvironment(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	req := full("desk")
	req.RequestID = "r1"
	ids := make([]string, 16)
	var group sync.WaitGroup
	for i := range ids {
		group.Go(func() {
			env, op, err := d.Create(t.Context(), req)
			if err != nil {
				if reasonOf(err) != problem.EnvNameExists { // it lost between the two checks
					t.Errorf("create: %v", err)
				}
				return
			}
			d.done(op)
			ids[i] = env.ID
		})
	}
	group.Wait()
	envs, _, err := d.List(t.Context(), runtime.Filter{})
	if err != nil || len(envs) != 1 || len(envs[0].Ports) != 2 {
		t.Fatalf("environments: %v %v", envs, err)
	}
	for _, id := range ids {
		if id != "" && id != envs[0].ID {
			t.Errorf("a retry was told of %s, there is %s", id, envs[0].ID)
		}
	}
}

func TestDeleteInterruptsACreate(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	reached := make(chan struct{})
	var once sync.Once
	release := make(chan struct{})
	h.faults.Hook(func(method string) {
		if method == "Engine.Start" {
			once.Do(func() { close(reached); <-release })
		}
	})
	_, op, err := d.Create(t.Context(), full("desk"))
	if err != nil {
		t.Fatal(err)
	}
	<-reached
	if _, _, err := d.Stop(t.Context(), runtime.ActionRequest{Environment: "desk"}); reasonOf(err) != problem.EnvBusy {
		t.Errorf("stopping while it is created: %v", err)
	}
	_, deletion, err := d.Delete(t.Context(), runtime.ActionRequest{Environment: "desk", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	close(release)
	if op = d.done(op); op.State == operation.Queued || op.State == operation.Running {
		t.Errorf("the create is %s", op.State)
	}
	if deletion = d.done(deletion); deletion.State != operation.Succeeded {
		t.Errorf("delete: %+v", deletion)
	}
	if _, err := d.Get(t.Context(), "", "desk"); !errdefs.IsNotFound(err) {
		t.Errorf("it is still there: %v", err)
	}
	d.holdsNothing()
}

// A forced delete ends what is in its way though who asked for it is gone as soon as it
// is written down.
func TestDeleteInterruptsThoughItsCallerIsGone(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	op := d.deaf("desk", d.Stop)
	waitFor(t, "the grace period", func() bool { return h.faults.Count("Engine.Stop") == 1 })
	ctx, leave := context.WithCancel(t.Context())
	after := func(env *runtime.Environment) {
		if env.Operation != op.ID {
			leave()
		}
	}
	h.afterUpdate.Store(&after)
	_, deletion, err := d.Delete(ctx, runtime.ActionRequest{Environment: "desk", Force: true, Timeout: new(time.Duration)})
	if err != nil {
		t.Fatal(err)
	}
	if op = d.done(op); op.State != operation.Cancelled {
		t.Errorf("the stop: %+v", op)
	}
	if deletion = d.done(deletion); deletion.State != operation.Succeeded {
		t.Errorf("delete: %+v", deletion)
	}
	d.holdsNothing()
}

// The daemon dies when a forced delete is written down: what was in its way is not begun
// anew.
func TestDeleteInterruptsThoughTheDaemonDies(t *testing.T) {
	h := newHost(t)
	h.images.AddRemote(runtime.Image{Name: "registry.test/slow:1"})
	first := start(t, h)
	reached, release := blockCall(t, h, "Images.Pull")
	req := plain("desk")
	req.Spec.Image = "registry.test/slow:1"
	env, op, err := first.Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	await(t, "pull", reached)
	deletion := &operation.Operation{
		ID: "01K00000000000000000000000", Project: env.Project, Kind: runtime.KindDelete, Target: env.ID,
		Args: []byte(`{"timeout":0,"force":true}`), CreatedAt: time.Now(), State: operation.Queued,
	}
	if _, _, err := first.store.UpdateEnvironment(t.Context(), env.ID, deletion, func(env *runtime.Environment) error {
		env.Operation = deletion.ID
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() { first.stop(); close(stopped) }()
	time.Sleep(10 * time.Millisecond) // the queue ends the attempt
	release()
	<-stopped
	pulls := h.faults.Count("Images.Pull")
	second := start(t, h)
	if op = second.done(op); op.State != operation.Cancelled {
		t.Errorf("the create: %+v", op)
	}
	if deletion = second.done(deletion); deletion.State != operation.Succeeded {
		t.Errorf("delete: %+v", deletion)
	}
	if n := h.faults.Count("Images.Pull"); n != pulls {
		t.Errorf("pulled %d times more", n-pulls)
	}
	second.holdsNothing()
}

func TestWatchSeesEveryState(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(full("old"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes := make(chan runtime.Change, 100)
	var watching sync.WaitGroup
	watching.Go(func() {
		_ = d.Watch(ctx, runtime.Filter{}, "", func(c runtime.Change) error { changes <- c; return nil })
	})
	if c := <-changes; c.Environment == nil || c.Environment.Name != "old" {
		t.Fatalf("first message: %+v", c)
	}
	if c := <-changes; !c.Synced {
		t.Fatalf("second message: %+v", c)
	}
	d.create(full("new"))
	d.act(d.Delete, "new")
	var states []runtime.State
	for len(states) == 0 || states[len(states)-1] != runtime.Deleted {
		select {
		case c := <-changes:
			if c.Environment.Name == "new" && !slices.Contains(states, c.Environment.State) {
				states = append(states, c.Environment.State)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("states so far: %v", states)
		}
	}
	if want := []runtime.State{runtime.Creating, runtime.Running, runtime.Deleted}; !slices.Equal(states, want) {
		t.Errorf("states %v, want %v", states, want)
	}
	cancel()
	watching.Wait()
}

// A watch by labels tells that one leaves its selection, and comes back, also
// when it is resumed in between; of others it tells nothing.
func TestWatchTellsWhatLeavesItsSelection(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	selector, err := runtime.ParseSelector("team=vision", "label_selector")
	if err != nil {
		t.Fatal(err)
	}
	label := func(name, team string) {
		t.Helper()
		if _, op := d.update(runtime.UpdateRequest{Environment: name, Fields: []string{"labels"}, Labels: map[string]string{"team": team}}); op != nil && op.State != operation.Succeeded {
			t.Fatalf("label %s: %+v", name, op)
		}
	}
	for name, team := range map[string]string{"desk": "vision", "other": "speech"} {
		req := full(name)
		req.Labels = map[string]string{"team": team}
		d.create(req)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watch := func(after string) (until func(what string, is func(runtime.Change) bool) runtime.Change) {
		changes := make(chan runtime.Change, 100)
		watching.Go(func() {
			_ = d.Watch(ctx, runtime.Filter{Labels: selector}, after, func(c runtime.Change) error { changes <- c; return nil })
		})
		return func(what string, is func(runtime.Change) bool) runtime.Change {
			t.Helper()
			for {
				select {
				case c := <-changes:
					if env := c.Environment; env != nil && (env.Name != "desk" || c.Left == (env.Labels["team"] == "vision")) {
						t.Errorf("told of %s with %v, left: %t", env.Name, env.Labels, c.Left)
					}
					if is(c) {
						return c
					}
				case <-time.After(20 * time.Second):
					t.Fatal("it is not told that it " + what)
				}
			}
		}
	}
	synced := func(c runtime.Change) bool { return c.Synced }
	left := func(c runtime.Change) bool { return c.Left }
	until := watch("")
	begin := until("has begun", synced)
	label("other", "sound")
	label("desk", "speech")
	out := until("left", left)
	label("desk", "sound") // nobody's business
	label("desk", "vision")
	back := func(c runtime.Change) bool { return c.Environment.Revision > out.Environment.Revision && !c.Left }
	until("came back", back)
	before, after := watch(begin.Token), watch(out.Token)
	before("left, resumed", left)
	before("came back, resumed", back)
	after("came back, resumed after it left", back)
	d.act(d.Delete, "other")
	label("desk", "speech")
	until("left again", left)
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
