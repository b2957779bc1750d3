package containerd

// White box: images with as many layers as this needs take long to make.

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/rootfs"
	"github.com/remotegpu/remotegpu/internal/testutil"
)

// overlay is a mount as containerd's overlayfs snapshotter describes it.
func overlay(t *testing.T, layers int) (mount.Mount, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "io.containerd.snapshotter.v1.overlayfs", "snapshots")
	upper := filepath.Join(dir, "upper", "fs")
	var lower []string
	for i := range layers {
		lower = append(lower, filepath.Join(dir, fmt.Sprint(i), "fs"))
	}
	for _, dir := range append(slices.Clone(lower), upper, filepath.Join(dir, "upper", "work")) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i, dir := range lower {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("file", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
		"index=off", "workdir=" + filepath.Join(dir, "upper", "work"), "upperdir=" + upper, "lowerdir=" + strings.Join(lower, ":"),
	}}, upper
}

// mountedBelow are the mounts of this process that have something to do with a
// directory.
func mountedBelow(t *testing.T, dir string) (found []string) {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(table), " /proc ") {
		t.Fatal("the table of mounts is not this process's")
	}
	for line := range strings.Lines(string(table)) {
		if strings.Contains(line, dir) {
			found = append(found, line)
		}
	}
	return found
}

func TestDetachedLayer(t *testing.T) {
	testutil.Require(t, testutil.Root)
	for _, layers := range []int{1, 3, 60} {
		m, upper := overlay(t, layers)
		if size := len(strings.Join(m.Options, ",")); layers == 60 && size < 4096 {
			t.Fatalf("%d bytes are too few for this test", size)
		}
		var mounts layerMounts
		root, err := mounts.acquire("a", []mount.Mount{m})
		if err != nil {
			t.Fatalf("%d layers: %v", layers, err)
		}
		again, err := mounts.acquire("a", []mount.Mount{{Type: "it is mounted already"}})
		if err != nil {
			t.Fatalf("%d layers: %v", layers, err)
		}
		for i := range layers {
			if _, err := again.Stat(fmt.Sprint("file", i), true); err != nil {
				t.Errorf("%d layers: %v", layers, err)
			}
		}
		if err := mounts.release("a", root); err != nil {
			t.Error(err)
		}
		if _, err := again.Stat("file0", true); err != nil {
			t.Errorf("after one of two was released: %v", err)
		}
		if found := mountedBelow(t, upper); len(found) > 0 {
			t.Errorf("it is mounted where others see it: %q", found)
		}
		if err := mounts.release("a", again); err != nil {
			t.Error(err)
		}
		if len(mounts.mounted) != 0 {
			t.Errorf("%d mounts are remembered", len(mounts.mounted))
		}
		// With index=on the kernel refuses an upper directory that is in use.
		m.Options[0] = "index=on"
		dir, err := mountDetached([]mount.Mount{m})
		if err != nil {
			t.Errorf("%d layers: the upper directory is still in use: %v", layers, err)
		} else if err := dir.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(upper); err != nil {
			t.Error(err)
		}
	}
}

func TestDetachedBind(t *testing.T) {
	testutil.Require(t, testutil.Root)
	source := t.TempDir()
	dir, err := mountDetached([]mount.Mount{{Type: "bind", Source: source, Options: []string{"rw", "rbind"}}})
	if err != nil {
		t.Fatal(err)
	}
	root, err := rootfs.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(source, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := root.Stat("/../file", true); err != nil {
		t.Error(err)
	}
	if found := mountedBelow(t, source); len(found) > 0 {
		t.Errorf("it is mounted where others see it: %q", found)
	}
	// Hidden places are known there as well, though the mount has no name.
	if err := os.MkdirAll(filepath.Join(source, "data/in"), 0o755); err != nil {
		t.Fatal(err)
	}
	root.Hide("/data")
	if _, err := root.Stat("data/in", true); err == nil {
		t.Error("a hidden directory was found")
	}
	if err := root.Close(); err != nil {
		t.Error(err)
	}
}

func TestLayerThatCannotBeMounted(t *testing.T) {
	testutil.Require(t, testutil.Root)
	var mounts layerMounts
	for name, m := range map[string][]mount.Mount{
		"no file system":   {{Type: "no-such-filesystem", Source: "x"}},
		"none":             nil,
		"two":              {{}, {}},
		"too many options": {{Type: "overlay", Options: []string{"lowerdir=/" + strings.Repeat("x", 5000)}}},
		"no layers":        {{Type: "overlay", Options: []string{"upperdir=/" + strings.Repeat("x", 5000)}}},
	} {
		if _, err := mounts.acquire("a", m); err == nil || len(mounts.mounted) != 0 {
			t.Errorf("%s: %v, %d remembered", name, err, len(mounts.mounted))
		}
	}
	flags, data := mountOptions([]string{"ro", "bind", "noatime", "size=1m", "mode=755"})
	if data != "size=1m,mode=755" || flags&(unix.MS_RDONLY|unix.MS_BIND|unix.MS_NOATIME|unix.MS_NODEV) != unix.MS_RDONLY|unix.MS_BIND|unix.MS_NOATIME|unix.MS_NODEV {
		t.Errorf("%x %s", flags, data)
	}
}
