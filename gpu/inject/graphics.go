package inject

import (
	"cmp"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	cdi "tags.cncf.io/container-device-interface/specs-go"

	"github.com/remotegpu/remotegpu/gpu"
)

// Where the nodes of a container's GPUs are found whatever they are called on
// the host: render0, card0, render1 … in the order of the nodes. The libraries
// find them by the numbers of the host, so those stay.
const stableDir = "/dev/remotegpu/"

const driDir = "/dev/dri/"

// anyone may use a node that a container has: which it has, its device cgroup
// says. Images drop supplementary groups when they change users.
const anyone os.FileMode = 0o666

// forGraphics adds the variables that have the loaders of EGL and Vulkan use the
// GPU that was leased, and VirtualGL the first one that EGL shows. They take a
// file that the driver brings: without it Mesa would draw, on the CPU, and
// nobody would know.
func forGraphics(edits gpu.Edits) gpu.Edits {
	var egl, vulkan []string
	for _, m := range edits.CDI.Mounts {
		dir, name := path.Split(m.ContainerPath)
		switch {
		case !strings.Contains(name, "nvidia") || path.Ext(name) != ".json":
		case strings.HasSuffix(dir, "/glvnd/egl_vendor.d/"):
			egl = append(egl, m.ContainerPath)
		case strings.HasSuffix(dir, "/vulkan/icd.d/") && strings.Contains(name, "icd"):
			vulkan = append(vulkan, m.ContainerPath)
		}
	}
	env := slices.Clone(edits.CDI.Env)
	if len(egl) > 0 {
		env = append(env, "VGL_DISPLAY=egl0", "__EGL_VENDOR_LIBRARY_FILENAMES="+strings.Join(egl, ":"))
	} else {
		edits.Warnings = append(slices.Clone(edits.Warnings), "the driver's EGL file (glvnd/egl_vendor.d) is not on the host: OpenGL will not use the GPU")
	}
	if len(vulkan) > 0 {
		env = append(env, "VK_DRIVER_FILES="+strings.Join(vulkan, ":"))
	} else {
		edits.Warnings = append(slices.Clone(edits.Warnings), "the driver's Vulkan file (vulkan/icd.d) is not on the host: Vulkan will not use the GPU")
	}
	edits.CDI.Env = env
	return edits
}

// withoutCards leaves out the nodes that set modes of a GPU's outputs and read
// what others draw: who has a part of a GPU draws by the render node.
func withoutCards(edits gpu.Edits) gpu.Edits {
	edits.CDI.DeviceNodes = slices.DeleteFunc(slices.Clone(edits.CDI.DeviceNodes), func(node *cdi.DeviceNode) bool {
		return strings.HasPrefix(node.Path, driDir+"card")
	})
	return edits
}

// stable gives the DRI nodes of edits a second name that does not change.
func stable(edits gpu.Edits) gpu.Edits {
	nodes := slices.Clone(edits.CDI.DeviceNodes)
	count := map[string]int{}
	for _, node := range edits.CDI.DeviceNodes {
		name, is := strings.CutPrefix(node.Path, driDir)
		var kind string
		switch {
		case is && strings.HasPrefix(name, "renderD"):
			kind = "render"
		case is && strings.HasPrefix(name, "card"):
			kind = "card"
		default:
			continue
		}
		mode := anyone
		nodes = append(nodes, &cdi.DeviceNode{
			Path: fmt.Sprintf("%s%s%d", stableDir, kind, count[kind]), HostPath: cmp.Or(node.HostPath, node.Path),
			Type: node.Type, Major: node.Major, Minor: node.Minor, FileMode: &mode, Permissions: "rw", GID: node.GID,
		})
		count[kind]++
	}
	edits.CDI.DeviceNodes = nodes
	if count["render"] > 0 {
		edits.CDI.Env = append(slices.Clone(edits.CDI.Env), "REMOTEGPU_RENDER_NODE="+stableDir+"render0")
	}
	return edits
}
