package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// alwaysDenied are the host paths that would hand out the host itself: the
// kernel's file systems and what container runtimes and init keep.
func alwaysDenied() []string {
	return []string{
		"/proc", "/sys", "/dev",
		"/run/containerd", "/var/lib/containerd", "/run/docker", "/run/docker.sock", "/var/lib/docker",
		"/run/podman", "/run/crio", "/var/lib/containers", "/run/runc", "/run/buildkit",
		"/run/systemd", "/run/dbus", "/run/remotegpu", "/var/lib/remotegpu",
	}
}

// source opens what a mount comes from, as an O_PATH descriptor. created says
// that the volume was not there before; it is told with an error too.
func (m *Manager) source(mount Mount) (fd int, created bool, err error) {
	switch mount.Type {
	case Bind:
		fd, err = m.openBind(mount.Source)
		return fd, false, err
	case Volume:
		return m.openVolume(mount.Source)
	case Tmpfs:
	}
	return -1, false, problem.New(problem.FieldInvalid, "mount type %q has no source", mount.Type)
}

// openBind opens a host path beneath its allowed root. The kernel resolves it
// in one step relative to the root's descriptor, so a link that is swapped in
// meanwhile leads nowhere; links that stay beneath the root work. The
// descriptor is checked, not the name.
func (m *Manager) openBind(source string) (int, error) {
	if !filepath.IsAbs(source) || filepath.Clean(source) != source || strings.ContainsRune(source, 0) {
		return -1, problem.New(problem.MountNotAllowed, "source %q is not an absolute, clean path", source).
			WithHint("write it with a leading slash, without a trailing one, without .. and .")
	}
	root := ""
	for _, allowed := range m.config.AllowedRoots {
		if within(source, allowed) && len(allowed) > len(root) {
			root = allowed
		}
	}
	if root == "" {
		if len(m.config.AllowedRoots) == 0 {
			return -1, problem.New(problem.MountNotAllowed, "source %s: this node allows no host paths", source).
				WithHint("use a named volume, or have the administrator list a directory in allowed_roots")
		}
		return -1, problem.New(problem.MountNotAllowed, "source %s lies outside the allowed roots", source).
			WithHint("use a path below %s, or have the administrator add one to allowed_roots",
				strings.Join(m.config.AllowedRoots, ", "))
	}
	fd, err := openBeneath(root, source, 0)
	if err != nil {
		return -1, err
	}
	if err := m.checkOpen(fd, source); err != nil {
		closeFD(fd)
		return -1, err
	}
	return fd, nil
}

// openBeneath opens path, which lies lexically in root, with O_PATH.
func openBeneath(root, path string, resolve uint64) (int, error) {
	rootFD, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, problem.New(problem.MountSourceNotFound, "source %s: its allowed root %s cannot be opened", path, root).
			WithHint("have the administrator make %s", root).WithCause(err)
	}
	defer closeFD(rootFD)
	relative, err := filepath.Rel(root, path)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	how := &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | resolve,
	}
	fd, err := -1, error(unix.EAGAIN)
	// EAGAIN: something was renamed while the kernel looked (openat2(2)).
	for try := 0; try < 64 && (errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)); try++ {
		fd, err = unix.Openat2(rootFD, relative, how)
	}
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return -1, problem.New(problem.MountSourceNotFound, "source %s does not exist", path).
			WithHint("make it on the host, or use a named volume").WithCause(err)
	case errors.Is(err, unix.EXDEV):
		return -1, problem.New(problem.MountNotAllowed, "source %s leads out of %s through a link", path, root).
			WithHint("name the directory itself; links may only stay beneath %s, and be relative", root).WithCause(err)
	case errors.Is(err, unix.ELOOP):
		return -1, problem.New(problem.MountNotAllowed, "source %s goes through a link that may not be followed", path).
			WithHint("name the directory itself").WithCause(err)
	case errors.Is(err, unix.EAGAIN):
		return -1, problem.New(problem.Unavailable, "source %s keeps changing while it is opened", path).
			WithHint("try again when nothing renames directories there").WithCause(err)
	default:
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
}

// checkOpen looks at what was opened: a directory or a plain file, not of the
// kernel's own file systems, at a place that is not denied.
func (m *Manager) checkOpen(fd int, source string) error {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return fmt.Errorf("stat %s: %w", source, err)
	}
	if kind := stat.Mode & unix.S_IFMT; kind != unix.S_IFDIR && kind != unix.S_IFREG {
		return problem.New(problem.MountNotAllowed, "source %s is neither a directory nor a plain file", source).
			WithHint("devices, sockets and pipes of the host cannot be mounted")
	}
	var statfs unix.Statfs_t
	if err := unix.Fstatfs(fd, &statfs); err != nil {
		return fmt.Errorf("stat file system of %s: %w", source, err)
	}
	switch statfs.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, unix.NSFS_MAGIC:
		return problem.New(problem.MountNotAllowed, "source %s lies in a file system of the kernel", source).
			WithHint("use a path with plain files")
	}
	opened, err := os.Readlink(fdPath(fd))
	if err != nil {
		return fmt.Errorf("resolve %s: %w", source, err)
	}
	if stat.Nlink == 0 {
		return problem.New(problem.MountSourceNotFound, "source %s has been deleted", source)
	}
	for _, denied := range m.denied {
		if resolved, err := filepath.EvalSymlinks(denied); err == nil {
			denied = resolved
		}
		if within(opened, denied) || within(denied, opened) {
			return problem.New(problem.MountNotAllowed, "source %s would expose %s", source, denied).
				WithHint("use a directory that holds nothing of the system")
		}
	}
	return nil
}

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// closeFD closes a descriptor that has nothing to flush.
func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd) // O_PATH and mount descriptors: nothing can be lost
	}
}
