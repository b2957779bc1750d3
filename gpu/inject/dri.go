package inject

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
	cdi "tags.cncf.io/container-device-interface/specs-go"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// renderNodes are the edits for GPUs that Mesa in the image draws with: the
// render node alone. The other node of a GPU sets modes of its outputs and
// reads what others draw.
func (d *Driver) renderNodes(ctx context.Context, targets []gpu.Target) (gpu.Edits, error) {
	inventory, err := d.Probe(ctx)
	if err != nil {
		return gpu.Edits{}, fmt.Errorf("look for render nodes: %w", err)
	}
	var edits gpu.Edits
	var errs []error
	for _, target := range targets {
		node, err := renderNode(inventory, target)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		edits.CDI.DeviceNodes = append(edits.CDI.DeviceNodes, node)
	}
	if err := errors.Join(errs...); err != nil {
		return gpu.Edits{}, err
	}
	// EGL shows those that work, in order; the device of software comes last.
	edits.CDI.Env = []string{"VGL_DISPLAY=egl0"}
	return edits, nil
}

func renderNode(inventory gpu.Inventory, target gpu.Target) (*cdi.DeviceNode, error) {
	at := slices.IndexFunc(inventory.Devices, func(device gpu.Device) bool { return device.UUID == target.GPU })
	if at < 0 {
		return nil, problem.New(problem.GPUNotFound, "the host has no GPU %s", target.GPU).WithHint("see what there is: remotegpu gpu ls")
	}
	device := inventory.Devices[at]
	if device.RenderNode == "" {
		return nil, problem.New(problem.GPUCapability, "GPU %s has no render node", target.GPU).
			WithHint("see whether its kernel driver is loaded: /dev/dri on the host")
	}
	var stat unix.Stat_t
	if err := unix.Stat(device.RenderNode, &stat); err != nil {
		return nil, problem.New(problem.GPUUnavailable, "the render node of GPU %s cannot be used", target.GPU).WithCause(err).
			WithHint("see what is at %s on the host", device.RenderNode)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFCHR {
		return nil, problem.New(problem.GPUUnavailable, "%s is no device", device.RenderNode).WithHint("see what is there on the host")
	}
	mode := anyone
	gid := stat.Gid
	return &cdi.DeviceNode{
		Path: device.RenderNode, HostPath: device.RenderNode, Type: "c",
		Major: int64(unix.Major(stat.Rdev)), Minor: int64(unix.Minor(stat.Rdev)),
		FileMode: &mode, Permissions: "rw", GID: &gid,
	}, nil
}
