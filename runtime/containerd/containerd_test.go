//nolint:thelper // what both runs are tests, and a failure should name their lines
package containerd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/containerd"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// both runs a test on each containerd that is supported.
func both(t *testing.T, test func(t *testing.T, d *testutil.ContainerdDaemon)) {
	t.Helper()
	for _, need := range []testutil.Need{testutil.Containerd, testutil.Containerd2} {
		t.Run(string(need), func(t *testing.T) {
			t.Parallel() // it waits most of the time
			d := testutil.StartContainerd(t, need)
			d.Import(t, testutil.TestImage(t, testutil.ImageOptions{Labels: map[string]string{"io.remotegpu.min-memory": "64Mi"}}))
			test(t, d)
		})
	}
}

func open(tb testing.TB, d *testutil.ContainerdDaemon) *containerd.Engine {
	tb.Helper()
	engine, err := containerd.New(containerd.Config{
		Address: d.Address, Namespace: d.Namespace, CgroupParent: d.Cgroup, LogDir: logs(d), FIFODir: filepath.Join(d.Dir, "fifo"),
	})
	if err != nil {
		tb.Fatalf("open engine: %v", err)
	}
	tb.Cleanup(func() {
		if err := engine.Close(); err != nil {
			tb.Errorf("close engine: %v", err)
		}
	})
	return engine
}

// digestOf is the digest of the image that every daemon has.
func digestOf(tb testing.TB, d *testutil.ContainerdDaemon) string {
	tb.Helper()
	image, err := open(tb, d).Image(tb.Context(), testutil.ImageName)
	if err != nil {
		tb.Fatal(err)
	}
	return image.Digest
}

func logs(d *testutil.ContainerdDaemon) string { return filepath.Join(d.Dir, "logs") }

// netNS makes network namespaces, each pinned by a file until the test ends.
func netNS(tb testing.TB, d *testutil.ContainerdDaemon) func() string {
	tb.Helper()
	var count atomic.Int64
	return func() string {
		path := filepath.Join(d.Dir, fmt.Sprintf("netns-%d", count.Add(1)))
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			tb.Fatalf("make file for network namespace: %v", err)
		}
		testutil.Sh(tb, "unshare --net="+path+" true")
		tb.Cleanup(func() { testutil.Unmount(tb, path) })
		return path
	}
}

// leftovers is what containers have left, their logs and pipes included.
func leftovers(tb testing.TB, d *testutil.ContainerdDaemon) []string {
	tb.Helper()
	var left []string
	for _, entry := range d.Leftovers(tb) {
		if filepath.Dir(entry) != "mount "+d.Dir { // a network namespace of the test's
			left = append(left, entry)
		}
	}
	for _, pattern := range []string{filepath.Join(logs(d), "*"), filepath.Join(d.Dir, "fifo", "*", "*")} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			tb.Fatalf("list %s: %v", pattern, err)
		}
		left = append(left, files...)
	}
	return left
}

func TestEngine(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		runtimetest.Engine(t, func(t *testing.T) runtimetest.EngineSetup {
			t.Helper()
			return runtimetest.EngineSetup{
				Engine: open(t, d), Reopen: func() runtime.Engine { return open(t, d) },
				Image: testutil.ImageName, Digest: digestOf(t, d), NetNS: netNS(t, d), Logs: logs(d),
				Leftovers: func() []string { return leftovers(t, d) },
				Silence:   func(t *testing.T, id string) func() { t.Helper(); return silence(t, d, id) },
				Pause:     func(t *testing.T, id string) { t.Helper(); d.Ctr(t, "tasks", "pause", id) },
			}
		})
	})
}
