package mps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/atomicfile"
	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// start makes a daemon's directories and starts it.
func (d *Daemons) start(ctx context.Context, uuid string) error {
	if err := d.trust(); err != nil {
		return err
	}
	home := d.home(uuid)
	for _, dir := range []string{"pipe", "log", "shm"} {
		if err := os.MkdirAll(filepath.Join(home, dir), 0o755); err != nil {
			return fmt.Errorf("make directory of the MPS daemon: %w", err)
		}
	}
	// Servers of a daemon that died keep the GPU to themselves.
	if err := d.kill(ctx, uuid, 0); err != nil {
		return err
	}
	// What a daemon that died has left would be taken for a living one's. The
	// directories stay: containers have them.
	if err := empty(filepath.Join(home, "pipe")); err != nil {
		return err
	}
	shm := filepath.Join(home, "shm")
	if err := d.mountShm(home, shm); err != nil {
		return err
	}
	if err := fault.Point(ctx, "MPS directories made"); err != nil {
		return err
	}
	if d.cfg.SetExclusive != nil {
		if err := d.cfg.SetExclusive(ctx, uuid, true); err != nil {
			return fmt.Errorf("let MPS alone use GPU %s: %w", uuid, err)
		}
	}
	// Before it is: what is not known to be the same daemon is another.
	if err := atomicfile.WriteUnsynced(filepath.Join(home, sinceName), []byte(time.Now().Format(time.RFC3339Nano)), 0o600); err != nil {
		return err
	}
	if err := d.launchDaemon(ctx, uuid, shm); err != nil {
		return problem.New(problem.GPUUnavailable, "the MPS control daemon of GPU %s does not start", uuid).WithCause(err).
			WithHint("see the log in %s/log", home)
	}
	for deadline := time.Now().Add(startTimeout); ; {
		well, err := d.answers(ctx, uuid)
		if err != nil || well {
			return err
		}
		if time.Now().After(deadline) {
			return problem.New(problem.GPUUnavailable, "the MPS control daemon of GPU %s does not answer", uuid).WithHint("see the log in %s/log", home)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(poll):
		}
	}
}

// launchDaemon runs the program that leaves the daemon behind.
func (d *Daemons) launchDaemon(ctx context.Context, uuid, shm string) error {
	procs, err := cgroup.Make(d.cgroup(uuid))
	if err != nil {
		return err
	}
	if err := fault.Before(ctx, "launch MPS daemon"); err != nil {
		return err
	}
	// Into its cgroup, which has nothing to do with that of the node's service.
	// The server and its clients meet in /dev/shm, which is another one for each
	// of them unless it is made the same.
	const script = `shm=$1 control=$2 flag=$3; shift 3
for file; do echo $$ > "$file"; done
mount --bind "$shm" /dev/shm
exec "$control" -d $flag`
	launch := func(flag string) error {
		return d.launch(ctx, uuid, "unshare", slices.Concat(
			[]string{"--mount", "--propagation", "private", "--", "/bin/sh", "-ec", script, "sh", shm, d.cfg.Control, flag}, procs)...)
	}
	// Without it a server is one user's, and the clients of others wait until it
	// has none (CUDA Multi-Process Service, section Architecture). Drivers before
	// R545 do not know it.
	refused := launch("-multiuser-server")
	if refused == nil {
		return fault.After(ctx, "launch MPS daemon")
	}
	if ctx.Err() != nil {
		return refused
	}
	if err := d.kill(ctx, uuid, 0); err != nil {
		return err
	}
	if procs, err = cgroup.Make(d.cgroup(uuid)); err != nil {
		return err
	}
	if err := launch(""); err != nil {
		return errors.Join(refused, err)
	}
	d.cfg.Log.WarnContext(ctx, "the MPS control daemon serves one user at a time: it does not start for several", "gpu", uuid, "error", refused)
	return nil
}

func (d *Daemons) mountShm(home, shm string) error {
	var outside, inside unix.Stat_t
	if err := unix.Lstat(home, &outside); err != nil {
		return fmt.Errorf("inspect %s: %w", home, err)
	}
	if err := unix.Lstat(shm, &inside); err != nil {
		return fmt.Errorf("inspect %s: %w", shm, err)
	}
	if outside.Dev != inside.Dev {
		return nil // it is mounted
	}
	if err := unix.Mount("remotegpu-mps", shm, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, fmt.Sprintf("size=%d,mode=1777", d.cfg.ShmBytes)); err != nil {
		return fmt.Errorf("mount %s: %w", shm, err)
	}
	return nil
}

func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("empty %s: %w", dir, err)
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
			return fmt.Errorf("empty %s: %w", dir, err)
		}
	}
	return nil
}

// end ends a daemon, gives the GPU back to everybody and removes its directory.
func (d *Daemons) end(ctx context.Context, uuid string) error {
	wait := time.Duration(0)
	if well, err := d.answers(ctx, uuid); err == nil && well {
		wait = min(quitTimeout, d.cfg.Timeout)
		if _, err := d.ask(ctx, uuid, "quit"); err != nil {
			d.cfg.Log.WarnContext(ctx, "an MPS control daemon does not end when it is told to, and is killed", "gpu", uuid, "error", err)
			wait = 0
		}
	} else if err != nil {
		d.cfg.Log.WarnContext(ctx, "an MPS control daemon does not answer, and is killed", "gpu", uuid, "error", err)
	}
	if err := d.kill(ctx, uuid, wait); err != nil {
		return err
	}
	if err := fault.Point(ctx, "MPS daemon ended"); err != nil {
		return err
	}
	if d.cfg.SetExclusive != nil {
		// A GPU that has gone is nobody's.
		if err := d.cfg.SetExclusive(ctx, uuid, false); err != nil && problem.Of(err).Reason != problem.GPUNotFound {
			return fmt.Errorf("let all use GPU %s: %w", uuid, err)
		}
	}
	if err := d.clear(uuid); err != nil {
		return err
	}
	return fault.Point(ctx, "MPS directories removed")
}

// kill ends what runs in a daemon's cgroup, after a while.
func (d *Daemons) kill(ctx context.Context, uuid string, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait+killTimeout)
	defer cancel()
	if err := cgroup.End(ctx, d.cgroup(uuid), wait); err != nil {
		return fmt.Errorf("end the MPS daemon of GPU %s and its servers: %w", uuid, err)
	}
	return nil
}

// clear removes what a daemon has on the host's disks.
func (d *Daemons) clear(uuid string) error {
	shm := filepath.Join(d.home(uuid), "shm")
	for {
		err := unix.Unmount(shm, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", shm, err)
		}
	}
	if err := os.RemoveAll(d.home(uuid)); err != nil {
		return fmt.Errorf("remove directory of the MPS daemon: %w", err)
	}
	return nil
}
