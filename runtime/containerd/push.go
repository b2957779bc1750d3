package containerd

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remotegpu/remotegpu/internal/imageref"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// Push sends a local image to a registry.
func (e *Engine) Push(ctx context.Context, ref, destination string, login *runtime.Login, progress func(operation.Progress)) (_ string, err error) {
	record, err := e.record(ctx, ref)
	if err != nil {
		return "", err
	}
	name, err := imageref.Normalize(destination)
	if err != nil {
		return "", err
	}
	r, err := e.registryOf(name, login)
	if err != nil {
		return "", err
	}
	r.tracker, r.patient = docker.NewInMemoryTracker(), true
	ctx, release, err := e.holdContent(ctx, record.Target.Digest.String())
	if err != nil {
		return "", fmt.Errorf("push image %s: %w", record.Name, err)
	}
	defer release(&err)
	target, all, err := e.whole(ctx, record)
	if err != nil {
		return "", err
	}
	p := newPushing(ctx, r.tracker, all)
	stop := report(ctx, p.now, progress)
	err = e.client.Push(ctx, name, target, client.WithResolver(r.resolver(ctx)), client.WithPlatformMatcher(platforms.All))
	stop()
	switch {
	case err == nil:
	case ctx.Err() != nil, atFault(err), errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		return "", r.problem(ctx, "push", name, err)
	default:
		return "", fmt.Errorf("push image %s: %w", name, e.explain(ctx, err))
	}
	if progress != nil {
		if at, err := p.now(ctx); err == nil {
			progress(at)
		}
	}
	return target.Digest.String(), nil
}

// whole is what can be given away of an image, with all it consists of: all of
// it, or else its manifest for this platform. IMAGE_INCOMPLETE.
func (e *Engine) whole(ctx context.Context, record images.Image) (ocispec.Descriptor, []ocispec.Descriptor, error) {
	here, missing, err := e.blobs(ctx, record.Target)
	if err == nil && len(missing) > 0 {
		var ours *ocispec.Descriptor
		if ours, err = e.ours(ctx, record.Target); err == nil && ours != nil {
			record.Target = *ours
			here, missing, err = e.blobs(ctx, record.Target)
		}
	}
	if err != nil {
		return ocispec.Descriptor{}, nil, fmt.Errorf("read image %s: %w", record.Name, e.explain(ctx, err))
	}
	if len(missing) > 0 {
		return ocispec.Descriptor{}, nil, problem.New(problem.ImageIncomplete, "image %s is not all on this node: %s is missing",
			record.Name, missing[0].Digest).WithField("reference").WithHint("pull, build or import it again")
	}
	return record.Target, here, nil
}

// ours is the manifest of a target for this platform, nil when it has none. A
// target that is a manifest is it, whatever it says. NotFound when the index is
// not here.
func (e *Engine) ours(ctx context.Context, target ocispec.Descriptor) (*ocispec.Descriptor, error) {
	if images.IsManifestType(target.MediaType) {
		return &target, nil
	}
	children := images.FilterPlatforms(images.ChildrenHandler(e.client.ContentStore()), platforms.Default())
	found, err := children(ctx, target)
	var best *ocispec.Descriptor
	for _, desc := range found {
		if best == nil || desc.Platform != nil && best.Platform != nil && platforms.Default().Less(*desc.Platform, *best.Platform) {
			best = &desc
		}
	}
	return best, err
}

// blobs are what a target consists of, each once, parents first: what is here
// of it, and what is not.
func (e *Engine) blobs(ctx context.Context, target ocispec.Descriptor) (here, missing []ocispec.Descriptor, err error) {
	store := e.client.ContentStore()
	seen := make(map[string]bool)
	err = images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if seen[desc.Digest.String()] {
			return nil, nil
		}
		seen[desc.Digest.String()] = true
		exists, err := content.Exists(ctx, store, desc)
		if err != nil {
			return nil, err
		}
		if !exists {
			missing = append(missing, desc)
			return nil, nil
		}
		here = append(here, desc)
		return images.Children(ctx, store, desc)
	}), target)
	return here, missing, err
}
