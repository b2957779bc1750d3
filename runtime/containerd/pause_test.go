//nolint:thelper // what both runs are tests, and a failure should name their lines
package containerd_test

import (
	"path/filepath"
	"syscall"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// A paused container stays paused when containerd is killed, and can be
// resumed and stopped afterwards. One whose shim dies has ended.
func TestPausedWhenContainerdOrShimIsKilled(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine, ns := open(t, d), netNS(t, d)()
		pids := map[string]int{}
		for _, id := range []string{"resumed", "stopped", "shimless"} {
			log := filepath.Join(logs(d), id+".log")
			pids[id] = start(t, engine, runtime.Container{
				ID: id, Image: testutil.ImageName, Command: []string{"tick"}, NetNS: ns, LogPath: log,
			})
			runtimetest.Eventually(t, "it hears signals", func() bool { return fileSize(t, log) > 0 })
			if err := engine.Pause(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		d.Kill(t)
		d.Start(t)
		runtimetest.Eventually(t, "the engine has reconnected", func() bool { _, err := engine.Info(t.Context()); return err == nil })
		for id, pid := range pids {
			if status, err := engine.Status(t.Context(), id); err != nil || !status.Running || !status.Paused || status.PID != pid {
				t.Errorf("status of %s: %+v, %v, want it paused with pid %d", id, status, err, pid)
			}
		}
		if err := engine.Resume(t.Context(), "resumed"); err != nil {
			t.Errorf("resume: %v", err)
		}
		if status, err := engine.Status(t.Context(), "resumed"); err != nil || !status.Running || status.Paused {
			t.Errorf("status once resumed: %+v, %v", status, err)
		}
		if exit := stop(t, engine, "stopped"); exit.Code != 0 || exit.Signal != 0 {
			t.Errorf("exit %+v, want that it heard SIGTERM", exit)
		}
		if err := syscall.Kill(parent(t, pids["shimless"]), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		runtimetest.Eventually(t, "the container is seen to have ended", func() bool {
			status, err := engine.Status(t.Context(), "shimless")
			return err == nil && !status.Running && !status.Paused
		})
		for id := range pids {
			if err := engine.Delete(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}
