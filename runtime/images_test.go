package runtime_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

const (
	private = "registry.example/team/app:v1"
	secret  = "correct horse battery staple"
)

// asking is a host whose registry has a private image.
func asking(t *testing.T) *host {
	t.Helper()
	h := newHost(t)
	h.images.AddRemote(runtime.Image{Name: private, Digest: "sha256:2", Size: 7})
	h.images.Ask(private, runtime.Login{Username: "ann", Password: secret})
	return h
}

func pullPrivate() runtime.PullRequest {
	return runtime.PullRequest{RequestID: "r1", Reference: private, Login: &runtime.Login{Username: "ann", Password: secret}}
}

// noSecret fails the test when the password is anywhere below the state
// directory.
func noSecret(t *testing.T, h *host) {
	t.Helper()
	if err := filepath.WalkDir(h.dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err == nil && bytes.Contains(text, []byte(secret)) {
			t.Errorf("%s has the password", path)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

func credentialFiles(t *testing.T, h *host) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(h.dir, "credentials", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestLoginIsKeptForTheOperationAlone(t *testing.T) {
	t.Parallel()
	h := asking(t)
	d := start(t, h)
	var kept atomic.Bool
	h.faults.Hook(func(method string) {
		if method != "Images.Pull" {
			return
		}
		for _, path := range credentialFiles(t, h) {
			info, err := os.Stat(path)
			text, readErr := os.ReadFile(path)
			kept.Store(err == nil && readErr == nil && info.Mode() == 0o600 && bytes.Contains(text, []byte(secret)))
		}
	})
	op, err := d.Pull(t.Context(), pullPrivate())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(op.Args)+op.RequestHash, secret) {
		t.Errorf("the operation has the password: %+v", op)
	}
	if done := d.done(op); done.State != operation.Succeeded || done.Result["digest"] != "sha256:2" {
		t.Errorf("operation %+v", done)
	}
	if !kept.Load() {
		t.Error("the credentials were not kept for root alone while the pull was at work")
	}
	// The same request again, and another one with its id.
	if again, err := d.Pull(t.Context(), pullPrivate()); err != nil || again.ID != op.ID {
		t.Errorf("repeated: %+v, %v", again, err)
	}
	other := pullPrivate()
	other.Login = &runtime.Login{Username: "bob", Password: secret}
	_, err = d.Pull(t.Context(), other)
	wantProblem(t, "another user", err, problem.RequestIDReused, "request_id")
	// Wrong ones.
	wrong := runtime.PullRequest{Reference: private, Login: &runtime.Login{Username: "ann", Password: "wrong"}}
	if op, err = d.Pull(t.Context(), wrong); err != nil {
		t.Fatal(err)
	}
	if done := d.done(op); done.State != operation.Failed || done.Problem.Reason != string(problem.RegistryDenied) || done.Problem.Field != "reference" {
		t.Errorf("operation %+v, problem %+v", done, done.Problem)
	}
	if files := credentialFiles(t, h); len(files) > 0 {
		t.Errorf("credentials are left: %q", files)
	}
	noSecret(t, h)
	if text := fmt.Sprintf("%v %+v %#v", *wrong.Login, wrong.Login, *wrong.Login); strings.Contains(text, "wrong") {
		t.Errorf("a login prints as %s", text)
	}
}

func TestLoginSurvivesTheDaemon(t *testing.T) {
	t.Parallel()
	h := asking(t)
	d := start(t, h)
	pulling := make(chan struct{})
	var once sync.Once
	stop := make(chan struct{})
	h.faults.Hook(func(method string) {
		if method == "Images.Pull" {
			once.Do(func() { close(pulling); <-stop })
		}
	})
	op, err := d.Pull(t.Context(), pullPrivate())
	if err != nil {
		t.Fatal(err)
	}
	<-pulling
	time.AfterFunc(50*time.Millisecond, func() { close(stop) }) // when the daemon is stopping, or has not begun to
	d.stop()
	d = start(t, h)
	if done := d.done(op); done.State != operation.Succeeded {
		t.Errorf("operation %+v, problem %+v", done, done.Problem)
	}
	if files := credentialFiles(t, h); len(files) > 0 {
		t.Errorf("credentials are left: %q", files)
	}
}

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

func TestLostLoginIsSaid(t *testing.T) {
	t.Parallel()
	h := asking(t)
	h.images.Add(runtime.Image{Name: "team/mine", Digest: "sha256:3"})
	d := start(t, h)
	// The worker is kept busy by pulls that wait, so that the last one is not begun.
	held, release := make(chan struct{}), make(chan struct{})
	var waiting atomic.Int32
	h.faults.Hook(func(method string) {
		if method == "Images.Push" && waiting.Add(1) <= 3 {
			if waiting.Load() == 3 {
				close(held)
			}
			<-release
		}
	})
	for i := range 3 {
		h.images.Add(runtime.Image{Name: fmt.Sprintf("team/mine:%d", i), Digest: "sha256:3"})
		if _, err := d.Push(t.Context(), runtime.PushRequest{Reference: fmt.Sprintf("team/mine:%d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	<-held
	op, err := d.Push(t.Context(), runtime.PushRequest{Reference: "team/mine", Destination: private, Login: pullPrivate().Login})
	if err != nil {
		t.Fatal(err)
	}
	files := credentialFiles(t, h)
	if len(files) != 1 || filepath.Base(files[0]) != op.ID {
		t.Fatalf("credentials %q", files)
	}
	if err := os.WriteFile(files[0], []byte("{damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	close(release)
	if done := d.done(op); done.State != operation.Failed || done.Problem.Reason != string(problem.CredentialsLost) || done.Problem.Hint == "" {
		t.Errorf("operation %+v, problem %+v", done, done.Problem)
	}
	if files := credentialFiles(t, h); len(files) > 0 {
		t.Errorf("credentials are left: %q", files)
	}
}

// A daemon that died may leave credentials: those of operations that are done,
// of ones that were never written, and files that were not written to their
// end. What others put beside them stays.
func TestStaleLoginsGo(t *testing.T) {
	t.Parallel()
	h := asking(t)
	d := start(t, h)
	op, err := d.Pull(t.Context(), pullPrivate())
	if err != nil {
		t.Fatal(err)
	}
	d.done(op)
	dir := filepath.Join(h.dir, "credentials")
	young, old := ulid.Make().String(), ulid.Make().String()
	half := "." + old + ".1234"
	foreign := []string{"keep.txt", ".half.1234"}
	if err := os.MkdirAll(filepath.Join(dir, "lost+found", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range append([]string{op.ID, young, old, half}, foreign...) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-time.Hour)
	for _, name := range append([]string{old, half}, foreign...) {
		if err := os.Chtimes(filepath.Join(dir, name), long, long); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"credentials " + half + " remove ours=true", "credentials .half.1234 none ours=false",
		"credentials " + op.ID + " remove ours=true", "credentials " + old + " remove ours=true",
		"credentials keep.txt none ours=false", "credentials lost+found none ours=false",
	}
	slices.Sort(want)
	for _, dryRun := range []bool{true, false} {
		if diff := cmp.Diff(want, said(d.reconcile(dryRun))); diff != "" {
			t.Errorf("dry run %t: %s", dryRun, diff)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, entry := range entries {
		left = append(left, entry.Name())
	}
	stays := append([]string{young, "lost+found"}, foreign...) // the operation of young may be about to be written
	slices.Sort(stays)
	if diff := cmp.Diff(stays, left); diff != "" {
		t.Error(diff)
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

// makes is a Builder that leaves what it makes where it belongs until it may go on.
type makes struct {
	images      *runtimetest.FakeImages
	begun, goOn chan struct{}
	broken      error // what ends it amid its work, as the end of the daemon would
}

func (*makes) Sources() []string { return []string{"one"} }

func (b *makes) Build(ctx context.Context, req runtime.BuildRequest, _ func(operation.Progress)) (runtime.BuildResult, error) {
	made := runtime.BuildName(req.Tag)
	b.images.Add(runtime.Image{Name: made, Digest: "sha256:b"})
	if b.broken != nil {
		return runtime.BuildResult{}, b.broken
	}
	close(b.begun)
	<-b.goOn
	if _, err := b.images.Tag(ctx, made, req.Tag); err != nil {
		return runtime.BuildResult{}, err
	}
	return runtime.BuildResult{Image: req.Tag, Digest: "sha256:b"}, nil
}

// An image in the making is not pruned from under its build, and is not called
// by a digest that nobody knows yet.
func TestBuild(t *testing.T) {
	t.Parallel()
	h := alone(t)
	builder := &makes{images: h.images, begun: make(chan struct{}), goOn: make(chan struct{})}
	h.builder = builder
	d := start(t, h)
	_, err := d.Build(t.Context(), runtime.ImageBuildRequest{BuildRequest: runtime.BuildRequest{Source: "one", Tag: "a/b@sha256:" + strings.Repeat("0", 64)}})
	wantProblem(t, "build", err, problem.ImageReferenceBad, "tag")
	op, err := d.Build(t.Context(), runtime.ImageBuildRequest{BuildRequest: runtime.BuildRequest{Source: "one", Tag: "a/b"}})
	if err != nil {
		t.Fatal(err)
	}
	<-builder.begun
	if pruned, err := d.PruneImages(t.Context(), runtime.PruneRequest{}); err != nil || len(pruned.Images) > 1 || len(pruned.Images) == 1 && pruned.Images[0].Name != image {
		t.Errorf("pruned %+v, %v", pruned, err)
	}
	// One that is cancelled while it waits for the first takes nothing from that.
	waits, err := d.Build(t.Context(), runtime.ImageBuildRequest{BuildRequest: runtime.BuildRequest{Source: "one", Tag: "a/b"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.queue.Cancel(t.Context(), waits.ID); err != nil {
		t.Fatal(err)
	}
	if waits = d.done(waits); waits.State != operation.Cancelled {
		t.Fatalf("it is %s", waits.State)
	}
	close(builder.goOn)
	if op = d.done(op); op.State != operation.Succeeded {
		t.Errorf("the first: %+v", op.Problem)
	}
	if left, err := h.images.Image(t.Context(), runtime.BuildName("docker.io/a/b:latest")); !errdefs.IsNotFound(err) {
		t.Errorf("left of builds that are over: %+v, %v", left, err)
	}
	if image, err := h.images.Image(t.Context(), "a/b"); err != nil || image.Digest != "sha256:b" {
		t.Errorf("built %+v, %v", image, err)
	}
	builder.broken = errors.New("broken")
	if op, err = d.Build(t.Context(), runtime.ImageBuildRequest{BuildRequest: runtime.BuildRequest{Source: "one", Tag: "a/b"}}); err != nil {
		t.Fatal(err)
	}
	d.done(op)
	if image, err := h.images.Image(t.Context(), runtime.BuildName("docker.io/a/b:latest")); !errdefs.IsNotFound(err) {
		t.Errorf("left of a build that broke off: %+v, %v", image, err)
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
