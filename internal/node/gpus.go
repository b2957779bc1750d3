package node

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/drm"
	"github.com/remotegpu/remotegpu/gpu/helper"
	"github.com/remotegpu/remotegpu/gpu/inject"
	"github.com/remotegpu/remotegpu/gpu/mps"
	"github.com/remotegpu/remotegpu/gpu/nvidia"
	"github.com/remotegpu/remotegpu/internal/config"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// pciIDs names PCI devices: of the package pci.ids, which a host need not have.
const pciIDs = "/usr/share/misc/pci.ids"

// gpuDir, in the run directory, has what runs for GPUs.
const gpuDir = "gpu"

// gpus is the GPU software of the host. Nothing is started before it is asked.
type gpus struct {
	*inject.Driver
	helper    *helper.Client
	mps       *mps.Daemons // of a node without MPS: it ends those of before
	enforcers []gpu.Enforcement
}

// newGPUs puts the software together. What runs for GPUs is below dir.
// Daemons of MPS are below the cgroup of containers, beside them.
func newGPUs(cfg config.GPU, dir, cgroup string, log *slog.Logger) gpus {
	client := helper.New(helper.Config{Log: log, Settings: nvidia.Config{
		DriverRoot: cfg.DriverRoot, DevRoot: cfg.DevRoot, Library: cfg.Library, Hook: cfg.Hook, Ldconfig: cfg.Ldconfig,
	}})
	g := gpus{helper: client}
	injection := inject.Config{
		Driver: drm.Driver{Driver: client, Sys: "/sys", PCIIDs: pciIDs}, Way: inject.Way(cfg.Injection),
		CDIHook: cfg.Hook, RuntimeHook: cfg.RuntimeHook, CLI: cfg.ContainerCLI, DriverRoot: cfg.DriverRoot, Dir: filepath.Join(dir, "hooks"),
		AllowOld: cfg.AllowOldToolkit, Library: cfg.HAMiLibrary, Log: log,
		SharedBy: sharedBy(&cfg), TimeSlice: inject.TimeSlice(cfg.TimeSlice), SMI: cfg.SMI,
	}
	if cfg.MemoryLimits {
		g.enforcers = append(g.enforcers, gpu.ByDriver)
	}
	daemons := mps.Config{Dir: filepath.Join(dir, "mps"), Cgroup: cgroup, SetExclusive: client.SetExclusiveProcess, Log: log}
	// What takes something in the container takes a way that brings it there. A
	// node that does not look for GPUs ends what it ran for them.
	if cfg.Enabled && cfg.Brings() {
		daemons.Control = cfg.MPSControl
	}
	g.mps = mps.New(daemons)
	if daemons.Control != "" {
		injection.MPS = g.mps
		g.enforcers = append(g.enforcers, gpu.ByMPS)
	}
	if cfg.HAMiLibrary != "" && cfg.Brings() {
		g.enforcers = append(g.enforcers, gpu.ByCooperation)
	}
	g.Driver = inject.New(injection)
	return g
}

// sharedBy is how all who share a GPU use it.
func sharedBy(cfg *config.GPU) gpu.SharedBy {
	if cfg.SharedByMPS() {
		return gpu.MPS
	}
	return gpu.TimeSlicing
}

// gpuConfig is how the node gives its GPUs.
func (n *Node) gpuConfig() runtime.GPUConfig {
	rules := &n.cfg.GPU.GPURules
	return runtime.GPUConfig{
		Rules: gpu.Rules{
			Policy: gpu.Policy(rules.Policy), MaxShared: rules.MaxShared, SharedBy: sharedBy(&n.cfg.GPU), ReserveBytes: uint64(max(rules.Reserve, 0)), Enforcers: n.gpus.enforcers,
		},
		ReleaseOnStop: rules.ReleaseOnStop, Cure: runtime.GPUCure(rules.Cure), HandOver: rules.HandOverTime(), Leftover: uint64(max(rules.Leftover, 0)),
		Sharing: n.gpus.mps,
	}
}

// gpuProblems are what keeps the host's GPUs from getting into containers.
func (n *Node) gpuProblems(ctx context.Context) []*problem.Problem {
	found, err := n.manager.GPUInventory(ctx, time.Minute)
	if err != nil {
		return nil // a condition of its own
	}
	problems := n.gpus.Problems(ctx, found)
	ours := slices.ContainsFunc(found.Devices, func(d gpu.Device) bool { return d.Vendor == gpu.NVIDIA && !d.Health.Unhealthy && !d.MemoryLimits })
	if n.cfg.GPU.MemoryLimits && ours {
		problems = append(problems, problem.New(problem.GPUNotEnforceable, "gpu.memory_limits is set, and the driver cannot limit memory of GPUs").
			WithHint("it takes R615 or newer, and cgroup v2; until then shares are held by what else is configured, or refused"))
	}
	return problems
}

// endSharing ends what environments shared GPUs by. None has a process any more.
func endSharing(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	g := newGPUs(cfg.GPU, filepath.Join(cfg.Node.RunDir, gpuDir), cfg.Containerd.Cgroup, log)
	err := g.mps.Keep(ctx, func(context.Context, string) (bool, error) { return false, nil })
	return errors.Join(err, g.Close())
}

// gpuDriver is what the node asks for GPUs; nil where it does not look for any.
func (n *Node) gpuDriver() gpu.Driver {
	if !n.cfg.GPU.Enabled {
		return nil
	}
	return n.gpus
}

// Close ends the helper process.
func (g gpus) Close() error {
	if g.helper == nil {
		return nil
	}
	return g.helper.Close()
}
