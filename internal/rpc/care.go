package rpc

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/runtime"
)

// What keeps environments alive: restart policies, health checks, history.

var (
	healths = newEnum(map[remotegpuv1.Health]runtime.Health{
		remotegpuv1.Health_HEALTH_STARTING:  runtime.HealthStarting,
		remotegpuv1.Health_HEALTH_HEALTHY:   runtime.Healthy,
		remotegpuv1.Health_HEALTH_UNHEALTHY: runtime.Unhealthy,
	})
	restartModes = newEnum(map[remotegpuv1.RestartMode]runtime.RestartMode{
		remotegpuv1.RestartMode_RESTART_MODE_NO:             runtime.RestartNo,
		remotegpuv1.RestartMode_RESTART_MODE_ON_FAILURE:     runtime.RestartOnFailure,
		remotegpuv1.RestartMode_RESTART_MODE_ALWAYS:         runtime.RestartAlways,
		remotegpuv1.RestartMode_RESTART_MODE_UNLESS_STOPPED: runtime.RestartUnlessStopped,
	})
)

func toExit(exit *runtime.Exit) *remotegpuv1.ExitStatus {
	if exit == nil {
		return nil
	}
	return &remotegpuv1.ExitStatus{Code: int32(exit.Code), Signal: int32(exit.Signal), OomKilled: exit.OOMKilled, At: timestamp(exit.At)}
}

func toRestart(p *runtime.RestartPolicy) *remotegpuv1.RestartPolicy {
	if p == nil {
		return nil
	}
	return &remotegpuv1.RestartPolicy{Mode: restartModes.toProto[p.Mode], MaxRetries: int32(p.MaxRetries), OnUnhealthy: p.OnUnhealthy}
}

func fromRestart(p *remotegpuv1.RestartPolicy) *runtime.RestartPolicy {
	if p == nil {
		return nil
	}
	return &runtime.RestartPolicy{
		Mode: restartModes.toDomain[p.GetMode()], MaxRetries: int(p.GetMaxRetries()), OnUnhealthy: p.GetOnUnhealthy(),
	}
}

func toHealthCheck(c *runtime.HealthCheck) *remotegpuv1.HealthCheck {
	if c == nil {
		return nil
	}
	message := &remotegpuv1.HealthCheck{
		Interval: durationpb.New(c.Interval), Timeout: durationpb.New(c.Timeout), Retries: int32(c.Retries), StartPeriod: durationpb.New(c.StartPeriod),
	}
	switch {
	case len(c.Command) > 0:
		message.Check = &remotegpuv1.HealthCheck_Command{Command: &remotegpuv1.HealthCommand{Argv: c.Command}}
	case c.TCPPort != 0:
		message.Check = &remotegpuv1.HealthCheck_Tcp{Tcp: &remotegpuv1.HealthTCP{Port: int32(c.TCPPort)}}
	case c.HTTPPort != 0:
		message.Check = &remotegpuv1.HealthCheck_Http{Http: &remotegpuv1.HealthHTTP{Port: int32(c.HTTPPort), Path: c.HTTPPath}}
	case c.Desktop:
		message.Check = &remotegpuv1.HealthCheck_Desktop{Desktop: &remotegpuv1.HealthDesktop{}}
	}
	return message
}

func fromHealthCheck(message *remotegpuv1.HealthCheck) *runtime.HealthCheck {
	if message == nil {
		return nil
	}
	duration := func(d *durationpb.Duration) time.Duration {
		if d == nil {
			return 0
		}
		return d.AsDuration()
	}
	return &runtime.HealthCheck{
		Command: message.GetCommand().GetArgv(), TCPPort: int(message.GetTcp().GetPort()),
		HTTPPort: int(message.GetHttp().GetPort()), HTTPPath: message.GetHttp().GetPath(), Desktop: message.GetDesktop() != nil,
		Interval: duration(message.GetInterval()), Timeout: duration(message.GetTimeout()), Retries: int(message.GetRetries()),
		StartPeriod: duration(message.GetStartPeriod()),
	}
}

// ListEnvironmentEvents implements the RPC.
func (s *environmentService) ListEnvironmentEvents(ctx context.Context, req *remotegpuv1.ListEnvironmentEventsRequest) (*remotegpuv1.ListEnvironmentEventsResponse, error) {
	entries, next, err := s.cfg.Manager.History(ctx, req.GetProject(), req.GetEnvironment(), pageSize(req.GetPageSize()), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	res := &remotegpuv1.ListEnvironmentEventsResponse{NextPageToken: next}
	for i := range entries {
		entry := &entries[i]
		res.Events = append(res.Events, &remotegpuv1.EnvironmentEvent{
			Time: timestamp(entry.Time), Kind: entry.Kind, Message: entry.Message, Exit: toExit(entry.Exit),
		})
	}
	return res, nil
}
