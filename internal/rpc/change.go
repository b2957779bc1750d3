package rpc

import (
	"context"
	"slices"

	"google.golang.org/protobuf/reflect/protoreflect"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/runtime"
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

// RenameEnvironment implements the RPC.
func (s *environmentService) RenameEnvironment(ctx context.Context, req *remotegpuv1.RenameEnvironmentRequest) (*remotegpuv1.RenameEnvironmentResponse, error) {
	env, err := s.cfg.Manager.Rename(ctx, runtime.RenameRequest{
		Project: req.GetProject(), Environment: req.GetEnvironment(), Etag: req.GetEtag(), Name: req.GetName(),
	})
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.RenameEnvironmentResponse{Environment: toEnvironment(env)}, nil
}

// UpdateEnvironment implements the RPC.
func (s *environmentService) UpdateEnvironment(ctx context.Context, req *remotegpuv1.UpdateEnvironmentRequest) (*remotegpuv1.UpdateEnvironmentResponse, error) {
	update := runtime.UpdateRequest{
		RequestID: req.GetRequestId(), Project: req.GetProject(), Environment: req.GetEnvironment(), Etag: req.GetEtag(),
		Fields: updatePaths(req), Labels: req.GetLabels(), Spec: fromSpec(req.GetSpec()), Restart: req.GetRestart(),
	}
	if req.GetTimeout() != nil {
		timeout := req.GetTimeout().AsDuration()
		update.Timeout = &timeout
	}
	updated, err := s.cfg.Manager.Update(ctx, update)
	if err != nil {
		return nil, err
	}
	env, op, err := s.base().await(ctx, updated.Environment, updated.Operation, req.GetWait())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.UpdateEnvironmentResponse{
		Environment: toEnvironment(env), Operation: s.base().toOperation(op), RestartNeeded: updated.RestartNeeded,
	}, nil
}

// updatePaths are the fields that a request changes: those of its mask, or
// those that are set.
func updatePaths(req *remotegpuv1.UpdateEnvironmentRequest) []string {
	if paths := req.GetUpdateMask().GetPaths(); len(paths) > 0 {
		return paths
	}
	return setFields("", req.ProtoReflect(), "spec", runtime.FieldLabels)
}

// setFields are the paths of the fields that are set in a message, of those
// only where some are named. Specs and their resources are looked into.
func setFields(prefix string, message protoreflect.Message, only ...string) (paths []string) {
	fields := message.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		name := string(f.Name())
		if !message.Has(f) || len(only) > 0 && !slices.Contains(only, name) {
			continue
		}
		switch path := prefix + name; path {
		case "spec", "spec.resources":
			paths = append(paths, setFields(path+".", message.Get(f).Message())...)
		default:
			paths = append(paths, path)
		}
	}
	return paths
}
