package desktop_test

import (
	"context"
	"encoding/binary"
	"errors"
	"image/png"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/desktop"
	"github.com/remotegpu/remotegpu/desktop/rfb"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
)

func newDesktops(t *testing.T) (*desktop.Desktops, string) {
	t.Helper()
	testutil.Require(t, testutil.Root) // a tmpfs is mounted
	dir := filepath.Join(shortDir(t), "desktop")
	d := desktop.New(desktop.Config{Dir: dir, InEnvironment: mine, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() {
		if err := d.Remove(context.WithoutCancel(t.Context()), env); err != nil {
			t.Error(err)
		}
	})
	return d, dir
}

var _ runtime.Desktops = (*desktop.Desktops)(nil)

func TestPrepareAndRemove(t *testing.T) {
	d, dir := newDesktops(t)
	if ids, err := d.Prepared(t.Context()); err != nil || len(ids) != 0 {
		t.Fatalf("prepared before: %v, %v", ids, err)
	}
	mounts, vars, err := d.Prepare(t.Context(), env, runtime.Desktop{Width: 1920, Height: 1080, Depth: 24})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"DISPLAY=:1", "VNC_RESOLUTION=1920x1080", "VNC_COLOR_DEPTH=24",
		"REMOTEGPU_RFB_SOCKET=/run/remotegpu/rfb/rfb.sock",
		"REMOTEGPU_VNC_PASSWORD_FILE=/run/remotegpu/secret/vncpasswd",
	}
	if !slices.Equal(vars, want) {
		t.Errorf("variables are %q", vars)
	}
	if len(mounts) != 2 || mounts[0].Target != "/run/remotegpu/rfb" || !slices.Contains(mounts[0].Options, "rw") ||
		mounts[1].Target != "/run/remotegpu/secret" || !slices.Contains(mounts[1].Options, "ro") {
		t.Fatalf("mounts are %+v", mounts)
	}
	for path, mode := range map[string]uint32{
		dir: 0o700, filepath.Join(dir, env): 0o700, mounts[1].Source: 0o700,
		mounts[0].Source: 0o1777, filepath.Join(mounts[1].Source, "vncpasswd"): 0o600,
	} {
		var stat unix.Stat_t
		if err := unix.Stat(path, &stat); err != nil || stat.Mode&0o7777 != mode {
			t.Errorf("%s has mode %o, %v, want %o", path, stat.Mode&0o7777, err, mode)
		}
	}
	// The tenant must not fill the host's /run.
	if err := os.WriteFile(filepath.Join(mounts[0].Source, "big"), make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a megabyte fits: %v", err)
	}
	passwords := readPasswords(t, dir)
	if passwords.Full == passwords.ViewOnly || len(passwords.Full) != 8 || len(passwords.ViewOnly) != 8 {
		t.Error("the passwords are not two of 8 characters")
	}
	for _, v := range vars {
		if strings.Contains(v, passwords.Full) || strings.Contains(v, passwords.ViewOnly) {
			t.Error("a password is in the environment")
		}
	}
	// Again: nothing changes, nothing is mounted twice.
	if _, _, err := d.Prepare(t.Context(), env, runtime.Desktop{Width: 800, Height: 600, Depth: 24}); err != nil {
		t.Fatal(err)
	}
	if readPasswords(t, dir) != passwords {
		t.Error("the passwords changed")
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Count(string(table), mounts[0].Source) != 1 {
		t.Errorf("mounted %d times, %v", strings.Count(string(table), mounts[0].Source), err)
	}
	if ids, err := d.Prepared(t.Context()); err != nil || !slices.Equal(ids, []string{env}) {
		t.Errorf("prepared: %v, %v", ids, err)
	}
	for range 2 {
		if err := d.Remove(t.Context(), env); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := d.Prepared(t.Context()); err != nil || len(ids) != 0 {
		t.Errorf("prepared after: %v, %v", ids, err)
	}
	if table, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(table), dir) {
		t.Errorf("a mount is left, %v", err)
	}
}

func TestPrepareThatFailsLeavesNothing(t *testing.T) {
	d, dir := newDesktops(t)
	if _, _, err := d.Prepare(t.Context(), "../"+env, runtime.Desktop{}); err == nil {
		t.Error("prepared outside of its directory")
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // where the directory should be
		t.Fatal(err)
	}
	if _, _, err := d.Prepare(t.Context(), env, runtime.Desktop{}); err == nil {
		t.Fatal("prepared in a file")
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Connect(t.Context(), env, false); problem.Of(err).Reason != problem.DesktopAbsent {
		t.Errorf("connect to no desktop: %v", err)
	}
}

func readPasswords(t *testing.T, dir string) rfb.Passwords {
	t.Helper()
	file, err := os.ReadFile(filepath.Join(dir, env, "secret", "vncpasswd"))
	if err != nil {
		t.Fatal(err)
	}
	passwords, err := rfb.DecodePasswords(file)
	if err != nil {
		t.Fatal(err)
	}
	return passwords
}

// serve answers RFB connections on the environment's socket as a VNC server
// that takes any password and shows as many colours as colours says.
func serve(t *testing.T, dir string, colours *atomic.Int64, behave func(net.Conn) bool) {
	t.Helper()
	listener, err := net.Listen("unix", filepath.Join(dir, env, "rfb", "rfb.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if behave == nil || behave(conn) {
					vnc(conn, int(colours.Load()))
				}
			}()
		}
	}()
}

func vnc(conn net.Conn, colours int) {
	const width, height = 100, 50
	in := make([]byte, 1024)
	read := func(n int) { _, _ = io.ReadFull(conn, in[:n]) }
	_, _ = conn.Write([]byte("RFB 003.008\n"))
	read(12)
	_, _ = conn.Write([]byte{1, 2})
	read(1)
	_, _ = conn.Write(make([]byte, 16))
	read(16)
	_, _ = conn.Write(make([]byte, 4))
	read(1)
	_, _ = conn.Write(rfb.ServerInit{Width: width, Height: height, Name: "test"}.Append(nil))
	read(20 + 4 + 12 + 10)
	frame := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 1, 0, 0, 0, 0, 0, width, 0, height}, 0)
	for i := range width * height {
		frame = append(frame, byte(i%colours), 1, 2, 0)
	}
	_, _ = conn.Write(frame)
	_, _ = io.Copy(io.Discard, conn)
}

func TestReadinessFollowsTheDesktop(t *testing.T) {
	d, dir := newDesktops(t)
	if _, err := d.Readiness(t.Context(), env); problem.Of(err).Reason != problem.DesktopAbsent {
		t.Errorf("readiness of no desktop: %v", err)
	}
	if _, _, err := d.Prepare(t.Context(), env, runtime.Desktop{Width: 100, Height: 50, Depth: 24}); err != nil {
		t.Fatal(err)
	}
	ready, err := d.Readiness(t.Context(), env)
	if err != nil || ready.Level != desktop.Starting || !strings.Contains(ready.Detail, "no socket yet") {
		t.Errorf("before it listens: %+v, %v", ready, err)
	}
	early, end := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer end()
	if err := d.AwaitConnectable(early, env); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no socket yet") {
		t.Errorf("connect before it listens: %v", err)
	}
	var colours atomic.Int64
	colours.Store(1)
	serve(t, dir, &colours, nil)
	ready, err = d.Readiness(t.Context(), env)
	want := desktop.Readiness{Level: desktop.Connectable, Width: 100, Height: 50, Colours: 1, Detail: ready.Detail}
	if err != nil || ready != want || !strings.Contains(ready.Detail, "1 colours") {
		t.Errorf("while black: %+v, %v", ready, err)
	}
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := d.AwaitDrawn(short, env); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("await a black desktop: %v", err)
	}
	if err := d.AwaitConnectable(t.Context(), env); err != nil {
		t.Errorf("connect to a black desktop: %v", err)
	}
	time.AfterFunc(300*time.Millisecond, func() { colours.Store(60) })
	if err := d.AwaitDrawn(t.Context(), env); err != nil {
		t.Fatal(err)
	}
	ready, err = d.Readiness(t.Context(), env)
	if want := (desktop.Readiness{Level: desktop.Drawn, Width: 100, Height: 50, Colours: 60}); err != nil || ready != want {
		t.Errorf("when drawn: %+v, %v", ready, err)
	}
	data, width, height, err := d.ScreenshotPNG(t.Context(), env)
	if err != nil || width != 100 || height != 50 {
		t.Fatalf("screenshot %dx%d, %v", width, height, err)
	}
	img, err := png.Decode(strings.NewReader(string(data)))
	if err != nil || img.Bounds().Dx() != 100 {
		t.Errorf("PNG: %v", err)
	}
	if r, g, b, _ := img.At(7, 0).RGBA(); r>>8 != 7 || g>>8 != 1 || b>>8 != 2 {
		t.Errorf("pixel 7 is %d %d %d", r>>8, g>>8, b>>8)
	}
}

// A server that never answers, or ends at once, holds nobody.
func TestHostileServers(t *testing.T) {
	for name, behave := range map[string]func(net.Conn) bool{
		"silent": func(conn net.Conn) bool { _, _ = io.Copy(io.Discard, conn); return false },
		"ends":   func(net.Conn) bool { return false },
		"no RFB": func(conn net.Conn) bool { _, _ = conn.Write([]byte("220 mail ready\r\n")); return false },
		"huge": func(conn net.Conn) bool {
			_, _ = conn.Write([]byte("RFB 003.008\n\x01\x02" + strings.Repeat("c", 16) + strings.Repeat("\x00", 4)))
			_, _ = conn.Write(rfb.ServerInit{Width: 65535, Height: 65535}.Append(nil))
			_, _ = io.Copy(io.Discard, conn)
			return false
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, dir := newDesktops(t)
			if _, _, err := d.Prepare(t.Context(), env, runtime.Desktop{Width: 100, Height: 50, Depth: 24}); err != nil {
				t.Fatal(err)
			}
			serve(t, dir, new(atomic.Int64), behave)
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			if _, _, _, err := d.ScreenshotPNG(ctx, env); err == nil || problem.Of(err).Reason != problem.DesktopUnavailable {
				t.Errorf("screenshot: %v", err)
			}
		})
	}
}

func TestPasswordOfTheRequest(t *testing.T) {
	d, _ := newDesktops(t)
	file := func(password string) rfb.Passwords {
		t.Helper()
		mounts, _, err := d.Prepare(t.Context(), env, runtime.Desktop{Width: 800, Height: 600, Depth: 24, Password: password})
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(mounts[1].Source, "vncpasswd"))
		if err != nil {
			t.Fatal(err)
		}
		passwords, err := rfb.DecodePasswords(text)
		if err != nil {
			t.Fatal(err)
		}
		return passwords
	}
	first := file("secret12")
	if first.Full != "secret12" || first.ViewOnly == "secret12" || first.ViewOnly == "" {
		t.Errorf("got %+v", first)
	}
	if again := file("secret12"); again != first {
		t.Errorf("the same password changed the file: %+v, was %+v", again, first)
	}
	if other := file("another1"); other.Full != "another1" {
		t.Errorf("got %+v", other)
	}
	if kept := file(""); kept.Full != "another1" {
		t.Errorf("without a password the old one is kept: %+v", kept)
	}
}
