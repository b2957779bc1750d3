package rpc

import (
	"context"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/runtime"
)

type gpuService services

var gpuModes = newEnum(map[remotegpuv1.GPUMode]gpu.Mode{
	remotegpuv1.GPUMode_GPU_MODE_EXCLUSIVE: gpu.Exclusive,
	remotegpuv1.GPUMode_GPU_MODE_SHARED:    gpu.Shared,
	remotegpuv1.GPUMode_GPU_MODE_MIG:       gpu.MIGMode,
	remotegpuv1.GPUMode_GPU_MODE_VGPU:      gpu.VGPU,
})

var gpuCapabilities = newEnum(map[remotegpuv1.GPUCapability]gpu.Capability{
	remotegpuv1.GPUCapability_GPU_CAPABILITY_COMPUTE:  gpu.Compute,
	remotegpuv1.GPUCapability_GPU_CAPABILITY_UTILITY:  gpu.Utility,
	remotegpuv1.GPUCapability_GPU_CAPABILITY_GRAPHICS: gpu.Graphics,
	remotegpuv1.GPUCapability_GPU_CAPABILITY_VIDEO:    gpu.Video,
	remotegpuv1.GPUCapability_GPU_CAPABILITY_DISPLAY:  gpu.Display,
})

var gpuEnforcements = newEnum(map[remotegpuv1.GPUEnforcement]gpu.Enforcement{
	remotegpuv1.GPUEnforcement_GPU_ENFORCEMENT_SOLE:        gpu.BySole,
	remotegpuv1.GPUEnforcement_GPU_ENFORCEMENT_HARDWARE:    gpu.ByHardware,
	remotegpuv1.GPUEnforcement_GPU_ENFORCEMENT_DRIVER:      gpu.ByDriver,
	remotegpuv1.GPUEnforcement_GPU_ENFORCEMENT_MPS:         gpu.ByMPS,
	remotegpuv1.GPUEnforcement_GPU_ENFORCEMENT_COOPERATIVE: gpu.ByCooperation,
	remotegpuv1.GPUEnforcement_GPU_ENFORCEMENT_NONE:        gpu.ByNone,
})

// ListGPUs implements the RPC.
func (s *gpuService) ListGPUs(ctx context.Context, req *remotegpuv1.ListGPUsRequest) (*remotegpuv1.ListGPUsResponse, error) {
	all, found, err := s.cfg.Manager.GPUs(ctx, req.GetUsage())
	if err != nil {
		return nil, err
	}
	res := &remotegpuv1.ListGPUsResponse{Driver: found.Driver, Cuda: found.CUDA, Notes: found.Notes}
	for i := range all {
		res.Gpus = append(res.Gpus, s.toGPU(&all[i]))
	}
	return res, nil
}

// GetGPU implements the RPC.
func (s *gpuService) GetGPU(ctx context.Context, req *remotegpuv1.GetGPURequest) (*remotegpuv1.GetGPUResponse, error) {
	g, err := s.cfg.Manager.GPU(ctx, req.GetGpu(), true)
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.GetGPUResponse{Gpu: s.toGPU(&g)}, nil
}

// ListGPULeases implements the RPC.
func (s *gpuService) ListGPULeases(ctx context.Context, req *remotegpuv1.ListGPULeasesRequest) (*remotegpuv1.ListGPULeasesResponse, error) {
	leases, next, err := s.cfg.Manager.GPULeases(ctx, req.GetGpu(), pageSize(req.GetPageSize()), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	res := &remotegpuv1.ListGPULeasesResponse{NextPageToken: next}
	for i := range leases {
		res.Leases = append(res.Leases, toLease(&leases[i]))
	}
	return res, nil
}

// DrainGPU implements the RPC.
func (s *gpuService) DrainGPU(ctx context.Context, req *remotegpuv1.DrainGPURequest) (*remotegpuv1.DrainGPUResponse, error) {
	g, err := s.cfg.Manager.DrainGPU(ctx, req.GetGpu(), req.GetReason())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.DrainGPUResponse{Gpu: s.toGPU(&g)}, nil
}

// UndrainGPU implements the RPC.
func (s *gpuService) UndrainGPU(ctx context.Context, req *remotegpuv1.UndrainGPURequest) (*remotegpuv1.UndrainGPUResponse, error) {
	g, err := s.cfg.Manager.UndrainGPU(ctx, req.GetGpu(), req.GetResetHealth())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.UndrainGPUResponse{Gpu: s.toGPU(&g)}, nil
}

// CreateMIGInstance implements the RPC.
func (s *gpuService) CreateMIGInstance(ctx context.Context, req *remotegpuv1.CreateMIGInstanceRequest) (*remotegpuv1.CreateMIGInstanceResponse, error) {
	var at *gpu.Span
	if req.Start != nil {
		at = &gpu.Span{Start: int(req.GetStart())}
	}
	made, g, err := s.cfg.Manager.CreateMIG(ctx, req.GetGpu(), req.GetProfile(), at)
	if err != nil {
		return nil, err
	}
	instance := toInstance(&made)
	instance.Kept = g.Kept(&made)
	return &remotegpuv1.CreateMIGInstanceResponse{Instance: instance, Gpu: s.toGPU(&g)}, nil
}

// DeleteMIGInstance implements the RPC.
func (s *gpuService) DeleteMIGInstance(ctx context.Context, req *remotegpuv1.DeleteMIGInstanceRequest) (*remotegpuv1.DeleteMIGInstanceResponse, error) {
	if err := s.cfg.Manager.DeleteMIG(ctx, req.GetInstance()); err != nil {
		return nil, err
	}
	return &remotegpuv1.DeleteMIGInstanceResponse{Instance: req.GetInstance()}, nil
}

// SetMIGMode implements the RPC.
func (s *gpuService) SetMIGMode(ctx context.Context, req *remotegpuv1.SetMIGModeRequest) (*remotegpuv1.SetMIGModeResponse, error) {
	resetNeeded, g, err := s.cfg.Manager.SetMIGMode(ctx, req.GetGpu(), req.GetEnabled())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.SetMIGModeResponse{Gpu: s.toGPU(&g), ResetNeeded: resetNeeded}, nil
}

func (s *gpuService) toGPU(g *runtime.GPU) *remotegpuv1.GPU {
	message := &remotegpuv1.GPU{
		Uuid: g.UUID, Node: s.cfg.NodeName, Etag: etag(g.Mark.Revision), Vendor: string(g.Vendor), Model: g.Model, Index: int32(g.Index), Pci: g.PCI,
		NumaNode: int32(g.NUMANode), MemoryBytes: g.MemoryBytes, Architecture: g.Architecture, Ecc: g.ECC, ComputeCapability: g.ComputeCapability,
		RenderNode: g.RenderNode, Peers: g.Peers, MigCapable: g.MIG.Capable, MigEnabled: g.MIG.Enabled, MigPending: g.MIG.Pending,
		Mode: gpuModes.toProto[g.Mode()], Drained: g.Mark.Drained, DrainReason: g.Mark.Why, DrainedAt: timestamp(g.Mark.DrainedAt),
		Health: remotegpuv1.GPUHealth_GPU_HEALTH_OK, Virtualization: g.Virtualization, Usage: toGPUUsage(g),
		MigWanted: g.WantsMIG, MigProblem: g.MIGProblem,
	}
	health := g.Mark.Health
	if !health.Unhealthy {
		health = g.Health
	}
	message.Warnings = g.Warnings
	if health.Unhealthy {
		message.Health = remotegpuv1.GPUHealth_GPU_HEALTH_UNHEALTHY
		if health.Passing {
			message.Health = remotegpuv1.GPUHealth_GPU_HEALTH_HOT
		}
		message.HealthReason, message.Xid, message.UnhealthySince = health.Reason, int32(health.XID), timestamp(health.Since)
	}
	if g.Gone {
		message.Health = remotegpuv1.GPUHealth_GPU_HEALTH_GONE
	}
	for _, p := range g.MIG.Profiles {
		profile := &remotegpuv1.MIGProfile{Name: p.Name, MemoryBytes: p.MemoryBytes, Slices: int32(p.Slices), Graphics: p.Graphics}
		for _, at := range p.Placements {
			profile.Placements = append(profile.Placements, toPlacement(at))
		}
		message.Profiles = append(message.Profiles, profile)
	}
	for i := range g.MIG.Instances {
		instance := toInstance(&g.MIG.Instances[i])
		instance.Kept = g.Kept(&g.MIG.Instances[i])
		message.Instances = append(message.Instances, instance)
	}
	for i := range g.Planned {
		if p := &g.Planned[i]; p.Remove || p.UUID == "" {
			message.Planned = append(message.Planned, &remotegpuv1.PlannedMIGInstance{
				Profile: p.Profile, Placement: toPlacement(p.Placement), Remove: p.Remove, Environment: p.EnvID, EnvironmentName: p.EnvName, Problem: p.Problem,
			})
		}
	}
	for i := range g.Leases {
		message.Leases = append(message.Leases, toLease(&g.Leases[i]))
	}
	return message
}

func toPlacement(at gpu.Span) *remotegpuv1.MIGPlacement {
	return &remotegpuv1.MIGPlacement{Start: int32(at.Start), Size: int32(at.Size)}
}

func toInstance(i *gpu.MIGInstance) *remotegpuv1.MIGInstance {
	return &remotegpuv1.MIGInstance{Uuid: i.UUID, Profile: i.Profile, Placement: toPlacement(i.Placement), MemoryBytes: i.MemoryBytes}
}

func toLease(l *gpu.Lease) *remotegpuv1.GPULease {
	message := &remotegpuv1.GPULease{
		Id: l.ID, Environment: l.EnvID, EnvironmentName: l.EnvName, Gpu: l.GPU, MigInstance: l.MIG, Mode: gpuModes.toProto[l.Mode],
		Profile: l.Profile, MemoryBytes: l.MemoryBytes, ComputePercent: int32(l.ComputePercent),
		Enforcement: gpuEnforcements.toProto[l.Enforcement], CreatedAt: timestamp(l.CreatedAt), ReleasedAt: timestamp(l.ReleasedAt),
		EnvironmentDeleted: l.EnvDeleted,
	}
	if l.Mode == gpu.MIGMode {
		message.Placement = toPlacement(l.Placement)
	}
	return message
}

// told is a number that a device may not tell, which is negative then.
func told[T int | int64, M int32 | int64](value T) *M {
	if value < 0 {
		return nil
	}
	number := M(value)
	return &number
}

func toGPUUsage(g *runtime.GPU) *remotegpuv1.GPUUsage {
	u := g.Usage
	if u == nil {
		return nil
	}
	message := &remotegpuv1.GPUUsage{
		UtilPercent: told[int, int32](u.UtilPercent), MemoryUsedBytes: u.MemoryUsed, EncoderPercent: told[int, int32](u.EncoderPercent),
		DecoderPercent: told[int, int32](u.DecoderPercent), TemperatureCelsius: told[int, int32](u.Temperature),
		PowerMilliwatts: told[int, int32](u.PowerMilliwatts), EccUncorrected: told[int64, int64](u.ECCUncorrected),
		EccCorrected: told[int64, int64](u.ECCCorrected), EccUncorrectedEver: told[int64, int64](u.ECCUncorrectedEver),
	}
	for _, p := range u.Processes {
		message.Processes = append(message.Processes, &remotegpuv1.GPUProcess{
			Pid: int32(p.PID), MemoryBytes: p.MemoryBytes, Graphics: p.Graphics, MigInstance: p.MIG,
			Environment: g.Users[p.PID].EnvID, EnvironmentName: g.Users[p.PID].EnvName, UtilPercent: told[int, int32](p.UtilPercent),
		})
	}
	return message
}

func toGPURequest(req *gpu.Request) *remotegpuv1.GPURequest {
	if req == nil {
		return nil
	}
	message := &remotegpuv1.GPURequest{
		Mode: gpuModes.toProto[req.Mode], Count: int32(req.Count), Uuids: req.UUIDs, Models: req.Models, MemoryBytes: req.MemoryBytes,
		ComputePercent: int32(req.ComputePercent), Profile: req.Profile, AllowUnenforced: req.AllowUnenforced,
	}
	for _, c := range req.Capabilities {
		message.Capabilities = append(message.Capabilities, gpuCapabilities.toProto[c])
	}
	return message
}

func fromGPURequest(message *remotegpuv1.GPURequest) *gpu.Request {
	if message == nil {
		return nil
	}
	req := &gpu.Request{
		Mode: gpuModes.toDomain[message.GetMode()], Count: int(message.GetCount()), UUIDs: message.GetUuids(), Models: message.GetModels(),
		MemoryBytes: message.GetMemoryBytes(), ComputePercent: int(message.GetComputePercent()), Profile: message.GetProfile(),
		AllowUnenforced: message.GetAllowUnenforced(),
	}
	for _, c := range message.GetCapabilities() {
		req.Capabilities = append(req.Capabilities, gpuCapabilities.toDomain[c])
	}
	return req
}
