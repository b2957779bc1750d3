//nolint:thelper // what both runs are tests, and a failure should name their lines
package containerd_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/containerd"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

func start(tb testing.TB, engine *containerd.Engine, c runtime.Container) int {
	tb.Helper()
	if err := engine.Create(tb.Context(), c); err != nil {
		tb.Fatal(err)
	}
	pid, err := engine.Start(tb.Context(), c)
	if err != nil {
		tb.Fatal(err)
	}
	return pid
}

func stop(tb testing.TB, engine *containerd.Engine, id string) runtime.Exit {
	tb.Helper()
	exit, err := engine.Stop(tb.Context(), id, 30*time.Second)
	if err != nil {
		tb.Fatal(err)
	}
	return exit
}

// run runs testprog in container "one" and returns what it said.
func run(tb testing.TB, engine *containerd.Engine, args ...string) string {
	tb.Helper()
	result, err := engine.Run(tb.Context(), "one", runtime.Command{
		Argv: append([]string{"testprog"}, args...), Timeout: 10 * time.Minute, OutputLimit: 1 << 20,
	})
	if err != nil {
		tb.Fatalf("run %q: %v", args, err)
	}
	return strings.TrimSpace(string(result.Stdout) + string(result.Stderr))
}

// What a process sees of its limits and its confinement.
func TestSpec(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine := open(t, d)
		source := filepath.Join(d.Dir, "shared")
		testutil.Sh(t, "mkdir -p "+source+"; echo -n shared > "+source+"/file")
		c := runtime.Container{
			ID: "one", Image: testutil.ImageName, Hostname: "one", NetNS: netNS(t, d)(),
			Resources: runtime.Resources{
				CPUMillis: 500, MemoryBytes: 128 << 20, SwapBytes: 64 << 20, Pids: 40, ShmBytes: 32 << 20,
				Ulimits: []runtime.Ulimit{{Name: "nofile", Soft: 2000, Hard: 3000}, {Name: "core", Soft: 0, Hard: 0}},
			},
			Mounts: []volume.Staged{
				{FSType: "bind", Source: filepath.Join(source, "file"), Target: "/data/below/file", Options: []string{"bind", "ro"}},
				{FSType: "bind", Source: source, Target: "/data/below", Options: []string{"rbind"}},
				{FSType: "tmpfs", Source: "tmpfs", Target: "/scratch", Options: []string{"size=1048576", "nosuid"}},
			},
		}
		start(t, engine, c)
		for what, want := range map[string]string{
			"cat /data/below/file":              "shared",
			"write /data/below/file x":          "testprog: open /data/below/file: read-only file system",
			"write /data/below/new x":           "",
			"statfs /scratch":                   "type=1021994 size=1048576",
			"statfs /dev/shm":                   "type=1021994 size=33554432",
			"statfs /run":                       "type=1021994 size=67108864",
			"write /run/x 1":                    "",
			"write /proc/sys/kernel/hostname x": "testprog: open /proc/sys/kernel/hostname: read-only file system",
			"write /sys/x x":                    "testprog: open /sys/x: read-only file system",
			"hostname":                          "one",
		} {
			if got := run(t, engine, strings.Fields(what)...); got != want {
				t.Errorf("%s: %q, want %q", what, got, want)
			}
		}
		// Nobody leaves the project of a writable layer, or passes for a neighbour.
		if got := run(t, engine, "denied-ioctls"); got != "0x5820:4/4 0x6602:4/4" {
			t.Errorf("denied ioctls: %s", got)
		}
		if got := leaveProject(t, engine, "one", "/"); got != "" {
			t.Errorf("leaves its project: %s", got)
		}
		limits := run(t, engine, "limits")
		if !strings.Contains(strings.Join(strings.Fields(limits), " "), " 3000 files") {
			t.Errorf("limits:\n%s", limits)
		}
		status := run(t, engine, "cat", "/proc/1/status", ";", "cat", "/proc/self/status")
		for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t00000000a80425fb", "CapEff:\t00000000a80425fb"} {
			if strings.Count(status, want+"\n") != 2 {
				t.Errorf("first process and command: want %q in both of\n%s", want, status)
			}
		}
		// containerd's own is lower, where the test may lower it.
		for _, process := range []string{"1", "self"} {
			if got := run(t, engine, "cat", "/proc/"+process+"/oom_score_adj"); got != "0" {
				t.Errorf("oom_score_adj of process %s is %s, want 0", process, got)
			}
		}
		if got := run(t, engine, "interfaces"); strings.Contains(got, "eth") || !strings.Contains(got, "lo ") {
			t.Errorf("interfaces: %s", got)
		}
		cgroups(t, d)
		if got := run(t, engine, "fork", "200"); !strings.Contains(got, "resource temporarily unavailable") {
			t.Errorf("200 children of 40: %s", got)
		}
	})
}

// leaveProject has a container give a file to no project, and returns what came
// of that unless all of it was denied.
func leaveProject(t *testing.T, engine *containerd.Engine, id, path string) string {
	t.Helper()
	result, err := engine.Run(t.Context(), id, runtime.Command{Argv: []string{"/bin/testprog", "leave-project", path}, OutputLimit: 4096})
	if err != nil {
		t.Fatal(err)
	}
	if result.ExitCode == 1 && strings.Count(string(result.Stdout), " denied\n") == 4 {
		return ""
	}
	return fmt.Sprintf("exit code %d\n%s%s", result.ExitCode, result.Stdout, result.Stderr)
}

// cgroups checks the limits of container one where the kernel keeps them.
func cgroups(t *testing.T, d *testutil.ContainerdDaemon) {
	t.Helper()
	files := map[string]string{
		"cpu@cpu.cfs_quota_us": "50000", "cpu@cpu.shares": "512", "memory@memory.limit_in_bytes": "134217728",
		"memory@memory.memsw.limit_in_bytes": "201326592", "pids@pids.max": "40",
	}
	if cgroup.Version() == "v2" {
		files = map[string]string{
			"@cpu.max": "50000 100000", "@cpu.weight": "20", "@memory.max": "134217728", "@memory.swap.max": "67108864", "@pids.max": "40",
		}
	}
	for file, want := range files {
		controller, name, _ := strings.Cut(file, "@")
		path := filepath.Join("/sys/fs/cgroup", controller, d.Cgroup, "one", name)
		swap := strings.Contains(name, "memsw") || strings.Contains(name, "swap") // not every kernel accounts it
		if got := testutil.Sh(t, "cat "+path+" 2>/dev/null || true"); got != want && (got != "" || !swap) {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
}

// A container without a network namespace gets one of its own, not the host's.
func TestNoNetNSIsNotTheHosts(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine := open(t, d)
		c := runtime.Container{ID: "one", Image: testutil.ImageName, AllowNewPrivileges: true}
		start(t, engine, c)
		// containerd's own is lower, where the test may lower it.
		for _, process := range []string{"1", "self"} {
			if got := run(t, engine, "cat", "/proc/"+process+"/oom_score_adj"); got != "0" {
				t.Errorf("oom_score_adj of process %s is %s, want 0", process, got)
			}
		}
		if got := run(t, engine, "interfaces"); strings.Count(got, "\n") != 0 || !strings.HasPrefix(got, "lo ") {
			t.Errorf("interfaces: %s", got)
		}
		if status := run(t, engine, "cat", "/proc/self/status"); !strings.Contains(status, "NoNewPrivs:\t0\n") {
			t.Errorf("new privileges were allowed, and yet:\n%s", status)
		}
		runtimetest.Eventually(t, "the container is deleted", func() bool { return engine.Delete(t.Context(), "one") == nil })
	})
}
