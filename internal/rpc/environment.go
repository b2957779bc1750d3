package rpc

import (
	"context"
	"syscall"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// await waits for an operation as long as the caller asked for. A failure
// within that time is the call's failure. It returns the operation and the
// environment as they are then; the environment is nil when it has gone.
func (s *services) await(ctx context.Context, env *runtime.Environment, op *operation.Operation, wait *durationpb.Duration) (*runtime.Environment, *operation.Operation, error) {
	if op == nil || wait.AsDuration() <= 0 {
		return env, op, nil
	}
	waiting, cancel := context.WithTimeout(ctx, wait.AsDuration())
	defer cancel()
	done, err := s.cfg.Operations.Wait(waiting, op.ID)
	switch {
	case err != nil && ctx.Err() == nil && waiting.Err() != nil:
		done, err = s.cfg.Operations.Get(ctx, op.ID) // the wait is over, the work is not
		if err != nil {
			return nil, nil, err
		}
	case err != nil:
		return nil, nil, err
	}
	if err := failure(done); err != nil {
		return nil, nil, err
	}
	if env == nil {
		return nil, done, nil
	}
	env, err = s.cfg.Manager.Get(ctx, env.Project, env.ID)
	if problem.Of(err) != nil && problem.Of(err).Reason == problem.EnvNotFound {
		return nil, done, nil
	}
	return env, done, err
}

// failure is the error of an operation that failed or was cancelled.
func failure(op *operation.Operation) error {
	if op.State != operation.Failed && op.State != operation.Cancelled {
		return nil
	}
	if op.Problem == nil {
		return problem.New(problem.OperationCancelled, "operation %s was cancelled", op.ID)
	}
	return &problem.Problem{
		Reason: problem.Reason(op.Problem.Reason), Message: op.Problem.Message, Field: op.Problem.Field, Hint: op.Problem.Hint,
	}
}

func (s *environmentService) base() *services { return (*services)(s) }

// CreateEnvironment implements the RPC.
func (s *environmentService) CreateEnvironment(ctx context.Context, req *remotegpuv1.CreateEnvironmentRequest) (*remotegpuv1.CreateEnvironmentResponse, error) {
	env, op, err := s.cfg.Manager.Create(ctx, runtime.CreateRequest{
		RequestID: req.GetRequestId(), Name: req.GetName(), Project: req.GetProject(), Labels: req.GetLabels(), Spec: fromSpec(req.GetSpec()),
	})
	if err != nil {
		return nil, err
	}
	env, op, err = s.base().await(ctx, env, op, req.GetWait())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.CreateEnvironmentResponse{Environment: toEnvironment(env), Operation: s.base().toOperation(op)}, nil
}

// GetEnvironment implements the RPC.
func (s *environmentService) GetEnvironment(ctx context.Context, req *remotegpuv1.GetEnvironmentRequest) (*remotegpuv1.GetEnvironmentResponse, error) {
	env, err := s.cfg.Manager.Get(ctx, req.GetProject(), req.GetEnvironment())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.GetEnvironmentResponse{Environment: toEnvironment(env)}, nil
}

// ListEnvironments implements the RPC.
func (s *environmentService) ListEnvironments(ctx context.Context, req *remotegpuv1.ListEnvironmentsRequest) (*remotegpuv1.ListEnvironmentsResponse, error) {
	selector, err := runtime.ParseSelector(req.GetLabelSelector(), "label_selector")
	if err != nil {
		return nil, err
	}
	filter := runtime.Filter{Project: req.GetProject(), Labels: selector, Limit: pageSize(req.GetPageSize()), After: req.GetPageToken()}
	for _, state := range req.GetStates() {
		filter.States = append(filter.States, environmentStates.toDomain[state])
	}
	envs, next, err := s.cfg.Manager.List(ctx, filter)
	if err != nil {
		return nil, err
	}
	res := &remotegpuv1.ListEnvironmentsResponse{NextPageToken: next}
	for _, env := range envs {
		res.Environments = append(res.Environments, toEnvironment(env))
	}
	return res, nil
}

// StartEnvironment implements the RPC.
func (s *environmentService) StartEnvironment(ctx context.Context, req *remotegpuv1.StartEnvironmentRequest) (*remotegpuv1.StartEnvironmentResponse, error) {
	env, op, err := s.act(ctx, s.cfg.Manager.Start, req, nil, false)
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.StartEnvironmentResponse{Environment: toEnvironment(env), Operation: s.base().toOperation(op)}, nil
}

// StopEnvironment implements the RPC.
func (s *environmentService) StopEnvironment(ctx context.Context, req *remotegpuv1.StopEnvironmentRequest) (*remotegpuv1.StopEnvironmentResponse, error) {
	env, op, err := s.act(ctx, s.cfg.Manager.Stop, req, req.GetTimeout(), false)
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.StopEnvironmentResponse{Environment: toEnvironment(env), Operation: s.base().toOperation(op)}, nil
}

// RestartEnvironment implements the RPC.
func (s *environmentService) RestartEnvironment(ctx context.Context, req *remotegpuv1.RestartEnvironmentRequest) (*remotegpuv1.RestartEnvironmentResponse, error) {
	env, op, err := s.act(ctx, s.cfg.Manager.Restart, req, req.GetTimeout(), false)
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.RestartEnvironmentResponse{Environment: toEnvironment(env), Operation: s.base().toOperation(op)}, nil
}

// DeleteEnvironment implements the RPC.
func (s *environmentService) DeleteEnvironment(ctx context.Context, req *remotegpuv1.DeleteEnvironmentRequest) (*remotegpuv1.DeleteEnvironmentResponse, error) {
	_, op, err := s.act(ctx, s.cfg.Manager.Delete, req, req.GetTimeout(), req.GetForce())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.DeleteEnvironmentResponse{Operation: s.base().toOperation(op)}, nil
}

// actionMessage is what the requests of all life cycle RPCs have.
type actionMessage interface {
	GetRequestId() string
	GetEnvironment() string
	GetProject() string
	GetEtag() string
	GetWait() *durationpb.Duration
}

type action func(context.Context, runtime.ActionRequest) (*runtime.Environment, *operation.Operation, error)

func (s *environmentService) act(ctx context.Context, do action, message actionMessage, timeout *durationpb.Duration, force bool) (*runtime.Environment, *operation.Operation, error) {
	req := runtime.ActionRequest{
		RequestID: message.GetRequestId(), Project: message.GetProject(), Environment: message.GetEnvironment(), Etag: message.GetEtag(), Force: force,
	}
	if timeout != nil {
		duration := timeout.AsDuration()
		req.Timeout = &duration
	}
	env, op, err := do(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	return s.base().await(ctx, env, op, message.GetWait())
}

// WatchEnvironments implements the RPC.
func (s *environmentService) WatchEnvironments(ctx context.Context, req *remotegpuv1.WatchEnvironmentsRequest, stream remotegpuv1connect.EnvironmentServiceWatchEnvironmentsServerStream) error {
	selector, err := runtime.ParseSelector(req.GetLabelSelector(), "label_selector")
	if err != nil {
		return err
	}
	return s.cfg.Manager.Watch(ctx, runtime.Filter{Project: req.GetProject(), Labels: selector}, req.GetResumeAfter(), func(change runtime.Change) error {
		return stream.Send(&remotegpuv1.WatchEnvironmentsResponse{
			Environment: toEnvironment(change.Environment), Synced: change.Synced, ResumeToken: change.Token,
			OutOfSelection: change.Left,
		})
	})
}

// RunCommand implements the RPC.
func (s *environmentService) RunCommand(ctx context.Context, req *remotegpuv1.RunCommandRequest) (*remotegpuv1.RunCommandResponse, error) {
	var timeout time.Duration
	if req.GetTimeout() != nil {
		timeout = req.GetTimeout().AsDuration()
	}
	result, err := s.cfg.Manager.RunCommand(ctx, runtime.CommandRequest{
		Project: req.GetProject(), Environment: req.GetEnvironment(), Argv: req.GetArgv(), Stdin: req.GetStdin(), Env: req.GetEnv(),
		Workdir: req.GetWorkdir(), User: req.GetUser(), Timeout: timeout,
	})
	response := &remotegpuv1.RunCommandResponse{
		ExitCode: int32(result.ExitCode), Stdout: result.Stdout, Stderr: result.Stderr,
		StdoutTruncated: result.StdoutTruncated, StderrTruncated: result.StderrTruncated,
	}
	if p := problem.Of(err); p != nil && p.Reason == problem.CommandTimeout {
		return nil, &unfinishedError{error: err, response: untilKilled(ctx, response)}
	}
	if err != nil {
		return nil, err
	}
	return response, nil
}

// trailerOutput is how much of each output a detail has in gRPC, whose errors
// travel in trailers: its libraries refuse more than 8 KiB of these.
const trailerOutput = 1 << 10

// untilKilled is what is told of a command that was killed at its timeout.
func untilKilled(ctx context.Context, response *remotegpuv1.RunCommandResponse) *remotegpuv1.RunCommandResponse {
	response.ExitCode = 128 + int32(syscall.SIGKILL)
	if info, ok := connect.CallInfoForServerContext(ctx); ok && info.Protocol == connect.ProtocolNameConnect {
		return response
	}
	if len(response.Stdout) > trailerOutput {
		response.Stdout, response.StdoutTruncated = response.Stdout[:trailerOutput], true
	}
	if len(response.Stderr) > trailerOutput {
		response.Stderr, response.StderrTruncated = response.Stderr[:trailerOutput], true
	}
	return response
}

// unfinishedError is the failure of a command with what it wrote before.
type unfinishedError struct {
	error
	response *remotegpuv1.RunCommandResponse
}

// Unwrap returns the failure.
func (e *unfinishedError) Unwrap() error { return e.error }
