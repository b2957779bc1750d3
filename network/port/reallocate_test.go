package port_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
)

func numbers(mappings []port.Mapping) []uint16 {
	var found []uint16
	for _, m := range mappings {
		found = append(found, m.External)
	}
	slices.Sort(found)
	return found
}

func TestReallocate(t *testing.T) {
	t.Parallel()
	pool := newPool(t, open(t), allFree)
	owner := port.Owner{EnvID: "a"}
	keep := func(context.Context, []port.Mapping) error { return nil }
	request := func(internal, external uint16) port.Request {
		return port.Request{Service: port.Custom, Internal: internal, External: external}
	}
	held, err := pool.Allocate(t.Context(), owner, []port.Request{request(80, 0), request(81, 15000), request(80, 0)}, keep)
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken on purpose")
	for _, test := range []struct {
		name      string
		requests  []port.Request
		add, drop int
	}{
		{"the same", []port.Request{request(80, 0), request(81, 15000), request(80, 0)}, 0, 0},
		{"in another order, the picked port asked for", []port.Request{request(81, 0), request(80, held[2].External), request(80, 0)}, 0, 0},
		{"one less, one more", []port.Request{request(80, 0), request(81, 0), request(82, 0)}, 1, 1},
		{"a port that moves", []port.Request{request(80, 0), request(80, 0), request(8080, 15000)}, 1, 1},
		{"nothing", nil, 0, 3},
	} {
		var got port.Change
		err := pool.Reallocate(t.Context(), owner, held, test.requests, func(_ context.Context, change port.Change) error {
			got = change
			return broken // nothing changes
		})
		if !errors.Is(err, broken) || len(got.Add) != test.add || len(got.Drop) != test.drop || len(got.Describe) != 0 {
			t.Errorf("%s: %v, %+v", test.name, err, got)
		}
		// All is held as before.
		_, err = pool.Allocate(t.Context(), port.Owner{EnvID: "b"}, []port.Request{request(1, 15000)}, keep)
		if p := problem.Of(err); p == nil || p.Reason != problem.PortTaken {
			t.Errorf("%s: then host port 15000: %v, want it taken", test.name, err)
		}
	}
	// A port of somebody else, and the place of the request at fault.
	if _, err := pool.Allocate(t.Context(), port.Owner{EnvID: "b"}, []port.Request{request(1, 15001)}, keep); err != nil {
		t.Fatal(err)
	}
	err = pool.Reallocate(t.Context(), owner, held, []port.Request{request(80, 0), request(1, 15001)}, func(context.Context, port.Change) error { return nil })
	if p := problem.Of(err); p == nil || p.Reason != problem.PortTaken || p.Field != "spec.ports[1].external_port" {
		t.Errorf("a port of somebody else: %v", err)
	}
	// A conflict that the store knows of is tried again, a port that moved is
	// the new mapping's, and what was dropped is free.
	tries := 0
	var last port.Change
	err = pool.Reallocate(t.Context(), owner, held, []port.Request{request(8080, 15000), request(82, 0)}, func(_ context.Context, change port.Change) error {
		last = change
		if tries++; tries == 1 {
			return &port.ConflictError{Protocol: port.TCP, Port: change.Add[1].External}
		}
		return nil
	})
	if err != nil || tries != 2 || len(last.Drop) != 3 || len(last.Add) != 2 || last.Add[0].External != 15000 {
		t.Fatalf("changed: %v after %d tries, %+v", err, tries, last)
	}
	for _, m := range last.Drop {
		want := problem.Reason("")
		if m.External == 15000 {
			want = problem.PortTaken
		}
		_, err := pool.Allocate(t.Context(), port.Owner{EnvID: "c"}, []port.Request{request(1, m.External)}, keep)
		if (err == nil) != (want == "") {
			t.Errorf("then host port %d: %v", m.External, err)
		}
	}
	if got := numbers(last.Add); got[1] != 15000 {
		t.Errorf("added %v", got)
	}
}
