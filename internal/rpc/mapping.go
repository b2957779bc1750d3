package rpc

import (
	"cmp"
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// GetPortMapping implements the RPC.
func (s *portService) GetPortMapping(ctx context.Context, req *remotegpuv1.GetPortMappingRequest) (*remotegpuv1.GetPortMappingResponse, error) {
	mapping, err := s.cfg.Manager.Port(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.GetPortMappingResponse{PortMapping: toMapping(&mapping, s.cfg.NodeName)}, nil
}

// CreatePortMapping implements the RPC.
func (s *portService) CreatePortMapping(ctx context.Context, req *remotegpuv1.CreatePortMappingRequest) (*remotegpuv1.CreatePortMappingResponse, error) {
	id, op, err := s.cfg.Manager.CreatePort(ctx, runtime.PortCreateRequest{
		RequestID: req.GetRequestId(), Project: req.GetProject(), Environment: req.GetEnvironment(), Etag: req.GetEtag(),
		Port: port.Request{
			Service: serviceTypes.toDomain[req.GetServiceType()], Internal: uint16(req.GetInternalPort()), External: uint16(req.GetExternalPort()),
			Protocol: cmp.Or(protocols.toDomain[req.GetProtocol()], port.TCP), Description: req.GetDescription(),
			Sources: req.GetAllowedSources(), ExpiresAt: toTime(req.GetExpiresAt()),
		},
		ExpiresIn: toDuration(req.GetExpiresIn()),
	})
	if err != nil {
		return nil, err
	}
	mapping, op, err := s.settled(ctx, id, op, req.GetWait())
	if err != nil {
		return nil, err
	}
	res := &remotegpuv1.CreatePortMappingResponse{PortMapping: mapping, Operation: s.base().toOperation(op)}
	if mapping != nil {
		if env, err := s.cfg.Manager.Get(ctx, "", mapping.GetEnvironment()); err == nil { // it may be gone by now
			res.RestartNeeded = env.RestartNeeded()
		}
	}
	return res, nil
}

// UpdatePortMapping implements the RPC.
func (s *portService) UpdatePortMapping(ctx context.Context, req *remotegpuv1.UpdatePortMappingRequest) (*remotegpuv1.UpdatePortMappingResponse, error) {
	fields := req.GetUpdateMask().GetPaths()
	if len(fields) == 0 {
		fields = setFields("", req.ProtoReflect(), runtime.PortDescription, runtime.PortSources, runtime.PortExpiresAt, runtime.PortExpiresIn)
	}
	id, op, err := s.cfg.Manager.UpdatePort(ctx, runtime.PortUpdateRequest{
		RequestID: req.GetRequestId(), ID: req.GetId(), Etag: req.GetEtag(), Fields: fields, Description: req.GetDescription(),
		Sources: req.GetAllowedSources(), ExpiresAt: toTime(req.GetExpiresAt()), ExpiresIn: toDuration(req.GetExpiresIn()),
	})
	if err != nil {
		return nil, err
	}
	mapping, op, err := s.settled(ctx, id, op, req.GetWait())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.UpdatePortMappingResponse{PortMapping: mapping, Operation: s.base().toOperation(op)}, nil
}

// DeletePortMapping implements the RPC.
func (s *portService) DeletePortMapping(ctx context.Context, req *remotegpuv1.DeletePortMappingRequest) (*remotegpuv1.DeletePortMappingResponse, error) {
	id, op, err := s.cfg.Manager.DeletePort(ctx, runtime.PortDeleteRequest{RequestID: req.GetRequestId(), ID: req.GetId(), Etag: req.GetEtag()})
	if err != nil {
		return nil, err
	}
	mapping, op, err := s.settled(ctx, id, op, req.GetWait())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.DeletePortMappingResponse{PortMapping: mapping, Operation: s.base().toOperation(op)}, nil
}

func (s *portService) base() *services { return (*services)(s) }

// settled waits for an operation on a mapping as long as the caller asked for,
// and returns the mapping as it is then; nil while there is none.
func (s *portService) settled(ctx context.Context, id string, op *operation.Operation, wait *durationpb.Duration) (
	*remotegpuv1.PortMapping, *operation.Operation, error,
) {
	_, op, err := s.base().await(ctx, nil, op, wait)
	if err != nil {
		return nil, nil, err
	}
	mapping, err := s.cfg.Manager.Port(ctx, id)
	if p := problem.Of(err); p != nil && p.Reason == problem.PortNotFound {
		return nil, op, nil
	}
	if err != nil {
		return nil, nil, err
	}
	return toMapping(&mapping, s.cfg.NodeName), op, nil
}

func toTime(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func toDuration(d *durationpb.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return d.AsDuration()
}
