package volume_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

// stageManager is a manager whose mounts go with the test.
func stageManager(t *testing.T, roots ...string) (*volume.Manager, volume.Config) {
	t.Helper()
	testutil.Require(t, testutil.Root)
	m, config := newManager(t, roots...)
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		ids, err := m.Staged(ctx)
		for _, id := range ids {
			err = errors.Join(err, m.Unstage(ctx, id))
		}
		if err != nil {
			t.Error(err)
		}
	})
	return m, config
}

func noMounts(t *testing.T, dir string) {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if strings.Contains(line, dir+"/") {
			t.Errorf("left over: %s", line)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("left over in %s: %v", dir, entries)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestStage(t *testing.T) {
	root, _ := world(t)
	m, config := stageManager(t, root)
	mounts := []volume.Mount{
		{Type: volume.Volume, Source: "models", Target: "/data/models"},
		{Type: volume.Bind, Source: root + "/dir", Target: "/data"},
		{Type: volume.Bind, Source: root + "/file", Target: "/etc/app.conf", ReadOnly: true},
		{Type: volume.Tmpfs, Target: "/scratch", SizeBytes: 1 << 20, ReadOnly: true},
		{Type: volume.Tmpfs, Target: "/tmp"},
	}
	if err := m.Check(mounts, "m"); err != nil {
		t.Fatal(err)
	}
	staged, err := m.Stage(t.Context(), "env1", mounts)
	if err != nil {
		t.Fatal(err)
	}
	by := make(map[string]volume.Staged)
	var order []string
	for _, s := range staged {
		by[s.Target] = s
		order = append(order, s.Target)
	}
	if slices.Index(order, "/data") > slices.Index(order, "/data/models") {
		t.Errorf("a child comes before its parent: %v", order)
	}
	if s := by["/scratch"]; s.FSType != "tmpfs" || s.Source != "tmpfs" ||
		strings.Join(s.Options, ",") != "ro,nosuid,nodev,size=1048576,mode=1777" {
		t.Errorf("scratch: %+v", s)
	}
	if s := by["/tmp"]; !slices.Contains(s.Options, "size=67108864") || !slices.Contains(s.Options, "rw") {
		t.Errorf("tmp: %+v", s)
	}
	if s := by["/etc/app.conf"]; s.FSType != "bind" || !slices.Contains(s.Options, "ro") ||
		!slices.Contains(s.Options, "rbind") || read(t, s.Source) != "inside" {
		t.Errorf("file: %+v", s)
	}
	if err := os.WriteFile(by["/etc/app.conf"].Source, nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a read-only file: %v", err)
	}
	write(t, by["/data"].Source+"/new", "x")
	if read(t, root+"/dir/new") != "x" {
		t.Error("a write did not reach the source")
	}
	write(t, by["/data/models"].Source+"/weights", "w")
	data := filepath.Join(config.StateDir, "volumes", "models", "data")
	if info, err := os.Stat(data); err != nil || info.Mode() != os.ModeDir|0o755 {
		t.Errorf("volume: %v %v", info, err)
	}
	for _, target := range []string{"/data", "/data/models", "/etc/app.conf"} {
		var fs unix.Statfs_t
		if err := unix.Statfs(by[target].Source, &fs); err != nil ||
			fs.Flags&unix.ST_NOSUID == 0 || fs.Flags&unix.ST_NODEV == 0 {
			t.Errorf("%s: flags %#x, %v", target, fs.Flags, err)
		}
	}
	// Staging again replaces: fewer mounts, nothing of the old ones.
	staged, err = m.Stage(t.Context(), "env1", mounts[:1])
	if err != nil || len(staged) != 1 || read(t, staged[0].Source+"/weights") != "w" {
		t.Fatalf("stage again: %+v, %v", staged, err)
	}
	if entries, _ := os.ReadDir(filepath.Join(config.StageDir, "env1")); len(entries) != 1 {
		t.Errorf("stage again left %v", entries)
	}
	if ids, err := m.Staged(t.Context()); err != nil || !slices.Equal(ids, []string{"env1"}) {
		t.Errorf("staged: %v, %v", ids, err)
	}
	for range 2 {
		if err := m.Unstage(t.Context(), "env1"); err != nil {
			t.Fatal(err)
		}
	}
	noMounts(t, config.StageDir)
	if read(t, data+"/weights") != "w" {
		t.Error("the volume lost its content")
	}
	if ids, err := m.Staged(t.Context()); err != nil || len(ids) != 0 {
		t.Errorf("staged: %v, %v", ids, err)
	}
}

func TestStageReadOnlyIncludesSubmounts(t *testing.T) {
	root, _ := world(t)
	m, config := stageManager(t, root)
	sub := root + "/dir/sub"
	if err := unix.Mount("tmpfs", sub, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(sub, unix.MNT_DETACH) })
	write(t, sub+"/inner", "deep")
	staged, err := m.Stage(t.Context(), "env1", []volume.Mount{{Type: volume.Bind, Source: root + "/dir", Target: "/d", ReadOnly: true}})
	if err != nil {
		t.Fatal(err)
	}
	if read(t, staged[0].Source+"/sub/inner") != "deep" {
		t.Error("the submount is not there")
	}
	for _, path := range []string{"/x", "/sub/x"} {
		if err := os.WriteFile(staged[0].Source+path, nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("write to %s: %v", path, err)
		}
	}
	write(t, sub+"/still", "the source stays writable")
	if err := m.Unstage(t.Context(), "env1"); err != nil {
		t.Fatal(err)
	}
	noMounts(t, config.StageDir)
	if read(t, sub+"/inner") != "deep" {
		t.Error("unstaging unmounted the source's submount")
	}
}

func TestStageWithMount(t *testing.T) {
	root, _ := world(t)
	m, config := stageManager(t, root)
	volume.UseMount(m)
	staged, err := m.Stage(t.Context(), "env1", []volume.Mount{
		{Type: volume.Bind, Source: root + "/file", Target: "/f", ReadOnly: true},
		{Type: volume.Bind, Source: root + "/dir", Target: "/d"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(staged[0].Source, nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a read-only file: %v", err)
	}
	write(t, staged[1].Source+"/new", "x")
	if err := m.Unstage(t.Context(), "env1"); err != nil {
		t.Fatal(err)
	}
	noMounts(t, config.StageDir)
}

func TestStageIsPinned(t *testing.T) {
	root, outside := world(t)
	m, _ := stageManager(t, root)
	staged, err := m.Stage(t.Context(), "env1", []volume.Mount{{Type: volume.Bind, Source: root + "/dir", Target: "/d"}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, root+"/dir/marker", "real")
	if err := errors.Join(os.Rename(root+"/dir", root+"/moved"), os.Symlink(outside, root+"/dir")); err != nil {
		t.Fatal(err)
	}
	if read(t, staged[0].Source+"/marker") != "real" {
		t.Error("the staged mount followed the name")
	}
}

// TestStageRace swaps a directory for a link to the outside, all the time.
func TestStageRace(t *testing.T) {
	root, outside := world(t)
	m, config := stageManager(t, root)
	write(t, root+"/dir/sub/secret", "inside")
	swapped := root + "/dir/swapped"
	if err := errors.Join(os.Symlink(outside, swapped), os.Rename(root+"/dir/sub", root+"/dir/real")); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan int)
	go func() {
		swaps := 0
		for ; ctx.Err() == nil; swaps++ {
			_ = unix.Renameat2(unix.AT_FDCWD, swapped, unix.AT_FDCWD, root+"/dir/real", unix.RENAME_EXCHANGE)
		}
		done <- swaps
	}()
	good := 0
	for range 300 {
		staged, err := m.Stage(t.Context(), "race", []volume.Mount{{Type: volume.Bind, Source: swapped, Target: "/d"}})
		if err != nil {
			if p := problem.Of(err); p.Reason != problem.MountNotAllowed && p.Reason != problem.Unavailable {
				t.Errorf("unexpected: %v", err)
			}
			continue
		}
		good++
		if got := read(t, staged[0].Source+"/secret"); got != "inside" {
			t.Fatalf("got %q from outside the root", got)
		}
	}
	stop()
	t.Logf("%d swaps, %d of 300 staged", <-done, good)
	if err := m.Unstage(t.Context(), "race"); err != nil {
		t.Fatal(err)
	}
	noMounts(t, config.StageDir)
}

func TestStageRefusesWhatCheckRefuses(t *testing.T) {
	root, outside := world(t)
	m, config := stageManager(t, root)
	device := root + "/device"
	if err := unix.Mknod(device, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{
		outside, root + "/escapes", root + "/climbs", root + "/magic", root + "/magic/etc", root + "/..", device,
		root + "/sock", root + "/fifo", root + "/missing",
	} {
		if _, err := m.Stage(t.Context(), "env1", []volume.Mount{{Type: volume.Bind, Source: source, Target: "/d"}}); err == nil {
			t.Errorf("%s was staged", source)
		}
	}
	noMounts(t, config.StageDir)
}

func TestStageFailureLeavesNothing(t *testing.T) {
	root, _ := world(t)
	mounts := []volume.Mount{
		{Type: volume.Volume, Source: "fresh", Target: "/v"},
		{Type: volume.Bind, Source: root + "/dir", Target: "/d"},
		{Type: volume.Bind, Source: root + "/file", Target: "/f", ReadOnly: true},
	}
	for n := 1; n <= len(mounts); n++ {
		m, config := stageManager(t, root)
		volume.FailAttach(m, n)
		if _, err := m.Stage(t.Context(), "env1", mounts); !errors.Is(err, volume.ErrAttach) {
			t.Fatalf("attach %d: %v", n, err)
		}
		noMounts(t, config.StageDir)
		noMounts(t, filepath.Join(config.StateDir, "volumes"))
		if _, err := m.Stage(t.Context(), "env1", mounts); err != nil {
			t.Errorf("after failure %d: %v", n, err)
		}
	}
	// A source that cannot be opened, after a new volume and with what was
	// staged before; a volume that was there stays.
	m, config := stageManager(t, root)
	if _, err := m.Stage(t.Context(), "env1", []volume.Mount{{Type: volume.Volume, Source: "old", Target: "/v"}}); err != nil {
		t.Fatal(err)
	}
	_, err := m.Stage(t.Context(), "env1", []volume.Mount{
		{Type: volume.Volume, Source: "old", Target: "/v"},
		{Type: volume.Volume, Source: "fresh", Target: "/w"},
		{Type: volume.Bind, Source: root + "/missing", Target: "/d"},
	})
	if p := problem.Of(err); p == nil || p.Reason != problem.MountSourceNotFound {
		t.Errorf("got %v", err)
	}
	noMounts(t, config.StageDir)
	entries, err := os.ReadDir(filepath.Join(config.StateDir, "volumes"))
	if err != nil || len(entries) != 1 || entries[0].Name() != "old" {
		t.Errorf("volumes: %v, %v", entries, err)
	}
}

func TestUnstageAfterCrash(t *testing.T) {
	root, _ := world(t)
	m, config := stageManager(t, root)
	staged, err := m.Stage(t.Context(), "busy", []volume.Mount{{Type: volume.Bind, Source: root + "/dir", Target: "/d"}})
	if err != nil {
		t.Fatal(err)
	}
	// Somebody mounted on top and holds a file open.
	if err := unix.Mount("tmpfs", staged[0].Source, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(staged[0].Source + "/open")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	mkdir(t, filepath.Join(config.StageDir, "empty")) // died between mkdir and mount
	mkdir(t, filepath.Join(config.StateDir, "volumes", ".v", "data"))
	mkdir(t, filepath.Join(config.StateDir, "volumes", "v"))
	ids, err := m.Staged(t.Context())
	if err != nil || !slices.Equal(ids, []string{"busy", "empty"}) {
		t.Fatalf("staged: %v, %v", ids, err)
	}
	for _, id := range ids {
		if err := m.Unstage(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	noMounts(t, config.StageDir)
	if _, err := m.Stage(t.Context(), "again", []volume.Mount{{Type: volume.Volume, Source: "v", Target: "/v"}}); err != nil {
		t.Errorf("a half made volume: %v", err)
	}
	if entries, _ := os.ReadDir(filepath.Join(config.StateDir, "volumes")); len(entries) != 1 {
		t.Errorf("volumes: %v", entries)
	}
}

func TestUnstageKeepsWhatIsNotAMount(t *testing.T) {
	m, config := stageManager(t)
	mkdir(t, filepath.Join(config.StageDir, "env1"))
	write(t, filepath.Join(config.StageDir, "env1", "0"), "not ours")
	if err := m.Unstage(t.Context(), "env1"); err == nil {
		t.Error("a file in the staging directory was removed silently")
	}
	if read(t, filepath.Join(config.StageDir, "env1", "0")) != "not ours" {
		t.Error("the file changed")
	}
	if err := os.Remove(filepath.Join(config.StageDir, "env1", "0")); err != nil {
		t.Fatal(err)
	}
}

func TestBadIDs(t *testing.T) {
	m, _ := newManager(t)
	for _, id := range []string{"", ".", "..", "a/b", "a b", strings.Repeat("x", 65)} {
		_, err := m.Stage(t.Context(), id, nil)
		if !errdefs.IsInvalidArgument(err) || !errdefs.IsInvalidArgument(m.Unstage(t.Context(), id)) {
			t.Errorf("id %q: %v", id, err)
		}
	}
}

// TestStageDoesNotPropagate stages below a shared mount, as /run is under
// systemd, from a shared source.
func TestStageDoesNotPropagate(t *testing.T) {
	root, _ := world(t)
	m, config := stageManager(t, root)
	for _, dir := range []string{config.StageDir, root + "/dir"} {
		mkdir(t, dir)
		if err := errors.Join(unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"), unix.Mount("", dir, "", unix.MS_SHARED, "")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	}
	if _, err := m.Stage(t.Context(), "env1", []volume.Mount{{Type: volume.Bind, Source: root + "/dir", Target: "/d"}}); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(read(t, "/proc/self/mountinfo")) {
		if strings.Contains(line, config.StageDir+"/env1") {
			seen++
			if strings.Contains(line, "shared:") || strings.Contains(line, "master:") {
				t.Errorf("propagates: %s", line)
			}
		}
	}
	if seen != 2 {
		t.Errorf("saw %d mounts", seen)
	}
	if err := m.Unstage(t.Context(), "env1"); err != nil {
		t.Fatal(err)
	}
}
