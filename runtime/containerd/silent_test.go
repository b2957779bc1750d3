package containerd_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
)

// patience is more than it takes to be done with a shim that does not answer, and
// less than a call of containerd may take.
const patience = 100 * time.Second

// A shim that does not answer keeps nobody from deleting its container.
func TestDeleteWithSilentShim(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) { //nolint:thelper // it is the test
		engine := open(t, d)
		c := runtime.Container{ID: "silent", Image: testutil.ImageName, NetNS: netNS(t, d)(), LogPath: filepath.Join(logs(d), "silent.log")}
		shim := parent(t, start(t, engine, c))
		if err := syscall.Kill(shim, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := engine.Delete(ctx, c.ID); err != nil {
			t.Errorf("delete: %v", err)
			if err := syscall.Kill(shim, syscall.SIGKILL); err != nil {
				t.Log(err)
			}
		}
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}

// A shim that containerd has lost, as that of a start whose caller was killed,
// and that does not serve, is not taken for the next start's.
func TestStartBesideOrphanedShim(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) { //nolint:thelper // it is the test
		engine := open(t, d)
		c := runtime.Container{ID: "again", Image: testutil.ImageName, NetNS: netNS(t, d)(), LogPath: filepath.Join(logs(d), "again.log")}
		shim := parent(t, start(t, engine, c))
		d.Kill(t)
		if err := syscall.Kill(shim, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		// Such a shim was never asked to make a container.
		if said, err := exec.CommandContext(t.Context(), "runc", "--root", filepath.Join("/run/containerd/runc", d.Namespace), "delete", "--force", c.ID).CombinedOutput(); err != nil {
			t.Fatalf("runc delete: %v: %s", err, said)
		}
		bundle := filepath.Join(d.Dir, "state", "io.containerd.runtime.v2.task", d.Namespace, c.ID)
		if err := unix.Unmount(filepath.Join(bundle, "rootfs"), unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(bundle); err != nil {
			t.Fatal(err)
		}
		d.Start(t)
		// What containerd still clears up after stands in the way for a moment.
		if err := os.MkdirAll(bundle, 0o700); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, func() {
			if err := os.Remove(bundle); err != nil {
				t.Error(err)
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if _, err := engine.Start(ctx, c); err != nil {
			t.Errorf("start: %v", err)
		}
		// Whoever is to collect it may take its time.
		if name, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(shim), "exe")); err == nil {
			t.Errorf("the shim without a task is still there: %s", name)
		}
		if err := engine.Delete(ctx, c.ID); err != nil {
			t.Errorf("delete: %v", err)
		}
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}
