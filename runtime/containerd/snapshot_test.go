//nolint:thelper // what both runs are tests, and a failure should name their lines
package containerd_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/containerd"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

const filesImage = "docker.io/remotegpu/files:latest"

// importFiles imports an image with files to change and remove.
func importFiles(t *testing.T, d *testutil.ContainerdDaemon) {
	t.Helper()
	d.Import(t, testutil.TestImage(t, testutil.ImageOptions{Name: filesImage, Files: map[string]string{
		"/srv/gone": "of the image", "/srv/changed": "of the image", "/srv/same": "of the image",
		"/srv/opaque/old": "of the image", "/srv/merged/old": "of the image", "/srv/was-dir/old": "of the image",
	}}))
}

func TestSnapshot(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		importFiles(t, d)
		for _, test := range []struct {
			name string
			run  func(t *testing.T, d *testutil.ContainerdDaemon)
		}{
			{"KeepsFiles", keepsFiles},
			{"HalfMade", halfMade},
			{"MountedLayer", mountedLayer},
			{"GreatestDepth", greatestDepth},
			{"CopyFails", copyFails},
			{"HoldsWhatItNeeds", holdsWhatItNeeds}, // removes the images
		} {
			t.Run(test.name, func(t *testing.T) { test.run(t, d) })
		}
	})
}

// halt kills a container: one that was just started may not know of SIGTERM yet.
func halt(t *testing.T, e *containerd.Engine, id string) {
	t.Helper()
	if _, err := e.Stop(t.Context(), id, 0); err != nil {
		t.Fatal(err)
	}
}

// root is the root directory of a running container.
func root(t *testing.T, e *containerd.Engine, id string) string {
	t.Helper()
	status, err := e.Status(t.Context(), id)
	if err != nil || !status.Running {
		t.Fatalf("status of %s: %+v, %v", id, status, err)
	}
	return fmt.Sprintf("/proc/%d/root", status.PID)
}

// change makes every kind of file that a layer can hold, and removes some of
// the image's.
func change(t *testing.T, root string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(root, name) }
	old := unix.NsecToTimespec(time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC).UnixNano())
	for what, err := range map[string]error{
		"remove":    os.Remove(at("srv/gone")),
		"change":    os.WriteFile(at("srv/changed"), []byte("changed"), 0o600),
		"opaque":    os.RemoveAll(at("srv/opaque")),
		"was a dir": os.RemoveAll(at("srv/was-dir")),
		"made":      os.Mkdir(at("made"), 0o700),
	} {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	capability := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // cap_net_raw=ep
	for _, step := range []struct {
		what string
		err  func() error
	}{
		{"opaque", func() error { return os.Mkdir(at("srv/opaque"), 0o755) }},
		{"in opaque", func() error { return os.WriteFile(at("srv/opaque/new"), []byte("new"), 0o644) }},
		{"in merged", func() error { return os.WriteFile(at("srv/merged/new"), []byte("new"), 0o644) }},
		{"file for directory", func() error { return os.WriteFile(at("srv/was-dir"), []byte("a file"), 0o644) }},
		{"large", func() error { return os.WriteFile(at("made/large"), []byte(strings.Repeat("large", 600_000)), 0o640) }},
		{"empty", func() error { return os.WriteFile(at("made/empty"), nil, 0o444) }},
		{"name", func() error { return os.WriteFile(at("made/name with spaces, ünïcode\n"), []byte("x"), 0o644) }},
		{"long name", func() error { return os.WriteFile(at("made/"+strings.Repeat("n", 255)), []byte("x"), 0o644) }},
		{"hard link", func() error { return os.Link(at("made/large"), at("made/linked")) }},
		{"hard link elsewhere", func() error { return os.Link(at("made/large"), at("srv/linked")) }},
		{"symlink", func() error { return os.Symlink("/etc/passwd", at("made/symlink")) }},
		{"fifo", func() error { return unix.Mkfifo(at("made/fifo"), 0o620) }},
		{"device", func() error { return unix.Mknod(at("made/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) }},
		{"block device", func() error { return unix.Mknod(at("made/loop"), unix.S_IFBLK|0o660, int(unix.Mkdev(7, 300))) }},
		{"owner", func() error { return os.Chown(at("made/empty"), 1000, 70000) }},
		{"setuid", func() error { return os.Chmod(at("made/large"), fs.ModeSetuid|fs.ModeSetgid|0o755) }},
		{"capability", func() error { return unix.Setxattr(at("made/empty"), "security.capability", capability, 0) }},
		{"attribute", func() error { return unix.Setxattr(at("made/large"), "user.note", []byte("a=b\x00c"), 0) }},
		{"attribute of a directory", func() error { return unix.Setxattr(at("made"), "user.long", []byte(strings.Repeat("v", 1000)), 0) }},
		{"sticky", func() error { return os.Chmod(at("srv/merged"), fs.ModeSticky|0o777) }},
		{"time", func() error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, at("made/large"), []unix.Timespec{old, old}, 0)
		}},
		{"time of a directory", func() error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, at("made"), []unix.Timespec{old, old}, 0)
		}},
		{"mode of the root", func() error { return os.Chmod(root+"/", 0o751) }},
	} {
		if err := step.err(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
	}
}

// tree describes the files below directories of a root.
func tree(t *testing.T, root string, dirs ...string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	first := make(map[uint64]string)
	for _, dir := range dirs {
		if err := filepath.WalkDir(filepath.Join(root, dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			text := fmt.Sprintf("%o %d:%d %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFREG:
				data, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				text += fmt.Sprintf(" %d bytes %.20q", len(data), data)
				if st.Nlink > 1 {
					if first[st.Ino] == "" {
						first[st.Ino] = path[len(root):]
					}
					text += " as " + first[st.Ino]
				}
			case unix.S_IFLNK:
				target, err := os.Readlink(path)
				if err != nil {
					return err
				}
				text += " -> " + target
			case unix.S_IFCHR, unix.S_IFBLK:
				text += fmt.Sprintf(" device %d", st.Rdev)
			}
			list := make([]byte, 1024)
			n, err := unix.Llistxattr(path, list)
			if err != nil {
				return err
			}
			names := strings.FieldsFunc(string(list[:n]), func(r rune) bool { return r == 0 })
			slices.Sort(names)
			for _, name := range names {
				value := make([]byte, 4096)
				n, err := unix.Lgetxattr(path, name, value)
				if err != nil {
					return err
				}
				text += fmt.Sprintf(" %s=%q", name, value[:n])
			}
			files[path[len(root):]] = text
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func modeOf(t *testing.T, root string) fs.FileMode {
	t.Helper()
	info, err := os.Stat(root + "/")
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

// Every kind of file, and what was removed, is in a snapshot as it was: of a
// container that runs and of one that does not, after a reset, in a clone, and
// in an image made of it.
func keepsFiles(t *testing.T, d *testutil.ContainerdDaemon) {
	e, ns := open(t, d), netNS(t, d)()
	c := runtime.Container{ID: "one", Image: filesImage, NetNS: ns}
	start(t, e, c)
	change(t, root(t, e, "one"))
	want := tree(t, root(t, e, "one"), "/srv", "/made")
	if err := unix.Mknod(filepath.Join(root(t, e, "one"), "made/socket"), unix.S_IFSOCK|0o600, 0); err != nil {
		t.Fatal(err)
	}
	copied, err := e.CopyLayer(t.Context(), "one", "copied", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(root(t, e, "one"), "made/socket")); err != nil {
		t.Fatal(err)
	}
	// The directory's time is what the test set it to.
	old := unix.NsecToTimespec(time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC).UnixNano())
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(root(t, e, "one"), "made"), []unix.Timespec{old, old}, 0); err != nil {
		t.Fatal(err)
	}
	same := func(what, id string, mode fs.FileMode) {
		t.Helper()
		at := root(t, e, id)
		files := tree(t, at, "/srv", "/made")
		delete(want, "/made")
		for name := range files { // a socket was made and removed there since
			if name == "/made" {
				delete(files, name)
			}
		}
		if diff := cmp.Diff(want, files); diff != "" {
			t.Errorf("%s (-written +kept):\n%s", what, diff)
		}
		if got := modeOf(t, at); got != mode {
			t.Errorf("%s: mode of the root %o, want %o", what, got, mode)
		}
	}
	again := func(between func()) {
		t.Helper()
		halt(t, e, "one")
		between()
		if _, err := e.Start(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	again(func() {
		if _, err := e.CommitLayer(t.Context(), "one", "committed"); err != nil {
			t.Fatal(err)
		}
	})
	same("committed", "one", 0o751)
	again(func() {
		if err := e.ResetLayer(t.Context(), "one", "copied"); err != nil {
			t.Fatal(err)
		}
	})
	same("copied and reset", "one", 0o751)
	clone := runtime.Container{ID: "two", Image: filesImage, NetNS: ns, Snapshot: "copied", Base: copied.Base}
	start(t, e, clone)
	same("clone", "two", 0o751)
	if _, err := e.ExportSnapshot(t.Context(), runtime.Export{
		Snapshot: "copied", Reference: "docker.io/test/exported:v1", Base: copied.Base, Created: time.Now(),
	}, nil); err != nil {
		t.Fatal(err)
	}
	start(t, e, runtime.Container{ID: "three", Image: "docker.io/test/exported:v1", NetNS: ns})
	same("exported", "three", 0o755) // a layer has no entry for the root
	for _, id := range []string{"one", "two", "three"} {
		if err := e.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	for _, id := range []string{"copied", "committed"} {
		if err := e.RemoveSnapshot(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if left := leftovers(t, d); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// Snapshots hold what they need, and only as long as they are there: their
// images' layers, content and snapshots go when nothing else needs them.
func holdsWhatItNeeds(t *testing.T, d *testutil.ContainerdDaemon) {
	e, ns := open(t, d), netNS(t, d)()
	start(t, e, runtime.Container{ID: "one", Image: filesImage, NetNS: ns})
	run(t, e, "write", "/kept", "yes")
	layer, err := e.CopyLayer(t.Context(), "one", "kept", nil)
	if err != nil {
		t.Fatal(err)
	}
	// All but the snapshot goes, with a garbage collection.
	if err := e.Delete(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	images, err := e.Images(t.Context())
	if err != nil || len(images) == 0 {
		t.Fatalf("images: %+v, %v", images, err)
	}
	for _, image := range images {
		if err := e.DeleteImage(t.Context(), image.Name); err != nil {
			t.Fatal(err)
		}
	}
	const exported = "docker.io/test/exported:v1"
	if _, err := e.ExportSnapshot(t.Context(), runtime.Export{Snapshot: "kept", Reference: exported, Base: layer.Base}, nil); err != nil {
		t.Fatalf("export once the image has gone: %v", err)
	}
	start(t, e, runtime.Container{ID: "one", Image: filesImage, NetNS: ns, Snapshot: "kept", Base: layer.Base})
	if got := run(t, e, "cat", "/kept", "/srv/same"); got != "yesof the image" {
		t.Errorf("made once the image has gone: %q", got)
	}
	if err := e.RemoveSnapshot(t.Context(), "kept"); err != nil {
		t.Fatal(err)
	}
	if parts, err := e.Snapshots(t.Context()); err != nil || len(parts) > 0 {
		t.Errorf("snapshots: %+v, %v", parts, err)
	}
	if err := e.DeleteImage(t.Context(), exported); err != nil { // collects
		t.Fatal(err)
	}
	halt(t, e, "one")
	if _, err := e.Start(t.Context(), runtime.Container{ID: "one", Image: filesImage, NetNS: ns}); err != nil {
		t.Errorf("start once the snapshot has gone: %v", err)
	}
	if got := run(t, e, "cat", "/kept"); got != "yes" {
		t.Errorf("once the snapshot has gone: %q", got)
	}
	if err := e.Delete(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	runtimetest.Eventually(t, "everything is collected", func() bool {
		return d.Ctr(t, "content", "ls", "-q") == "" && strings.Count(d.Ctr(t, "snapshots", "ls"), "\n") == 0
	})
}

// What a daemon or containerd leaves that dies in the middle is finished, by
// whichever call comes next, and no file is lost.
func halfMade(t *testing.T, d *testutil.ContainerdDaemon) {
	e := open(t, d)
	c := runtime.Container{ID: "one", Image: testutil.ImageName, NetNS: netNS(t, d)()}
	start(t, e, c)
	run(t, e, "write", "/kept", "yes")
	halt(t, e, "one")
	layer, err := e.CommitLayer(t.Context(), "one", "first")
	if err != nil {
		t.Fatal(err)
	}
	// Committed, and nothing prepared on top of it yet.
	for what, next := range map[string]func() error{
		"start":         func() error { return nil },
		"commit again":  func() error { _, err := e.CommitLayer(t.Context(), "one", "first"); return err },
		"reset":         func() error { return e.ResetLayer(t.Context(), "one", "first") },
		"delete it all": func() error { return e.RemoveSnapshot(t.Context(), "first") },
		"next snapshot": func() error { _, err := e.CommitLayer(t.Context(), "one", "second"); return err },
	} {
		if what == "delete it all" {
			continue // last, below
		}
		d.Ctr(t, "snapshots", "rm", "one")
		if err := next(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := e.Start(t.Context(), c); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := run(t, e, "cat", "/kept"); got != "yes" {
			t.Errorf("%s: %q", what, got)
		}
		halt(t, e, "one")
		if err := e.ResetLayer(t.Context(), "one", "first"); err != nil {
			t.Error(err)
		}
	}
	d.Ctr(t, "snapshots", "rm", "one")
	for _, id := range []string{"first", "second"} {
		if err := e.RemoveSnapshot(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if _, err := e.Start(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got := run(t, e, "cat", "/kept"); got != "yes" {
		t.Errorf("once removed: %q", got)
	}
	// A copy that was interrupted is listed, in nobody's way, and removed.
	leave := func() {
		t.Helper()
		d.Ctr(t, "leases", "create", "--id", "remotegpu-snapshot-third", "--expires", "1h")
		d.Ctr(t, "snapshots", "prepare", "remotegpu-snapshot-third-unpack")
	}
	leave()
	if parts, err := e.Snapshots(t.Context()); err != nil || len(parts) != 1 || parts[0] != (runtime.SnapshotPart{ID: "third", Begun: true}) {
		t.Errorf("snapshots: %+v, %v", parts, err)
	}
	if _, err := e.CopyLayer(t.Context(), "one", "third", nil); err != nil {
		t.Errorf("copy over what was left: %v", err)
	}
	d.Ctr(t, "leases", "create", "--id", "remotegpu-snapshot-third", "--expires", "1h")
	d.Ctr(t, "leases", "create", "--id", "remotegpu-snapshot-third-export", "--expires", "1h")
	if parts, err := e.Snapshots(t.Context()); err != nil || len(parts) != 1 || parts[0] != (runtime.SnapshotPart{ID: "third", Whole: true, Begun: true}) {
		t.Errorf("snapshots: %+v, %v", parts, err)
	}
	if err := e.TidySnapshot(t.Context(), "third"); err != nil {
		t.Error(err)
	}
	if parts, err := e.Snapshots(t.Context()); err != nil || len(parts) != 1 || parts[0] != (runtime.SnapshotPart{ID: "third", Whole: true}) {
		t.Errorf("once tidied: %+v, %v", parts, err)
	}
	if err := e.RemoveSnapshot(t.Context(), "third"); err != nil {
		t.Error(err)
	}
	leave()
	if err := e.RemoveSnapshot(t.Context(), "third"); err != nil {
		t.Error(err)
	}
	if parts, err := e.Snapshots(t.Context()); err != nil || len(parts) > 0 {
		t.Errorf("snapshots: %+v, %v", parts, err)
	}
	if len(layer.Base) == 0 {
		t.Error("no base")
	}
	if err := e.Delete(t.Context(), "one"); err != nil {
		t.Error(err)
	}
	if left := leftovers(t, d); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A layer that somebody has mounted is written to: it never becomes part of
// another one.
func mountedLayer(t *testing.T, d *testutil.ContainerdDaemon) {
	e := open(t, d)
	c := runtime.Container{ID: "one", Image: testutil.ImageName, NetNS: netNS(t, d)()}
	start(t, e, c)
	halt(t, e, "one")
	at := filepath.Join(d.Dir, "mounted")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	d.Ctr(t, "snapshots", "ls")
	testutil.Sh(t, d.Ctr(t, "snapshots", "mounts", at, "one"))
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := e.CommitLayer(short, "one", "first"); err == nil {
		t.Error("a mounted layer was committed")
	}
	if err := e.ResetLayer(short, "one", "first"); err == nil {
		t.Error("a mounted layer was replaced")
	}
	if parts, err := e.Snapshots(t.Context()); err != nil || len(parts) > 0 {
		t.Errorf("snapshots: %+v, %v", parts, err)
	}
	testutil.Unmount(t, at)
	if _, err := e.CommitLayer(t.Context(), "one", "first"); err != nil {
		t.Error(err)
	}
	if err := e.RemoveSnapshot(t.Context(), "first"); err != nil {
		t.Error(err)
	}
	if err := e.Delete(t.Context(), "one"); err != nil {
		t.Error(err)
	}
	if left := leftovers(t, d); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// At the greatest depth a container still starts, and the next snapshot merges
// the layers above the image into one, with all that they wrote and removed.
func greatestDepth(t *testing.T, d *testutil.ContainerdDaemon) {
	const depth = 9
	e, err := containerd.New(containerd.Config{
		Address: d.Address, Namespace: d.Namespace, CgroupParent: d.Cgroup, FIFODir: filepath.Join(d.Dir, "fifo"), MaxDepth: depth,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	c := runtime.Container{ID: "one", Image: filesImage, NetNS: netNS(t, d)()}
	in := func(do func(root string)) {
		t.Helper()
		if _, err := e.Start(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		do(root(t, e, "one"))
		halt(t, e, "one")
	}
	start(t, e, c)
	change(t, root(t, e, "one"))
	halt(t, e, "one")
	var parent string
	commit := func(i int) runtime.Layer {
		t.Helper()
		layer, err := e.CommitLayer(t.Context(), "one", fmt.Sprintf("s%d", i))
		if err != nil {
			t.Fatalf("commit %d: %v", i, err)
		}
		return layer
	}
	for i := 1; i < depth; i++ { // the image is one
		if layer := commit(i); layer.Parent != parent {
			t.Fatalf("snapshot %d is on top of %q, want %q", i, layer.Parent, parent)
		}
		parent = fmt.Sprintf("s%d", i)
		switch i {
		case 3:
			in(func(root string) {
				for _, err := range []error{
					os.Remove(root + "/srv/changed"), os.RemoveAll(root + "/srv/merged"), os.Remove(root + "/srv/was-dir"),
					os.WriteFile(root+"/made/later", []byte("later"), 0o644), os.Remove(root + "/made/linked"),
				} {
					if err != nil {
						t.Fatal(err)
					}
				}
			})
		case 6:
			in(func(root string) {
				for _, err := range []error{
					os.Mkdir(root+"/srv/was-dir", 0o755), os.WriteFile(root+"/srv/was-dir/new", []byte("new"), 0o644),
					os.Remove(root + "/made/later"), os.WriteFile(root+"/srv/changed", []byte("again"), 0o644),
				} {
					if err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
	var want map[string]string
	in(func(root string) {
		if err := os.WriteFile(root+"/made/last", []byte("last"), 0o644); err != nil {
			t.Fatal(err)
		}
		want = tree(t, root, "/srv", "/made")
		if layer, err := e.CopyLayer(t.Context(), "one", "copied", nil); err != nil || layer.Parent != "" {
			t.Errorf("copy at the greatest depth: %+v, %v, want it on top of the image", layer, err)
		}
	})
	for _, path := range []string{"/srv/gone", "/srv/opaque/old", "/srv/merged", "/srv/was-dir/old", "/made/later"} {
		if want[path] != "" {
			t.Fatalf("%s is there", path)
		}
	}
	if layer := commit(depth); layer.Parent != "" {
		t.Errorf("at the greatest depth: %+v, want it on top of the image", layer)
	}
	for _, snapshot := range []string{"", "copied"} {
		if snapshot != "" {
			if err := e.ResetLayer(t.Context(), "one", snapshot); err != nil {
				t.Fatal(err)
			}
		}
		in(func(root string) {
			if diff := cmp.Diff(want, tree(t, root, "/srv", "/made")); diff != "" {
				t.Errorf("merged %s (-before +after):\n%s", snapshot, diff)
			}
		})
	}
	many := "docker.io/remotegpu/many:latest"
	d.Import(t, testutil.TestImage(t, testutil.ImageOptions{Name: many, Layers: depth}))
	deep := runtime.Container{ID: "two", Image: many, NetNS: c.NetNS}
	start(t, e, deep)
	_, err = e.CopyLayer(t.Context(), "two", "deep", nil)
	if p := problem.Of(err); p == nil || p.Reason != problem.SnapshotTooDeep || p.Hint == "" {
		t.Errorf("copy on an image of too many layers: %v", err)
	}
	halt(t, e, "two")
	_, err = e.CommitLayer(t.Context(), "two", "deep")
	if p := problem.Of(err); p == nil || p.Reason != problem.SnapshotTooDeep || p.Hint == "" {
		t.Errorf("commit on an image of too many layers: %v", err)
	}
	if err := e.Delete(t.Context(), "two"); err != nil {
		t.Error(err)
	}
	parts, err := e.Snapshots(t.Context())
	if err != nil || len(parts) != depth+1 {
		t.Errorf("%d snapshots, %v", len(parts), err)
	}
	for _, part := range parts {
		if err := e.RemoveSnapshot(t.Context(), part.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Delete(t.Context(), "one"); err != nil {
		t.Error(err)
	}
	if left := leftovers(t, d); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// As many layers as a snapshot may have can be mounted, with a writable one on
// top, where containerd keeps its layers and when it has made millions of them.
func TestGreatestDepthMounts(t *testing.T) {
	testutil.Require(t, testutil.Root)
	dir := t.TempDir()
	// overlayfs cannot be stacked on itself as an upper layer.
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { testutil.Unmount(t, dir) })
	layer := func(i int) string {
		t.Helper()
		path := fmt.Sprintf("%s/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/%d/fs", dir, 9_999_999-i)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(path, fmt.Sprint(i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	lower := make([]string, 0, containerd.MaxDepth)
	for i := range containerd.MaxDepth {
		lower = append(lower, layer(i+1))
	}
	work, target := filepath.Join(filepath.Dir(layer(0)), "work"), filepath.Join(dir, "target")
	for _, path := range []string{work, target} {
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
		"workdir=" + work, "upperdir=" + layer(0), "lowerdir=" + strings.Join(lower, ":"), "index=off",
	}}
	if err := m.Mount(target); err != nil {
		t.Fatal(err)
	}
	defer testutil.Unmount(t, target)
	if entries, err := os.ReadDir(target); err != nil || len(entries) != containerd.MaxDepth+1 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
}

// A copy that is cancelled, or whose layer cannot be read, leaves the container
// running and nothing behind.
func copyFails(t *testing.T, d *testutil.ContainerdDaemon) {
	e := open(t, d)
	c := runtime.Container{ID: "one", Image: testutil.ImageName, NetNS: netNS(t, d)(), Command: []string{"tick"}, LogPath: filepath.Join(logs(d), "one.log")}
	pid := start(t, e, c)
	at := root(t, e, "one")
	if err := os.WriteFile(at+"/large", make([]byte, 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i*20)*time.Millisecond)
		if _, err := e.CopyLayer(ctx, "one", "first", nil); err == nil {
			t.Logf("the copy was done within %d ms", i*20)
			if err := e.RemoveSnapshot(t.Context(), "first"); err != nil {
				t.Error(err)
			}
		}
		cancel()
		if status, err := e.Status(t.Context(), "one"); err != nil || !status.Running || status.Paused {
			t.Errorf("status %+v, %v", status, err)
		}
		if parts, err := e.Snapshots(t.Context()); err != nil || len(parts) > 0 {
			t.Errorf("snapshots: %+v, %v", parts, err)
		}
	}
	// As after renaming a directory of the image with redirect_dir=on.
	if err := os.Mkdir(at+"/renamed", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(upper(t, pid)+"/renamed", "trusted.overlay.redirect", []byte("/srv"), 0); err != nil {
		t.Fatal(err)
	}
	_, err := e.CopyLayer(t.Context(), "one", "first", nil)
	if p := problem.Of(err); p == nil || p.Reason != problem.SnapshotNotCopyable || p.Hint == "" || !strings.Contains(p.Message, "/renamed") {
		t.Errorf("copy of a part of a layer: %v", err)
	}
	size := fileSize(t, c.LogPath)
	runtimetest.Eventually(t, "its process goes on", func() bool { return fileSize(t, c.LogPath) > size })
	if err := syscall.Kill(pid, 0); err != nil {
		t.Error(err)
	}
	if err := e.Delete(t.Context(), "one"); err != nil {
		t.Error(err)
	}
	if left := leftovers(t, d); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// upper is the writable layer of a running process.
func upper(t *testing.T, pid int) string {
	t.Helper()
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(table), "upperdir=")
	dir, _, _ := strings.Cut(rest, ",")
	return dir
}

// A file with holes that is longer than the disk is refused before a byte is
// copied, and what was frozen for the look goes on.
func TestSnapshotLongerThanTheDisk(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.Containerd2)
	d := testutil.StartContainerd(t, testutil.Containerd2)
	importFiles(t, d)
	e := open(t, d)
	pid := start(t, e, runtime.Container{ID: "one", Image: filesImage, NetNS: netNS(t, d)()})
	file := filepath.Join(upper(t, pid), "huge")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 8<<40); err != nil {
		t.Fatal(err)
	}
	_, err := e.CopyLayer(t.Context(), "one", "copied", nil)
	if p := problem.Of(err); p == nil || p.Reason != problem.DiskFull || p.Hint == "" {
		t.Errorf("copy: %v", err)
	}
	if got := run(t, e, "cat", "/srv/same"); got != "of the image" { // a frozen one would not answer
		t.Errorf("after it: %q", got)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := e.CopyLayer(t.Context(), "one", "copied", nil); err != nil {
		t.Errorf("without it: %v", err)
	}
	if err := errors.Join(e.Delete(t.Context(), "one"), e.RemoveSnapshot(t.Context(), "copied")); err != nil {
		t.Error(err)
	}
	if left := leftovers(t, d); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
