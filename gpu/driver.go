package gpu

import (
	"context"
	"time"

	cdi "tags.cncf.io/container-device-interface/specs-go"
)

// Driver is the GPU software of the host. A call costs a round trip to another
// process and up to seconds of work; each ends with ctx. Errors are
// *problem.Problem or errdefs kinds; Unavailable when the software does not
// answer.
type Driver interface {
	// Probe reads the inventory. A host without GPUs has an empty one; a probe
	// that failed is an error, or Missing of an inventory that has GPUs of others.
	Probe(ctx context.Context) (Inventory, error)
	// Edits computes what a container needs for the devices, fresh: nodes,
	// libraries of the driver that is loaded now, hooks.
	Edits(ctx context.Context, req EditsRequest) (Edits, error)
	// Usage measures all GPUs.
	Usage(ctx context.Context) ([]Usage, error)
	// Watch calls report for each thing that happens to a GPU until ctx ends
	// or the watch breaks, which is an error. only are the PCI addresses of the
	// GPUs of NVIDIA to watch, which it keeps open; the others it does not open.
	// nil: all. When it returns nothing is open any more.
	Watch(ctx context.Context, only []string, report func(Event)) error

	// CreateMIG makes an instance at the place: PLACEMENT_TAKEN is
	// errdefs.AlreadyExists.
	CreateMIG(ctx context.Context, gpuUUID, profile string, at Span) (MIGInstance, error)
	// DestroyMIG removes an instance; one that is not there counts as removed.
	// FailedPrecondition while a process uses it.
	DestroyMIG(ctx context.Context, migUUID string) error
	// SetMIGMode turns MIG on or off and tells whether a reset is needed
	// before that is so.
	SetMIGMode(ctx context.Context, gpuUUID string, on bool) (resetNeeded bool, err error)
	// SetExclusiveProcess lets one process alone have contexts on the GPU,
	// which MPS wants, or any number.
	SetExclusiveProcess(ctx context.Context, gpuUUID string, on bool) error

	// SetMemoryLimit bounds what processes of a cgroup (path below
	// /sys/fs/cgroup, v2) may allocate on a GPU; 0 removes the bound.
	// Unimplemented where the driver cannot.
	SetMemoryLimit(ctx context.Context, gpuUUID, cgroup string, bytes uint64) error
	// MemoryUsed is how much of a GPU's memory, in bytes, the processes of such
	// cgroups have, as the driver counts it for their limits. A cgroup that it does
	// not know is left out. Unimplemented where the driver cannot.
	MemoryUsed(ctx context.Context, gpuUUID string, cgroups []string) (map[string]uint64, error)
}

// Target is what a container gets: a whole GPU, an instance of one, or a share
// of one.
type Target struct {
	GPU   string `json:"gpu"`           // UUID
	MIG   string `json:"mig,omitempty"` // UUID; "": the whole GPU
	Share Share  `json:"share,omitzero"`
}

// Share is a part of a GPU that several containers have, and what holds each to
// its part. It is nothing for those that have a GPU or an instance alone.
type Share struct {
	Enforcement    Enforcement `json:"enforcement,omitempty"`
	MemoryBytes    uint64      `json:"memory_bytes,omitempty"`    // 0: no limit
	ComputePercent int         `json:"compute_percent,omitempty"` // 0: no limit
}

// Capability is a part of NVIDIA's driver that a container gets (container
// toolkit, NVIDIA_DRIVER_CAPABILITIES).
type Capability string

// The capabilities.
const (
	Compute  Capability = "compute"
	Utility  Capability = "utility"
	Graphics Capability = "graphics"
	Video    Capability = "video"
	Display  Capability = "display"
)

// EditsRequest asks for what containers need.
type EditsRequest struct {
	Targets      []Target     `json:"targets"`
	Capabilities []Capability `json:"capabilities,omitempty"`
}

// Edits is what a container needs. Warnings are for people: a capability that
// the host cannot give.
type Edits struct {
	CDI cdi.ContainerEdits `json:"cdi"`
	// Brought are paths of the container at which a hook puts files that are not
	// among the mounts: nothing else may be mounted there either.
	Brought  []string `json:"brought,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// Event is something that happened to a GPU.
type Event struct {
	UUID   string `json:"uuid"`          // "": to all of them
	MIG    string `json:"mig,omitempty"` // UUID of the one instance that it is about
	XID    int    `json:"xid,omitempty"` // 0 when it was none (NVIDIA, XID Errors)
	Fatal  bool   `json:"fatal"`         // no new lease of the GPU until somebody has looked
	Detail string `json:"detail"`        // for people
	// Unwatched says that errors of the GPU will not be told by this watch.
	Unwatched bool      `json:"unwatched,omitempty"`
	At        time.Time `json:"at"`
}
