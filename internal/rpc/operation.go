package rpc

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

func (s *operationService) base() *services { return (*services)(s) }

func operationError(id string, err error) error {
	if errdefs.IsNotFound(err) {
		return problem.New(problem.OperationNotFound, "there is no operation %q", id).WithField("id").
			WithHint("list them with: remotegpu op ls").WithCause(err)
	}
	return err
}

// GetOperation implements the RPC.
func (s *operationService) GetOperation(ctx context.Context, req *remotegpuv1.GetOperationRequest) (*remotegpuv1.GetOperationResponse, error) {
	op, err := s.cfg.Operations.Get(ctx, req.GetId())
	if err != nil {
		return nil, operationError(req.GetId(), err)
	}
	return &remotegpuv1.GetOperationResponse{Operation: s.base().toOperation(op)}, nil
}

// ListOperations implements the RPC.
func (s *operationService) ListOperations(ctx context.Context, req *remotegpuv1.ListOperationsRequest) (*remotegpuv1.ListOperationsResponse, error) {
	for i, kind := range req.GetKinds() {
		if !slices.Contains(runtime.Kinds(), kind) {
			return nil, problem.New(problem.FieldInvalid, "there is no kind of operations %q", kind).WithField(fmt.Sprintf("kinds[%d]", i)).
				WithHint("use some of %s", strings.Join(runtime.Kinds(), ", "))
		}
	}
	filter := operation.Filter{Project: req.GetProject(), Target: req.GetTarget(), Kinds: req.GetKinds(), Limit: pageSize(req.GetPageSize()), After: req.GetPageToken()}
	for _, state := range req.GetStates() {
		filter.States = append(filter.States, operationStates.toDomain[state])
	}
	ops, next, err := s.cfg.Operations.List(ctx, filter)
	if err != nil {
		return nil, err
	}
	res := &remotegpuv1.ListOperationsResponse{NextPageToken: next}
	for _, op := range ops {
		res.Operations = append(res.Operations, s.base().toOperation(op))
	}
	return res, nil
}

// WatchOperation implements the RPC.
func (s *operationService) WatchOperation(ctx context.Context, req *remotegpuv1.WatchOperationRequest, stream remotegpuv1connect.OperationServiceWatchOperationServerStream) error {
	err := s.cfg.Operations.Watch(ctx, req.GetId(), func(op *operation.Operation) error {
		return stream.Send(&remotegpuv1.WatchOperationResponse{Operation: s.base().toOperation(op)})
	})
	return operationError(req.GetId(), err)
}

// CancelOperation implements the RPC.
func (s *operationService) CancelOperation(ctx context.Context, req *remotegpuv1.CancelOperationRequest) (*remotegpuv1.CancelOperationResponse, error) {
	op, err := s.cfg.Operations.Cancel(ctx, req.GetId())
	if err != nil {
		return nil, operationError(req.GetId(), err)
	}
	if wait := req.GetWait().AsDuration(); wait > 0 {
		waiting, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		if done, err := s.cfg.Operations.Wait(waiting, op.ID); err == nil {
			op = done
		}
	}
	return &remotegpuv1.CancelOperationResponse{Operation: s.base().toOperation(op)}, nil
}
