package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/rootfs"
)

// mountDataLimit is how much mount(2) takes of options, in bytes: a page with
// its terminating zero.
const mountDataLimit = 4095

// layerMounts are the writable layers that are mounted for copies, each once:
// two mounts of one overlay would not know of each other's changes.
//
// They are mounted nowhere. A thread with a mount namespace of its own mounts
// them, opens what it has mounted and detaches it, so that nothing but the
// descriptor holds the mount: it goes with the descriptor, also when the daemon
// is killed.
type layerMounts struct {
	mu      sync.Mutex
	mounted map[string]*layerMount
}

type layerMount struct {
	uses int // under the lock of all

	mu  sync.Mutex // of mounting and unmounting, which write much at times
	dir *os.File   // nil while it is not mounted
}

// acquire returns the root of a layer. Release must follow.
func (l *layerMounts) acquire(id string, mounts []mount.Mount) (*rootfs.Root, error) {
	l.mu.Lock()
	layer := l.mounted[id]
	if layer == nil {
		if l.mounted == nil {
			l.mounted = make(map[string]*layerMount)
		}
		layer = &layerMount{}
		l.mounted[id] = layer
	}
	layer.uses++
	l.mu.Unlock()
	root, err := layer.open(mounts)
	if err != nil {
		return nil, errors.Join(err, l.drop(id))
	}
	return root, nil
}

// open mounts the layer unless it is, and returns a root of its own.
func (m *layerMount) open(mounts []mount.Mount) (*rootfs.Root, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dir == nil {
		dir, err := mountDetached(mounts)
		if err != nil {
			return nil, err
		}
		m.dir = dir
	}
	fd, err := unix.FcntlInt(m.dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return rootfs.New(os.NewFile(uintptr(fd), m.dir.Name()))
}

func (l *layerMounts) release(id string, root *rootfs.Root) error {
	return errors.Join(root.Close(), l.drop(id))
}

// drop ends one use; the last one unmounts. Whoever comes meanwhile waits, and
// mounts the layer anew.
func (l *layerMounts) drop(id string) (err error) {
	l.mu.Lock()
	layer := l.mounted[id]
	l.mu.Unlock()
	layer.mu.Lock()
	defer layer.mu.Unlock()
	if l.leave(layer) {
		if layer.dir != nil {
			err = layer.dir.Close()
			layer.dir = nil
		}
		l.forget(id, layer)
	}
	return err
}

// leave counts one use less and says whether it was the last.
func (l *layerMounts) leave(layer *layerMount) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	layer.uses--
	return layer.uses == 0
}

func (l *layerMounts) forget(id string, layer *layerMount) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if layer.uses == 0 {
		delete(l.mounted, id)
	}
}

// mountDetached mounts a layer and returns its root, an O_PATH descriptor that
// is all that holds the mount.
func mountDetached(mounts []mount.Mount) (*os.File, error) {
	if len(mounts) != 1 {
		return nil, fmt.Errorf("mount layer: %d mounts, want one", len(mounts))
	}
	var dir *os.File
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		onThread(func() { dir, err = mountHere(mounts[0]) })
	}()
	<-done
	if err != nil {
		return nil, fmt.Errorf("mount layer: %w", err)
	}
	return dir, nil
}

// onThread calls do on a thread that ends with the calling goroutine. The main
// thread never ends, would stay in the namespace for good and stand for the
// whole process in /proc: when the scheduler gives us that one, it is held
// while another takes over.
func onThread(do func()) {
	goruntime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		do() // never unlocked
		return
	}
	defer goruntime.UnlockOSThread()
	done := make(chan struct{})
	go func() {
		defer close(done)
		goruntime.LockOSThread()
		do()
	}()
	<-done
}

// mountHere changes the thread it runs on for good.
func mountHere(m mount.Mount) (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("make mount namespace: %w", err)
	}
	// Slave: nothing gets out, and what the host unmounts is unmounted here.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return nil, fmt.Errorf("keep mounts in: %w", err)
	}
	flags, data := mountOptions(m.Options)
	if len(data) > mountDataLimit {
		var err error
		if data, err = shortened(data); err != nil {
			return nil, err
		}
	}
	// Any directory will do: nobody else sees it.
	const target = "/proc"
	if err := unix.Mount(m.Source, target, m.Type, flags, data); err != nil {
		return nil, fmt.Errorf("mount %s: %w", m.Type, err)
	}
	if flags&unix.MS_BIND != 0 { // a bind takes its options in a second step
		if err := unix.Mount("", target, "", flags|unix.MS_REMOUNT, ""); err != nil {
			return nil, fmt.Errorf("set options of mount: %w", err)
		}
	}
	fd, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open mount: %w", err)
	}
	dir := os.NewFile(uintptr(fd), "/")
	if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
		return nil, errors.Join(fmt.Errorf("detach mount: %w", err), dir.Close())
	}
	return dir, nil
}

// mountOptions splits options as fstab(5) has them into flags and what the file
// system is told. Nothing in a layer acts for the node.
func mountOptions(options []string) (flags uintptr, data string) {
	flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	known := map[string]uintptr{
		"rw": 0, "defaults": 0, "ro": unix.MS_RDONLY, "bind": unix.MS_BIND, "rbind": unix.MS_BIND, "nodev": unix.MS_NODEV, "nosuid": unix.MS_NOSUID,
		"noexec": unix.MS_NOEXEC, "noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME, "sync": unix.MS_SYNCHRONOUS,
	}
	var rest []string
	for _, option := range options {
		if flag, is := known[option]; is {
			flags |= flag
		} else {
			rest = append(rest, option)
		}
	}
	return flags, strings.Join(rest, ",")
}

// shortened makes the paths of an overlay's lower layers relative to the
// directory that all are in, and goes there: with many layers they are too long.
func shortened(data string) (string, error) {
	options := strings.Split(data, ",")
	at := slices.IndexFunc(options, func(option string) bool { return strings.HasPrefix(option, "lowerdir=") })
	if at < 0 {
		return "", fmt.Errorf("%d bytes of mount options are too many: %w", len(data), unix.E2BIG)
	}
	dirs := strings.Split(strings.TrimPrefix(options[at], "lowerdir="), ":")
	common := filepath.Dir(dirs[0])
	for slices.ContainsFunc(dirs, func(dir string) bool { return !strings.HasPrefix(dir, strings.TrimSuffix(common, "/")+"/") }) {
		common = filepath.Dir(common)
	}
	for i, dir := range dirs {
		dirs[i] = strings.TrimPrefix(dir, strings.TrimSuffix(common, "/")+"/")
	}
	options[at] = "lowerdir=" + strings.Join(dirs, ":")
	if data = strings.Join(options, ","); len(data) > mountDataLimit {
		return "", fmt.Errorf("%d bytes of mount options are too many: %w", len(data), unix.E2BIG)
	}
	if err := unix.Chdir(common); err != nil {
		return "", fmt.Errorf("change to %s: %w", common, err)
	}
	return data, nil
}
