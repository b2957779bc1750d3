package runtime_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// alone is a host with one image.
func alone(t *testing.T) *host {
	t.Helper()
	h := newHost(t)
	if err := h.images.DeleteImage(t.Context(), "remotegpu/test"); err != nil { // of the fake engine
		t.Fatal(err)
	}
	return h
}

func TestPruneAndUsage(t *testing.T) {
	t.Parallel()
	h := alone(t)
	now := time.Now()
	for name, one := range map[string]runtime.Image{
		"free/a": {Digest: "sha256:a", Size: 10}, "free/b": {Digest: "sha256:a", Size: 10}, "free/c": {Digest: "sha256:c", Size: 5},
		"pinned/d": {Digest: "sha256:c", Size: 5}, "young/e": {Digest: "sha256:e", Size: 3, UpdatedAt: now}, "pushed/f": {Digest: "sha256:f", Size: 2},
	} {
		one.Name = name
		h.images.Add(one)
	}
	d := start(t, h)
	_, op, err := d.Create(t.Context(), full("user"))
	if err != nil {
		t.Fatal(err)
	}
	d.done(op)
	if _, err := d.PinImage(t.Context(), "pinned/d", true); err != nil {
		t.Fatal(err)
	}
	pushing, release := make(chan struct{}), make(chan struct{})
	h.faults.Hook(func(method string) {
		if method == "Images.Push" {
			close(pushing)
			<-release
		}
	})
	if op, err = d.Push(t.Context(), runtime.PushRequest{Reference: "pushed/f", Destination: "registry.example/f"}); err != nil {
		t.Fatal(err)
	}
	<-pushing

	usage, err := d.ImageDiskUsage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unique := map[string]int64{}
	for _, one := range usage.Images {
		if one.Content != one.Size || one.Snapshots != one.Size {
			t.Errorf("usage of %s: %+v", one.Name, one)
		}
		unique[one.Name] = one.ContentUnique + one.SnapshotsUnique
	}
	if diff := cmp.Diff(map[string]int64{
		"docker.io/free/a:latest": 0, "docker.io/free/b:latest": 0, "docker.io/free/c:latest": 0, "docker.io/pinned/d:latest": 0,
		"docker.io/young/e:latest": 6, "docker.io/pushed/f:latest": 4, image: 0,
	}, unique); diff != "" {
		t.Errorf("unique: %s", diff)
	}
	if usage.Content != 20 || usage.Snapshots != 20 || usage.Reclaimable != 26 {
		t.Errorf("usage %+v, want 20 and 20, of which 26 can be had", usage)
	}

	names := func(pruned runtime.Pruned, err error) string {
		t.Helper()
		var all []string
		for _, one := range pruned.Images {
			all = append(all, strings.TrimSuffix(strings.TrimPrefix(one.Name, "docker.io/"), ":latest"))
		}
		return fmt.Sprint(strings.Join(all, " "), " ", pruned.Freed, " ", err)
	}
	for _, step := range []struct {
		req  runtime.PruneRequest
		want string
	}{
		{runtime.PruneRequest{DryRun: true}, "free/a free/b free/c young/e 26 <nil>"},
		{runtime.PruneRequest{MinAge: time.Hour}, "free/a free/b free/c 20 <nil>"},
		{runtime.PruneRequest{MinAge: time.Hour}, " 0 <nil>"},
		{runtime.PruneRequest{}, "young/e 6 <nil>"},
	} {
		if got := names(d.PruneImages(t.Context(), step.req)); got != step.want {
			t.Errorf("prune %+v: %s, want %s", step.req, got, step.want)
		}
	}
	close(release)
	d.done(op)
	// One that cannot be removed does not keep the others.
	h.images.Add(runtime.Image{Name: "free/g", Digest: "sha256:9", Size: 1})
	h.faults.FailCall("Images.RemoveImage", 1, errdefs.ErrUnavailable)
	if got := names(d.PruneImages(t.Context(), runtime.PruneRequest{})); !strings.HasPrefix(got, "pushed/f 4 ") || !strings.Contains(got, "free/g") {
		t.Errorf("prune with a failure: %s", got)
	}
	if got := names(d.PruneImages(t.Context(), runtime.PruneRequest{})); got != "free/g 2 <nil>" {
		t.Errorf("the next prune: %s", got)
	}
}

// What somebody names while others are removed stays, though it was found before:
// another image by that name, or the same one by a name that is new.
func TestPruneLooksAgain(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	old := time.Now().Add(-2 * time.Hour)
	for _, name := range []string{"free/a", "free/b", "free/c", "free/d", "free/e"} {
		h.images.Add(runtime.Image{Name: name, Digest: "sha256:a", UpdatedAt: old})
	}
	h.images.AddRemote(runtime.Image{Name: "free/e", Digest: "sha256:e", UpdatedAt: time.Now()})
	d := start(t, h)
	var once sync.Once
	h.faults.Hook(func(method string) {
		if method != "Images.RemoveImage" {
			return
		}
		once.Do(func() { // a is about to be removed
			h.images.Add(runtime.Image{Name: "free/b", Digest: "sha256:b", UpdatedAt: time.Now()})
			if _, err := d.TagImage(t.Context(), "free/e", "free/c"); err != nil {
				t.Error(err)
			}
			if _, err := d.PinImage(t.Context(), "free/d", true); err != nil {
				t.Error(err)
			}
			op, err := d.Pull(t.Context(), runtime.PullRequest{Reference: "free/e"})
			if err != nil {
				t.Error(err)
				return
			}
			d.done(op)
		})
	})
	pruned, err := d.PruneImages(t.Context(), runtime.PruneRequest{MinAge: time.Hour})
	pruned.Images = slices.DeleteFunc(pruned.Images, func(i runtime.Image) bool { return !strings.HasPrefix(i.Name, "docker.io/free/") })
	if err != nil || len(pruned.Images) != 1 || pruned.Images[0].Name != "docker.io/free/a:latest" {
		t.Errorf("pruned %+v, %v; want only what nobody has named since", pruned, err)
	}
	// Between the last look and the removal, too; a delete says so.
	h.faults.Hook(nil)
	for _, remove := range []func() error{
		func() error { _, err := d.PruneImages(t.Context(), runtime.PruneRequest{}); return err },
		func() error {
			_, err := d.DeleteImage(t.Context(), "free/a", false)
			if p := problem.Of(err); p == nil || p.Reason != problem.ImageChanged || p.Field != "reference" || p.Hint == "" {
				return fmt.Errorf("a delete: %w", err)
			}
			return nil
		},
	} {
		h.images.Add(runtime.Image{Name: "free/a", Digest: "sha256:a", UpdatedAt: old})
		var once sync.Once
		h.faults.Hook(func(method string) {
			if method == "Images.RemoveImage" {
				once.Do(func() { h.images.Add(runtime.Image{Name: "free/a", Digest: "sha256:b", UpdatedAt: time.Now()}) })
			}
		})
		if err := remove(); err != nil {
			t.Error(err)
		}
		h.faults.Hook(nil)
		if left, err := h.images.Image(t.Context(), "free/a"); err != nil || left.Digest != "sha256:b" {
			t.Errorf("what was named meanwhile: %+v, %v", left, err)
		}
	}
}

// Where nobody can look what is needed, prune ends, and does not ask anew for
// each image.
func TestPruneEndsWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for _, name := range []string{"free/a", "free/b", "free/c", "free/d"} {
		h.images.Add(runtime.Image{Name: name, Digest: "sha256:a"})
	}
	d := start(t, h)
	const look = "Images.Images"
	before := h.faults.Count(look)
	h.faults.FailCall(look, 3, fmt.Errorf("it does not answer: %w", errdefs.ErrUnavailable)) // of the second image
	pruned, err := d.PruneImages(t.Context(), runtime.PruneRequest{})
	if looks := h.faults.Count(look) - before; len(pruned.Images) != 1 || !errdefs.IsUnavailable(err) || looks != 3 {
		t.Errorf("pruned %+v, %v, after %d looks", pruned.Images, err, looks)
	}
}
