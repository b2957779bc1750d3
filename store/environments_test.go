package store_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/network/port/porttest"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/operation/operationtest"
	"github.com/remotegpu/remotegpu/runtime/volume"
	"github.com/remotegpu/remotegpu/store"
)

func environment(name string) *runtime.Environment {
	return &runtime.Environment{
		ID: ulid.Make().String(), Name: name, Project: "default", Node: "n", State: runtime.Creating, Held: true, Slot: -1,
		Labels: map[string]string{"team": "vision"},
		Spec: runtime.Spec{
			Image: "img", Env: map[string]string{"A": "b"}, Resources: runtime.Resources{Pids: 10, Ulimits: []runtime.Ulimit{{Name: "nofile", Soft: 1, Hard: -1}}},
			Mounts: []volume.Mount{{Type: volume.Tmpfs, Target: "/t"}}, Desktop: &runtime.Desktop{Width: 1, Height: 2, Depth: 24},
			Ports: []port.Request{{Service: port.Custom, Internal: 80, Protocol: port.TCP}},
		},
	}
}

func create(tb testing.TB, s *store.Store, env *runtime.Environment, externals ...uint16) *operation.Operation {
	tb.Helper()
	op := operationtest.Operation("environment.create", env.ID)
	var mappings []port.Mapping
	for _, external := range externals {
		mappings = append(mappings, porttest.Mapping(env.ID, port.TCP, external))
	}
	if existing, err := s.CreateEnvironment(tb.Context(), env, op, mappings, runtime.Slots{Count: 100}, nil); err != nil || existing != nil {
		tb.Fatalf("create %s: existing %v, error %v", env.Name, existing, err)
	}
	return op
}

func remove(tb testing.TB, s *store.Store, id string) []port.Mapping {
	tb.Helper()
	env, released, err := s.ReleaseEnvironment(tb.Context(), id, func(env *runtime.Environment) error {
		env.State, env.Held = runtime.Deleted, false
		return nil
	})
	if err != nil || env.Slot != -1 || env.Address.IsValid() || len(env.Ports) != 0 {
		tb.Fatalf("released %+v, error %v", env, err)
	}
	return released
}

func wantReason(t *testing.T, err error, reason problem.Reason) {
	t.Helper()
	if p := problem.Of(err); p == nil || p.Reason != reason {
		t.Errorf("error %v, want %s", err, reason)
	}
}

var ipComparer = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestEnvironmentRoundTrip(t *testing.T) {
	t.Parallel()
	s := open(t)
	env := environment("a")
	op := create(t, s, env, 10000, 10001)
	got, err := s.Environment(t.Context(), env.ID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(env, got, ipComparer); diff != "" {
		t.Errorf("after create (-given +read):\n%s", diff)
	}
	if got.Slot != 0 || got.Revision != 1 || len(got.Ports) != 2 {
		t.Errorf("created as %+v", got)
	}
	if stored, err := s.Operation(t.Context(), op.ID); err != nil || stored.State != operation.Queued {
		t.Errorf("operation %+v, error %v", stored, err)
	}
	time.Sleep(2 * time.Millisecond)
	changed, err := s.ActivateEnvironment(t.Context(), env.ID, func(env *runtime.Environment) error {
		env.State, env.StartedAt, env.Digest, env.Login, env.Ready = runtime.Running, time.Now(), "sha256:1", "gpu", true
		env.Address, env.Warnings = netip.MustParseAddr("10.1.2.3"), []string{"w"}
		env.Problem = &operation.Problem{Reason: "R", Message: "m"}
		env.Exit = &runtime.Exit{Code: 137, Signal: 9, OOMKilled: true, At: time.Now().UTC().Truncate(time.Millisecond)}
		env.OOMKills = 2
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err = s.EnvironmentByName(t.Context(), "default", "a"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(changed, got, ipComparer); diff != "" {
		t.Errorf("after change (-returned +read):\n%s", diff)
	}
	if got.Revision != 2 || !got.UpdatedAt.After(env.UpdatedAt) || got.Ports[0].Status != port.Active || got.Ports[1].Status != port.Active {
		t.Errorf("activated as %+v", got)
	}
	released := remove(t, s, env.ID)
	if len(released) != 2 || released[0].Status != port.Released {
		t.Errorf("released %+v", released)
	}
	_, err = s.Environment(t.Context(), env.ID)
	wantReason(t, err, problem.EnvNotFound)
	_, err = s.EnvironmentByName(t.Context(), "default", "a")
	wantReason(t, err, problem.EnvNotFound)
	_, _, err = s.UpdateEnvironment(t.Context(), env.ID, nil, func(*runtime.Environment) error { return nil })
	wantReason(t, err, problem.EnvNotFound)
	create(t, s, environment("a"), 10000) // name and port are free again
}

func TestCreateRefusedLeavesNothing(t *testing.T) {
	t.Parallel()
	s := open(t)
	first := environment("a")
	create(t, s, first, 10000)
	try := func(env *runtime.Environment, slots int, external uint16) error {
		op := operationtest.Operation("environment.create", env.ID)
		_, err := s.CreateEnvironment(t.Context(), env, op, []port.Mapping{porttest.Mapping(env.ID, port.TCP, external)}, runtime.Slots{Count: slots}, nil)
		if _, opErr := s.Operation(t.Context(), op.ID); !errdefs.IsNotFound(opErr) {
			t.Errorf("the operation of a refused create: %v", opErr)
		}
		if fate, fateErr := s.Fate(t.Context(), env.ID); fateErr != nil || fate != runtime.FateUnknown {
			t.Errorf("fate of a refused create: %v, error %v", fate, fateErr)
		}
		if env.Slot != -1 || env.Revision != 0 {
			t.Errorf("the environment of a refused create was changed: %+v", env)
		}
		return err
	}
	wantReason(t, try(environment("a"), 100, 10001), problem.EnvNameExists)
	wantReason(t, try(environment("b"), 1, 10001), problem.AddressPoolExhausted)
	err := try(environment("b"), 100, 10000)
	if conflict, ok := errors.AsType[*port.ConflictError](err); !ok || conflict.Port != 10000 {
		t.Errorf("error %v, want a conflict on 10000", err)
	}
	if held, _, err := s.PortMappings(t.Context(), porttest.Host, port.Filter{}); err != nil || len(held) != 1 {
		t.Errorf("held %v, error %v", held, err)
	}
	other := environment("a")
	other.Project = "other"
	create(t, s, other)
	if other.Slot != 1 {
		t.Errorf("slot %d after refused creates, want 1", other.Slot)
	}
}

func TestKnownRequestWritesNothing(t *testing.T) {
	t.Parallel()
	s := open(t)
	env := environment("a")
	op := operationtest.Operation("environment.create", env.ID)
	op.RequestID, op.RequestHash = "r1", "h"
	if _, err := s.CreateEnvironment(t.Context(), env, op, nil, runtime.Slots{Count: 10}, nil); err != nil {
		t.Fatal(err)
	}
	again := operationtest.Operation("environment.create", "x")
	again.RequestID = "r1"
	second := environment("b")
	existing, err := s.CreateEnvironment(t.Context(), second, again, nil, runtime.Slots{Count: 10}, nil)
	if err != nil || existing == nil || existing.ID != op.ID || existing.RequestHash != "h" || second.Slot != -1 {
		t.Errorf("existing %+v, error %v", existing, err)
	}
	_, err = s.Environment(t.Context(), second.ID)
	wantReason(t, err, problem.EnvNotFound)

	fail := func(*runtime.Environment) error { t.Error("changed for a known request"); return nil }
	read, existing, err := s.UpdateEnvironment(t.Context(), env.ID, again, fail)
	if err != nil || existing == nil || existing.ID != op.ID || read.Revision != 1 {
		t.Errorf("update: %+v, existing %+v, error %v", read, existing, err)
	}
	remove(t, s, env.ID)
	// A repeated delete finds its operation though the environment is gone.
	read, existing, err = s.UpdateEnvironment(t.Context(), env.ID, again, fail)
	if err != nil || existing == nil || read != nil {
		t.Errorf("update after delete: %+v, existing %+v, error %v", read, existing, err)
	}
}

// An operation that takes an environment over from another cancels that with it, unless
// both are of a kind.
func TestTakingOverCancels(t *testing.T) {
	t.Parallel()
	for kind, want := range map[string]bool{"environment.stop": true, "environment.delete": false} {
		s := open(t)
		env := environment("a")
		create(t, s, env, 10)
		take := func(op *operation.Operation, refused error) {
			t.Helper()
			_, _, err := s.UpdateEnvironment(t.Context(), env.ID, op, func(env *runtime.Environment) error {
				env.Operation = op.ID
				return refused
			})
			if !errors.Is(err, refused) {
				t.Fatal(err)
			}
		}
		first := operationtest.Operation(kind, env.ID)
		take(first, nil)
		take(operationtest.Operation("environment.delete", env.ID), errors.New("mine"))
		if op, err := s.Operation(t.Context(), first.ID); err != nil || op.CancelRequested || op.Revision != 1 {
			t.Errorf("%s, refused: %+v, %v", kind, op, err)
		}
		take(operationtest.Operation("environment.delete", env.ID), nil)
		if op, err := s.Operation(t.Context(), first.ID); err != nil || op.CancelRequested != want || op.Revision == 1 == want {
			t.Errorf("%s: %+v, %v", kind, op, err)
		}
	}
}

func TestUpdateIsOneTransaction(t *testing.T) {
	t.Parallel()
	s := open(t)
	env := environment("a")
	create(t, s, env, 10000)
	mine := errors.New("mine")
	refuse := func(env *runtime.Environment) error { env.State = runtime.Failed; return mine }
	op := operationtest.Operation("environment.stop", env.ID)
	if _, _, err := s.UpdateEnvironment(t.Context(), env.ID, op, refuse); err != mine { //nolint:errorlint // it must be the very error
		t.Errorf("update: %v", err)
	}
	if _, _, err := s.ReleaseEnvironment(t.Context(), env.ID, refuse); err != mine { //nolint:errorlint // it must be the very error
		t.Errorf("release: %v", err)
	}
	if _, err := s.ActivateEnvironment(t.Context(), env.ID, refuse); err != mine { //nolint:errorlint // it must be the very error
		t.Errorf("activate: %v", err)
	}
	// What is deleted must have given its slot back: a constraint says so.
	if _, _, err := s.UpdateEnvironment(t.Context(), env.ID, op, func(env *runtime.Environment) error {
		env.State = runtime.Deleted
		return nil
	}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("deleted with its slot: %v", err)
	}
	got, err := s.Environment(t.Context(), env.ID)
	if err != nil || got.Revision != 1 || got.State != runtime.Creating || got.Ports[0].Status != port.Reserved {
		t.Errorf("%+v, error %v", got, err)
	}
	if _, err := s.Operation(t.Context(), op.ID); !errdefs.IsNotFound(err) {
		t.Errorf("operation of a refused update: %v", err)
	}
	if _, existing, err := s.UpdateEnvironment(t.Context(), env.ID, op, func(env *runtime.Environment) error {
		env.Operation = op.ID
		return nil
	}); err != nil || existing != nil {
		t.Errorf("existing %v, error %v", existing, err)
	}
	if _, err := s.Operation(t.Context(), op.ID); err != nil {
		t.Error(err)
	}
}

func TestSlotsAreReusedLate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "node.db")
	s := openAt(t, path)
	add := func() *runtime.Environment {
		env := environment(ulid.Make().String())
		op := operationtest.Operation("environment.create", env.ID)
		if _, err := s.CreateEnvironment(t.Context(), env, op, nil, runtime.Slots{Count: 4}, nil); err != nil {
			t.Fatal(err)
		}
		return env
	}
	a, b := add(), add()
	remove(t, s, a.ID)
	s.Close()
	s = openAt(t, path) // the order outlives the daemon
	c, d, e := add(), add(), add()
	got := []int{a.Slot, b.Slot, c.Slot, d.Slot, e.Slot}
	if want := []int{0, 1, 2, 3, 0}; !slices.Equal(got, want) {
		t.Errorf("slots %v, want %v", got, want)
	}
	env := environment("full")
	_, err := s.CreateEnvironment(t.Context(), env, operationtest.Operation("k", env.ID), nil, runtime.Slots{Count: 4}, nil)
	wantReason(t, err, problem.AddressPoolExhausted)
	remove(t, s, c.ID)
	if f := add(); f.Slot != c.Slot {
		t.Errorf("slot %d, want the only free one, %d", f.Slot, c.Slot)
	}
}

func TestEnvironmentsFilterAndPage(t *testing.T) {
	t.Parallel()
	s := open(t)
	var all, odd []string
	for i := range 9 {
		env := environment(fmt.Sprintf("e%d", i))
		env.Labels["odd"] = fmt.Sprint(i%2 == 1)
		if i == 8 {
			env.Project = "other"
		}
		create(t, s, env, uint16(10000+i), uint16(11000+i))
		all = append(all, env.ID)
		if i%2 == 1 {
			odd = append(odd, env.ID)
		}
	}
	if _, _, err := s.UpdateEnvironment(t.Context(), all[0], nil, func(env *runtime.Environment) error {
		env.State = runtime.Running
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	selector, err := runtime.ParseSelector("odd=true", "f")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		filter runtime.Filter
		want   []string
		pages  int
	}{
		{"all", runtime.Filter{}, all, 1},
		{"project", runtime.Filter{Project: "other"}, all[8:], 1},
		{"state", runtime.Filter{States: []runtime.State{runtime.Running, runtime.Stopped}}, all[:1], 1},
		{"pages", runtime.Filter{Limit: 3}, all, 3},
		{"last page short", runtime.Filter{Limit: 4}, all, 3},
		{"labels", runtime.Filter{Labels: selector}, odd, 1},
		{"pages of labels", runtime.Filter{Labels: selector, Limit: 2}, odd, 2},
	} {
		var got []string
		pages := 0
		for filter := test.filter; ; {
			found, next, err := s.Environments(t.Context(), filter)
			if err != nil {
				t.Fatal(err)
			}
			pages++
			for _, env := range found {
				got = append(got, env.ID)
				if len(env.Ports) != 2 || env.Ports[0].EnvID != env.ID {
					t.Errorf("%s: ports of %s: %v", test.name, env.Name, env.Ports)
				}
			}
			if filter.After = next; next == "" {
				break
			}
		}
		if !slices.Equal(got, test.want) || pages != test.pages {
			t.Errorf("%s: %v on %d pages, want %v on %d", test.name, got, pages, test.want, test.pages)
		}
	}
	_, _, err = s.Environments(t.Context(), runtime.Filter{After: "x"})
	wantReason(t, err, problem.PageTokenInvalid)
	counts, err := s.CountEnvironments(t.Context())
	if err != nil || counts[runtime.Running] != 1 || counts[runtime.Creating] != 8 {
		t.Errorf("counts %v, error %v", counts, err)
	}
}

func TestFateAndPurge(t *testing.T) {
	t.Parallel()
	s := open(t)
	held, gone := environment("held"), environment("gone")
	create(t, s, held, 10000)
	create(t, s, gone, 10001)
	remove(t, s, gone.ID)
	for id, want := range map[string]runtime.Fate{held.ID: runtime.FateHeld, gone.ID: runtime.FateGone, "x": runtime.FateUnknown} {
		if fate, err := s.Fate(t.Context(), id); err != nil || fate != want {
			t.Errorf("fate of %s: %v, error %v, want %v", id, fate, err, want)
		}
	}
	if n, err := s.PurgeDeleted(t.Context(), time.Now().Add(-time.Hour)); err != nil || n != 0 {
		t.Errorf("purged %d, error %v", n, err)
	}
	if n, err := s.PurgeDeleted(t.Context(), time.Now().Add(time.Hour)); err != nil || n != 1 {
		t.Errorf("purged %d, error %v, want 1", n, err)
	}
	if fate, err := s.Fate(t.Context(), gone.ID); err != nil || fate != runtime.FateUnknown {
		t.Errorf("fate after the purge: %v, error %v", fate, err)
	}
	// Who had a port is known for a year longer.
	for _, step := range []struct {
		later time.Duration
		want  int
	}{{time.Hour, 2}, {370 * 24 * time.Hour, 1}} {
		if _, err := s.PurgeDeleted(t.Context(), time.Now().Add(step.later)); err != nil {
			t.Fatal(err)
		}
		left, _, err := s.PortMappings(t.Context(), porttest.Host, port.Filter{IncludeReleased: true})
		if err != nil || len(left) != step.want || left[0].EnvID != held.ID {
			t.Errorf("mappings left after %s: %v, error %v", step.later, left, err)
		}
	}
}

// Two handles are what two processes have: each its own connections and pool.
func TestTwoHandlesNeverGiveOnePortTwice(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "node.db")
	var pools []*port.Pool
	var stores []*store.Store
	for range 2 {
		s := openAt(t, path)
		pool, err := port.New(t.Context(), port.Config{
			HostID: porttest.Host, Store: s, Probe: func(port.Protocol, uint16) (bool, error) { return true, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		pools, stores = append(pools, pool), append(stores, s)
	}
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		seen = make(map[uint16]string)
	)
	for i := range 64 {
		wg.Go(func() {
			s, pool := stores[i%2], pools[i%2]
			env := environment(fmt.Sprintf("e%d", i))
			mappings, err := pool.Allocate(t.Context(), port.Owner{EnvID: env.ID, Project: "default"}, []port.Request{
				{Service: port.VNC}, {Service: port.NoVNC}, {Service: port.Custom, Internal: 80},
			}, func(ctx context.Context, mappings []port.Mapping) error {
				_, err := s.CreateEnvironment(ctx, env, operationtest.Operation("k", env.ID), mappings, runtime.Slots{Count: 100}, nil)
				return err
			})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, m := range mappings {
				if other := seen[m.External]; other != "" {
					t.Errorf("port %d given to %s and %s", m.External, other, env.Name)
				}
				seen[m.External] = env.Name
			}
		})
	}
	wg.Wait()
	held, _, err := stores[0].PortMappings(t.Context(), porttest.Host, port.Filter{})
	if err != nil || len(held) != 3*64 || len(seen) != 3*64 {
		t.Errorf("%d held, %d given, error %v; want 192", len(held), len(seen), err)
	}
}

func BenchmarkCreateEnvironment(b *testing.B) {
	s := open(b)
	i := 0
	for b.Loop() {
		env := environment(fmt.Sprintf("e%d", i))
		op := operationtest.Operation("k", env.ID)
		mappings := []port.Mapping{porttest.Mapping(env.ID, port.TCP, uint16(10000+i%50000))}
		mappings[0].HostID = env.ID
		if _, err := s.CreateEnvironment(b.Context(), env, op, mappings, runtime.Slots{Count: 1 << 30}, nil); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

// A list never shows what an environment was before, though it keeps what it
// has read, and a caller's changes stay its own.
func TestListsAreCurrent(t *testing.T) {
	t.Parallel()
	s := open(t)
	env, other := environment("desk"), environment("other")
	create(t, s, env, 10000)
	create(t, s, other, 10001)
	list := func() []*runtime.Environment {
		t.Helper()
		envs, _, err := s.Environments(t.Context(), runtime.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		return envs
	}
	first := list()
	first[0].State, first[0].Ports, first[0].HealthDetail = runtime.Failed, nil, "mine"
	again := list()
	if len(again) != 2 || again[0].State != runtime.Creating || len(again[0].Ports) != 1 || again[0].HealthDetail != "" {
		t.Errorf("another caller's changes are seen: %+v", again[0])
	}
	if _, err := s.ActivateEnvironment(t.Context(), env.ID, func(env *runtime.Environment) error {
		env.State, env.Labels = runtime.Running, map[string]string{"team": "audio"}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	got := list()[0]
	read, err := s.Environment(t.Context(), env.ID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(read, got, ipComparer); diff != "" {
		t.Errorf("list and read differ (-read +listed):\n%s", diff)
	}
	// Ports may change without the environment.
	if _, err := s.ReleasePortMappings(t.Context(), got.Ports[0].HostID, env.ID, time.Now()); err != nil {
		t.Fatal(err)
	}
	if got := list()[0]; len(got.Ports) != 0 {
		t.Errorf("released ports are listed: %+v", got.Ports)
	}
	remove(t, s, env.ID)
	if envs := list(); len(envs) != 1 || envs[0].ID != other.ID {
		t.Errorf("after the delete: %+v", envs)
	}
}

func BenchmarkListPageOf500(b *testing.B) {
	s := open(b)
	for i := range 500 {
		env := environment(fmt.Sprintf("e%d", i))
		op := operationtest.Operation("k", env.ID)
		if _, err := s.CreateEnvironment(b.Context(), env, op, []port.Mapping{porttest.Mapping(env.ID, port.TCP, uint16(10000+i))}, runtime.Slots{Count: 8192}, nil); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, _, err := s.Environments(b.Context(), runtime.Filter{Limit: 50}); err != nil {
			b.Fatal(err)
		}
	}
}

func TestHistoryKeepsTheLast(t *testing.T) {
	s := open(t)
	env := environment("desk")
	create(t, s, env, 10000)
	for i := range 130 {
		if _, _, err := s.UpdateEnvironment(t.Context(), env.ID, nil, func(e *runtime.Environment) error {
			e.News = []runtime.History{{Time: time.Now(), Kind: "n", Message: strconv.Itoa(i), Exit: &runtime.Exit{Code: i}}}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	refused := errors.New("refused")
	if _, _, err := s.UpdateEnvironment(t.Context(), env.ID, nil, func(e *runtime.Environment) error {
		e.News = []runtime.History{{Kind: "never"}}
		return refused
	}); !errors.Is(err, refused) {
		t.Fatal(err)
	}
	all, next, err := s.History(t.Context(), env.ID, 0, "")
	if err != nil || len(all) != 100 || next != "" || all[0].Message != "129" || all[99].Message != "30" || all[0].Exit.Code != 129 {
		t.Fatalf("history: %d entries %q %v, newest %+v", len(all), next, err, all[0])
	}
	page, next, err := s.History(t.Context(), env.ID, 60, "")
	if err != nil || len(page) != 60 || next == "" {
		t.Fatalf("page: %d %q %v", len(page), next, err)
	}
	if page, next, err = s.History(t.Context(), env.ID, 60, next); err != nil || len(page) != 40 || next != "" || page[0].Message != "69" {
		t.Errorf("next page: %d %q %v", len(page), next, err)
	}
	_, _, err = s.History(t.Context(), env.ID, 1, "e:1")
	wantReason(t, err, problem.PageTokenInvalid)
}

func TestChangePorts(t *testing.T) {
	t.Parallel()
	s := open(t)
	env, other := environment("a"), environment("b")
	create(t, s, env, 10000, 10001)
	create(t, s, other, 10002)
	if _, err := s.ActivateEnvironment(t.Context(), env.ID, func(*runtime.Environment) error { return nil }); err != nil {
		t.Fatal(err)
	}
	held, err := s.Environment(t.Context(), env.ID)
	if err != nil {
		t.Fatal(err)
	}
	add := func(external uint16) port.Mapping {
		m := porttest.Mapping(env.ID, port.TCP, external)
		m.Status = port.Active
		return m
	}
	described := held.Ports[1]
	described.Description = "for people"
	// What another holds is refused, and nothing else is done.
	rename := func(env *runtime.Environment) error { env.Labels = map[string]string{"new": "yes"}; return nil }
	_, _, err = s.ChangePorts(t.Context(), env.ID, port.Change{Add: []port.Mapping{add(10003), add(10002)}, Drop: held.Ports[:1]}, rename)
	if conflict, ok := errors.AsType[*port.ConflictError](err); !ok || conflict.Port != 10002 {
		t.Errorf("error %v, want a conflict on 10002", err)
	}
	mine := errors.New("mine")
	if _, _, err := s.ChangePorts(t.Context(), env.ID, port.Change{Drop: held.Ports}, func(*runtime.Environment) error { return mine }); err != mine { //nolint:errorlint // it must be the very error
		t.Errorf("refused: %v", err)
	}
	if got, err := s.Environment(t.Context(), env.ID); err != nil || !cmp.Equal(got, held, ipComparer) {
		t.Errorf("after it was refused: %s, error %v", cmp.Diff(held, got, ipComparer), err)
	}
	// A host port moves to a new row; the old one stays as history. Those of
	// another environment are not released by their id.
	foreign := porttest.Mapping(other.ID, port.TCP, 10002)
	got, released, err := s.ChangePorts(t.Context(), env.ID, port.Change{
		Add: []port.Mapping{add(10000)}, Drop: []port.Mapping{held.Ports[0], foreign}, Describe: []port.Mapping{described},
	}, rename)
	if err != nil || len(released) != 1 || released[0].ID != held.Ports[0].ID || released[0].Status != port.Released || got.Labels["new"] != "yes" ||
		len(got.Ports) != 2 || got.Ports[0].Description != "for people" || got.Ports[0].Revision != described.Revision+1 || got.Ports[1].External != 10000 {
		t.Errorf("changed: %+v, released %+v, error %v", got, released, err)
	}
	all, _, err := s.PortMappings(t.Context(), porttest.Host, port.Filter{EnvID: env.ID, IncludeReleased: true})
	if err != nil || len(all) != 3 {
		t.Errorf("history: %+v, error %v", all, err)
	}
	if kept, err := s.Environment(t.Context(), other.ID); err != nil || len(kept.Ports) != 1 {
		t.Errorf("the other one: %+v, error %v", kept, err)
	}
	// A name that is taken is refused by name, whoever asks.
	_, _, err = s.UpdateEnvironment(t.Context(), env.ID, nil, func(env *runtime.Environment) error { env.Name = "b"; return nil })
	wantReason(t, err, problem.EnvNameExists)
}
