package e2e_test

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"
)

// spy is a socket that notes who connects and what is said to it.
type spy struct {
	path            string
	accepted, heard atomic.Int64
}

func newSpy(t *testing.T, path string) *spy {
	t.Helper()
	s := &spy{path: path}
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.accepted.Add(1)
			go func() {
				defer conn.Close()
				_, _ = conn.Write([]byte("RFB 003.008\n"))
				buffer := make([]byte, 64)
				for {
					size, err := conn.Read(buffer)
					s.heard.Add(int64(size))
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	return s
}

// A tenant that puts something else in the place of its desktop's socket gets
// nothing but an error (proof 5).
func TestDesktopSocketOfATenant(t *testing.T) {
	n := Start(t, usual, "")
	n.Must(t, "env", "create", "desk", "--image", n.Image, "--desktop")
	env := n.Get(t, "desk")
	socket := filepath.Join(n.Dir, "run", "desktop", env.ID, "rfb", "rfb.sock")
	outside := newSpy(t, filepath.Join(n.Dir, "spy.sock"))
	var inside *spy
	for _, test := range []struct {
		name          string
		place         func() error
		code, reason  string
		detail        string
		tenantMayLook bool // the tenant sees it in the container
	}{
		{"nothing", func() error { return nil }, "unavailable", "DESKTOP_UNAVAILABLE", "no socket", false},
		{"a link to containerd's socket", func() error { return os.Symlink(n.Containerd.Address, socket) }, "permission_denied", "DESKTOP_SOCKET_REJECTED", "link", true},
		{"a link to a foreign socket", func() error { return os.Symlink(outside.path, socket) }, "permission_denied", "DESKTOP_SOCKET_REJECTED", "link", true},
		{"a hard way out", func() error { return os.Symlink("../../../../spy.sock", socket) }, "permission_denied", "DESKTOP_SOCKET_REJECTED", "link", true},
		{"a foreign listening socket", func() error { inside = newSpy(t, socket); return nil }, "permission_denied", "DESKTOP_SOCKET_REJECTED", "not of this environment", true},
		{"a FIFO", func() error { return unix.Mkfifo(socket, 0o666) }, "permission_denied", "DESKTOP_SOCKET_REJECTED", "FIFO", true},
		{"a directory", func() error { return os.Mkdir(socket, 0o777) }, "permission_denied", "DESKTOP_SOCKET_REJECTED", "directory", true},
		{"a file", func() error { return os.WriteFile(socket, []byte("RFB 003.008\n"), 0o666) }, "permission_denied", "DESKTOP_SOCKET_REJECTED", "file", true},
	} {
		if err := os.RemoveAll(socket); err != nil {
			t.Fatal(err)
		}
		if err := test.place(); err != nil {
			t.Fatal(err)
		}
		if out := n.Must(t, "env", "exec", "--stdin=false", "desk", "--", "testprog", "ls", "/run/remotegpu/rfb"); strings.Contains(out, "rfb.sock") != test.tenantMayLook {
			t.Errorf("%s: the tenant sees %q", test.name, out)
		}
		answer := n.curl(t, "DesktopService/GetScreenshot", `{"environment":"desk"}`)
		t.Logf("%-30s %s %s: %s", test.name, answer.Code, answer.Reason, answer.Message)
		if answer.Code != test.code || answer.Reason != test.reason || !strings.Contains(answer.Message, test.detail) || answer.Hint == "" {
			t.Errorf("%s: the screenshot answers %+v", test.name, answer)
		}
		var desktop struct{ Readiness, Detail string }
		n.call(t, "DesktopService/GetDesktop", `{"environment":"desk"}`, &desktop)
		if desktop.Readiness != "DESKTOP_READINESS_STARTING" || !strings.Contains(desktop.Detail, test.detail) {
			t.Errorf("%s: the desktop is %+v", test.name, desktop)
		}
		if status, data := n.openDesktop(t, env.ID); status != 4503 || data != "" {
			t.Errorf("%s: the browser gets %q and the code %d, want nothing and 4503", test.name, data, status)
		}
	}
	if got := outside.accepted.Load(); got != 0 {
		t.Errorf("the socket behind a link was connected to %d times", got)
	}
	if inside.accepted.Load() == 0 || inside.heard.Load() != 0 {
		t.Errorf("the foreign socket accepted %d and heard %d bytes, want some and none", inside.accepted.Load(), inside.heard.Load())
	}
	if err := os.RemoveAll(socket); err != nil {
		t.Fatal(err)
	}
}

// openDesktop asks for a session and opens its connection as a browser does.
func (n *Node) openDesktop(t *testing.T, envID string) (websocket.StatusCode, string) {
	t.Helper()
	var session struct{ Token string }
	n.call(t, "DesktopService/CreateDesktopSession", `{"environment":"desk"}`, &session)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the node makes its own certificate
		DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
			n.Network.Do(t, func() { conn, err = net.DialTimeout(network, address, 10*time.Second) })
			return conn, err
		},
	}}
	defer client.CloseIdleConnections()
	socket, response, err := websocket.Dial(ctx, "wss://127.0.0.1:7443/desktop/"+envID+"/rfb", &websocket.DialOptions{
		HTTPClient: client, Subprotocols: []string{"binary", "remotegpu.token." + session.Token},
	})
	if err != nil {
		t.Fatalf("open websocket: %v", err)
	}
	if response.Body != nil {
		defer response.Body.Close()
	}
	defer socket.CloseNow()
	_, data, err := socket.Read(ctx)
	return websocket.CloseStatus(err), string(data)
}
