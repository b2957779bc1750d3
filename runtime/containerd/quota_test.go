//nolint:thelper // what both runs are tests, and a failure should name their lines
package containerd_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/projectquota"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/containerd"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// A limit that cannot be enforced is refused with its cause, and leaves
// nothing.
func TestDiskQuotaRefused(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		plain, err := open(t, d).DiskQuota(t.Context())
		if err != nil || plain.Path != filepath.Join(d.Dir, "root", "io.containerd.snapshotter.v1.overlayfs") {
			t.Errorf("quota %+v, %v", plain, err)
		}
		if plain.Supported {
			t.Fatal("the directory for temporary files has project quotas: set TMPDIR to one that has none")
		}
		engine, err := containerd.New(containerd.Config{Address: d.Address, Namespace: d.Namespace, CgroupParent: d.Cgroup, Snapshotter: "native"})
		if err != nil {
			t.Fatal(err)
		}
		defer engine.Close()
		for _, e := range []*containerd.Engine{open(t, d), engine} {
			quota, err := e.DiskQuota(t.Context())
			if err != nil || quota.Supported || quota.Reason == "" || quota.Hint == "" || quota.Method != "" {
				t.Errorf("quota %+v, %v", quota, err)
			}
			if e == engine && !strings.Contains(quota.Reason, "copies") { // also where containerd does not tell of its directory
				t.Errorf("snapshotter native: %+v", quota)
			}
		}
		c := runtime.Container{ID: "big", Image: testutil.ImageName, NetNS: netNS(t, d)(), Resources: runtime.Resources{DiskBytes: 8 << 20}}
		p := problem.Of(open(t, d).Create(t.Context(), c))
		if p == nil || p.Reason != problem.DiskQuotaUnsupported || p.Field != "spec.resources.disk_bytes" || !strings.Contains(p.Message, plain.Reason) {
			t.Errorf("create: %+v", p)
		}
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}

// A writable layer is held to its limit from its first process on; the limit
// can be changed at a start and goes with the container.
func TestDiskQuota(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.DiskQuota, testutil.Containerd, testutil.Containerd2)
	for _, kind := range []string{"ext4", "xfs"} {
		for _, need := range []testutil.Need{testutil.Containerd, testutil.Containerd2} {
			t.Run(kind+"/"+string(need), func(t *testing.T) {
				dir := t.TempDir()
				testutil.QuotaFilesystem(t, kind, dir, 1<<30)
				t.Setenv("TMPDIR", dir) // what a containerd is started in
				d := testutil.StartContainerd(t, need)
				d.Import(t, testutil.TestImage(t, testutil.ImageOptions{}))
				diskQuota(t, d, kind)
			})
		}
	}
}

func diskQuota(t *testing.T, d *testutil.ContainerdDaemon, kind string) {
	engine := open(t, d)
	quota, err := engine.DiskQuota(t.Context())
	if err != nil || !quota.Supported || quota.Filesystem != kind || quota.Method == "" || quota.Reason != "" {
		t.Fatalf("quota %+v, %v", quota, err)
	}
	copies, err := containerd.New(containerd.Config{Address: d.Address, Namespace: d.Namespace, CgroupParent: d.Cgroup, Snapshotter: "native"})
	if err != nil {
		t.Fatal(err)
	}
	defer copies.Close()
	if quota, err := copies.DiskQuota(t.Context()); err != nil || quota.Supported || !strings.Contains(quota.Reason, "copies") {
		t.Errorf("snapshotter native: %+v, %v", quota, err)
	}
	ns := netNS(t, d)
	limited := func(id string, bytes int64) runtime.Container {
		return runtime.Container{ID: id, Image: testutil.ImageName, NetNS: ns(), Resources: runtime.Resources{DiskBytes: bytes}}
	}
	write := func(id, path string, mib int) bool {
		t.Helper()
		result, err := engine.Run(t.Context(), id, runtime.Command{Argv: []string{"/bin/testprog", "fill", path, strconv.Itoa(mib)}, OutputLimit: 4096})
		if err != nil {
			t.Fatal(err)
		}
		return result.ExitCode == 0
	}
	used := func(id string) int64 {
		t.Helper()
		bytes, err := engine.DiskUsage(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return bytes
	}
	small, other, free := limited("small", 8<<20), limited("other", 32<<20), limited("free", 0)
	for _, c := range []runtime.Container{small, other, free} {
		start(t, engine, c)
	}
	if !write("small", "/a", 4) || write("small", "/b", 8) || !write("other", "/b", 16) || !write("free", "/b", 48) {
		t.Error("the limits are not in force")
	}
	for _, path := range []string{"/", "/a"} {
		if got := leaveProject(t, engine, "small", path); got != "" {
			t.Errorf("%s leaves its project: %s", path, got)
		}
	}
	if write("small", "/b", 8) {
		t.Error("the limit is not in force any more")
	}
	if bytes := used("small"); bytes < 4<<20 || bytes > 9<<20 {
		t.Errorf("small uses %d bytes", bytes)
	}
	// Copied up from the image, moved, linked: all within one project.
	for _, args := range [][]string{{"rm", "/b"}, {"write", "/etc/passwd", "x"}} {
		if result, err := engine.Run(t.Context(), "small", runtime.Command{Argv: append([]string{"/bin/testprog"}, args...), OutputLimit: 4096}); err != nil || result.ExitCode != 0 {
			t.Errorf("%v: %+v %v", args, result, err)
		}
	}
	// More, then less than is used, then none; one that had none gets one.
	again := func(c runtime.Container, bytes int64) {
		t.Helper()
		stop(t, engine, c.ID)
		c.Resources.DiskBytes = bytes
		if _, err := open(t, d).Start(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	again(small, 64<<20)
	if !write("small", "/c", 32) {
		t.Error("the larger limit is not in force")
	}
	again(small, 1<<20)
	if write("small", "/d", 1) {
		t.Error("the smaller limit is not in force")
	}
	// What is full can be emptied, however often it was started.
	again(small, 1<<20)
	for _, name := range []string{"/a", "/c", "/d"} {
		if result, err := engine.Run(t.Context(), "small", runtime.Command{Argv: []string{"/bin/testprog", "rm", name}, OutputLimit: 4096}); err != nil || result.ExitCode != 0 {
			t.Errorf("remove %s: %+v %v", name, result, err)
		}
	}
	if bytes := used("small"); bytes > 1<<20 {
		t.Errorf("small uses %d bytes of 1 MiB", bytes)
	}
	// A layer that takes the place of another one has the limit before a start.
	stop(t, engine, "small")
	if _, err := engine.CommitLayer(t.Context(), "small", "kept"); err != nil {
		t.Fatal(err)
	}
	if limit := layerLimit(t, d, "small"); limit < 1<<20 || limit > 2<<20 {
		t.Errorf("on top of a snapshot the limit is %d", limit)
	}
	if err := engine.ResetLayer(t.Context(), "small", "kept"); err != nil {
		t.Fatal(err)
	}
	if limit := layerLimit(t, d, "small"); limit < 1<<20 || limit > 2<<20 {
		t.Errorf("rolled back the limit is %d", limit)
	}
	if _, err := engine.Start(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	again(small, 0)
	if !write("small", "/d", 64) {
		t.Error("a limit is in force that was lifted")
	}
	again(free, 50<<20)
	if write("free", "/c", 8) {
		t.Error("what was there before the limit does not count")
	}
	if parts := parts(t, engine); len(parts) > 0 {
		t.Errorf("parts %q", parts)
	}
	// What a crash between the removal of a layer and the end of its limit leaves.
	lost := filepath.Join(d.Dir, "lost")
	pool := projectquota.Pool{First: 0x52470000, Last: 0x5247ffff}
	if err := errors.Join(os.Mkdir(lost, 0o700), pool.Limit(t.Context(), 1<<20, lost), os.Remove(lost)); err != nil {
		t.Fatal(err)
	}
	runtimetest.Eventually(t, "its limit is found", func() bool {
		all := parts(t, engine)
		return len(all) == 1 && strings.HasPrefix(all[0], "quota ")
	})
	part := runtime.Part{Kind: runtime.FoundQuota, Name: strings.TrimPrefix(parts(t, engine)[0], "quota ")}
	if err := engine.RemovePart(t.Context(), part); err != nil {
		t.Error(err)
	}
	if err := engine.RemovePart(t.Context(), runtime.Part{Kind: runtime.FoundQuota, Name: "7"}); err == nil {
		t.Error("a project of others was released")
	}
	for _, id := range []string{"small", "other", "free"} {
		if err := engine.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if err := engine.RemoveSnapshot(t.Context(), "kept"); err != nil {
		t.Error(err)
	}
	if left := append(parts(t, engine), leftovers(t, d)...); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// layerLimit is the limit of a container's writable layer in bytes, as the
// filesystem has it.
func layerLimit(t *testing.T, d *testutil.ContainerdDaemon, id string) int64 {
	t.Helper()
	c, err := client.New(d.Address, client.WithDefaultNamespace(d.Namespace))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	mounts, err := c.SnapshotService("").Mounts(namespaces.WithNamespace(t.Context(), d.Namespace), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, option := range mounts[0].Options {
		if dir, found := strings.CutPrefix(option, "upperdir="); found {
			pool := projectquota.Pool{First: 0x52470000, Last: 0x5247ffff}
			quota, err := pool.Of(dir)
			if err != nil {
				t.Fatal(err)
			}
			return quota.Limit
		}
	}
	t.Fatalf("no writable layer: %+v", mounts)
	return 0
}
