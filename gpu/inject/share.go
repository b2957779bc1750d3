package inject

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	cdi "tags.cncf.io/container-device-interface/specs-go"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/atomicfile"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// Places of what shares take in a container.
const (
	// Below /dev nobody has mounts, and it is never read-only.
	pipeTarget    = "/dev/remotegpu-mps"
	libraryTarget = "/dev/remotegpu-vgpu/libvgpu.so"
	preloadTarget = "/etc/ld.so.preload"
	lockTarget    = "/tmp/vgpulock" // HAMi-core's, not to be changed
	cachePath     = "/tmp/.remotegpu-vgpu.cache"
)

// shared adds what those take who share a GPU with others: variables for the
// clients of its MPS daemon, turns for those who are none, and the library of
// HAMi-core. What the driver holds itself takes nothing in the container.
func (d *Driver) shared(ctx context.Context, edits gpu.Edits, targets []gpu.Target) (gpu.Edits, error) {
	by := func(is func(gpu.Enforcement) bool) []gpu.Target {
		return slices.DeleteFunc(slices.Clone(targets), func(t gpu.Target) bool { return !is(t.Share.Enforcement) })
	}
	sharing := by(d.cfg.SharedBy.ServedByMPS)
	if len(sharing) > 0 {
		if len(targets) > 1 { // the allocator refuses it before
			return gpu.Edits{}, problem.New(problem.GPUNotEnforceable, "an environment can be a client of one MPS daemon alone, and %d GPUs were asked for", len(targets)).
				WithHint("ask for one GPU, or for another mode")
		}
		var err error
		if edits, err = d.byMPS(ctx, edits, sharing[0]); err != nil {
			return gpu.Edits{}, err
		}
	}
	edits, err := d.inTurns(ctx, edits, slices.DeleteFunc(slices.Clone(targets), func(t gpu.Target) bool {
		return d.cfg.SharedBy.ServedByMPS(t.Share.Enforcement)
	}))
	if err != nil {
		return gpu.Edits{}, err
	}
	agreed := by(func(e gpu.Enforcement) bool { return e == gpu.ByCooperation })
	if len(agreed) > 0 {
		if len(agreed) < len(targets) {
			return gpu.Edits{}, problem.New(problem.GPUNotEnforceable, "some of the GPUs are held to their share by a library, and it would be loaded for all").
				WithHint("ask for GPUs of one mode")
		}
		return d.byLibrary(edits, agreed)
	}
	return edits, nil
}

// byMPS makes a container a client of a GPU's control daemon. Variables lower
// what the server allows all of its clients (CUDA Multi-Process Service, section
// Environment Variables), for CUDA alone; a process that unsets them is held to
// the server's limit, the largest share of the GPU. The clients of a GPU share
// /dev/shm.
func (d *Driver) byMPS(ctx context.Context, edits gpu.Edits, target gpu.Target) (gpu.Edits, error) {
	if d.cfg.MPS == nil || target.MIG != "" {
		return gpu.Edits{}, problem.New(problem.GPUNotEnforceable, "this node runs no MPS daemon for GPU %s", target.GPU).
			WithHint("set gpu.mps_control in the node's configuration, or ask for another mode; there is none for MIG instances")
	}
	client, err := d.cfg.MPS.Prepare(ctx, target.GPU, target.Share)
	if err != nil {
		return gpu.Edits{}, fmt.Errorf("prepare MPS for GPU %s: %w", target.GPU, err)
	}
	env := []string{"CUDA_MPS_PIPE_DIRECTORY=" + pipeTarget}
	if target.Share.MemoryBytes > 0 {
		env = append(env, fmt.Sprintf("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=%dM", target.Share.MemoryBytes>>20))
	}
	if target.Share.ComputePercent > 0 {
		env = append(env, fmt.Sprintf("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=%d", target.Share.ComputePercent))
	}
	options := []string{"rbind", "rw", "nosuid", "nodev", "noexec"}
	return join(edits, gpu.Edits{CDI: cdi.ContainerEdits{
		Env: env,
		Mounts: []*cdi.Mount{
			{HostPath: client.Pipe, ContainerPath: pipeTarget, Options: options},
			{HostPath: client.Shm, ContainerPath: "/dev/shm", Options: options},
		},
	}}), nil
}

// byLibrary has every program of a container load HAMi-core, which keeps the
// CUDA calls of those that let it to the share.
func (d *Driver) byLibrary(edits gpu.Edits, targets []gpu.Target) (gpu.Edits, error) {
	if d.cfg.Library == "" || d.cfg.Dir == "" {
		return gpu.Edits{}, problem.New(problem.GPUNotEnforceable, "this node has no library that could hold environments to their share").
			WithHint("set gpu.hami_library in the node's configuration, or ask for another mode")
	}
	if _, err := os.Stat(d.cfg.Library); err != nil {
		return gpu.Edits{}, problem.New(problem.GPUInjectionFailed, "the library %s, which holds environments to their share, cannot be used: %v", d.cfg.Library, err).
			WithCause(err).WithHint("install it, or set gpu.hami_library in the node's configuration")
	}
	if p := checkLibrary(d.cfg.Library); p != nil {
		return gpu.Edits{}, p
	}
	if err := os.MkdirAll(d.cfg.Dir, 0o700); err != nil {
		return gpu.Edits{}, fmt.Errorf("make directory for the list of libraries: %w", err)
	}
	list := filepath.Join(d.cfg.Dir, "ld.so.preload")
	if err := atomicfile.WriteUnsynced(list, []byte(libraryTarget+"\n"), 0o644); err != nil {
		return gpu.Edits{}, fmt.Errorf("write the list of libraries: %w", err)
	}
	env := []string{"CUDA_DEVICE_MEMORY_SHARED_CACHE=" + cachePath}
	percent := 0
	for i, target := range targets {
		if target.Share.MemoryBytes > 0 {
			env = append(env, fmt.Sprintf("CUDA_DEVICE_MEMORY_LIMIT_%d=%dm", i, target.Share.MemoryBytes>>20))
		}
		percent = max(percent, target.Share.ComputePercent)
	}
	if percent > 0 {
		env = append(env, fmt.Sprintf("CUDA_DEVICE_SM_LIMIT=%d", percent))
	}
	read := []string{"bind", "ro", "nosuid", "nodev"}
	return join(edits, gpu.Edits{CDI: cdi.ContainerEdits{
		Env: env,
		Mounts: []*cdi.Mount{
			{HostPath: d.cfg.Library, ContainerPath: libraryTarget, Options: read},
			{HostPath: list, ContainerPath: preloadTarget, Options: read},
			{HostPath: "tmpfs", ContainerPath: lockTarget, Type: "tmpfs", Options: []string{"nosuid", "nodev", "noexec", "mode=1777", "size=64k"}},
		},
	}}), nil
}
