package runtime

import (
	"net/netip"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

// State is the life of an environment:
//
//	creating → running ⇄ stopped → deleted
//	creating → error   everything it took was given back
//	running → error    its process died; everything is kept
//
// One that is paused is stopped: its process does nothing.
type State string

// The states; there are no others.
const (
	Creating State = "creating"
	Running  State = "running"
	Stopped  State = "stopped"
	Failed   State = "error"
	Deleted  State = "deleted"
)

// States returns all states in the order of a life.
func States() []State { return []State{Creating, Running, Stopped, Failed, Deleted} }

// Environment is what a user owns: a container with its writable layer,
// address, port mappings, mounts and desktop. The store keeps it; containerd
// and the kernel are made to follow it.
type Environment struct {
	ID        string // ULID
	Name      string // DNS label, unique per project among those not deleted
	Project   string
	Node      string
	Labels    map[string]string
	Revision  int64 // counts changes, from 1; the API's etag
	Spec      Spec
	State     State
	Paused    bool               // it is Stopped with its process frozen, to go on from there
	Problem   *operation.Problem // why it is in error
	Exit      *Exit              // how its last run ended
	Digest    string             // of the image its root filesystem was made from
	Login     string             // user that people are by SSH, as that image says (LabelUser); "": it does not say
	Held      bool               // it holds address, ports and container
	Slot      int                // index of its subnet in the address range; -1 without one
	Address   netip.Addr         // invalid without a slot
	Address6  netip.Addr         // of IPv6, which follows from the slot; invalid where environments have none
	Ports     []port.Mapping     // reserved and active ones, read from their own table
	GPUs      []gpu.Lease        // those it holds, read from their own table
	GPURun    *GPURun            // what its present or last run was started with; nil: no GPU
	Ready     bool               // its desktop has drawn
	Warnings  []string
	Access    []Access  // how people reach it; not stored
	Conflicts []string  // what is wrong with its host ports; not stored
	Beyond    []string  // limits of its spec that are more than the host has; not stored
	CutOff    bool      // it runs and somebody has removed its network; not stored
	Disk      DiskLimit // of its present or last run
	Operation string    // id of the operation at work on it
	CreatedAt time.Time
	UpdatedAt time.Time
	StartedAt time.Time // of its present or last run

	Health       Health // "" without a check
	HealthDetail string // what the last check said, at most HealthDetailLimit bytes
	RestartCount int    // starts by the restart policy since somebody last started it
	RestartAt    time.Time
	ByPolicy     bool   // the operation at work was begun by the restart policy
	RolledBack   string // id of the operation that last replaced its writable layer
	OOMKills     int    // processes of its present or last run that the kernel killed for memory
	// Applied is what its process was started with, while that differs from
	// Spec in what a start alone can change; nil otherwise.
	Applied *Spec
	// Clear says that a start has to remove mounts or a desktop first that Spec
	// does not name any more.
	Clear bool
	News  []History // what this change adds to its history; the store keeps it apart
}

// Alive says that the environment has a process, be it paused.
func (e *Environment) Alive() bool { return e.State == Running || e.Paused }

// Standing says in words for people where it is in its life, to follow its name.
func (e *Environment) Standing() string {
	switch {
	case e.Paused:
		return "is paused"
	case !e.RestartAt.IsZero():
		return "has ended and waits for its restart"
	case e.Operation != "" && e.ByPolicy:
		return "has ended and is being restarted"
	}
	switch e.State {
	case Creating:
		return "is still being made"
	case Failed:
		if e.StartedAt.IsZero() {
			return "has failed before it ran"
		}
		return "has failed"
	case Stopped:
		return "is stopped"
	case Deleted:
		return "is deleted"
	default:
		return "runs"
	}
}

// Effective is what its process was started with, as far as a start alone can
// change it.
func (e *Environment) Effective() *Spec {
	if e.Applied != nil {
		return e.Applied
	}
	return &e.Spec
}

// Spec is what an environment should be, defaults filled in.
type Spec struct {
	Image              string            `json:"image"` // full reference
	PullPolicy         PullPolicy        `json:"pull_policy,omitempty"`
	Entrypoint         []string          `json:"entrypoint,omitempty"`
	Command            []string          `json:"command,omitempty"`
	Workdir            string            `json:"workdir,omitempty"`
	User               string            `json:"user,omitempty"`
	Env                map[string]string `json:"env,omitempty"`
	Hostname           string            `json:"hostname,omitempty"`
	Resources          Resources         `json:"resources"`
	Mounts             []volume.Mount    `json:"mounts,omitempty"`
	Ports              []port.Request    `json:"ports,omitempty"`
	Desktop            *Desktop          `json:"desktop,omitempty"`
	AllowNewPrivileges bool              `json:"allow_new_privileges,omitempty"`
	Restart            *RestartPolicy    `json:"restart,omitempty"`
	HealthCheck        *HealthCheck      `json:"health_check,omitempty"`
	Network            *policy.Policy    `json:"network,omitempty"`  // nil: the default policy
	GPU                *gpu.Request      `json:"gpu,omitempty"`      // nil: none
	Snapshot           string            `json:"snapshot,omitempty"` // id of what it is made from in place of Image as it came
	// OwnHostname says that Hostname was asked for; otherwise it follows the
	// name.
	OwnHostname bool `json:"own_hostname,omitempty"`
}

// PullPolicy is when to pull an image.
type PullPolicy string

// The policies.
const (
	PullIfNotPresent PullPolicy = "if-not-present"
	PullAlways       PullPolicy = "always"
	PullNever        PullPolicy = "never"
)

// Resources are limits; zero means none unless said otherwise.
type Resources struct {
	CPUMillis   int64 `json:"cpu_millis,omitempty"`   // thousandths of a CPU
	MemoryBytes int64 `json:"memory_bytes,omitempty"` // at least 16 MiB
	SwapBytes   int64 `json:"swap_bytes,omitempty"`   // on top of memory; meaningless without MemoryBytes
	Pids        int64 `json:"pids"`
	ShmBytes    int64 `json:"shm_bytes"`
	DiskBytes   int64 `json:"disk_bytes,omitempty"` // of the writable layer
	// DiskBestEffort lets an environment run without DiskBytes being enforced
	// where it cannot be.
	DiskBestEffort bool     `json:"disk_best_effort,omitempty"`
	Ulimits        []Ulimit `json:"ulimits,omitempty"`
}

// Ulimit is one setrlimit(2) limit; Name has no RLIMIT_ prefix and is lower
// case, -1 is unlimited.
type Ulimit struct {
	Name string `json:"name"`
	Soft int64  `json:"soft"`
	Hard int64  `json:"hard"`
}

// Desktop asks for a desktop of that size (pixels) and colour depth (bits).
type Desktop struct {
	Width  int `json:"width"`
	Height int `json:"height"`
	Depth  int `json:"depth"`
	// Password is what VNC viewers log in with, 1 to 8 bytes; "": a random
	// one. It follows from the variable VNC_PASSWORD and is never stored.
	Password string `json:"-"`
}

// Exit is how a process ended. Code is 128 + Signal when a signal ended it.
type Exit struct {
	Code      int       `json:"code"`
	Signal    int       `json:"signal,omitempty"`
	OOMKilled bool      `json:"oom_killed,omitempty"` // the kernel killed a process of the run for memory, this or another
	At        time.Time `json:"at"`                   // zero when it ended unseen
}
