package runtime

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/keylock"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
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
	// Reconcile is the time between two full passes of the reconciler.
	// 0 means a minute.
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

// Condition is something about the node that is not as it should be.
type Condition struct {
	Reason  problem.Reason
	Message string
	Hint    string
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

// CreateRequest is a new environment.
type CreateRequest struct {
	RequestID string
	Name      string
	Project   string
	Labels    map[string]string
	Spec      Spec
}

// room refuses what makes something new while the disk of the database is full:
// what room is left there is for what ends and removes.
func (m *Manager) room() error {
	if m.cfg.Room == nil {
		return nil
	}
	return m.cfg.Room()
}

// Create checks the whole request, writes the environment with everything it
// will own in one transaction and has it made. A refused request took nothing.
func (m *Manager) Create(ctx context.Context, req CreateRequest) (*Environment, *operation.Operation, error) {
	if req.Project == "" {
		req.Project = DefaultProject
	}
	hash := hashOf(KindCreate, req)
	if op, err := m.known(ctx, req.Project, req.RequestID, hash); op != nil || err != nil {
		return m.answer(ctx, op, err)
	}
	if err := m.room(); err != nil {
		return nil, nil, err
	}
	snapshot, err := m.resolveSnapshot(ctx, req.Project, &req.Spec)
	if err != nil {
		return nil, nil, err
	}
	errs := []error{checkProject(req.Project), m.complete(req.Name, &req.Spec), checkLabels(req.Labels, nil)}
	if err := errors.Join(errs...); err != nil {
		return nil, nil, err
	}
	if _, _, err := m.cfg.Networks.Resolvers(); err != nil {
		return nil, nil, err
	}
	if _, err := m.cfg.Store.EnvironmentByName(ctx, req.Project, req.Name); err == nil {
		return nil, nil, nameExists(req.Name)
	} else if !errdefs.IsNotFound(err) {
		return nil, nil, err
	}
	release, err := m.claims.use(ctx, req.Spec.Image)
	if err != nil {
		return nil, nil, err
	}
	defer release()
	warnings, err := m.checkImage(ctx, &req.Spec, snapshot)
	if err != nil {
		return nil, nil, err
	}
	diskWarnings, err := m.checkDisk(ctx, &req.Spec.Resources)
	if err != nil {
		return nil, nil, err
	}
	warnings = append(append(warnings, diskWarnings...), m.nameWarnings(req.Name, req.Project)...)
	if err := m.wantGPUs(ctx, "", &req.Spec); err != nil {
		return nil, nil, err
	}
	now := time.Now()
	env := &Environment{
		ID: ulid.Make().String(), Name: req.Name, Project: req.Project, Node: m.cfg.Node,
		Labels: req.Labels, Spec: req.Spec, State: Creating, Held: true, Slot: -1,
		Warnings: warnings, CreatedAt: now, UpdatedAt: now,
		News: []History{{Time: now, Kind: HappenedCreated, Message: "it was asked for, from image " + req.Spec.Image + fromSnapshot(snapshot)}},
	}
	op := m.newOperation(KindCreate, env.Project, env.ID, req.RequestID, hash, createArgs{Name: env.Name, Image: env.Spec.Image, Snapshot: env.Spec.Snapshot})
	env.Operation = op.ID
	existing, err := m.reserve(fault.Within(ctx, "request ", KindCreate), env, op)
	if err != nil || existing != nil {
		if existing != nil {
			err = checkHash(existing, hash)
		} else {
			m.cfg.Queue.Kick(op.ID) // the answer was lost, perhaps not the row
		}
		return m.answer(ctx, existing, err)
	}
	m.fill(env)
	m.follow(env)
	m.changes.publish(env)
	m.cfg.Queue.Kick(op.ID)
	return env, op, nil
}

func fromSnapshot(snapshot *Snapshot) string {
	if snapshot == nil {
		return ""
	}
	return " and snapshot " + snapshot.Name + " (" + snapshot.ID + ")"
}

// nameExists is the refusal of a name that is in use.
func nameExists(name string) error {
	return problem.New(problem.EnvNameExists, "an environment called %q exists", name).WithField("name").
		WithHint("choose another name, or delete that one (remotegpu env rm %s)", name)
}

func checkProject(project string) error {
	if dnsLabel.MatchString(project) {
		return nil
	}
	return problem.New(problem.FieldInvalid, "%q is not a project name", project).WithField("project").
		WithHint("use 1 to 63 of a-z, 0-9 and -")
}

// reserve takes host ports and writes the environment, its operation, ports,
// GPUs and slot in one transaction.
func (m *Manager) reserve(ctx context.Context, env *Environment, op *operation.Operation) (existing *operation.Operation, err error) {
	slots, err := m.slots(ctx)
	if err != nil {
		return nil, err
	}
	lease, done, err := m.createLease(ctx, env)
	if err != nil {
		return nil, err
	}
	defer done()
	insert := func(ctx context.Context, mappings []port.Mapping) error {
		existing, err = m.cfg.Store.CreateEnvironment(ctx, env, op, mappings, slots, lease)
		if existing != nil {
			return errKnownRequest
		}
		env.Ports = mappings
		return err
	}
	owner := port.Owner{EnvID: env.ID, Project: env.Project}
	if _, err := m.cfg.Ports.Allocate(ctx, owner, env.Spec.Ports, insert); err != nil && !errors.Is(err, errKnownRequest) {
		return nil, err
	}
	return existing, nil
}

// errKnownRequest ends an allocation whose request turned out to be a retry.
var errKnownRequest = errors.New("request id is known")

// known returns the operation of an earlier call with the same request id.
func (m *Manager) known(ctx context.Context, project, requestID, hash string) (*operation.Operation, error) {
	if requestID == "" {
		return nil, nil
	}
	op, err := m.cfg.Store.OperationByRequest(ctx, project, requestID)
	switch {
	case errdefs.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return op, checkHash(op, hash)
}

func checkHash(op *operation.Operation, hash string) error {
	if op.RequestHash == hash {
		return nil
	}
	return problem.New(problem.RequestIDReused, "request id %q was used for another request", op.RequestID).WithField("request_id").
		WithHint("use a new request id for each request, and the same one only to repeat it")
}

// answer returns the environment of an operation that exists already.
func (m *Manager) answer(ctx context.Context, op *operation.Operation, err error) (*Environment, *operation.Operation, error) {
	if err != nil {
		return nil, nil, err
	}
	env, err := m.cfg.Store.Environment(ctx, op.Target)
	if errdefs.IsNotFound(err) {
		return nil, op, nil
	}
	if err != nil {
		return nil, nil, err
	}
	m.fill(env)
	return env, op, nil
}

func (m *Manager) newOperation(kind, project, target, requestID, hash string, args any) *operation.Operation {
	op := &operation.Operation{
		ID: ulid.Make().String(), Project: project, Kind: kind, Target: target,
		RequestID: requestID, RequestHash: hash, State: operation.Queued, CreatedAt: time.Now(),
	}
	if args != nil {
		op.Args, _ = json.Marshal(args) //nolint:errchkjson // plain structs of ours
	}
	return op
}

// hashOf tells a repeated request from another one with the same request id.
func hashOf(kind string, request any) string {
	text, err := json.Marshal(request)
	if err != nil {
		panic(fmt.Sprintf("runtime: request of %s cannot be encoded: %v", kind, err))
	}
	sum := sha256.Sum256(append([]byte(kind+"\n"), text...))
	return hex.EncodeToString(sum[:16])
}

// Get returns an environment by id, or by name within a project.
func (m *Manager) Get(ctx context.Context, project, idOrName string) (*Environment, error) {
	if project == "" {
		project = DefaultProject
	}
	var env *Environment
	var err error
	id, parseErr := ulid.ParseStrict(idOrName)
	if parseErr == nil { // in capitals or not
		env, err = m.cfg.Store.Environment(ctx, id.String())
	}
	if parseErr != nil || errdefs.IsNotFound(err) && id.String() != idOrName { // a name may look like an id, but for capitals
		env, err = m.cfg.Store.EnvironmentByName(ctx, project, idOrName)
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
		m.cfg.Log.ErrorContext(ctx, "names lead to the addresses of before; the next pass tries again", "error", err)
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

// follow tells those who look after running and ended environments what the
// store now says of one. What is older than they know is left out: changes may
// be told of in another order than they were made.
func (m *Manager) follow(env *Environment) {
	m.followMu.Lock()
	defer m.followMu.Unlock()
	if !m.isNews(env, time.Now()) {
		return
	}
	m.followRestart(env)
	m.health.follow(env)
	m.followExpiry(env)
	m.names.follow(env)
}

// oldForms is for how long an older form of an environment may be told of
// after its end: as long as a pass goes on with a list that it has read.
const oldForms = 10 * time.Minute

// departed is an environment that was deleted.
type departed struct {
	id string
	at time.Time
}

// isNews tells whether an environment is not older than what was told of it
// last. The revision of one that was deleted is kept for a while: an older form
// would bring back its names, whose address is somebody else's soon. The caller
// holds followMu.
func (m *Manager) isNews(env *Environment, now time.Time) bool {
	if env.Revision < m.followed[env.ID] {
		return false
	}
	m.followed[env.ID] = env.Revision
	if env.State == Deleted {
		m.departed = append(m.departed, departed{env.ID, now})
	}
	for len(m.departed) > 0 && now.Sub(m.departed[0].at) > oldForms {
		delete(m.followed, m.departed[0].id)
		m.departed = m.departed[1:]
	}
	return true
}

// Conditions returns what is not as it should be.
func (m *Manager) Conditions() []Condition {
	m.conditionsMu.Lock()
	defer m.conditionsMu.Unlock()
	conditions := make([]Condition, 0, len(m.conditions))
	for _, condition := range m.conditions {
		conditions = append(conditions, condition)
	}
	return conditions
}

// setContainerdCondition remembers that containerd is not there, or does not answer
// in time; nil clears both.
func (m *Manager) setContainerdCondition(err error) {
	var away, late error
	if slices.ContainsFunc(problem.All(err), func(p *problem.Problem) bool { return p.Reason == problem.ContainerdTimeout }) {
		late = err
	} else {
		away = err
	}
	m.setCondition(problem.ContainerdDown, away)
	m.setCondition(problem.ContainerdTimeout, late)
}

// setCondition remembers a condition by what was tried; nil clears it.
func (m *Manager) setCondition(reason problem.Reason, err error) {
	m.conditionsMu.Lock()
	defer m.conditionsMu.Unlock()
	if err == nil {
		delete(m.conditions, reason)
		return
	}
	p := problem.Of(err)
	m.conditions[reason] = Condition{Reason: reason, Message: err.Error(), Hint: p.Hint}
}
