// Package operationtest is the conformance suite of operation.Store, and a
// store in memory that passes it.
package operationtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// Operation is a new operation on a target.
func Operation(kind, target string) *operation.Operation {
	return &operation.Operation{
		ID: ulid.Make().String(), Project: "default", Kind: kind, Target: target, State: operation.Queued,
		CreatedAt: time.Now().UTC().Truncate(time.Millisecond),
	}
}

// TestStore runs the suite; open returns an empty store.
func TestStore(t *testing.T, open func(t *testing.T) operation.Store) {
	t.Helper()
	tests := map[string]func(*testing.T, operation.Store){
		"RoundTrip": testRoundTrip, "NotFound": testNotFound, "Request": testRequest, "List": testList,
		"Pages": testPages, "Pending": testPending, "Update": testUpdate, "UpdateRefused": testUpdateRefused,
		"ConcurrentUpdates": testConcurrentUpdates, "Purge": testPurge,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func insert(t *testing.T, s operation.Store, op *operation.Operation) *operation.Operation {
	t.Helper()
	if existing, err := s.InsertOperation(t.Context(), op); err != nil || existing != nil {
		t.Fatalf("insert: existing %v, error %v", existing, err)
	}
	return op
}

func finish(at time.Time) func(*operation.Operation) error {
	return func(op *operation.Operation) error {
		op.State, op.FinishedAt = operation.Succeeded, at
		return nil
	}
}

func testRoundTrip(t *testing.T, s operation.Store) {
	t.Helper()
	op := Operation("image.pull", "x")
	op.Labels, op.Args = map[string]string{"a": "b"}, json.RawMessage(`{"n":1}`)
	op.RequestID, op.RequestHash = "r", "h"
	insert(t, s, op)
	if op.Revision != 1 {
		t.Errorf("revision %d after insert, want 1", op.Revision)
	}
	got, err := s.Operation(t.Context(), op.ID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(op, got); diff != "" {
		t.Error(diff)
	}
	at := time.Now().UTC().Add(time.Hour).Truncate(time.Millisecond)
	changed, err := s.UpdateOperation(t.Context(), op.ID, func(op *operation.Operation) error {
		op.State, op.Attempts, op.Retries, op.Shutdowns, op.CancelRequested = operation.Running, 4, 2, 1, true
		op.Progress = &operation.Progress{Step: "s", Done: 1, Total: 2, Log: []string{"l"}}
		op.Problem = &operation.Problem{Reason: "R", Message: "m", Field: "f", Hint: "h"}
		op.Result = map[string]string{"k": "v"}
		op.NotBefore, op.LeaseOwner, op.LeaseExpires, op.StartedAt = at, "me", at, at
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err = s.Operation(t.Context(), op.ID); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(changed, got); diff != "" {
		t.Error(diff)
	}
	if !got.LeaseExpires.Equal(at) || got.Progress.Log[0] != "l" || got.Revision != 2 {
		t.Errorf("read back %+v", got)
	}
}

func testNotFound(t *testing.T, s operation.Store) {
	t.Helper()
	_, getErr := s.Operation(t.Context(), "absent")
	_, requestErr := s.OperationByRequest(t.Context(), "default", "absent")
	_, emptyErr := s.OperationByRequest(t.Context(), "default", "")
	_, updateErr := s.UpdateOperation(t.Context(), "absent", func(*operation.Operation) error { return nil })
	for _, err := range []error{getErr, requestErr, emptyErr, updateErr} {
		if p := problem.Of(err); !errdefs.IsNotFound(err) || p.Reason != problem.OperationNotFound {
			t.Errorf("error %v, want OPERATION_NOT_FOUND", err)
		}
	}
}

func testRequest(t *testing.T, s operation.Store) {
	t.Helper()
	first := Operation("k", "t")
	first.RequestID, first.RequestHash = "req", "hash"
	insert(t, s, first)
	again := Operation("k", "other")
	again.RequestID = "req"
	existing, err := s.InsertOperation(t.Context(), again)
	if err != nil || existing == nil || existing.ID != first.ID || existing.RequestHash != "hash" {
		t.Errorf("existing %+v, error %v", existing, err)
	}
	if _, err := s.Operation(t.Context(), again.ID); !errdefs.IsNotFound(err) {
		t.Errorf("a repeated request was written: %v", err)
	}
	elsewhere := Operation("k", "t")
	elsewhere.Project, elsewhere.RequestID = "other", "req"
	insert(t, s, elsewhere)
	insert(t, s, Operation("k", "t")) // no request id is never the same
	insert(t, s, Operation("k", "t"))
	found, err := s.OperationByRequest(t.Context(), "other", "req")
	if err != nil || found.ID != elsewhere.ID {
		t.Errorf("by request: %+v, error %v", found, err)
	}
}

func ids(ops []*operation.Operation) []string {
	var found []string
	for _, op := range ops {
		found = append(found, op.ID)
	}
	return found
}

func testList(t *testing.T, s operation.Store) {
	t.Helper()
	a, b, c := insert(t, s, Operation("k", "x")), insert(t, s, Operation("l", "y")), Operation("k", "x")
	c.Project = "other"
	insert(t, s, c)
	if _, err := s.UpdateOperation(t.Context(), a.ID, finish(time.Now())); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		filter operation.Filter
		want   []string
	}{
		{operation.Filter{}, []string{c.ID, b.ID, a.ID}},
		{operation.Filter{Project: "default"}, []string{b.ID, a.ID}},
		{operation.Filter{Target: "x"}, []string{c.ID, a.ID}},
		{operation.Filter{States: []operation.State{operation.Queued, operation.Running}}, []string{c.ID, b.ID}},
		{operation.Filter{States: []operation.State{operation.Failed}}, nil},
		{operation.Filter{Kinds: []string{"k"}}, []string{c.ID, a.ID}},
		{operation.Filter{Kinds: []string{"l", "k"}, Project: "default"}, []string{b.ID, a.ID}},
		{operation.Filter{Kinds: []string{"m"}}, nil},
	} {
		found, next, err := s.Operations(t.Context(), test.filter)
		if err != nil || next != "" || !slices.Equal(ids(found), test.want) {
			t.Errorf("filter %+v: %v, next %q, error %v; want %v", test.filter, ids(found), next, err, test.want)
		}
	}
}

func testPages(t *testing.T, s operation.Store) {
	t.Helper()
	var want []string
	for range 6 {
		want = append(want, insert(t, s, Operation("k", "x")).ID)
	}
	slices.Reverse(want)
	var got []string
	filter := operation.Filter{Limit: 2}
	for pages := 1; ; pages++ {
		found, next, err := s.Operations(t.Context(), filter)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, ids(found)...)
		if next == "" {
			if pages != 3 {
				t.Errorf("%d pages, want 3", pages)
			}
			break
		}
		filter.After = next
		insert(t, s, Operation("k", "later")) // does not shift the pages
	}
	if !slices.Equal(got, want) {
		t.Errorf("pages hold %v, want %v", got, want)
	}
	_, _, err := s.Operations(t.Context(), operation.Filter{After: "!"})
	if p := problem.Of(err); p == nil || p.Reason != problem.PageTokenInvalid {
		t.Errorf("error %v, want PAGE_TOKEN_INVALID", err)
	}
}

func testPending(t *testing.T, s operation.Store) {
	t.Helper()
	a, b, c := insert(t, s, Operation("k", "x")), insert(t, s, Operation("k", "x")), insert(t, s, Operation("k", "x"))
	if _, err := s.UpdateOperation(t.Context(), b.ID, finish(time.Now())); err != nil {
		t.Fatal(err)
	}
	if _, err := s.UpdateOperation(t.Context(), c.ID, func(op *operation.Operation) error {
		op.State, op.LeaseOwner = operation.Running, "me"
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	pending, err := s.Pending(t.Context())
	if err != nil || !slices.Equal(ids(pending), []string{a.ID, c.ID}) {
		t.Errorf("pending %v, error %v", ids(pending), err)
	}
}

func testUpdate(t *testing.T, s operation.Store) {
	t.Helper()
	op := insert(t, s, Operation("k", "x"))
	changed, err := s.UpdateOperation(t.Context(), op.ID, func(op *operation.Operation) error {
		op.Attempts++
		return nil
	})
	if err != nil || changed.Attempts != 1 || changed.Revision != 2 {
		t.Errorf("changed to %+v, error %v", changed, err)
	}
}

func testUpdateRefused(t *testing.T, s operation.Store) {
	t.Helper()
	op := insert(t, s, Operation("k", "x"))
	mine := errors.New("mine")
	_, err := s.UpdateOperation(t.Context(), op.ID, func(op *operation.Operation) error {
		op.Attempts = 99
		return mine
	})
	if err != mine { //nolint:errorlint // it must be the very error
		t.Errorf("error %v, want the caller's own", err)
	}
	if got, err := s.Operation(t.Context(), op.ID); err != nil || got.Attempts != 0 || got.Revision != 1 {
		t.Errorf("a refused change was written: %+v, error %v", got, err)
	}
}

func testConcurrentUpdates(t *testing.T, s operation.Store) {
	t.Helper()
	op := insert(t, s, Operation("k", "x"))
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := s.UpdateOperation(t.Context(), op.ID, func(op *operation.Operation) error {
				op.Attempts++
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, err := s.Operation(t.Context(), op.ID); err != nil || got.Attempts != 16 || got.Revision != 17 {
		t.Errorf("%+v, error %v; want 16 attempts, revision 17", got, err)
	}
}

func testPurge(t *testing.T, s operation.Store) {
	t.Helper()
	now := time.Now()
	for i, at := range []time.Time{now.Add(-2 * time.Hour), now} {
		op := insert(t, s, Operation("k", fmt.Sprint(i)))
		if _, err := s.UpdateOperation(t.Context(), op.ID, finish(at)); err != nil {
			t.Fatal(err)
		}
	}
	queued := Operation("k", "old")
	queued.CreatedAt = now.Add(-48 * time.Hour)
	insert(t, s, queued)
	purged, err := s.PurgeOperations(t.Context(), now.Add(-time.Hour))
	if err != nil || purged != 1 {
		t.Errorf("purged %d, error %v, want 1", purged, err)
	}
	if found, _, err := s.Operations(t.Context(), operation.Filter{}); err != nil || len(found) != 2 {
		t.Errorf("left %v, error %v", ids(found), err)
	}
}
