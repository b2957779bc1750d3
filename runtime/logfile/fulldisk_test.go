package logfile_test

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime/logfile"
)

// smallDisk mounts a disk of that size ("64k") for the test.
func smallDisk(t *testing.T, size string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { testutil.Unmount(t, dir) })
	return dir
}

// makeRoom enlarges a small disk that a writer has filled, and waits until it
// has noticed.
func makeRoom(t *testing.T, dir string, w *logfile.Writer) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=4m"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); w.Lost() > 0; time.Sleep(50 * time.Millisecond) {
		w.Flush()
		if time.Now().After(deadline) {
			t.Fatal("it does not recover")
		}
	}
}
