package volume_test

import (
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/runtime/volume"
)

// A tenant decides how many files are in a directory: measuring ends at its
// bounds, in the midst of one, and has read no more of it by then.
func TestSizeOfOneLargeDirectory(t *testing.T) {
	m, config := newManager(t)
	if _, err := m.Create(t.Context(), "large"); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(config.StateDir, "volumes", "large", "data")
	const files = 20000
	for i := range files {
		if err := unix.Mknod(filepath.Join(data, fmt.Sprint("a-name-that-is-quite-long-", i)), unix.S_IFREG|0o600, 0); err != nil {
			t.Fatal(err)
		}
	}
	if size, measured, err := m.Size(t.Context(), "large"); err != nil || !measured {
		t.Errorf("whole: %d, %v, %v", size, measured, err)
	}
	volume.LimitSize(m, 100, 1<<20)
	var before, after goruntime.MemStats
	goruntime.ReadMemStats(&before)
	if _, measured, err := m.Size(t.Context(), "large"); err != nil || measured {
		t.Errorf("beyond the bound: %v, %v", measured, err)
	}
	goruntime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > files*16 {
		t.Errorf("to look at 100 files of %d it took %d bytes of memory", files, used)
	}
}

// Of the directories that are to be read yet only so much is kept.
func TestSizeOfManyDirectories(t *testing.T) {
	m, config := newManager(t)
	if _, err := m.Create(t.Context(), "wide"); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(config.StateDir, "volumes", "wide", "data")
	for i := range 100 {
		dir := filepath.Join(data, fmt.Sprintf("dir%03d", i), "below")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, 64<<10), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	volume.LimitSize(m, 301, 606) // the directory itself, then 100 paths of 6 bytes, then one of 12 in place of one of 6
	if size, measured, err := m.Size(t.Context(), "wide"); err != nil || !measured || size < 100*64<<10 {
		t.Errorf("within the bounds: %d, %v, %v", size, measured, err)
	}
	volume.LimitSize(m, 301, 605)
	if _, measured, err := m.Size(t.Context(), "wide"); err != nil || measured {
		t.Errorf("more paths than are kept: %v, %v", measured, err)
	}
	volume.LimitSize(m, 300, 606)
	if _, measured, err := m.Size(t.Context(), "wide"); err != nil || measured {
		t.Errorf("more files than are looked at: %v, %v", measured, err)
	}
}
