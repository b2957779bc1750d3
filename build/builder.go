// Package build makes the images whose sources the node carries: it chooses
// the base, bootstraps one from the distribution's package mirror where no
// registry answers, and has a backend (build/buildkit) build on it.
package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/images"
	"github.com/remotegpu/remotegpu/internal/keylock"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// Backend builds one directory; build/buildkit implements it.
type Backend interface {
	// Build leaves the image, unpacked, as job.Name in the node's store and
	// returns its digest. BUILDKIT_UNAVAILABLE, BUILD_FAILED.
	Build(ctx context.Context, job Job, progress func(operation.Progress)) (digest string, err error)
}

// Job is one build.
type Job struct {
	Source      fs.FS             // the build context, with a Dockerfile
	Tag         string            // full reference that the result is for
	Name        string            // full reference that it is left as
	Args        map[string]string // build arguments
	Secrets     map[string][]byte // by id, for RUN --mount=type=secret
	NoCache     bool
	HostNetwork bool // RUN steps share the host's network
}

// Images is what a Builder needs of the image store.
type Images interface {
	// Image tells about a local image, NotFound.
	Image(ctx context.Context, ref string) (runtime.Image, error)
	// Resolve asks the registry whether ref exists, without pulling it.
	Resolve(ctx context.Context, ref string) error
	// Import reads an OCI image layout as a tar archive that holds one image,
	// stores its content and makes name refer to it, replacing what name
	// referred to before. It need not unpack.
	Import(ctx context.Context, archive io.Reader, name string) (runtime.Image, error)
	// Tag makes tag refer to the image ref, and leaves its pin.
	Tag(ctx context.Context, ref, tag string) (runtime.Image, error)
}

// Config is what a Builder needs.
type Config struct {
	Backend Backend
	Images  Images
	// CacheDir is where a base is bootstrapped, as many bytes as its archive
	// takes (about 150 MiB). It is made when absent.
	CacheDir string
	// NetNS is the path of the network namespace in which bases are
	// bootstrapped, where the package mirror is reached; "" is the process's.
	NetNS string
	// Root is the directory that the host's /etc is read from; "" is "/".
	Root string
	Log  *slog.Logger
}

// Builder implements runtime.Builder.
type Builder struct {
	cfg   Config
	bases keylock.Map[string] // one bootstrap per base at a time
}

var _ runtime.Builder = (*Builder)(nil)

// resolveTimeout bounds the question whether the registry has the base: a
// build must not hang on a host without a way out.
const resolveTimeout = 5 * time.Second

// New returns a Builder.
func New(cfg Config) *Builder {
	if cfg.Root == "" {
		cfg.Root = "/"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Builder{cfg: cfg}
}

// Sources names what can be built.
func (b *Builder) Sources() []string { return images.Sources() }

// Build builds one source. Errors as runtime.Builder.
func (b *Builder) Build(ctx context.Context, req runtime.BuildRequest, progress func(operation.Progress)) (runtime.BuildResult, error) {
	if progress == nil {
		progress = func(operation.Progress) {}
	}
	source, err := images.Source(req.Source)
	if errdefs.IsNotFound(err) {
		return runtime.BuildResult{}, problem.New(problem.ImageSourceNotFound, "there is no image source %q", req.Source).
			WithField("source").WithHint("the node has: %v", images.Sources()).WithCause(err)
	} else if err != nil {
		return runtime.BuildResult{}, err
	}
	host, err := readHost(ctx, b.cfg.Root)
	if err != nil {
		return runtime.BuildResult{}, fmt.Errorf("build %s: %w", req.Tag, err)
	}
	base, err := b.chooseBase(ctx, req.Base, host, progress)
	if err != nil {
		return runtime.BuildResult{}, err
	}
	b.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "building image", slog.String("image", req.Tag),
		slog.String("source", req.Source), slog.String("base", base.ref), slog.String("base_reason", base.reason))
	progress(operation.Progress{Step: "building on " + base.ref + " (" + base.reason + ")"})
	name := runtime.BuildName(req.Tag)
	digest, err := b.cfg.Backend.Build(ctx, Job{
		Source:      source,
		Tag:         req.Tag,
		Name:        name,
		Args:        map[string]string{"BASE": base.ref},
		Secrets:     host.secrets(),
		NoCache:     req.NoCache,
		HostNetwork: true,
	}, progress)
	if err != nil {
		return runtime.BuildResult{}, err
	}
	// A backend names an image before it has unpacked it, and takes the pin from
	// the name.
	if _, err := b.cfg.Images.Tag(ctx, name, req.Tag); err != nil {
		return runtime.BuildResult{}, fmt.Errorf("name image %s: %w", req.Tag, err)
	}
	return runtime.BuildResult{Image: req.Tag, Digest: digest, Base: base.ref, BaseReason: base.reason}, nil
}

// base is an image to build on and why it was chosen.
type base struct {
	ref    string
	reason string
}

// chooseBase takes what was asked for; else the source's default where it is
// at hand; else what the package mirror gives. It asks the registry once.
func (b *Builder) chooseBase(ctx context.Context, asked string, host *hostAPT, progress func(operation.Progress)) (base, error) {
	if asked != "" {
		return base{ref: asked, reason: "asked for"}, nil
	}
	_, err := b.cfg.Images.Image(ctx, images.DefaultBase)
	switch {
	case err == nil:
		return base{ref: images.DefaultBase, reason: "the default, present"}, nil
	case !errdefs.IsNotFound(err):
		return base{}, fmt.Errorf("look for base %s: %w", images.DefaultBase, err)
	}
	progress(operation.Progress{Step: "asking the registry for " + images.DefaultBase})
	why, err := b.askRegistry(ctx)
	if err != nil {
		return base{}, err
	}
	if why == "" {
		return base{ref: images.DefaultBase, reason: "the default, from its registry"}, nil
	}
	return b.bootstrapped(ctx, host, why, progress)
}

// askRegistry returns why the default base cannot be pulled, "" when it can.
func (b *Builder) askRegistry(ctx context.Context) (why string, err error) {
	short, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	err = b.cfg.Images.Resolve(short, images.DefaultBase)
	if ctx.Err() != nil {
		return "", fmt.Errorf("ask registry for %s: %w", images.DefaultBase, context.Cause(ctx))
	}
	if err == nil {
		return "", nil
	}
	b.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "registry does not give the default base",
		slog.String("base", images.DefaultBase), slog.Any("error", err))
	switch {
	case errdefs.IsNotFound(err):
		return "registry does not have " + images.DefaultBase, nil
	case errdefs.IsPermissionDenied(err), errdefs.IsUnauthorized(err):
		return "registry refuses", nil
	case errors.Is(err, context.DeadlineExceeded):
		return "registry does not answer", nil
	default:
		return "registry unreachable", nil
	}
}
