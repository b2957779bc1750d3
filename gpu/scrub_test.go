package gpu_test

import (
	"slices"
	"strings"
	"testing"

	cdi "tags.cncf.io/container-device-interface/specs-go"

	"github.com/remotegpu/remotegpu/gpu"
)

func TestReservedVariables(t *testing.T) {
	for _, name := range []string{
		"NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_MIG_CONFIG_DEVICES", "NVIDIA_MIG_MONITOR_DEVICES", "NVIDIA_IMEX_CHANNELS",
		"NVIDIA_GDS", "NVIDIA_MOFED", "NVIDIA_GDRCOPY", "NVIDIA_NVSWITCH", "NVIDIA_REQUIRE_CUDA", "NVIDIA_REQUIRE_", "NVIDIA_DISABLE_REQUIRE",
		"NVIDIA_CTK_DEBUG", "NVIDIA_CDI_DEBUG", "NVIDIA_GPU_MEMORY_LIMIT", "NVIDIA_GPU_MEMORY_REQUEST", "CUDA_MPS_PIPE_DIRECTORY",
		"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "CUDA_DEVICE_MEMORY_LIMIT_0", "CUDA_DEVICE_SM_LIMIT", "CUDA_DISABLE_CONTROL", "CUDA_OVERSUBSCRIBE",
		"CUDA_TASK_PRIORITY", "GPU_CORE_UTILIZATION_POLICY", "ACTIVE_OOM_KILLER", "DOCKER_RESOURCE_GPU",
	} {
		if !gpu.Reserved(name) {
			t.Errorf("%s is not reserved", name)
		}
	}
	// What people set for themselves, and names that only look alike.
	for _, name := range []string{
		"CUDA_VISIBLE_DEVICES", "CUDA_VERSION", "CUDA_DEVICE_ORDER", "CUDA_DEVICE_MAX_CONNECTIONS", "NVIDIA_VISIBLE_DEVICES_", "nvidia_visible_devices",
		"NVIDIA_GDSX", "NVIDIA_TF32_OVERRIDE", "MY_NVIDIA_VISIBLE_DEVICES", "LD_PRELOAD", "", "NVIDIA_MIG",
	} {
		if gpu.Reserved(name) {
			t.Errorf("%s is reserved", name)
		}
	}
}

func TestScrubKeepsTheRest(t *testing.T) {
	given := []string{"A=1", "NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_REQUIRE_CUDA=cuda>=12", "CUDA_VERSION=12.0", "NVIDIA_CTK_DEBUG", "B="}
	before := slices.Clone(given)
	if got, want := gpu.Scrub(given), []string{"A=1", "CUDA_VERSION=12.0", "B="}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if !slices.Equal(given, before) {
		t.Errorf("it changed what it was given: %q", given)
	}
}

func TestReservedTargets(t *testing.T) {
	for _, test := range []struct {
		target         string
		always, forGPU bool
	}{
		{"/var/run/nvidia-container-devices", true, true},
		{"/var/run/nvidia-container-devices/all", true, true},
		{"//var/run/../run/nvidia-container-devices//0/", true, true},
		{"/run/nvidia-container-devices/cdi/nvidia.com/gpu/all", true, true},
		{"/var/run/nvidia-container-devicesall", true, true}, // the hook does not look for the slash
		{"/data/../../../run/nvidia-container-devices/0", true, true},
		{"var/run/nvidia-container-devices", true, true},
		{"/dev", false, true},
		{"/dev/nvidia0", false, true},
		{"/dev/../dev/./dri", false, true},
		{"/proc/driver/nvidia", false, true},
		{"/usr/local/nvidia/lib64", false, true},
		{"/usr/local", false, true},
		{"/usr", false, true},
		{"/", false, true},
		{"/etc/ld.so.preload", false, true},
		{"/etc/ld.so.conf.d/x.conf", false, true},
		{"/etc/vulkan/icd.d", false, true},
		{"/etc", false, true},
		{"/usr/share/glvnd/egl_vendor.d", false, true},
		{"/tmp/nvidia-mps", false, true},
		{"/tmp/nvidia-mps/control", false, true},
		{"/tmp", false, false},
		{"/var/run", false, false},
		{"/run", false, false},
		{"/data", false, false},
		{"/etcetera", false, false},
		{"/home/app/dev", false, false},
		{"/device", false, false},
		{"/usr/local/nvidia2", false, false},
	} {
		if place, is := gpu.ReservedTarget(test.target, false); is != test.always || is == (place == "") {
			t.Errorf("%s without GPUs: reserved %v (%q), want %v", test.target, is, place, test.always)
		}
		if place, is := gpu.ReservedTarget(test.target, true); is != test.forGPU || is == (place == "") {
			t.Errorf("%s with GPUs: reserved %v (%q), want %v", test.target, is, place, test.forGPU)
		}
	}
}

func TestTargetOfEdits(t *testing.T) {
	edits := gpu.Edits{CDI: cdi.ContainerEdits{
		Mounts:      []*cdi.Mount{{ContainerPath: "/usr/lib/x86_64-linux-gnu/libcuda.so.9"}, {ContainerPath: "/tmp/vgpulock"}},
		DeviceNodes: []*cdi.DeviceNode{{Path: "/dev/nvidia0"}},
	}}
	for target, want := range map[string]bool{
		"/usr/lib": true, "/usr/lib/x86_64-linux-gnu/libcuda.so.9": true, "/usr/lib/x86_64-linux-gnu/libcuda.so.9/x": true, "/dev/nvidia0": true,
		"/usr/lib/x86_64-linux-gnu/libcuda.so": false, "/usr/lib64": false, "/data": false,
		"/tmp": false, "//tmp/x/..": false, "/tmp/vgpulock": true, "/run": false, // what nobody can do without
	} {
		if _, is := edits.TargetOf(target); is != want {
			t.Errorf("%s: %v, want %v", target, is, want)
		}
	}
}

// However a path is spelled, it is compared as the runtime resolves it: element
// by element, below the root.
func FuzzWithin(f *testing.F) {
	for _, seed := range [][2]string{
		{"/dev/nvidia0", "/dev"}, {"//dev//.//nvidia0/..", "/dev"}, {"/../../dev", "/dev"}, {"dev/", "/dev"}, {"/devil", "/dev"}, {"", "/"}, {"/a/../b", "/a"},
	} {
		f.Add(seed[0], seed[1])
	}
	resolve := func(name string) []string {
		var at []string
		for element := range strings.SplitSeq(name, "/") {
			switch element {
			case "", ".":
			case "..":
				at = at[:max(0, len(at)-1)]
			default:
				at = append(at, element)
			}
		}
		return at
	}
	f.Fuzz(func(t *testing.T, name, dir string) {
		inner, outer := resolve(name), resolve(dir)
		want := len(inner) >= len(outer) && slices.Equal(inner[:len(outer)], outer)
		if got := gpu.Within(name, dir); got != want {
			t.Errorf("%q within %q: %v, want %v", name, dir, got, want)
		}
		for _, gpus := range []bool{false, true} {
			_, is := gpu.ReservedTarget(name, gpus)
			_, same := gpu.ReservedTarget("/"+strings.Join(inner, "/"), gpus)
			if is != same {
				t.Errorf("%q is reserved: %v; spelled %q: %v", name, is, inner, same)
			}
			if gpus && len(inner) > 0 && inner[0] == "dev" && !is {
				t.Errorf("%q lies in /dev and is not reserved", name)
			}
		}
	})
}
