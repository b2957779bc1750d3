package containerd

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remotegpu/remotegpu/internal/imageref"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// Pull fetches an image and unpacks it.
func (e *Engine) Pull(ctx context.Context, ref string, login *runtime.Login, progress func(operation.Progress)) (image runtime.Image, err error) {
	name, err := imageref.Normalize(ref)
	if err != nil {
		return runtime.Image{}, err
	}
	r, err := e.registryOf(name, login)
	if err != nil {
		return runtime.Image{}, err
	}
	resolver := r.resolver(ctx)
	if err := r.resolve(ctx, resolver, name); err != nil {
		return runtime.Image{}, err
	}
	// With a lease of its own the client would delete it with ctx: a cancelled
	// pull would keep what it fetched for a day.
	ctx, release, err := e.takeLease(ctx, pullLease(name), name)
	if err != nil {
		return runtime.Image{}, fmt.Errorf("pull image %s: %w", name, err)
	}
	defer release(&err)
	p := newPulling(e)
	stop := report(ctx, p.now, progress)
	target, err := e.fetch(ctx, resolver, name, p)
	stop()
	if err != nil {
		return runtime.Image{}, e.pullProblem(ctx, r, name, p, err)
	}
	record := images.Image{Name: name, Target: target}
	img, err := e.read(ctx, record)
	if err == nil {
		err = checkUsable(name, img)
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return runtime.Image{}, err
	}
	if record, err = e.nameImage(ctx, record); err != nil {
		return runtime.Image{}, fmt.Errorf("name image %s: %w", name, e.explain(ctx, err))
	}
	if progress != nil {
		if at, err := p.now(ctx); err == nil {
			progress(at)
		}
	}
	return describe(record, img), nil
}

// fetch has containerd's client fetch and unpack an image, and does not name it:
// a name keeps what it stood for until the image is known to be of use.
func (e *Engine) fetch(ctx context.Context, resolver remotes.Resolver, name string, p *pulling) (ocispec.Descriptor, error) {
	pulled, err := e.fetcher.Pull(ctx, name, client.WithResolver(resolver), client.WithPullUnpack,
		client.WithPullSnapshotter(e.cfg.Snapshotter), client.WithPlatformMatcher(platforms.Default()),
		// A layer that another image has unpacked is fetched all the same: an
		// image that is not whole could be neither pushed nor exported.
		client.WithUnpackOpts([]client.UnpackOpt{client.WithUnpackFetchAllContent()}),
		client.WithImageHandlerWrapper(p.note))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return pulled.Target(), nil
}

// unnamed is the image store of the client that fetches: what the client would
// name is only handed back.
type unnamed struct{ images.Store }

// Create implements images.Store.
func (unnamed) Create(_ context.Context, image images.Image) (images.Image, error) { return image, nil }

// pullProblem tells why an image that the registry has could not be pulled.
func (e *Engine) pullProblem(ctx context.Context, r registry, name string, p *pulling, err error) error {
	if full := e.explain(ctx, err); ctx.Err() == nil && problem.Of(full).Reason == problem.DiskFull {
		return fmt.Errorf("pull image %s: %w", name, full)
	}
	switch {
	case ctx.Err() != nil, atFault(err):
		return r.problem(ctx, "pull", name, err)
	}
	target, missing := p.found()
	switch {
	case missing != nil:
		return problem.New(problem.ImageIncomplete, "registry %s lacks %s of image %s", r.host, missing.Digest, name).WithField("spec.image").
			WithHint("have the image pushed anew: the registry has its name, but not all of its content").WithTold(err)
	case errdefs.IsNotFound(err): // all that was asked for is there, no manifest for us is
		return mismatch(name, err)
	}
	if target != nil { // the client does not say what it cannot make anything of
		img, readErr := e.read(ctx, images.Image{Name: name, Target: *target})
		if readErr == nil {
			readErr = checkUsable(name, img)
		}
		if told, ok := errors.AsType[*problem.Problem](readErr); ok && told.Reason == problem.ImageInvalid {
			return told
		}
	}
	return fmt.Errorf("pull image %s: %w", name, e.explain(ctx, err))
}

// checkUsable refuses what no container can be made from: IMAGE_INVALID,
// IMAGE_PLATFORM_MISMATCH.
func checkUsable(name string, img *image) error {
	if img.flaw != "" {
		return invalidImage(name, img.flaw)
	}
	if platforms.Default().Match(img.platform) {
		return nil
	}
	return problem.New(problem.ImagePlatform, "image %s is for %s, not for %s", name, platforms.Format(img.platform), platforms.DefaultString()).
		WithField("spec.image").WithHint("use an image for this platform").WithTold(errdefs.ErrNotFound)
}

// mismatch says that nothing of an image is for the node's platform. The cause
// says the same, and "not found".
func mismatch(name string, err error) error {
	return problem.New(problem.ImagePlatform, "image %s is not for %s", name, platforms.DefaultString()).WithField("spec.image").
		WithHint("use an image for this platform").WithTold(err)
}
