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
	features := map[string]string{"ext4": "-q -O quota,project", "xfs": "-q"}[kind]
	Sh(tb, fmt.Sprintf("mkfs.%s %s %s && mount -o loop,prjquota %s %s", kind, features, image, image, dir))
	tb.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			tb.Errorf("unmount %s: %v", dir, err)
		}
	})
}
