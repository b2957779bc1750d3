package config

// GPU is the GPU software of the host.
type GPU struct {
	DriverRoot string `toml:"driver_root" comment:"Directory that NVIDIA's driver is installed below."`
	DevRoot    string `toml:"dev_root" comment:"Directory whose dev has the device nodes of GPUs."`
	Library    string `toml:"library" comment:"NVML (libnvidia-ml.so.1). Empty: that of driver_root."`
	Hook       string `toml:"hook" comment:"nvidia-cdi-hook of NVIDIA's container toolkit."`
	Ldconfig   string `toml:"ldconfig" comment:"ldconfig of the host, which the hook runs for containers. Empty: /sbin/ldconfig."`
}

func defaultGPU() GPU {
	return GPU{DriverRoot: "/", DevRoot: "/", Hook: "/usr/bin/nvidia-cdi-hook"}
}

// paths are the settings that are absolute paths.
func (g *GPU) paths() map[string]string {
	paths := map[string]string{"gpu.driver_root": g.DriverRoot, "gpu.dev_root": g.DevRoot, "gpu.hook": g.Hook}
	for field, path := range map[string]string{"gpu.library": g.Library, "gpu.ldconfig": g.Ldconfig} {
		if path != "" {
			paths[field] = path
		}
	}
	return paths
}
