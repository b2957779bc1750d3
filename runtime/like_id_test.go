package runtime_test

import (
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
)

// An id is found in every project, so a name that reads like one could lead to
// what is somebody else's: no new one is given, and one that is there from
// before leads to its own.
func TestNamesThatReadLikeIDs(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	victim := plain("victim")
	victim.Project = "alice"
	alices, _ := d.create(victim)
	like := strings.ToLower(alices.ID)

	mine := plain(like)
	mine.Project = "bob"
	_, _, createErr := d.Create(t.Context(), mine)
	mine.Name = "own"
	bobs, _ := d.create(mine)
	_, renameErr := d.Rename(t.Context(), runtime.RenameRequest{Project: "bob", Environment: "own", Name: like})
	_, _, snapshotErr := d.CreateSnapshot(t.Context(), runtime.CreateSnapshotRequest{Project: "bob", Environment: "own", Name: like})
	for _, test := range []struct {
		what   string
		err    error
		reason problem.Reason
	}{
		{"create", createErr, problem.EnvNameInvalid},
		{"rename", renameErr, problem.EnvNameInvalid},
		{"snapshot", snapshotErr, problem.SnapshotNameInvalid},
	} {
		if p := problem.Of(test.err); p == nil || p.Reason != test.reason || p.Field != "name" || p.Hint == "" || !strings.Contains(p.Message, "id") {
			t.Errorf("%s: %v", test.what, test.err)
		}
	}

	// Nothing of the project is called so: it is the id, in capitals or not.
	for _, id := range []string{alices.ID, like} {
		if env, err := d.Get(t.Context(), "bob", id); err != nil || env.ID != alices.ID {
			t.Errorf("%s leads to %+v, %v", id, env, err)
		}
	}
	// One that was given the name before names like it were refused.
	if _, _, err := d.store.UpdateEnvironment(t.Context(), bobs.ID, nil, func(env *runtime.Environment) error { env.Name = like; return nil }); err != nil {
		t.Fatal(err)
	}
	if env, err := d.Get(t.Context(), "bob", like); err != nil || env.ID != bobs.ID {
		t.Errorf("the name leads to %+v, %v", env, err)
	}
	if env, err := d.Get(t.Context(), "alice", like); err != nil || env.ID != alices.ID {
		t.Errorf("in another project it leads to %+v, %v", env, err)
	}
	if env, err := d.Get(t.Context(), "bob", alices.ID); err != nil || env.ID != alices.ID {
		t.Errorf("the id leads to %+v, %v", env, err)
	}
	_, op, err := d.Delete(t.Context(), runtime.ActionRequest{Project: "bob", Environment: like, Force: true})
	if err != nil {
		t.Fatal(err)
	}
	d.done(op)
	if _, err := d.Get(t.Context(), "alice", "victim"); err != nil {
		t.Errorf("deleted what is another project's: %v", err)
	}
}

// Ids are ids in small letters too, whatever is asked for by them, also what
// has gone.
func TestIDsInSmallLetters(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(full("desk"))
	snapshot, _ := d.snapshot("desk", "first")
	small := strings.ToLower(env.ID)
	look := func(when string) {
		t.Helper()
		for _, text := range []string{strings.ToLower(snapshot.ID), small + "/first"} {
			if found, err := d.Snapshot(t.Context(), "", text); err != nil || found.ID != snapshot.ID {
				t.Errorf("%s: snapshot %s: %+v, %v", when, text, found, err)
			}
		}
		if found, _, err := d.ListSnapshots(t.Context(), small, runtime.SnapshotFilter{}); err != nil || len(found) != 1 {
			t.Errorf("%s: snapshots: %+v, %v", when, found, err)
		}
		if found, _, err := d.ListPorts(t.Context(), small, port.Filter{IncludeReleased: true}); err != nil || len(found) != 2 {
			t.Errorf("%s: ports: %+v, %v", when, found, err)
		}
		if entries, _, err := d.History(t.Context(), "", small, 0, ""); err != nil || len(entries) == 0 {
			t.Errorf("%s: history: %+v, %v", when, entries, err)
		}
	}
	look("there")
	d.remove("desk")
	look("gone")
}
