package containerd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
)

// watched is a snapshotter whose calls a test holds up. nil: nobody does.
type watched struct {
	snapshots.Snapshotter
	commit  func(name string)
	prepare func(key, parent string)
	mounts  func(key string)
}

func (w *watched) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	if w.commit != nil {
		w.commit(name)
	}
	return w.Snapshotter.Commit(ctx, name, key, opts...)
}

func (w *watched) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	if w.prepare != nil {
		w.prepare(key, parent)
	}
	return w.Snapshotter.Prepare(ctx, key, parent, opts...)
}

func (w *watched) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	mounts, err := w.Snapshotter.Mounts(ctx, key)
	if w.mounts != nil && err != nil {
		w.mounts(key)
	}
	return mounts, err
}

// listed is a store of records that a test holds up after a list was read.
type listed struct {
	containers.Store
	after func()
}

func (l *listed) List(ctx context.Context, filters ...string) ([]containers.Container, error) {
	records, err := l.Store.List(ctx, filters...)
	l.after()
	return records, err
}

// building is an engine with a snapshotter that can be held up: which of its
// calls wait for each other is to be seen from inside.
func building(t *testing.T) (*Engine, *watched, *testutil.ContainerdDaemon) {
	t.Helper()
	d := testutil.StartContainerd(t, testutil.Containerd2)
	d.Import(t, testutil.TestImage(t, testutil.ImageOptions{}))
	e, err := New(Config{Address: d.Address, Namespace: d.Namespace, CgroupParent: d.Cgroup, FIFODir: filepath.Join(d.Dir, "fifo")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &watched{Snapshotter: e.snapshots}
	e.snapshots = w
	return e, w, d
}

// A commit that takes long holds up nobody but who wants the same snapshot, and
// those may leave.
func TestLongCommitHoldsUpNobodyElse(t *testing.T) {
	e, w, _ := building(t)
	image := func(id string) runtime.Container { return runtime.Container{ID: id, Image: testutil.ImageName} }
	for _, id := range []string{"slow", "other", "third"} {
		if err := e.Create(t.Context(), image(id)); err != nil {
			t.Fatal(err)
		}
	}
	base, err := e.CommitLayer(t.Context(), "third", "base")
	if err != nil {
		t.Fatal(err)
	}
	begun, goOn := make(chan struct{}), make(chan struct{})
	w.commit = func(name string) {
		if name == snapshotKey("long") {
			close(begun)
			<-goOn
		}
	}
	release := sync.OnceFunc(func() { close(goOn) })
	defer release()
	committed := make(chan error, 1)
	go func() { _, err := e.CommitLayer(t.Context(), "slow", "long"); committed <- err }()
	<-begun
	clone := func(id, snapshot string) runtime.Container {
		return runtime.Container{ID: id, Image: testutil.ImageName, Snapshot: snapshot, Base: base.Base}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, step := range []struct {
			name string
			do   func(ctx context.Context) error
		}{
			{"commit", func(ctx context.Context) error { _, err := e.CommitLayer(ctx, "other", "short"); return err }},
			{"clone", func(ctx context.Context) error { return e.Create(ctx, clone("clone", "base")) }},
			{"reset", func(ctx context.Context) error { return e.ResetLayer(ctx, "other", "base") }},
			{"remove", func(ctx context.Context) error { return e.RemoveSnapshot(ctx, "short") }},
			{"create", func(ctx context.Context) error { return e.Create(ctx, image("new")) }},
			{"delete", func(ctx context.Context) error { return errors.Join(e.Delete(ctx, "clone"), e.Delete(ctx, "new")) }},
		} {
			if err := step.do(t.Context()); err != nil {
				t.Errorf("%s beside a long commit: %v", step.name, err)
			}
		}
		gone := errors.New("gone")
		cancelled, cancel := context.WithCancelCause(t.Context())
		cancel(gone)
		for name, err := range map[string]error{
			"removal": e.RemoveSnapshot(cancelled, "long"), "reset": e.ResetLayer(cancelled, "other", "long"),
			"delete of the container": e.remove(cancelled, "slow"),
		} {
			if !errors.Is(err, gone) {
				t.Errorf("%s that was cancelled: %v", name, err)
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		t.Error("others wait for a commit that is none of theirs, or do not leave")
	}
	removed := make(chan error, 1)
	go func() { removed <- e.RemoveSnapshot(t.Context(), "long") }()
	release()
	if err := errors.Join(<-committed, <-removed); err != nil {
		t.Error(err)
	}
	<-done
	// The removal came second: the container has its files still.
	if info, err := e.snapshots.Stat(t.Context(), "slow"); err != nil || info.Parent != snapshotKey("long") {
		t.Errorf("the layer of what was committed: %+v, %v", info, err)
	}
}

// The removal of a snapshot finishes layers that a crash left between two
// snapshots. One that is being swapped just then, by who puts it on another
// snapshot, is not put back.
func TestRemovalLeavesLayersThatAreSwapped(t *testing.T) {
	e, w, _ := building(t)
	for _, id := range []string{"one", "two"} {
		if err := e.Create(t.Context(), runtime.Container{ID: id, Image: testutil.ImageName}); err != nil {
			t.Fatal(err)
		}
	}
	for id, snapshot := range map[string]string{"one": "old", "two": "new"} {
		if _, err := e.CommitLayer(t.Context(), id, snapshot); err != nil {
			t.Fatal(err)
		}
	}
	haveRead, swapping, looked, rogue := make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{}, 8)
	e.store = &listed{Store: e.store, after: func() { close(haveRead); <-swapping }}
	look := sync.OnceFunc(func() { close(looked) })
	w.mounts = func(string) { look() }
	w.prepare = func(key, parent string) {
		switch {
		case key != "one":
		case parent == snapshotKey("old"):
			rogue <- struct{}{}
		default:
			close(swapping)
			<-looked
			select { // time for who would go ahead
			case <-rogue:
				t.Error("the layer was put on the snapshot that is removed, while it was put on another")
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
	removed := make(chan error, 1)
	go func() { removed <- e.RemoveSnapshot(t.Context(), "old") }()
	<-haveRead
	if err := errors.Join(e.ResetLayer(t.Context(), "one", "new"), <-removed); err != nil {
		t.Error(err)
	}
	if info, err := e.snapshots.Stat(t.Context(), "one"); err != nil || info.Parent != snapshotKey("new") {
		t.Errorf("the layer of what was reset: %+v, %v", info, err)
	}
}

// Whoever makes, replaces, clones and removes layers at random neither waits in
// a circle nor loses one.
func TestLayersAtRandom(t *testing.T) {
	e, _, d := building(t)
	const workers, rounds = 4, 20
	var mu sync.Mutex
	var made []string // ids of snapshots, which are given once
	some := func() string {
		mu.Lock()
		defer mu.Unlock()
		if len(made) == 0 {
			return "none"
		}
		return made[rand.IntN(len(made))]
	}
	add := func(name string) {
		mu.Lock()
		defer mu.Unlock()
		made = append(made, name)
	}
	base := runtime.Container{ID: "base", Image: testutil.ImageName}
	if err := e.Create(t.Context(), base); err != nil {
		t.Fatal(err)
	}
	layer, err := e.CommitLayer(t.Context(), base.ID, "base")
	if err != nil {
		t.Fatal(err)
	}
	allowed := func(err error) bool {
		p, told := errors.AsType[*problem.Problem](err)
		return err == nil || errdefs.IsNotFound(err) || errdefs.IsAlreadyExists(err) || told && p.Reason == problem.SnapshotNotFound
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	var group sync.WaitGroup
	for i := range workers {
		group.Go(func() {
			id := fmt.Sprintf("worker-%d", i)
			for round := range rounds {
				name := some()
				var did string
				var err error
				switch rand.IntN(5) {
				case 0:
					name = fmt.Sprintf("%s-%d", id, round)
					did, err = "commit", func() error { _, err := e.CommitLayer(ctx, id, name); return err }()
					add(name)
				case 1:
					did, err = "reset", e.ResetLayer(ctx, id, name)
				case 2:
					did, err = "remove", e.RemoveSnapshot(ctx, name)
				case 3:
					did, err = "clone", e.Create(ctx, runtime.Container{ID: id, Image: testutil.ImageName, Snapshot: "base", Base: layer.Base})
				default:
					did, err = "delete", e.Delete(ctx, id)
				}
				if !allowed(err) {
					t.Errorf("%s %s of %s: %v", did, name, id, err)
				}
				info, statErr := e.snapshots.Stat(ctx, id)
				if did == "reset" && err == nil && info.Parent != snapshotKey(name) {
					t.Errorf("%s was reset to %s and is on %s", id, name, info.Parent)
				}
				if _, err := e.store.Get(ctx, id); (err == nil) != (statErr == nil) {
					t.Errorf("%s after a %s: record: %v, layer: %v", id, did, err, statErr)
				}
			}
			if err := e.Delete(ctx, id); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for _, name := range append(made, "base") {
		if err := e.RemoveSnapshot(ctx, name); err != nil {
			t.Error(err)
		}
	}
	if err := e.Delete(ctx, base.ID); err != nil {
		t.Error(err)
	}
	if left := d.Leftovers(t); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
