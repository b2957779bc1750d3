package projectquota

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// White-box: few filesystems have projects, and what a walk visits is the same
// on all of them.
func TestWalkVisitsAllThatHasBlocks(t *testing.T) {
	root := t.TempDir()
	var want []string
	for i := range 3 {
		dir := fmt.Sprintf("%s/wide/%d", root, i)
		if err := os.MkdirAll(dir+"/empty", 0o700); err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprintf("directory %d", i), "directory empty")
		for k := range 700 { // more than one read of the directory
			name := fmt.Sprintf("%d-%d-%s", i, k, strings.Repeat("x", 60))
			want = append(want, "file "+name)
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(os.Symlink("/etc", root+"/link"), unix.Mkfifo(root+"/fifo", 0o600)); err != nil {
		t.Fatal(err)
	}
	var got []string
	visit := func(file *os.File, directory bool) error {
		kind := "file "
		if directory {
			kind = "directory "
		}
		path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
		got = append(got, kind+filepath.Base(path))
		return err
	}
	if err := walk(t.Context(), root, visit); err != nil {
		t.Fatal(err)
	}
	if last := got[len(got)-1]; last != "directory "+filepath.Base(root) || got[len(got)-2] != "directory wide" {
		t.Errorf("the top is not last: %s after %s", last, got[len(got)-2])
	}
	want = append(want, "directory wide", "directory "+filepath.Base(root))
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("visited %d, want %d", len(got), len(want))
	}
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	visits := 0
	stop := func(*os.File, bool) error {
		if visits++; visits == 5 {
			cancel(gone)
		}
		return nil
	}
	if err := walk(ctx, root, stop); !errors.Is(err, gone) || visits != 5 {
		t.Errorf("the context ended at the fifth of %d visits: %v", visits, err)
	}
	failed := errors.New("failed")
	if err := walk(t.Context(), root, func(*os.File, bool) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("a visit failed: %v", err)
	}
}

// White-box, as above: a tenant nests directories deeper than any path, and than
// a process may have files.
func TestWalkIsBoundedByNoDepth(t *testing.T) {
	const depth = 3000
	root := t.TempDir()
	t.Cleanup(func() { flatten(t, root) })
	at, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range depth {
		if err := unix.Mkdirat(at, "d", 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(at, "d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err = errors.Join(err, unix.Close(at)); err != nil {
			t.Fatal(err)
		}
		at = next
	}
	if err := unix.Close(at); err != nil {
		t.Fatal(err)
	}
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before, most, visited := count(), 0, 0
	err = walk(t.Context(), root, func(*os.File, bool) error {
		if visited++; visited%500 == 1 {
			most = max(most, count())
		}
		return nil
	})
	if err != nil || visited != depth+1 {
		t.Errorf("visited %d of %d directories: %v", visited, depth+1, err)
	}
	if most > before+8 {
		t.Errorf("%d files are open in the walk, %d before", most, before)
	}
}

// flatten moves nested directories up next to each other, so that they can be
// removed by path.
func flatten(t *testing.T, root string) {
	t.Helper()
	for i := 0; ; i++ {
		next := filepath.Join(root, "d", "d")
		if os.Rename(next, filepath.Join(root, "e")) != nil {
			return
		}
		if err := errors.Join(os.Remove(filepath.Join(root, "d")), os.Rename(filepath.Join(root, "e"), filepath.Join(root, "d"))); err != nil {
			t.Error(err)
			return
		}
	}
}
