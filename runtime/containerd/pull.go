package containerd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remotegpu/remotegpu/internal/imageref"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

const (
	progressInterval = 250 * time.Millisecond
	answerTimeout    = 30 * time.Second // of a registry's first byte
)

// Pull fetches an image and unpacks it.
func (e *Engine) Pull(ctx context.Context, ref string, progress func(operation.Progress)) (image runtime.Image, err error) {
	name, err := imageref.Normalize(ref)
	if err != nil {
		return runtime.Image{}, err
	}
	resolver := e.resolver(ctx)
	if err := e.resolve(ctx, resolver, name); err != nil {
		return runtime.Image{}, err
	}
	p := &pulling{engine: e, sizes: make(map[string]ocispec.Descriptor)}
	// The client would delete its lease with ctx: a cancelled pull would keep
	// what it fetched for a day.
	ctx, release, err := e.lease(ctx)
	if err != nil {
		return runtime.Image{}, fmt.Errorf("pull image %s: %w", name, e.explain(ctx, err))
	}
	defer func() {
		undo, cancel := afterwards(ctx)
		defer cancel()
		err = errors.Join(err, release(undo))
	}()
	stop := p.report(ctx, progress)
	pulled, err := e.client.Pull(ctx, name, client.WithResolver(resolver), client.WithPullUnpack,
		client.WithPullSnapshotter(e.cfg.Snapshotter), client.WithPlatformMatcher(platforms.Default()),
		client.WithImageHandlerWrapper(p.note))
	stop()
	if err != nil {
		return runtime.Image{}, e.pullProblem(ctx, name, err)
	}
	record := pulled.Metadata()
	img, err := e.read(ctx, record)
	if err == nil && !platforms.Default().Match(img.platform) {
		err = e.mismatch(name, nil)
	}
	if err != nil {
		if errdefs.IsFailedPrecondition(err) { // of no use here
			undo, cancel := afterwards(ctx)
			defer cancel()
			err = errors.Join(err, e.DeleteImage(undo, name))
		}
		return runtime.Image{}, err
	}
	p.now(ctx, progress)
	return describe(record, img), nil
}

// Resolve asks the registry whether ref exists.
func (e *Engine) Resolve(ctx context.Context, ref string) error {
	name, err := imageref.Normalize(ref)
	if err != nil {
		return err
	}
	return e.resolve(ctx, e.resolver(ctx), name)
}

func (e *Engine) resolve(ctx context.Context, resolver remotes.Resolver, name string) error {
	if _, _, err := resolver.Resolve(ctx, name); err != nil {
		return registryProblem(ctx, name, err)
	}
	return nil
}

// resolver speaks plain HTTP to registries on loopback only, as Docker does,
// unless HostsDir says more.
func (e *Engine) resolver(ctx context.Context) remotes.Resolver {
	options := config.HostOptions{UpdateClient: func(c *http.Client) error {
		if transport, ok := c.Transport.(*http.Transport); ok {
			transport.ResponseHeaderTimeout = answerTimeout
		}
		return nil
	}}
	if e.cfg.HostsDir != "" {
		options.HostDir = config.HostDirFromRoot(e.cfg.HostsDir)
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, options)})
}

// registryProblem tells why a registry does not give an image.
func registryProblem(ctx context.Context, name string, err error) error {
	host, _ := imageref.Registry(name)
	if ctx.Err() != nil {
		return fmt.Errorf("ask registry for image %s: %w: %w", name, context.Cause(ctx), err)
	}
	unexpected, answered := errors.AsType[remoteerrors.ErrUnexpectedStatus](err)
	denied := answered && (unexpected.StatusCode == http.StatusUnauthorized || unexpected.StatusCode == http.StatusForbidden)
	switch {
	case denied, errors.Is(err, docker.ErrInvalidAuthorization), errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		return problem.New(problem.RegistryDenied, "registry %s does not give image %s to us", host, name).WithField("spec.image").
			WithHint("check that the name is right and the image public").WithCause(err)
	case errdefs.IsNotFound(err):
		return problem.New(problem.ImageNotFound, "registry %s has no image %s", host, name).WithField("spec.image").
			WithHint("check name and tag").WithCause(err)
	default:
		return problem.New(problem.RegistryUnavailable, "registry %s cannot be asked for image %s", host, name).WithField("spec.image").
			WithHint("check the node's network and name resolution, or build or import the image").WithCause(err)
	}
}

// pullProblem tells why an image that the registry has could not be pulled.
func (e *Engine) pullProblem(ctx context.Context, name string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("pull image %s: %w: %w", name, context.Cause(ctx), err)
	}
	_, network := errors.AsType[net.Error](err)
	_, answered := errors.AsType[remoteerrors.ErrUnexpectedStatus](err)
	switch {
	case network, answered:
		return registryProblem(ctx, name, err)
	case errdefs.IsNotFound(err): // the name is there, no manifest for us is
		return e.mismatch(name, err)
	default:
		return fmt.Errorf("pull image %s: %w", name, e.explain(ctx, err))
	}
}

func (e *Engine) mismatch(name string, err error) error {
	return problem.New(problem.ImagePlatform, "image %s is not for %s", name, platforms.DefaultString()).WithField("spec.image").
		WithHint("use an image for this platform").WithCause(err)
}

// pulling knows what a pull is about to fetch.
type pulling struct {
	engine *Engine
	mu     sync.Mutex
	sizes  map[string]ocispec.Descriptor // by the key of its ingest
}

// note wraps the handler that walks the image.
func (p *pulling) note(next images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := next.Handle(ctx, desc)
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, d := range append(children, desc) {
			p.sizes[remotes.MakeRefKey(ctx, d)] = d
		}
		return children, err
	})
}

// report tells progress at an interval until it is stopped.
func (p *pulling) report(ctx context.Context, progress func(operation.Progress)) (stop func()) {
	if progress == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var working sync.WaitGroup
	working.Go(func() {
		tick := time.NewTicker(progressInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.now(ctx, progress)
			case <-ctx.Done():
				return
			}
		}
	})
	return func() { cancel(); working.Wait() }
}

// now tells how many bytes are here.
func (p *pulling) now(ctx context.Context, progress func(operation.Progress)) {
	if progress == nil {
		return
	}
	store := p.engine.client.ContentStore()
	statuses, err := store.ListStatuses(ctx)
	if err != nil {
		return // the pull itself will say so
	}
	active := make(map[string]content.Status, len(statuses))
	for _, status := range statuses {
		active[status.Ref] = status
	}
	p.mu.Lock()
	sizes := maps.Clone(p.sizes)
	p.mu.Unlock()
	at := operation.Progress{Step: "pull"}
	for key, desc := range sizes {
		at.Total += desc.Size
		if status, found := active[key]; found {
			at.Done += status.Offset
		} else if _, err := store.Info(ctx, desc.Digest); err == nil {
			at.Done += desc.Size
		}
	}
	if ctx.Err() == nil {
		progress(at)
	}
}
