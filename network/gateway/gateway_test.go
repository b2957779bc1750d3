package gateway_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/remotegpu/remotegpu/desktop/rfb"
	"github.com/remotegpu/remotegpu/network/gateway"
)

// desktops hands out one end of a pipe and shows the other to the test.
type desktops struct {
	fail     atomic.Bool
	viewOnly atomic.Bool
	servers  chan net.Conn
}

func (d *desktops) Connect(_ context.Context, _ string, viewOnly bool) (net.Conn, rfb.ServerInit, error) {
	if d.fail.Load() {
		return nil, rfb.ServerInit{}, errors.New("nobody listens")
	}
	d.viewOnly.Store(viewOnly)
	ours, theirs := net.Pipe()
	d.servers <- theirs
	return ours, rfb.ServerInit{Width: 800, Height: 600, Name: "desk"}, nil
}

// conditions is what the test says of every environment.
type conditions struct{ is atomic.Int32 }

func (c *conditions) Condition(context.Context, string) (gateway.Condition, error) {
	return gateway.Condition(c.is.Load()), nil
}

type running struct {
	*gateway.Gateway
	desktops *desktops
	life     *conditions
	address  string
	client   *http.Client
	stop     func() error
}

func run(t *testing.T, change func(*gateway.Config)) *running {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &desktops{servers: make(chan net.Conn, 64)}
	life := &conditions{}
	c := gateway.Config{
		Listen: listener.Addr().String(), StateDir: t.TempDir(), Desktops: d, Conditions: life, Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&c)
	}
	g, err := gateway.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx, listener) }()
	var once bool
	r := &running{Gateway: g, desktops: d, life: life, address: listener.Addr().String(), client: &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
	}}
	r.stop = func() error {
		if once {
			return nil
		}
		once = true
		cancel()
		r.client.CloseIdleConnections()
		return <-served
	}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *running) get(t *testing.T, path string) (status int, header http.Header, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+r.address+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := r.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, response.Header, string(content)
}

func (r *running) dial(t *testing.T, token, origin string) (*websocket.Conn, error) {
	t.Helper()
	options := &websocket.DialOptions{
		HTTPClient: r.client, HTTPHeader: http.Header{}, Subprotocols: []string{"binary", "remotegpu.token." + token},
	}
	if origin != "" {
		options.HTTPHeader.Set("Origin", origin)
	}
	conn, response, err := websocket.Dial(t.Context(), "wss://"+r.address+"/desktop/env/rfb", options)
	if response != nil && response.Body != nil {
		_ = response.Body.Close()
	}
	if err == nil {
		t.Cleanup(func() { _ = conn.CloseNow() })
	}
	return conn, err
}

// closed reads until the gateway closes and returns its code.
func closed(t *testing.T, conn *websocket.Conn) websocket.StatusCode {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		if _, _, err := conn.Read(ctx); err != nil {
			code := websocket.CloseStatus(err)
			if code == -1 {
				t.Logf("it was not closed: %v", err)
			}
			return code
		}
	}
}

// open does a browser's part of the handshake and returns both ends.
func (r *running) open(t *testing.T, access gateway.Access) (*websocket.Conn, net.Conn, net.Conn) {
	t.Helper()
	_, token, _ := r.Session("env", access, time.Minute)
	socket, err := r.dial(t, token, "https://"+r.address)
	if err != nil {
		t.Fatal(err)
	}
	if socket.Subprotocol() != "binary" {
		t.Errorf("subprotocol %q", socket.Subprotocol())
	}
	browser := websocket.NetConn(t.Context(), socket, websocket.MessageBinary)
	for _, step := range []struct {
		read  int
		write string
	}{{12, "RFB 003.008\n"}, {2, "\x01"}, {4, "\x01"}} {
		if _, err := io.ReadFull(browser, make([]byte, step.read)); err != nil {
			t.Fatal(err)
		}
		if _, err := browser.Write([]byte(step.write)); err != nil {
			t.Fatal(err)
		}
	}
	init, err := rfb.ReadServerInit(browser)
	if err != nil || init.Name != "desk" || init.Width != 800 {
		t.Fatalf("ServerInit %+v, %v", init, err)
	}
	return socket, browser, <-r.desktops.servers
}

func TestPages(t *testing.T) {
	r := run(t, nil)
	status, header, body := r.get(t, "/healthz")
	if status != http.StatusOK || body != "ok\n" || header.Get("Cache-Control") != "no-store" {
		t.Errorf("health: %d %q", status, body)
	}
	for path, want := range map[string]int{
		"/": 404, "/desktop/": 404, "/desktop/.hidden": 404, "/desktop/a%2Fb": 404, "/static/": 404, "/static/x/app.js": 404,
		"/web/app.js": 404, "/desktop/env/other": 404, "/desktop/env/rfb": 426,
	} {
		status, _, body := r.get(t, path)
		if status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
		if want == 404 && !strings.Contains(body, "Nothing here") {
			t.Errorf("%s: %q", path, body)
		}
	}
	status, header, body = r.get(t, "/desktop/env")
	for name, want := range map[string]string{
		"Content-Security-Policy": "frame-ancestors 'self'", "X-Content-Type-Options": "nosniff",
		"Referrer-Policy": "no-referrer", "X-Frame-Options": "SAMEORIGIN",
	} {
		if got := header.Get(name); !strings.Contains(got, want) {
			t.Errorf("%s is %q", name, got)
		}
	}
	if header.Get("Set-Cookie") != "" || header.Get("Strict-Transport-Security") != "" {
		t.Error("a cookie, or a promise that a self-signed certificate cannot keep")
	}
	if !gateway.HasNoVNC() {
		if status != http.StatusServiceUnavailable || !strings.Contains(body, "built without") {
			t.Errorf("without a viewer: %d %q", status, body)
		}
		return
	}
	if status != http.StatusOK || header.Get("Cache-Control") != "no-cache" {
		t.Errorf("page: %d, %q", status, header.Get("Cache-Control"))
	}
	_, rest, _ := strings.Cut(body, `src="..`)
	script, _, _ := strings.Cut(rest, `"`)
	status, header, body = r.get(t, script)
	if status != http.StatusOK || !strings.Contains(header.Get("Cache-Control"), "immutable") ||
		!strings.HasPrefix(header.Get("Content-Type"), "text/javascript") || !strings.Contains(body, "noVNC_connected") {
		t.Errorf("script %q: %d", script, status)
	}
	base := strings.TrimSuffix(script, "app.js")
	for path, want := range map[string]int{
		"keyboard.js": 200, "novnc/core/rfb.js": 200, "novnc/LICENSE.txt": 200, "style.css": 200,
		"novnc/core/": 404, "novnc": 404, "": 404, "fetch.sh": 404, "package.json": 404, "index.html": 404, "../web.go": 404,
	} {
		if status, _, _ := r.get(t, base+path); status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
	}
}

func TestFramesOfOthersAreAllowedByName(t *testing.T) {
	r := run(t, func(c *gateway.Config) { c.FrameAncestors = []string{"https://portal.example.com"} })
	_, header, _ := r.get(t, "/desktop/env")
	if got := header.Get("Content-Security-Policy"); !strings.HasSuffix(got, "frame-ancestors 'self' https://portal.example.com") {
		t.Errorf("policy %q", got)
	}
	if header.Get("X-Frame-Options") != "" {
		t.Error("X-Frame-Options contradicts the policy")
	}
}

func TestBadConfigurations(t *testing.T) {
	for name, change := range map[string]func(*gateway.Config){
		"address":  func(c *gateway.Config) { c.Listen = "nowhere" },
		"URL":      func(c *gateway.Config) { c.PublicURL = "gpu1:7443" },
		"query":    func(c *gateway.Config) { c.PublicURL = "https://gpu1/?a=b" },
		"ancestor": func(c *gateway.Config) { c.FrameAncestors = []string{"https://a; script-src *"} },
		"key":      func(c *gateway.Config) { c.CertFile = "/nowhere" },
	} {
		c := gateway.Config{Listen: ":7443", StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
		change(&c)
		if _, err := gateway.New(c); err == nil {
			t.Errorf("a bad %s was taken", name)
		}
	}
}

func named(hosts ...string) func() []string { return func() []string { return hosts } }

// The daemon may start before the host has an address, and a host moves: links
// lead to where it is.
func TestURLFollowsTheHost(t *testing.T) {
	hosts := []string{"127.0.0.1", "localhost"}
	g, err := gateway.New(gateway.Config{
		Listen: ":7443", Hosts: func() []string { return hosts }, StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "192.0.2.1", "192.0.2.7"} {
		hosts[0] = host
		want := "https://" + host + ":7443/desktop/env"
		if got := g.URL("env"); got != want {
			t.Errorf("%s, want %s", got, want)
		}
		if page, _, _ := g.Session("env", gateway.View, time.Minute); !strings.HasPrefix(page, want+"#") {
			t.Errorf("session %s, want it at %s", page, want)
		}
	}
}

func TestURLs(t *testing.T) {
	for want, c := range map[string]gateway.Config{
		"https://gpu1:7443/desktop/env":          {Listen: ":7443", Hosts: named("gpu1")},
		"https://localhost:7443/desktop/env":     {Listen: "0.0.0.0:7443"},
		"https://10.0.0.1:7443/desktop/env":      {Listen: "10.0.0.1:7443", Hosts: named("gpu1")},
		"https://example.com/gpu/1/desktop/env":  {Listen: ":7443", PublicURL: "https://example.com/gpu/1/"},
		"https://[2001:db8::1]:7443/desktop/env": {Listen: "[2001:db8::1]:7443"},
	} {
		c.StateDir, c.Log = t.TempDir(), slog.New(slog.DiscardHandler)
		g, err := gateway.New(c)
		if err != nil {
			t.Fatal(err)
		}
		if got := g.URL("env"); got != want {
			t.Errorf("%s, want %s", got, want)
		}
		page, token, expires := g.Session("env", gateway.View, time.Minute)
		if page != want+"#token="+token+"&view=1" || time.Until(expires) > time.Minute || time.Until(expires) < 50*time.Second {
			t.Errorf("session %s until %v", page, expires)
		}
	}
}

func TestSessionsCarryBytesBothWays(t *testing.T) {
	r := run(t, nil)
	socket, browser, server := r.open(t, gateway.Control)
	key := []byte{4, 1, 0, 0, 0, 0, 0, 'a'}
	if _, err := browser.Write(key[:3]); err != nil { // messages need not keep to frames
		t.Fatal(err)
	}
	if _, err := browser.Write(key[3:]); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(key))
	if _, err := io.ReadFull(server, got); err != nil || string(got) != string(key) {
		t.Errorf("the server got %q, %v", got, err)
	}
	large := make([]byte, 1<<20)
	large[len(large)-1] = 7
	go func() { _, _ = server.Write(large) }()
	back := make([]byte, len(large))
	if _, err := io.ReadFull(browser, back); err != nil || back[len(back)-1] != 7 {
		t.Errorf("the browser got less, %v", err)
	}
	// The environment stops: the session ends, and says so.
	_ = server.Close()
	if code := closed(t, socket); code != 4410 {
		t.Errorf("closed with %d", code)
	}
}

func TestViewOnlySessionsSendNothing(t *testing.T) {
	r := run(t, nil)
	_, browser, server := r.open(t, gateway.View)
	if !r.desktops.viewOnly.Load() {
		t.Error("it logged in with the password that acts")
	}
	request := []byte{3, 1, 0, 0, 0, 0, 2, 0, 1, 0}
	if _, err := browser.Write(append([]byte{4, 1, 0, 0, 0, 0, 0, 'a', 5, 1, 0, 1, 0, 1}, request...)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(request))
	if _, err := io.ReadFull(server, got); err != nil || string(got) != string(request) {
		t.Errorf("the server got %v, %v", got, err)
	}
}

func TestSessionsThatEnd(t *testing.T) {
	r := run(t, func(c *gateway.Config) { c.MaxSessions = 2 })
	_, good, _ := r.Session("env", gateway.Control, time.Minute)
	_, expired, _ := r.Session("env", gateway.Control, -time.Second)
	_, other, _ := r.Session("other", gateway.Control, time.Minute)
	for token, want := range map[string]websocket.StatusCode{expired: 4401, other: 4403, "": 4403, "x": 4403} {
		socket, err := r.dial(t, token, "")
		if err != nil {
			t.Fatal(err)
		}
		if code := closed(t, socket); code != want {
			t.Errorf("token %q: closed with %d, want %d", token, code, want)
		}
	}
	if _, err := r.dial(t, good, "https://evil.example.com"); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("a foreign page: %v", err)
	}
	r.desktops.fail.Store(true)
	socket, err := r.dial(t, good, "")
	if err != nil {
		t.Fatal(err)
	}
	if code := closed(t, socket); code != 4503 {
		t.Errorf("no desktop: closed with %d", code)
	}
	r.desktops.fail.Store(false)

	// What is not RFB ends a session and reaches no desktop.
	hostile, browser, server := r.open(t, gateway.Control)
	if _, err := browser.Write([]byte{99}); err != nil {
		t.Fatal(err)
	}
	if code := closed(t, hostile); code != websocket.StatusPolicyViolation {
		t.Errorf("an unknown message: closed with %d", code)
	}
	if n, err := server.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes reached the desktop", n)
	}

	first, _, _ := r.open(t, gateway.Control)
	second, viewer, desktop := r.open(t, gateway.View)
	// What the desktop says arrives: the login is over on the gateway's side, too.
	if _, err := desktop.Write([]byte{2}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(viewer, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	socket, err = r.dial(t, good, "")
	if err != nil {
		t.Fatal(err)
	}
	if code := closed(t, socket); code != 4429 {
		t.Errorf("one too many: closed with %d", code)
	}
	_ = first.Close(websocket.StatusNormalClosure, "")
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) { // its place is free again
		socket, err := r.dial(t, good, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := socket.Read(t.Context()); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the place of a closed session was not given back")
		}
	}
	// The gateway stops: browsers are told that they may come back.
	stopped := make(chan error, 1)
	go func() { stopped <- r.stop() }()
	if code := closed(t, second); code != websocket.StatusGoingAway {
		t.Errorf("the gateway stopped: closed with %d", code)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// A desktop that nobody can see says why, to who comes and to who looks at it.
func TestSessionsOfWhatIsNotThere(t *testing.T) {
	r := run(t, nil)
	_, token, _ := r.Session("env", gateway.Control, time.Minute)
	for is, want := range map[gateway.Condition]websocket.StatusCode{
		gateway.Stopped: 4409, gateway.Paused: 4423, gateway.Failed: 4500, gateway.Gone: 4404,
	} {
		r.life.is.Store(int32(gateway.Present))
		looking, _, _ := r.open(t, gateway.Control)
		r.Tell("other", is)
		r.Tell("env", gateway.Present)
		r.life.is.Store(int32(is))
		r.Tell("env", is)
		r.Tell("env", is) // the first counts, and nothing waits
		if code := closed(t, looking); code != want {
			t.Errorf("condition %d: an open session ended with %d, want %d", is, code, want)
		}
		socket, err := r.dial(t, token, "")
		if err != nil {
			t.Fatal(err)
		}
		if code := closed(t, socket); code != want {
			t.Errorf("condition %d: closed with %d, want %d", is, code, want)
		}
	}
}
