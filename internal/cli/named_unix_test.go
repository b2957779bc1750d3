//go:build !windows

package cli_test

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/cli"
	"github.com/remotegpu/remotegpu/internal/testutil"
)

// No test here may name a device of the host: a program that is wrong would
// replace it.

// fifo makes a FIFO with a reader, which tells what came.
func fifo(t *testing.T, path string) (came func() string) {
	t.Helper()
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	// Opened for both, an open waits for nobody and a read for a writer.
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return func() string {
		buffer := make([]byte, 1<<10)
		_ = file.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, err := file.Read(buffer)
		if err != nil {
			t.Errorf("nothing came through %s: %v", path, err)
		}
		return string(buffer[:n])
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// look says what is under a name: its mode, and the text of a plain file.
func look(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		return "nothing"
	}
	if !info.Mode().IsRegular() {
		return info.Mode().String()
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().String() + " " + string(text)
}

// What the caller named is written to as with cp: a FIFO stays one, a link
// stays and leads to what is written, and a file keeps its permissions.
func TestCopyToNamed(t *testing.T) {
	for _, noun := range []string{"env", "volume"} {
		t.Run(noun, func(t *testing.T) {
			f := newFake(t)
			sides(t, f)
			came := fifo(t, "fifo")
			for name, target := range map[string]string{"tofifo": "fifo", "tosecret": "empty/../tosecret2", "tosecret2": "secret", "loop": "loop"} {
				if err := os.Symlink(target, name); err != nil {
					t.Fatal(err)
				}
			}
			for _, target := range []string{"fifo", "tofifo"} {
				if code, _, stderr := f.run(t, noun, "cp", "demo:/file", target); code != 0 || came() != "file" {
					t.Errorf("%s: code %d: %s", target, code, stderr)
				}
			}
			write(t, "secret", "old", 0o600)
			write(t, "program", "old", 0o4755)
			write(t, filepath.Join(f.files, "open"), "new", 0o666)
			for target, want := range map[string]string{"tosecret": "secret -rw------- new", "secret": "secret -rw------- new", "program": "program -rwxr-xr-x new"} {
				code, _, stderr := f.run(t, noun, "cp", "demo:/open", target)
				name, want, _ := strings.Cut(want, " ")
				if got := look(t, name); code != 0 || got != want {
					t.Errorf("%s: code %d: %s; %s, want %s", target, code, stderr, got, want)
				}
				write(t, "secret", "old", 0o600)
			}
			// A new one has no permissions that this user gives to nobody.
			if code, _, stderr := f.run(t, noun, "cp", "demo:/open", "new"); code != 0 || look(t, "new") != (0o666&^cli.Umask()).String()+" new" {
				t.Errorf("code %d: %s; %s", code, stderr, look(t, "new"))
			}
			for _, args := range []string{"--no-overwrite demo:/open fifo", "demo:/open loop", "demo:/link fifo", "demo:/open empty/../fifo/"} {
				if code, _, _ := f.run(t, append([]string{noun, "cp"}, strings.Fields(args)...)...); code == 0 {
					t.Errorf("%s went", args)
				}
			}
			for name, want := range map[string]string{"fifo": "prw-------", "tofifo": "Lrwxrwxrwx", "tosecret": "Lrwxrwxrwx", "loop": "Lrwxrwxrwx"} {
				if got := look(t, name); got != want {
					t.Errorf("%s became %s", name, got)
				}
			}
			if got := listing(t, "."); strings.Contains(got, ".remotegpu") {
				t.Errorf("there is %s", got)
			}
		})
	}
}

// Links, FIFOs and files that are in the way below the target are not what the
// caller named: nothing goes through them.
func TestCopyThroughNothing(t *testing.T) {
	f := newFake(t)
	there := sides(t, f)
	write(t, filepath.Join(there, "dir/x"), "evil", 0o777)
	write(t, filepath.Join(there, "x"), "evil", 0o777)
	if err := os.Mkdir("out", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, "kept", "kept", 0o600)
	if err := os.Symlink("../empty", "out/dir"); err != nil { // as an archive before has left it
		t.Fatal(err)
	}
	if code, _, stderr := f.run(t, "env", "cp", "demo:/dir", "out"); code != 4 || !strings.Contains(stderr, "out/dir") {
		t.Errorf("a directory over a link: %d %s", code, stderr)
	}
	for _, from := range []string{"demo:/x", "demo:/dir/."} {
		_ = os.Remove("out/x")
		if err := os.Symlink("../kept", "out/x"); err != nil {
			t.Fatal(err)
		}
		if code, _, stderr := f.run(t, "env", "cp", from, "out"); code != 0 || !strings.HasSuffix(look(t, "out/x"), " evil") {
			t.Errorf("%s over a link: %d %s %s", from, code, stderr, look(t, "out/x"))
		}
		write(t, "out/x", "old", 0o600)
		if code, _, stderr := f.run(t, "env", "cp", from, "out"); code != 0 || look(t, "out/x") != "-rw------- evil" {
			t.Errorf("%s over a file: %d %s %s", from, code, stderr, look(t, "out/x"))
		}
		_ = os.Remove("out/x")
		if err := syscall.Mkfifo("out/x", 0o600); err != nil {
			t.Fatal(err)
		}
		if code, _, stderr := f.run(t, "env", "cp", from, "out"); code != 4 || look(t, "out/x") != "prw-------" || !strings.Contains(stderr, "FIFO") {
			t.Errorf("%s over a FIFO: %d %s %s", from, code, stderr, look(t, "out/x"))
		}
	}
	if got := listing(t, "empty") + look(t, "kept"); got != "-rw------- kept" {
		t.Errorf("outside there is %s", got)
	}
	// What is alone in a stream is a file, or a link, which is told.
	for kind, want := range map[byte]int{tar.TypeLink: 4, tar.TypeFifo: 4, tar.TypeChar: 4, tar.TypeDir: 4} {
		f.hostile, f.lone = []tar.Header{{Name: "d", Typeflag: kind, Linkname: "kept"}}, true
		if code, _, stderr := f.run(t, "env", "cp", "demo:/d", "alone"); code != want || look(t, "alone") != "nothing" {
			t.Errorf("%c: %d %s %s", kind, code, stderr, look(t, "alone"))
		}
	}
	f.hostile = []tar.Header{{Name: "d", Typeflag: tar.TypeSymlink, Linkname: "/e\x1b[m"}}
	if code, _, stderr := f.run(t, "env", "cp", "demo:/d", "alone"); code != 0 || !strings.Contains(stderr, "it is a link to /e") || strings.Contains(stderr, "\x1b") {
		t.Errorf("a link: %d %q", code, stderr)
	}
}

// Standard output has names; what goes there does not look for a directory.
func TestCopyToDescriptor(t *testing.T) {
	f := newFake(t)
	sides(t, f)
	read, written, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer written.Close()
	kept, err := os.OpenFile("kept", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	if _, err := kept.WriteString("before "); err != nil {
		t.Fatal(err)
	}
	for _, file := range []*os.File{written, kept} {
		if err := os.Symlink(fmt.Sprintf("/dev/fd/%d", file.Fd()), "out"); err != nil {
			t.Fatal(err)
		}
		if code, _, stderr := f.run(t, "env", "cp", "demo:/file", "out"); code != 0 {
			t.Errorf("code %d: %s", code, stderr)
		}
		_ = os.Remove("out")
	}
	written.Close()
	if text, err := io.ReadAll(read); err != nil || string(text) != "file" {
		t.Errorf("through the pipe came %q, %v", text, err)
	}
	if got := look(t, "kept"); got != "-rw------- before file" {
		t.Errorf("the file that was open is %s", got)
	}
}

// Nobody reads from the FIFO: an interrupt ends the wait.
func TestCopyToFIFOInterrupted(t *testing.T) {
	f := newFake(t)
	sides(t, f)
	if err := syscall.Mkfifo("fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		code, _, _ := f.runWith(ctx, "", map[string]string{}, "env", "cp", "demo:/file", "fifo")
		ended <- code
	}()
	time.AfterFunc(100*time.Millisecond, cancel) // before it is opened, or while it waits: both end it
	select {
	case code := <-ended:
		if code == 0 {
			t.Error("it went")
		}
	case <-time.After(20 * time.Second):
		t.Error("it waits on")
	}
	// The open that was left is let go.
	if file, err := os.OpenFile("fifo", os.O_RDONLY|syscall.O_NONBLOCK, 0); err == nil {
		file.Close()
	}
}

// A device is written to wherever a file is saved. This one is the test's own.
func TestSaveToDevice(t *testing.T) {
	testutil.Require(t, testutil.Root)
	f := newFake(t)
	there := sides(t, f)
	f.archive, f.picture = []byte("archive"), []byte("picture")
	mode := uint32(syscall.S_IFCHR | 0o666)
	if err := syscall.Mknod("null", mode, 1<<8|3); err != nil { // as /dev/null has it
		t.Fatal(err)
	}
	if err := os.Symlink("null", "tonull"); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(there, "null"), "evil", 0o666)
	for _, args := range []string{
		"env cp demo:/file null", "env cp demo:/file tonull", "env cp -a demo:/file null", "volume cp demo:/file null",
		"image export x/y -f null", "image export x/y -f tonull", "desktop screenshot demo -o null", "desktop screenshot demo -o tonull",
		"! env cp demo:/null .", "! env cp demo:/. .", "! env cp demo:/link null", "! env cp null demo:/nn", "! env cp tonull -L demo:/nn",
	} {
		fields := strings.Fields(args)
		fails := fields[0] == "!"
		if fails {
			fields = fields[1:]
		}
		code, _, stderr := f.run(t, fields...)
		if code != 0 != fails {
			t.Errorf("%s: code %d: %s", args, code, stderr)
		}
		if got := look(t, "null") + look(t, "tonull"); got != "Dcrw-rw-rw-Lrwxrwxrwx" && got != "Dcrw-r--r--Lrwxrwxrwx" {
			t.Fatalf("after %s: %s", args, got)
		}
	}
	if got := look(t, filepath.Join(there, "nn")); got != "nothing" {
		t.Errorf("there is %s", got)
	}
}

// An archive of images and a picture go along links as copies do. Pictures show
// secrets.
func TestSaveToNamed(t *testing.T) {
	f := newFake(t)
	t.Chdir(t.TempDir())
	f.archive, f.picture = []byte("archive"), []byte("picture")
	write(t, "file", "old", 0o640)
	if err := os.Symlink("file", "link"); err != nil {
		t.Fatal(err)
	}
	came := fifo(t, "fifo")
	if code, _, stderr := f.run(t, "image", "export", "x/y", "-f", "link"); code != 0 || look(t, "file") != "-rw-r----- archive" {
		t.Errorf("code %d: %s; %s", code, stderr, look(t, "file"))
	}
	if code, _, stderr := f.run(t, "image", "export", "x/y", "-f", "fifo"); code != 0 || came() != "archive" {
		t.Errorf("code %d: %s", code, stderr)
	}
	if code, _, stderr := f.run(t, "desktop", "screenshot", "demo", "-o", "link"); code != 0 || look(t, "file") != "-rw------- picture" {
		t.Errorf("code %d: %s; %s", code, stderr, look(t, "file"))
	}
	if got := listing(t, "."); look(t, "link") != "Lrwxrwxrwx" || look(t, "fifo") != "prw-------" || strings.Contains(got, ".remotegpu") {
		t.Errorf("there is %s", got)
	}
	// A device that is no terminal takes what is binary.
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, args := range []string{"image export x/y", "desktop screenshot demo -o -"} {
		var errs strings.Builder
		code := cli.Run(t.Context(), strings.Fields(args), strings.NewReader(""), null, &errs, func(string) string { return f.addr })
		if code != 0 {
			t.Errorf("%s: code %d: %s", args, code, errs.String())
		}
	}
}

// Hard links among what is copied stay hard links.
func TestCopyHardLinks(t *testing.T) {
	f := newFake(t)
	there := sides(t, f)
	for _, name := range []string{"dir/again", "dir/sub/again"} {
		if err := os.Link("dir/a", name); err != nil {
			t.Fatal(err)
		}
	}
	same := func(dir, a, b string) bool {
		first, err := os.Stat(filepath.Join(dir, a))
		second, err2 := os.Stat(filepath.Join(dir, b))
		return err == nil && err2 == nil && os.SameFile(first, second)
	}
	for _, args := range []string{"env cp dir demo:/new1", "env cp -a dir demo:/new2", "volume cp dir/. demo:/empty"} {
		code, _, stderr := f.run(t, strings.Fields(args)...)
		_, to, _ := strings.Cut(args, ":")
		if to = filepath.Join(there, to); code != 0 || !same(to, "a", "again") || !same(to, "a", "sub/again") || same(to, "a", "sub/b") {
			t.Errorf("%s: code %d: %s; %s", args, code, stderr, listing(t, to))
		}
	}
	// And on their way back.
	if code, _, stderr := f.run(t, "env", "cp", "demo:/new1", "back"); code != 0 || !same("back", "a", "sub/again") {
		t.Errorf("code %d: %s; %s", code, stderr, listing(t, "back"))
	}
	// One name of several that is named alone is a file.
	if code, _, stderr := f.run(t, "env", "cp", "dir/again", "demo:/one"); code != 0 || !strings.HasSuffix(look(t, filepath.Join(there, "one")), " a") {
		t.Errorf("code %d: %s", code, stderr)
	}
}

// What is named and cannot be copied is an error; below what is named it is
// left out, which is told.
func TestCopyOfFIFO(t *testing.T) {
	f := newFake(t)
	there := sides(t, f)
	if err := syscall.Mkfifo("dir/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := f.run(t, "env", "cp", "dir/fifo", "demo:/new"); code != 4 || !strings.Contains(stderr, "FIFO") || !strings.Contains(stderr, "Try:") {
		t.Errorf("code %d: %s", code, stderr)
	}
	if got := look(t, filepath.Join(there, "new")); got != "nothing" {
		t.Errorf("there is %s", got)
	}
	if code, _, stderr := f.run(t, "env", "cp", "dir", "demo:/new"); code != 0 || !strings.Contains(stderr, "1 devices, sockets or FIFOs were left out") {
		t.Errorf("code %d: %s", code, stderr)
	}
}
