package runtime_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// What is recorded of the image of an environment is what it was made from,
// though the name of that was set anew while it was made.
func TestCreateOfAnImageThatChanges(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := start(t, h)
	var once sync.Once
	h.faults.Hook(func(method string) {
		if method == "Engine.Create" {
			once.Do(func() {
				h.images.Add(runtime.Image{Name: image, Digest: "sha256:2", Labels: map[string]string{runtime.LabelUser: "other"}})
			})
		}
	})
	env, op := d.create(plain("desk"))
	if op.State != operation.Succeeded || op.Attempts != 2 || env.Digest != "sha256:2" || env.Login != "other" {
		t.Fatalf("made of %s for %s, %+v: %+v", env.Digest, env.Login, op, op.Problem)
	}
	// Of one that is refused nothing is left.
	h.faults.Hook(nil)
	once = sync.Once{}
	h.faults.Hook(func(method string) {
		if method == "Engine.Create" {
			once.Do(func() {
				h.images.Add(runtime.Image{Name: image, Digest: "sha256:3", Labels: map[string]string{runtime.LabelMinMemory: "268435456"}})
			})
		}
	})
	little := plain("lab")
	little.Spec.Resources.MemoryBytes = 64 << 20
	env, op = d.create(little)
	if op.State != operation.Failed || op.Problem.Reason != string(problem.MemoryTooSmall) || env.Digest != "" || env.Held {
		t.Errorf("one that needs more memory: %+v, %+v", env, op.Problem)
	}
}

// What interrupted pulls hold is kept as long as they are to go on.
func TestLeasesOfPullsAreKept(t *testing.T) {
	t.Parallel()
	h := asking(t)
	h.images.AddRemote(runtime.Image{Name: "registry.example/env", Digest: "sha256:4"})
	d := start(t, h)
	begun, release := make(chan struct{}, 2), make(chan struct{})
	h.faults.Hook(func(method string) {
		if method == "Images.Pull" {
			begun <- struct{}{}
			<-release
		}
	})
	pull, err := d.Pull(t.Context(), pullPrivate())
	if err != nil {
		t.Fatal(err)
	}
	_, create, err := d.Create(t.Context(), runtime.CreateRequest{Name: "a", Spec: runtime.Spec{Image: "registry.example/env"}})
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	<-begun
	for name, pulling := range map[string]string{
		"lease-pull": private, "lease-create": "registry.example/env:latest", "lease-over": "registry.example/other:latest", "lease-import": "",
	} {
		h.engine.AddPart(runtime.Part{Kind: runtime.FoundLease, Name: name, Pulling: pulling})
	}
	leases := func() []string {
		t.Helper()
		var names []string
		for _, finding := range d.reconcile(false) {
			if finding.Kind == runtime.FoundLease {
				names = append(names, finding.Name)
			}
		}
		slices.Sort(names)
		return names
	}
	if got, want := leases(), []string{"lease-import", "lease-over"}; !slices.Equal(got, want) {
		t.Errorf("removed %q, want %q", got, want)
	}
	close(release)
	d.done(pull)
	d.done(create)
	if got, want := leases(), []string{"lease-create", "lease-pull"}; !slices.Equal(got, want) {
		t.Errorf("removed at the end %q, want %q", got, want)
	}
}

func TestDeleteImage(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := start(t, h)
	for _, name := range []string{"one", "two"} {
		d.create(full(name))
	}
	other := full("one")
	other.Project = "lab"
	_, op, err := d.Create(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	d.done(op)
	_, err = d.DeleteImage(t.Context(), "test/app", false)
	p := wantProblem(t, "delete", err, problem.ImageInUse, "reference")
	if p != nil && !strings.Contains(p.Message, "is in use by one, two, lab/one") {
		t.Errorf("message %q", p.Message)
	}
	if _, err := d.PinImage(t.Context(), "test/app", true); err != nil {
		t.Fatal(err)
	}
	_, err = d.DeleteImage(t.Context(), "test/app", true)
	wantProblem(t, "delete of what is pinned", err, problem.ImagePinned, "reference")
	if unpinned, err := d.PinImage(t.Context(), "test/app", false); err != nil || len(unpinned.UsedBy) != 3 || unpinned.Pinned {
		t.Errorf("unpinned %+v, %v", unpinned, err)
	}
	if name, err := d.DeleteImage(t.Context(), "test/app", true); err != nil || name != image {
		t.Errorf("delete with force: %s, %v", name, err)
	}
	_, err = d.DeleteImage(t.Context(), "test/app", true)
	wantProblem(t, "delete again", err, problem.ImageNotFound, "reference")
}

// An image is not removed from under a create that has found it.
func TestDeleteImageAndCreateDoNotMeet(t *testing.T) {
	t.Parallel()
	h := alone(t)
	d := start(t, h)
	var once sync.Once
	h.faults.Hook(func(method string) {
		if method == "Images.Image" {
			once.Do(func() { // the create has claimed it and looks it up
				_, err := d.DeleteImage(t.Context(), image, true)
				wantProblem(t, "delete", err, problem.ImageInUse, "reference")
				if pruned, err := d.PruneImages(t.Context(), runtime.PruneRequest{}); err != nil || len(pruned.Images) != 0 {
					t.Errorf("pruned %+v, %v", pruned, err)
				}
			})
		}
	})
	_, op, err := d.Create(t.Context(), full("a"))
	if err != nil {
		t.Fatal(err)
	}
	if done := d.done(op); done.State != operation.Succeeded {
		t.Errorf("create: %+v", done.Problem)
	}
	// The other way about: a create waits for a removal, and finds nothing.
	h.images.Add(runtime.Image{Name: "test/going", Digest: "sha256:5"})
	answered := make(chan error, 1)
	h.faults.Hook(func(method string) {
		if method == "Images.RemoveImage" {
			go func() {
				_, _, err := d.Create(t.Context(), runtime.CreateRequest{Name: "b", Spec: runtime.Spec{Image: "test/going", PullPolicy: runtime.PullNever}})
				answered <- err
			}()
			select {
			case err := <-answered:
				t.Errorf("the create did not wait: %v", err)
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	if _, err := d.DeleteImage(t.Context(), "test/going", false); err != nil {
		t.Error(err)
	}
	wantProblem(t, "create", <-answered, problem.ImageNotFound, "spec.image")
	// Who waits may leave.
	h.images.Add(runtime.Image{Name: "test/going", Digest: "sha256:5"})
	h.faults.Hook(func(method string) {
		if method == "Images.RemoveImage" {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := d.PinImage(ctx, "test/going", true); err == nil {
				t.Error("what is being removed was pinned")
			}
		}
	})
	if _, err := d.DeleteImage(t.Context(), "test/going", false); err != nil {
		t.Error(err)
	}
}

// TestImagesAreUsedByDigest: an environment uses what it was made from, whatever
// that is called now, and not what is called so.
func TestImagesAreUsedByDigest(t *testing.T) {
	t.Parallel()
	h := alone(t)
	h.images.Add(runtime.Image{Name: "test/next", Digest: "sha256:2", Size: 5})
	d := start(t, h)
	env, _ := d.create(full("user"))
	used := func(when string, want map[string]int) {
		t.Helper()
		all, err := d.ListImages(t.Context())
		got := map[string]int{}
		for _, one := range all {
			got[strings.TrimPrefix(one.Name, "docker.io/test/")] = len(one.UsedBy)
		}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", when, err, diff)
		}
	}
	tag := func(reference, name string) {
		t.Helper()
		if _, err := d.TagImage(t.Context(), reference, name); err != nil {
			t.Fatal(err)
		}
	}
	tag("test/app", "test/copy")
	used("two names", map[string]int{"app:latest": 1, "copy:latest": 1, "next:latest": 0})
	// One of the names may go, but not that it was made by.
	_, err := d.DeleteImage(t.Context(), "test/app", false)
	wantProblem(t, "delete of the name it was made by", err, problem.ImageInUse, "reference")
	if _, err := d.DeleteImage(t.Context(), "test/copy", false); err != nil {
		t.Errorf("delete of another name: %v", err)
	}

	tag("test/app", "test/copy")
	tag("test/next", "test/app")
	h.images.Hold(env.Digest, 7)
	used("its name means another", map[string]int{"app:latest": 0, "copy:latest": 1, "next:latest": 0})
	_, err = d.DeleteImage(t.Context(), "test/copy", false)
	wantProblem(t, "delete of the last name", err, problem.ImageInUse, "reference")
	pruned, err := d.PruneImages(t.Context(), runtime.PruneRequest{})
	if err != nil || len(pruned.Images) != 2 || pruned.Images[0].Name != image || pruned.Freed != 10 {
		t.Errorf("pruned %+v, %v, want what is called as its image was, and next", pruned, err)
	}
	if _, err := d.DeleteImage(t.Context(), "test/copy", true); err != nil {
		t.Error(err)
	}
	usage, err := d.ImageDiskUsage(t.Context())
	if err != nil || len(usage.Images) != 0 || usage.ContentElsewhere != 7 || usage.SnapshotsElsewhere != 7 || usage.Content != 7 || usage.Snapshots != 7 {
		t.Errorf("usage without names: %+v, %v", usage, err)
	}
}

func TestPush(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := start(t, h)
	_, err := d.Push(t.Context(), runtime.PushRequest{Reference: "test/absent"})
	wantProblem(t, "push of what is not here", err, problem.ImageNotFound, "reference")
	_, err = d.Push(t.Context(), runtime.PushRequest{Reference: "test/app", Destination: "Not A Reference"})
	wantProblem(t, "push to nowhere", err, problem.ImageReferenceBad, "destination")
	h.faults.FailCall("Images.Push", 1, problem.New(problem.RegistryUnavailable, "the registry does not answer"))
	req := runtime.PushRequest{RequestID: "p1", Reference: "test/app", Destination: "registry.example/app"}
	op, err := d.Push(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	done := d.done(op)
	if done.State != operation.Succeeded || done.Attempts != 2 || done.Result["image"] != "registry.example/app:latest" || done.Result["digest"] != "sha256:1" {
		t.Errorf("operation %+v", done)
	}
	if len(done.Progress.Layers) != 1 || done.Progress.Layers[0].State != operation.LayerTransferred {
		t.Errorf("progress %+v", done.Progress)
	}
	if _, err := d.DeleteImage(t.Context(), "test/app", false); err != nil {
		t.Fatal(err)
	}
	if again, err := d.Push(t.Context(), req); err != nil || again.ID != op.ID {
		t.Errorf("repeated after the image is gone: %+v, %v", again, err)
	}
}

func TestArchivesAndTags(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := start(t, h)
	tagged, err := d.TagImage(t.Context(), "test/app", "test/other:2")
	if err != nil || tagged.Name != "docker.io/test/other:2" || tagged.Digest != "sha256:1" {
		t.Errorf("tagged %+v, %v", tagged, err)
	}
	var archive bytes.Buffer
	if err := d.ExportImages(t.Context(), []string{"test/other:2"}, &archive); err != nil {
		t.Fatal(err)
	}
	imported, err := d.ImportImages(t.Context(), &archive, "test/third")
	if err != nil || len(imported) != 1 || imported[0].Name != "docker.io/test/third:latest" {
		t.Errorf("imported %+v, %v", imported, err)
	}
	_, err = d.TagImage(t.Context(), "test/app", "Not A Reference")
	wantProblem(t, "tag", err, problem.ImageReferenceBad, "tag")
	_, err = d.TagImage(t.Context(), "test/absent", "test/x")
	wantProblem(t, "tag", err, problem.ImageNotFound, "reference")
	_, err = d.ImportImages(t.Context(), strings.NewReader("nothing"), "Not A Reference")
	wantProblem(t, "import", err, problem.ImageReferenceBad, "reference")
	_, err = d.ImportImages(t.Context(), strings.NewReader("nothing"), "")
	wantProblem(t, "import", err, problem.ImageArchiveInvalid, "")
	err = d.ExportImages(t.Context(), []string{"test/app", "Not A Reference"}, &archive)
	wantProblem(t, "export", err, problem.ImageReferenceBad, "references[1]")
	err = d.ExportImages(t.Context(), []string{"test/absent"}, &archive)
	wantProblem(t, "export", err, problem.ImageNotFound, "reference")
}

// wantProblem fails the test unless err is of a reason, at a field, with a hint.
func wantProblem(t *testing.T, what string, err error, reason problem.Reason, field string) *problem.Problem {
	t.Helper()
	p, ok := errors.AsType[*problem.Problem](err)
	if !ok || p.Reason != reason || p.Field != field || p.Hint == "" {
		t.Errorf("%s: %v, want %s at %q with a hint", what, err, reason, field)
		return nil
	}
	return p
}

// An image that is here is found by its digest, without its registry, and stays
// under that name when its tag goes.
func TestCreateByDigestFromALocalImage(t *testing.T) {
	h := newHost(t)
	digest := "sha256:" + strings.Repeat("ab", 32)
	h.images.Add(runtime.Image{Name: "docker.io/team/app:1", Digest: digest})
	d := start(t, h)
	req := plain("desk")
	req.Spec.Image = "team/app@" + digest
	env, op := d.create(req)
	if op.State != operation.Succeeded || env.Spec.Image != "docker.io/team/app@"+digest {
		t.Fatalf("%+v, image %s", op.Problem, env.Spec.Image)
	}
	if _, err := d.DeleteImage(t.Context(), "team/app:1", false); err != nil {
		t.Error(err)
	}
	if _, err := d.DeleteImage(t.Context(), "team/app@"+digest, false); problem.Of(err) == nil || problem.Of(err).Reason != problem.ImageInUse {
		t.Errorf("delete of what is used: %v", err)
	}
	req.Name, req.Spec.Image = "other", "team/other@"+digest
	if _, _, err := d.Create(t.Context(), req); problem.Of(err) == nil || problem.Of(err).Reason != problem.ImageNotFound {
		t.Errorf("another repository: %v", err)
	}
}
