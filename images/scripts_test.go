package images_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// script is a command that runs one of desktop-base's own scripts.
func script(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	path := filepath.Join(testutil.Repository(), "images", "desktop-base", "rootfs", "usr/local/lib/remotegpu", name)
	return exec.CommandContext(t.Context(), "sh", append([]string{path}, args...)...)
}

// The user gets the volumes that lie below the home, and nothing of anybody
// else.
func TestVolumesBelowTheHomeAreTheUsers(t *testing.T) {
	testutil.Require(t, testutil.Root)
	base := t.TempDir()
	home := filepath.Join(base, "home")
	const volumes = "/state/volumes/"
	var mounts strings.Builder
	for point, mount := range map[string]string{
		"work":           volumes + "work/data %s rw,nosuid shared:5 - ext4 /dev/a rw",
		"a/b/c":          volumes + "deep/data %s rw - ext4 /dev/a rw",
		"mixed/d":        volumes + "mixed/data %s rw - ext4 /dev/a rw",
		"scratch":        "/ %s rw - tmpfs tmpfs rw",
		"full":           volumes + "full/data %s rw - ext4 /dev/a rw",
		"others":         volumes + "others/data %s rw - ext4 /dev/a rw",
		"read-only":      volumes + "ro/data %s ro - ext4 /dev/a rw",
		"host":           "/srv/data %s rw - ext4 /dev/a rw",
		"link/e":         volumes + "link/data %s rw - ext4 /dev/a rw",
		"../home2/x":     volumes + "sibling/data %s rw - ext4 /dev/a rw",
		"two\\040words":  volumes + "words/data %s rw - ext4 /dev/a rw",
		"not-there-at-x": volumes + "gone/data %s rw - ext4 /dev/a rw",
	} {
		path := filepath.Join(home, point)
		fmt.Fprintf(&mounts, "40 30 0:5 "+mount+"\n", path)
		if point == "link/e" || point == "not-there-at-x" {
			continue
		}
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	aside := filepath.Join(base, "aside")
	for _, err := range []error{
		os.WriteFile(filepath.Join(home, "full", "file"), nil, 0o600),
		os.WriteFile(filepath.Join(home, "mixed", "file"), nil, 0o600),
		os.Chown(filepath.Join(home, "others"), 7, 7),
		os.MkdirAll(filepath.Join(aside, "e"), 0o755),
		os.Symlink(aside, filepath.Join(home, "link")),
		os.WriteFile(filepath.Join(base, "mountinfo"), []byte(mounts.String()), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if out, err := script(t, "own-mounts", home, "1000:1000", filepath.Join(base, "mountinfo")).CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	for path, want := range map[string]uint32{
		"work": 1000, "a": 1000, "a/b": 1000, "a/b/c": 1000, "mixed/d": 1000, "mixed": 0, "scratch": 1000, "full": 0, "full/file": 0,
		"others": 7, "read-only": 0, "host": 0, "../aside": 0, "../aside/e": 0, "../home2/x": 0, "../home2": 0, ".": 0,
	} {
		info, err := os.Lstat(filepath.Join(home, path))
		if err != nil {
			t.Fatal(err)
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); !ok || stat.Uid != want || want != 7 && stat.Gid != want {
			t.Errorf("%s belongs to %d, want %d", path, stat.Uid, want)
		}
	}
}

// What sshd gives to logins is what the container was started with, quoted as
// sshd reads it (argv_split of OpenSSH).
func TestVariablesOfLogins(t *testing.T) {
	dir := t.TempDir()
	cmd := script(t, "ssh-environment", dir)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=/root", "DISPLAY=:1", "FOO=a b", `QUOTED=say "hi" \ # no comment`, "EMPTY=", "REMOTEGPU_NAME=demo",
		"LINES2=a\nb", "LARGE=" + strings.Repeat("x", 70000),
	}
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Run(); err != nil {
		t.Fatal(err, errs.String())
	}
	path := filepath.Join(dir, "environment.conf")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	line := string(text)
	for _, want := range []string{` "FOO=a b"`, ` "QUOTED=say \"hi\" \\ # no comment"`, ` "EMPTY="`, ` "REMOTEGPU_NAME=demo"`, ` "PATH=`} {
		if !strings.Contains(line, want) {
			t.Errorf("%q is not in %q", want, line)
		}
	}
	if !strings.HasPrefix(line, "SetEnv ") || strings.Count(line, "\n") != 1 {
		t.Errorf("it is no line for sshd: %q", line)
	}
	for _, name := range []string{"HOME", "DISPLAY", "LINES2", "LARGE"} {
		if strings.Contains(line, name+"=") {
			t.Errorf("%s is handed on", name)
		}
	}
	if !strings.Contains(errs.String(), "LINES2") || !strings.Contains(errs.String(), "LARGE") {
		t.Errorf("it does not say what it leaves out: %q", errs.String())
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("variables are not root's alone: %v %v", info.Mode(), err)
	}
}
