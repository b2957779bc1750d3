package store_test

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/operation/operationtest"
	"github.com/remotegpu/remotegpu/store"
)

func snapshot(env *runtime.Environment, name string) (*runtime.Snapshot, *operation.Operation) {
	op := operationtest.Operation(runtime.KindSnapshot, env.ID)
	return &runtime.Snapshot{
		ID: ulid.Make().String(), Name: name, Project: env.Project, Node: "n", EnvID: env.ID, State: runtime.SnapshotCreating,
		Labels: map[string]string{"name": name}, Operation: op.ID, CreatedAt: time.Now(),
	}, op
}

func take(tb testing.TB, s *store.Store, env *runtime.Environment, name string) *runtime.Snapshot {
	tb.Helper()
	taken, op := snapshot(env, name)
	changed, existing, err := s.CreateSnapshot(tb.Context(), taken, op, func(env *runtime.Environment) error {
		env.Operation = op.ID
		taken.EnvName, taken.Spec = env.Name, env.Spec
		return nil
	})
	if err != nil || existing != nil || changed.Operation != op.ID {
		tb.Fatalf("create snapshot %s: %+v, %v, %v", name, changed, existing, err)
	}
	return taken
}

func TestSnapshotRoundTrip(t *testing.T) {
	t.Parallel()
	s := open(t)
	env := environment("desk")
	create(t, s, env)
	taken := take(t, s, env, "first")
	if got, err := s.Snapshot(t.Context(), taken.ID); err != nil || got.Revision != 1 || got.Spec.Image != env.Spec.Image {
		t.Errorf("created: %+v, %v", got, err)
	} else if diff := cmp.Diff(taken, got, ignoreBase); diff != "" {
		t.Errorf("after create (-given +read):\n%s", diff)
	}
	updated, _, err := s.UpdateSnapshot(t.Context(), taken.ID, nil, func(row *runtime.Snapshot) error {
		row.State, row.Operation, row.Method, row.Freezes = runtime.SnapshotReady, "", runtime.SnapshotCopy, true
		row.Layer = runtime.Layer{
			Parent: "p", Size: 12, Image: "img", ImageDigest: "sha256:1", ImageLabels: map[string]string{"a": "b"}, Base: json.RawMessage(`{"x":1}`),
		}
		return nil
	})
	if err != nil || updated.Revision != 2 {
		t.Fatalf("update: %+v, %v", updated, err)
	}
	if got, err := s.SnapshotByName(t.Context(), env.ID, "first"); err != nil {
		t.Error(err)
	} else if diff := cmp.Diff(updated, got); diff != "" {
		t.Errorf("after change (-returned +read):\n%s", diff)
	}
	// It outlives its environment, and goes once.
	remove(t, s, env.ID)
	if _, err := s.PurgeDeleted(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := s.Snapshot(t.Context(), taken.ID); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if err := s.DeleteSnapshot(t.Context(), taken.ID); err != nil {
			t.Error(err)
		}
	}
	_, err = s.Snapshot(t.Context(), taken.ID)
	wantReason(t, err, problem.SnapshotNotFound)
	_, err = s.SnapshotByName(t.Context(), env.ID, "first")
	wantReason(t, err, problem.SnapshotNotFound)
	_, _, err = s.UpdateSnapshot(t.Context(), taken.ID, nil, func(*runtime.Snapshot) error { return nil })
	wantReason(t, err, problem.SnapshotNotFound)
}

// ignoreBase makes none and JSON's null the same.
var ignoreBase = cmp.Comparer(func(a, b json.RawMessage) bool {
	return string(a) == string(b) || len(a)+len(b) == len("null")
})

// Snapshot, operation and environment change together, or not at all.
func TestSnapshotIsOneTransaction(t *testing.T) {
	t.Parallel()
	s := open(t)
	env := environment("desk")
	create(t, s, env)
	take(t, s, env, "first")
	mine := errors.New("mine")
	for name, test := range map[string]struct {
		change func(*runtime.Environment) error
		want   func(error) bool
	}{
		"first": {func(*runtime.Environment) error { return nil }, func(err error) bool {
			p, ok := errors.AsType[*problem.Problem](err)
			return ok && p.Reason == problem.SnapshotNameExists && p.Field == "name" && p.Hint != ""
		}},
		"second": {func(*runtime.Environment) error { return mine }, func(err error) bool { return errors.Is(err, mine) }},
	} {
		refused, op := snapshot(env, name)
		_, _, err := s.CreateSnapshot(t.Context(), refused, op, func(env *runtime.Environment) error {
			env.Name = "changed"
			return test.change(env)
		})
		if !test.want(err) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := s.Operation(t.Context(), op.ID); err == nil {
			t.Errorf("%s: the operation is there", name)
		}
		if got, err := s.Environment(t.Context(), env.ID); err != nil || got.Name != "desk" {
			t.Errorf("%s: environment %+v, %v", name, got, err)
		}
	}
	// A known request writes nothing.
	known := operationtest.Operation(runtime.KindExport, "x")
	known.RequestID = "r1"
	if _, err := s.InsertOperation(t.Context(), known); err != nil {
		t.Fatal(err)
	}
	again, op := snapshot(env, "third")
	op.RequestID = "r1"
	_, existing, err := s.CreateSnapshot(t.Context(), again, op, func(*runtime.Environment) error { t.Error("changed"); return nil })
	if err != nil || existing == nil || existing.ID != known.ID {
		t.Errorf("known request: %+v, %v", existing, err)
	}
	_, existing, err = s.UpdateSnapshot(t.Context(), again.ID, op, func(*runtime.Snapshot) error { t.Error("changed"); return nil })
	if err != nil || existing == nil || existing.ID != known.ID {
		t.Errorf("known request: %+v, %v", existing, err)
	}
	if all, _, err := s.Snapshots(t.Context(), runtime.SnapshotFilter{}); err != nil || len(all) != 1 {
		t.Errorf("snapshots: %+v, %v", all, err)
	}
}

// A snapshot is discarded only as the check allows, which sees who needs it: what
// is rolled back to it, or made from it, by operations that are not done.
func TestDiscardSnapshot(t *testing.T) {
	t.Parallel()
	s := open(t)
	env := environment("desk")
	create(t, s, env)
	taken, other := take(t, s, env, "first"), take(t, s, env, "second")
	made := environment("clone")
	made.Spec.Snapshot = taken.ID
	create(t, s, made)
	queue := func(kind, target, args string) *operation.Operation {
		t.Helper()
		op := operationtest.Operation(kind, target)
		op.Args = json.RawMessage(args)
		if _, err := s.InsertOperation(t.Context(), op); err != nil {
			t.Fatal(err)
		}
		return op
	}
	back := queue(runtime.KindRollBack, env.ID, `{"snapshot": "`+taken.ID+`"}`)
	queue(runtime.KindRollBack, env.ID, `{"snapshot": "`+other.ID+`"}`)
	queue(runtime.KindStop, made.ID, `{}`)
	mine := errors.New("mine")
	var uses []runtime.SnapshotUse
	refuse := func(found *runtime.Snapshot, by []runtime.SnapshotUse) error {
		if found.ID != taken.ID {
			t.Errorf("checked %+v, want %s", found, taken.ID)
		}
		uses = by
		return mine
	}
	if err := s.DiscardSnapshot(t.Context(), taken.ID, refuse); !errors.Is(err, mine) {
		t.Errorf("refused: %v", err)
	}
	if len(uses) != 2 || uses[0].Environment != "clone" || uses[0].Kind != runtime.KindCreate ||
		uses[1] != (runtime.SnapshotUse{Environment: "desk", Operation: back.ID, Kind: runtime.KindRollBack}) {
		t.Errorf("used by %+v", uses)
	}
	if got, err := s.Snapshot(t.Context(), taken.ID); err != nil || got.State != runtime.SnapshotCreating || got.Revision != taken.Revision {
		t.Errorf("refused: %+v, %v", got, err)
	}
	if err := s.DiscardSnapshot(t.Context(), taken.ID, func(*runtime.Snapshot, []runtime.SnapshotUse) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Snapshot(t.Context(), taken.ID); err != nil || got.State != runtime.SnapshotDeleting || got.Revision != taken.Revision+1 {
		t.Errorf("discarded: %+v, %v", got, err)
	}
	if err := s.DiscardSnapshot(t.Context(), "nobody", refuse); problem.Of(err).Reason != problem.SnapshotNotFound {
		t.Errorf("of nothing: %v", err)
	}
}

func TestSnapshotsFilterAndPage(t *testing.T) {
	t.Parallel()
	s := open(t)
	one, two := environment("one"), environment("two")
	two.Project = "other"
	create(t, s, one)
	create(t, s, two)
	var want []string
	for _, name := range []string{"a", "b", "c"} {
		want = append(want, take(t, s, one, name).ID)
	}
	last := take(t, s, two, "a")
	want = append(want, last.ID)
	selector, err := runtime.ParseSelector("name=a", "f")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		filter runtime.SnapshotFilter
		want   []string
	}{
		"all":         {runtime.SnapshotFilter{}, want},
		"pages":       {runtime.SnapshotFilter{Limit: 3}, want},
		"project":     {runtime.SnapshotFilter{Project: "other"}, want[3:]},
		"environment": {runtime.SnapshotFilter{EnvID: one.ID, Limit: 1}, want[:3]},
		"operation":   {runtime.SnapshotFilter{Operation: last.Operation}, want[3:]},
		"labels":      {runtime.SnapshotFilter{Labels: selector, Limit: 1}, []string{want[0], want[3]}},
	} {
		var got []string
		for filter := test.filter; ; {
			page, next, err := s.Snapshots(t.Context(), filter)
			if err != nil || filter.Limit > 0 && len(page) > filter.Limit {
				t.Fatalf("%s: %d, %v", name, len(page), err)
			}
			for _, row := range page {
				got = append(got, row.ID)
			}
			if filter.After = next; next == "" {
				break
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
	_, _, err = s.Snapshots(t.Context(), runtime.SnapshotFilter{After: "nonsense"})
	wantReason(t, err, problem.PageTokenInvalid)
}
