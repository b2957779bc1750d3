//nolint:thelper // what both runs are tests, and a failure should name their lines
package containerd_test

import (
	"encoding/json"
	"maps"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// limitsOf reads the limits of container one where the kernel keeps them: CPU
// quota, memory, memory with swap ("" where it is not counted), processes.
func limitsOf(t *testing.T, d *testutil.ContainerdDaemon) [4]string {
	t.Helper()
	files := [4]string{"cpu/@/cpu.cfs_quota_us", "memory/@/memory.limit_in_bytes", "memory/@/memory.memsw.limit_in_bytes", "pids/@/pids.max"}
	if cgroup.Version() == "v2" {
		files = [4]string{"@/cpu.max", "@/memory.max", "@/memory.swap.max", "@/pids.max"}
	}
	var found [4]string
	for i, file := range files {
		path := filepath.Join("/sys/fs/cgroup", strings.Replace(file, "@", filepath.Join(d.Cgroup, "one"), 1))
		found[i] = strings.TrimSuffix(testutil.Sh(t, "cat "+path+" 2>/dev/null || true"), " 100000")
	}
	return found
}

// Limits change while the process runs, and back, and not at all when one of
// them is refused.
func TestUpdateReachesTheKernel(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine := open(t, d)
		c := runtime.Container{
			ID: "one", Image: testutil.ImageName, NetNS: netNS(t, d)(), LogPath: filepath.Join(logs(d), "one.log"), Command: []string{"eat-memory", "83886080"},
			Resources: runtime.Resources{CPUMillis: 500, MemoryBytes: 256 << 20, Pids: 40},
		}
		pid := start(t, engine, c)
		runtimetest.Eventually(t, "it has eaten", func() bool { return fileSize(t, c.LogPath) > 0 })
		created := limitsOf(t, d)
		unlimited := func(text string) bool { return text == "max" || text == "-1" || len(text) >= 18 }
		for _, test := range []struct {
			name string
			to   runtime.Resources
			want [4]string // "": not limited
		}{
			{"more", runtime.Resources{CPUMillis: 1500, MemoryBytes: 512 << 20, SwapBytes: 64 << 20, Pids: 100}, [4]string{"150000", "536870912", "603979776", "100"}},
			{"none", runtime.Resources{Pids: 200}, [4]string{"", "", "", "200"}},
			{"more than any host has", runtime.Resources{CPUMillis: 4096_000, MemoryBytes: 99999 << 40, SwapBytes: math.MaxInt64, Pids: 200}, [4]string{"409600000", "", "", "200"}},
			{"less", runtime.Resources{CPUMillis: 250, MemoryBytes: 128 << 20, Pids: 50}, [4]string{"25000", "134217728", "134217728", "50"}},
			{"as created", c.Resources, created},
		} {
			if swap, both := map[string]string{"603979776": "67108864", "134217728": "0"}[test.want[2]]; both && cgroup.Version() == "v2" {
				test.want[2] = swap // it counts swap apart
			}
			if err := engine.Update(t.Context(), "one", test.to); err != nil {
				t.Errorf("%s: %v", test.name, err)
				continue
			}
			for i, got := range limitsOf(t, d) {
				want := test.want[i]
				if fits := got == want || want == "" && unlimited(got) || i == 2 && got == ""; !fits {
					t.Errorf("%s: limit %d is %q, want %q", test.name, i, got, want)
				}
			}
		}
		// Memory that is in use cannot be taken away; nothing else changes then.
		err := engine.Update(t.Context(), "one", runtime.Resources{CPUMillis: 100, MemoryBytes: 32 << 20, Pids: 10})
		if p := problem.Of(err); p == nil || p.Reason != problem.LimitsRefused || p.Hint == "" {
			t.Errorf("less memory than is in use: %v, want LIMITS_REFUSED with a hint", err)
		}
		if got := limitsOf(t, d); got != created {
			t.Errorf("after it was refused: %q, want %q", got, created)
		}
		if status, err := engine.Status(t.Context(), "one"); err != nil || !status.Running || status.PID != pid {
			t.Errorf("after it was refused: %+v, %v, want pid %d", status, err, pid)
		}
		if err := engine.Delete(t.Context(), "one"); err != nil {
			t.Error(err)
		}
	})
}

// New labels leave alone what the engine keeps of its own in a record.
func TestRelabelKeepsOwnLabels(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine := open(t, d)
		c := runtime.Container{ID: "one", Image: testutil.ImageName, NetNS: netNS(t, d)(), Labels: map[string]string{"colour": "red"}}
		if err := engine.Create(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		kept := func() map[string]string {
			var record struct{ Labels map[string]string }
			if err := json.Unmarshal([]byte(d.Ctr(t, "containers", "info", "one")), &record); err != nil {
				t.Fatal(err)
			}
			delete(record.Labels, "colour")
			return record.Labels
		}
		before := kept()
		if len(before) < 3 {
			t.Fatalf("labels of the engine's own: %v", before)
		}
		if err := engine.Relabel(t.Context(), "one", map[string]string{"colour": "blue"}); err != nil {
			t.Fatal(err)
		}
		if after := kept(); !maps.Equal(before, after) {
			t.Errorf("labels were %v and are %v", before, after)
		}
		if err := engine.Delete(t.Context(), "one"); err != nil {
			t.Error(err)
		}
	})
}
