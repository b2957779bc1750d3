package gpu

import "time"

// Mode is how a GPU is given. A GPU has one mode at a time.
type Mode string

// The modes.
const (
	Exclusive Mode = "exclusive" // nobody else has a lease of it
	Shared    Mode = "shared"    // several have, nobody has a quota
	MIGMode   Mode = "mig"       // an instance of it
	VGPU      Mode = "vgpu"      // a share of its memory, and maybe of its compute
)

// Enforcement is what keeps others off what a lease gives.
type Enforcement string

// The kinds, strongest first.
const (
	BySole        Enforcement = "sole"        // nobody else has a lease of the GPU
	ByHardware    Enforcement = "hardware"    // a MIG instance
	ByDriver      Enforcement = "driver"      // memory limit of a cgroup in the driver
	ByMPS         Enforcement = "mps"         // limits of the MPS server, for CUDA alone, to the largest share of the GPU; to its own by variables
	ByCooperation Enforcement = "cooperative" // a library in the container, which can be evaded
	ByNone        Enforcement = "none"        // nothing
)

// Request is the GPUs that an environment wants.
type Request struct {
	Mode  Mode `json:"mode"`            // "": exclusive
	Count int  `json:"count,omitempty"` // 0: as many as UUIDs, or 1
	// UUIDs names GPUs; Models are parts of model names without regard to
	// case, any of which will do.
	UUIDs  []string `json:"uuids,omitempty"`
	Models []string `json:"models,omitempty"`
	// MemoryBytes is the share of each GPU in the mode vgpu, MinShare at least; the
	// least memory of each GPU, or of the instance, otherwise.
	MemoryBytes    uint64       `json:"memory_bytes,omitempty"`
	ComputePercent int          `json:"compute_percent,omitempty"` // vgpu: share of compute; 0: no limit
	Profile        string       `json:"profile,omitempty"`         // mig: "1g.5gb"
	Capabilities   []Capability `json:"capabilities,omitempty"`    // none: compute and utility, and graphics with a desktop
	// AllowUnenforced accepts a share that nothing enforces.
	AllowUnenforced bool `json:"allow_unenforced,omitempty"`
}

// Lease is a GPU, an instance or a share of one, that an environment has. An
// environment that asks for several has as many leases.
type Lease struct {
	ID      string `json:"id"` // ULID
	EnvID   string `json:"env_id"`
	EnvName string `json:"env_name,omitempty"` // as it is called now, or was when the lease ended
	// EnvDeleted says that the environment is gone.
	EnvDeleted bool   `json:"env_deleted,omitempty"`
	GPU        string `json:"gpu"`           // UUID
	MIG        string `json:"mig,omitempty"` // UUID of the instance while it exists
	Mode       Mode   `json:"mode"`
	Profile    string `json:"profile,omitempty"`
	Placement  Span   `json:"placement"` // of the instance
	// Static says that the instance was there before the lease and stays when
	// it ends. Others are made when their environment starts.
	Static         bool        `json:"static,omitempty"`
	MemoryBytes    uint64      `json:"memory_bytes,omitempty"`
	ComputePercent int         `json:"compute_percent,omitempty"`
	Enforcement    Enforcement `json:"enforcement"`
	CreatedAt      time.Time   `json:"created_at"`
	ReleasedAt     time.Time   `json:"released_at"` // zero while it is held
}

// MemoryLimit bounds what the processes of a container may allocate on a GPU,
// by the driver.
type MemoryLimit struct {
	GPU   string `json:"gpu"` // UUID
	Bytes uint64 `json:"bytes"`
}
