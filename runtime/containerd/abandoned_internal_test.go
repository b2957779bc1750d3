package containerd

import (
	"context"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
)

// A daemon that dies while containerd deletes a task leaves the delete broken
// off, which the engine itself never does: hence the calls from inside. The
// next engine starts the container again, and a delete leaves nothing.
func TestDeleteThatWasBrokenOff(t *testing.T) {
	for _, need := range []testutil.Need{testutil.Containerd, testutil.Containerd2} {
		t.Run(string(need), func(t *testing.T) {
			d := testutil.StartContainerd(t, need)
			d.Import(t, testutil.TestImage(t, testutil.ImageOptions{}))
			e, err := New(Config{Address: d.Address, Namespace: d.Namespace, CgroupParent: d.Cgroup, FIFODir: filepath.Join(d.Dir, "fifo")})
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			c := runtime.Container{ID: "one", Image: testutil.ImageName}
			if err := e.Create(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			const rounds = 6
			broken := 0
			for i := range rounds {
				pid, err := e.Start(t.Context(), c)
				// A busy machine may not have cleared up after the shim yet.
				for deadline := time.Now().Add(time.Minute); err != nil && broken > 0 && time.Now().Before(deadline); pid, err = e.Start(t.Context(), c) {
					time.Sleep(300 * time.Millisecond)
				}
				if err != nil {
					t.Fatalf("start after %d deletes, %d of them broken off: %v", i, broken, err)
				}
				if status, err := e.Status(t.Context(), c.ID); err != nil || !status.Running || status.PID != pid {
					t.Fatalf("after %d deletes, %d of them broken off: %+v, %v", i, broken, status, err)
				}
				over := e.wait(t.Context(), c.ID, "")
				if err := e.kill(t.Context(), c.ID, "", syscall.SIGKILL, true); err != nil {
					t.Fatal(err)
				}
				<-over
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*5*time.Millisecond)
				_, err = e.tasks.Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: c.ID})
				cancel()
				if err != nil && !errdefs.IsNotFound(native(err)) {
					broken++
					// containerd clears up after a shim beside everything else. The
					// next daemon is not there before that.
					time.Sleep(300 * time.Millisecond)
				}
				if i == rounds/2 {
					if err := e.Delete(t.Context(), c.ID); err != nil {
						t.Errorf("delete: %v", err)
					}
					if left := d.Leftovers(t); len(left) > 0 {
						t.Errorf("left behind: %q", left)
					}
					if err := e.Create(t.Context(), c); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := e.Delete(t.Context(), c.ID); err != nil {
				t.Errorf("delete: %v", err)
			}
			if left := d.Leftovers(t); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
			if broken == 0 {
				t.Error("no delete was broken off")
			}
			t.Logf("%d of %d deletes were broken off", broken, rounds)
		})
	}
}
