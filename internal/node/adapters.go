package node

import (
	"context"
	"net"
	"net/url"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/desktop"
	"github.com/remotegpu/remotegpu/internal/dockerconfig"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/rpc"
	"github.com/remotegpu/remotegpu/network/gateway"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/store"
)

// The types here give the parts the shape that internal/rpc asks for.

type operations struct {
	*operation.Queue
	store *store.Store
}

func (o operations) List(ctx context.Context, filter operation.Filter) ([]*operation.Operation, string, error) {
	return o.store.Operations(ctx, filter)
}

func (o operations) Watch(ctx context.Context, id string, send func(*operation.Operation) error) error {
	for op, err := range o.Queue.Watch(ctx, id) {
		if err != nil {
			return err
		}
		if err := send(op); err != nil {
			return err
		}
	}
	return nil
}

type ports struct {
	*port.Pool
	store  *store.Store
	hostID string
}

func (p ports) Mappings(ctx context.Context, filter port.Filter) ([]port.Mapping, string, error) {
	return p.store.PortMappings(ctx, p.hostID, filter)
}

// SetRange also answers how full the range is then.
func (p ports) SetRange(ctx context.Context, service port.Service, first, last uint16, ifRevision int64) (port.Usage, error) {
	if _, err := p.Pool.SetRange(ctx, service, first, last, ifRevision); err != nil {
		return port.Usage{}, err
	}
	usages, err := p.Usage(ctx)
	if err != nil {
		return port.Usage{}, err
	}
	for _, usage := range usages {
		if usage.Service == service {
			return usage, nil
		}
	}
	return port.Usage{}, errdefs.ErrNotFound
}

type desktops struct{ *desktop.Desktops }

func (d desktops) Readiness(ctx context.Context, envID string) (rpc.Readiness, error) {
	readiness, err := d.Desktops.Readiness(ctx, envID)
	return rpc.Readiness{
		Connectable: readiness.Level >= desktop.Connectable, Drawn: readiness.Level >= desktop.Drawn,
		Width: readiness.Width, Height: readiness.Height, Colours: readiness.Colours, Detail: readiness.Detail,
	}, err
}

func (d desktops) Screenshot(ctx context.Context, envID string) (png []byte, width, height int, err error) {
	return d.ScreenshotPNG(ctx, envID)
}

// credentials are those of a docker configuration. nil: there are none.
func credentials(path string) func(ctx context.Context, host string) (username, secret string, err error) {
	if path == "" {
		return nil
	}
	return dockerconfig.Config{Path: path}.Credentials
}

// sessions is the gateway, which may be off.
type sessions struct {
	gateway *gateway.Gateway
	node    string
}

func (s sessions) URL(envID string) string {
	if s.gateway == nil {
		return ""
	}
	return s.gateway.URL(envID)
}

func (s sessions) Session(envID string, viewOnly bool, ttl time.Duration) (pageURL, token string, expires time.Time, err error) {
	if s.gateway == nil {
		return "", "", time.Time{}, problem.New(problem.DesktopUnavailable, "this node's gateway is off").
			WithHint("set gateway.listen in the node's configuration")
	}
	access := gateway.Control
	if viewOnly {
		access = gateway.View
	}
	pageURL, token, expires = s.gateway.Session(envID, access, ttl)
	return pageURL, token, expires, nil
}

func (s sessions) Host() string {
	if s.gateway == nil {
		return s.node
	}
	parsed, err := url.Parse(s.gateway.URL(""))
	if err != nil {
		return s.node
	}
	if host, _, err := net.SplitHostPort(parsed.Host); err == nil {
		return host
	}
	return parsed.Hostname()
}
