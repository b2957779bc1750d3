package volume_test

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

func newManager(t *testing.T, roots ...string) (*volume.Manager, volume.Config) {
	t.Helper()
	base := t.TempDir()
	config := volume.Config{
		StateDir:     filepath.Join(base, "state"),
		StageDir:     filepath.Join(base, "stage"),
		AllowedRoots: roots,
		Log:          slog.New(slog.DiscardHandler),
	}
	m, err := volume.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return m, config
}

func TestNewRefusesPaths(t *testing.T) {
	for _, bad := range []string{"", "relative", "/data/", "/data/../etc"} {
		_, err := volume.New(volume.Config{StateDir: "/s", StageDir: "/t", AllowedRoots: []string{bad}})
		p := problem.Of(err)
		if p == nil || p.Reason != problem.ConfigInvalid || p.Field != "allowed_roots" {
			t.Errorf("allowed root %q: %v", bad, err)
		}
	}
}

// world is a directory with everything a source could be.
func world(t *testing.T) (root, outside string) {
	t.Helper()
	root, outside = filepath.Join(t.TempDir(), "root"), t.TempDir()
	mkdir(t, filepath.Join(root, "dir/sub"))
	write(t, filepath.Join(root, "file"), "inside")
	write(t, filepath.Join(outside, "secret"), "outside")
	for name, target := range map[string]string{
		"stays": "dir", "escapes": outside, "climbs": "../..", "magic": "/proc/self/root", "loop": "loop",
		"absolute": filepath.Join(root, "dir"),
	} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(root, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(root, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return root, outside
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestCheckBindSources(t *testing.T) {
	root, outside := world(t)
	m, _ := newManager(t, root)
	for source, want := range map[string]problem.Reason{
		root:                         "",
		root + "/dir":                "",
		root + "/dir/sub":            "",
		root + "/file":               "",
		root + "/stays":              "",
		root + "/stays/sub":          "",
		root + "/missing":            problem.MountSourceNotFound,
		root + "/file/below":         problem.MountSourceNotFound,
		root + "/escapes":            problem.MountNotAllowed,
		root + "/escapes/secret":     problem.MountNotAllowed,
		root + "/climbs":             problem.MountNotAllowed,
		root + "/absolute":           problem.MountNotAllowed,
		root + "/magic":              problem.MountNotAllowed,
		root + "/magic/etc":          problem.MountNotAllowed,
		root + "/loop":               problem.MountNotAllowed,
		root + "/fifo":               problem.MountNotAllowed,
		root + "/sock":               problem.MountNotAllowed,
		root + "/dir/../../x":        problem.MountNotAllowed,
		root + "/dir/":               problem.MountNotAllowed,
		root + "x":                   problem.MountNotAllowed,
		outside:                      problem.MountNotAllowed,
		"relative":                   problem.MountNotAllowed,
		"":                           problem.MountNotAllowed,
		root + "/dir\x00/etc/passwd": problem.MountNotAllowed,
	} {
		err := m.Check([]volume.Mount{{Type: volume.Bind, Source: source, Target: "/data"}}, "spec.mounts")
		if want == "" {
			if err != nil {
				t.Errorf("%q: %v", source, err)
			}
			continue
		}
		p := problem.Of(err)
		if p == nil || p.Reason != want || p.Field != "spec.mounts[0].source" {
			t.Errorf("%q: %v (%+v), want %s", source, err, p, want)
		} else if p.Hint == "" {
			t.Errorf("%q: no hint with %v", source, err)
		}
	}
}

func TestCheckDeniesTheSystem(t *testing.T) {
	base := t.TempDir()
	runtimes := filepath.Join(base, "runtimes")
	mkdir(t, filepath.Join(runtimes, "containerd"))
	mkdir(t, filepath.Join(base, "state", "volumes"))
	if err := os.Symlink("runtimes", filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	m, err := volume.New(volume.Config{
		StateDir: filepath.Join(base, "state"), StageDir: filepath.Join(base, "stage"),
		AllowedRoots: []string{"/"}, Denied: []string{filepath.Join(base, "link", "containerd")},
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{
		"/", "/proc", "/proc/self", "/sys", "/dev", "/dev/null", "/dev/shm", "/run", "/var", "/var/lib",
		filepath.Join(base, "state"), filepath.Join(base, "state", "volumes"), base,
		runtimes, filepath.Join(base, "link"), filepath.Join(runtimes, "containerd"),
	} {
		err := m.Check([]volume.Mount{{Type: volume.Bind, Source: source, Target: "/data"}}, "m")
		if p := problem.Of(err); p == nil || p.Reason != problem.MountNotAllowed {
			t.Errorf("%s: %v", source, err)
		}
	}
	if err := m.Check([]volume.Mount{{Type: volume.Bind, Source: "/usr/share", Target: "/data"}}, "m"); err != nil {
		t.Errorf("/usr/share: %v", err)
	}
}

func TestCheckWithoutRoots(t *testing.T) {
	m, _ := newManager(t)
	err := m.Check([]volume.Mount{{Type: volume.Bind, Source: t.TempDir(), Target: "/data"}}, "spec.mounts")
	p := problem.Of(err)
	if p == nil || p.Reason != problem.MountNotAllowed || !strings.Contains(p.Hint, "allowed_roots") {
		t.Errorf("got %+v", p)
	}
}

func TestCheckRest(t *testing.T) {
	m, config := newManager(t)
	tmpfs := func(target string) volume.Mount { return volume.Mount{Type: volume.Tmpfs, Target: target} }
	named := func(name string) volume.Mount {
		return volume.Mount{Type: volume.Volume, Source: name, Target: "/data"}
	}
	for name, test := range map[string]struct {
		mounts []volume.Mount
		fields []string
	}{
		"good": {[]volume.Mount{
			tmpfs("/tmp"), tmpfs("/tmp/x"), named("data"),
			{Type: volume.Tmpfs, Target: "/big", SizeBytes: 1 << 30},
		}, nil},
		"none":           {nil, nil},
		"root":           {[]volume.Mount{tmpfs("/")}, []string{"m[0].target"}},
		"empty":          {[]volume.Mount{tmpfs("")}, []string{"m[0].target"}},
		"relative":       {[]volume.Mount{tmpfs("x")}, []string{"m[0].target"}},
		"dotdot":         {[]volume.Mount{tmpfs("/x/../proc")}, []string{"m[0].target"}},
		"slash":          {[]volume.Mount{tmpfs("/x/")}, []string{"m[0].target"}},
		"nul":            {[]volume.Mount{tmpfs("/x\x00y")}, []string{"m[0].target"}},
		"proc":           {[]volume.Mount{tmpfs("/proc")}, []string{"m[0].target"}},
		"below":          {[]volume.Mount{tmpfs("/sys/fs/cgroup")}, []string{"m[0].target"}},
		"shm":            {[]volume.Mount{tmpfs("/dev/shm")}, []string{"m[0].target"}},
		"not below":      {[]volume.Mount{tmpfs("/device")}, nil},
		"duplicate":      {[]volume.Mount{tmpfs("/a"), tmpfs("/b"), tmpfs("/a")}, []string{"m[2].target"}},
		"type":           {[]volume.Mount{{Type: "nfs", Target: "/a"}}, []string{"m[0].type"}},
		"tmpfs source":   {[]volume.Mount{{Type: volume.Tmpfs, Source: "x", Target: "/a"}}, []string{"m[0].source"}},
		"negative":       {[]volume.Mount{{Type: volume.Tmpfs, Target: "/a", SizeBytes: -1}}, []string{"m[0].size_bytes"}},
		"size of volume": {[]volume.Mount{{Type: volume.Volume, Source: "v", Target: "/a", SizeBytes: 1}}, []string{"m[0].size_bytes"}},
		"upper":          {[]volume.Mount{named("Data")}, []string{"m[0].source"}},
		"no name":        {[]volume.Mount{named("")}, []string{"m[0].source"}},
		"path":           {[]volume.Mount{named("../x")}, []string{"m[0].source"}},
		"hidden":         {[]volume.Mount{named(".x")}, []string{"m[0].source"}},
		"newline":        {[]volume.Mount{named("x\n")}, []string{"m[0].source"}},
		"long":           {[]volume.Mount{named(strings.Repeat("a", 64))}, []string{"m[0].source"}},
		"several":        {[]volume.Mount{tmpfs("/"), named("")}, []string{"m[0].target", "m[1].source"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := m.Check(test.mounts, "m")
			var fields []string
			for _, p := range problem.All(err) {
				fields = append(fields, p.Field)
				if p.Reason != problem.FieldInvalid || !errdefs.IsInvalidArgument(p) {
					t.Errorf("reason %s", p.Reason)
				}
			}
			if strings.Join(fields, " ") != strings.Join(test.fields, " ") {
				t.Errorf("got %v (%v), want %v", fields, err, test.fields)
			}
		})
	}
	for _, dir := range []string{config.StateDir, config.StageDir} {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("Check made %s", dir)
		}
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{`/a\040b`: "/a b", `/a\134b`: `/a\b`, `/a`: "/a", `/a\04`: `/a\04`, `\999`: `\999`} {
		if got := volume.Unescape(in); got != want {
			t.Errorf("%s: got %q, want %q", in, got, want)
		}
	}
}
