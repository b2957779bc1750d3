package e2e_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

func TestCopy(t *testing.T) {
	for _, kind := range either(t) {
		t.Run(string(kind), func(t *testing.T) {
			n := Start(t, kind, "")
			n.Must(t, "env", "create", "box", "--image", n.Image, "-v", "data:/data", "--tmpfs", "/scratch")
			t.Run("running", func(t *testing.T) { testCopyRunning(t, n) })
			t.Run("hostile", func(t *testing.T) { testCopyHostile(t, n) })
			t.Run("interrupted", func(t *testing.T) { testCopyInterrupted(t, n) })
			t.Run("stopped", func(t *testing.T) { testCopyStopped(t, n) })
			t.Run("volume", func(t *testing.T) { testCopyVolume(t, n) })
			t.Run("killed daemon", func(t *testing.T) { testCopyKilled(t, n) })
		})
	}
}

// here makes a directory to copy from.
func here(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "from")
	for _, sub := range []string{"sub/deep", "empty"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"a": "text of a\n", "sub/deep/b": strings.Repeat("b", 1<<20), "sub/run": "#!"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../a", filepath.Join(dir, "sub/link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// inside runs testprog in "box".
func (n *Node) inside(tb testing.TB, args ...string) string {
	tb.Helper()
	return strings.TrimSpace(n.Must(tb, append([]string{"env", "exec", "--stdin=false", "--unary", "box", "--", "testprog"}, args...)...))
}

// fails runs remotegpu and wants it to fail with a text.
func (n *Node) fails(tb testing.TB, code int, text string, args ...string) {
	tb.Helper()
	if _, errs, got := n.CLI(tb, args...); got != code || !strings.Contains(errs, text) {
		tb.Errorf("remotegpu %s: exit %d, want %d and %q\n%s", strings.Join(args, " "), got, code, text, errs)
	}
}

func testCopyRunning(t *testing.T, n *Node) {
	t.Helper()
	from, back := here(t), t.TempDir()
	n.Must(t, "env", "cp", from, "box:/home/app")
	if got := n.inside(t, "cat", "/home/app/from/a"); got != "text of a" {
		t.Errorf("inside: %q", got)
	}
	if got := n.inside(t, "stat", "/home/app/from/sub/run"); got != "mode=100755 uid=0 gid=0 size=2" {
		t.Errorf("inside: %s", got)
	}
	n.Must(t, "env", "cp", "box:/home/app/from", back)
	n.Sh(t, "diff -r --no-dereference "+from+" "+back+"/from")
	n.Must(t, "env", "cp", "--owner", "app:extra", from+"/a", "box:/tmp-a")
	if got := n.inside(t, "stat", "/tmp-a"); got != "mode=100755 uid=1000 gid=2000 size=10" {
		t.Errorf("with an owner: %s", got)
	}
	n.Must(t, "env", "cp", "-a", "box:/tmp-a", back)
	n.Must(t, "env", "cp", "-a", back+"/tmp-a", "box:/kept")
	if got := n.inside(t, "stat", "/kept"); got != "mode=100755 uid=1000 gid=2000 size=10" {
		t.Errorf("with -a, out and in: %s", got)
	}
	// Mounts are there.
	n.Must(t, "env", "cp", from+"/a", "box:/data/from-outside")
	n.Must(t, "env", "cp", from+"/a", "box:/scratch/a")
	if got := n.inside(t, "cat", "/data/from-outside", "/scratch/a"); got != "text of a\ntext of a" {
		t.Errorf("in mounts: %q", got)
	}
	exe := testutil.Program("remotegpu")
	if out := n.Sh(t, exe+" env cp box:/home/app/from - | tar -t | sort | tr '\\n' ' '"); out != "from/ from/a from/empty/ from/sub/ from/sub/deep/ from/sub/deep/b from/sub/link from/sub/run" {
		t.Errorf("as a stream: %s", out)
	}
	n.Sh(t, "tar -C "+from+" -c sub | "+exe+" env cp - box:/data")
	if got := n.inside(t, "ls", "/data/sub"); got != "deep\nlink\nrun" {
		t.Errorf("from a stream: %q", got)
	}
	n.fails(t, 3, "does not exist", "env", "cp", "box:/nothing", back)
	n.fails(t, 3, "there is no environment", "env", "cp", from, "absent:/")
	n.fails(t, 3, "does not exist", "env", "cp", from, "box:/nothing/deeper")
	n.fails(t, 4, "exists", "env", "cp", "--no-overwrite", from+"/a", "box:/tmp-a")
	n.fails(t, 2, "there is no user", "env", "cp", "--owner", "nobody-here", from, "box:/")

	// Large files stream.
	big, before := filepath.Join(back, "big"), n.resident(t)
	n.Sh(t, "truncate -s 64M "+big+" && printf data | dd of="+big+" bs=1 seek=40000000 conv=notrunc status=none")
	begin := time.Now()
	n.Must(t, "env", "cp", big, "box:/scratch-big")
	up := time.Since(begin)
	if out := n.Sh(t, exe+" env cp box:/scratch-big - | wc -c"); len(out) != len("67109888") {
		t.Errorf("out came %s bytes", out)
	}
	t.Logf("64 MiB in: %v, out: %v", up, time.Since(begin)-up)
	if grown := n.resident(t) - before; grown > 48<<10 {
		t.Errorf("the node grew by %d KiB", grown)
	}
	n.Must(t, "env", "cp", "box:/scratch-big", back+"/holes")
	n.Sh(t, "cmp "+big+" "+back+"/holes")
	if kib := n.Sh(t, "du -k "+back+"/holes | cut -f 1"); len(kib) > 3 {
		t.Errorf("a file with holes takes %s KiB after a copy in and out", kib)
	}
	n.inside(t, "rm", "/scratch-big")
}

// What is inside decides nothing about what is outside.
func testCopyHostile(t *testing.T, n *Node) {
	t.Helper()
	dir := t.TempDir()
	secret := filepath.Join(n.Shared, "secret")
	if err := os.WriteFile(secret, []byte("of the host"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"up": "../../../../../../../.." + n.Shared, "host": "/proc/1/root" + n.Shared, "self": "/proc/self/cwd"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		n.Must(t, "env", "cp", filepath.Join(dir, name), "box:/home/app/")
		for _, args := range [][]string{
			{"box:/home/app/" + name + "/secret", dir + "/out"}, {"-L", "box:/home/app/" + name, dir + "/out"}, {secret, "box:/home/app/" + name + "/written"},
		} {
			if _, errs, code := n.CLI(t, append([]string{"env", "cp"}, args...)...); code == 0 {
				t.Errorf("cp %q went: %s", args, errs)
			}
		}
	}
	if entries, _ := os.ReadDir(n.Shared); len(entries) != 1 {
		t.Errorf("on the host there is %v", entries)
	}
	if _, err := os.Stat(dir + "/out"); err == nil {
		t.Error("something came out")
	}
	n.fails(t, 4, "file system of the kernel", "env", "cp", "box:/proc/1/environ", dir)
	n.fails(t, 4, "file system of the kernel", "env", "cp", secret, "box:/proc/sys/kernel/hostname")
	n.fails(t, 4, "mount of its own", "env", "cp", secret, "box:/etc/hosts")
	n.fails(t, 4, "device", "env", "cp", secret, "box:/dev/null")
	_ = os.Remove(secret)
}

// upload is an upload from a pipe that has sent one file whole and a part of
// another.
type upload struct {
	*exec.Cmd
	input io.WriteCloser
	text  *bytes.Buffer
}

// startUpload returns when the first file has arrived.
func (n *Node) startUpload(t *testing.T) *upload {
	t.Helper()
	const place = "box:/home/app"
	u := &upload{Cmd: n.command(t, testutil.Program("remotegpu"), "env", "cp", "-", place), text: &bytes.Buffer{}}
	u.Stderr = u.text
	input, err := u.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	u.input = input
	if err := u.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Process.Kill() })
	whole := runtimetest.Archive(t, map[string]string{"arrived": "whole"})
	half := runtimetest.Archive(t, map[string]string{"kept": strings.Repeat("new", 1<<20)})
	if _, err := input.Write(append(whole[:1024], half[:1<<20]...)); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "the first file to arrive", func() bool {
		out, _, code := n.CLI(t, "env", "cp", place+"/arrived", "-")
		return code == 0 && strings.Contains(out, "whole")
	})
	return u
}

// end waits for the upload to fail by itself.
func (u *upload) end(t *testing.T) (string, int) {
	t.Helper()
	ended := make(chan struct{})
	go func() { _ = u.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(60 * time.Second):
		t.Fatal("the upload did not end")
	}
	return u.text.String(), u.ProcessState.ExitCode()
}

// keptWhole looks at what an upload that broke off has left.
func (n *Node) keptWhole(t *testing.T) {
	t.Helper()
	out, errs, code := n.CLI(t, "env", "cp", "box:/home/app", "-")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, errs)
	}
	files := runtimetest.Unarchive(t, strings.NewReader(out))
	if files["app/kept"] != "old" || files["app/arrived"] != "whole" {
		t.Errorf("there is %.20q and %.20q", files["app/kept"], files["app/arrived"])
	}
	for name := range files {
		if strings.Contains(name, ".remotegpu-copy") {
			t.Errorf("%s was left", name)
		}
	}
}

func (n *Node) putOld(t *testing.T) {
	t.Helper()
	old := filepath.Join(t.TempDir(), "kept")
	if err := os.WriteFile(old, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.Must(t, "env", "cp", old, "box:/home/app/kept")
}

func testCopyInterrupted(t *testing.T, n *Node) {
	t.Helper()
	n.putOld(t)
	// Its caller vanishes.
	u := n.startUpload(t)
	if err := u.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = u.Wait()
	n.keptWhole(t)
	// The environment is stopped, and started while one goes on.
	u = n.startUpload(t)
	n.Must(t, "env", "stop", "box")
	if text, code := u.end(t); code != 4 || !strings.Contains(text, "meanwhile") {
		t.Errorf("stopped: exit %d: %s", code, text)
	}
	n.keptWhole(t)
	u = n.startUpload(t)
	n.Must(t, "env", "start", "box")
	if text, code := u.end(t); code != 4 || !strings.Contains(text, "meanwhile") {
		t.Errorf("started: exit %d: %s", code, text)
	}
	n.keptWhole(t)
	if got := n.inside(t, "cat", "/home/app/kept"); got != "old" {
		t.Errorf("inside: %.20q", got)
	}
}

func testCopyStopped(t *testing.T, n *Node) {
	t.Helper()
	n.Must(t, "env", "stop", "box")
	from, back := here(t), t.TempDir()
	n.Must(t, "env", "cp", from, "box:/home/app/while-stopped")
	n.Must(t, "env", "cp", "box:/home/app/while-stopped", back)
	n.Sh(t, "diff -r --no-dereference "+from+" "+back+"/while-stopped")
	for _, place := range []string{"box:/data", "box:/data/x", "box:/scratch/x", "box:/proc/x", "box:/etc/hosts"} {
		n.fails(t, 4, "", "env", "cp", from+"/a", place)
	}
	n.fails(t, 4, "only while the environment runs", "env", "cp", "box:/data", back)
	n.Must(t, "env", "start", "box")
	if got := n.inside(t, "cat", "/home/app/while-stopped/sub/link"); got != "text of a" {
		t.Errorf("inside: %q", got)
	}
	// One whose process has ended by itself.
	n.Must(t, "env", "create", "short", "--image", n.Image, "--", "write", "/home/app/left", "behind")
	Eventually(t, "it to end", func() bool { return n.Get(t, "short").State == "ENVIRONMENT_STATE_STOPPED" })
	n.Must(t, "env", "cp", "short:/home/app/left", back)
	if text, err := os.ReadFile(back + "/left"); err != nil || string(text) != "behind" {
		t.Errorf("%q %v", text, err)
	}
	n.Must(t, "env", "cp", from+"/a", "short:/home/app")
	n.Must(t, "env", "rm", "short")
}

func testCopyVolume(t *testing.T, n *Node) {
	t.Helper()
	from, back := here(t), t.TempDir()
	n.Must(t, "volume", "cp", from, "data:/copied")
	if got := n.inside(t, "cat", "/data/copied/a"); got != "text of a" {
		t.Errorf("inside: %q", got)
	}
	n.inside(t, "write", "/data/made", "inside")
	n.Must(t, "volume", "cp", "data:made", back)
	if text, err := os.ReadFile(back + "/made"); err != nil || string(text) != "inside" {
		t.Errorf("out came %q %v", text, err)
	}
	n.Must(t, "volume", "cp", "data:/", back+"/all")
	n.Sh(t, "diff -r --no-dereference "+from+" "+back+"/all/copied")
	n.fails(t, 3, "there is no volume", "volume", "cp", from, "absent:/")
	n.fails(t, 3, "does not exist", "volume", "cp", "data:/../../../etc/passwd", back)
	n.fails(t, 2, "there is no user", "volume", "cp", "--owner", "app", from, "data:/")
	n.fails(t, 2, "-a keeps owners", "volume", "cp", "--owner", "app", "-", "data:/", "-a")
}

func testCopyKilled(t *testing.T, n *Node) {
	t.Helper()
	n.putOld(t)
	for _, state := range []string{"running", "stopped"} {
		if state == "stopped" {
			n.Must(t, "env", "stop", "box")
		}
		u := n.startUpload(t)
		n.Stop(t, syscall.SIGKILL)
		if text, code := u.end(t); code == 0 {
			t.Errorf("%s: the upload went: %s", state, text)
		}
		if mounts := n.layers(t); state == "stopped" && len(mounts) > 0 {
			t.Errorf("the dead daemon left %q", mounts)
		}
		n.Run(t)
		n.keptWhole(t)
	}
	n.Must(t, "env", "start", "box")
	if got := n.inside(t, "cat", "/home/app/kept"); got != "old" {
		t.Errorf("inside: %.20q", got)
	}
}

// layers are the writable layers that are mounted.
func (n *Node) layers(t *testing.T) (found []string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "upperdir="+n.Containerd.Dir) {
			found = append(found, line)
		}
	}
	return found
}
