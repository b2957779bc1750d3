package store_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/gputest"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation/operationtest"
	"github.com/remotegpu/remotegpu/store"
)

func exclusive(uuid string) gpu.Lease {
	return gpu.Lease{GPU: uuid, Mode: gpu.Exclusive, Enforcement: gpu.BySole}
}

func instance(uuid string, start, size int) gpu.Lease {
	return gpu.Lease{GPU: uuid, Mode: gpu.MIGMode, Profile: "p", Placement: gpu.Span{Start: start, Size: size}, Enforcement: gpu.ByHardware}
}

func share(percent int) gpu.Lease {
	return gpu.Lease{GPU: "g", Mode: gpu.VGPU, MemoryBytes: 1 << 30, ComputePercent: percent, Enforcement: gpu.ByDriver}
}

// give adds leases whatever is held: the allocator is not asked.
func give(t *testing.T, s *store.Store, id string, leases ...gpu.Lease) error {
	t.Helper()
	_, err := s.ChangeGPUs(t.Context(), id, func(gpu.Books) (gpu.Change, error) {
		for i := range leases {
			leases[i].ID = ulid.Make().String()
		}
		return gpu.Change{Add: leases}, nil
	}, func(*runtime.Environment) error { return nil })
	return err
}

// The schema refuses what overlaps, whatever the allocator says.
func TestLeasesNeverOverlapInTheDatabase(t *testing.T) {
	s := open(t)
	first, second := environment("first"), environment("second")
	create(t, s, first)
	create(t, s, second)
	for name, test := range map[string]struct{ held, refused gpu.Lease }{
		"alone":      {exclusive("a"), exclusive("a")},
		"modes":      {gpu.Lease{GPU: "b", Mode: gpu.Shared, Enforcement: gpu.ByNone}, exclusive("b")},
		"mode":       {exclusive("c"), gpu.Lease{GPU: "c", Mode: gpu.Shared, Enforcement: gpu.ByNone}},
		"same place": {instance("d", 0, 4), instance("d", 0, 1)},
		"over":       {instance("e", 0, 4), instance("e", 3, 2)},
		"around":     {instance("f", 2, 1), instance("f", 0, 8)},
		"percent":    {share(60), share(41)},
	} {
		if err := give(t, s, first.ID, test.held); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		wantReason(t, give(t, s, second.ID, test.refused), problem.GPUExhausted)
	}
	if err := give(t, s, second.ID, instance("e", 4, 4), share(40)); err != nil {
		t.Errorf("what does not overlap is refused: %v", err)
	}
	if err := give(t, s, first.ID, share(0)); err == nil {
		t.Error("one environment has a GPU twice")
	}
	// With the environment go its leases, and can be had again. What was made for
	// it is to be removed.
	remove(t, s, first.ID)
	books, err := s.GPUBooks(t.Context())
	if err != nil || len(books.Planned) != 3 || books.Planned[2].GPU != "f" || !books.Planned[2].Remove || books.Planned[2].EnvName != "first" {
		t.Errorf("planned is %+v, %v", books.Planned, err)
	}
	if err := give(t, s, second.ID, exclusive("a"), instance("f", 0, 8)); err != nil {
		t.Errorf("what was given back is refused: %v", err)
	}
}

// Who had a GPU is known by name when the environment has been forgotten.
func TestWhoHadAGPUIsKept(t *testing.T) {
	s := open(t)
	first, second := environment("first"), environment("second")
	create(t, s, first)
	create(t, s, second)
	if err := give(t, s, first.ID, exclusive("a"), exclusive("b")); err != nil {
		t.Fatal(err)
	}
	remove(t, s, first.ID)
	if err := give(t, s, second.ID, exclusive("a")); err != nil {
		t.Fatal(err)
	}
	page := func(filter runtime.LeaseFilter) (words []string, next string) {
		t.Helper()
		leases, next, err := s.GPULeases(t.Context(), filter)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range leases {
			words = append(words, fmt.Sprint(l.GPU, " ", l.EnvName, " deleted ", l.EnvDeleted, " held ", l.ReleasedAt.IsZero()))
		}
		return words, next
	}
	check := func() {
		t.Helper()
		all, next := page(runtime.LeaseFilter{})
		want := []string{"a second deleted false held true", "b first deleted true held false", "a first deleted true held false"}
		if !slices.Equal(all, want) || next != "" {
			t.Errorf("got %q and %q, want %q", all, next, want)
		}
		one, next := page(runtime.LeaseFilter{GPU: "a", Limit: 1})
		rest, last := page(runtime.LeaseFilter{GPU: "a", Limit: 1, After: next})
		if !slices.Equal(append(one, rest...), []string{want[0], want[2]}) || last != "" {
			t.Errorf("by pages: %q, %q and %q", one, rest, last)
		}
	}
	check()
	if purged, err := s.PurgeDeleted(t.Context(), time.Now().Add(time.Hour)); err != nil || purged != 1 {
		t.Fatalf("forgot %d environments, %v", purged, err)
	}
	check()
	_, _, err := s.GPULeases(t.Context(), runtime.LeaseFilter{After: "x"})
	wantReason(t, err, problem.PageTokenInvalid)
}

func TestACreateTakesAllOrNothing(t *testing.T) {
	s := open(t)
	refuse := errors.New("no")
	env := environment("one")
	_, err := s.CreateEnvironment(t.Context(), env, operationtest.Operation("k", env.ID), nil, runtime.Slots{Count: 4},
		func(gpu.Books) (gpu.Change, error) { return gpu.Change{}, refuse })
	if !errors.Is(err, refuse) {
		t.Fatalf("got %v", err)
	}
	if _, err := s.Environment(t.Context(), env.ID); err == nil {
		t.Error("the environment is there though it got no GPU")
	}
	lease := instance("a", 2, 2)
	lease.ID, lease.Static, lease.MemoryBytes = ulid.Make().String(), true, 5<<30
	if _, err := s.CreateEnvironment(t.Context(), env, operationtest.Operation("k", env.ID), nil, runtime.Slots{Count: 4},
		func(gpu.Books) (gpu.Change, error) { return gpu.Change{Add: []gpu.Lease{lease}}, nil }); err != nil {
		t.Fatal(err)
	}
	read, err := s.Environment(t.Context(), env.ID)
	if err != nil || len(env.GPUs) != 1 || len(read.GPUs) != 1 {
		t.Fatalf("got %+v and %+v, %v", env.GPUs, read, err)
	}
	got := read.GPUs[0]
	if got.ID != lease.ID || got.EnvID != env.ID || got.EnvName != "one" || got.Placement != lease.Placement || !got.Static || got.MemoryBytes != 5<<30 || got.CreatedAt.IsZero() {
		t.Errorf("got %+v", got)
	}
	listed, _, err := s.Environments(t.Context(), runtime.Filter{})
	if err != nil || len(listed) != 1 || len(listed[0].GPUs) != 1 {
		t.Errorf("got %+v, %v", listed, err)
	}
	if again, _, _ := s.Environments(t.Context(), runtime.Filter{}); len(again[0].GPUs) != 1 {
		t.Errorf("a second list has %+v", again[0].GPUs)
	}
}

func TestMarksOutliveTheDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.db")
	s := openAt(t, path)
	since := time.UnixMilli(1_700_000_000_000).UTC()
	mark, err := s.MarkGPU(t.Context(), "a", func(_ gpu.Books, m *gpu.Mark) error {
		m.Drained, m.Why, m.DrainedAt = true, "fan", since
		m.Health = gpu.Health{Unhealthy: true, Reason: "XID 79", XID: 79, Since: since}
		m.Uncorrected, m.Counted = 7, true
		return nil
	})
	if err != nil || mark.Revision != 1 {
		t.Fatalf("got %+v, %v", mark, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, path)
	books, err := s.GPUBooks(t.Context())
	if err != nil || books.Mark("a") != mark {
		t.Errorf("got %+v, want %+v, %v", books.Marks, mark, err)
	}
	refuse := errors.New("no")
	if _, err := s.MarkGPU(t.Context(), "a", func(_ gpu.Books, m *gpu.Mark) error { m.Drained = false; return refuse }); !errors.Is(err, refuse) {
		t.Errorf("got %v", err)
	}
	if same, err := s.MarkGPU(t.Context(), "a", func(gpu.Books, *gpu.Mark) error { return nil }); err != nil || same != mark {
		t.Errorf("a change of nothing is %+v, %v", same, err)
	}
}

// The allocator and the schema agree: what one gives the other takes.
func TestTheDatabaseTakesWhatTheAllocatorGives(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(1, 2))
	devices := append(gputest.Plain(2), gputest.A100(2, true))
	envs := make([]*runtime.Environment, 6)
	for i := range envs {
		envs[i] = environment("env-" + string(rune('a'+i)))
		create(t, s, envs[i])
	}
	rules := gpu.Rules{Enforcers: []gpu.Enforcement{gpu.ByDriver, gpu.ByMPS}}
	given := 0
	for range 300 {
		env := envs[r.IntN(len(envs))]
		req := &gpu.Request{Mode: []gpu.Mode{gpu.Exclusive, gpu.Shared, gpu.MIGMode, gpu.VGPU}[r.IntN(4)]}
		switch req.Mode {
		case gpu.MIGMode:
			req.Profile = []string{"1g.5gb", "2g.10gb", "3g.20gb"}[r.IntN(3)]
		case gpu.VGPU:
			req.MemoryBytes, req.ComputePercent = uint64(1+r.IntN(20))<<30, r.IntN(60)
		case gpu.Exclusive, gpu.Shared:
		}
		if r.IntN(3) == 0 {
			req = nil
		} else if err := req.Check("gpu"); err != nil {
			t.Fatal(err)
		}
		_, err := s.ChangeGPUs(t.Context(), env.ID, func(books gpu.Books) (gpu.Change, error) {
			books.Devices = devices
			change, err := gpu.Allocate(books, rules, env.ID, req, "gpu")
			for i := range change.Add {
				change.Add[i].ID = ulid.Make().String()
			}
			if err != nil {
				err = errRefused
			}
			return change, err
		}, func(*runtime.Environment) error { return nil })
		if err != nil && !errors.Is(err, errRefused) {
			t.Fatalf("the database refuses what the allocator gives: %v", err)
		}
		if err == nil && req != nil {
			given++
		}
	}
	if given < 30 {
		t.Errorf("only %d requests were met", given)
	}
}

var errRefused = errors.New("refused")

// What an administrator made keeps its place.
func TestPlannedInstances(t *testing.T) {
	s := open(t)
	env := environment("one")
	create(t, s, env)
	wanted := gpu.Planned{GPU: "a", Profile: "p", Placement: gpu.Span{Start: 2, Size: 2}, CreatedAt: time.Now()}
	for range 2 {
		if err := s.PlanInstance(t.Context(), wanted); err != nil {
			t.Fatal(err)
		}
	}
	over := wanted
	over.Placement = gpu.Span{Start: 0, Size: 4}
	wantReason(t, s.PlanInstance(t.Context(), over), problem.GPUPlacementTaken)
	wantReason(t, give(t, s, env.ID, instance("a", 2, 2)), problem.GPUExhausted)
	own := instance("a", 2, 2)
	own.Static = true
	if err := give(t, s, env.ID, own); err != nil {
		t.Errorf("its own place is refused: %v", err)
	}
	// That it is to go is another thing, which forgetting the first leaves.
	gone := wanted
	gone.Remove = true
	for _, change := range []func() error{
		func() error { return s.PlanInstance(t.Context(), gone) },
		func() error { return s.ForgetInstance(t.Context(), wanted) },
		func() error { return s.PlanMIG(t.Context(), "a", true) },
		func() error { return s.PlanMIG(t.Context(), "a", true) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
	}
	books, err := s.GPUBooks(t.Context())
	if err != nil || len(books.Planned) != 1 || !books.Planned[0].Remove || len(books.MIG) != 1 {
		t.Fatalf("got %+v, %v", books, err)
	}
	if err := errors.Join(s.ForgetInstance(t.Context(), gone), s.PlanMIG(t.Context(), "a", false)); err != nil {
		t.Fatal(err)
	}
	if books, err := s.GPUBooks(t.Context()); err != nil || len(books.Planned)+len(books.MIG) != 0 {
		t.Errorf("got %+v, %v", books, err)
	}
}
