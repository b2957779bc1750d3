package cli_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
)

// gpuFake is the GPUs of the fake.
type gpuFake struct {
	remotegpuv1connect.UnimplementedGPUServiceHandler
	fake *fake
}

func gpus() []*remotegpuv1.GPU {
	return []*remotegpuv1.GPU{
		{
			Uuid: "GPU-1", Model: "NVIDIA L4", MemoryBytes: 24 << 30, Mode: remotegpuv1.GPUMode_GPU_MODE_SHARED, Health: remotegpuv1.GPUHealth_GPU_HEALTH_OK,
			Drained: true, DrainReason: "fan", Leases: []*remotegpuv1.GPULease{{EnvironmentName: "demo", Gpu: "GPU-1"}, {Environment: "01X", EnvironmentDeleted: true}},
			Usage: &remotegpuv1.GPUUsage{UtilPercent: proto.Int32(7), MemoryUsedBytes: 1 << 30, TemperatureCelsius: proto.Int32(40), EccUncorrectedEver: proto.Int64(3), Processes: []*remotegpuv1.GPUProcess{{Pid: 7, MemoryBytes: 1 << 20, EnvironmentName: "demo"}}},
		},
		{
			Uuid: "GPU-2", Index: -1, Health: remotegpuv1.GPUHealth_GPU_HEALTH_UNHEALTHY, HealthReason: "XID 79", Warnings: []string{"it is hot"}, MigCapable: true, MigEnabled: true,
			Profiles:  []*remotegpuv1.MIGProfile{{Name: "1g.5gb", MemoryBytes: 5 << 30, Placements: []*remotegpuv1.MIGPlacement{{Start: 0}, {Start: 1}}}},
			Instances: []*remotegpuv1.MIGInstance{{Uuid: "MIG-1", Profile: "1g.5gb", Placement: &remotegpuv1.MIGPlacement{Start: 1}, Kept: true}},
			Planned: []*remotegpuv1.PlannedMIGInstance{
				{Profile: "2g.10gb", Placement: &remotegpuv1.MIGPlacement{Start: 2}, Problem: "in use"},
				{Profile: "1g.5gb", Placement: &remotegpuv1.MIGPlacement{Start: 4}, Remove: true, Environment: "01X", EnvironmentName: "old"},
			},
		},
	}
}

func (g *gpuFake) ListGPUs(_ context.Context, req *remotegpuv1.ListGPUsRequest) (*remotegpuv1.ListGPUsResponse, error) {
	return &remotegpuv1.ListGPUsResponse{Gpus: gpus(), Notes: []string{"no toolkit"}}, g.fake.got(req)
}

func (g *gpuFake) GetGPU(_ context.Context, req *remotegpuv1.GetGPURequest) (*remotegpuv1.GetGPUResponse, error) {
	return &remotegpuv1.GetGPUResponse{Gpu: gpus()[req.GetGpu()[len(req.GetGpu())-1]-'1']}, g.fake.got(req)
}

func (g *gpuFake) ListGPULeases(_ context.Context, req *remotegpuv1.ListGPULeasesRequest) (*remotegpuv1.ListGPULeasesResponse, error) {
	if g.fake.total > 0 {
		page, next := g.fake.page(req.GetPageSize(), req.GetPageToken())
		return &remotegpuv1.ListGPULeasesResponse{Leases: slices.Repeat([]*remotegpuv1.GPULease{{Gpu: "GPU-1"}}, page), NextPageToken: next}, g.fake.got(req)
	}
	if req.GetPageToken() == "" {
		return &remotegpuv1.ListGPULeasesResponse{Leases: []*remotegpuv1.GPULease{{EnvironmentName: "demo", Environment: "01ENV", Gpu: "GPU-1"}}, NextPageToken: "2"}, g.fake.got(req)
	}
	return &remotegpuv1.ListGPULeasesResponse{Leases: []*remotegpuv1.GPULease{{
		EnvironmentName: "old", Environment: "01OLD", EnvironmentDeleted: true, Gpu: "GPU-1", ReleasedAt: ago(time.Minute),
		Mode: remotegpuv1.GPUMode_GPU_MODE_EXCLUSIVE, Enforcement: remotegpuv1.GPUEnforcement_GPU_ENFORCEMENT_SOLE,
	}}}, g.fake.got(req)
}

func (g *gpuFake) DrainGPU(_ context.Context, req *remotegpuv1.DrainGPURequest) (*remotegpuv1.DrainGPUResponse, error) {
	return &remotegpuv1.DrainGPUResponse{Gpu: gpus()[0]}, g.fake.got(req)
}

func (g *gpuFake) UndrainGPU(_ context.Context, req *remotegpuv1.UndrainGPURequest) (*remotegpuv1.UndrainGPUResponse, error) {
	return &remotegpuv1.UndrainGPUResponse{Gpu: gpus()[1]}, g.fake.got(req)
}

func (g *gpuFake) CreateMIGInstance(_ context.Context, req *remotegpuv1.CreateMIGInstanceRequest) (*remotegpuv1.CreateMIGInstanceResponse, error) {
	return &remotegpuv1.CreateMIGInstanceResponse{Instance: gpus()[1].GetInstances()[0]}, g.fake.got(req)
}

func (g *gpuFake) DeleteMIGInstance(_ context.Context, req *remotegpuv1.DeleteMIGInstanceRequest) (*remotegpuv1.DeleteMIGInstanceResponse, error) {
	if err := g.fake.none(req.GetInstance()); err != nil {
		return nil, err
	}
	return &remotegpuv1.DeleteMIGInstanceResponse{Instance: req.GetInstance()}, g.fake.got(req)
}

func (g *gpuFake) SetMIGMode(_ context.Context, req *remotegpuv1.SetMIGModeRequest) (*remotegpuv1.SetMIGModeResponse, error) {
	return &remotegpuv1.SetMIGModeResponse{Gpu: gpus()[1], ResetNeeded: true}, g.fake.got(req)
}

func TestGPUs(t *testing.T) {
	f := newFake(t)
	for _, test := range []struct {
		args string
		want proto.Message
		says []string
	}{
		{"gpu ls --usage", &remotegpuv1.ListGPUsRequest{Usage: true}, []string{"0 GPU-1 NVIDIA L4 24 GiB shared drained 7% 1 GiB demo, 01X (deleted)", "- GPU-2 - - free unhealthy - -", "no toolkit"}},
		{"gpu get GPU-1", &remotegpuv1.GetGPURequest{Gpu: "GPU-1"}, []string{"Temperature: 40 °C", "Memory errors ever: 3", "Process: 7 1 MiB demo", "Environment: demo", "fan"}},
		{"gpu get GPU-2", &remotegpuv1.GetGPURequest{Gpu: "GPU-2"}, []string{"XID 79", "Warning: it is hot", "Profile: 1g.5gb, 5 GiB, at 0 1", "Instance: MIG-1 1g.5gb at 1, kept", "MIG: on", "2g.10gb at 2, missing, to be made again: in use", "1g.5gb at 4, to be removed: environment old had it"}},
		{"gpu leases 0", &remotegpuv1.ListGPULeasesRequest{Gpu: "0", PageSize: 49, PageToken: "2"}, []string{"now demo 01ENV", "old (deleted) 01OLD exclusive, enforced by sole GPU-1"}},
		{"gpu leases --page-size 1", &remotegpuv1.ListGPULeasesRequest{PageSize: 1}, []string{"demo"}},
		{"gpu drain GPU-1 --reason fan", &remotegpuv1.DrainGPURequest{Gpu: "GPU-1", Reason: "fan"}, []string{"GPU-1: drained"}},
		{"gpu undrain 1 --reset-health", &remotegpuv1.UndrainGPURequest{Gpu: "1", ResetHealth: true}, []string{"GPU-2: unhealthy"}},
		{"gpu mig create 0 1g.5gb", &remotegpuv1.CreateMIGInstanceRequest{Gpu: "0", Profile: "1g.5gb"}, []string{"MIG-1"}},
		{"gpu mig create 0 1g.5gb --start 0", &remotegpuv1.CreateMIGInstanceRequest{Gpu: "0", Profile: "1g.5gb", Start: proto.Int32(0)}, []string{"MIG-1"}},
		{"gpu mig delete MIG-1", &remotegpuv1.DeleteMIGInstanceRequest{Instance: "MIG-1"}, []string{"MIG-1: removed"}},
		{"gpu mig mode 0 on", &remotegpuv1.SetMIGModeRequest{Gpu: "0", Enabled: true}, []string{"MIG is on", "nvidia-smi -r -i GPU-2"}},
		{"gpu mig mode 0 off", &remotegpuv1.SetMIGModeRequest{Gpu: "0"}, nil},
	} {
		code, out, errs := f.run(t, strings.Fields(test.args)...)
		if code != 0 {
			t.Errorf("%s: exit %d\n%s", test.args, code, errs)
		}
		if diff := cmp.Diff(test.want, f.last, protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got)\n%s", test.args, diff)
		}
		text := strings.Join(strings.Fields(out+errs), " ")
		for _, word := range test.says {
			if !strings.Contains(text, word) {
				t.Errorf("%s does not say %q:\n%s", test.args, word, text)
			}
		}
	}
	for _, args := range []string{"gpu get", "gpu mig mode 0 maybe", "gpu mig create 0"} {
		if code, _, errs := f.run(t, strings.Fields(args)...); code != 2 || errs == "" {
			t.Errorf("%s: exit %d %s", args, code, errs)
		}
	}
	if code, out, _ := f.run(t, "__complete", "gpu", "drain", ""); code != 0 || !strings.Contains(out, "GPU-1\tNVIDIA L4 drained") {
		t.Errorf("completion: %d %s", code, out)
	}
}

func TestEnvironmentsWithGPUs(t *testing.T) {
	f := newFake(t)
	mig, shared, vgpu := remotegpuv1.GPUMode_GPU_MODE_MIG, remotegpuv1.GPUMode_GPU_MODE_SHARED, remotegpuv1.GPUMode_GPU_MODE_VGPU
	for args, want := range map[string]*remotegpuv1.GPURequest{
		"":                                     nil,
		"--gpus 2":                             {Count: 2},
		"--gpus model=A100,model=H100,count=2": {Count: 2, Models: []string{"A100", "H100"}},
		"--gpus uuid=GPU-1":                    {Uuids: []string{"GPU-1"}},
		"--gpu-mode mig --gpu-profile 1g.5gb":  {Mode: mig, Profile: "1g.5gb"},
		"--gpu-mode shared --gpu-memory 8GiB":  {Mode: shared, MemoryBytes: 8 << 30},
		"--gpus 1 --gpu-mode vgpu --gpu-memory 8G --gpu-compute 30 --gpu-allow-unenforced": {Count: 1, Mode: vgpu, MemoryBytes: 8 << 30, ComputePercent: 30, AllowUnenforced: true},
		"--gpus 1 --gpu-capabilities compute,graphics": {Count: 1, Capabilities: []remotegpuv1.GPUCapability{
			remotegpuv1.GPUCapability_GPU_CAPABILITY_COMPUTE, remotegpuv1.GPUCapability_GPU_CAPABILITY_GRAPHICS,
		}},
	} {
		code, _, errs := f.run(t, append([]string{"env", "create", "demo", "--image", "x", "--no-wait"}, strings.Fields(args)...)...)
		request, _ := f.last.(*remotegpuv1.CreateEnvironmentRequest)
		if code != 0 || request == nil {
			t.Fatalf("%s: exit %d %s", args, code, errs)
		}
		if diff := cmp.Diff(want, request.GetSpec().GetGpu(), protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got)\n%s", args, diff)
		}
	}
	for _, args := range []string{"--gpus 0", "--gpus x", "--gpus model=", "--gpus 1,colour=red", "--gpu-mode half", "--gpu-capabilities all"} {
		if code, _, errs := f.run(t, append([]string{"env", "create", "demo", "--image", "x"}, strings.Fields(args)...)...); code != 2 || errs == "" {
			t.Errorf("%s: exit %d %s", args, code, errs)
		}
	}
	f.env.Spec.Gpu = &remotegpuv1.GPURequest{Count: 2, Mode: vgpu, MemoryBytes: 1 << 30, Capabilities: []remotegpuv1.GPUCapability{remotegpuv1.GPUCapability_GPU_CAPABILITY_COMPUTE}}
	f.env.Gpus = []*remotegpuv1.GPULease{{Gpu: "GPU-1", Mode: vgpu, MemoryBytes: 1 << 30, ComputePercent: 30, Enforcement: remotegpuv1.GPUEnforcement_GPU_ENFORCEMENT_DRIVER}}
	if code, out, _ := f.run(t, "env", "get", "demo"); code != 0 || !strings.Contains(out, "GPU-1 vgpu 1 GiB 30%, enforced by driver") {
		t.Errorf("env get: %s", out)
	}
	for args, want := range map[string]*remotegpuv1.GPURequest{
		"--gpu-memory 2G": {Count: 2, Mode: vgpu, MemoryBytes: 2 << 30, Capabilities: f.env.GetSpec().GetGpu().GetCapabilities()},
		"--gpu-mode mig --gpus 1 --gpu-profile 1g.5gb": {Count: 1, Mode: mig, Profile: "1g.5gb", Capabilities: f.env.GetSpec().GetGpu().GetCapabilities()},
		"--no-gpus": nil,
	} {
		code, _, errs := f.run(t, append([]string{"env", "update", "demo", "--no-wait"}, strings.Fields(args)...)...)
		request, _ := f.last.(*remotegpuv1.UpdateEnvironmentRequest)
		if code != 0 || request == nil {
			t.Fatalf("%s: exit %d %s", args, code, errs)
		}
		if diff := cmp.Diff(want, request.GetSpec().GetGpu(), protocmp.Transform()); diff != "" || request.GetUpdateMask().GetPaths()[0] != "spec.gpu" {
			t.Errorf("%s: %v (-want +got)\n%s", args, request.GetUpdateMask(), diff)
		}
	}
}
