//nolint:thelper // what both runs are tests, and a failure should name their lines
package containerd_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/rootfs"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

// A running container's root has its mounts and ends where it ends.
func TestRootOfRunningContainer(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine, data := open(t, d), t.TempDir()
		c := runtime.Container{
			ID: "one", Image: testutil.ImageName, NetNS: netNS(t, d)(), LogPath: filepath.Join(logs(d), "one.log"),
			Mounts: []volume.Staged{{FSType: "bind", Source: data, Target: "/data", Options: []string{"rbind", "rw"}}},
		}
		pid := start(t, engine, c)
		archive := runtimetest.Archive(t, map[string]string{"file": "text"})
		err := engine.WithRoot(t.Context(), "one", false, func(ctx context.Context, root *rootfs.Root, live bool) error {
			if !live {
				t.Error("it is not live")
			}
			if _, err := root.Extract(ctx, "/data", bytes.NewReader(archive), rootfs.Extraction{UID: 7}); err != nil {
				t.Errorf("into a mount: %v", err)
			}
			for _, name := range []string{
				"/proc/1/root", "/proc/1/root/etc/passwd", "/proc/1/environ", "/proc/self/root", "/proc/1/cwd", "/proc/sys/kernel/hostname",
				"/sys/kernel", data, "/proc/1/fd/1",
			} {
				if info, err := root.Stat(name, true); err == nil {
					t.Errorf("%s is there: %+v", name, info)
				}
				if _, err := root.Extract(ctx, name, bytes.NewReader(archive), rootfs.Extraction{}); err == nil {
					t.Errorf("%s took a file", name)
				}
			}
			var all bytes.Buffer
			done, err := root.Pack(ctx, "/", false, &all, func(rootfs.Info) error { return nil })
			files := runtimetest.Unarchive(t, &all)
			if err != nil || files["data/file"] != "text" || files["etc/passwd"] == "" || done.Skipped == 0 {
				t.Errorf("all of it: %d files, %+v, %v", len(files), done, err)
			}
			for name := range files {
				if strings.HasPrefix(name, "proc/") || strings.HasPrefix(name, "sys/") {
					t.Errorf("%s came out", name)
				}
			}
			// Its process is killed, and nobody has told the engine.
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			<-ctx.Done()
			if p := problem.Of(context.Cause(ctx)); p.Reason != problem.CopyInterrupted {
				t.Errorf("ended by %v", p)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if text, err := os.ReadFile(filepath.Join(data, "file")); err != nil || string(text) != "text" {
			t.Errorf("the mount has %q %v", text, err)
		}
		// Without the mount its directory is empty.
		runtimetest.Eventually(t, "the engine knows", func() bool { status, err := engine.Status(t.Context(), "one"); return err == nil && !status.Running })
		err = engine.WithRoot(t.Context(), "one", true, func(_ context.Context, root *rootfs.Root, _ bool) error {
			_, err := root.Stat("/data/file", true)
			return err
		})
		if p := problem.Of(err); p == nil || p.Reason != problem.FileNotFound {
			t.Errorf("the mount's file without the mount: %v", err)
		}
		if err := engine.Delete(t.Context(), "one"); err != nil {
			t.Error(err)
		}
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}

// Containerd may be away; then the caller is told so and nothing is held.
func TestRootWithoutContainerd(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.Containerd2)
	d := testutil.StartContainerd(t, testutil.Containerd2)
	engine := open(t, d)
	d.Kill(t)
	err := engine.WithRoot(t.Context(), "one", true, func(context.Context, *rootfs.Root, bool) error { return errors.New("let in") })
	if p := problem.Of(err); p == nil || p.Reason != problem.ContainerdDown {
		t.Errorf("%v, want CONTAINERD_UNAVAILABLE", err)
	}
	d.Start(t)
	runtimetest.Eventually(t, "the engine has reconnected", func() bool { _, err := engine.Info(t.Context()); return err == nil })
	if err := engine.Delete(t.Context(), "one"); err != nil {
		t.Errorf("delete: %v", err)
	}
}
