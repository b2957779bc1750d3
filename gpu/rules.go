package gpu

import (
	"fmt"
	"slices"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// Policy is which of the GPUs that would do a request gets.
type Policy string

// The policies.
const (
	// Pack fills GPUs that are used already, so that whole ones stay free.
	Pack Policy = "pack"
	// Spread takes those that are used least, so that all are cool.
	Spread Policy = "spread"
)

// SharedBy is how those who share a GPU use it at a time, where no quota of
// theirs says it.
type SharedBy string

// The ways.
const (
	// TimeSlicing has the driver give them turns.
	TimeSlicing SharedBy = "time-slicing"
	// MPS has them be clients of the GPU's control daemon (CUDA Multi-Process
	// Service), and compute at a time.
	MPS SharedBy = "mps"
)

// DefaultMaxShared is how many environments share a GPU where nothing else is
// configured.
const DefaultMaxShared = 4

// Rules are how the GPUs of a node are given.
type Rules struct {
	Policy    Policy // "": Pack
	MaxShared int    // leases of one GPU in the mode shared; 0: DefaultMaxShared
	// SharedBy is how all who share a GPU use it: as clients of MPS, or, "",
	// in turns, but for those whom MPS holds to their quota.
	SharedBy SharedBy
	// ReserveBytes are those of each GPU's memory that shares leave: contexts
	// and the driver take some.
	ReserveBytes uint64
	// Enforcers are what can hold leases to their share of memory on this host,
	// the best first: of ByDriver, ByMPS and ByCooperation.
	Enforcers []Enforcement
}

// On returns the rules for the GPUs that a host has: where the driver of none can
// limit memory, it is counted on for nothing, whatever was configured.
func (r Rules) On(devices []Device) Rules {
	if !slices.ContainsFunc(devices, func(d Device) bool { return d.MemoryLimits }) {
		r.Enforcers = slices.DeleteFunc(slices.Clone(r.Enforcers), func(e Enforcement) bool { return e == ByDriver })
	}
	return r
}

func (r *Rules) maxShared() int {
	if r.MaxShared == 0 {
		return DefaultMaxShared
	}
	return r.MaxShared
}

// enforcer is what holds a share to what was asked for. The driver's limits
// are of memory alone, and an environment is the client of one MPS daemon, which
// serves one GPU.
func (r *Rules) enforcer(req *Request) Enforcement {
	for _, e := range r.Enforcers {
		if e == ByDriver && req.ComputePercent > 0 || e == ByMPS && req.Count > 1 {
			continue
		}
		return e
	}
	return ByNone
}

// ServedByMPS says whether who shares a GPU is a client of its MPS daemon. A GPU
// that has one is closed to all others.
func (b SharedBy) ServedByMPS(e Enforcement) bool { return e == ByMPS || e != "" && b == MPS }

// severalServed refuses leases by which an environment would be the client of
// several MPS daemons: GPU_NOT_ENFORCEABLE.
func (r *Rules) severalServed(books *Books, change *Change, req *Request, field string) error {
	served := 0
	for _, l := range slices.Concat(change.Keep, change.Add) {
		device, _ := books.Device(l.GPU)
		shares := l.Mode == Shared || l.Mode == VGPU
		if shares && device.Vendor == NVIDIA && r.SharedBy.ServedByMPS(l.Enforcement) {
			served++
		}
	}
	if served < 2 {
		return nil
	}
	return problem.New(problem.GPUNotEnforceable, "shares of %d GPUs were asked for; this node has GPUs shared by MPS, of which an environment can use one", req.Count).
		WithField(field + ".count").WithHint("ask for one GPU, or for the mode exclusive or mig")
}

// mpsClients is how many processes may be clients of a GPU's MPS server at a time
// (CUDA Multi-Process Service, section Limitations; NVIDIA's device plugin goes by
// the same numbers), so no more environments share it.
func (d *Device) mpsClients() int {
	const many, few = 48, 16
	var major, minor int
	if _, err := fmt.Sscanf(d.ComputeCapability, "%d.%d", &major, &minor); err == nil && (major < 7 || major == 7 && minor < 5) {
		return few
	}
	return many
}

// servesNoMore says that a request would make an environment a client of MPS on a
// GPU that has all it can have.
func (r *Rules) servesNoMore(a *account, req *Request, enforcement Enforcement) bool {
	shares := req.Mode == Shared || req.Mode == VGPU
	return shares && a.Vendor == NVIDIA && r.SharedBy.ServedByMPS(enforcement) && len(a.held) >= a.mpsClients()
}
