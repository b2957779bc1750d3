package testutil

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Reboot does to the daemon and everything it runs what a power cut does:
// processes, mounts, control groups and what lies in /run are gone, content,
// snapshots and records are there. It then starts the daemon again. between,
// when not nil, is called while nothing runs.
func (d *ContainerdDaemon) Reboot(tb testing.TB, between func()) {
	tb.Helper()
	d.Kill(tb)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		for _, pid := range d.shims() { // first: they would tell of exits
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		for _, dir := range d.cgroups() {
			// What is frozen in cgroup v1 does not die before it is thawed.
			if file := filepath.Join(dir, "freezer.state"); exists(file) {
				_ = os.WriteFile(file, []byte("THAWED"), 0o600)
			}
			procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			for pid := range strings.FieldsSeq(string(procs)) {
				if n, err := strconv.Atoi(pid); err == nil && n > 1 {
					_ = syscall.Kill(n, syscall.SIGKILL)
				}
			}
			_ = os.Remove(dir)
		}
		if len(d.shims()) == 0 && len(d.cgroups()) == 0 {
			break
		}
		if time.Now().After(deadline) {
			tb.Fatalf("left of containerd: %v %v", d.shims(), d.cgroups())
		}
	}
	for _, mount := range d.mounts() {
		if mount != d.Dir {
			_ = unix.Unmount(mount, unix.MNT_DETACH)
		}
	}
	// Tests keep other things in the directory too. runc keeps its state by
	// containerd namespace, which is this test's own.
	wipe, _ := filepath.Glob(filepath.Join(d.Dir, "state", "io.containerd.*"))
	for _, dir := range append(wipe, filepath.Join("/run/containerd/runc", d.Namespace)) {
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("wipe %s: %v", dir, err)
		}
	}
	if between != nil {
		between()
	}
	d.Start(tb)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
