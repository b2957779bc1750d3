// Package gputest has GPUs that do not exist: inventories, a driver that keeps
// them, and what every driver has to do.
package gputest

import (
	"fmt"

	"github.com/remotegpu/remotegpu/gpu"
)

// UUID is that of the n-th GPU.
func UUID(n int) string { return fmt.Sprintf("GPU-%08x-0000-4000-8000-%012x", 0xa0+n, n) }

// Plain returns GPUs of 24 GiB that cannot be partitioned, two on each NUMA node.
func Plain(count int) []gpu.Device {
	devices := make([]gpu.Device, count)
	for n := range devices {
		devices[n] = gpu.Device{
			UUID: UUID(n), Vendor: gpu.NVIDIA, Model: "NVIDIA L4", Index: n, Minor: n, PCI: fmt.Sprintf("0000:%02x:00.0", 0x10+n),
			NUMANode: n / 2, MemoryBytes: 24 << 30, Architecture: "ada", ComputeCapability: "8.9", MemoryLimits: true,
			CardNode: fmt.Sprintf("/dev/dri/card%d", n), RenderNode: fmt.Sprintf("/dev/dri/renderD%d", 128+n),
		}
	}
	return devices
}

// A100 is a GPU of 40 GB that can be partitioned, with the placements that its
// driver tells (Multi-Instance GPU User Guide, "A100 MIG profiles").
func A100(n int, partitioned bool) gpu.Device {
	d := Plain(n + 1)[n]
	d.Model, d.MemoryBytes, d.Architecture, d.ComputeCapability = "NVIDIA A100-SXM4-40GB", 40<<30, "ampere", "8.0"
	d.MIG = gpu.MIG{Capable: true, Enabled: partitioned, ResetNeeded: true}
	profile := func(name string, id, slices, size int, memory uint64, starts ...int) {
		p := gpu.MIGProfile{Name: name, ID: id, Slices: slices, MemoryBytes: memory << 30}
		for _, start := range starts {
			p.Placements = append(p.Placements, gpu.Span{Start: start, Size: size})
		}
		d.MIG.Profiles = append(d.MIG.Profiles, p)
	}
	profile("1g.5gb", 0, 1, 1, 5, 0, 1, 2, 3, 4, 5, 6)
	profile("2g.10gb", 1, 2, 2, 10, 0, 2, 4)
	profile("3g.20gb", 2, 3, 4, 20, 0, 4)
	profile("4g.20gb", 3, 4, 4, 20, 0)
	profile("7g.40gb", 4, 7, 8, 40, 0)
	return d
}
