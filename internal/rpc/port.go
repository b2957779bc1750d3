package rpc

import (
	"context"
	"strconv"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
)

// ListPortMappings implements the RPC.
func (s *portService) ListPortMappings(ctx context.Context, req *remotegpuv1.ListPortMappingsRequest) (*remotegpuv1.ListPortMappingsResponse, error) {
	filter := port.Filter{
		Project: req.GetProject(), Service: serviceTypes.toDomain[req.GetServiceType()], IncludeReleased: req.GetIncludeReleased(),
		Limit: pageSize(req.GetPageSize()), After: req.GetPageToken(),
		External: uint16(req.GetExternalPort()), Protocol: protocols.toDomain[req.GetProtocol()],
	}
	if req.GetAt() != nil {
		filter.At = req.GetAt().AsTime()
	}
	mappings, next, err := s.cfg.Manager.ListPorts(ctx, req.GetEnvironment(), filter)
	if err != nil {
		return nil, err
	}
	res := &remotegpuv1.ListPortMappingsResponse{NextPageToken: next}
	for i := range mappings {
		res.PortMappings = append(res.PortMappings, toMapping(&mappings[i], s.cfg.NodeName))
	}
	return res, nil
}

// ListPortPools implements the RPC.
func (s *portService) ListPortPools(ctx context.Context, _ *remotegpuv1.ListPortPoolsRequest) (*remotegpuv1.ListPortPoolsResponse, error) {
	usages, err := s.cfg.Ports.Usage(ctx)
	if err != nil {
		return nil, err
	}
	res := &remotegpuv1.ListPortPoolsResponse{}
	for _, usage := range usages {
		res.Pools = append(res.Pools, s.toPool(usage))
	}
	return res, nil
}

// UpdatePortPool implements the RPC.
func (s *portService) UpdatePortPool(ctx context.Context, req *remotegpuv1.UpdatePortPoolRequest) (*remotegpuv1.UpdatePortPoolResponse, error) {
	revision := port.AnyRevision
	if req.GetEtag() != "" {
		parsed, err := strconv.ParseInt(req.GetEtag(), 10, 64)
		if err != nil || parsed < 0 {
			return nil, problem.New(problem.EtagMismatch, "etag %q is none of a port pool", req.GetEtag()).WithField("etag").
				WithHint("read the pool again and use its etag")
		}
		revision = parsed
	}
	service := serviceTypes.toDomain[req.GetServiceType()]
	usage, err := s.cfg.Ports.SetRange(ctx, service, uint16(req.GetFirstPort()), uint16(req.GetLastPort()), revision)
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.UpdatePortPoolResponse{Pool: s.toPool(usage), Warnings: s.cfg.Ports.ReviewOf(service)}, nil
}

func (s *portService) toPool(usage port.Usage) *remotegpuv1.PortPool {
	return &remotegpuv1.PortPool{
		ServiceType: serviceTypes.toProto[usage.Service], FirstPort: int32(usage.First), LastPort: int32(usage.Last),
		DefaultInternalPort: int32(usage.Internal), InUse: int32(usage.InUse), Free: int32(usage.Free),
		Etag: etag(usage.Revision), Node: s.cfg.NodeName,
		Resting: int32(usage.Resting), Outside: int32(usage.Outside),
	}
}
