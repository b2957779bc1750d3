package node

import (
	"context"
	"time"

	"github.com/remotegpu/remotegpu/desktop"
	"github.com/remotegpu/remotegpu/internal/dockerconfig"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/rpc"
	"github.com/remotegpu/remotegpu/network/gateway"
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
type sessions struct{ gateway *gateway.Gateway }

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
