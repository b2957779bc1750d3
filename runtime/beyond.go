package runtime

import "fmt"

// HostSize is what the host has for all environments together. 0: not known.
type HostSize struct {
	CPUs        int
	MemoryBytes int64
}

// beyond tells which limits are more than the host has: they limit nothing. A
// typing error is more likely than a host that grows, which is why they are told
// of and not refused.
func (h HostSize) beyond(r *Resources) []string {
	var warnings []string
	if h.CPUs > 0 && r.CPUMillis > int64(h.CPUs)*1000 {
		warnings = append(warnings, fmt.Sprintf("it may use %g CPUs, and the host has %d", float64(r.CPUMillis)/1000, h.CPUs))
	}
	if h.MemoryBytes > 0 && r.MemoryBytes > h.MemoryBytes {
		warnings = append(warnings, fmt.Sprintf("it may use %d MiB of memory, and the host has %d MiB", r.MemoryBytes>>20, h.MemoryBytes>>20))
	}
	return warnings
}
