package containerd

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"

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
	labels, err := e.pinLabels(ctx, name)
	if err != nil {
		return runtime.Image{}, err
	}
	p := newPulling(e)
	stop := report(ctx, p.now, progress)
	pulled, err := e.client.Pull(ctx, name, client.WithResolver(resolver), client.WithPullUnpack,
		client.WithPullSnapshotter(e.cfg.Snapshotter), client.WithPlatformMatcher(platforms.Default()),
		// A layer that another image has unpacked is fetched all the same: an
		// image that is not whole could be neither pushed nor exported.
		client.WithUnpackOpts([]client.UnpackOpt{client.WithUnpackFetchAllContent()}),
		client.WithPullLabels(labels), client.WithImageHandlerWrapper(p.note))
	stop()
	if err != nil {
		return runtime.Image{}, e.pullProblem(ctx, r, name, err)
	}
	record := pulled.Metadata()
	img, err := e.read(ctx, record)
	if err == nil {
		err = checkPlatform(name, img)
	}
	if err != nil {
		if errdefs.IsFailedPrecondition(err) { // of no use here
			undo, cancel := afterwards(ctx)
			defer cancel()
			err = errors.Join(err, e.DeleteImage(undo, name))
		}
		return runtime.Image{}, err
	}
	if record, err = e.keepPin(ctx, record); err != nil {
		return runtime.Image{}, err
	}
	if progress != nil {
		if at, err := p.now(ctx); err == nil {
			progress(at)
		}
	}
	return describe(record, img), nil
}

// pullProblem tells why an image that the registry has could not be pulled.
func (e *Engine) pullProblem(ctx context.Context, r registry, name string, err error) error {
	if full := e.explain(ctx, err); ctx.Err() == nil && problem.Of(full).Reason == problem.DiskFull {
		return fmt.Errorf("pull image %s: %w", name, full)
	}
	switch {
	case ctx.Err() != nil, atFault(err):
		return r.problem(ctx, "pull", name, err)
	case errdefs.IsNotFound(err): // the name is there, no manifest for us is
		return mismatch(name, err)
	default:
		return fmt.Errorf("pull image %s: %w", name, e.explain(ctx, err))
	}
}

// checkPlatform refuses what is for another platform than the node's.
func checkPlatform(name string, img *image) error {
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
