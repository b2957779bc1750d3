package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/imageref"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// How long a registry may take for the first byte of its answer. When it takes
// a layer, it reads the whole of it again first.
const (
	answerTimeout = 30 * time.Second
	acceptTimeout = 10 * time.Minute
)

// registry is how the registry of one reference is spoken to.
type registry struct {
	engine  *Engine
	host    string // as the reference has it
	login   *runtime.Login
	patient bool // it may take acceptTimeout
	tracker docker.StatusTracker
}

// resolver speaks plain HTTP to registries on loopback only, as Docker does,
// unless HostsDir says more.
func (r registry) resolver(ctx context.Context) remotes.Resolver {
	timeout := answerTimeout
	if r.patient {
		timeout = acceptTimeout
	}
	options := config.HostOptions{
		UpdateClient: func(c *http.Client) error {
			if transport, ok := c.Transport.(*http.Transport); ok { // else it was here before
				transport.ResponseHeaderTimeout = timeout
				c.Transport = impatient{transport, r.engine.cfg.RegistryIdle}
			}
			return nil
		},
		Credentials: func(host string) (string, string, error) { return r.credentials(ctx, host) },
	}
	if dir := r.engine.cfg.HostsDir; dir != "" {
		options.HostDir = config.HostDirFromRoot(dir)
	}
	configured := config.ConfigureHosts(ctx, options)
	hosts := func(host string) ([]docker.RegistryHost, error) {
		all, err := configured(host)
		for i := range all {
			if all[i].Authorizer != nil {
				all[i].Authorizer = &orderly{next: all[i].Authorizer}
			}
		}
		return all, err
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: hosts, Tracker: r.tracker})
}

// orderly has one request at a time authorized. The authorizer of containerd's
// client looks when a token expires while another request still fetches it.
type orderly struct {
	mu   sync.Mutex
	next docker.Authorizer
}

// Authorize implements docker.Authorizer.
func (o *orderly) Authorize(ctx context.Context, request *http.Request) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.next.Authorize(ctx, request)
}

// AddResponses implements docker.Authorizer.
func (o *orderly) AddResponses(ctx context.Context, responses []*http.Response) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.next.AddResponses(ctx, responses)
}

// credentials are those of the call for the registry it names, not for a
// mirror of it, and the node's own otherwise.
func (r registry) credentials(ctx context.Context, host string) (username, secret string, err error) {
	if r.login != nil {
		named := r.host
		if named == "docker.io" {
			named = "registry-1.docker.io" // containerd's name for where it is
		}
		if host == named {
			return r.login.Username, r.login.Password, nil
		}
	}
	if r.engine.cfg.Credentials == nil {
		return "", "", nil
	}
	return r.engine.cfg.Credentials(ctx, host)
}

// registryOf is the registry that a full reference names.
func (e *Engine) registryOf(name string, login *runtime.Login) (registry, error) {
	host, err := imageref.Registry(name)
	return registry{engine: e, host: host, login: login}, err
}

// Resolve asks the registry whether ref exists.
func (e *Engine) Resolve(ctx context.Context, ref string) error {
	name, err := imageref.Normalize(ref)
	if err != nil {
		return err
	}
	r, err := e.registryOf(name, nil)
	if err != nil {
		return err
	}
	return r.resolve(ctx, r.resolver(ctx), name)
}

func (r registry) resolve(ctx context.Context, resolver remotes.Resolver, name string) error {
	if _, _, err := resolver.Resolve(ctx, name); err != nil {
		return r.problem(ctx, "pull", name, err)
	}
	return nil
}

// problem tells why a registry does not give or take an image.
func (r registry) problem(ctx context.Context, verb, name string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s image %s: %w: %w", verb, name, context.Cause(ctx), err)
	}
	if p, ok := errors.AsType[*problem.Problem](err); ok { // of the credentials
		return p
	}
	unexpected, answered := errors.AsType[remoteerrors.ErrUnexpectedStatus](err)
	denied := answered && (unexpected.StatusCode == http.StatusUnauthorized || unexpected.StatusCode == http.StatusForbidden)
	switch {
	case denied, errors.Is(err, docker.ErrInvalidAuthorization), errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		message := "registry %s does not give image %s to us"
		if verb == "push" {
			message = "registry %s does not take image %s from us"
		}
		hint := "check that the name is right, and give a user name and password that may " + verb + " it, or keep them in the node's docker configuration"
		if r.login != nil {
			hint = "check that name, user name and password are right, and that the user may " + verb + " it"
		}
		p := problem.New(problem.RegistryDenied, message, r.host, name).WithField("spec.image").WithHint("%s", hint).WithTold(err)
		if answered {
			p.Message += fmt.Sprintf(" (%d %s)", unexpected.StatusCode, http.StatusText(unexpected.StatusCode))
		}
		return p
	case errdefs.IsNotFound(err) && verb == "pull":
		return problem.New(problem.ImageNotFound, "registry %s has no image %s", r.host, name).WithField("spec.image").
			WithHint("check name and tag").WithCause(err)
	default:
		why, hint := unreachable(r.host, err)
		message := "registry %s cannot be asked for image %s: %s"
		if verb == "push" {
			message = "registry %s cannot be given image %s: %s"
		}
		return problem.New(problem.RegistryUnavailable, message, r.host, name, why).WithField("spec.image").WithHint("%s", hint).WithTold(err)
	}
}

// atFault says whether an error is of the registry or of the way there, and
// not of containerd.
func atFault(err error) bool {
	_, network := errors.AsType[net.Error](err)
	_, answered := errors.AsType[remoteerrors.ErrUnexpectedStatus](err)
	_, told := errors.AsType[*problem.Problem](err)
	_, broken := errors.AsType[*brokenOff](err)
	return network || answered || told || broken || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, docker.ErrInvalidAuthorization)
}
