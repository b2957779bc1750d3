package containerd_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// What a runtime or a shim that was killed has left under a container's id keeps
// nobody from starting it again, nor stays behind when it is deleted. What lives is
// not touched.
func TestStartOverWhatARuntimeLeft(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) { //nolint:thelper // it is the test
		engine := open(t, d)
		c := runtime.Container{ID: "again", Image: testutil.ImageName, NetNS: netNS(t, d)(), LogPath: filepath.Join(logs(d), "again.log")}
		dir := filepath.Join("/run/containerd/runc", d.Namespace, c.ID)
		t.Cleanup(func() {
			if err := os.RemoveAll(filepath.Dir(dir)); err != nil {
				t.Error(err)
			}
		})
		start(t, engine, c)
		state, err := os.ReadFile(filepath.Join(dir, "state.json"))
		if err != nil {
			t.Fatal(err)
		}
		kill := func() {
			t.Helper()
			if _, err := engine.Stop(t.Context(), c.ID, 0); err != nil {
				t.Fatal(err)
			}
		}
		leave := func(files map[string][]byte) {
			t.Helper()
			if err := os.MkdirAll(dir, 0o711); err != nil {
				t.Fatal(err)
			}
			for name, data := range files {
				if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		again := func(what string) int {
			t.Helper()
			pid, err := engine.Start(t.Context(), c)
			if err != nil {
				t.Fatalf("start over %s: %v", what, err)
			}
			if status, err := engine.Status(t.Context(), c.ID); err != nil || !status.Running || status.PID != pid {
				t.Errorf("started over %s: %+v, %v, want pid %d", what, status, err, pid)
			}
			return pid
		}

		kill()
		leave(nil)
		again("the directory of a runtime that was killed at once")
		kill()
		leave(map[string][]byte{"state.json": state})
		pid := again("the state of a run whose shim was killed")

		// The shim dies, and containerd with what it knows of it: the process lives.
		shim := parent(t, pid)
		d.Kill(t)
		if err := syscall.Kill(shim, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		bundle := filepath.Join(d.Dir, "state", "io.containerd.runtime.v2.task", d.Namespace, c.ID)
		if err := unix.Unmount(filepath.Join(bundle, "rootfs"), unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(bundle); err != nil {
			t.Fatal(err)
		}
		d.Start(t)
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
			t.Fatalf("the process that was to live: %v", err)
		}
		next := again("a process that nobody can be asked about")
		runtimetest.Eventually(t, "the former process to be gone", func() bool { return !lives(pid) })
		kill()
		if lives(next) {
			t.Errorf("process %d lives on", next)
		}

		// Another containerd's shim may serve a container of that name.
		other := exec.CommandContext(t.Context(), "/bin/sh")
		other.Args = []string{"containerd-shim-runc-v2", "-c", "read line", "-namespace", d.Namespace, "-id", c.ID, "-address", "/nonexistent/other.sock"}
		hold, err := other.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Start(); err != nil {
			t.Fatal(err)
		}
		leave(map[string][]byte{"state.json": state})
		if _, err := engine.Start(t.Context(), c); err == nil {
			t.Error("it started in the place of another containerd's")
		}
		if kept, err := os.ReadFile(filepath.Join(dir, "state.json")); err != nil || string(kept) != string(state) {
			t.Errorf("what another containerd has: %d bytes, %v", len(kept), err)
		}
		if err := hold.Close(); err != nil {
			t.Error(err)
		}
		_ = other.Wait() // its line never came
		again("what nobody serves any more")

		kill()
		leave(map[string][]byte{"state.json": state})
		if err := engine.Delete(t.Context(), c.ID); err != nil {
			t.Errorf("delete: %v", err)
		}
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			t.Errorf("left behind: %s: %v", dir, err)
		}
	})
}

// lives says whether a process is there and has not ended.
func lives(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(stat), ") ")
	return err == nil && !strings.HasPrefix(rest, "Z")
}
