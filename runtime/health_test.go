package runtime_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// checked is a request with a quick health check.
func checked(name string, check runtime.HealthCheck) runtime.CreateRequest {
	req := full(name)
	check.Interval, check.Timeout, check.Retries = 20*time.Millisecond, time.Second, 2
	req.Spec.HealthCheck = &check
	return req
}

func (d *daemon) awaitHealth(name string, want runtime.Health) *runtime.Environment {
	d.t.Helper()
	var env *runtime.Environment
	waitFor(d.t, fmt.Sprintf("%s to be %s", name, want), func() bool { env = d.get(name); return env.Health == want })
	return env
}

func TestHealthOfHTTP(t *testing.T) {
	var status atomic.Int64
	status.Store(http.StatusOK)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RequestURI() != "/ready?deep=1" {
			w.WriteHeader(http.StatusNotFound) // a redirect was followed, or the path was lost
			return
		}
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(int(status.Load()))
		_, _ = w.Write([]byte(strings.Repeat("x", 1<<20)))
	}))
	defer server.Close()
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	h := newHost(t)
	var asked atomic.Value
	h.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		asked.Store(address)
		return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
	}
	d := start(t, h)
	env, _ := d.create(checked("desk", runtime.HealthCheck{HTTPPort: 8080, HTTPPath: "/ready?deep=1"}))
	if env.Health == "" {
		t.Errorf("no health at first: %+v", env)
	}
	d.awaitHealth("desk", runtime.Healthy)
	if asked.Load() != env.Address.String()+":8080" {
		t.Errorf("asked %v, want the environment's address", asked.Load())
	}
	status.Store(http.StatusInternalServerError)
	bad := d.awaitHealth("desk", runtime.Unhealthy)
	if !strings.Contains(bad.HealthDetail, "500") || len(bad.HealthDetail) > runtime.HealthDetailLimit || bad.State != runtime.Running {
		t.Errorf("unhealthy: %.200q in %d bytes, %s", bad.HealthDetail, len(bad.HealthDetail), bad.State)
	}
	status.Store(http.StatusFound)
	d.awaitHealth("desk", runtime.Healthy)
	kinds, _ := d.history("desk")
	if want := []string{"created", "started", "healthy", "unhealthy", "healthy"}; !slices.Equal(kinds, want) {
		t.Errorf("history %v, want %v", kinds, want)
	}
	// The next daemon begins anew, and finds the same.
	status.Store(http.StatusInternalServerError)
	d.awaitHealth("desk", runtime.Unhealthy)
	d.stop()
	status.Store(http.StatusOK)
	second := start(t, h)
	second.awaitHealth("desk", runtime.Healthy)
	second.act(second.Stop, "desk")
	if env := second.get("desk"); env.Health != "" {
		t.Errorf("health of a stopped environment: %+v", env)
	}
}

func TestHealthOfCommandTCPAndDesktop(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	h := newHost(t)
	h.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if !strings.HasSuffix(address, ":80") {
			return nil, errors.New("connection refused")
		}
		return new(net.Dialer).DialContext(ctx, network, listener.Addr().String())
	}
	d := start(t, h)
	d.create(checked("works", runtime.HealthCheck{Command: []string{"testprog", "echo", "all is well"}}))
	d.create(checked("fails", runtime.HealthCheck{Command: []string{"testprog", "exit", "7"}}))
	d.create(checked("absent", runtime.HealthCheck{Command: []string{"/no/such/program"}}))
	hangs := checked("hangs", runtime.HealthCheck{Command: []string{"testprog", "echo", "at work", ";", "sleep", "3600"}})
	hangs.Spec.HealthCheck.Timeout = 50 * time.Millisecond
	d.create(hangs)
	d.create(checked("open", runtime.HealthCheck{TCPPort: 80}))
	d.create(checked("shut", runtime.HealthCheck{TCPPort: 81}))
	d.create(checked("desktop", runtime.HealthCheck{Desktop: true}))
	h.desktops.Draw()
	for name, want := range map[string]runtime.Health{
		"works": runtime.Healthy, "open": runtime.Healthy, "desktop": runtime.Healthy,
		"fails": runtime.Unhealthy, "absent": runtime.Unhealthy, "shut": runtime.Unhealthy, "hangs": runtime.Unhealthy,
	} {
		env := d.awaitHealth(name, want)
		t.Logf("%-8s %-10s %s", name, env.Health, env.HealthDetail)
	}
	if detail := d.get("works").HealthDetail; detail != "all is well" {
		t.Errorf("what a command said: %q", detail)
	}
	if detail := d.get("fails").HealthDetail; !strings.Contains(detail, "exit code 7") {
		t.Errorf("what a failing command said: %q", detail)
	}
	// No more of the way there than its end.
	if detail := d.get("absent").HealthDetail; detail != `the command "/no/such/program" is not there` {
		t.Errorf("what is said of a program that is missing: %q", detail)
	}
	if detail := d.get("hangs").HealthDetail; detail != "did not end within 50ms: at work" {
		t.Errorf("what is said of a command that hangs: %q", detail)
	}
	if detail := d.get("shut").HealthDetail; detail != "connect to port 81: connection refused" {
		t.Errorf("what is said of a port that is shut: %q", detail)
	}
}

// A desktop that has drawn must let people in, whatever it shows now. One that the
// node had no room to look at is none that failed.
func TestHealthOfDesktop(t *testing.T) {
	h := newHost(t)
	h.faults.FailCall("Desktops.AwaitDrawn", 0, fmt.Errorf("await desktop: %w", errors.Join(context.DeadlineExceeded, runtime.ErrUnseen)))
	d := start(t, h)
	d.create(checked("desk", runtime.HealthCheck{Desktop: true}))
	looks := func() int { return h.faults.Count("Desktops.AwaitDrawn") }
	waitFor(t, "several checks", func() bool { return looks() > 5 })
	if env := d.get("desk"); env.Health != runtime.HealthStarting {
		t.Errorf("while it is not looked at it is %q", env.Health)
	}
	h.faults.Reset()
	h.faults.FailCall("Desktops.AwaitDrawn", 0, errors.New("black"))
	d.awaitHealth("desk", runtime.Unhealthy)

	h.faults.Reset()
	h.desktops.Draw()
	d.awaitHealth("desk", runtime.Healthy)
	d.act(d.Restart, "desk") // the watch of the run before has failed
	waitFor(t, "it to have drawn", func() bool { return d.get("desk").Ready })
	h.faults.FailCall("Desktops.AwaitDrawn", 0, errors.New("black again"))
	before := h.faults.Count("Desktops.AwaitConnectable")
	waitFor(t, "several checks", func() bool { return h.faults.Count("Desktops.AwaitConnectable") > before+5 })
	if env := d.awaitHealth("desk", runtime.Healthy); !env.Ready {
		t.Errorf("black again: %+v", env)
	}
	h.faults.FailCall("Desktops.AwaitConnectable", 0, errors.New("nobody is let in"))
	if env := d.awaitHealth("desk", runtime.Unhealthy); env.HealthDetail != "nobody is let in" {
		t.Errorf("why it is unhealthy: %q", env.HealthDetail)
	}
}

func TestStartPeriod(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	req := checked("desk", runtime.HealthCheck{Command: []string{"testprog", "exit", "1"}, StartPeriod: time.Hour})
	d.create(req)
	before := h.faults.Count("Engine.Run")
	waitFor(t, "many checks", func() bool { return h.faults.Count("Engine.Run") > before+5 })
	if env := d.get("desk"); env.Health != runtime.HealthStarting {
		t.Errorf("within its start period it is %q", env.Health)
	}
}

// What is found unhealthy is restarted, by the same policy and count.
func TestUnhealthyIsRestarted(t *testing.T) {
	var refuse atomic.Bool
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	h := newHost(t)
	h.dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		if refuse.Load() {
			return nil, errors.New("connection refused")
		}
		return new(net.Dialer).DialContext(ctx, network, listener.Addr().String())
	}
	d := start(t, h)
	req := checked("desk", runtime.HealthCheck{TCPPort: 80})
	req.Spec.Restart = &runtime.RestartPolicy{Mode: runtime.RestartOnFailure, MaxRetries: 2, OnUnhealthy: true}
	env, _ := d.create(req)
	d.awaitHealth("desk", runtime.Healthy)
	h.faults.FailCall("Engine.Stop", 1, errors.New("broken on purpose")) // it is tried again
	refuse.Store(true)
	d.restarted("desk", 2)
	refuse.Store(false)
	well := d.awaitHealth("desk", runtime.Healthy)
	if well.State != runtime.Running || !well.StartedAt.After(env.StartedAt) {
		t.Errorf("after the restart: %+v", well)
	}
	// No retries are left.
	refuse.Store(true)
	d.awaitHealth("desk", runtime.Unhealthy)
	if env := d.get("desk"); !env.RestartAt.IsZero() || env.State != runtime.Running || env.RestartCount != 2 {
		t.Errorf("beyond its retries: %+v", env)
	}
}

// What is found unhealthy while an operation works on the environment is
// recorded, and restarted, when that one is over.
func TestUnhealthyBesideAnOperation(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("on_unhealthy=%t", restart), func(t *testing.T) {
			listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			h := newHost(t)
			var refused atomic.Int64
			var refuse atomic.Bool
			h.dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
				if refuse.Load() {
					refused.Add(1)
					return nil, errors.New("connection refused")
				}
				return new(net.Dialer).DialContext(ctx, network, listener.Addr().String())
			}
			d := start(t, h)
			req := checked("desk", runtime.HealthCheck{TCPPort: 80})
			if restart {
				req.Spec.Restart = &runtime.RestartPolicy{Mode: runtime.RestartOnFailure, OnUnhealthy: true}
			}
			env, _ := d.create(req)
			d.awaitHealth("desk", runtime.Healthy)
			release := make(chan struct{})
			h.faults.Hook(func(method string) {
				if method == "Networks.Publish" {
					<-release
				}
			})
			_, op, err := d.CreatePort(t.Context(), runtime.PortCreateRequest{Environment: "desk", Port: web(8080)})
			if err != nil {
				t.Fatal(err)
			}
			refuse.Store(true)
			waitFor(t, "several checks beside the operation", func() bool { return refused.Load() > 5 })
			if env := d.get("desk"); env.Health != runtime.Healthy || env.Operation != op.ID {
				t.Errorf("while an operation works on it: %s, operation %q", env.Health, env.Operation)
			}
			h.faults.Hook(nil)
			close(release)
			d.settle(op, nil)
			if !restart {
				d.awaitHealth("desk", runtime.Unhealthy)
				return
			}
			// Counted is a restart before the old process ends, which one more
			// check would find well.
			waitFor(t, "a restart", func() bool {
				now := d.get("desk")
				return now.RestartCount > 0 && now.StartedAt.After(env.StartedAt)
			})
			refuse.Store(false)
			d.awaitHealth("desk", runtime.Healthy)
		})
	}
}

// One that recovers while an operation works on it is not restarted after that.
func TestRecoveryBesideAnOperation(t *testing.T) {
	h := newHost(t)
	var well atomic.Bool
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	h.dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		if !well.Load() {
			return nil, errors.New("connection refused")
		}
		return new(net.Dialer).DialContext(ctx, network, listener.Addr().String())
	}
	d := start(t, h)
	req := checked("desk", runtime.HealthCheck{TCPPort: 80})
	req.Spec.HealthCheck.Retries = 10
	req.Spec.Restart = &runtime.RestartPolicy{Mode: runtime.RestartAlways, OnUnhealthy: true}
	env, _ := d.create(req)
	d.holdOff(env.ID)
	if env := d.awaitHealth("desk", runtime.Unhealthy); env.RestartAt.IsZero() {
		t.Fatalf("no restart is planned: %+v", env)
	}
	release := make(chan struct{})
	h.faults.Hook(func(method string) {
		if method == "Networks.Publish" {
			<-release
		}
	})
	_, op, err := d.CreatePort(t.Context(), runtime.PortCreateRequest{Environment: "desk", Port: web(8080)})
	if err != nil {
		t.Fatal(err)
	}
	well.Store(true)
	d.awaitHealth("desk", runtime.Healthy)
	h.faults.Hook(nil)
	close(release)
	d.settle(op, nil)
	if env := d.get("desk"); !env.RestartAt.IsZero() {
		t.Errorf("it is well, and is restarted at %s", env.RestartAt)
	}
}

// What does not answer since it is frozen has not failed: neither while a snapshot
// is taken, nor when somebody else has paused it beside an operation.
func TestHealthOfWhatIsFrozen(t *testing.T) {
	for _, method := range []string{"Engine.CopyLayer", "Networks.Publish"} {
		t.Run(method, func(t *testing.T) {
			listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			h := newHost(t)
			var id atomic.Value
			var frozen, well atomic.Int64
			var slow atomic.Bool
			h.dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
				if id, is := id.Load().(string); is && h.engine.IsPaused(id) {
					frozen.Add(1)
					return nil, errors.New("it does not answer")
				}
				if slow.Swap(false) {
					return nil, errors.New("it has answered late")
				}
				well.Add(1)
				return new(net.Dialer).DialContext(ctx, network, listener.Addr().String())
			}
			d := start(t, h)
			req := checked("desk", runtime.HealthCheck{TCPPort: 80})
			req.Spec.HealthCheck.Retries = 3 // one may be on its way when it goes on, and one comes late
			env, _ := d.create(req)
			d.awaitHealth("desk", runtime.Healthy)
			id.Store(env.ID)
			reached, release := make(chan struct{}), make(chan struct{})
			h.faults.Hook(func(called string) {
				if called == method {
					close(reached)
					<-release
				}
			})
			var op *operation.Operation
			if method == "Engine.CopyLayer" {
				_, op, err = d.CreateSnapshot(t.Context(), runtime.CreateSnapshotRequest{Environment: "desk", Name: "first"})
			} else {
				_, op, err = d.CreatePort(t.Context(), runtime.PortCreateRequest{Environment: "desk", Port: web(8080)})
			}
			if err != nil {
				t.Fatal(err)
			}
			<-reached
			h.pause(env.ID)
			waitFor(t, "several checks of what is frozen", func() bool { return frozen.Load() > 5 })
			slow.Store(true)
			before := well.Load()
			if err := h.engine.SetPaused(env.ID, false); err != nil {
				t.Error(err)
			}
			close(release)
			d.settle(op, nil)
			waitFor(t, "several checks of what goes on", func() bool { return well.Load() > before+3 })
			if kinds, _ := d.history("desk"); slices.Contains(kinds, "unhealthy") {
				t.Errorf("history: %v", kinds)
			}
		})
	}
}

func TestBadCareIsRefused(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	for _, test := range []struct {
		field  string
		change func(*runtime.Spec)
	}{
		{"spec.restart.max_retries", func(s *runtime.Spec) {
			s.Restart = &runtime.RestartPolicy{Mode: runtime.RestartAlways, MaxRetries: 3}
		}},
		{"spec.restart.on_unhealthy", func(s *runtime.Spec) {
			s.Restart = &runtime.RestartPolicy{Mode: runtime.RestartAlways, OnUnhealthy: true}
		}},
		{"spec.restart.on_unhealthy", func(s *runtime.Spec) {
			s.Restart = &runtime.RestartPolicy{OnUnhealthy: true}
			s.HealthCheck = &runtime.HealthCheck{TCPPort: 1}
		}},
		{"spec.health_check", func(s *runtime.Spec) { s.HealthCheck = &runtime.HealthCheck{} }},
		{"spec.health_check", func(s *runtime.Spec) { s.HealthCheck = &runtime.HealthCheck{TCPPort: 1, HTTPPort: 2} }},
		{"spec.health_check.http.path", func(s *runtime.Spec) {
			s.HealthCheck = &runtime.HealthCheck{HTTPPort: 2, HTTPPath: "http://192.0.2.1/"}
		}},
		{"spec.health_check.http.path", func(s *runtime.Spec) {
			s.HealthCheck = &runtime.HealthCheck{HTTPPort: 2, HTTPPath: "@192.0.2.1/"}
		}},
		{"spec.health_check.command.argv", func(s *runtime.Spec) { s.HealthCheck = &runtime.HealthCheck{Command: []string{""}} }},
		{"spec.health_check.timeout", func(s *runtime.Spec) {
			s.HealthCheck = &runtime.HealthCheck{TCPPort: 1, Timeout: time.Hour}
		}},
		{"spec.health_check.desktop", func(s *runtime.Spec) {
			s.Desktop = nil
			s.HealthCheck = &runtime.HealthCheck{Desktop: true}
		}},
	} {
		req := full("desk")
		test.change(&req.Spec)
		_, _, err := d.Create(t.Context(), req)
		if fields := fieldsOf(err); !slices.Contains(fields, test.field) {
			t.Errorf("want a fault of %s, got %v: %v", test.field, fields, err)
		}
	}
	d.holdsNothing()
}

func fieldsOf(err error) (fields []string) {
	for _, p := range problem.All(err) {
		if p.Hint != "" {
			fields = append(fields, p.Field)
		}
	}
	return fields
}
