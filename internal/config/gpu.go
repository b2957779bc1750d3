package config

import (
	"slices"
	"strings"
)

// GPU is the GPU software of the host.
type GPU struct {
	GPURules

	DriverRoot string `toml:"driver_root" comment:"Directory that NVIDIA's driver is installed below."`
	DevRoot    string `toml:"dev_root" comment:"Directory whose dev has the device nodes of GPUs."`
	Library    string `toml:"library" comment:"NVML (libnvidia-ml.so.1). Empty: that of driver_root."`
	Hook       string `toml:"hook" comment:"nvidia-cdi-hook of NVIDIA's container toolkit."`
	Ldconfig   string `toml:"ldconfig" comment:"ldconfig of the host, which the hook runs for containers. Empty: /sbin/ldconfig."`

	Injection       string `toml:"injection" comment:"How GPUs of NVIDIA get into containers: cdi; hook (nvidia-container-runtime-hook, deprecated); dri (render nodes alone); none (somebody else does it). Others get in as render nodes."`
	AllowOldToolkit bool   `toml:"allow_old_toolkit" comment:"Use a container toolkit before 1.19.1, or of an unknown version, though it lets containers out."`
	RuntimeHook     string `toml:"runtime_hook" comment:"nvidia-container-runtime-hook, for injection = \"hook\"."`
	ContainerCLI    string `toml:"container_cli" comment:"nvidia-container-cli, for injection = \"hook\"."`

	MemoryLimits bool   `toml:"memory_limits" comment:"The driver can limit the memory of a cgroup (R615 and newer, cgroup v2): it holds environments to their shares."`
	MPSControl   string `toml:"mps_control" comment:"nvidia-cuda-mps-control, whose Multi-Process Service holds environments to their shares (mode vgpu). Empty: it is not used."`
	SharedBy     string `toml:"shared_by" comment:"How all who share a GPU (modes shared and vgpu) use it: mps (as clients of MPS, at a time) or time-slicing (in turns, but for those whom MPS holds to their shares). Empty: mps where mps_control is set."`
	TimeSlice    string `toml:"time_slice" comment:"How long a turn is, where driver and GPU let that be set: default, short, medium or long. It stays until the driver is loaded anew. Empty: it is left as it is."`
	SMI          string `toml:"nvidia_smi" comment:"nvidia-smi, which sets time_slice."`
	HAMiLibrary  string `toml:"hami_library" comment:"libvgpu.so of HAMi-core, to hold environments that let it to their shares. Empty: it is not used."`
}

// injections are what Injection may be; the first two bring files into a
// container.
var injections = []string{"cdi", "hook", "dri", "none"}

// What SharedBy and TimeSlice may be, beside nothing.
var (
	waysOfSharing = []string{"mps", "time-slicing"}
	timeSlices    = []string{"default", "short", "medium", "long"}
)

// Brings says whether GPUs of NVIDIA come with files, so that what holds
// environments to their shares can be brought, too.
func (g *GPU) Brings() bool { return slices.Contains(injections[:2], g.Injection) }

// SharedByMPS says whether all who share a GPU are clients of MPS.
func (g *GPU) SharedByMPS() bool {
	return g.MPSControl != "" && g.Brings() && g.SharedBy != waysOfSharing[1]
}

func defaultGPU() GPU {
	return GPU{
		GPURules:   defaultGPURules(),
		DriverRoot: "/", DevRoot: "/", Hook: "/usr/bin/nvidia-cdi-hook", Injection: injections[0],
		SMI: "/usr/bin/nvidia-smi", RuntimeHook: "/usr/bin/nvidia-container-runtime-hook", ContainerCLI: "/usr/bin/nvidia-container-cli",
	}
}

// paths are the settings that are absolute paths.
func (g *GPU) paths() map[string]string {
	paths := map[string]string{
		"gpu.driver_root": g.DriverRoot, "gpu.dev_root": g.DevRoot, "gpu.hook": g.Hook,
		"gpu.runtime_hook": g.RuntimeHook, "gpu.container_cli": g.ContainerCLI, "gpu.nvidia_smi": g.SMI,
	}
	for field, path := range map[string]string{
		"gpu.library": g.Library, "gpu.ldconfig": g.Ldconfig, "gpu.mps_control": g.MPSControl, "gpu.hami_library": g.HAMiLibrary,
	} {
		if path != "" {
			paths[field] = path
		}
	}
	return paths
}

func (g *GPU) check() error {
	switch {
	case !slices.Contains(injections, g.Injection):
		return fault("gpu.injection", "use one of "+strings.Join(injections, ", "), "there is no way %q", g.Injection)
	case g.SharedBy != "" && !slices.Contains(waysOfSharing, g.SharedBy):
		return fault("gpu.shared_by", "use one of "+strings.Join(waysOfSharing, ", "), "GPUs cannot be shared by %q", g.SharedBy)
	case g.SharedBy == waysOfSharing[0] && !g.SharedByMPS():
		return fault("gpu.shared_by", "set gpu.mps_control, and the injection cdi or hook", "GPUs cannot be shared by MPS, which this node does not run")
	case g.TimeSlice != "" && !slices.Contains(timeSlices, g.TimeSlice):
		return fault("gpu.time_slice", "use one of "+strings.Join(timeSlices, ", "), "there is no time slice %q", g.TimeSlice)
	}
	return nil
}
