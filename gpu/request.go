package gpu

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// MaxCount is how many GPUs one environment may ask for.
const MaxCount = 64

// MinShare is the smallest share of a GPU's memory, bytes: a context of CUDA takes
// more. What holds shares counts in MiB and takes 0 of them for no limit, so a lease
// is of whole ones.
const MinShare = 64 << 20

// wholeMiB is an amount of memory rounded up to what holds shares counts in.
func wholeMiB(bytes uint64) uint64 {
	const mib = 1 << 20
	if rest := bytes % mib; rest != 0 && bytes <= math.MaxUint64-mib {
		return bytes - rest + mib
	}
	return bytes
}

func itoa(n int) string { return strconv.Itoa(n) }

// Check fills in defaults and refuses what no host could give: FIELD_INVALID.
// field is the path of the request in the API request.
func (r *Request) Check(field string) error {
	r.Mode = cmp.Or(r.Mode, Exclusive)
	if r.Count == 0 {
		r.Count = max(1, len(r.UUIDs))
	}
	var errs []error
	bad := func(name, hint, format string, args ...any) {
		errs = append(errs, problem.New(problem.FieldInvalid, format, args...).WithField(field+"."+name).WithHint("%s", hint))
	}
	if !slices.Contains([]Mode{Exclusive, Shared, MIGMode, VGPU}, r.Mode) {
		bad("mode", "use exclusive, shared, mig or vgpu", "there is no mode %q", r.Mode)
		return errors.Join(errs...)
	}
	if r.Count < 1 || r.Count > MaxCount {
		bad("count", fmt.Sprintf("use 1 to %d", MaxCount), "an environment cannot have %d GPUs", r.Count)
	}
	if len(r.UUIDs) > 0 && r.Count > len(r.UUIDs) {
		bad("count", "name as many, or leave the names out", "%d GPUs are named and %d wanted", len(r.UUIDs), r.Count)
	}
	for i, uuid := range r.UUIDs {
		if slices.Contains(r.UUIDs[:i], uuid) {
			bad(fmt.Sprintf("uuids[%d]", i), "name each once", "GPU %s is named twice", uuid)
		}
	}
	if slices.ContainsFunc(append(slices.Clone(r.UUIDs), r.Models...), func(s string) bool { return strings.TrimSpace(s) == "" }) {
		bad("models", "leave it out", "a GPU is named by nothing")
	}
	r.checkMode(bad)
	for i, c := range r.Capabilities {
		if !slices.Contains([]Capability{Compute, Utility, Graphics, Video, Display}, c) {
			bad(fmt.Sprintf("capabilities[%d]", i), "use some of compute, utility, graphics, video, display", "there is no capability %q", c)
		}
	}
	return errors.Join(errs...)
}

// checkMode refuses fields that do not go with the mode.
func (r *Request) checkMode(bad func(name, hint, format string, args ...any)) {
	if r.Mode == MIGMode {
		if r.Profile == "" {
			bad("profile", `name one, such as "1g.5gb"; remotegpu gpu get GPU lists those of a GPU`, "the mode mig needs a profile")
		}
		if r.Count > 1 {
			bad("count", "ask for a larger profile: a CUDA process uses one instance", "an environment has one MIG instance at most")
		}
	} else if r.Profile != "" {
		bad("profile", "leave it out, or use the mode mig", "a profile is of MIG instances")
	}
	if r.Mode == VGPU {
		switch {
		case r.MemoryBytes == 0:
			bad("memory_bytes", "say how much of the GPU's memory it is to have", "the mode vgpu needs an amount of memory")
		case r.MemoryBytes < MinShare:
			hint := fmt.Sprintf("use %s or more", mebibytes(MinShare))
			if r.MemoryBytes < 1024 { // nobody means bytes
				hint += fmt.Sprintf("; %[1]d is %[1]d bytes, did you mean %[1]dG?", r.MemoryBytes)
			}
			bad("memory_bytes", hint, "%d bytes are too little for a share of a GPU's memory", r.MemoryBytes)
		}
		if r.ComputePercent < 0 || r.ComputePercent > 100 {
			bad("compute_percent", "use 1 to 100, or leave it out", "%d is no percentage", r.ComputePercent)
		}
		return
	}
	if r.ComputePercent != 0 {
		bad("compute_percent", "leave it out, or use the mode vgpu", "a share of compute is of the mode vgpu")
	}
	if r.AllowUnenforced {
		bad("allow_unenforced", "leave it out, or use the mode vgpu", "nothing is shared that could be enforced")
	}
}

// graphicsOnly says that a request wants to draw and not to compute.
func (r *Request) graphicsOnly() bool {
	return len(r.Capabilities) > 0 && !slices.Contains(r.Capabilities, Compute) && !slices.Contains(r.Capabilities, Utility)
}

// draws says that a request wants to draw.
func (r *Request) draws() bool {
	return slices.Contains(r.Capabilities, Graphics) || slices.Contains(r.Capabilities, Display)
}

// names says that a request is about a GPU, whatever its state.
func (r *Request) names(d *Device) bool {
	if len(r.UUIDs) > 0 && !slices.Contains(r.UUIDs, d.UUID) {
		return false
	}
	if len(r.Models) > 0 && !slices.ContainsFunc(r.Models, func(part string) bool {
		return strings.Contains(strings.ToLower(d.Model), strings.ToLower(part))
	}) {
		return false
	}
	return r.Mode == VGPU || r.Mode == MIGMode || d.MemoryBytes >= r.MemoryBytes
}
