package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/rootfs"
	"github.com/remotegpu/remotegpu/runtime"
)

var _ runtime.Roots = (*Engine)(nil)

// rootTries is how often the root of a process is looked for that ends while
// it is opened.
const rootTries = 3

// WithRoot implements runtime.Roots.
func (e *Engine) WithRoot(ctx context.Context, id string, ended bool, use func(ctx context.Context, root *rootfs.Root, live bool) error) error {
	// From here on nobody starts or deletes it.
	ctx, held, err := e.roots.Enter(ctx, id)
	if err != nil {
		return err
	}
	defer held.Leave()
	record, err := e.store.Get(ctx, id)
	if err == nil && record.Labels[LabelEnvironment] == "" {
		err = fmt.Errorf("not ours: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("open root of container %s: %w", id, e.explain(ctx, err))
	}
	for range rootTries {
		process, err := e.task(ctx, id)
		if err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("open root of container %s: %w", id, err)
		}
		if err != nil || !running(process) {
			return e.withLayer(ctx, &record, ended, use)
		}
		root, alive, err := e.rootOf(int(process.Pid), id)
		if errors.Is(err, unix.ESRCH) {
			continue // it has ended meanwhile
		}
		if err != nil {
			return fmt.Errorf("open root of container %s: %w", id, err)
		}
		return e.withProcess(ctx, root, alive, held, use)
	}
	return fmt.Errorf("open root of container %s: its process keeps ending: %w", id, errdefs.ErrFailedPrecondition)
}

// rootOf opens the root of a container's first process. The pid may be
// another's by now: the pidfd is asked for first, then whose it is, and in the
// end whether it still lives; so all in between was about one process. ESRCH
// when it does not live.
func (e *Engine) rootOf(pid int, id string) (root *rootfs.Root, pidfd *os.File, err error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	pidfd = os.NewFile(uintptr(fd), fmt.Sprintf("pidfd of %d", pid))
	defer func() {
		if err != nil {
			err = errors.Join(err, pidfd.Close())
		}
	}()
	ours, err := cgroup.Contains(pid, e.cgroup(id))
	if err != nil || !ours {
		return nil, nil, errors.Join(fmt.Errorf("process %d is not of the container: %w", pid, unix.ESRCH), err)
	}
	dir, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open root of process %d: %w", pid, errors.Join(unix.ESRCH, err))
	}
	if root, err = rootfs.New(os.NewFile(uintptr(dir), "/")); err != nil {
		return nil, nil, err
	}
	if err := unix.PidfdSendSignal(fd, 0, nil, 0); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("process %d: %w", pid, unix.ESRCH), root.Close())
	}
	if same, err := root.IsHosts(); err != nil || same {
		return nil, nil, errors.Join(fmt.Errorf("the root of process %d is the host's: %w", pid, errdefs.ErrInternal), err, root.Close())
	}
	return root, pidfd, nil
}

// NetNS implements runtime.Engine, as rootOf does it for the root.
func (e *Engine) NetNS(ctx context.Context, id string) (*os.File, error) {
	process, err := e.task(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("open network namespace of container %s: %w", id, err)
	}
	if !running(process) {
		return nil, fmt.Errorf("open network namespace of container %s: its process has ended: %w", id, errdefs.ErrNotFound)
	}
	file, err := e.netnsOf(int(process.Pid), id)
	if errors.Is(err, unix.ESRCH) {
		err = errors.Join(err, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace of container %s: %w", id, err)
	}
	return file, nil
}

func (e *Engine) netnsOf(pid int, id string) (*os.File, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	ours, err := cgroup.Contains(pid, e.cgroup(id))
	if err != nil || !ours {
		return nil, errors.Join(fmt.Errorf("process %d is not of the container: %w", pid, unix.ESRCH), err)
	}
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("open network namespace of process %d: %w", pid, errors.Join(unix.ESRCH, err))
	}
	if err := unix.PidfdSendSignal(pidfd, 0, nil, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("process %d: %w", pid, unix.ESRCH), file.Close())
	}
	return file, nil
}

// withProcess lets a process's root be used until the process ends: from then
// on its mounts come apart.
func (e *Engine) withProcess(ctx context.Context, root *rootfs.Root, pidfd *os.File, held *rootfs.Use,
	use func(context.Context, *rootfs.Root, bool) error,
) (err error) {
	held.Live()
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return errors.Join(fmt.Errorf("watch process: %w", err), root.Close(), pidfd.Close())
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		if raw.Read(hasEnded) == nil {
			held.Interrupt()
		}
	}()
	defer func() {
		err = errors.Join(err, root.Close(), pidfd.Close()) // ends the watch
		<-over
	}()
	return use(ctx, root, true)
}

// hasEnded says whether the process of a pidfd has: it is readable then.
func hasEnded(fd uintptr) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0
}

// withLayer lets the writable layer of a container be used that has no process.
func (e *Engine) withLayer(ctx context.Context, record *containers.Container, ended bool, use func(context.Context, *rootfs.Root, bool) error) (err error) {
	id := record.ID
	if !ended {
		return fmt.Errorf("open root of container %s: its process has ended: %w", id, errdefs.ErrFailedPrecondition)
	}
	// A layer is mounted once at a time: not beside what a process had that has
	// just ended, nor beside the mount of its shim.
	if err := e.roots.EndLive(ctx, id); err != nil {
		return err
	}
	if err := e.clearTask(ctx, id); err != nil {
		if errdefs.IsAlreadyExists(err) {
			err = fmt.Errorf("it runs again: %w", errdefs.ErrFailedPrecondition)
		}
		return fmt.Errorf("open root of container %s: %w", id, err)
	}
	mounts, err := e.layerOf(ctx, record)
	if err != nil {
		return fmt.Errorf("open root of container %s: %w", id, err)
	}
	root, err := e.layers.acquire(id, mounts)
	if err != nil {
		return fmt.Errorf("open root of container %s: %w", id, err)
	}
	defer func() { err = errors.Join(err, e.layers.release(id, root)) }()
	return use(ctx, root, false)
}
