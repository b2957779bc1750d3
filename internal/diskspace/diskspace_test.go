package diskspace_test

import (
	"math"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/diskspace"
	"github.com/remotegpu/remotegpu/internal/testutil"
)

func TestFor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for bytes, want := range map[int64]bool{0: true, 1: true, math.MaxInt64: false} {
		if room, err := diskspace.For(dir, bytes); err != nil || room.Enough != want || room.Size < room.Free {
			t.Errorf("for %d bytes: %+v, %v", bytes, room, err)
		}
	}
	if room, err := diskspace.For(filepath.Join(dir, "absent"), 1); err == nil {
		t.Errorf("in a directory that is not there: %+v", room)
	}
}

// All of what an ext4 counts as free it does not give, and of what was asked
// nothing stays taken.
func TestForExt4(t *testing.T) {
	testutil.Require(t, testutil.Root)
	dir := t.TempDir()
	testutil.Ext4(t, dir, 64<<20)
	before, err := diskspace.For(dir, 8<<20)
	if err != nil || !before.Enough {
		t.Fatalf("a new one: %+v, %v", before, err)
	}
	after, err := diskspace.For(dir, before.Free)
	if err != nil || after.Enough {
		t.Errorf("all that counts as free: %+v, %v", after, err)
	}
	unix.Sync()
	if left, err := diskspace.For(dir, 8<<20); err != nil || !left.Enough || left.Free < before.Free-1<<20 {
		t.Errorf("afterwards: %+v, before %+v, %v", left, before, err)
	}
}
