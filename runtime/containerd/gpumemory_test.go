//nolint:thelper // as in gpu_test.go
package containerd_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/containerd"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// Memory that the driver limits is limited before the first process runs, in
// the container's own cgroup, and not after it, however it ends; where nothing
// can, nothing runs. Of whatever version cgroups are.
func TestGPUMemory(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		var calls []string
		var failure error
		engine := openWith(t, d, func(cfg *containerd.Config) {
			cfg.LimitGPU = func(_ context.Context, uuid, group string, bytes uint64) error {
				pids, err := cgroup.Processes(group)
				running := "no process"
				if len(pids) > 0 || err != nil {
					running = fmt.Sprint("processes ", err)
				}
				calls = append(calls, fmt.Sprint(uuid, " ", group, " ", bytes, " ", running))
				if bytes == 0 {
					return nil
				}
				return failure
			}
		})
		group := d.Cgroup + "/one"
		limited, lifted, begun := "GPU-1 "+group+" 1073741824 processes <nil>", "GPU-1 "+group+" 0 no process", "GPU-1 "+group+" 0 processes <nil>"
		called := func(what string, want ...string) {
			t.Helper()
			if !slices.Equal(calls, want) {
				t.Errorf("%s: calls %q, want %q", what, calls, want)
			}
			calls = nil
		}
		c := runtime.Container{ID: "one", Image: testutil.ImageName, GPUMemory: []gpu.MemoryLimit{{GPU: "GPU-1", Bytes: 1 << 30}}}
		start(t, engine, c)
		called("a start", limited) // the runtime's own process waits there
		stop(t, engine, "one")
		called("a stop", lifted)
		for _, test := range []struct {
			failure error
			want    problem.Reason
		}{
			{problem.New(problem.GPUUnavailable, "the driver does not answer"), problem.GPUUnavailable},
			{problem.New(problem.GPUUnsupported, "cgroup v2 is not mounted"), problem.GPUNotEnforceable},
		} {
			failure = test.failure
			_, err := engine.Start(t.Context(), c)
			if p := problem.Of(err); p == nil || p.Reason != test.want || !errors.Is(err, test.failure) {
				t.Errorf("a limit that cannot be set: %v, want %s", err, test.want)
			}
			called("a limit that cannot be set", limited, begun)
			if status, err := engine.Status(t.Context(), "one"); err != nil || status.Running {
				t.Errorf("it runs without its limit: %+v, %v", status, err)
			}
		}
		failure = nil
		// It ends by itself: its cgroup is there until it is started again.
		c.Command = []string{"echo", "done"}
		if _, err := engine.Start(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		runtimetest.Eventually(t, "its end", func() bool {
			status, err := engine.Status(t.Context(), "one")
			return err == nil && !status.Running
		})
		c.Command = nil
		if _, err := engine.Start(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		called("a start after it ended", limited, lifted, limited)
		if err := engine.Delete(t.Context(), "one"); err != nil {
			t.Error(err)
		}
		called("a delete", begun)
	})
}
