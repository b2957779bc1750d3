package runtime_test

import (
	"context"
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
