package rootfs_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
)

// mount mounts below the root until the test ends.
func (tr *tree) mount(t *testing.T, source, name, kind string, flags uintptr, data string) {
	t.Helper()
	if err := os.MkdirAll(tr.path(name), 0o755); err != nil && !errors.Is(err, unix.ENOTDIR) {
		t.Fatal(err)
	}
	if err := unix.Mount(source, tr.path(name), kind, flags, data); err != nil {
		t.Fatalf("mount %s: %v", name, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(tr.path(name), 0); err != nil { // busy when something was left open
			t.Errorf("unmount %s: %v", name, err)
			_ = unix.Unmount(tr.path(name), unix.MNT_DETACH)
		}
	})
}

// The kernel's file systems are out of reach, through names and through links.
func TestFileSystemsOfTheKernel(t *testing.T) {
	testutil.Require(t, testutil.Root)
	tr := newTree(t)
	tr.mount(t, "proc", "proc", "proc", 0, "")
	tr.mount(t, "sysfs", "sys", "sysfs", unix.MS_RDONLY, "")
	tr.mount(t, "none", "dev", "tmpfs", 0, "")
	if err := unix.Mknod(tr.path("dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	self := fmt.Sprintf("/proc/%d", os.Getpid())
	tr.link(t, self+"/root", "host")
	tr.link(t, self+"/cwd", "cwd")
	tr.link(t, self+"/fd/0", "to/fd")
	for _, name := range []string{
		"/proc", "/proc/self/status", "/proc/sys/kernel/hostname", "/sys/kernel", self + "/root", self + "/root" + tr.outside, "host", "host/etc/passwd",
		"host" + tr.outside + "/secret", "cwd", "to/fd", self + "/fd/0", self + "/exe", self + "/ns/mnt", "/dev/../proc/1/environ",
	} {
		if _, err := tr.Stat(name, true); err == nil {
			t.Errorf("%s was found", name)
		}
		if _, _, _, err := tr.pack(t, name, true); err == nil {
			t.Errorf("%s came out", name)
		}
		if _, err := tr.extract(t, name, mine(), file("x", "x")); err == nil {
			t.Errorf("%s took a file", name)
		}
	}
	for _, name := range []string{"proc/sys/kernel/core_pattern", "proc/x", "sys/x", "host/x", "to/fd"} {
		entries := []entry{file(name, "x")}
		if name == "to/fd" {
			entries = []entry{{Header: tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: name}}}
		}
		if _, err := tr.extract(t, "/", mine(), entries...); err == nil {
			t.Errorf("%s was written", name)
		}
	}
	headers, _, done, err := tr.pack(t, "/", false)
	if err != nil || strings.Contains(names(headers), "proc/s") || !strings.Contains(names(headers), " proc/ ") || !strings.Contains(names(headers), " sys/") {
		t.Errorf("all: %.200s %v", names(headers), err)
	}
	if done.Skipped != 1 { // the device
		t.Errorf("skipped %d", done.Skipped)
	}
	if _, _, _, err := tr.pack(t, "/dev/null", true); problem.Of(err).Reason != problem.FileNotAllowed {
		t.Errorf("a device: %v", err)
	}
	if info, err := tr.Stat("/dev/null", true); err != nil || info.Size != 0 {
		t.Errorf("a device: %+v %v", info, err)
	}
	// A FIFO is replaced and a device refused; neither is opened.
	if err := syscall.Mkfifo(tr.path("dev/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.extract(t, "/dev", mine(), file("fifo", "y")); err != nil || tr.read(t, "dev/fifo") != "y" {
		t.Errorf("over a FIFO: %v", err)
	}
	_, err = tr.extract(t, "/dev", mine(), file("null", "x"))
	wantReason(t, "over a device", err, problem.FileConflict)
}

// A bind of a file of /proc looks like a plain file.
func TestFileOfProcElsewhere(t *testing.T) {
	testutil.Require(t, testutil.Root)
	tr := newTree(t)
	tr.write(t, "to/file", "")
	tr.mount(t, "/proc/1/environ", "to/file", "", unix.MS_BIND, "")
	if headers, _, done, err := tr.pack(t, "to", false); err != nil || names(headers) != "to/" || done.Skipped != 1 {
		t.Errorf("%s %+v %v", names(headers), done, err)
	}
	if _, _, _, err := tr.pack(t, "to/file", false); err == nil {
		t.Error("it came out")
	}
}

func TestMounts(t *testing.T) {
	testutil.Require(t, testutil.Root)
	tr := newTree(t)
	tr.write(t, "to/hosts", "old")
	tr.write(t, "etc/hosts", "mounted")
	tr.mount(t, tr.path("etc/hosts"), "to/hosts", "", unix.MS_BIND, "")
	tr.mount(t, "none", "to/ro", "tmpfs", unix.MS_RDONLY, "")
	tr.mount(t, "none", "to/vol", "tmpfs", 0, "size=1m")
	_, err := tr.extract(t, "to", mine(), file("hosts", "new"))
	wantReason(t, "a mounted file", err, problem.FileNotAllowed)
	_, err = tr.extract(t, "to", mine(), file("ro/x", "x"))
	wantReason(t, "read-only", err, problem.FileNotAllowed)
	_, err = tr.extract(t, "to", mine(), entry{Header: tar.Header{Name: "ro/x", Typeflag: tar.TypeSymlink, Linkname: "x"}})
	wantReason(t, "link, read-only", err, problem.FileNotAllowed)
	if _, err = tr.extract(t, "to", mine(), file("vol/old", "old")); err != nil || tr.read(t, "to/vol/old") != "old" {
		t.Errorf("into a mount: %v", err)
	}
	_, err = tr.extract(t, "to", mine(), file("x", "x"), entry{Header: tar.Header{Name: "vol/x", Typeflag: tar.TypeLink, Linkname: "x"}})
	wantReason(t, "hard link to another file system", err, problem.FileNotAllowed)
	// A full disk keeps what was there.
	done, err := tr.extract(t, "to", mine(), file("vol/first", "first"), file("vol/old", strings.Repeat("x", 2<<20)))
	wantReason(t, "full", err, problem.NoSpace)
	if tr.read(t, "to/vol/old") != "old" || tr.read(t, "to/vol/first") != "first" || done.Entries != 1 {
		t.Errorf("after a full disk: %q, %+v", tr.read(t, "to/vol/old"), done)
	}
	if _, err := tr.extract(t, "to", mine(), file("vol/again", strings.Repeat("x", 512<<10))); err != nil {
		t.Errorf("the space of what failed is not free: %v", err)
	}
	if headers, _, _, err := tr.pack(t, "to/vol", false); err != nil || !strings.Contains(names(headers), "vol/again") {
		t.Errorf("out of a mount: %s %v", names(headers), err)
	}
	_ = os.Remove(tr.path("to/vol/again"))
}

// Files of another file system than tmpfs: overlayfs, as environments have it.
func TestOverlay(t *testing.T) {
	testutil.Require(t, testutil.Root)
	lower, upper, work := t.TempDir(), t.TempDir(), t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(lower, "old"), []byte("old"), 0o600), os.WriteFile(filepath.Join(lower, "gone"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	tr := newTree(t)
	tr.mount(t, "overlay", "to", "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work))
	entries := []entry{
		file("old", "new"), file("dir/a", "a"),
		{Header: tar.Header{Name: "hard", Typeflag: tar.TypeLink, Linkname: "old"}},
		{Header: tar.Header{Name: "gone", Typeflag: tar.TypeSymlink, Linkname: "a"}},
	}
	for range 2 {
		if _, err := tr.extract(t, "to", mine(), entries...); err != nil {
			t.Fatal(err)
		}
		tr.WriteNamed()
	}
	if text, err := os.ReadFile(filepath.Join(upper, "old")); err != nil || string(text) != "new" || tr.read(t, "to/hard") != "new" {
		t.Errorf("%q %v", text, err)
	}
	if text, err := os.ReadFile(filepath.Join(lower, "old")); err != nil || string(text) != "old" {
		t.Errorf("the layer below has %q %v", text, err)
	}
	if headers, _, _, err := tr.pack(t, "to", false); err != nil || names(headers) != "to/ to/dir/ to/dir/a to/gone to/hard to/old" {
		t.Errorf("%s %v", names(headers), err)
	}
}

// A file with a lease that its owner does not give up is left out, without a
// wait, and so are its other names: they would be links to what is not there.
func TestLeasedFile(t *testing.T) {
	testutil.Require(t, testutil.Root)
	tr := newTree(t)
	tr.write(t, "to/leased", "x")
	if err := os.Link(tr.path("to/leased"), tr.path("to/another")); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(tr.path("to/leased"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := unix.FcntlInt(file.Fd(), unix.F_SETSIG, int(unix.SIGURG)); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skipf("no leases here: %v", err)
	}
	defer func() { _, _ = unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_UNLCK) }()
	if headers, _, done, err := tr.pack(t, "to", false); err != nil || names(headers) != "to/" || done.Skipped != 2 {
		t.Errorf("%s %+v %v", names(headers), done, err)
	}
}

// Somebody inside changes everything all the time: nothing outside is touched,
// and nothing outside comes out.
func TestHostileTree(t *testing.T) {
	testutil.Require(t, testutil.Root)
	tr := newTree(t)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			dir := tr.path([]string{"to/a", "to/a/b", "to/c"}[i%3])
			_ = os.RemoveAll(dir + ".moved")
			_ = os.Rename(dir, dir+".moved")
			switch i % 4 {
			case 0:
				_ = os.Symlink("../../outside", dir)
			case 1:
				_ = os.Symlink(tr.outside, dir)
			case 2:
				_ = syscall.Mkfifo(dir, 0o600)
			}
			_ = os.Remove(tr.path("to/secret"))
			_ = os.Symlink(tr.outside+"/secret", tr.path("to/secret"))
			if i%4 != 3 {
				_ = os.Remove(dir)
			}
			_ = os.Rename(dir+".moved", dir)
		}
	}()
	data := archive(t,
		file("a/", ""), file("a/b/", ""), file("a/b/secret", "evil"), file("secret", "evil"), file("a/secret", "evil"), file("c", "evil"),
		entry{Header: tar.Header{Name: "a/hard", Typeflag: tar.TypeLink, Linkname: "secret"}}, entry{Header: tar.Header{Name: "c", Typeflag: tar.TypeFifo}})
	wins := 0
	for begin := time.Now(); time.Since(begin) < 1500*time.Millisecond; {
		_, err := tr.Extract(t.Context(), "/to", bytes.NewReader(data), mine())
		if err == nil {
			wins++
		} else if problem.Of(err).Reason == problem.Internal {
			t.Errorf("extract: %v", err)
			break
		}
		var out bytes.Buffer
		if _, texts, _, err := tr.pack(t, "/to", true); err == nil {
			for name, text := range texts {
				if text == "secret" {
					t.Fatalf("%s came out", name)
				}
			}
		} else if problem.Of(err).Reason == problem.Internal {
			t.Errorf("pack: %v", err)
			break
		}
		out.Reset()
	}
	close(stop)
	<-stopped
	if wins == 0 {
		t.Log("no archive was taken out whole")
	}
}
