package desktop_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/desktop"
	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
)

const env = "01JAXENVIRONMENT0000000000"

// shortDir is a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "desk") //nolint:usetesting // its path is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func listen(t *testing.T, network, path string) {
	t.Helper()
	if network == "unixgram" {
		conn, err := net.ListenPacket(network, path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return
	}
	listener, err := net.Listen(network, path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
}

func mine(pid int, envID string) (bool, error) { return pid == os.Getpid() && envID == env, nil }

// place is where a test puts what a tenant would.
type place struct {
	t       *testing.T
	outside string // a directory that is not the tenant's
	socket  string // where its socket should be
}

// A tenant can put anything where its socket should be, and gets nothing but
// an error.
func TestDialTrustsNothing(t *testing.T) {
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		place  func(place)
		inside func(int, string) (bool, error)
		reason problem.Reason // "": it connects
		what   string
	}{
		"its own socket": {place: func(p place) { listen(p.t, "unix", p.socket) }},
		"nothing":        {place: func(place) {}, reason: problem.DesktopUnavailable, what: "no socket yet"},
		"a link to another socket": {place: func(p place) {
			listen(p.t, "unix", filepath.Join(p.outside, "containerd.sock"))
			must(p.t, os.Symlink(filepath.Join(p.outside, "containerd.sock"), p.socket))
		}, reason: problem.DesktopSocketBad, what: "symbolic link"},
		"a link beside it": {place: func(p place) {
			listen(p.t, "unix", p.socket+".real")
			must(p.t, os.Symlink("rfb.sock.real", p.socket))
		}, reason: problem.DesktopSocketBad, what: "symbolic link"},
		"its directory a link": {place: func(p place) {
			listen(p.t, "unix", filepath.Join(p.outside, "rfb.sock"))
			must(p.t, os.Remove(filepath.Dir(p.socket)))
			must(p.t, os.Symlink(p.outside, filepath.Dir(p.socket)))
		}, reason: problem.DesktopSocketBad, what: "link"},
		"a magic link": {place: func(p place) {
			must(p.t, os.Symlink("/proc/self/fd/0", p.socket))
		}, reason: problem.DesktopSocketBad, what: "symbolic link"},
		"a hard link to a foreign socket": {
			place: func(p place) {
				listen(p.t, "unix", filepath.Join(p.outside, "foreign.sock"))
				must(p.t, os.Link(filepath.Join(p.outside, "foreign.sock"), p.socket))
			},
			inside: func(int, string) (bool, error) { return false, nil },
			reason: problem.DesktopSocketBad, what: "not of this environment",
		},
		"a foreign listener": {
			place:  func(p place) { listen(p.t, "unix", p.socket) },
			inside: func(int, string) (bool, error) { return false, nil },
			reason: problem.DesktopSocketBad, what: "not of this environment",
		},
		"a listener that is gone": {
			place:  func(p place) { listen(p.t, "unix", p.socket) },
			inside: func(int, string) (bool, error) { return false, errors.New("no such process") },
			reason: problem.DesktopUnavailable, what: "no such process",
		},
		"a FIFO": {
			place:  func(p place) { must(p.t, unix.Mkfifo(p.socket, 0o666)) },
			reason: problem.DesktopSocketBad, what: "a FIFO",
		},
		"a file": {
			place:  func(p place) { must(p.t, os.WriteFile(p.socket, []byte("RFB 003.008\n"), 0o666)) },
			reason: problem.DesktopSocketBad, what: "a regular file",
		},
		"a directory": {
			place:  func(p place) { must(p.t, os.Mkdir(p.socket, 0o777)) },
			reason: problem.DesktopSocketBad, what: "a directory",
		},
		"a datagram socket": {
			place:  func(p place) { listen(p.t, "unixgram", p.socket) },
			reason: problem.DesktopSocketBad, what: "no stream socket",
		},
		"a socket nobody listens on": {place: func(p place) {
			listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.socket, Net: "unix"})
			must(p.t, err)
			listener.SetUnlinkOnClose(false)
			must(p.t, listener.Close())
		}, reason: problem.DesktopUnavailable, what: "nobody listens"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, outside := shortDir(t), shortDir(t)
			must(t, os.MkdirAll(filepath.Join(dir, env, "rfb"), 0o777))
			test.place(place{t, outside, filepath.Join(dir, env, "rfb", "rfb.sock")})
			dialer := desktop.Dialer{Dir: dir, InEnvironment: mine}
			if test.inside != nil {
				dialer.InEnvironment = test.inside
			}
			before := openFiles(t)
			conn, err := dialer.Dial(t.Context(), env)
			if err == nil {
				_ = conn.Close()
			}
			if test.reason == "" {
				if err != nil {
					t.Fatal(err)
				}
			} else if err == nil || problem.Of(err).Reason != test.reason || !strings.Contains(err.Error(), test.what) {
				t.Fatalf("dial: %v, want %s with %q", err, test.reason, test.what)
			}
			if after := openFiles(t); after > before {
				t.Errorf("%d descriptors were left open", after-before)
			}
		})
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestDialRefusesWhatIsNoID(t *testing.T) {
	dialer := desktop.Dialer{Dir: shortDir(t), InEnvironment: mine}
	for _, id := range []string{"", ".", "..", "../x", "a/b", "/etc", strings.Repeat("a", 65), "a\x00"} {
		if _, err := dialer.Dial(t.Context(), id); err == nil || problem.Of(err).Reason != problem.FieldInvalid {
			t.Errorf("dial %q: %v", id, err)
		}
	}
}

// A listener that accepts nothing fills its backlog and must not hold us.
func TestDialDoesNotWaitForAFullBacklog(t *testing.T) {
	dir := shortDir(t)
	if err := os.MkdirAll(filepath.Join(dir, env, "rfb"), 0o777); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, env, "rfb", "rfb.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	dialer := desktop.Dialer{Dir: dir, InEnvironment: mine}
	for range 20 {
		conn, err := dialer.Dial(t.Context(), env)
		if err != nil {
			if problem.Of(err).Reason != problem.DesktopUnavailable || !strings.Contains(err.Error(), "backlog") {
				t.Fatal(err)
			}
			return
		}
		defer conn.Close()
	}
	t.Fatal("the backlog never filled")
}

// With real cgroups: the same listener is let in or not by where its process
// is.
func TestDialKnowsTheCgroup(t *testing.T) {
	testutil.Require(t, testutil.Root)
	name := "/remotegpu-test-" + strconv.Itoa(os.Getpid())
	base := "/sys/fs/cgroup"
	if cgroup.Version() == "v1" {
		base = "/sys/fs/cgroup/pids"
	}
	group := filepath.Join(base, name, env)
	if err := os.MkdirAll(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(os.Remove(group), os.Remove(filepath.Dir(group))); err != nil {
			t.Error(err)
		}
	})
	inside := func(pid int, envID string) (bool, error) { return cgroup.Contains(pid, name+"/"+envID) }

	dir := shortDir(t)
	if err := os.MkdirAll(filepath.Join(dir, env, "rfb"), 0o777); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, env, "rfb", "rfb.sock")
	listener := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHelperListens$")
	listener.Env = append(os.Environ(), "DESKTOP_TEST_LISTEN="+path)
	if err := listener.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end := func() {
		if !ended {
			ended = true
			_ = listener.Process.Kill()
			_ = listener.Wait()
		}
	}
	defer end()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the listener did not start")
		}
	}
	dialer := desktop.Dialer{Dir: dir, InEnvironment: inside}
	if _, err := dialer.Dial(t.Context(), env); err == nil || problem.Of(err).Reason != problem.DesktopSocketBad {
		t.Errorf("a listener outside of the cgroup: %v", err)
	}
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(listener.Process.Pid)), 0o644); err != nil {
		t.Fatal(err)
	}
	conn, err := dialer.Dial(t.Context(), env)
	if err != nil {
		t.Fatalf("a listener inside of the cgroup: %v", err)
	}
	_ = conn.Close()
	end()
	if _, err := dialer.Dial(t.Context(), env); err == nil || problem.Of(err).Reason != problem.DesktopUnavailable {
		t.Errorf("a listener that ended: %v", err)
	}
}

// TestHelperListens is the process that TestDialKnowsTheCgroup starts.
func TestHelperListens(t *testing.T) {
	path := os.Getenv("DESKTOP_TEST_LISTEN")
	if path == "" {
		return
	}
	listen(t, "unix", path)
	time.Sleep(time.Minute) // it is killed before
}
