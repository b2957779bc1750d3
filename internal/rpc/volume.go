package rpc

import (
	"context"
	"slices"
	"strconv"
	"strings"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/runtime"
)

type volumeService services

// CreateVolume implements the RPC.
func (s *volumeService) CreateVolume(ctx context.Context, req *remotegpuv1.CreateVolumeRequest) (*remotegpuv1.CreateVolumeResponse, error) {
	volume, err := s.cfg.Manager.CreateVolume(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.CreateVolumeResponse{Volume: s.toVolume(&volume)}, nil
}

// GetVolume implements the RPC.
func (s *volumeService) GetVolume(ctx context.Context, req *remotegpuv1.GetVolumeRequest) (*remotegpuv1.GetVolumeResponse, error) {
	volume, err := s.cfg.Manager.Volume(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.GetVolumeResponse{Volume: s.toVolume(&volume)}, nil
}

// ListVolumes implements the RPC.
func (s *volumeService) ListVolumes(ctx context.Context, req *remotegpuv1.ListVolumesRequest) (*remotegpuv1.ListVolumesResponse, error) {
	volumes, err := s.cfg.Manager.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	// The page token is the last name of the page before.
	if token := req.GetPageToken(); token != "" {
		volumes = slices.DeleteFunc(volumes, func(v runtime.VolumeUse) bool { return strings.Compare(v.Name, token) <= 0 })
	}
	res := &remotegpuv1.ListVolumesResponse{}
	if size := pageSize(req.GetPageSize()); len(volumes) > size {
		volumes = volumes[:size]
		res.NextPageToken = volumes[size-1].Name
	}
	if req.GetSizes() {
		if volumes, err = s.cfg.Manager.MeasureVolumes(ctx, volumes); err != nil {
			return nil, err
		}
	}
	for i := range volumes {
		res.Volumes = append(res.Volumes, s.toVolume(&volumes[i]))
	}
	return res, nil
}

// DeleteVolume implements the RPC.
func (s *volumeService) DeleteVolume(ctx context.Context, req *remotegpuv1.DeleteVolumeRequest) (*remotegpuv1.DeleteVolumeResponse, error) {
	if err := s.cfg.Manager.DeleteVolume(ctx, req.GetName()); err != nil {
		return nil, err
	}
	return &remotegpuv1.DeleteVolumeResponse{Name: req.GetName()}, nil
}

// toVolume leaves project and labels empty: a volume is the node's, and what
// is kept of it is its directory.
func (s *volumeService) toVolume(v *runtime.VolumeUse) *remotegpuv1.Volume {
	message := &remotegpuv1.Volume{
		Name: v.Name, Node: s.cfg.NodeName, Etag: strconv.FormatInt(v.CreatedAt.UnixNano(), 36),
		UsedBy: v.UsedBy, CreatedAt: timestamp(v.CreatedAt),
	}
	if v.Size >= 0 {
		message.SizeBytes = &v.Size
	}
	return message
}
