package runtime

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/keylock"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// Config is what a Manager works with. All fields but Builder are required.
type Config struct {
	Node     string // the node's name, in every environment
	StateDir string // holds one directory of small files per environment
	LogDir   string // holds one log file per environment
	// LoginDir holds what registries ask for, while operations need it.
	LoginDir string
	Store    Store
	Queue    *operation.Queue
	Engine   Engine
	Executor Executor
	Roots    Roots
	// Snapshotter keeps the snapshots of Engine's containers.
	Snapshotter Snapshotter
	Images      Images
	Builder     Builder // nil: nothing can be built
	Networks    Networks
	// Names are where environments have theirs; nil: nowhere.
	Names    Names
	Ports    Ports
	Volumes  Volumes
	Desktops Desktops
	Meters   Meters
	// GPUs is the GPU software of the host. nil: the node does not look for GPUs.
	GPUs gpu.Driver
	GPU  GPUConfig
	// InEnvironment says whether a process of the host is one of an
	// environment's, or, "", of any, those that are gone included. NotFound when
	// there is no such process. nil: it is not known.
	InEnvironment func(pid int, envID string) (bool, error)
	// Cgroup is the path of an environment's control group. nil: it is not known.
	Cgroup func(envID string) string
	// NamedVolumes are the volumes behind Volumes.
	NamedVolumes NamedVolumes
	Log          *slog.Logger
	// Reconcile is the time between two full passes of the reconciler; while all
	// is well only each thirtieth of them comes. 0 means a minute.
	Reconcile time.Duration
	// BootID names this boot of the host. "": reboots are not noticed.
	BootID string
	// Addresses tells where people reach the node. nil: environments have no
	// Access.
	Addresses Addresses
	// Host is how large the host is; what is not known nobody is warned of.
	Host HostSize
	// Room is DISK_FULL while the node cannot keep anything new. nil: it always can.
	Room func() error
	// Dial connects health checks to environments. nil: as the host does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Manager leads environments through their life. Its methods are safe for
// concurrent use. What takes long is an operation: the methods write it down
// and return, the queue's workers do it.
type Manager struct {
	cfg     Config
	files   etcFiles
	changes broadcaster
	drawing drawWatch
	restart *agenda // what the restart policies start again
	expiry  *agenda // port mappings whose time will be over
	health  *healthChecks
	names   names

	followMu sync.Mutex
	followed map[string]int64 // revisions
	departed []departed       // deleted ones of followed, the eldest first

	rebooted  atomic.Bool           // the host began anew, and what that ended is not all recorded
	bootKept  atomic.Bool           // the store knows this boot
	locks     keylock.Map[string]   // by environment: who changes its container
	passes    keylock.Map[struct{}] // one pass of the reconciler at a time
	measuring keylock.Map[string]   // "usage" and "disk": one pass at a time
	rest      rest                  // of the timer's passes
	missed    missedExits
	dead      *deadTasks
	conflicts portConflicts
	cutOff    cutOffs
	disks     diskSizes
	// occupiedSlots are the address slots of networks that no environment
	// holds, by id. nil: no pass has looked yet.
	occupiedSlots atomic.Pointer[map[string]int]
	// strangers are the ids of containers that hold GPUs of which the database
	// does not know. nil: no pass has looked yet.
	strangers atomic.Pointer[[]string]
	execs     useCount
	copies    useCount
	creating  useCount // whose ports are published before the store says that they run
	claims    imageClaims
	logins    loginFiles

	gpus      inventory
	partition partitions
	watch     gpuWatch
	gpuEvents missedEvents
	gpuUsage  gpuUsage
	gpuFlow   eventGate
	gpuErrors errorCounts
	vitals    gpuVitals
	unwatched unwatched
	tending   tending
	// gpuGate has one at a time decide by how GPUs are partitioned, or change
	// that.
	gpuGate keylock.Map[struct{}]

	conditionsMu sync.Mutex
	conditions   map[problem.Reason]Condition
}

// Kinds of operations.
const (
	KindCreate  = "environment.create"
	KindStart   = "environment.start"
	KindStop    = "environment.stop"
	KindRestart = "environment.restart"
	KindDelete  = "environment.delete"
	KindPause   = "environment.pause"
	KindResume  = "environment.resume"
	KindUpdate  = "environment.update"
	KindPull    = "image.pull"
	KindPush    = "image.push"
	KindBuild   = "image.build"

	KindSnapshot = "environment.snapshot"
	KindRollBack = "environment.rollback"
	KindExport   = "snapshot.export"

	KindPortCreate = "port.create"
	KindPortUpdate = "port.update"
	KindPortDelete = "port.delete"
)

// Kinds are all kinds of operations.
func Kinds() []string {
	return []string{
		KindCreate, KindStart, KindStop, KindRestart, KindDelete, KindPause, KindResume, KindUpdate, KindPull, KindPush, KindBuild,
		KindSnapshot, KindRollBack, KindExport, KindPortCreate, KindPortUpdate, KindPortDelete,
	}
}

// DefaultStopTimeout is the time between SIGTERM and SIGKILL where a request
// names none.
const DefaultStopTimeout = 10 * time.Second

// New returns a Manager and registers its handlers with the queue. It starts
// nothing; Run does.
func New(cfg Config) *Manager {
	if cfg.Reconcile == 0 {
		cfg.Reconcile = time.Minute
	}
	m := &Manager{
		cfg:   cfg,
		files: etcFiles{cfg.StateDir}, logins: loginFiles{cfg.LoginDir},
		conditions: make(map[problem.Reason]Condition), followed: make(map[string]int64),
	}
	if m.cfg.Dial == nil {
		m.cfg.Dial = new(net.Dialer).DialContext
	}
	if m.cfg.InEnvironment == nil {
		m.cfg.InEnvironment = func(int, string) (bool, error) { return false, nil }
	}
	m.dead = newDeadTasks(m)
	m.tending.asked = make(chan chan struct{}, 1)
	m.watch.found = make(chan struct{}, 1)
	m.drawing.manager = m
	m.restart, m.health, m.expiry = newAgenda(restartMax), newHealthChecks(m), newAgenda(0)
	m.names.manager = m
	m.changes.recent.life = ulid.Make().String()
	m.registerHandlers()
	return m
}

// Get returns an environment by name within a project, or by id, in capitals or
// not, whatever its project. ENV_NOT_FOUND.
func (m *Manager) Get(ctx context.Context, project, idOrName string) (*Environment, error) {
	if project == "" {
		project = DefaultProject
	}
	var env *Environment
	err := error(errdefs.ErrNotFound)
	if !isID(idOrName) { // no name has capitals
		env, err = m.cfg.Store.EnvironmentByName(ctx, project, idOrName)
	}
	// What the project itself calls so goes first: an id may be another project's.
	if id, ok := parseID(idOrName); ok && errdefs.IsNotFound(err) {
		env, err = m.cfg.Store.Environment(ctx, id)
	}
	if errdefs.IsNotFound(err) {
		return nil, problem.New(problem.EnvNotFound, "there is no environment %q in project %q", idOrName, project).
			WithField("environment").WithHint("list them with: remotegpu env ls")
	}
	if err != nil {
		return nil, err
	}
	m.fill(env)
	return env, nil
}

// List returns environments, oldest first, and the cursor of the next page.
func (m *Manager) List(ctx context.Context, filter Filter) ([]*Environment, string, error) {
	envs, next, err := m.cfg.Store.Environments(ctx, filter)
	if err != nil {
		return nil, "", err
	}
	for _, env := range envs {
		m.fill(env)
	}
	return envs, next, nil
}

// Count counts the environments by state.
func (m *Manager) Count(ctx context.Context) (map[State]int, error) {
	return m.cfg.Store.CountEnvironments(ctx)
}

// fill sets what follows from what is stored.
func (m *Manager) fill(env *Environment) {
	m.address(env)
	if detail, ok := m.health.detail(env); ok {
		env.HealthDetail = detail
	}
	env.Access = access(env, m.cfg.Addresses)
	env.Conflicts = m.conflicts.of(env.ID)
	env.CutOff = m.cutOff.has(env)
	env.Beyond = m.cfg.Host.beyond(&env.Spec.Resources)
	m.fillInstances(env)
	for i := range env.Ports {
		env.Ports[i].EnvName, env.Ports[i].Reach = env.Name, m.cfg.Ports.Reach(&env.Ports[i])
	}
}

// address sets the addresses that an environment has now.
func (m *Manager) address(env *Environment) {
	if env.Slot >= 0 && env.Held {
		env.Address, env.Address6 = m.cfg.Networks.Address(env.Slot), m.cfg.Networks.Address6(env.Slot)
	}
}

// AddressesChanged is to be called after environments got addresses of IPv6, or
// lost them: their names lead to those that they have. A failure is logged, the
// next pass tries again.
func (m *Manager) AddressesChanged(ctx context.Context) {
	if err := m.names.readdress(ctx); err != nil {
		m.leave(ctx, slog.LevelError, "names lead to the addresses of before", "error", err)
	}
}

// update changes an environment in the store and tells the watchers.
func (m *Manager) update(ctx context.Context, id string, change func(*Environment) error) (*Environment, error) {
	env, _, err := m.cfg.Store.UpdateEnvironment(ctx, id, nil, recorded(change))
	if err != nil {
		return nil, fmt.Errorf("update environment %s: %w", id, err)
	}
	m.fill(env)
	m.follow(env)
	m.changes.publish(env)
	return env, nil
}
