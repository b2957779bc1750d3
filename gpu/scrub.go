package gpu

import (
	"slices"
	"strings"
)

// Void tells the hook and the runtime of NVIDIA's container toolkit to do
// nothing. Every container has it, with or without a GPU: where one of them is
// set up for the whole host, an image with CUDA_VERSION and without this
// variable gets all GPUs.
const Void = VisibleDevices + "=void"

// Names of variables that NVIDIA's container toolkit reads.
const (
	VisibleDevices     = "NVIDIA_VISIBLE_DEVICES"
	DriverCapabilities = "NVIDIA_DRIVER_CAPABILITIES"
)

// reserved are the variables that decide on the host which GPUs a container
// gets and how much of them: they steer hooks, which run as root on the host,
// the clients of an MPS server, and libraries that limit by agreement. Those
// that end with * begin with what stands before it.
//
// CUDA_DEVICE_ORDER and CUDA_DEVICE_MAX_CONNECTIONS are not among them: they
// change nothing but what the process itself does with what it has.
var reserved = []string{
	// NVIDIA Container Toolkit (internal/config/image/envvars.go)
	VisibleDevices, DriverCapabilities, "NVIDIA_MIG_*", "NVIDIA_IMEX_CHANNELS", "NVIDIA_GDS", "NVIDIA_MOFED", "NVIDIA_GDRCOPY",
	"NVIDIA_NVSWITCH", "NVIDIA_REQUIRE_*", "NVIDIA_DISABLE_REQUIRE", "NVIDIA_CTK_*", "NVIDIA_CDI_*", "NVIDIA_GPU_MEMORY_*",
	"DOCKER_RESOURCE_*", // what a swarm-resource of the toolkit is called
	// Multi-Process Service (its manual, section Environment Variables)
	"CUDA_MPS_*",
	// HAMi-core
	"CUDA_DEVICE_MEMORY_*", "CUDA_DEVICE_SM_*", "CUDA_DISABLE_CONTROL", "CUDA_OVERSUBSCRIBE", "CUDA_TASK_PRIORITY",
	"GPU_CORE_UTILIZATION_POLICY", "ACTIVE_OOM_KILLER",
}

// Reserved says whether a variable is the node's to set, because it steers who
// gets which GPU.
func Reserved(name string) bool {
	return slices.ContainsFunc(reserved, func(pattern string) bool {
		prefix, open := strings.CutSuffix(pattern, "*")
		return name == pattern || open && strings.HasPrefix(name, prefix)
	})
}

// Scrub returns the variables ("NAME=value") without those that are reserved.
func Scrub(variables []string) []string {
	return slices.DeleteFunc(slices.Clone(variables), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return Reserved(name)
	})
}
