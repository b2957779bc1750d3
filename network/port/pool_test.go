package port_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/network/port/porttest"
	"github.com/remotegpu/remotegpu/store"
)

func open(tb testing.TB) *store.Store {
	tb.Helper()
	s, err := store.Open(tb.Context(), filepath.Join(tb.TempDir(), "node.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

func allFree(port.Protocol, uint16) (bool, error) { return true, nil }

func newPool(tb testing.TB, s port.Store, probe port.Probe) *port.Pool {
	tb.Helper()
	pool, err := port.New(tb.Context(), port.Config{HostID: porttest.Host, Store: s, Probe: probe, Quarantine: -1})
	if err != nil {
		tb.Fatal(err)
	}
	return pool
}

func allocate(tb testing.TB, p *port.Pool, s port.Store, envID string, requests ...port.Request) ([]port.Mapping, error) {
	tb.Helper()
	return p.Allocate(tb.Context(), port.Owner{EnvID: envID, Project: "default"}, requests, s.InsertPortMappings)
}

func must(tb testing.TB, p *port.Pool, s port.Store, envID string, requests ...port.Request) []uint16 {
	tb.Helper()
	mappings, err := allocate(tb, p, s, envID, requests...)
	if err != nil {
		tb.Fatal(err)
	}
	var externals []uint16
	for _, m := range mappings {
		externals = append(externals, m.External)
	}
	return externals
}

func want(tb testing.TB, err error, reason problem.Reason, field string) {
	tb.Helper()
	if p := problem.Of(err); p == nil || p.Reason != reason || p.Field != field || p.Hint == "" {
		tb.Errorf("error %+v, want %s on %s with a hint", p, reason, field)
	}
}

func TestCheckNamesEachField(t *testing.T) {
	t.Parallel()
	pool := newPool(t, open(t), allFree)
	err := pool.Check([]port.Request{
		{Service: port.SSH},
		{Service: "x"},
		{Service: port.Custom},
		{Service: port.SSH, External: 80},
		{Service: port.SSH, External: 22001, Protocol: port.TCP},
		{Service: port.SSH, External: 22001},
		{Service: port.SSH, Protocol: "sctp"},
		{Service: port.VNC, External: 6100},
		{Service: port.NoVNC, External: 6100},                    // overlapping ranges
		{Service: port.SSH, External: 22001, Protocol: port.UDP}, // another protocol
	}, "spec.ports")
	var got []string
	for _, p := range problem.All(err) {
		got = append(got, string(p.Reason)+" "+p.Field)
	}
	if want := []string{
		"FIELD_INVALID spec.ports[1].service_type", "FIELD_INVALID spec.ports[2].internal_port",
		"PORT_OUTSIDE_POOL spec.ports[3].external_port", "PORT_DUPLICATE spec.ports[5].external_port",
		"FIELD_INVALID spec.ports[6].protocol", "PORT_DUPLICATE spec.ports[8].external_port",
	}; !slices.Equal(got, want) {
		t.Errorf("problems %q, want %q", got, want)
	}
	if err := pool.Check([]port.Request{{Service: port.SSH}, {Service: port.SSH}}, "f"); err != nil {
		t.Error(err)
	}
}

func TestAllocate(t *testing.T) {
	t.Parallel()
	s := open(t)
	pool := newPool(t, s, allFree)
	mappings, err := allocate(t, pool, s, "env-1",
		port.Request{Service: port.SSH}, port.Request{Service: port.SSH, External: 22000},
		port.Request{Service: port.Custom, Internal: 53, Protocol: port.UDP, Description: "d"})
	if err != nil {
		t.Fatal(err)
	}
	if m := mappings[0]; m.External != 22001 || m.Internal != 22 || m.Protocol != port.TCP || m.Status != port.Reserved ||
		m.EnvID != "env-1" || m.HostID != porttest.Host || m.Project != "default" || m.ID == "" {
		t.Errorf("picked beside the requested one: %+v", m)
	}
	if m := mappings[2]; m.External != 10000 || m.Internal != 53 || m.Protocol != port.UDP || m.Description != "d" {
		t.Errorf("udp: %+v", m)
	}
	_, err = allocate(t, pool, s, "env-2", port.Request{Service: port.SSH}, port.Request{Service: port.SSH, External: 22000})
	want(t, err, problem.PortTaken, "spec.ports[1].external_port")
	_, err = allocate(t, pool, s, "env-2", port.Request{Service: port.SSH, External: 9})
	want(t, err, problem.PortOutsidePool, "spec.ports[0].external_port")
	if held, _, err := s.PortMappings(t.Context(), porttest.Host, port.Filter{}); err != nil || len(held) != 3 {
		t.Errorf("held %v, error %v", held, err)
	}
}

func TestInsertFailureHoldsNothing(t *testing.T) {
	t.Parallel()
	s := open(t)
	pool := newPool(t, s, allFree)
	mine := errors.New("mine")
	_, err := pool.Allocate(t.Context(), port.Owner{EnvID: "env-1"}, []port.Request{{Service: port.SSH, External: 22000}},
		func(context.Context, []port.Mapping) error { return mine })
	if !errors.Is(err, mine) {
		t.Errorf("error %v", err)
	}
	if got := must(t, pool, s, "env-2", port.Request{Service: port.SSH, External: 22000}); got[0] != 22000 {
		t.Errorf("got %v", got)
	}
}

func TestReleasedPortRests(t *testing.T) {
	t.Parallel()
	s := open(t)
	pool := newPool(t, s, allFree)
	if _, err := pool.SetRange(t.Context(), port.SSH, 30000, 30002, 0); err != nil {
		t.Fatal(err)
	}
	ssh := port.Request{Service: port.SSH}
	first := must(t, pool, s, "a", ssh)
	released, err := pool.Release(t.Context(), "a")
	if err != nil || len(released) != 1 {
		t.Fatalf("released %v, error %v", released, err)
	}
	got := append(first, must(t, pool, s, "b", ssh)[0])
	pool = newPool(t, s, allFree) // a restart goes on where it was
	got = append(got, must(t, pool, s, "c", ssh)[0], must(t, pool, s, "d", ssh)[0])
	if want := []uint16{30000, 30001, 30002, 30000}; !slices.Equal(got, want) {
		t.Errorf("ports %v, want %v", got, want)
	}
	pool.Released(released) // a repeated notice must not free the new holder's port
	_, err = allocate(t, pool, s, "e", ssh)
	want(t, err, problem.PortPoolExhausted, "spec.ports[0]")
	if p := problem.Of(err); !strings.Contains(p.Hint, "30000-30002") || !errdefs.IsResourceExhausted(err) {
		t.Errorf("hint %q, error %v", p.Hint, err)
	}
}

func TestBatchIsAllOrNothing(t *testing.T) {
	t.Parallel()
	s := open(t)
	pool := newPool(t, s, allFree)
	if _, err := pool.SetRange(t.Context(), port.RDP, 30000, 30001, port.AnyRevision); err != nil {
		t.Fatal(err)
	}
	rdp := port.Request{Service: port.RDP}
	_, err := allocate(t, pool, s, "a", port.Request{Service: port.SSH}, rdp, rdp, rdp)
	want(t, err, problem.PortPoolExhausted, "spec.ports[3]")
	usage, err := pool.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range usage {
		if u.InUse != 0 {
			t.Errorf("%s has %d in use after a refused batch", u.Service, u.InUse)
		}
	}
	must(t, pool, s, "b", rdp, rdp)
}

func TestRefusedByBrowsersAndForeignAreSkipped(t *testing.T) {
	t.Parallel()
	s := open(t)
	foreign := map[uint16]bool{6664: true, 6670: true}
	pool := newPool(t, s, func(_ port.Protocol, p uint16) (bool, error) { return !foreign[p], nil })
	for _, service := range []port.Service{port.NoVNC, port.VNC} {
		if _, err := pool.SetRange(t.Context(), service, 6663, 6671, 0); err != nil {
			t.Fatal(err)
		}
	}
	usage, err := pool.Usage(t.Context())
	if err != nil || usage[4].Free != 2 || usage[3].Free != 7 {
		t.Errorf("free %+v, error %v", usage, err)
	}
	web := port.Request{Service: port.NoVNC}
	if got := must(t, pool, s, "a", web, web); !slices.Equal(got, []uint16{6663, 6671}) {
		t.Errorf("noVNC got %v", got)
	}
	if got := must(t, pool, s, "b", port.Request{Service: port.VNC}); got[0] != 6665 {
		t.Errorf("VNC got %v", got)
	}
	_, err = allocate(t, pool, s, "c", port.Request{Service: port.VNC, External: 6670})
	want(t, err, problem.PortTaken, "spec.ports[0].external_port")
}

func TestConflictsAreRetriedAndForgotten(t *testing.T) {
	t.Parallel()
	s := open(t)
	pool := newPool(t, s, allFree)
	if _, err := pool.SetRange(t.Context(), port.SSH, 30000, 30003, 0); err != nil {
		t.Fatal(err)
	}
	// Somebody else writes into the same table.
	if err := s.InsertPortMappings(t.Context(), []port.Mapping{
		porttest.Mapping("other", port.TCP, 30000), porttest.Mapping("other", port.TCP, 30001), porttest.Mapping("other", port.TCP, 30003),
	}); err != nil {
		t.Fatal(err)
	}
	ssh := port.Request{Service: port.SSH}
	if got := must(t, pool, s, "a", ssh); got[0] != 30002 {
		t.Errorf("got %v, want the one free port", got)
	}
	_, err := allocate(t, pool, s, "b", ssh)
	want(t, err, problem.PortPoolExhausted, "spec.ports[0]")
	if _, err := s.ReleasePortMappings(t.Context(), porttest.Host, "other", porttest.Mapping("", port.TCP, 1).CreatedAt); err != nil {
		t.Fatal(err)
	}
	must(t, pool, s, "b", ssh, ssh, ssh)
}

func TestSetRange(t *testing.T) {
	t.Parallel()
	s := open(t)
	pool := newPool(t, s, allFree)
	held := must(t, pool, s, "a", port.Request{Service: port.SSH})
	for _, bad := range []struct {
		first, last uint16
		field       string
	}{{80, 90, "first_port"}, {30001, 30000, "last_port"}} {
		_, err := pool.SetRange(t.Context(), port.SSH, bad.first, bad.last, 0)
		want(t, err, problem.PortRangeInvalid, bad.field)
	}
	r, err := pool.SetRange(t.Context(), port.SSH, 30000, 30010, 0)
	if err != nil || r.Revision != 1 || r.Internal != 22 {
		t.Errorf("%+v, error %v", r, err)
	}
	if again, err := pool.SetRange(t.Context(), port.SSH, 30000, 30010, 0); err != nil || again != r {
		t.Errorf("set again: %+v, error %v", again, err)
	}
	_, err = pool.SetRange(t.Context(), port.SSH, 31000, 31010, 0)
	want(t, err, problem.EtagMismatch, "etag")
	other := newPool(t, s, allFree)
	if _, err := other.SetRange(t.Context(), port.SSH, 32000, 32010, 1); err != nil {
		t.Fatal(err)
	}
	_, err = pool.SetRange(t.Context(), port.SSH, 33000, 33010, port.AnyRevision) // the store knows better
	want(t, err, problem.EtagMismatch, "etag")
	if ranges := newPool(t, s, allFree).Ranges(); ranges[0].First != 32000 || ranges[0].Revision != 2 {
		t.Errorf("after reopening: %+v", ranges[0])
	}
	if found, _, err := s.PortMappings(t.Context(), porttest.Host, port.Filter{}); err != nil || found[0].External != held[0] {
		t.Errorf("a mapping outside the new range: %v, error %v", found, err)
	}
}

func TestRaceNeverDoubles(t *testing.T) {
	t.Parallel()
	s := open(t)
	pool := newPool(t, s, allFree)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		seen = make(map[uint16]bool)
	)
	for i := range 64 {
		wg.Go(func() {
			for j := range 4 {
				mappings, err := allocate(t, pool, s, fmt.Sprintf("env-%d-%d", i, j),
					port.Request{Service: port.VNC}, port.Request{Service: port.NoVNC})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, m := range mappings {
					if seen[m.External] {
						t.Errorf("port %d was given twice", m.External)
					}
					seen[m.External] = true
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(seen) != 512 {
		t.Errorf("%d ports, want 512", len(seen))
	}
}

// memory is a model of the store: a set of held ports.
type memory struct {
	port.Store
	held map[uint16]string
}

func (m *memory) PortRanges(context.Context, string) ([]port.Range, error) { return nil, nil }

func (m *memory) PortMappings(context.Context, string, port.Filter) ([]port.Mapping, string, error) {
	var found []port.Mapping
	for external, env := range m.held {
		mapping := porttest.Mapping(env, port.TCP, external)
		mapping.ID = "of " + env
		found = append(found, mapping)
	}
	return found, "", nil
}

func (m *memory) SetPortRange(context.Context, string, port.Range) error { return nil }

// FuzzPool plays random allocations, releases, failures, foreign holders and
// restarts against a model: no port is ever given twice, none gets lost.
func FuzzPool(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 1))
		model := &memory{held: make(map[uint16]string)}
		owned := make(map[string][]port.Mapping)
		const first, size = 40000, 12
		var pool *port.Pool
		restart := func() {
			pool = newPool(t, model, allFree)
			if _, err := pool.SetRange(t.Context(), port.SSH, first, first+size-1, port.AnyRevision); err != nil {
				t.Fatal(err)
			}
			for env, mappings := range owned {
				for i := range mappings {
					mappings[i].ID = "of " + env
				}
			}
		}
		restart()
		for step := range 200 {
			env := fmt.Sprintf("env-%d", step)
			switch random.IntN(6) {
			case 0, 1, 2:
				requests := make([]port.Request, 1+random.IntN(3))
				for i := range requests {
					requests[i].Service = port.SSH
				}
				broken := random.IntN(5) == 0
				mappings, err := pool.Allocate(t.Context(), port.Owner{EnvID: env}, requests, func(_ context.Context, mappings []port.Mapping) error {
					for _, m := range mappings {
						if model.held[m.External] != "" {
							return &port.ConflictError{Protocol: m.Protocol, Port: m.External}
						}
					}
					if broken {
						return errdefs.ErrInternal
					}
					for _, m := range mappings {
						if model.held[m.External] != "" {
							t.Fatalf("port %d twice in one batch", m.External)
						}
						model.held[m.External] = env
					}
					return nil
				})
				fits := len(model.held)+len(requests) <= size
				switch {
				case err == nil:
					owned[env] = mappings
				case broken && errdefs.IsInternal(err):
				case fits:
					t.Fatalf("step %d: %d of %d held, %d asked for: %v", step, len(model.held), size, len(requests), err)
				}
			case 3: // release
				for env, mappings := range owned {
					for _, m := range mappings {
						delete(model.held, m.External)
					}
					pool.Released(mappings)
					pool.Released(mappings)
					delete(owned, env)
					break
				}
			case 4: // somebody else takes or frees a port
				external := uint16(first + random.IntN(size))
				switch model.held[external] {
				case "":
					model.held[external] = "foreign"
				case "foreign":
					delete(model.held, external)
				}
			case 5:
				if random.IntN(4) == 0 {
					restart()
				}
			}
		}
	})
}

func TestBindProbe(t *testing.T) {
	testutil.Require(t, testutil.Root)
	testutil.NetNS(t)
	listen := func(network, address string) {
		t.Helper()
		var closer interface{ Close() error }
		var err error
		if strings.HasPrefix(network, "udp") {
			closer, err = net.ListenPacket(network, address)
		} else {
			closer, err = net.Listen(network, address)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closer.Close() })
	}
	listen("tcp4", "127.0.0.1:22000")
	listen("tcp6", "[::1]:22001")
	listen("udp4", "127.0.0.1:22002")
	for _, test := range []struct {
		protocol port.Protocol
		port     uint16
		free     bool
	}{
		{port.TCP, 22000, false},
		{port.TCP, 22001, false},
		{port.TCP, 22002, true},
		{port.UDP, 22002, false},
		{port.UDP, 22000, true},
		{port.TCP, 22003, true},
		{port.TCP, 22003, true},
	} {
		if free, err := port.BindProbe(test.protocol, test.port); err != nil || free != test.free {
			t.Errorf("%d/%s: free %v, error %v, want %v", test.port, test.protocol, free, err, test.free)
		}
	}
	s := open(t)
	pool := newPool(t, s, nil)
	if got := must(t, pool, s, "a", port.Request{Service: port.SSH}); got[0] != 22002 {
		t.Errorf("got %v, want 22002: others listen on the two before", got)
	}
	testutil.Sh(t, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.lo.disable_ipv6=1")
	for p, want := range map[uint16]bool{22000: false, 22009: true} {
		if free, err := port.BindProbe(port.TCP, p); err != nil || free != want {
			t.Errorf("without IPv6: %d free %v, error %v, want %v", p, free, err, want)
		}
	}
}

// From where a mapping is reached follows from its sources and the node's default.
func TestReach(t *testing.T) {
	s := open(t)
	everybody4, everybody6, some := "0.0.0.0/0", "::/0", "203.0.113.0/24"
	for _, test := range []struct {
		name        string
		sources     []string
		closed, six bool
		want        port.Reach
	}{
		{"no list", nil, false, true, port.FromEverywhere},
		{"no list, closed", nil, true, true, port.FromNode},
		{"a list", []string{some}, false, false, port.FromSources},
		{"a list, closed", []string{some}, true, true, port.FromSources},
		{"everybody, closed", []string{everybody4, everybody6}, true, true, port.FromEverywhere},
		{"everybody there is", []string{everybody4}, true, false, port.FromEverywhere},
		{"everybody of IPv4", []string{everybody4}, false, true, port.FromSources},
	} {
		pool, err := port.New(t.Context(), port.Config{
			HostID: porttest.Host, Store: s, Probe: allFree, Quarantine: -1, IPv6: test.six, ClosedByDefault: test.closed,
		})
		if err != nil {
			t.Fatal(err)
		}
		made, err := allocate(t, pool, s, test.name, port.Request{Service: port.SSH, Sources: test.sources})
		if err != nil {
			t.Fatal(test.name, err)
		}
		if got, err := pool.Mapping(t.Context(), made[0].ID); err != nil || got.Reach != test.want {
			t.Errorf("%s: %q, %v", test.name, got.Reach, err)
		}
		if _, err := pool.Release(t.Context(), test.name); err != nil {
			t.Fatal(err)
		}
		if got, err := pool.Mapping(t.Context(), made[0].ID); err != nil || got.Reach != port.FromNowhere {
			t.Errorf("%s, released: %q, %v", test.name, got.Reach, err)
		}
	}
}
