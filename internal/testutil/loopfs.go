package testutil

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// QuotaFilesystem makes a filesystem of a kind ("ext4", "xfs") in a file and
// mounts it with project quotas on dir, until the test ends. size is in bytes.
func QuotaFilesystem(tb testing.TB, kind, dir string, size int64) {
	tb.Helper()
	loopFilesystem(tb, map[string]string{"ext4": "ext4 -q -O quota,project", "xfs": "xfs -q"}[kind], "loop,prjquota", dir, size)
}

// Ext4 mounts an ext4 of that size in bytes, as mkfs makes it, on dir for as
// long as the test lives.
func Ext4(tb testing.TB, dir string, size int64) {
	tb.Helper()
	Require(tb, Root)
	loopFilesystem(tb, "ext4 -q", "loop", dir, size)
}

func loopFilesystem(tb testing.TB, mkfs, options, dir string, size int64) {
	tb.Helper()
	image := filepath.Join(tb.TempDir(), "disk")
	file, err := os.Create(image)
	if err != nil {
		tb.Fatal(err)
	}
	if err := file.Truncate(size); err != nil {
		tb.Fatal(err)
	}
	if err := file.Close(); err != nil {
		tb.Fatal(err)
	}
	Sh(tb, fmt.Sprintf("mkfs.%s %s && mount -o %s %s %s", mkfs, image, options, image, dir))
	tb.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			tb.Errorf("unmount %s: %v", dir, err)
		}
	})
}
