// Package buildkit drives a BuildKit daemon whose worker is the node's
// containerd, so that what it builds lies in the image store at once. It is
// the sole importer of BuildKit's client.
package buildkit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/util/entitlements"
	"github.com/tonistiigi/fsutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/remotegpu/remotegpu/build"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// Config says where BuildKit is. All fields but Log are needed.
type Config struct {
	// Address is the daemon's, "unix:///run/remotegpu/buildkitd.sock".
	Address string
	// Log gets warnings of the Dockerfile frontend; nil drops them.
	Log *slog.Logger
}

// Builder implements build.Backend.
type Builder struct {
	cfg Config
}

var _ build.Backend = (*Builder)(nil)

// reach bounds how long the daemon may take to say that it is there.
const reach = 10 * time.Second

// New returns a Builder. It does not connect.
func New(cfg Config) *Builder {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Builder{cfg: cfg}
}

// Build builds job's directory and leaves the image, unpacked, in the store.
// It returns the image's digest. BUILDKIT_UNAVAILABLE, BUILD_FAILED.
func (b *Builder) Build(ctx context.Context, job build.Job, progress func(operation.Progress)) (digest string, err error) {
	c, err := client.New(ctx, b.cfg.Address)
	if err != nil {
		return "", b.unavailable(err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := b.ping(ctx, c); err != nil {
		return "", err
	}
	source := newContext(job.Source)
	opts := client.SolveOpt{
		Frontend: "dockerfile.v0",
		FrontendAttrs: map[string]string{
			"filename":           "Dockerfile",
			"image-resolve-mode": "local",
		},
		LocalMounts: map[string]fsutil.FS{"context": source, "dockerfile": source},
		Session:     []session.Attachable{secretsprovider.FromMap(maps.Clone(job.Secrets))},
		// zstd at its fastest: gzip takes longer than everything else together.
		Exports: []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{
			"name": job.Name, "unpack": "true", "oci-mediatypes": "true",
			"compression": "zstd", "compression-level": "1",
		}}},
	}
	for name, value := range job.Args {
		opts.FrontendAttrs["build-arg:"+name] = value
	}
	if job.NoCache {
		opts.FrontendAttrs["no-cache"] = ""
	}
	if job.HostNetwork {
		opts.FrontendAttrs["force-network-mode"] = "host"
		opts.AllowedEntitlements = []string{entitlements.EntitlementNetworkHost.String()}
	}
	statuses := make(chan *client.SolveStatus)
	done := make(chan struct{})
	tracker := newTracker(progress)
	go func() { // ends when Solve closes statuses, which it does on every way out
		defer close(done)
		for s := range statuses {
			for _, warning := range s.Warnings {
				b.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "image source has a flaw",
					slog.String("image", job.Tag), slog.String("flaw", string(warning.Short)))
			}
			tracker.observe(s)
		}
	}()
	response, err := c.Solve(ctx, nil, opts, statuses)
	<-done
	if err != nil {
		return "", b.failure(ctx, job.Tag, err, tracker.last())
	}
	return response.ExporterResponse["containerimage.digest"], nil
}

// ping tells a daemon that is absent from a build that fails.
func (b *Builder) ping(ctx context.Context, c *client.Client) error {
	short, cancel := context.WithTimeout(ctx, reach)
	defer cancel()
	workers, err := c.ListWorkers(short)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("reach buildkit: %w", context.Cause(ctx))
	case err != nil:
		return b.unavailable(err)
	case len(workers) == 0:
		return b.unavailable(errors.New("it has no worker"))
	}
	return nil
}

func (b *Builder) unavailable(err error) error {
	return problem.New(problem.BuildkitUnavailable, "BuildKit does not answer at %s", b.cfg.Address).
		WithHint(`start buildkitd ("make up" does), or correct its address in the node's configuration`).WithCause(err)
}

func (b *Builder) failure(ctx context.Context, tag string, err error, log []string) error {
	if ctx.Err() != nil {
		return fmt.Errorf("build %s: %w", tag, context.Cause(ctx))
	}
	if status.Code(err) == codes.Unavailable {
		return b.unavailable(err)
	}
	p := problem.New(problem.BuildFailed, "building %s stopped", tag).WithCause(err)
	if len(log) > 0 {
		p.Message += "; it said last:\n" + strings.Join(log, "\n")
	}
	return p.WithHint("the operation's log has what the build said; a package mirror that did not answer is worth a second try")
}
