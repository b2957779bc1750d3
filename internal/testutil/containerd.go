package testutil

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ContainerdDaemon is a private containerd that lives as long as its test.
type ContainerdDaemon struct {
	// Address is its socket.
	Address string
	// Namespace is the containerd namespace that tests use in it, its own
	// since runc keeps what all daemons of a host run under it.
	Namespace string
	// Cgroup is the cgroup under which tests make those of containers, of
	// this daemon only.
	Cgroup string
	// Dir is a short directory for whatever a test needs beside it; it goes
	// with the daemon.
	Dir string

	binary string
	cmd    *exec.Cmd
	log    *os.File
}

const overlayMagic = 0x794c7630

// StartContainerd starts a containerd of its own for the test: the
// distribution's (need Containerd) or the one "make tools" builds (need
// Containerd2), with the overlayfs snapshotter and without CRI. When the test
// ends it is stopped with everything it started.
func StartContainerd(tb testing.TB, need Need) *ContainerdDaemon {
	tb.Helper()
	return StartContainerdOn(tb, need, "")
}

// StartContainerdOn is StartContainerd on a filesystem of its own that has a
// size ("64m") and can be filled; "" is no such one.
func StartContainerdOn(tb testing.TB, need Need, size string) *ContainerdDaemon {
	tb.Helper()
	Require(tb, Root, need)
	// Not tb.TempDir(): the path of a unix socket ends at 107 bytes.
	dir, err := os.MkdirTemp("", "rgc") //nolint:usetesting // see above
	if err != nil {
		tb.Fatalf("make directory: %v", err)
	}
	d := &ContainerdDaemon{
		Address: filepath.Join(dir, "c.sock"), Namespace: filepath.Base(dir), Cgroup: "/" + filepath.Base(dir), Dir: dir,
	}
	tb.Cleanup(func() { d.remove(tb) })
	var fs unix.Statfs_t
	options := "mode=700"
	if size != "" {
		options += ",size=" + size
	}
	if err := unix.Statfs(dir, &fs); err == nil && fs.Type == overlayMagic || size != "" {
		// overlayfs cannot be stacked on itself as an upper layer.
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
			tb.Fatalf("mount tmpfs on %s: %v", dir, err)
		}
	}
	d.binary = "containerd"
	if need == Containerd2 {
		d.binary = Tool("containerd")
	}
	config := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images",
  "io.containerd.podsandbox.controller.v1.podsandbox", "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
[grpc]
  address = %q
[ttrpc]
  address = %q
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), d.Address, d.Address+".ttrpc")
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o600); err != nil {
		tb.Fatalf("write configuration: %v", err)
	}
	if d.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		tb.Fatalf("make log: %v", err)
	}
	d.Start(tb)
	return d
}

// Start starts the daemon (again) and waits until it answers.
func (d *ContainerdDaemon) Start(tb testing.TB) {
	tb.Helper()
	// Not tb.Context(): it ends before cleanups, and they need the daemon.
	d.cmd = exec.Command(d.binary, "--config", filepath.Join(d.Dir, "config.toml"))
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if filepath.IsAbs(d.binary) { // finds the shim of its own version first
		d.cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(d.binary)+":"+os.Getenv("PATH"))
	}
	if err := d.cmd.Start(); err != nil {
		d.cmd = nil
		tb.Fatalf("start containerd: %v", err)
	}
	// As its unit does, which containers must not inherit. It takes
	// CAP_SYS_RESOURCE, which a test inside a container has not got.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", d.cmd.Process.Pid), []byte("-500"), 0)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		out, err := d.ctrCommand("version").CombinedOutput()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("containerd does not answer: %v\n%s\n%s", err, out, d.Log())
		}
	}
}

// Kill ends the daemon with SIGKILL; shims and containers live on.
func (d *ContainerdDaemon) Kill(tb testing.TB) { tb.Helper(); d.end(tb, syscall.SIGKILL) }

// Stop ends the daemon with SIGTERM; shims and containers live on.
func (d *ContainerdDaemon) Stop(tb testing.TB) { tb.Helper(); d.end(tb, syscall.SIGTERM) }

// Hang stops the daemon: it is there and answers nobody until goOn is called, or
// the test ends.
func (d *ContainerdDaemon) Hang(tb testing.TB) (goOn func()) {
	tb.Helper()
	process := d.cmd.Process
	if err := process.Signal(syscall.SIGSTOP); err != nil {
		tb.Fatalf("stop containerd: %v", err)
	}
	goOn = sync.OnceFunc(func() {
		if err := process.Signal(syscall.SIGCONT); err != nil {
			tb.Errorf("let containerd go on: %v", err)
		}
	})
	tb.Cleanup(goOn)
	return goOn
}

func (d *ContainerdDaemon) end(tb testing.TB, signal syscall.Signal) {
	tb.Helper()
	if d.cmd == nil {
		return
	}
	if err := d.cmd.Process.Signal(signal); err != nil {
		tb.Errorf("stop containerd: %v", err)
	}
	timer := time.AfterFunc(30*time.Second, func() { _ = d.cmd.Process.Kill() })
	defer timer.Stop()
	var exit *exec.ExitError
	if err := d.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		tb.Errorf("stop containerd: %v", err)
	}
	d.cmd = nil
}

// Import puts an image into the daemon, unpacked.
func (d *ContainerdDaemon) Import(tb testing.TB, image *OCIImage) {
	tb.Helper()
	path := filepath.Join(d.Dir, "image.tar")
	if err := os.WriteFile(path, image.Tar(tb), 0o600); err != nil {
		tb.Fatalf("write image: %v", err)
	}
	d.Ctr(tb, "images", "import", path)
	if err := os.Remove(path); err != nil {
		tb.Errorf("remove archive: %v", err)
	}
}

// Ctr runs ctr against the daemon, in its namespace, and returns its
// standard output.
func (d *ContainerdDaemon) Ctr(tb testing.TB, args ...string) string {
	tb.Helper()
	cmd := d.ctrCommand(args...)
	var stderr bytes.Buffer // it warns there
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("ctr %q: %v\n%s\n%s", args, err, stderr.Bytes(), d.Log())
	}
	return strings.TrimSpace(string(out))
}

func (d *ContainerdDaemon) ctrCommand(args ...string) *exec.Cmd {
	ctr := "ctr"
	if filepath.IsAbs(d.binary) {
		ctr = filepath.Join(filepath.Dir(d.binary), "ctr")
	}
	return exec.Command(ctr, append([]string{"--address", d.Address, "--namespace", d.Namespace}, args...)...)
}

// Log is the end of what the daemon has logged.
func (d *ContainerdDaemon) Log() string {
	data, _ := os.ReadFile(filepath.Join(d.Dir, "log"))
	return string(data[max(0, len(data)-8192):])
}

// Leftovers names every container, snapshot above the images', lease, shim, mount
// and cgroup there is. A shim is a process of its own that ends when containerd
// has answered for its task already, and is given the time for it.
func (d *ContainerdDaemon) Leftovers(tb testing.TB) []string {
	tb.Helper()
	var left []string
	for _, kind := range []string{"containers", "tasks"} {
		for name := range strings.FieldsSeq(d.Ctr(tb, kind, "ls", "-q")) {
			left = append(left, kind+" "+name)
		}
	}
	for line := range strings.Lines(d.Ctr(tb, "snapshots", "ls")) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[len(fields)-1] != "Committed" && fields[0] != "KEY" {
			left = append(left, "snapshot "+fields[0])
		}
	}
	for _, lease := range d.leases(tb) {
		left = append(left, "lease "+lease)
	}
	if len(left) == 0 {
		for until := time.Now().Add(5 * time.Second); len(d.shims()) > 0 && time.Now().Before(until); {
			time.Sleep(5 * time.Millisecond)
		}
	}
	for _, pid := range d.shims() {
		left = append(left, fmt.Sprintf("shim %d", pid))
	}
	for _, mount := range d.mounts() {
		if mount != d.Dir {
			left = append(left, "mount "+mount)
		}
	}
	for _, dir := range d.cgroups() {
		if filepath.Base(dir) != filepath.Base(d.Cgroup) {
			left = append(left, "cgroup "+dir)
		}
	}
	return left
}

// leases are those that stay: one that an engine has containerd collect with is
// there for a moment, a second after something was removed.
func (d *ContainerdDaemon) leases(tb testing.TB) []string {
	tb.Helper()
	list := func() []string { return strings.Fields(d.Ctr(tb, "leases", "ls", "-q")) }
	left := list()
	for until := time.Now().Add(2 * time.Second); len(left) > 0 && time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
		now := list()
		left = slices.DeleteFunc(left, func(lease string) bool { return !slices.Contains(now, lease) })
	}
	return left
}

// shims are the processes that were started to serve this daemon.
func (d *ContainerdDaemon) shims() []int {
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		line, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		args := bytes.Split(line, []byte{0})
		if strings.Contains(string(args[0]), "containerd-shim") &&
			slices.ContainsFunc(args, func(a []byte) bool { return string(a) == d.Address }) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// mounts are those below the daemon's directory, deepest first.
func (d *ContainerdDaemon) mounts() []string {
	var mounts []string
	table, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && (fields[4] == d.Dir || strings.HasPrefix(fields[4], d.Dir+"/")) {
			mounts = append(mounts, fields[4])
		}
	}
	slices.Reverse(mounts)
	return mounts
}

// cgroups are the directories of the daemon's cgroup in all hierarchies,
// deepest first.
func (d *ContainerdDaemon) cgroups() []string {
	var all []string
	roots, _ := filepath.Glob("/sys/fs/cgroup/*" + d.Cgroup)
	for _, root := range append(roots, "/sys/fs/cgroup"+d.Cgroup) {
		_ = filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				all = append(all, path)
			}
			return nil
		})
	}
	slices.Reverse(all)
	return all
}

// remove stops the daemon and everything it started, by pid, and fails the
// test when something is left all the same.
func (d *ContainerdDaemon) remove(tb testing.TB) {
	tb.Helper()
	if tb.Failed() {
		tb.Logf("containerd's log:\n%s", d.Log())
	}
	d.end(tb, syscall.SIGTERM)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		for _, dir := range d.cgroups() {
			procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			for pid := range strings.FieldsSeq(string(procs)) {
				if n, err := strconv.Atoi(pid); err == nil && n > 1 {
					_ = syscall.Kill(n, syscall.SIGKILL)
				}
			}
			_ = os.Remove(dir)
		}
		for _, pid := range d.shims() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		for _, mount := range d.mounts() {
			_ = unix.Unmount(mount, unix.MNT_DETACH)
		}
		left := fmt.Sprint(d.cgroups(), d.shims(), d.mounts())
		if left == "[] [] []" {
			break
		}
		if time.Now().After(deadline) {
			tb.Errorf("left of containerd: %s", left)
			break
		}
	}
	if d.log != nil {
		_ = d.log.Close()
	}
	if err := os.RemoveAll(d.Dir); err != nil {
		tb.Errorf("remove %s: %v", d.Dir, err)
	}
}

// Unmount unmounts path, lazily, and removes the file or directory it was
// mounted on.
func Unmount(tb testing.TB, path string) {
	tb.Helper()
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		tb.Errorf("unmount %s: %v", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		tb.Errorf("remove mount point: %v", err)
	}
}
