package runtime_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

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
