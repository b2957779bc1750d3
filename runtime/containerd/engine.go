// Package containerd is the runtime's engine on containerd, 1.6 and later. It
// is the sole importer of containerd's client. It keeps no state that matters:
// what there is, containerd knows, under labels of ours, so an engine made
// anew sees what the one before it has left running.
//
// A container record is written before its snapshot and removed before it, so
// containerd's garbage collector keeps the snapshot exactly as long as the
// record is there, with no lease to renew and nothing to find after a crash
// between the two.
package containerd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/status"

	"github.com/remotegpu/remotegpu/internal/keylock"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/projectquota"
	"github.com/remotegpu/remotegpu/internal/rootfs"
	"github.com/remotegpu/remotegpu/runtime"
)

// Defaults of Config.
const (
	DefaultNamespace    = "remotegpu"
	DefaultSnapshotter  = "overlayfs"
	DefaultCgroupParent = "/remotegpu"
	DefaultFIFODir      = "/run/remotegpu/fifo"
	DefaultRegistryIdle = 5 * time.Minute // as Kubernetes has it for pulls
)

// Labels on container records.
const (
	LabelEnvironment = "remotegpu.dev/environment"
	labelLog         = "remotegpu.dev/log"
	labelMade        = "remotegpu.dev/made" // tells a record of this Create from another's
)

const (
	runtimeName = "io.containerd.runc.v2"
	callTimeout = 2 * time.Minute // of a call whose caller sets no deadline, unless limits has another
	// connectTimeout is how long containerd may take to greet.
	connectTimeout = 5 * time.Second
	undoTimeout    = 30 * time.Second // of taking back what a failed call made
	killTimeout    = 30 * time.Second // from SIGKILL to the end
	// noticeTimeout is how long a shim may take to notice that a process ended.
	noticeTimeout = 5 * time.Second
)

// Config says which containerd and how. Zero fields mean the default.
type Config struct {
	// Address is the path of containerd's socket.
	Address string
	// Namespace is the containerd namespace that holds everything of ours,
	// DefaultNamespace.
	Namespace string
	// Snapshotter is DefaultSnapshotter.
	Snapshotter string
	// CgroupParent is the cgroup above those of containers,
	// DefaultCgroupParent.
	CgroupParent string
	// LogDir is where "<id>.log" is removed on Delete even when the record
	// that names the file is gone.
	LogDir string
	// LogWriter writes the logs. Zero: the shim does, as the output comes.
	LogWriter LogWriter
	// FIFODir holds the pipes of running commands, DefaultFIFODir.
	FIFODir string
	// RuntimeBinary is the OCI runtime, "runc" from the PATH of containerd.
	RuntimeBinary string
	// HostsDir configures registries the way containerd does
	// (/etc/containerd/certs.d); "" means none.
	HostsDir string
	// RegistryIdle is how long a registry may send or take nothing in the middle
	// of a transfer, DefaultRegistryIdle.
	RegistryIdle time.Duration
	// MaxDepth is how many layers a snapshot may consist of, MaxDepth.
	MaxDepth int
	// Credentials are asked for by a registry's host (and port), when it wants
	// some and the call has none. Empty ones mean that there are none; with an
	// empty name the secret is an identity token. nil: there never are.
	Credentials func(ctx context.Context, host string) (username, secret string, err error)
	// LimitGPU bounds what processes of a cgroup (path below /sys/fs/cgroup, v2)
	// may allocate on a GPU, as gpu.Driver does; 0 removes the bound. nil:
	// nothing can.
	LimitGPU func(ctx context.Context, gpuUUID, cgroup string, bytes uint64) error
	// Log gets what nobody else can be told.
	Log *slog.Logger
}

// Engine is a runtime.Engine and a runtime.Images on containerd. It is safe for
// concurrent use.
type Engine struct {
	cfg       Config
	client    *client.Client
	fetcher   *client.Client // client, but that it names nothing
	tasks     tasks.TasksClient
	store     containers.Store
	snapshots snapshots.Snapshotter
	host      func() host
	files     atomic.Uint64            // most open files of a process; 0: not known yet
	tidy      func()                   // removes FIFOs of daemons that died
	root      atomic.Pointer[string]   // directory of the snapshotter; nil: not asked for yet
	served    atomic.Pointer[[]int]    // processes that serve containers that run, when List looked last; nil: it has not
	listed    atomic.Pointer[sighting] // what List read last; nil: nothing, or Parts has had it
	projects  projectquota.Pool        // of limited layers

	roots  rootfs.Uses // copies by container
	starts rootfs.Uses // commands that are being started, by container
	layers layerMounts

	token    string        // tells this engine's processes from another's
	patience time.Duration // callTimeout

	collector *collector // of what was removed
	building  layerLocks // held while snapshots and what builds on them change

	mu     sync.Mutex
	lost   map[string]int           // processes that could not be removed: first pid by exec id
	swept  bool                     // those of other engines are gone
	images map[string]*image        // by target digest
	users  map[userKey]specs.User   // as images have them
	fresh  map[string]freshSnapshot // of containers that were created and never started

	naming keylock.Map[string] // by image, held while its name is set, or removed for what it means

	leaseLocks keylock.Map[string] // by lease, held while it is made or removed
	leaseMu    sync.Mutex
	leases     map[string]int // calls that hold each
}

type freshSnapshot struct {
	container runtime.Container
	mounts    []mount.Mount
}

var (
	_ runtime.Engine = (*Engine)(nil)
	_ runtime.Images = (*Engine)(nil)
)

// New returns an engine. It does not connect: each call does when it must, and
// again when containerd comes back.
func New(cfg Config) (*Engine, error) {
	for field, value := range map[*string]string{
		&cfg.Namespace: DefaultNamespace, &cfg.Snapshotter: DefaultSnapshotter,
		&cfg.CgroupParent: DefaultCgroupParent, &cfg.FIFODir: DefaultFIFODir,
	} {
		if *field == "" {
			*field = value
		}
	}
	if cfg.RegistryIdle == 0 {
		cfg.RegistryIdle = DefaultRegistryIdle
	}
	if cfg.MaxDepth == 0 {
		cfg.MaxDepth = MaxDepth
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Address == "" {
		return nil, fmt.Errorf("make engine: no address: %w", errdefs.ErrInvalidArgument)
	}
	// A containerd that restarts is back within a second; the client's own
	// ten seconds between two attempts would keep a healthy node waiting.
	retry := backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}
	e := &Engine{
		cfg: cfg, patience: callTimeout,
		token: rand.Text()[:8], lost: make(map[string]int),
		images: make(map[string]*image), users: make(map[userKey]specs.User), fresh: make(map[string]freshSnapshot),
		leases: make(map[string]int),
	}
	c, err := client.New(cfg.Address, client.WithDefaultNamespace(cfg.Namespace), client.WithExtraDialOpts([]grpc.DialOption{
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: connectTimeout}),
		grpc.WithChainUnaryInterceptor(e.bound),
		grpc.WithChainStreamInterceptor(conclude),
		grpc.WithContextDialer(dial),
	}))
	if err != nil {
		return nil, fmt.Errorf("make client of %s: %w", cfg.Address, err)
	}
	e.collector = newCollector(e.collect, func(ctx context.Context, err error) {
		cfg.Log.WarnContext(ctx, "what was deleted still takes its space: containerd could not collect it; it is tried again", "error", err)
	})
	conn, ok := c.Conn().(*grpc.ClientConn)
	if !ok {
		return nil, fmt.Errorf("make client of %s: no connection: %w", cfg.Address, errors.Join(errdefs.ErrInternal, c.Close()))
	}
	e.fetcher, err = client.NewWithConn(conn, client.WithDefaultNamespace(cfg.Namespace), client.WithServices(client.WithImageStore(unnamed{})))
	if err != nil {
		return nil, fmt.Errorf("make client of %s: %w", cfg.Address, errors.Join(err, c.Close()))
	}
	e.client, e.tasks, e.store, e.snapshots = c, c.TaskService(), c.ContainerService(), collected{c.SnapshotService(cfg.Snapshotter), e.collector.soon}
	e.projects.First, e.projects.Last = firstProject, lastProject
	e.host = sync.OnceValue(e.inspectHost)
	e.tidy = sync.OnceFunc(e.removeStaleFIFOs)
	return e, nil
}

// Close closes the connection, and leaves no directory of pipes to whoever
// comes next. Containers live on.
func (e *Engine) Close() error {
	e.collector.close()
	return errors.Join(e.client.Close(), e.removeOwnFIFODir())
}

// dial connects once. The client's own dialer waits ten seconds for a socket
// that is absent, and every call with it, before it says so.
func dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(address, "unix://"))
	if err != nil {
		return nil, fmt.Errorf("reach containerd: %w", err)
	}
	return conn, nil
}

// Info tells containerd's version.
func (e *Engine) Info(ctx context.Context) (runtime.EngineInfo, error) {
	version, err := e.client.Version(ctx)
	if err != nil {
		return runtime.EngineInfo{}, fmt.Errorf("ask containerd: %w", e.explain(ctx, err))
	}
	return runtime.EngineInfo{
		Address: e.cfg.Address, Version: version.Version, Namespace: e.cfg.Namespace, Snapshotter: e.cfg.Snapshotter,
	}, nil
}

// explain makes an error of containerd's API one of ours: gRPC codes become
// errdefs kinds, a containerd that is not there or does not answer in time a
// problem with a hint, and
// the caller's own end its context's error.
func (e *Engine) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	err = native(err)
	// containerd tells of a full disk by the system's text alone.
	if strings.Contains(err.Error(), unix.ENOSPC.Error()) || strings.Contains(err.Error(), unix.EDQUOT.Error()) {
		return problem.New(problem.DiskFull, "the disk of containerd is full").WithCause(err).
			WithHint("make room, for example by deleting images that nothing uses (remotegpu image rm); then try again")
	}
	if p := e.noAnswer(err); p != nil {
		return p
	}
	if shimGone(err) {
		return problem.New(problem.Unavailable, "the container's shim has gone").WithCause(err).
			WithHint("try again: containerd clears up after it")
	}
	return err
}

// shimGone says whether containerd could not talk to a shim because that has
// ended: it passes on what its own client said, of an unknown kind.
func shimGone(err error) bool {
	text := err.Error()
	if strings.Contains(text, "ttrpc: closed") {
		return true
	}
	// Of its socket: a registry's connection breaks as well.
	return strings.Contains(text, " unix ") && (strings.Contains(text, "connection reset by peer") || strings.Contains(text, "broken pipe"))
}

// native gives an error of a raw call the kind of its gRPC code. The client's
// stores have done so to theirs already.
func native(err error) error {
	if _, ok := errors.AsType[interface {
		error
		GRPCStatus() *status.Status
	}](err); ok {
		return errgrpc.ToNative(err)
	}
	return err
}

// namespaced is ctx for helpers that ask it for the namespace.
func (e *Engine) namespaced(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, e.cfg.Namespace)
}

// uninterrupted is a context for calls whose end must be known before anything
// is taken back. When their caller leaves, containerd does not stop them: a
// record or snapshot may be written after all, behind the back of the undo that
// did not find it, and shims are started and ended half. Each call under it has
// a limit of its own, see bound.
func uninterrupted(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithCancel(context.WithoutCancel(ctx))
}

// afterwards is a context for taking things back, whatever happened to ctx.
func afterwards(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
}
