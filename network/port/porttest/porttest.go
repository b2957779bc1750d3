// Package porttest is the conformance suite of port.Store. Every
// implementation runs it.
package porttest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
)

// Host is the host that the suite uses.
const Host = "host-a"

// Mapping is a reserved mapping of an environment.
func Mapping(envID string, protocol port.Protocol, external uint16) port.Mapping {
	now := time.Now().UTC().Truncate(time.Millisecond)
	return port.Mapping{
		ID: ulid.Make().String(), EnvID: envID, Project: "default", HostID: Host, Service: port.Custom,
		Internal: 80, External: external, Protocol: protocol, Description: "a port", Status: port.Reserved,
		CreatedAt: now, UpdatedAt: now, Revision: 1,
	}
}

// TestStore runs the suite; open returns an empty store.
func TestStore(t *testing.T, open func(t *testing.T) port.Store) {
	t.Helper()
	tests := map[string]func(*testing.T, port.Store){
		"RoundTrip": testRoundTrip, "InsertIsAllOrNothing": testAllOrNothing, "Conflict": testConflict,
		"Release": testRelease, "Filter": testFilter, "When": testWhen, "Pages": testPages, "BadCursor": testBadCursor,
		"Ranges": testRanges, "ConcurrentInserts": testConcurrentInserts,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func insert(t *testing.T, s port.Store, mappings ...port.Mapping) {
	t.Helper()
	if err := s.InsertPortMappings(t.Context(), mappings); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, s port.Store, filter port.Filter) []port.Mapping {
	t.Helper()
	found, _, err := s.PortMappings(t.Context(), Host, filter)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func testRoundTrip(t *testing.T, s port.Store) {
	t.Helper()
	m := Mapping("env-1", port.UDP, 65535)
	m.Sources = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("203.0.113.7/32")}
	m.ExpiresAt = m.CreatedAt.Add(time.Hour)
	insert(t, s, m)
	if diff := cmp.Diff([]port.Mapping{m}, list(t, s, port.Filter{}), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Error(diff)
	}
}

func testAllOrNothing(t *testing.T, s port.Store) {
	t.Helper()
	insert(t, s, Mapping("env-1", port.TCP, 10001))
	err := s.InsertPortMappings(t.Context(), []port.Mapping{
		Mapping("env-2", port.TCP, 10000), Mapping("env-2", port.TCP, 10001), Mapping("env-2", port.TCP, 10002),
	})
	conflict, ok := errors.AsType[*port.ConflictError](err)
	if !ok || conflict.Port != 10001 || conflict.Protocol != port.TCP || !errdefs.IsAlreadyExists(err) {
		t.Errorf("error %v, want a conflict on 10001/tcp", err)
	}
	if found := list(t, s, port.Filter{EnvID: "env-2"}); len(found) != 0 {
		t.Errorf("%d mappings of a refused batch are there", len(found))
	}
}

func testConflict(t *testing.T, s port.Store) {
	t.Helper()
	first := Mapping("env-1", port.TCP, 10000)
	insert(t, s, first, Mapping("env-1", port.UDP, 10000)) // another protocol is another port
	other := Mapping("env-2", port.TCP, 10000)
	other.HostID = "host-b"
	insert(t, s, other) // so is another host
	active := Mapping("env-3", port.TCP, 10001)
	active.Status = port.Active
	insert(t, s, active)
	for _, external := range []uint16{10000, 10001} {
		err := s.InsertPortMappings(t.Context(), []port.Mapping{Mapping("env-4", port.TCP, external)})
		if conflict, ok := errors.AsType[*port.ConflictError](err); !ok || conflict.Port != external {
			t.Errorf("error %v, want a conflict on %d", err, external)
		}
	}
	same := Mapping("env-4", port.TCP, 12000)
	same.ID = first.ID
	err := s.InsertPortMappings(t.Context(), []port.Mapping{same})
	if _, conflict := errors.AsType[*port.ConflictError](err); err == nil || conflict {
		t.Errorf("an id used twice: error %v, want one that is no port conflict", err)
	}
}

func testRelease(t *testing.T, s port.Store) {
	t.Helper()
	reserved, active := Mapping("env-1", port.TCP, 10000), Mapping("env-1", port.TCP, 10001)
	active.Status = port.Active
	insert(t, s, reserved, active, Mapping("env-2", port.TCP, 10002))
	at := time.Now().UTC().Add(time.Minute).Truncate(time.Millisecond)
	released, err := s.ReleasePortMappings(t.Context(), Host, "env-1", at)
	if err != nil {
		t.Fatal(err)
	}
	if len(released) != 2 {
		t.Fatalf("%d released, want 2", len(released))
	}
	for _, m := range released {
		if m.Status != port.Released || !m.ReleasedAt.Equal(at) || !m.UpdatedAt.Equal(at) || m.Revision != 2 {
			t.Errorf("released as %+v", m)
		}
	}
	if again, err := s.ReleasePortMappings(t.Context(), Host, "env-1", at); err != nil || len(again) != 0 {
		t.Errorf("released again: %v, error %v", again, err)
	}
	if found := list(t, s, port.Filter{}); len(found) != 1 || found[0].EnvID != "env-2" {
		t.Errorf("held: %v", found)
	}
	insert(t, s, Mapping("env-3", port.TCP, 10000)) // free again
	history := list(t, s, port.Filter{IncludeReleased: true})
	if len(history) != 4 || history[0].EnvID != "env-1" || history[1].EnvID != "env-3" {
		t.Errorf("history is not by port and age: %v", history)
	}
}

func testFilter(t *testing.T, s port.Store) {
	t.Helper()
	ssh := Mapping("env-1", port.TCP, 22000)
	ssh.Service = port.SSH
	other := Mapping("env-2", port.TCP, 10000)
	other.Project = "other"
	insert(t, s, ssh, other)
	for _, test := range []struct {
		filter port.Filter
		want   []string
	}{
		{port.Filter{}, []string{other.ID, ssh.ID}},
		{port.Filter{EnvID: "env-1"}, []string{ssh.ID}},
		{port.Filter{Project: "other"}, []string{other.ID}},
		{port.Filter{Service: port.SSH}, []string{ssh.ID}},
		{port.Filter{Service: port.SSH, Project: "other"}, nil},
	} {
		var got []string
		for _, m := range list(t, s, test.filter) {
			got = append(got, m.ID)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("filter %+v: %v, want %v", test.filter, got, test.want)
		}
	}
	if found, _, err := s.PortMappings(t.Context(), "host-b", port.Filter{}); err != nil || len(found) != 0 {
		t.Errorf("mappings of another host: %v, error %v", found, err)
	}
}

// testWhen: who had a port at a time, and what was released since one.
func testWhen(t *testing.T, s port.Store) {
	t.Helper()
	const external = 22005
	begin := time.Now().UTC().Truncate(time.Millisecond)
	at := func(minutes int) time.Time { return begin.Add(time.Duration(minutes) * time.Minute) }
	var ids []string
	for i, envID := range []string{"env-1", "env-2"} { // from 0 to 10, from 20 on
		m := Mapping(envID, port.TCP, external)
		m.CreatedAt = at(20 * i)
		insert(t, s, m, Mapping(envID, port.UDP, uint16(external+i)), Mapping(envID, port.TCP, uint16(external+1+i)))
		ids = append(ids, m.ID)
		if i == 0 {
			if _, err := s.ReleasePortMappings(t.Context(), Host, envID, at(10)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for minutes, want := range map[int][]string{-1: nil, 0: ids[:1], 9: ids[:1], 10: nil, 19: nil, 20: ids[1:], 99: ids[1:]} {
		var got []string
		for _, m := range list(t, s, port.Filter{External: external, Protocol: port.TCP, At: at(minutes)}) {
			got = append(got, m.ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("who had the port at %d minutes: %v, want %v", minutes, got, want)
		}
	}
	if found := list(t, s, port.Filter{ID: ids[0], IncludeReleased: true}); len(found) != 1 || found[0].EnvID != "env-1" {
		t.Errorf("by id: %v", found)
	}
	for minutes, want := range map[int]int{10: 3, 11: 0} {
		if found := list(t, s, port.Filter{ReleasedSince: at(minutes)}); len(found) != want {
			t.Errorf("%d were released since %d minutes, want %d", len(found), minutes, want)
		}
	}
}

func testPages(t *testing.T, s port.Store) {
	t.Helper()
	var want []string
	for i := range 7 {
		m := Mapping("env-1", port.TCP, uint16(10000+i))
		insert(t, s, m)
		want = append(want, m.ID)
	}
	var got []string
	filter := port.Filter{Limit: 3}
	for pages := 1; ; pages++ {
		found, next, err := s.PortMappings(t.Context(), Host, filter)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range found {
			got = append(got, m.ID)
		}
		if next == "" {
			if pages != 3 {
				t.Errorf("%d pages, want 3", pages)
			}
			break
		}
		filter.After = next
	}
	if !slices.Equal(got, want) {
		t.Errorf("pages hold %v, want %v", got, want)
	}
}

func testBadCursor(t *testing.T, s port.Store) {
	t.Helper()
	_, _, err := s.PortMappings(t.Context(), Host, port.Filter{After: "nonsense"})
	if p := problem.Of(err); p == nil || p.Reason != problem.PageTokenInvalid {
		t.Errorf("error %v, want PAGE_TOKEN_INVALID", err)
	}
}

func testRanges(t *testing.T, s port.Store) {
	t.Helper()
	ctx := t.Context()
	if ranges, err := s.PortRanges(ctx, Host); err != nil || len(ranges) != 0 {
		t.Errorf("ranges of a new store: %v, error %v", ranges, err)
	}
	r := port.Range{Service: port.Custom, First: 20000, Last: 20010, Revision: 1}
	if err := s.SetPortRange(ctx, Host, r); err != nil {
		t.Fatal(err)
	}
	if err := s.SetPortRange(ctx, Host, r); !errdefs.IsAborted(err) {
		t.Errorf("set with an old revision: %v, want aborted", err)
	}
	r.Last, r.Revision = 20020, 2
	if err := s.SetPortRange(ctx, Host, r); err != nil {
		t.Fatal(err)
	}
	ranges, err := s.PortRanges(ctx, Host)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]port.Range{r}, ranges); diff != "" {
		t.Error(diff)
	}
}

func testConcurrentInserts(t *testing.T, s port.Store) {
	t.Helper()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		wins = make(map[uint16]int)
	)
	ctx := context.WithoutCancel(t.Context())
	for i := range 32 {
		wg.Go(func() {
			external := uint16(10000 + i%4)
			err := s.InsertPortMappings(ctx, []port.Mapping{Mapping(fmt.Sprintf("env-%d", i), port.TCP, external)})
			if _, conflict := errors.AsType[*port.ConflictError](err); err != nil && !conflict {
				t.Error(err)
			}
			if err == nil {
				mu.Lock()
				wins[external]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for external := uint16(10000); external < 10004; external++ {
		if wins[external] != 1 {
			t.Errorf("port %d was given %d times", external, wins[external])
		}
	}
}
