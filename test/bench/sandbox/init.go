package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Init is the sandbox's first process: it makes the mounts private, runs the
// body and reaps what becomes orphaned until the body ends. It returns the
// body's exit code.
func Init(dir string) (int, error) {
	if os.Getpid() != 1 {
		return 0, errors.New("not the first process of a sandbox")
	}
	if err := prepare(dir); err != nil {
		return 0, err
	}
	body, err := os.StartProcess("/proc/self/exe", []string{os.Args[0], BodyArg, dir}, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return 0, fmt.Errorf("start body: %w", err)
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for body: %w", err)
		case pid == body.Pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		case pid == body.Pid:
			return status.ExitStatus(), nil
		}
	}
}

// prepare gives the sandbox its own /proc, /run, /dev/shm, state of CNI and
// resolv.conf, so that no daemon in it meets or leaves a file of the host's.
func prepare(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, path := range []string{"/run", "/dev/shm", "/var/lib/cni"} {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return fmt.Errorf("mount %s: %w", path, err)
		}
	}
	if err := os.MkdirAll("/run/lock", 0o755); err != nil {
		return fmt.Errorf("make /run/lock: %w", err)
	}
	if err := resolver(dir); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("raise loopback: %w", err)
	}
	return nil
}

// resolver names the client end of the uplink as the only name server; nothing
// answers there.
func resolver(dir string) error {
	const path = "/etc/resolv.conf"
	content := []byte("nameserver " + ClientAddress + "\n")
	if target, err := os.Readlink(path); err == nil {
		if !filepath.IsAbs(target) {
			target = filepath.Join("/etc", target)
		}
		if strings.HasPrefix(target, "/run/") { // on the tmpfs, so it is ours and empty
			if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
				return fmt.Errorf("make directory of resolv.conf: %w", err)
			}
			if err := os.WriteFile(target, content, 0o644); err != nil {
				return fmt.Errorf("write resolv.conf: %w", err)
			}
			return nil
		}
	}
	own := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(own, content, 0o644); err != nil {
		return fmt.Errorf("write resolv.conf: %w", err)
	}
	if err := unix.Mount(own, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount resolv.conf: %w", err)
	}
	return nil
}
