package browser_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/desktop"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network/gateway"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/test/browser"
)

const env = "01JAXENVIRONMENT0000000000"

// artifacts is where pictures go: kept when TEST_ARTIFACTS says where.
func artifacts(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("TEST_ARTIFACTS"); dir != "" {
		return dir
	}
	return t.TempDir()
}

// condition is what the gateway is told of every environment.
type condition struct{ atomic.Int32 }

func (c *condition) Condition(context.Context, string) (gateway.Condition, error) {
	return gateway.Condition(c.Load()), nil
}

type host struct {
	desktops *desktop.Desktops
	is       condition
	gateway  *gateway.Gateway
	dir      string
	end      func() error // the gateway
}

// start runs the real gateway, on an address that names need not resolve.
func start(t *testing.T) *host {
	t.Helper()
	testutil.Require(t, testutil.Root, testutil.Browser)
	if !gateway.HasNoVNC() {
		t.Fatal("the gateway has no viewer: run network/gateway/web/fetch.sh")
	}
	base, err := os.MkdirTemp("", "gw") //nolint:usetesting // its path is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	h := &host{dir: filepath.Join(base, "desktop")}
	h.desktops = desktop.New(desktop.Config{
		Dir: h.dir, InEnvironment: func(int, string) (bool, error) { return true, nil }, Log: log,
	})
	t.Cleanup(func() {
		if err := h.desktops.Remove(context.WithoutCancel(t.Context()), env); err != nil {
			t.Error(err)
		}
	})
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.gateway, err = gateway.New(gateway.Config{
		Listen: listener.Addr().String(), StateDir: filepath.Join(base, "state"), Desktops: h.desktops, Conditions: &h.is, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- h.gateway.Serve(ctx, listener) }()
	ended := false
	h.end = func() error {
		if ended {
			return nil
		}
		ended = true
		cancel()
		return <-served
	}
	t.Cleanup(func() {
		if err := h.end(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// desktop starts a real VNC server on the environment's socket and a terminal
// in it that shows 256 colours and then runs a shell.
func (h *host) desktop(t *testing.T) (stop func()) {
	t.Helper()
	if _, _, err := h.desktops.Prepare(t.Context(), env, runtime.Desktop{Width: 1000, Height: 700, Depth: 24}); err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(h.dir, env)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	xvnc := run(t, write, "Xvnc", "-displayfd", "3", "-geometry", "1000x700", "-depth", "24",
		"-rfbauth", filepath.Join(home, "secret", "vncpasswd"), "-SecurityTypes", "VncAuth", "-AlwaysShared",
		"-rfbport", "-1", "-rfbunixpath", filepath.Join(home, "rfb", "rfb.sock"), "-rfbunixmode", "0660",
		"-nolisten", "tcp", "-UseBlacklist=0", "-AcceptSetDesktopSize=1", "-desktop", "test desk")
	_ = write.Close()
	number := make(chan string, 1)
	go func() {
		data, _ := io.ReadAll(io.LimitReader(read, 16))
		number <- strings.TrimSpace(string(data))
	}()
	var display string
	select {
	case display = <-number:
	case <-time.After(time.Minute):
	}
	if display == "" {
		t.Fatal("Xvnc said no display number")
	}
	palette := `i=16; while [ $i -lt 256 ]; do printf '\033[48;5;%dm  ' $i; i=$((i+1)); done; printf '\033[0m\n'; exec sh`
	xterm := run(t, nil, "xterm", "-display", ":"+display, "-geometry", "120x40+0+0", "-e", "sh", "-c", palette)
	return func() { xterm(); xvnc() }
}

// run starts a program and returns what ends it.
func run(t *testing.T, extra *os.File, name string, args ...string) (end func()) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%s is not installed", name)
	}
	cmd := exec.Command(name, args...) // it outlives the test's context, so that it is ended in order
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	cmd.WaitDelay = 5 * time.Second
	if extra != nil {
		cmd.ExtraFiles = []*os.File{extra}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		_ = cmd.Process.Signal(os.Interrupt)
		timer := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		timer.Stop()
	}
	t.Cleanup(end)
	return end
}

// A person opens the link, sees the desktop, works in it, exchanges text,
// resizes it, and is told when it ends.
func TestDesktopInTheBrowser(t *testing.T) {
	h := start(t)
	stop := h.desktop(t)
	drawing, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := h.desktops.AwaitDrawn(drawing, env); err != nil {
		t.Fatal(err)
	}
	_, width, height, err := h.desktops.ScreenshotPNG(t.Context(), env)
	if err != nil || width != 1000 || height != 700 {
		t.Fatalf("screenshot: %v", err)
	}
	typed := filepath.Join(t.TempDir(), "typed")
	address, _, _ := h.gateway.Session(env, gateway.Control, time.Minute)
	pictures := artifacts(t)
	result := browser.Drive(t, browser.Options{},
		browser.Open(address), browser.Connected(), browser.Colours(50),
		browser.Point(300, 300, "left"), browser.Type("echo $((6*7)) > "+typed), browser.Press("Enter"),
		browser.Wait(500*time.Millisecond), browser.Screenshot(filepath.Join(pictures, "desktop.png")),
		browser.Click("#paste"), browser.Fill("#text", "héllo ✓"), browser.Screenshot(filepath.Join(pictures, "clipboard.png")),
		browser.Press("Escape"), browser.Click("#paste"), browser.Fill("#text", "echo pasted > "+typed+"2\n"), browser.Press("Escape"),
		browser.Wait(500*time.Millisecond), browser.Point(300, 300, "middle"), browser.Wait(time.Second), browser.Click("#fit"), browser.DesktopWidth(1280),
		browser.Screenshot(filepath.Join(pictures, "remote.png")),
	)
	if got := result.Steps[2].Canvas; got.Width != 1000 || got.Height != 700 {
		t.Errorf("the canvas is %+v", got)
	}
	for _, line := range result.Console {
		if strings.Contains(line, "Content Security Policy") || strings.HasPrefix(line, "error:") {
			t.Errorf("console: %s", line)
		}
	}
	if got, err := os.ReadFile(typed); err != nil || strings.TrimSpace(string(got)) != "42" {
		t.Errorf("what was typed ran as %q, %v", got, err)
	}
	if got, err := os.ReadFile(typed + "2"); err != nil || strings.TrimSpace(string(got)) != "pasted" {
		t.Errorf("what was pasted ran as %q, %v", got, err)
	}
	stop()
	browser.Drive(t, browser.Options{}, browser.Open(address), browser.Text("#detail", "does not answer yet"),
		browser.Screenshot(filepath.Join(pictures, "unavailable.png")))
	for is, text := range map[gateway.Condition]string{
		gateway.Stopped: "is stopped", gateway.Paused: "is paused", gateway.Failed: "has failed", gateway.Gone: "is gone",
	} {
		h.is.Store(int32(is))
		if got := browser.Drive(t, browser.Options{}, browser.Open(address), browser.State("stopped")).Steps[1].Text; !strings.Contains(got, text) {
			t.Errorf("condition %d: the page says %q, want %q", is, got, text)
		}
	}
}

func TestViewOnlyInTheBrowser(t *testing.T) {
	h := start(t)
	h.desktop(t)
	typed := filepath.Join(t.TempDir(), "typed")
	address, _, _ := h.gateway.Session(env, gateway.View, time.Minute)
	browser.Drive(t, browser.Options{Width: 700, Height: 500},
		browser.Open(address), browser.Connected(), browser.Colours(50),
		browser.Point(300, 300, "left"), browser.Type("echo seen > "+typed), browser.Press("Enter"), browser.Wait(time.Second),
		browser.Text("#viewing", "view only"),
		browser.Screenshot(filepath.Join(artifacts(t), "view.png")))
	if _, err := os.Stat(typed); err == nil {
		t.Error("a view-only session typed")
	}
}

// A person with a phone finds all buttons, types with the screen's keyboard and
// exchanges text with the phone's clipboard.
func TestDesktopOnAPhone(t *testing.T) {
	h := start(t)
	h.desktop(t)
	typed := filepath.Join(t.TempDir(), "typed")
	address, _, _ := h.gateway.Session(env, gateway.Control, time.Minute)
	pictures := artifacts(t)
	browser.Drive(t, browser.Options{Width: 390, Height: 700, Touch: true},
		browser.Open(address), browser.Connected(), browser.Colours(50),
		browser.Inside("#fit"), browser.Inside("#keys"), browser.Inside("#paste"), browser.Inside("#type"), browser.Inside("#full"),
		browser.Point(300, 300, "left"), browser.Click("#type"),
		browser.Insert("echo wrong"), browser.Press("Backspace"), browser.Insert("n"), browser.Press("Control+u"),
		browser.Insert("echo Ab-é > "+typed), browser.Insert("\n"), browser.Wait(time.Second),
		browser.Screenshot(filepath.Join(pictures, "phone.png")),
		browser.Click("#paste"), browser.Inside("#clipboard"), browser.Fill("#text", "from here"), browser.Click("#give"),
		browser.Fill("#text", "replaced"), browser.Click("#take"), browser.Text("#text", "from here"),
		browser.Screenshot(filepath.Join(pictures, "phone-clipboard.png")))
	if got, err := os.ReadFile(typed); err != nil || strings.TrimSpace(string(got)) != "Ab-é" {
		t.Errorf("what was typed ran as %q, %v", got, err)
	}
}

func TestLinksThatDoNotOpen(t *testing.T) {
	h := start(t)
	expired, _, _ := h.gateway.Session(env, gateway.Control, -time.Second)
	other, token, _ := h.gateway.Session("other", gateway.Control, time.Minute)
	pictures := artifacts(t)
	for name, test := range map[string]struct{ address, text string }{
		"expired": {expired, "This link has expired"},
		"foreign": {h.gateway.URL(env) + "#token=" + token, "This link is not valid"},
		"garbage": {h.gateway.URL(env) + "#token=a=b", "This link is not valid"},
		"absent":  {h.gateway.URL(env), "No token in this link"},
	} {
		result := browser.Drive(t, browser.Options{}, browser.Open(test.address), browser.State("stopped"),
			browser.Screenshot(filepath.Join(pictures, name+".png")))
		if got := result.Steps[1].Text; !strings.Contains(got, test.text) {
			t.Errorf("%s link says %q", name, got)
		}
	}
	if result := browser.Drive(t, browser.Options{}, browser.Open(strings.Replace(other, "/desktop/", "/desktops/", 1))); result.Steps[0].Status != 404 {
		t.Errorf("status %d", result.Steps[0].Status)
	}
}

// The browser runs in the network namespace that its options name.
func TestBrowserInANamespace(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.Browser)
	testutil.NetNS(t)
	h := start(t)
	namespace := fmt.Sprintf("--net=/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
	t.Run("browser", func(t *testing.T) { // on another thread, outside of the namespace
		result := browser.Drive(t, browser.Options{Prefix: []string{"nsenter", namespace, "--"}},
			browser.Open(h.gateway.URL(env)), browser.State("stopped"))
		if status := result.Steps[0].Status; status != 200 {
			t.Errorf("status %d", status)
		}
	})
}
