package gpu

import (
	"path"
	"slices"
	"strings"
)

// requests are the directories by whose names the toolkit's hook is asked for
// devices: it takes each mount at a path that begins so for a request, with or
// without a slash in between (internal/config/image, requestsFromMounts).
var requests = []string{"/var/run/nvidia-container-devices", "/run/nvidia-container-devices"}

// places are where GPUs bring files with them: what the loader and the
// libraries of OpenGL, EGL and Vulkan read, and what hooks write. above says
// that a mount at a parent is in the way as well; nobody can do without /tmp.
var places = []struct {
	path  string
	above bool
}{
	{"/dev", true},
	{"/proc", true},
	{"/usr/local/nvidia", true},
	{"/etc/ld.so.preload", true},
	{"/etc/ld.so.conf", true},
	{"/etc/ld.so.conf.d", true},
	{"/etc/ld.so.cache", true},
	{"/etc/vulkan", true},
	{"/etc/OpenCL", true},
	{"/etc/nvidia", true},
	{"/usr/share/glvnd", true},
	{"/usr/share/egl", true},
	{"/usr/share/vulkan", true},
	{"/usr/share/nvidia", true},
	{"/tmp/nvidia-mps", false},
	{"/var/run/nvidia-mps", false},
	{"/run/nvidia-mps", false},
	{"/run/nvidia-persistenced", false},
	{"/var/run/nvidia-persistenced", false},
}

// ReservedTarget says whether nobody may mount something at a path of a
// container, and what is in the way there. What steers hooks never is allowed;
// what GPUs bring with them lies there when the container has some.
func ReservedTarget(target string, gpus bool) (place string, is bool) {
	clean := cleaned(target)
	for _, prefix := range requests {
		if strings.HasPrefix(clean, prefix) {
			return prefix, true
		}
	}
	if !gpus {
		return "", false
	}
	for _, p := range places {
		if Within(target, p.path) || p.above && Within(p.path, target) {
			return p.path, true
		}
	}
	return "", false
}

// above are directories that nobody can do without: a mount there is in the way
// of nothing below it, since the mounts of GPUs come after all others.
var above = []string{"/tmp", "/run", "/var/run"}

// TargetOf returns a path of edits that a mount at target would cover or be
// covered by: the same, one below, or one above that is not among those that
// nobody can do without.
func (e *Edits) TargetOf(target string) (path string, is bool) {
	all := slices.Clone(e.Brought)
	for _, m := range e.CDI.Mounts {
		all = append(all, m.ContainerPath)
	}
	for _, node := range e.CDI.DeviceNodes {
		all = append(all, node.Path)
	}
	open := slices.Contains(above, cleaned(target))
	i := slices.IndexFunc(all, func(place string) bool { return Within(target, place) || !open && Within(place, target) })
	if i < 0 {
		return "", false
	}
	return all[i], true
}

// Within says whether a path of a container is dir or lies below it, however
// the two are spelled. Links are not looked at.
func Within(name, dir string) bool {
	name, dir = cleaned(name), cleaned(dir)
	return name == dir || dir == "/" || strings.HasPrefix(name, dir+"/")
}

// cleaned is an absolute path as the runtime resolves it in a root directory:
// nothing leads out of that.
func cleaned(name string) string { return path.Clean("/" + name) }
