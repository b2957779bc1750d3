package gpu

import "slices"

// Policy is which of the GPUs that would do a request gets.
type Policy string

// The policies.
const (
	// Pack fills GPUs that are used already, so that whole ones stay free.
	Pack Policy = "pack"
	// Spread takes those that are used least, so that all are cool.
	Spread Policy = "spread"
)

// DefaultMaxShared is how many environments share a GPU where nothing else is
// configured.
const DefaultMaxShared = 4

// Rules are how the GPUs of a node are given.
type Rules struct {
	Policy    Policy // "": Pack
	MaxShared int    // leases of one GPU in the mode shared; 0: DefaultMaxShared
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
// are of memory alone.
func (r *Rules) enforcer(req *Request) Enforcement {
	for _, e := range r.Enforcers {
		if e == ByDriver && req.ComputePercent > 0 {
			continue
		}
		return e
	}
	return ByNone
}
