package rootfs_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/rootfs"
)

func isOurs(name string) bool { return strings.HasPrefix(name, "ours-") }

func TestNamesAreRemovedAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "ours-outside")
	write := func(name string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(outside)
	for _, name := range []string{"etc/conf.d/ours-1", "etc/conf.d/theirs", "etc/conf.d/ours-dir/ours-2"} {
		write(filepath.Join(dir, name))
	}
	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link(outside, "etc/conf.d/ours-link") // goes itself
	link(filepath.Dir(outside), "linked") // is not followed, as the last element or on the way
	link("etc", "also")
	root, err := rootfs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, place := range []string{"/linked", "/also/conf.d", "/etc/conf.d/theirs", "/nowhere", "/../../etc/conf.d"} {
		if has, err := root.HasNames(place, isOurs); has || err != nil && place != "/../../etc/conf.d" {
			t.Errorf("%s: %v, %v", place, has, err)
		}
		if err := root.RemoveNames(place, isOurs); err != nil && place != "/../../etc/conf.d" {
			t.Errorf("remove in %s: %v", place, err)
		}
	}
	if has, err := root.HasNames("/etc/conf.d", isOurs); !has || err != nil {
		t.Errorf("what is there was not seen: %v, %v", has, err)
	}
	if err := root.RemoveNames("/etc/conf.d", isOurs); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "etc/conf.d"))
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, entry := range entries {
		left = append(left, entry.Name())
	}
	if want := []string{"ours-dir", "theirs"}; !slices.Equal(left, want) {
		t.Errorf("left: %q, want %q", left, want)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("outside: %v", err)
	}
}
