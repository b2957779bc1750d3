package gpu

import "time"

// Vendor is who made a GPU.
type Vendor string

// The vendors. Only NVIDIA's GPUs have modes other than shared graphics.
const (
	NVIDIA Vendor = "nvidia"
	AMD    Vendor = "amd"
	Intel  Vendor = "intel"
)

// Inventory is the GPUs of the host at a moment.
type Inventory struct {
	Devices []Device  `json:"devices,omitempty"` // by PCI address
	Driver  string    `json:"driver,omitempty"`  // version of NVIDIA's kernel driver, "" without one
	CUDA    string    `json:"cuda,omitempty"`    // newest CUDA that it supports, "12.8"
	NVML    string    `json:"nvml,omitempty"`    // version of its management library
	At      time.Time `json:"at"`
	// Missing is why GPUs of NVIDIA are not among the devices though the host may
	// have some: their software does not answer. nil: they are.
	Missing error `json:"-"`
	// Notes say what the host lacks, for people: no driver, no toolkit.
	Notes []string `json:"notes,omitempty"`
}

// Device is a GPU. Its UUID is its identity everywhere: index, minor and
// device nodes may change with each boot.
type Device struct {
	// UUID is NVML's ("GPU-" and 36 characters) or, for other vendors, "PCI-"
	// and the PCI address.
	UUID              string `json:"uuid"`
	Vendor            Vendor `json:"vendor"`
	Model             string `json:"model"` // as the driver says, "NVIDIA A100-SXM4-40GB"
	Index             int    `json:"index"` // NVML's; -1 for other vendors
	Minor             int    `json:"minor"` // of /dev/nvidiaN; -1 for other vendors
	PCI               string `json:"pci"`   // "0000:07:00.0", lower case
	NUMANode          int    `json:"numa_node"`
	MemoryBytes       uint64 `json:"memory_bytes"` // of the device; 0 when not known
	Architecture      string `json:"architecture,omitempty"`
	ComputeCapability string `json:"compute_capability,omitempty"` // "8.0"
	CardNode          string `json:"card_node,omitempty"`          // "/dev/dri/card1"
	RenderNode        string `json:"render_node,omitempty"`        // "/dev/dri/renderD128"
	ECC               bool   `json:"ecc,omitempty"`                // is on
	MemoryLimits      bool   `json:"memory_limits,omitempty"`      // the driver can limit what a cgroup allocates of it
	// Virtualization is "" on bare metal, "passthrough", or "vgpu-guest" when
	// this host is a guest that has a share of a GPU.
	Virtualization string   `json:"virtualization,omitempty"`
	Peers          []string `json:"peers,omitempty"` // UUIDs that NVLink connects it with, sorted
	MIG            MIG      `json:"mig"`
	Vitals         Vitals   `json:"vitals"`
	Health         Health   `json:"health"`
}

// MIG is how a GPU is partitioned (NVIDIA Multi-Instance GPU User Guide).
type MIG struct {
	Capable bool `json:"capable,omitempty"`
	Enabled bool `json:"enabled,omitempty"`
	// Pending says that Enabled changes with the next reset of the GPU.
	Pending bool `json:"pending,omitempty"`
	// ResetNeeded says that a change of the mode takes a reset: before Hopper.
	ResetNeeded bool          `json:"reset_needed,omitempty"`
	Profiles    []MIGProfile  `json:"profiles,omitempty"`
	Instances   []MIGInstance `json:"instances,omitempty"`
}

// Span is a range of memory slices of a GPU.
type Span struct {
	Start int `json:"start"`
	Size  int `json:"size"`
}

// MIGProfile is a size of MIG instances that a GPU offers. Capacity is by
// Placements: compute slices do not tell what fits.
type MIGProfile struct {
	Name        string `json:"name"` // "1g.5gb"
	ID          int    `json:"id"`   // NVML's GPU_INSTANCE_PROFILE_*
	MemoryBytes uint64 `json:"memory_bytes"`
	Slices      int    `json:"slices"` // compute slices
	Placements  []Span `json:"placements,omitempty"`
	Graphics    bool   `json:"graphics,omitempty"` // "+gfx": can draw
}

// MIGInstance is an instance that exists: one GPU instance with one compute
// instance over all of it. Its UUID changes when it is made again.
type MIGInstance struct {
	UUID            string `json:"uuid"` // "MIG-" and 36 characters
	Profile         string `json:"profile"`
	GPUInstance     int    `json:"gpu_instance"`
	ComputeInstance int    `json:"compute_instance"`
	Placement       Span   `json:"placement"`
	MemoryBytes     uint64 `json:"memory_bytes"`
}

// Health is whether a GPU can be given to somebody.
type Health struct {
	Unhealthy bool      `json:"unhealthy,omitempty"`
	Reason    string    `json:"reason,omitempty"` // for people: "XID 79: GPU has fallen off the bus"
	XID       int       `json:"xid,omitempty"`    // the last one that mattered; 0: none
	Since     time.Time `json:"since"`
	// Passing says that it ends by itself, as heat does: who has the GPU keeps it
	// and works on.
	Passing bool `json:"passing,omitempty"`
	// Unsure says that a question about the GPU failed, as one may while it is
	// reset: nobody new gets it, and no more is concluded before that has lasted.
	Unsure bool `json:"unsure,omitempty"`
}

// Failed says that who has the GPU has lost it.
func (h Health) Failed() bool { return h.Unhealthy && !h.Passing && !h.Unsure }

// Process is a process that uses a GPU.
type Process struct {
	PID         int    `json:"pid"` // in the host's namespace
	MemoryBytes uint64 `json:"memory_bytes"`
	Graphics    bool   `json:"graphics,omitempty"` // has a graphics context
	MIG         string `json:"mig,omitempty"`      // UUID of the instance it is on
	UtilPercent int    `json:"util_percent"`       // time in which its kernels ran a moment ago; -1: not told
	// EncoderPercent and DecoderPercent are the time in which these worked for it;
	// -1: not told.
	EncoderPercent int `json:"encoder_percent"`
	DecoderPercent int `json:"decoder_percent"`
}

// Usage is what a GPU does. What a device does not tell is negative, or nil.
type Usage struct {
	UUID            string `json:"uuid"`
	UtilPercent     int    `json:"util_percent"`     // time in which a kernel ran
	CopyPercent     int    `json:"copy_percent"`     // time in which memory was read or written
	MemoryUsed      uint64 `json:"memory_used"`      // bytes
	MemoryFree      uint64 `json:"memory_free"`      // bytes
	MemoryReserved  uint64 `json:"memory_reserved"`  // bytes that the driver keeps for itself; 0: not told
	EncoderPercent  int    `json:"encoder_percent"`  //
	DecoderPercent  int    `json:"decoder_percent"`  //
	Temperature     int    `json:"temperature"`      // degrees Celsius
	PowerMilliwatts int    `json:"power_milliwatts"` //
	// Memory errors since the driver was loaded, and ever.
	ECCUncorrected     int64           `json:"ecc_uncorrected"`
	ECCCorrected       int64           `json:"ecc_corrected"`
	ECCUncorrectedEver int64           `json:"ecc_uncorrected_ever"`
	ECCCorrectedEver   int64           `json:"ecc_corrected_ever"`
	Instances          []InstanceUsage `json:"instances,omitempty"`
	Processes          []Process       `json:"processes,omitempty"`
}

// Untold is a GPU of which nothing is told.
func Untold(uuid string) Usage {
	return Usage{
		UUID: uuid, UtilPercent: -1, CopyPercent: -1, EncoderPercent: -1, DecoderPercent: -1, Temperature: -1, PowerMilliwatts: -1,
		ECCUncorrected: -1, ECCCorrected: -1, ECCUncorrectedEver: -1, ECCCorrectedEver: -1,
	}
}

// InstanceUsage is the memory of a MIG instance, bytes.
type InstanceUsage struct {
	UUID       string `json:"uuid"`
	MemoryUsed uint64 `json:"memory_used"`
	MemoryFree uint64 `json:"memory_free"`
}
