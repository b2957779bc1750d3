package projectquota_test

import (
	"errors"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/projectquota"
	"github.com/remotegpu/remotegpu/internal/testutil"
)

const mib = 1 << 20

// Why a filesystem cannot limit a directory is said of each kind.
func TestUnsupported(t *testing.T) {
	testutil.Require(t, testutil.Root)
	dir := filepath.Join(t.TempDir(), "fs")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, mount, kind, reason, hint string }{
		{"tmpfs", "mount -t tmpfs tmpfs " + dir, "tmpfs", "filesystem tmpfs of " + dir + " has no project quotas", "XFS"},
		{
			"ext4 without quotas", "truncate -s 16M " + dir + ".img && mkfs.ext4 -q " + dir + ".img && mount -o loop " + dir + ".img " + dir,
			"ext4", "filesystem ext4 of " + dir + " is mounted without prjquota", "tune2fs -O quota,project",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			testutil.Sh(t, test.mount)
			t.Cleanup(func() {
				if err := unix.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			})
			kind, err := projectquota.Probe(dir)
			cannot, is := errors.AsType[*projectquota.Unsupported](err)
			if !is || kind != test.kind || cannot.Filesystem != kind || cannot.Reason != test.reason || !strings.Contains(cannot.Hint, test.hint) {
				t.Errorf("%s: %+v", kind, err)
			}
			below := filepath.Join(dir, "a")
			if err := os.Mkdir(below, 0o700); err != nil {
				t.Fatal(err)
			}
			if _, err := projectquota.Probe(below); err == nil || !strings.Contains(err.Error(), "(mounted on "+dir+")") {
				t.Errorf("below it: %v", err)
			}
		})
	}
	if _, err := projectquota.Probe(filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of an absent directory: %v", err)
	}
	if err := os.Symlink(dir, dir+".link"); err != nil {
		t.Fatal(err)
	}
	if _, err := projectquota.Probe(dir + ".link"); !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
		t.Errorf("of a link: %v", err)
	}
}

// fill writes that many bytes to a file, without the capability that lifts
// limits on ext4, as environments are without it.
func fill(name string, bytes int64) error {
	result := make(chan error)
	go func() {
		goruntime.LockOSThread() // for good: the thread ends with what it gave up
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var have [2]unix.CapUserData
		err := unix.Capget(&header, &have[0])
		have[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
		if err == nil {
			err = unix.Capset(&header, &have[0])
		}
		if err == nil {
			err = write(name, bytes)
		}
		result <- err
	}()
	return <-result
}

func write(name string, bytes int64) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	block := make([]byte, 64<<10)
	for ; bytes > 0 && err == nil; bytes -= int64(len(block)) {
		_, err = file.Write(block)
	}
	return errors.Join(err, file.Sync(), file.Close())
}

func full(err error) bool { return errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.ENOSPC) }

// TestLimit is the whole life of limits, on both filesystems.
func TestLimit(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.DiskQuota)
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "fs")
			if err := os.Mkdir(root, 0o700); err != nil {
				t.Fatal(err)
			}
			testutil.QuotaFilesystem(t, kind, root, 512*mib)
			if got, err := projectquota.Probe(root); err != nil || got != kind {
				t.Fatalf("probe: %s %v", got, err)
			}
			limitLife(t, root)
		})
	}
}

func limitLife(t *testing.T, root string) {
	t.Helper()
	pool := &projectquota.Pool{First: 1000, Last: 1002}
	upper := func(name string) string { return filepath.Join(root, name, "upper") }
	work := func(name string) string { return filepath.Join(root, name, "work") }
	for _, name := range []string{"a", "b", "c", "d"} {
		if err := errors.Join(os.MkdirAll(upper(name), 0o755), os.MkdirAll(work(name), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	if quota, err := pool.Of(upper("a")); err != nil || quota != (projectquota.Quota{}) {
		t.Errorf("without a limit: %+v %v", quota, err)
	}
	// What is there already counts, links and all.
	if err := errors.Join(os.Mkdir(upper("a")+"/deep", 0o755), fill(upper("a")+"/deep/old", 2*mib), os.Symlink("/etc/passwd", upper("a")+"/link"),
		unix.Mkfifo(upper("a")+"/fifo", 0o600)); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"a", "b"} {
		if err := pool.Limit(t.Context(), 8*mib, upper(name), work(name)); err != nil {
			t.Fatal(err)
		}
		if quota, err := pool.Of(upper(name)); err != nil || quota.ID != uint32(1000+i) || quota.Limit != 8*mib || quota.Files == 0 {
			t.Errorf("%s: %+v %v", name, quota, err)
		}
	}
	if quota, err := pool.Of(upper("a")); err != nil || quota.Used < 2*mib || quota.Used > 3*mib {
		t.Errorf("what was there: %+v %v", quota, err)
	}
	if err := fill(upper("a")+"/deep/new", 4*mib); err != nil {
		t.Errorf("within the limit: %v", err)
	}
	if err := fill(upper("a")+"/more", 4*mib); !full(err) {
		t.Errorf("beyond the limit: %v", err)
	}
	if err := fill(upper("b")+"/x", 4*mib); err != nil {
		t.Errorf("the other one: %v", err)
	}
	if err := fill(filepath.Join(root, "outside"), 16*mib); err != nil {
		t.Errorf("outside: %v", err)
	}
	if err := os.Remove(upper("a") + "/more"); err != nil {
		t.Fatal(err)
	}
	// overlayfs makes files in one directory and renames them into the other.
	if err := errors.Join(os.WriteFile(work("a")+"/f", nil, 0o600), os.Rename(work("a")+"/f", upper("a")+"/deep/f")); err != nil {
		t.Errorf("rename: %v", err)
	}
	// A limit may grow, and fall below what is used.
	if err := pool.Limit(t.Context(), 64*mib, upper("a"), work("a")); err != nil {
		t.Fatal(err)
	}
	if err := fill(upper("a")+"/more", 16*mib); err != nil {
		t.Errorf("within the larger limit: %v", err)
	}
	if err := pool.Limit(t.Context(), mib, upper("a"), work("a")); err != nil {
		t.Fatal(err)
	}
	if err := fill(upper("a")+"/again", mib); !full(err) {
		t.Errorf("beyond the smaller limit: %v", err)
	}
	if err := pool.Limit(t.Context(), 0, upper("a"), work("a")); err != nil {
		t.Fatal(err)
	}
	if err := fill(upper("a")+"/again", 16*mib); err != nil {
		t.Errorf("without a limit: %v", err)
	}
	// Ids are given once, and again when nothing has them.
	if err := pool.Limit(t.Context(), mib, upper("c"), work("c")); err != nil {
		t.Fatal(err)
	}
	if err := pool.Limit(t.Context(), mib, upper("d"), work("d")); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a fourth of three: %v", err)
	}
	if stale, err := pool.Stale(root); err != nil || len(stale) > 0 {
		t.Errorf("stale: %v %v", stale, err)
	}
	if err := os.RemoveAll(filepath.Join(root, "b")); err != nil {
		t.Fatal(err)
	}
	unix.Sync() // XFS removes files when it gets to it
	testutil.Sh(t, "sync -f "+root)
	stale := await(t, func() bool { stale, err := pool.Stale(root); return err == nil && slices.Equal(stale, []uint32{1001}) })
	if !stale {
		got, err := pool.Stale(root)
		t.Fatalf("stale: %v %v", got, err)
	}
	if err := errors.Join(pool.Release(root, 1000), pool.Release(root, 1002), pool.Release(root, 1001)); err != nil {
		t.Fatal(err)
	}
	if quota, err := pool.Of(upper("c")); err != nil || quota.Limit != mib {
		t.Errorf("one that has files was released: %+v %v", quota, err)
	}
	if stale, err := pool.Stale(root); err != nil || len(stale) > 0 {
		t.Errorf("stale: %v %v", stale, err)
	}
	if err := pool.Limit(t.Context(), mib, upper("d"), work("d")); err != nil {
		t.Fatal(err)
	}
	if quota, err := pool.Of(upper("d")); err != nil || quota.ID != 1001 {
		t.Errorf("the released one: %+v %v", quota, err)
	}
	if err := pool.Lift(root, 1001); err != nil {
		t.Fatal(err)
	}
	if quota, err := pool.Of(upper("d")); err != nil || quota.Limit != 0 || quota.ID != 1001 {
		t.Errorf("lifted: %+v %v", quota, err)
	}
}

func await(t *testing.T, done func() bool) bool {
	t.Helper()
	for range 300 {
		if done() {
			return true
		}
		testutil.Sh(t, "sleep 0.1")
	}
	return false
}
