//nolint:thelper // these are tests, and a failure should name their lines
package runtimetest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

func snapshotTests() []struct {
	name string
	run  func(t *testing.T, s *suite)
} {
	return []struct {
		name string
		run  func(t *testing.T, s *suite)
	}{
		{"Snapshots", testSnapshots},
		{"SnapshotRefuses", testSnapshotRefuses},
		{"SnapshotOfPaused", testSnapshotPaused},
		{"SnapshotClone", testSnapshotClone},
	}
}

func (s *suite) snapshotter(t *testing.T) runtime.Snapshotter {
	t.Helper()
	snapshotter, is := s.Engine.(runtime.Snapshotter)
	if !is {
		t.Fatalf("%T is no runtime.Snapshotter", s.Engine)
	}
	return snapshotter
}

func (s *suite) stopAndStart(t *testing.T, c runtime.Container, between func()) {
	t.Helper()
	if _, err := s.Engine.Stop(t.Context(), c.ID, 30*time.Second); err != nil {
		t.Fatalf("stop: %v", err)
	}
	between()
	if _, err := s.Engine.Start(t.Context(), c); err != nil {
		t.Fatalf("start: %v", err)
	}
}

// snapshots are the ids of those that are held.
func snapshots(t *testing.T, of runtime.Snapshotter) []string {
	t.Helper()
	parts, err := of.Snapshots(t.Context())
	if err != nil {
		t.Fatalf("snapshots: %v", err)
	}
	var ids []string
	for _, part := range parts {
		if !part.Whole || part.Begun {
			t.Errorf("snapshot %+v, want it whole", part)
		}
		ids = append(ids, part.ID)
	}
	return ids
}

func remove(t *testing.T, of runtime.Snapshotter, ids ...string) {
	t.Helper()
	for _, id := range ids {
		for range 2 {
			if err := of.RemoveSnapshot(t.Context(), id); err != nil {
				t.Errorf("remove snapshot %s: %v", id, err)
			}
		}
	}
	if left := snapshots(t, of); len(left) > 0 {
		t.Errorf("snapshots left: %q", left)
	}
}

// What was written is kept by a snapshot of a running container and of one
// that does not run, and comes back by a reset, as often as one likes.
func testSnapshots(t *testing.T, s *suite) {
	e := s.snapshotter(t)
	c := s.start(t, s.container())
	s.run(t, c.ID, "write", "/kept", "one")
	var last operation.Progress
	first, err := e.CopyLayer(t.Context(), c.ID, "first", func(p operation.Progress) { last = p })
	if err != nil || first.Parent != "" || first.Image != s.Image || first.ImageDigest == "" || first.Size <= 0 || len(first.Base) == 0 {
		t.Fatalf("CopyLayer() = %+v, %v", first, err)
	}
	if last.Step == "" {
		t.Error("no progress was told")
	}
	if status := s.status(t, c.ID); !status.Running || status.Paused {
		t.Errorf("once copied: %+v", status)
	}
	s.run(t, c.ID, "write", "/kept", "two")
	s.stopAndStart(t, c, func() {
		for range 2 {
			second, err := e.CommitLayer(t.Context(), c.ID, "second")
			if err != nil || second.Parent != "" || second.Image != s.Image || second.ImageDigest != first.ImageDigest {
				t.Fatalf("CommitLayer() = %+v, %v", second, err)
			}
		}
	})
	if got := s.run(t, c.ID, "cat", "/kept"); got != "two" {
		t.Errorf("after a commit: %q", got)
	}
	s.run(t, c.ID, "write", "/kept", "three")
	third, err := e.CopyLayer(t.Context(), c.ID, "third", nil)
	if err != nil || third.Parent != "second" {
		t.Errorf("CopyLayer() = %+v, %v, want it on top of second", third, err)
	}
	if got := snapshots(t, e); !slices.Equal(got, []string{"first", "second", "third"}) {
		t.Errorf("snapshots: %q", got)
	}
	for _, back := range []struct{ snapshot, want string }{{"first", "one"}, {"third", "three"}, {"third", "three"}} {
		s.stopAndStart(t, c, func() {
			if err := e.ResetLayer(t.Context(), c.ID, back.snapshot); err != nil {
				t.Fatalf("reset to %s: %v", back.snapshot, err)
			}
		})
		if got := s.run(t, c.ID, "cat", "/kept"); got != back.want {
			t.Errorf("reset to %s: %q, want %q", back.snapshot, got, back.want)
		}
		s.run(t, c.ID, "write", "/kept", "lost")
	}
	// What builds on a snapshot goes on when it is removed.
	remove(t, e, "first", "second", "third")
	s.stopAndStart(t, c, func() {})
	if got := s.run(t, c.ID, "cat", "/kept"); got != "lost" {
		t.Errorf("after all snapshots were removed: %q", got)
	}
}

func testSnapshotRefuses(t *testing.T, s *suite) {
	e := s.snapshotter(t)
	c := s.start(t, s.container())
	s.run(t, c.ID, "write", "/kept", "one")
	if _, err := e.CommitLayer(t.Context(), c.ID, "a"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("commit of a running one: %v, want FailedPrecondition", err)
	}
	if err := e.ResetLayer(t.Context(), c.ID, "a"); !errdefs.IsNotFound(err) {
		t.Errorf("reset to an absent snapshot: %v, want NotFound", err)
	}
	s.run(t, c.ID, "write", "/.wh.kept", "no layer can hold this")
	_, err := e.CopyLayer(t.Context(), c.ID, "a", nil)
	wantReason(t, "copy of a name that means something else", err, problem.SnapshotNotCopyable)
	if status := s.status(t, c.ID); !status.Running || status.Paused {
		t.Errorf("after a copy that failed: %+v", status)
	}
	s.run(t, c.ID, "rm", "/.wh.kept")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.CopyLayer(ctx, c.ID, "a", nil); err == nil {
		t.Error("copy with a cancelled context worked")
	}
	s.stopAndStart(t, c, func() {
		if _, err := e.CopyLayer(t.Context(), c.ID, "a", nil); !errdefs.IsNotFound(err) {
			t.Errorf("copy of one that does not run: %v, want NotFound", err)
		}
		wantReason(t, "reset to an absent snapshot", e.ResetLayer(t.Context(), c.ID, "a"), problem.SnapshotNotFound)
	})
	if got := s.run(t, c.ID, "cat", "/kept"); got != "one" {
		t.Errorf("after all that: %q", got)
	}
	if _, err := e.CommitLayer(t.Context(), "absent", "a"); !errdefs.IsNotFound(err) {
		t.Errorf("commit of an absent one: %v, want NotFound", err)
	}
	_, err = e.ExportSnapshot(t.Context(), runtime.Export{Snapshot: "a", Reference: "docker.io/test/none:latest", Base: []byte("{}")}, nil)
	wantReason(t, "export of an absent snapshot", err, problem.SnapshotNotFound)
	clone := s.container()
	clone.Snapshot, clone.Base = "a", []byte("{}")
	if err := s.Engine.Create(t.Context(), clone); err == nil {
		t.Error("create from an absent snapshot worked")
	}
	remove(t, e, "a")
}

// One that somebody has paused is copied, and stays paused.
func testSnapshotPaused(t *testing.T, s *suite) {
	e := s.snapshotter(t)
	c := s.start(t, s.container())
	s.run(t, c.ID, "write", "/kept", "one")
	s.Pause(t, c.ID)
	if _, err := e.CopyLayer(t.Context(), c.ID, "paused", nil); err != nil {
		t.Fatalf("copy: %v", err)
	}
	if status := s.status(t, c.ID); !status.Paused {
		t.Errorf("once copied: %+v, want it paused", status)
	}
	if err := s.Reopen().Resume(t.Context(), c.ID); err != nil {
		t.Errorf("resume: %v", err)
	}
	if got := s.run(t, c.ID, "cat", "/kept"); got != "one" {
		t.Errorf("once resumed: %q", got)
	}
	remove(t, e, "paused")
}

// A container can be made of a snapshot, and of an image made of one.
func testSnapshotClone(t *testing.T, s *suite) {
	e := s.snapshotter(t)
	c := s.start(t, s.container())
	s.run(t, c.ID, "write", "/kept", "one")
	if _, err := e.CopyLayer(t.Context(), c.ID, "lower", nil); err != nil {
		t.Fatal(err)
	}
	clone := s.container()
	layer, err := e.CopyLayer(t.Context(), c.ID, "upper", nil)
	if err != nil {
		t.Fatal(err)
	}
	clone.Snapshot, clone.Base = "upper", layer.Base
	s.start(t, clone)
	s.run(t, clone.ID, "write", "/more", "two")
	if layer, err = e.CopyLayer(t.Context(), clone.ID, "clone", nil); err != nil || layer.Parent != "upper" {
		t.Fatalf("copy of a clone: %+v, %v", layer, err)
	}
	const name = "docker.io/test/exported:v1"
	var last operation.Progress
	image, err := e.ExportSnapshot(t.Context(), runtime.Export{
		Snapshot: "clone", Reference: name, Base: layer.Base, Comment: "for a test", Created: time.Now(),
	}, func(p operation.Progress) { last = p })
	if err != nil || image.Name != name || image.Digest == layer.ImageDigest || image.Size <= 0 || last.Total == 0 {
		t.Fatalf("export: %+v, %v, progress %+v", image, err, last)
	}
	if err := e.TidySnapshot(t.Context(), "clone"); err != nil {
		t.Errorf("abort an export that is done: %v", err)
	}
	remove(t, e, "lower", "upper", "clone")
	exported := s.container()
	exported.Image = name
	s.start(t, exported)
	for id, want := range map[string]string{c.ID: "one", clone.ID: "onetwo", exported.ID: "onetwo"} {
		files := []string{"cat", "/kept", "/more"}
		if id == c.ID {
			files = files[:2]
		}
		if got := s.run(t, id, files...); got != want {
			t.Errorf("%s has %q, want %q", id, got, want)
		}
	}
	// The test's image is not the suite's: those that follow count images.
	if err := s.Engine.Delete(t.Context(), exported.ID); err != nil {
		t.Error(err)
	}
	images, is := s.Engine.(runtime.Images)
	if is {
		if err := images.DeleteImage(t.Context(), name); err != nil {
			t.Errorf("delete image: %v", err)
		}
	}
}
