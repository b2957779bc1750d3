package sandbox

import (
	"errors"
	"fmt"
	"os"
	goruntime "runtime"

	"golang.org/x/sys/unix"
)

// NetNS is a network namespace, alive while it is open.
type NetNS struct {
	file *os.File
}

// NewNetNS makes a network namespace with nothing in it.
func NewNetNS() (*NetNS, error) {
	made := &NetNS{}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		file, err := os.Open(threadNS)
		if err != nil {
			return fmt.Errorf("open network namespace: %w", err)
		}
		made.file = file
		return nil
	})
	if err != nil {
		return nil, err
	}
	return made, nil
}

// OpenNetNS opens the network namespace that a path leads to.
func OpenNetNS(path string) (*NetNS, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return &NetNS{file: file}, nil
}

// PinNetNS makes a network namespace and binds it to a file, which it creates.
// The namespace lives until the file is unmounted.
func PinNetNS(path string) (*NetNS, error) {
	target, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make file of network namespace: %w", err)
	}
	target.Close()
	made := &NetNS{}
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		if err := unix.Mount(threadNS, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind network namespace: %w", err)
		}
		return nil
	})
	if err == nil {
		made.file, err = os.Open(path)
	}
	if err != nil {
		return nil, errors.Join(err, UnpinNetNS(path))
	}
	return made, nil
}

// UnpinNetNS undoes PinNetNS; the kernel then takes the namespace apart in its
// own time.
func UnpinNetNS(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount network namespace: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove file of network namespace: %w", err)
	}
	return nil
}

// FD is its file descriptor.
func (n *NetNS) FD() int { return int(n.file.Fd()) }

// Close lets go of it.
func (n *NetNS) Close() error { return n.file.Close() }

// Do calls fn on a thread in the namespace. Processes and sockets that fn
// makes are in it; goroutines that it starts are not.
func (n *NetNS) Do(fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return fn()
	})
}

const threadNS = "/proc/thread-self/ns/net"

// onThread runs fn, which may change the thread's network namespace, and
// brings the thread back.
func onThread(fn func() error) error {
	goruntime.LockOSThread()
	home, err := os.Open(threadNS)
	if err != nil {
		goruntime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer home.Close()
	err = fn()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		// The thread stays locked: nothing else may run on it.
		return errors.Join(err, fmt.Errorf("return to own network namespace: %w", back))
	}
	goruntime.UnlockOSThread()
	return err
}
