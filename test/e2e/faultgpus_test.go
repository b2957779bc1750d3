package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/test/fakenvml"
)

// pretendUnified has this process, and what it starts, find the file by which the
// driver's cgroup v2 is known, wherever this host has its cgroups. The test must
// be isolated.
func pretendUnified(tb testing.TB) {
	tb.Helper()
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.controllers"); err == nil {
		return
	}
	made := tb.TempDir()
	if err := unix.Mount("none", made, "tmpfs", 0, ""); err != nil {
		tb.Fatal(err)
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		tb.Fatal(err)
	}
	for _, entry := range entries {
		from, to := filepath.Join(root, entry.Name()), filepath.Join(made, entry.Name())
		if target, err := os.Readlink(from); err == nil {
			err = os.Symlink(target, to)
			if err != nil {
				tb.Fatal(err)
			}
			continue
		}
		if err := os.Mkdir(to, 0o755); err != nil {
			tb.Fatal(err)
		}
		if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
			tb.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(made, "cgroup.controllers"), nil, 0o444); err != nil {
		tb.Fatal(err)
	}
	if err := unix.Mount(made, root, "", unix.MS_MOVE, ""); err != nil {
		tb.Fatal(err)
	}
}

// sharedGPUScenarios are operations on an environment that has a share of a GPU,
// which is held as its percentage of compute decides: by MPS, or "", by the
// driver. right says whether what holds it is as it should be.
func sharedGPUScenarios(f *faultNode, percent string, right func(testing.TB, bool) string) []faultScenario {
	gpu := func(mebibytes int) string {
		return fmt.Sprintf(`"gpu":{"mode":"GPU_MODE_VGPU","memory_bytes":"%d"%s}`, mebibytes<<20, percent)
	}
	create := `{"request_id":%s,"wait":"60s","name":"one","spec":{"image":"` + f.Image + `","command":["banner",":8080","one"],` + gpu(1024) + `,` +
		`"ports":[{"service_type":"SERVICE_TYPE_CUSTOM","internal_port":8080}]}}`
	on := func(more string) string { return `{"request_id":%s,"wait":"60s","environment":"one"` + more + `}` }
	update := func(mebibytes int) string {
		return on(`,"update_mask":"spec.gpu","restart":true,"timeout":"0s","spec":{` + gpu(mebibytes) + `}`)
	}
	exists := existing(create)
	is := func(state string) func(testing.TB, *faultNode) {
		return func(tb testing.TB, f *faultNode) {
			tb.Helper()
			env := f.environment(tb)
			if (env == nil) != (state == "") || env != nil && env.State != state {
				tb.Errorf("the environment is %+v, want %q", env, state)
			}
			what := "?"
			Eventually(tb, "what holds its share to be right", func() bool {
				if what = right(tb, state == stateRunning); what != "" {
					f.must(tb, "NodeService/Reconcile", `{}`)
				}
				return what == ""
			})
		}
	}
	scenarios := []faultScenario{
		{kind: "environment.create", before: nothing, method: "EnvironmentService/CreateEnvironment", body: create, more: is(stateRunning)},
		{kind: "environment.stop", before: exists(stateRunning), method: "EnvironmentService/StopEnvironment", body: on(`,"timeout":"1s"`), keep: true, more: is(stateStopped)},
		{kind: "environment.start", before: exists(stateStopped), method: "EnvironmentService/StartEnvironment", body: on(""), keep: true, more: is(stateRunning)},
		{
			kind: "environment.update", method: "EnvironmentService/UpdateEnvironment", body: update(2048), keep: true, more: is(stateRunning),
			before: then(exists(stateRunning), func(tb testing.TB, f *faultNode) {
				tb.Helper()
				f.must(tb, "EnvironmentService/UpdateEnvironment", fmt.Sprintf(update(1024), `""`))
			}),
		},
		{kind: "environment.delete", before: exists(stateRunning), method: "EnvironmentService/DeleteEnvironment", body: on(`,"timeout":"0s","force":true`), more: is("")},
	}
	for i := range scenarios {
		scenarios[i].only = func(p faultPoint) bool {
			return strings.HasPrefix(p.name, "gpu ") || strings.HasPrefix(p.name, "mps ") || strings.Contains(p.name, "MPS")
		}
	}
	return scenarios
}

// The daemon is killed at each step of what has a share of a GPU begin, change
// and end, held by MPS and by the driver: processes, cgroups, directories, limits
// and the GPU's mode are as they should be then, and nothing leaks. Without
// REMOTEGPU_TEST_LONG the steps are those of GPUs alone.
func TestFaultTableSharedGPUs(t *testing.T) {
	t.Parallel() // beside the others
	testutil.Require(t, testutil.Root, testutil.IPTables, usual, testutil.Programs, testutil.NVIDIA)
	if !testutil.Isolated(t) {
		return
	}
	pretendUnified(t)
	containerd := testutil.StartContainerd(t, usual)
	driver := newSharedGPU(t, containerd)
	f := testDaemonOn(t, containerd, driver.config()+"shared_by = \"time-slicing\"\nmemory_limits = true\nhand_over = 1\n")
	f.left = func(tb testing.TB) string { tb.Helper(); return driver.left(tb, containerd) }
	pid := filepath.Join(containerd.Dir, "run/gpu/mps", fakenvml.UUID(0), "pipe/pid")
	for _, by := range []struct {
		name, percent string
		right         func(testing.TB, bool) string
	}{
		{"mps", `,"compute_percent":30`, func(tb testing.TB, runs bool) string {
			tb.Helper()
			if !runs {
				return f.left(tb)
			}
			if text, err := os.ReadFile(pid); err != nil {
				return err.Error()
			} else if _, err := os.Stat("/proc/" + strings.TrimSpace(string(text))); err != nil {
				return err.Error()
			}
			return ""
		}},
		{"driver", "", func(tb testing.TB, runs bool) string {
			tb.Helper()
			left := f.left(tb)
			if runs && strings.Count(left, "a limit of") == 1 && !strings.Contains(left, "\n") {
				return ""
			} else if runs {
				return "not one limit alone: " + left
			}
			return left
		}},
	} {
		t.Run(by.name, func(t *testing.T) {
			f.struck = make(map[string]bool)
			for _, s := range sharedGPUScenarios(f, by.percent, by.right) {
				t.Run(s.kind, func(t *testing.T) { f.table(t, s) })
			}
		})
	}
}
