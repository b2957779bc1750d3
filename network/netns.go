package network

import (
	"errors"
	"fmt"
	"os"
	goruntime "runtime"

	"golang.org/x/sys/unix"
)

// prepare makes NetNSDir a shared mount, as "ip netns" does with its own, so
// that namespaces pinned in it are seen by programs in other mount namespaces
// that were made from this one. It may be called again, and is by each Attach:
// what somebody removed from below the node is made anew.
func (n *Networks) prepare() error {
	n.preparing.Lock()
	defer n.preparing.Unlock()
	dir := n.cfg.NetNSDir
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory of network namespaces: %w", err)
	}
	err := unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err := unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s on itself: %w", dir, err)
		}
		err = unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("share mounts below %s: %w", dir, err)
	}
	return nil
}

// pinned tells whether a namespace is mounted at path.
func pinned(path string) (bool, error) {
	var stat unix.Statfs_t
	err := unix.Statfs(path, &stat)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	return stat.Type == unix.NSFS_MAGIC, nil
}

// inNamespace calls do on a thread in the namespace pinned at path, which it
// makes and pins first when fresh. The thread ends afterwards instead of going
// back, so none can be left in the wrong namespace.
func inNamespace(path string, fresh bool, do func(fd int) error) error {
	result := make(chan error, 1)
	go onThread(func() { result <- enter(path, fresh, do) })
	return <-result
}

// onThread calls do on a thread that ends with the calling goroutine. The main
// thread never ends, it would stay in the namespace for good and stand for the
// whole process in /proc; when the scheduler gives us that one, it is held
// while another goroutine, on another thread, takes over.
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

func enter(path string, fresh bool, do func(fd int) error) error {
	if fresh {
		if err := makeNamespace(path); err != nil {
			return err
		}
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if !fresh {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", path, err)
		}
	}
	return do(fd)
}

// makeNamespace moves the thread into a new namespace and pins that at path.
// A file that a crash left there unmounted is used.
func makeNamespace(path string) error {
	if err := makeFile(path); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make network namespace: %w", err)
	}
	if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin network namespace at %s: %w", path, err)
	}
	return nil
}

// makeFile makes the file that a namespace is mounted on, unless it is there.
func makeFile(path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err == nil {
		err = file.Close()
	}
	if err != nil {
		return fmt.Errorf("make file of network namespace: %w", err)
	}
	return nil
}

// pin mounts a namespace that there is at path. A file that is there, with
// nothing mounted, is used.
func pin(path string, namespace *os.File) error {
	if err := makeFile(path); err != nil {
		return err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", namespace.Fd()), path, "none", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin network namespace at %s: %w", path, err)
	}
	return nil
}

// isOwn tells whether a namespace is the one that the node is in.
func isOwn(namespace *os.File) (bool, error) {
	there, err := namespace.Stat()
	if err != nil {
		return false, fmt.Errorf("look at network namespace: %w", err)
	}
	own, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return false, fmt.Errorf("look at the node's network namespace: %w", err)
	}
	return os.SameFile(there, own), nil
}

// unpin lets go of the namespace at path. It dies when no process is in it.
func unpin(path string) error {
	const layers = 16 // mounts stacked by mistake
	for range layers {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount network namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove file of network namespace: %w", err)
	}
	return nil
}
