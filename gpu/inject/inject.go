// Package inject decides by which way GPUs get into a container: by what the
// driver's software computes and hooks of NVIDIA's container toolkit, by the
// toolkit's hook of before, or as nothing but render nodes. It stands in front
// of a gpu.Driver and answers in its place what a container needs.
package inject

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	cdi "tags.cncf.io/container-device-interface/specs-go"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/mps"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// Way is how the GPUs of NVIDIA get into a container. Those of other vendors
// get there as render nodes, unless the way is None.
type Way string

// The ways.
const (
	// CDI is what the driver's software computes: nodes, libraries, and hooks
	// of the toolkit that arrange them inside.
	CDI Way = "cdi"
	// Hook is nvidia-container-runtime-hook, which has nvidia-container-cli
	// bring the libraries. It is deprecated since toolkit 1.18.
	Hook Way = "hook"
	// DRI is the render nodes alone, for Mesa in the image.
	DRI Way = "dri"
	// None is nothing: leases are kept, and somebody else brings the devices.
	None Way = "none"
)

// Ways returns all ways.
func Ways() []Way { return []Way{CDI, Hook, DRI, None} }

// Config says which way, and what it takes. Zero fields that are no path of a
// program mean the default.
type Config struct {
	Driver gpu.Driver
	Way    Way // CDI
	// CDIHook is the path of nvidia-cdi-hook, the one that the driver's edits
	// name. Its version is what is looked at before each start.
	CDIHook string
	// RuntimeHook and CLI are the paths of nvidia-container-runtime-hook and
	// nvidia-container-cli, for Hook.
	RuntimeHook string
	CLI         string
	// DriverRoot is where the driver's files are, "/" unless a container or an
	// operator brings them.
	DriverRoot string
	// Dir is where the configuration of the hook and the list of libraries are
	// written: root's, and nobody else may write there.
	Dir string
	// MPS runs the daemons of GPUs that several share; nil: none.
	MPS MPS
	// SharedBy says who are clients of a daemon: those whom it holds to their
	// share, or all who share a GPU. The others take turns.
	SharedBy gpu.SharedBy
	// TimeSlice is how long a turn is; "": what the driver has. SMI is the path of
	// nvidia-smi, which sets it.
	TimeSlice TimeSlice
	SMI       string
	// Library is the path of HAMi-core (libvgpu.so), which the administrator
	// brings; "": there is none.
	Library string
	// AllowOld accepts a toolkit that is too old, or of an unknown version.
	AllowOld bool
	Log      *slog.Logger
}

// MPS runs the control daemons of GPUs that are shared by it; *mps.Daemons does.
type MPS interface {
	Prepare(ctx context.Context, gpuUUID string, share gpu.Share) (mps.Client, error)
}

// Driver is a gpu.Driver whose Edits are those of a way. It is safe for
// concurrent use.
type Driver struct {
	gpu.Driver
	cfg     Config
	toolkit *Toolkit
	cli     *Toolkit // nvidia-container-cli, by Hook
}

// New returns the driver.
func New(cfg Config) *Driver {
	if cfg.Way == "" {
		cfg.Way = CDI
	}
	if cfg.DriverRoot == "" {
		cfg.DriverRoot = "/"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	program := cfg.CDIHook
	if cfg.Way == Hook {
		program = cfg.RuntimeHook
	}
	return &Driver{
		Driver: cfg.Driver, cfg: cfg, toolkit: &Toolkit{Path: program, AllowOld: cfg.AllowOld, Log: cfg.Log},
		cli: &Toolkit{Path: cfg.CLI, Name: "nvidia-container-cli of the NVIDIA Container Toolkit", AllowOld: cfg.AllowOld, Log: cfg.Log},
	}
}

// programs are the programs of the toolkit that the way runs.
func (d *Driver) programs() []*Toolkit {
	if d.cfg.Way == Hook {
		return []*Toolkit{d.toolkit, d.cli}
	}
	return []*Toolkit{d.toolkit}
}

// Edits computes what a container needs, by the way. GPU_TOOLKIT_MISSING,
// GPU_TOOLKIT_TOO_OLD, UNAVAILABLE when the toolkit could not be asked;
// GPU_INJECTION_FAILED when others than root could change it; GPU_NOT_ENFORCEABLE for shares that nothing here holds;
// GPU_NOT_FOUND and GPU_CAPABILITY_UNSUPPORTED for render
// nodes that are not there; else as the driver's.
func (d *Driver) Edits(ctx context.Context, req gpu.EditsRequest) (gpu.Edits, error) {
	if d.cfg.Way == None {
		return gpu.Edits{Warnings: []string{"gpu.injection is none: the node puts no device into the container"}}, nil
	}
	var nvidia, others []gpu.Target
	for _, target := range req.Targets {
		if d.cfg.Way == DRI || !ofNVIDIA(target) {
			others = append(others, target)
		} else {
			nvidia = append(nvidia, target)
		}
	}
	var all gpu.Edits
	if len(nvidia) > 0 {
		edits, err := d.nvidia(ctx, gpu.EditsRequest{Targets: nvidia, Capabilities: req.Capabilities})
		if err == nil {
			edits, err = d.shared(ctx, edits, nvidia)
		}
		if err != nil {
			return gpu.Edits{}, err
		}
		all = edits
	}
	if len(others) > 0 {
		edits, err := d.renderNodes(ctx, others)
		if err != nil {
			return gpu.Edits{}, err
		}
		all = join(all, edits)
	}
	if slices.Contains(req.Capabilities, gpu.Graphics) || len(others) > 0 {
		all = stable(all)
	}
	return all, nil
}

// nvidia computes the edits for GPUs of NVIDIA.
func (d *Driver) nvidia(ctx context.Context, req gpu.EditsRequest) (gpu.Edits, error) {
	for _, program := range d.programs() {
		if err := program.Check(ctx); err != nil {
			return gpu.Edits{}, err
		}
	}
	edits, err := d.Driver.Edits(ctx, req)
	if err != nil {
		return gpu.Edits{}, fmt.Errorf("compute what the container needs: %w", err)
	}
	if slices.ContainsFunc(req.Targets, func(t gpu.Target) bool { return t.MIG != "" || t.Share.Enforcement != "" }) {
		edits = withoutCards(edits)
	}
	if slices.Contains(req.Capabilities, gpu.Graphics) {
		edits = forGraphics(edits)
	}
	if d.cfg.Way == Hook {
		return d.byHook(edits, req)
	}
	return edits, nil
}

// Problems tells what keeps the GPUs of a host from getting into containers,
// for those who look at the node. A toolkit that is too old is told of though
// it is allowed.
func (d *Driver) Problems(ctx context.Context, inventory gpu.Inventory) []*problem.Problem {
	ours := slices.ContainsFunc(inventory.Devices, func(device gpu.Device) bool { return device.Vendor == gpu.NVIDIA })
	if !ours || d.cfg.Way != CDI && d.cfg.Way != Hook {
		return nil
	}
	var found []*problem.Problem
	for _, program := range d.programs() {
		if p := program.problem(ctx); p != nil && p.Reason != problem.Unavailable { // nothing is known yet
			found = append(found, p)
		}
	}
	return found
}

// ofNVIDIA says whose a GPU is by its UUID: others have those of their place.
func ofNVIDIA(target gpu.Target) bool { return !strings.HasPrefix(target.GPU, "PCI-") }

// join returns the edits of two sets of GPUs.
func join(a, b gpu.Edits) gpu.Edits {
	return gpu.Edits{
		CDI: cdi.ContainerEdits{
			Env:            slices.Concat(a.CDI.Env, b.CDI.Env),
			DeviceNodes:    slices.Concat(a.CDI.DeviceNodes, b.CDI.DeviceNodes),
			NetDevices:     slices.Concat(a.CDI.NetDevices, b.CDI.NetDevices),
			Hooks:          slices.Concat(a.CDI.Hooks, b.CDI.Hooks),
			Mounts:         slices.Concat(a.CDI.Mounts, b.CDI.Mounts),
			AdditionalGIDs: slices.Concat(a.CDI.AdditionalGIDs, b.CDI.AdditionalGIDs),
		},
		Brought:  slices.Concat(a.Brought, b.Brought),
		Warnings: slices.Concat(a.Warnings, b.Warnings),
	}
}
