package rpc

import (
	"context"
	"strings"
	"time"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
)

// DefaultSessionTTL is how long a session's token opens connections where the
// request does not say.
const DefaultSessionTTL = 10 * time.Minute

// environment returns an environment that has a desktop.
func (s *desktopService) environment(ctx context.Context, project, name string) (*runtime.Environment, error) {
	env, err := s.cfg.Manager.Get(ctx, project, name)
	if err != nil {
		return nil, err
	}
	if env.Effective().Desktop == nil {
		return nil, problem.New(problem.DesktopAbsent, "environment %q has no desktop", env.Name).WithField("environment").
			WithHint("create one with a desktop: remotegpu env create --desktop --image remotegpu/desktop-base NAME")
	}
	return env, nil
}

func (s *desktopService) running(ctx context.Context, project, name string) (*runtime.Environment, error) {
	env, err := s.environment(ctx, project, name)
	if err != nil {
		return nil, err
	}
	if env.State != runtime.Running {
		return nil, runtime.NotRunning(env)
	}
	return env, nil
}

// GetDesktop implements the RPC.
func (s *desktopService) GetDesktop(ctx context.Context, req *remotegpuv1.GetDesktopRequest) (*remotegpuv1.GetDesktopResponse, error) {
	env, err := s.environment(ctx, req.GetProject(), req.GetEnvironment())
	if err != nil {
		return nil, err
	}
	res := &remotegpuv1.GetDesktopResponse{Environment: env.ID, Url: s.cfg.Sessions.URL(env.ID)}
	for _, access := range env.Access {
		switch {
		case access.Service == port.VNC:
			res.VncAddress = strings.TrimPrefix(access.URL, "vnc://")
		case access.Service == port.NoVNC && access.URL != res.GetUrl():
			res.NovncUrl = access.URL
		}
	}
	if env.State != runtime.Running {
		res.Readiness, res.Detail = remotegpuv1.DesktopReadiness_DESKTOP_READINESS_STOPPED, "the environment "+env.Standing()
		return res, nil
	}
	if wait := req.GetWait().AsDuration(); wait > 0 {
		waiting, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		if err := s.cfg.Desktops.AwaitDrawn(waiting, env.ID); err != nil && ctx.Err() != nil {
			return nil, err // the caller has gone; otherwise the answer says how far it is
		}
	}
	readiness, err := s.cfg.Desktops.Readiness(ctx, env.ID)
	if err != nil {
		return nil, err
	}
	res.Width, res.Height, res.Colours, res.Detail = int32(readiness.Width), int32(readiness.Height), int32(readiness.Colours), readiness.Detail
	switch {
	case readiness.Drawn:
		res.Readiness = remotegpuv1.DesktopReadiness_DESKTOP_READINESS_DRAWN
	case readiness.Connectable:
		res.Readiness = remotegpuv1.DesktopReadiness_DESKTOP_READINESS_CONNECTABLE
	default:
		res.Readiness = remotegpuv1.DesktopReadiness_DESKTOP_READINESS_STARTING
	}
	return res, nil
}

// CreateDesktopSession implements the RPC.
func (s *desktopService) CreateDesktopSession(ctx context.Context, req *remotegpuv1.CreateDesktopSessionRequest) (*remotegpuv1.CreateDesktopSessionResponse, error) {
	env, err := s.running(ctx, req.GetProject(), req.GetEnvironment())
	if err != nil {
		return nil, err
	}
	ttl := DefaultSessionTTL
	if req.GetTtl() != nil {
		ttl = req.GetTtl().AsDuration()
	}
	viewOnly := req.GetAccess() == remotegpuv1.DesktopAccess_DESKTOP_ACCESS_VIEW
	url, token, expires, err := s.cfg.Sessions.Session(env.ID, viewOnly, ttl)
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.CreateDesktopSessionResponse{Url: url, Token: token, ExpiresAt: timestamp(expires)}, nil
}

// GetScreenshot implements the RPC.
func (s *desktopService) GetScreenshot(ctx context.Context, req *remotegpuv1.GetScreenshotRequest) (*remotegpuv1.GetScreenshotResponse, error) {
	env, err := s.running(ctx, req.GetProject(), req.GetEnvironment())
	if err != nil {
		return nil, err
	}
	png, width, height, err := s.cfg.Desktops.Screenshot(ctx, env.ID)
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.GetScreenshotResponse{Png: png, Width: int32(width), Height: int32(height)}, nil
}
