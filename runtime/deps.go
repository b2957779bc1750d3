package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/network/dns"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

// Engine runs containers; runtime/containerd implements it. Errors are
// errdefs kinds or *problem.Problem. Every method that removes treats what is
// absent as removed.
type Engine interface {
	Changer
	Lister

	// Info tells version and snapshotter. Unavailable when it does not answer.
	Info(ctx context.Context) (EngineInfo, error)
	// DiskQuota tells whether Resources.DiskBytes of a container can be
	// enforced. Where it cannot, Create and Start of one that has it are
	// DISK_QUOTA_UNSUPPORTED.
	DiskQuota(ctx context.Context) (DiskQuota, error)
	// Create prepares the writable layer and the container record. On error
	// nothing is left. AlreadyExists, NotFound (image), InvalidArgument (user),
	// IMAGE_CHANGED: the image has another digest than c has.
	Create(ctx context.Context, c Container) error
	// Start brings the container's spec up to c, starts its first process and
	// returns its pid. On error no task is left; the container is. A container
	// that runs already is AlreadyExists. ContainerGone when container or writable
	// layer are missing.
	Start(ctx context.Context, c Container) (pid int, err error)
	// Stop sends SIGTERM (or the image's stop signal) to the first process,
	// SIGKILL to all when timeout has passed, and removes the task. Until the
	// process ends or timeout has passed others have the worker of the
	// operation that ctx belongs to (operation.Idle). A container without a
	// task is NotFound.
	Stop(ctx context.Context, id string, timeout time.Duration) (Exit, error)
	// Delete kills and removes task, container, writable layer and log.
	Delete(ctx context.Context, id string) error
	// RemovePart removes a part that has no EnvID, if nobody uses it still.
	RemovePart(ctx context.Context, part Part) error
	// Run runs a command in a running container. NotFound when it does not
	// run, ErrPaused when it is paused; *problem.Problem COMMAND_NOT_FOUND,
	// COMMAND_NOT_EXECUTABLE, USER_NOT_FOUND, COMMAND_TIMEOUT: the result has what
	// it wrote until then. When ctx ends the command is killed. CONTAINERD_TIMEOUT
	// when the time was over before it was started.
	Run(ctx context.Context, id string, cmd Command) (CommandResult, error)
	// NetNS opens the network namespace of a container's first process. NotFound
	// when there is none that runs. The caller closes it.
	NetNS(ctx context.Context, id string) (*os.File, error)
	// Events sends what happens to our containers until ctx ends or the
	// connection breaks, then closes events and sends the reason on errs. A
	// caller subscribes first and lists then, so that nothing is missed.
	Events(ctx context.Context) (events <-chan Event, errs <-chan error)
}

// Lister tells what there is. Errors as of Engine.
type Lister interface {
	// Status tells about one container of ours, NotFound. Unavailable when what serves
	// it does not say in time how it is.
	Status(ctx context.Context, id string) (ContainerStatus, error)
	// List tells about all containers of ours. Of one that nobody can say how it is it
	// may be wrong: Status knows better.
	List(ctx context.Context) ([]ContainerStatus, error)
	// Intact tells, without asking the engine, whether all processes live that the
	// last List saw at work for containers that run: their first ones, those that
	// run them, and the writers of their logs. It is quick, and may miss one whose
	// number another process has by now. False before the first List.
	Intact() bool
	// Parts lists what is in the engine's places and belongs to no container of
	// ours: containers of others in its namespace, tasks, processes, cgroups,
	// snapshots and logs without a container, which Delete of their EnvID
	// removes, and what crashed engines left, which RemovePart does.
	Parts(ctx context.Context) ([]Part, error)
}

// Changer changes containers that exist. Errors as of Engine.
type Changer interface {
	// Pause freezes all processes of a container, Resume lets them go on. A
	// container that is so already is fine; one without a process is NotFound.
	// A paused one is started, stopped and deleted as any other: Start is
	// AlreadyExists, Stop and Delete let it go on to end it.
	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	// Update changes the limits of CPU, memory, swap and processes of a running
	// or paused container, all of them or none: LIMITS_REFUSED, as for less
	// memory than is in use. NotFound without a process: Start brings limits.
	Update(ctx context.Context, id string, r Resources) error
	// Relabel replaces the labels of a container, NotFound.
	Relabel(ctx context.Context, id string, labels map[string]string) error
}

// EngineInfo is what an engine is.
type EngineInfo struct {
	Address     string
	Version     string
	Namespace   string
	Snapshotter string
}

// DiskQuota is whether and how the engine limits writable layers.
type DiskQuota struct {
	Supported  bool
	Method     string // such as "project quota"; "" without
	Filesystem string // type of the one that holds the layers; "" when not known
	Path       string // where they are
	Reason     string // why not; "" when supported
	Hint       string // what would make it so
}

// Container is one container as the engine should make it: everything a host
// path, nothing left to decide but what the image says.
type Container struct {
	ID    string // the environment's id
	Image string // full reference, present in the engine's store
	// Digest is what Image named when it was looked at, and names still when
	// the container is made; "": whatever it names. Only Create looks at it, and
	// not with Snapshot.
	Digest     string
	Entrypoint []string
	Command    []string
	Env        []string // "NAME=value", on top of the image's
	Workdir    string
	User       string
	Hostname   string
	Resources  Resources
	Mounts     []volume.Staged
	NetNS      string // path of its network namespace
	LogPath    string // file that gets its stdout and stderr
	// Snapshot is the id of the snapshot that it is made from, in place of the
	// image as it came; "": none. Base is that snapshot's Layer.Base. Only
	// Create looks at them.
	Snapshot           string
	Base               json.RawMessage
	Labels             map[string]string
	AllowNewPrivileges bool
	Disk               DiskLimit // what Resources.DiskBytes, which is what to enforce, came from
	// GPU is what the container needs for the GPUs that the environment has, as
	// the driver says now; nil: it has none. It goes over everything else, and
	// each Start takes what it is given then.
	GPU *gpu.Edits
	// GPUMemory is what the driver is to limit; in force before the first
	// process runs. GPU_NOT_ENFORCEABLE where it cannot.
	GPUMemory []gpu.MemoryLimit
	// GPURun is what the environment records of it.
	GPURun *GPURun
}

// ContainerStatus is a container as it is.
type ContainerStatus struct {
	ID      string
	Image   string
	Labels  map[string]string
	Running bool  // its first process has not ended
	Paused  bool  // and is paused
	PID     int   // 0 unless running
	Exit    *Exit // how its task ended, while the dead task is there
	// OOMKills is how many processes of its task the kernel has killed for
	// memory, while the task is there.
	OOMKills int
	// LogLost says that it runs and that the writer of its log does not: what it
	// writes is kept by nobody. List alone tells.
	LogLost bool
}

// Command is a command to run in a container.
type Command struct {
	Argv        []string
	Stdin       []byte
	Env         []string // on top of the container's
	Workdir     string   // "": the container's
	User        string   // "": the container's
	Timeout     time.Duration
	OutputLimit int // bytes per stream; the rest is read and dropped
}

// CommandResult is how a command went.
type CommandResult struct {
	ExitCode                         int
	Stdout, Stderr                   []byte
	StdoutTruncated, StderrTruncated bool
}

// EventKind is what happened to a container.
type EventKind string

// The kinds.
const (
	EventExit    EventKind = "exit"
	EventOOM     EventKind = "oom"
	EventPaused  EventKind = "paused"
	EventResumed EventKind = "resumed"
)

// Event is something that happened to a container of ours.
type Event struct {
	ID   string
	Kind EventKind
	Exit Exit // EventExit
	// OOMKills of EventOOM is how many processes of the task were killed for
	// memory up to now: one event may tell of several.
	OOMKills int
}

// Builder builds the images whose sources the node carries; build implements
// it. Errors: IMAGE_SOURCE_NOT_FOUND, BUILDKIT_UNAVAILABLE, BUILD_FAILED,
// BASE_BOOTSTRAP_FAILED.
type Builder interface {
	// Build makes req.Tag name what it built once that is whole, as Images.Tag
	// does: it stays pinned. Until then the image is called BuildName(req.Tag);
	// that name is the caller's to remove.
	Build(ctx context.Context, req BuildRequest, progress func(operation.Progress)) (BuildResult, error)
	// Sources names what can be built.
	Sources() []string
}

// BuildRequest names a source and how to build it.
type BuildRequest struct {
	Source  string `json:"source"`
	Tag     string `json:"tag"`            // full reference of the result
	Base    string `json:"base,omitempty"` // "": the builder decides and says why
	NoCache bool   `json:"no_cache,omitempty"`
}

// BuildResult is what a build made.
type BuildResult struct {
	Image      string // full reference
	Digest     string
	Base       string // the base that was used
	BaseReason string // why
}

// Networks gives environments their network; package network implements it.
// Errors are *problem.Problem (NETWORK_FAILED, FIREWALL_FAILED) or errdefs
// kinds. Everything is idempotent.
type Networks interface {
	Isolation
	AddressPlan
	Pins

	// NetNS is the path the environment's network namespace has or will have.
	NetNS(envID string) string
	// Resolvers returns the name servers and search domains for
	// environments; NO_UPSTREAM_DNS when there are none.
	Resolvers() (servers []netip.Addr, search []string, err error)
	// Attach makes namespace, bridge, veth, address and route. On error
	// nothing is left.
	Attach(ctx context.Context, envID string, slot int) error
	// Detach removes what Attach made.
	Detach(ctx context.Context, envID string) error
	// Publish makes the mappings of one environment reachable, replacing
	// those it had. No mappings withdraws them.
	Publish(ctx context.Context, envID string, address netip.Addr, mappings []port.Mapping) error
	// Restore declares all published mappings and policies at once and repairs
	// the host; called at boot and by the reconciler. A network that is in
	// neither list keeps its policy.
	Restore(ctx context.Context, published []port.Published, policies []policy.Declared) error
	// Present tells what the host has of environments' networks.
	Present(ctx context.Context) (*port.Present, error)
	// Drift tells what Restore of the same lists would change on the host.
	Drift(ctx context.Context, published []port.Published, policies []policy.Declared) ([]port.Drift, error)
	// RemoveStray removes an interface of Present.Strays, if it still is one.
	RemoveStray(ctx context.Context, name string) error
}

// Pins are the files that hold the network namespaces of environments.
type Pins interface {
	// Pinned tells whether the environment's network namespace is at its path.
	Pinned(envID string) (bool, error)
	// Pin puts a namespace, which is that of the environment's process, at its
	// path again and gives it what its network lacks.
	Pin(ctx context.Context, envID string, slot int, namespace *os.File) error
}

// AddressPlan says which addresses environments have.
type AddressPlan interface {
	// Address is the address that goes with a slot.
	Address(slot int) netip.Addr
	// Address6 is the IPv6 address that goes with a slot, invalid while
	// environments have none.
	Address6(slot int) netip.Addr
	// Slots is how many environments the address range holds.
	Slots() int
}

// Isolation is what environments may reach, and how fast. Errors as of Networks.
type Isolation interface {
	// CheckPolicy refuses destinations that no environment's policy may open:
	// DESTINATION_NOT_ALLOWED, each with its path below field.
	CheckPolicy(wanted policy.Policy, field string) error
	// SetPolicy puts the policy of an environment in force, in place of the one
	// it had. It comes after Attach and before the first process; Detach takes
	// it back.
	SetPolicy(ctx context.Context, declared policy.Declared) error
	// Withdraw makes some mappings unreachable and publishes nothing: it may be
	// called beside whatever an operation does with the environment's ports.
	Withdraw(ctx context.Context, envID string, mappings []port.Mapping) error
}

// Names serves the names of environments; the node's responder implements it.
type Names interface {
	// Zones are the zones that names are in, without a dot at the end; the
	// first is the main one.
	Zones() []string
	// Advertised are the addresses by which others than environments reach the
	// node.
	Advertised() []netip.Addr
	// Declare says which environments have names, all of them. Questions that
	// come after it returns are answered so. One that is the same pointer as
	// in the call before has not changed.
	Declare(ctx context.Context, hosts []*dns.Host) error
}

// Ports allocates host ports; *port.Pool implements it.
type Ports interface {
	// Check refuses what could never be given: FIELD_INVALID,
	// PORT_OUTSIDE_POOL, PORT_DUPLICATE. field is the path of the requests in
	// the API request; each problem names the entry at fault.
	Check(requests []port.Request, field string) error
	// Allocate picks host ports for all requests, or none, and persists them
	// with insert, which it may call again with others when a port turned out
	// to be taken. PORT_TAKEN, PORT_POOL_EXHAUSTED.
	Allocate(ctx context.Context, owner port.Owner, requests []port.Request,
		insert func(context.Context, []port.Mapping) error) ([]port.Mapping, error)
	// Reallocate brings an environment from the mappings it holds to what is
	// requested, and persists the change with apply, which it may call again.
	// A mapping that fits a request is kept. PORT_TAKEN, PORT_POOL_EXHAUSTED.
	Reallocate(ctx context.Context, owner port.Owner, held []port.Mapping, requests []port.Request,
		apply func(context.Context, port.Change) error) error
	// Released tells the pool that the store has released these mappings.
	Released(mappings []port.Mapping)
	// RequestOf is the index of the request that a held mapping comes of, -1
	// when it comes of none.
	RequestOf(held []port.Mapping, requests []port.Request, m port.Mapping) int
	// Mapping returns one, released ones too: PORT_MAPPING_NOT_FOUND.
	Mapping(ctx context.Context, id string) (port.Mapping, error)
	// Mappings returns those that a filter selects, by host port, then by age,
	// and the cursor of the next page.
	Mappings(ctx context.Context, filter port.Filter) ([]port.Mapping, string, error)
	// Reach tells from where a mapping is reached.
	Reach(m *port.Mapping) port.Reach
	// Conflicts tells which held ports something else on the host uses too. An
	// error may come with those that were found.
	Conflicts(ctx context.Context) ([]port.Conflict, error)
}

// Volumes prepares mounts; *volume.Manager implements it.
type Volumes interface {
	// Check refuses what is not allowed, with nothing touched:
	// MOUNT_NOT_ALLOWED, MOUNT_SOURCE_NOT_FOUND, FIELD_INVALID.
	Check(mounts []volume.Mount, field string) error
	// Stage pins each mount under the environment's staging directory, again
	// when it was staged before. On error nothing is left.
	Stage(ctx context.Context, envID string, mounts []volume.Mount) ([]volume.Staged, error)
	// Unstage removes what Stage made. Volumes keep their content.
	Unstage(ctx context.Context, envID string) error
	// Staged lists the environments that have staged mounts.
	Staged(ctx context.Context) ([]string, error)
}

// Desktops prepares the host side of a desktop; package desktop implements it.
type Desktops interface {
	// Prepare makes the directory of the RFB socket and the password file and
	// returns what the container needs: mounts and variables. It keeps a
	// password file that is there, unless d.Password is another one.
	Prepare(ctx context.Context, envID string, d Desktop) (mounts []volume.Staged, env []string, err error)
	// Remove removes what Prepare made.
	Remove(ctx context.Context, envID string) error
	// Prepared lists the environments that have something prepared.
	Prepared(ctx context.Context) ([]string, error)
	// AwaitDrawn blocks until the desktop has drawn (more than 50 colours) or
	// ctx ends; ErrUnseen where the node had no room to look at it until then.
	AwaitDrawn(ctx context.Context, envID string) error
	// AwaitConnectable blocks until the desktop can be connected to or ctx ends.
	AwaitConnectable(ctx context.Context, envID string) error
}

// ErrUnseen says that nobody could look at a desktop: a node has few pictures in
// memory at a time, and those of others were in the way.
var ErrUnseen = errors.New("the desktop was not looked at: pictures of others were in the way")

// Store keeps environments; package store implements it. Errors are errdefs
// kinds or *problem.Problem.
type Store interface {
	operation.Store
	HistoryStore
	MetaStore
	SnapshotStore
	OwnedStore

	// CreateEnvironment writes, in one transaction, the environment, its
	// operation, its port mappings, the GPU leases that lease decides on (nil:
	// none), and a free subnet slot of slots, which it sets in env.Slot. ENV_NAME_EXISTS, DNS_NAME_TAKEN, ADDRESS_POOL_EXHAUSTED,
	// *port.ConflictError. When the operation's request id is known it writes
	// nothing and returns that operation.
	CreateEnvironment(ctx context.Context, env *Environment, op *operation.Operation,
		mappings []port.Mapping, slots Slots, lease LeaseFunc) (existing *operation.Operation, err error)
	// Environment returns one that is not deleted, NotFound (ENV_NOT_FOUND).
	Environment(ctx context.Context, id string) (*Environment, error)
	// EnvironmentByName returns one that is not deleted, NotFound.
	EnvironmentByName(ctx context.Context, project, name string) (*Environment, error)
	// Environments returns those not deleted, oldest first, and the cursor of
	// the next page. Their fields may be set; what maps, slices and pointers in
	// them lead to is shared with other lists.
	Environments(ctx context.Context, filter Filter) ([]*Environment, string, error)
	// UpdateEnvironment reads, changes and writes one in a single transaction
	// and counts its revision. What change puts into News goes into the
	// history. An error from change is returned as it is and nothing is
	// written. op, when not nil, is inserted in the same
	// transaction; a known request id writes nothing and returns that
	// operation. Where it becomes the one that works on the environment in place
	// of another one, which is not of its kind, that one's cancellation is
	// requested with it: tell the queue (operation.Queue.Heed).
	UpdateEnvironment(ctx context.Context, id string, op *operation.Operation,
		change func(*Environment) error) (env *Environment, existing *operation.Operation, err error)
	// CountEnvironments counts those not deleted by state.
	CountEnvironments(ctx context.Context) (map[State]int, error)
	// Fate tells what the store knows of an id, deleted environments included.
	Fate(ctx context.Context, id string) (Fate, error)
	// PurgeDeleted forgets environments deleted before the time.
	PurgeDeleted(ctx context.Context, before time.Time) (int, error)
}

// Slots are the subnet slots that environments can be given.
type Slots struct {
	Count    int   // they are numbered from 0
	Occupied []int // those that are in use though no environment has them, ascending
}

// OwnedStore keeps what environments own. Errors as of Store.
type OwnedStore interface {
	PortStore
	DNSStore
	GPUStore
}

// PortStore changes environments together with the mappings they hold. Errors
// as of Store.
type PortStore interface {
	// ReleaseEnvironment does as UpdateEnvironment and in the same transaction
	// releases the environment's ports, GPUs and slot and removes its DNS
	// records. It returns the released mappings.
	ReleaseEnvironment(ctx context.Context, id string,
		change func(*Environment) error) (*Environment, []port.Mapping, error)
	// ActivateEnvironment does as UpdateEnvironment and in the same
	// transaction makes its reserved mappings active.
	ActivateEnvironment(ctx context.Context, id string,
		change func(*Environment) error) (*Environment, error)
	// ChangePorts does as UpdateEnvironment and in the same transaction releases
	// the dropped mappings of the environment, describes others anew and adds
	// new ones. *port.ConflictError. It returns the released mappings.
	ChangePorts(ctx context.Context, id string, ports port.Change,
		change func(*Environment) error) (env *Environment, released []port.Mapping, err error)
}

// Filter selects environments. Zero fields select all.
type Filter struct {
	Project string
	States  []State
	Labels  Selector
	Limit   int    // 0: no limit
	After   string // page cursor as returned by the store
}

// Fate is what the store knows of an environment id.
type Fate int

// The fates.
const (
	FateUnknown Fate = iota // never heard of, or purged
	FateHeld                // it exists and owns its container
	FateGone                // it was deleted, or its create failed: it owns nothing
)
