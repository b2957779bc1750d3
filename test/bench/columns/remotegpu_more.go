package columns

import (
	"context"
	"errors"
	"fmt"
	"io"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// List asks for one page.
func (r *remoteGPU) List(ctx context.Context, limit int) (int, error) {
	answer, err := r.environments.ListEnvironments(ctx, &remotegpuv1.ListEnvironmentsRequest{PageSize: int32(limit)})
	if err != nil {
		return 0, fmt.Errorf("list environments: %w", err)
	}
	return len(answer.GetEnvironments()), nil
}

// Restart starts an environment that has ended.
func (r *remoteGPU) Restart(ctx context.Context, instance *Instance) error {
	answer, err := r.environments.StartEnvironment(ctx, &remotegpuv1.StartEnvironmentRequest{Environment: instance.ID, Wait: wait})
	if err != nil {
		return fmt.Errorf("start environment: %w", err)
	}
	if state := answer.GetEnvironment().GetState(); state != remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_RUNNING {
		return fmt.Errorf("start environment: it is %s", state)
	}
	return nil
}

// Deaths watches environments.
func (r *remoteGPU) Deaths(ctx context.Context, ready func(), told func(string)) error {
	stream, err := r.environments.WatchEnvironments(ctx, &remotegpuv1.WatchEnvironmentsRequest{})
	if err != nil {
		return fmt.Errorf("watch environments: %w", err)
	}
	defer stream.Close()
	running := map[string]bool{}
	for {
		message, err := stream.Receive()
		if err != nil {
			return fmt.Errorf("watch environments: %w", err)
		}
		if message.GetSynced() {
			ready()
			continue
		}
		env := message.GetEnvironment()
		runs := env.GetState() == remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_RUNNING
		if running[env.GetId()] && !runs {
			told(env.GetId())
		}
		running[env.GetId()] = runs
	}
}

// Logs reads a log to its end.
func (r *remoteGPU) Logs(ctx context.Context, instance *Instance, tail int, each func([]byte)) error {
	request := &remotegpuv1.GetLogsRequest{Environment: instance.ID, Stream: remotegpuv1.LogStream_LOG_STREAM_STDOUT}
	if tail > 0 {
		last := int64(tail)
		request.Tail = &last
	}
	stream, err := r.environments.GetLogs(ctx, request)
	if err != nil {
		return fmt.Errorf("get logs: %w", err)
	}
	defer stream.Close()
	for {
		message, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("get logs: %w", err)
		}
		for _, line := range message.GetLines() {
			each(line.GetData())
		}
	}
}
