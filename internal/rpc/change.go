package rpc

import (
	"context"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// What is done to an environment that exists, besides leading it through its
// life.

// PauseEnvironment implements the RPC.
func (s *environmentService) PauseEnvironment(ctx context.Context, req *remotegpuv1.PauseEnvironmentRequest) (*remotegpuv1.PauseEnvironmentResponse, error) {
	env, op, err := s.act(ctx, s.cfg.Manager.Pause, req, nil, false)
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.PauseEnvironmentResponse{Environment: toEnvironment(env), Operation: s.base().toOperation(op)}, nil
}

// ResumeEnvironment implements the RPC.
func (s *environmentService) ResumeEnvironment(ctx context.Context, req *remotegpuv1.ResumeEnvironmentRequest) (*remotegpuv1.ResumeEnvironmentResponse, error) {
	env, op, err := s.act(ctx, s.cfg.Manager.Resume, req, nil, false)
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.ResumeEnvironmentResponse{Environment: toEnvironment(env), Operation: s.base().toOperation(op)}, nil
}
