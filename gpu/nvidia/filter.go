package nvidia

import (
	"path/filepath"
	"slices"
	"strings"

	cdi "tags.cncf.io/container-device-interface/specs-go"

	"github.com/remotegpu/remotegpu/gpu"
)

// hookEnv is all that hooks see: without one they would inherit the daemon's
// environment, or the container's with its LD_PRELOAD (CVE-2025-23266).
var hookEnv = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "NVIDIA_CTK_DEBUG=false"}

// merge puts the edits of devices and those that all have into one. Two
// instances of a GPU name its node both. nvcdi has links in /dev of the
// container where the host has them, below the device root.
func merge(found discovered, devRoot string) cdi.ContainerEdits {
	var edits cdi.ContainerEdits
	for _, device := range found.devices {
		add(&edits, &device.ContainerEdits)
	}
	add(&edits, found.common)
	for _, hook := range edits.Hooks {
		hook.Env = slices.Clone(hookEnv)
		for i := range hook.Args {
			hook.Args[i] = strings.Replace(hook.Args[i], "::"+filepath.Join(devRoot, "dev")+"/", "::/dev/", 1)
		}
	}
	return edits
}

func add(to, from *cdi.ContainerEdits) {
	for _, variable := range from.Env {
		if !slices.Contains(to.Env, variable) {
			to.Env = append(to.Env, variable)
		}
	}
	for _, node := range from.DeviceNodes {
		if ofAdministrator(node.Path) {
			continue
		}
		if !slices.ContainsFunc(to.DeviceNodes, func(n *cdi.DeviceNode) bool { return n.Path == node.Path }) {
			to.DeviceNodes = append(to.DeviceNodes, node)
		}
	}
	for _, mount := range from.Mounts {
		if !slices.ContainsFunc(to.Mounts, func(m *cdi.Mount) bool { return m.ContainerPath == mount.ContainerPath }) {
			to.Mounts = append(to.Mounts, mount)
		}
	}
	to.Hooks = append(to.Hooks, from.Hooks...)
	for _, gid := range from.AdditionalGIDs {
		if !slices.Contains(to.AdditionalGIDs, gid) {
			to.AdditionalGIDs = append(to.AdditionalGIDs, gid)
		}
	}
}

// ofAdministrator says whether a node lets who has it change or watch how GPUs
// are partitioned: MIG's config and monitor (/proc/driver/nvidia-caps/mig-minors). No
// container has them; nvcdi does not give them for GPUs either.
func ofAdministrator(path string) bool {
	return path == capsDir+"nvidia-cap1" || path == capsDir+"nvidia-cap2"
}

// class is which capability a file is for. Files of no class are for all of
// them: the driver's libraries need each other.
type class string

const (
	forAll     class = ""
	graphics   class = "graphics"
	video      class = "video"
	display    class = "display"
	graphicsOr class = "graphics or display"
)

// libraryClasses are of libraries by their names up to ".so", as
// libnvidia-container sorts them (nvc_info.c).
var libraryClasses = map[string]class{
	"libGLX_nvidia": graphicsOr, "libEGL_nvidia": graphicsOr, "libGLESv1_CM_nvidia": graphicsOr, "libGLESv2_nvidia": graphicsOr,
	"libGLX_indirect": graphicsOr, "libnvidia-eglcore": graphicsOr, "libnvidia-glcore": graphicsOr, "libnvidia-tls": graphicsOr,
	"libnvidia-glsi": graphicsOr, "libnvidia-glvkspirv": graphicsOr, "libnvidia-egl-gbm": graphicsOr, "libnvidia-egl-wayland": graphicsOr,
	"libnvidia-egl-wayland2": graphicsOr, "libnvidia-egl-xcb": graphicsOr, "libnvidia-egl-xlib": graphicsOr, "nvidia-drm_gbm": graphicsOr,
	"libnvidia-vulkan-producer": graphicsOr, "libnvidia-fbc": graphics, "libnvidia-ifr": graphics, "libnvidia-rtcore": graphics, "libnvoptix": graphics,
	"libnvidia-cbl": graphics, "libnvidia-encode": video, "libnvidia-opticalflow": video, "libnvcuvid": video, "libvdpau_nvidia": video,
	"libglxserver_nvidia": display, "nvidia_drv": display,
}

// fileClasses are of other files by what their paths in the container begin
// or end with.
var fileClasses = []struct {
	prefix, suffix string
	class          class
}{
	{"/dev/dri/", "", graphicsOr},
	{"/dev/nvidia-modeset", "", graphicsOr},
	{"/usr/share/X11/", "", display},
	{"/usr/share/glvnd/", "", graphicsOr},
	{"/usr/share/egl/", "", graphicsOr},
	{"/etc/vulkan/", "", graphicsOr},
	{"", "/nvoptix.bin", graphics},
	{"", "/nvidia-xconfig", display},
}

func classOf(path string) class {
	name, _, isLibrary := strings.Cut(filepath.Base(path), ".so")
	if isLibrary {
		return libraryClasses[name]
	}
	for _, file := range fileClasses {
		if strings.HasPrefix(path, file.prefix) && strings.HasSuffix(path, file.suffix) {
			return file.class
		}
	}
	return forAll
}

// filter removes what no capability that was asked for needs, and says what
// the host cannot give. drawing: all devices can draw.
func filter(edits *cdi.ContainerEdits, capabilities []gpu.Capability, drawing bool) (warnings []string) {
	wanted := map[gpu.Capability]bool{}
	for _, capability := range capabilities {
		wanted[capability] = true
	}
	nodes := func(prefix string) bool {
		return slices.ContainsFunc(edits.DeviceNodes, func(n *cdi.DeviceNode) bool { return strings.HasPrefix(n.Path, prefix) })
	}
	if wanted[gpu.Display] && !nodes("/dev/nvidia-modeset") {
		wanted[gpu.Display] = false
		warnings = append(warnings, "display: the host has no /dev/nvidia-modeset (module nvidia-modeset); it was left out")
	}
	switch draws := wanted[gpu.Graphics] || wanted[gpu.Display]; {
	case draws && !drawing:
		warnings = append(warnings, "graphics: a MIG instance whose profile has no +gfx cannot draw")
	case draws && !nodes("/dev/dri/"):
		warnings = append(warnings, "graphics: the GPU has no DRM nodes (nvidia-drm modeset=1): EGL finds it by its own library only")
	}
	drop(edits, wanted)
	return warnings
}

// needed says whether files of a class are for a capability that is wanted.
func (c class) needed(wanted map[gpu.Capability]bool) bool {
	switch c {
	case graphics:
		return wanted[gpu.Graphics]
	case graphicsOr:
		return wanted[gpu.Graphics] || wanted[gpu.Display]
	case video:
		return wanted[gpu.Video]
	case display:
		return wanted[gpu.Display]
	case forAll:
	}
	return true
}

func drop(edits *cdi.ContainerEdits, wanted map[gpu.Capability]bool) {
	unwanted := func(path string) bool { return !classOf(path).needed(wanted) }
	edits.DeviceNodes = slices.DeleteFunc(edits.DeviceNodes, func(n *cdi.DeviceNode) bool { return unwanted(n.Path) })
	edits.Mounts = slices.DeleteFunc(edits.Mounts, func(m *cdi.Mount) bool { return unwanted(m.ContainerPath) })
	edits.Hooks = slices.DeleteFunc(edits.Hooks, func(h *cdi.Hook) bool {
		if slices.Contains(h.Args, "update-application-profile") { // which tells EGL and Vulkan what GPUs to show
			return !graphicsOr.needed(wanted)
		}
		return !trimLinks(h, unwanted)
	})
	// The groups of nodes that were left out are not needed.
	edits.AdditionalGIDs = slices.DeleteFunc(edits.AdditionalGIDs, func(gid uint32) bool {
		return !slices.ContainsFunc(edits.DeviceNodes, func(n *cdi.DeviceNode) bool { return n.GID != nil && *n.GID == gid })
	})
}

// trimLinks removes links to and from files that are left out of a hook that
// makes links; false when none is left.
func trimLinks(hook *cdi.Hook, unwanted func(string) bool) bool {
	const option = "--link"
	if !slices.Contains(hook.Args, option) {
		return true
	}
	kept, links := make([]string, 0, len(hook.Args)), 0
	for i := 0; i < len(hook.Args); i++ {
		if hook.Args[i] == option && i+1 < len(hook.Args) {
			target, link, _ := strings.Cut(hook.Args[i+1], "::")
			if i++; unwanted(target) || unwanted(link) || unwanted(filepath.Join(filepath.Dir(link), target)) {
				continue
			}
			kept = append(kept, option)
			links++
		}
		kept = append(kept, hook.Args[i])
	}
	hook.Args = kept
	return links > 0
}
