package runtime_test

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// addPort adds a mapping to "desk" and returns it.
func (d *daemon) addPort(req runtime.PortCreateRequest) port.Mapping {
	d.t.Helper()
	req.Environment = "desk"
	id, op, err := d.CreatePort(d.t.Context(), req)
	if err != nil {
		d.t.Fatalf("create port: %v", err)
	}
	if op = d.done(op); op.State != operation.Succeeded || op.Result["mapping"] != id {
		d.t.Fatalf("create port: %+v, %+v", op, op.Problem)
	}
	m, err := d.Port(d.t.Context(), id)
	if err != nil {
		d.t.Fatal(err)
	}
	return m
}

// settle waits for an operation that has to succeed.
func (d *daemon) settle(op *operation.Operation, err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
	if op = d.done(op); op.State != operation.Succeeded {
		d.t.Fatalf("%s: %+v", op.Kind, op.Problem)
	}
}

func web(internal uint16) port.Request {
	return port.Request{Service: port.Custom, Internal: internal, Protocol: port.TCP}
}

// A mapping comes and goes while the environment runs or is stopped, keeps its
// process, is told of, and is what the spec says.
func TestPortsOfARunningEnvironment(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	before, _ := d.create(full("desk"))
	request := web(8080)
	request.Sources, request.Description = []string{"203.0.113.7"}, "notes"
	added := d.addPort(runtime.PortCreateRequest{RequestID: "once", Port: request})
	if added.Internal != 8080 || added.Status != port.Active || added.Description != "notes" || !slices.Equal(added.Sources, []netip.Prefix{netip.MustParsePrefix("203.0.113.7/32")}) {
		t.Errorf("added %+v", added)
	}
	env := d.agrees("added")
	if !env.StartedAt.Equal(before.StartedAt) || len(env.Ports) != 3 || env.Spec.Ports[2].Sources[0] != "203.0.113.7" {
		t.Errorf("with the port: %+v", env)
	}
	// The same request answers with the first one's operation, another does not pass for it.
	id, op, err := d.CreatePort(t.Context(), runtime.PortCreateRequest{RequestID: "once", Environment: "desk", Port: request})
	if err != nil || id != added.ID || op == nil || len(d.agrees("repeated").Ports) != 3 {
		t.Errorf("repeated: %s, %+v, %v", id, op, err)
	}
	if _, _, err := d.CreatePort(t.Context(), runtime.PortCreateRequest{RequestID: "once", Environment: "desk", Port: web(1)}); problem.Of(err).Reason != problem.RequestIDReused {
		t.Errorf("another request with its id: %v", err)
	}
	change := runtime.PortUpdateRequest{ID: added.ID, Fields: []string{runtime.PortSources, runtime.PortDescription}, Description: "shared"}
	_, op, err = d.UpdatePort(t.Context(), change)
	d.settle(op, err)
	env = d.agrees("updated")
	if m := env.Ports[2]; len(m.Sources) != 0 || m.Description != "shared" || m.ID != added.ID || env.Spec.Ports[2].Description != "shared" || len(env.Spec.Ports[2].Sources) != 0 {
		t.Errorf("updated %+v, asked for %+v", m, env.Spec.Ports[2])
	}
	if _, op, err := d.UpdatePort(t.Context(), change); err != nil || op != nil {
		t.Errorf("an update that changes nothing: %+v, %v", op, err)
	}
	// A list that was read before does not take it away unseen.
	if _, err := d.Update(t.Context(), runtime.UpdateRequest{Environment: "desk", Etag: runtime.Etag(before.Revision), Fields: []string{"spec.ports"}}); problem.Of(err).Reason != problem.EtagMismatch {
		t.Errorf("an update by an old list: %v", err)
	}
	d.act(d.Stop, "desk")
	second := d.addPort(runtime.PortCreateRequest{Port: web(8081)})
	d.agrees("added to a stopped one")
	d.act(d.Start, "desk")
	d.agrees("started again")
	for _, m := range []port.Mapping{added, second} {
		_, op, err := d.DeletePort(t.Context(), runtime.PortDeleteRequest{ID: m.ID, RequestID: "rm-" + m.ID})
		d.settle(op, err)
		_, op, err = d.DeletePort(t.Context(), runtime.PortDeleteRequest{ID: m.ID, RequestID: "rm-" + m.ID})
		if err != nil || op == nil {
			t.Errorf("the same delete again: %+v, %v", op, err)
		}
		if _, op, err := d.DeletePort(t.Context(), runtime.PortDeleteRequest{ID: m.ID}); err != nil || op != nil {
			t.Errorf("a delete of what is released: %+v, %v", op, err)
		}
		if gone, err := d.Port(t.Context(), m.ID); err != nil || gone.Status != port.Released || gone.ReleasedAt.IsZero() {
			t.Errorf("released: %+v, %v", gone, err)
		}
	}
	env = d.agrees("removed")
	if len(env.Spec.Ports) != 2 || env.Spec.Ports[0].Service != port.SSH {
		t.Errorf("what is left: %+v", env.Spec.Ports)
	}
	kinds, entries := d.history(env.ID)
	slices.Sort(kinds)
	if got := strings.Join(kinds, " "); strings.Count(got, "port_added") != 2 || strings.Count(got, "port_removed") != 2 || strings.Count(got, "port_changed") != 1 {
		t.Errorf("history: %v, %v", kinds, entries)
	}
}

func TestPortsThatAreRefused(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(full("desk"))
	sources, past, outside := web(80), web(80), web(80)
	sources.Sources = []string{"203.0.113.0/24", "here"}
	past.ExpiresAt = time.Now().Add(-time.Minute)
	outside.External = 80
	for name, test := range map[string]struct {
		req    runtime.PortCreateRequest
		reason problem.Reason
		field  string
	}{
		"sources": {runtime.PortCreateRequest{Port: sources}, problem.FieldInvalid, "allowed_sources[1]"},
		"past":    {runtime.PortCreateRequest{Port: past}, problem.FieldInvalid, "expires_at"},
		"outside": {runtime.PortCreateRequest{Port: outside}, problem.PortOutsidePool, "external_port"},
		"twice":   {runtime.PortCreateRequest{Port: past, ExpiresIn: time.Hour}, problem.FieldInvalid, "expires_in"},
		"inside":  {runtime.PortCreateRequest{Port: port.Request{Service: port.Custom, Protocol: port.TCP}}, problem.FieldInvalid, "internal_port"},
		"old":     {runtime.PortCreateRequest{Port: web(80), Etag: "1"}, problem.EtagMismatch, "etag"},
		"nobody":  {runtime.PortCreateRequest{Port: web(80), Environment: "absent"}, problem.EnvNotFound, "environment"},
	} {
		if test.req.Environment == "" {
			test.req.Environment = "desk"
		}
		if _, _, err := d.CreatePort(t.Context(), test.req); err == nil || problem.Of(err).Reason != test.reason || problem.Of(err).Field != test.field || problem.Of(err).Hint == "" {
			t.Errorf("%s: %+v, want %s on %s", name, problem.Of(err), test.reason, test.field)
		}
	}
	for name, err := range map[string]error{
		"update of none": second(d.UpdatePort(t.Context(), runtime.PortUpdateRequest{ID: "none", Fields: []string{"description"}})),
		"delete of none": second(d.DeletePort(t.Context(), runtime.PortDeleteRequest{ID: "none"})),
	} {
		if problem.Of(err).Reason != problem.PortNotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := second(d.UpdatePort(t.Context(), runtime.PortUpdateRequest{ID: env.Ports[0].ID, Fields: []string{"service"}})); problem.Of(err).Field != "update_mask" {
		t.Errorf("a field that stays: %v", err)
	}
	// A host port that is held shows in the operation; nothing is changed.
	taken := web(80)
	for _, m := range env.Ports {
		if m.Service == port.Custom {
			taken.External = m.External
		}
	}
	_, op, err := d.CreatePort(t.Context(), runtime.PortCreateRequest{Environment: "desk", Port: taken})
	if err != nil {
		t.Fatal(err)
	}
	if op = d.done(op); op.State != operation.Failed || op.Problem.Reason != string(problem.PortTaken) || op.Problem.Field != "external_port" {
		t.Errorf("a port that is held: %+v", op.Problem)
	}
	if env = d.agrees("refused"); len(env.Ports) != 2 {
		t.Errorf("refused requests left %+v", env.Ports)
	}
}

func second(_ string, _ *operation.Operation, err error) error { return err }

// Who asks for several ports of an environment at once gets all of them; what
// works on the environment for longer is told of as before.
func TestPortsAskedForAtOnce(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(full("desk"))
	held, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	h.faults.Hook(func(method string) {
		if method == "Networks.Publish" {
			once.Do(func() { close(held); <-release })
		}
	})
	type answer struct {
		op  *operation.Operation
		err error
	}
	answers := make(chan answer)
	ask := func(internal uint16) {
		_, op, err := d.CreatePort(t.Context(), runtime.PortCreateRequest{Environment: "desk", Port: web(internal)})
		answers <- answer{op, err}
	}
	go ask(8080)
	first := <-answers
	<-held
	for i := range uint16(4) {
		go ask(8081 + i)
	}
	if _, _, err := d.Stop(t.Context(), runtime.ActionRequest{Environment: "desk"}); problem.Of(err).Reason != problem.EnvBusy {
		t.Errorf("a stop meanwhile: %v", err)
	}
	close(release)
	d.settle(first.op, first.err)
	for range 4 {
		one := <-answers
		d.settle(one.op, one.err)
	}
	if env := d.agrees("all"); len(env.Ports) != 7 || len(env.Spec.Ports) != 7 {
		t.Errorf("there are %d ports, asked for %d", len(env.Ports), len(env.Spec.Ports))
	}
}

// Mappings end by themselves: at their time, and at once at a start that comes
// after it.
func TestPortsExpire(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(full("desk"))
	short := d.addPort(runtime.PortCreateRequest{Port: web(8080), ExpiresIn: 300 * time.Millisecond})
	long := d.addPort(runtime.PortCreateRequest{Port: web(8081), ExpiresIn: time.Hour})
	waitFor(t, "the mapping to end", func() bool { m, err := d.Port(t.Context(), short.ID); return err == nil && m.Status == port.Released })
	env := d.agrees("after one has ended")
	if len(env.Ports) != 3 || len(env.Spec.Ports) != 3 || env.Ports[2].ID != long.ID {
		t.Errorf("left: %+v, asked for %+v", env.Ports, env.Spec.Ports)
	}
	kinds, entries := d.history(env.ID)
	if !slices.Contains(kinds, runtime.HappenedPortRemoved) || !strings.Contains(entries[0].Message, "its time is over") {
		t.Errorf("history %v, %v", kinds, entries)
	}
	// The end comes while the daemon is away.
	_, op, err := d.UpdatePort(t.Context(), runtime.PortUpdateRequest{ID: long.ID, Fields: []string{runtime.PortExpiresIn}, ExpiresIn: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	d.done(op)
	d.stop()
	time.Sleep(250 * time.Millisecond)
	d = start(t, h)
	if got := externals(h.networks.Published(env.ID)); len(got) != 2 {
		t.Errorf("published right after the start: %v", got)
	}
	waitFor(t, "the other to end", func() bool { m, err := d.Port(t.Context(), long.ID); return err == nil && m.Status == port.Released })
	d.agrees("after both have ended")
}

// Where people reach an environment follows from its ports and desktop alone.
func TestAccess(t *testing.T) {
	h := newHost(t)
	h.addresses = fixed{}
	d := start(t, h)
	req := full("desk")
	req.Spec.Ports = []port.Request{
		{Service: port.SSH, External: 22007, Protocol: port.TCP},
		{Service: port.RDP, External: 33891, Protocol: port.TCP},
		{Service: port.RDP, External: 33891, Protocol: port.UDP},
		{Service: port.Jupyter, External: 8890, Protocol: port.TCP},
		{Service: port.VNC, External: 5902, Protocol: port.TCP},
		{Service: port.NoVNC, External: 6081, Protocol: port.TCP},
		web(80),
	}
	env, _ := d.create(req)
	var got []string
	for _, access := range env.Access {
		got = append(got, string(access.Service)+" "+access.URL)
	}
	if want := []string{
		"novnc https://gw/desktop/" + env.ID, "ssh ssh://gpu@[2001:db8::1]:22007", "rdp rdp://[2001:db8::1]:33891", "jupyter http://[2001:db8::1]:8890/",
		"vnc vnc://[2001:db8::1]:5902", "novnc http://[2001:db8::1]:6081/vnc.html",
	}; !slices.Equal(got, want) {
		t.Errorf("access %q, want %q", got, want)
	}
	h.images.Add(runtime.Image{Name: "docker.io/library/odd:1", Digest: "sha256:2", Labels: map[string]string{runtime.LabelUser: "-oProxyCommand=sh"}})
	odd := runtime.CreateRequest{Name: "odd", Spec: runtime.Spec{Image: "odd:1", Ports: []port.Request{{Service: port.SSH, External: 22009, Protocol: port.TCP}}}}
	env, _ = d.create(odd)
	if len(env.Access) != 1 || env.Access[0].URL != "ssh://[2001:db8::1]:22009" || !slices.ContainsFunc(env.Warnings, func(w string) bool { return strings.Contains(w, runtime.LabelUser) }) {
		t.Errorf("access by a user that is none: %v, warnings %q", env.Access, env.Warnings)
	}
}

type fixed struct{}

func (fixed) Host(_, _ string) string     { return "2001:db8::1" }
func (fixed) Desktop(envID string) string { return "https://gw/desktop/" + envID }

// A change of ports that is cancelled before it is recorded does not happen; one
// that is recorded is made reachable and has succeeded, whoever cancels then.
func TestPortsThatAreCancelled(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(full("desk"))
	m := d.addPort(runtime.PortCreateRequest{Port: web(8080)})
	ctx := context.WithValue(t.Context(), request{}, true)
	changes := []struct {
		name  string
		begin func() (*operation.Operation, error)
		ports int // when it has happened
	}{
		{"create", func() (*operation.Operation, error) {
			_, op, err := d.CreatePort(ctx, runtime.PortCreateRequest{Environment: "desk", Port: web(8081)})
			return op, err
		}, 4},
		{"update of one", func() (*operation.Operation, error) {
			_, op, err := d.UpdatePort(ctx, runtime.PortUpdateRequest{ID: m.ID, Fields: []string{runtime.PortDescription}, Description: "notes"})
			return op, err
		}, 4},
		{"delete", func() (*operation.Operation, error) {
			_, op, err := d.DeletePort(ctx, runtime.PortDeleteRequest{ID: m.ID})
			return op, err
		}, 3},
		{"update of all", func() (*operation.Operation, error) {
			updated, err := d.Update(ctx, runtime.UpdateRequest{
				Environment: "desk", Fields: append([]string{"spec.ports"}, limitFields...),
				Spec: runtime.Spec{Resources: limits(256<<20, 0).Resources, Ports: []port.Request{web(8081), web(8082)}},
			})
			return updated.Operation, err
		}, 2},
	}
	// cancelled begins a change, cancels it at the moment that block holds it at and
	// returns how it ended.
	cancelled := func(begin func() (*operation.Operation, error), reached <-chan struct{}, release func()) *operation.Operation {
		t.Helper()
		op, err := begin()
		if err != nil {
			t.Fatal(err)
		}
		await(t, "change", reached)
		if _, err := d.queue.Cancel(t.Context(), op.ID); err != nil {
			t.Fatal(err)
		}
		release()
		return d.done(op)
	}
	for _, c := range changes {
		before := d.agrees("before " + c.name)
		hold := blockRun
		if c.name == "update of all" { // its limits are in force by then
			hold = func(t *testing.T, h *host) (chan struct{}, func()) {
				t.Helper()
				return blockCall(t, h, "Engine.Update")
			}
		}
		reached, release := hold(t, h)
		if op := cancelled(c.begin, reached, release); op.State != operation.Cancelled {
			t.Errorf("%s, cancelled before it is recorded: %s, %+v", c.name, op.State, op.Problem)
		}
		if env := d.agrees(c.name + " that was cancelled"); len(env.Ports) != len(before.Ports) || env.Spec.Resources.MemoryBytes != before.Spec.Resources.MemoryBytes {
			t.Errorf("%s, cancelled before it is recorded, left %+v", c.name, env)
		}
		reached, release = blockCall(t, h, "Networks.Publish")
		if op := cancelled(c.begin, reached, release); op.State != operation.Succeeded {
			t.Errorf("%s, cancelled when it is recorded: %s, %+v", c.name, op.State, op.Problem)
		}
		if env := d.agrees(c.name + " that was not"); len(env.Ports) != c.ports || env.Operation != "" {
			t.Errorf("%s, cancelled when it is recorded, left %+v", c.name, env)
		}
	}
}

// request marks the context of a request, as opposed to that of its operation.
type request struct{}

// blockRun holds the next operation that begins when it has read its environment.
func blockRun(t *testing.T, h *host) (reached chan struct{}, release func()) {
	t.Helper()
	reached = make(chan struct{})
	freed := make(chan struct{})
	var once sync.Once
	hold := func(ctx context.Context) {
		if ctx.Value(request{}) == nil {
			once.Do(func() { close(reached); <-freed })
		}
	}
	h.afterRead.Store(&hold)
	release = sync.OnceFunc(func() { h.afterRead.Store(nil); close(freed) })
	t.Cleanup(release)
	return reached, release
}

// A mapping ends although an operation works on the environment, and what that
// one does to the ports is not undone.
func TestPortsExpireBesideAnOperation(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(full("desk"))
	m := d.addPort(runtime.PortCreateRequest{Port: web(8080), ExpiresIn: 400 * time.Millisecond})
	release := make(chan struct{})
	h.faults.Hook(func(method string) {
		if method == "Engine.Stop" {
			<-release
		}
	})
	_, op, err := d.Stop(t.Context(), runtime.ActionRequest{Environment: "desk"})
	if err != nil {
		t.Fatal(err)
	}
	id := m.EnvID
	waitFor(t, "the mapping to be withdrawn", func() bool { return len(h.networks.Published(id)) == 2 })
	waitFor(t, "its name to go", func() bool { // two services stay
		host := h.names.Host("desk")
		return host != nil && len(host.Services) == 2
	})
	if held, err := d.Port(t.Context(), m.ID); err != nil || held.Status != port.Active {
		t.Errorf("while an operation works on its environment it is %+v, %v", held, err)
	}
	close(release)
	d.done(op)
	waitFor(t, "the mapping to be released", func() bool { held, err := d.Port(t.Context(), m.ID); return err == nil && held.Status == port.Released })
	d.agrees("after both")
}

// The ports of an environment whose first start takes long stay published
// whatever passes go by meanwhile.
func TestPortsOfALongStart(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	begun, release := make(chan struct{}), make(chan struct{})
	h.faults.Hook(func(method string) {
		if method == "Engine.Start" {
			close(begun)
			<-release
		}
	})
	env, op, err := d.Create(t.Context(), full("desk"))
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	waitFor(t, "its ports to be published", func() bool { return len(h.networks.Published(env.ID)) == 2 })
	if err := d.Reconcile(t.Context()); err != nil {
		t.Error(err)
	}
	if got := h.networks.Published(env.ID); len(got) != 2 {
		t.Errorf("after a pass it has the ports %v", got)
	}
	close(release)
	d.settle(op, nil)
	d.agrees("started")
}
