package volume_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// deepen makes a chain of directories below dir, as a tenant can: by names
// relative to the last one, so that no path is too long.
func deepen(t *testing.T, dir, name string, depth int) {
	t.Helper()
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range depth {
		if err := unix.Mkdirat(at, name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(at)
		at = next
	}
	_ = unix.Close(at)
}

// limitFiles lets the process open few more files, for the time of a test.
func limitFiles(t *testing.T, files uint64) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: files, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	})
}

// A tenant decides how deep the directories of its volume are nested. Removing
// them must not cost the node a descriptor per level.
func TestDeleteOfDeepDirectories(t *testing.T) {
	m, config := newManager(t)
	ctx := t.Context()
	if _, err := m.Create(ctx, "deep"); err != nil {
		t.Fatal(err)
	}
	volumes := filepath.Join(config.StateDir, "volumes")
	data := filepath.Join(volumes, "deep", "data")
	// Links, names that removal might choose itself, and several branches.
	outside := filepath.Join(config.StateDir, "outside")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"a", "0", "data"} {
		deepen(t, data, name, 1000)
		if err := os.Symlink(config.StateDir, filepath.Join(data, name, "link")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(data, name, strings.Repeat("1", i+1)), []byte("x"), 0); err != nil {
			t.Fatal(err)
		}
	}
	limitFiles(t, 128)
	if err := m.Delete(ctx, "deep", unused); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(volumes); err != nil || len(entries) != 0 {
		t.Errorf("left below volumes: %v, %v", entries, err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
	_, err := m.Get(ctx, "deep")
	wantReason(t, "afterwards", err, problem.VolumeNotFound)
}

// What a crash left is removed in the same way, and one that cannot be removed
// keeps no other.
func TestRemoveDeletedOfDeepDirectories(t *testing.T) {
	m, config := newManager(t)
	volumes := filepath.Join(config.StateDir, "volumes")
	for _, name := range []string{"..deleted-1", "..deleted-2"} {
		if err := os.MkdirAll(filepath.Join(volumes, name, "data"), 0o700); err != nil {
			t.Fatal(err)
		}
		deepen(t, filepath.Join(volumes, name, "data"), "d", 1000)
	}
	limitFiles(t, 128)
	if err := m.RemoveDeleted(t.Context()); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(volumes); err != nil || len(entries) != 0 {
		t.Errorf("left below volumes: %v, %v", entries, err)
	}
}

// fading is a context that ends when it has been asked a few times.
type fading struct {
	context.Context //nolint:containedctx // it is one
	left            int
	end             context.CancelCauseFunc
}

var errFaded = errors.New("faded")

func (f *fading) Err() error {
	if f.left--; f.left == 0 {
		f.end(errFaded)
	}
	return f.Context.Err()
}

// A daemon that stops does not remove the files of a volume to the last one.
func TestRemoveDeletedEndsWithItsContext(t *testing.T) {
	m, config := newManager(t)
	data := filepath.Join(config.StateDir, "volumes", "..deleted-1", "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if err := os.WriteFile(filepath.Join(data, strconv.Itoa(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	if err := m.RemoveDeleted(&fading{ctx, 10, cancel}); !errors.Is(err, errFaded) {
		t.Errorf("got %v, want the cause of its end", err)
	}
	if entries, err := os.ReadDir(data); err != nil || len(entries) == 0 || len(entries) == 20 {
		t.Errorf("%d of 20 files are left: %v", len(entries), err)
	}
	if err := m.RemoveDeleted(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(data)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

// The names on the way down add up with the square of the depth.
func TestSizeOfDeepDirectoriesIsNotMeasured(t *testing.T) {
	m, config := newManager(t)
	if _, err := m.Create(t.Context(), "deep"); err != nil {
		t.Fatal(err)
	}
	deepen(t, filepath.Join(config.StateDir, "volumes", "deep", "data"), strings.Repeat("n", 250), 40)
	size, measured, err := m.Size(t.Context(), "deep")
	if err != nil || measured || size != 0 {
		t.Errorf("Size() = %d, %v, %v", size, measured, err)
	}
}
