package sqlite_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/sqlite"
	"github.com/remotegpu/remotegpu/internal/testutil"
)

// What was reserved is there after somebody has filled the disk to the last
// byte, and is not for ever.
func TestReservedRoomOutlivesAFullDisk(t *testing.T) {
	testutil.Require(t, testutil.Root)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	db := open(t, filepath.Join(dir, "db"), first)
	if err := insert(t.Context(), db, "first"); err != nil {
		t.Fatal(err)
	}
	for range 3 { // nothing is taken twice
		if err := db.Reserve(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if size := dirSize(t, dir); size > 4*sqlite.ReservedBytes {
		t.Errorf("it takes %d bytes", size)
	}
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { filler.Close() })
	for block := bytes.Repeat([]byte{1}, 1<<20); len(block) > 0; {
		if _, err := filler.Write(block); errors.Is(err, unix.ENOSPC) {
			block = block[:len(block)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
	const least, most = 300, 100_000 // writes that what stops and deletes environments may count on; of a disk's worth
	text := string(bytes.Repeat([]byte("x"), 3000))
	done := 0
	for ; done < most; done++ {
		if err = insert(t.Context(), db, strconv.Itoa(done)+text); err != nil {
			break
		}
	}
	if done < least || problem.Of(err).Reason != problem.DiskFull {
		t.Errorf("%d writes on a full disk, then %v", done, err)
	}
	if err := db.Reserve(t.Context()); problem.Of(err) == nil || problem.Of(err).Reason != problem.DiskFull {
		t.Errorf("reserved on a full disk: %v", err)
	}
	// Room again.
	if err := filler.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if err := db.Reserve(t.Context()); err != nil {
		t.Error(err)
	}
	if err := insert(t.Context(), db, "last"); err != nil || count(t, db) != done+2 {
		t.Errorf("%d rows, %v", count(t, db), err)
	}
}

// dirSize is how many bytes the files of a directory take.
func dirSize(t *testing.T, dir string) (size int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		var stat unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, entry.Name()), &stat); err != nil {
			t.Fatal(err)
		}
		size += stat.Blocks * 512
	}
	return size
}
