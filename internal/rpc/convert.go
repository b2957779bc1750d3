package rpc

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func toEnvironment(env *runtime.Environment) *remotegpuv1.Environment {
	if env == nil {
		return nil
	}
	message := &remotegpuv1.Environment{
		Id: env.ID, Name: env.Name, Project: env.Project, Node: env.Node, Labels: env.Labels, Etag: runtime.Etag(env.Revision),
		Spec: toSpec(&env.Spec), State: environmentStates.toProto[env.State], Problem: toProblem(env.Problem),
		ImageDigest: env.Digest, DesktopReady: env.Ready, Warnings: slices.Concat(env.Warnings, env.Beyond, env.NetworkWarnings(), env.GPUWarnings()), Operation: env.Operation,
		CreatedAt: timestamp(env.CreatedAt), UpdatedAt: timestamp(env.UpdatedAt), StartedAt: timestamp(env.StartedAt),
		Health: healths.toProto[env.Health], HealthDetail: env.HealthDetail,
		RestartCount: int32(env.RestartCount), RestartAt: timestamp(env.RestartAt), Exit: toExit(env.Exit), Paused: env.Paused,
		RestartNeeded: env.RestartNeeded(), OomKills: int32(env.OOMKills),
	}
	if env.Disk != (runtime.DiskLimit{}) {
		message.DiskLimit = &remotegpuv1.DiskLimit{Enforced: env.Disk.Bytes > 0, Bytes: env.Disk.Bytes, Reason: env.Disk.NotEnforced}
	}
	if env.Address.IsValid() {
		message.Address = env.Address.String()
	}
	if env.Address6.IsValid() {
		message.Address6 = env.Address6.String()
	}
	for i := range env.Ports {
		message.PortMappings = append(message.PortMappings, toMapping(&env.Ports[i], env.Node))
	}
	for i := range env.GPUs {
		message.Gpus = append(message.Gpus, toLease(&env.GPUs[i]))
	}
	for _, access := range env.Access {
		message.Access = append(message.Access, &remotegpuv1.AccessURL{ServiceType: serviceTypes.toProto[access.Service], Url: access.URL})
	}
	return message
}

func toProblem(p *operation.Problem) *remotegpuv1.Problem {
	if p == nil {
		return nil
	}
	return &remotegpuv1.Problem{
		Code:   strings.ToLower(CodeOf(problem.Reason(p.Reason)).String()),
		Reason: p.Reason, Message: p.Message, Field: p.Field, Hint: p.Hint,
	}
}

func toSpec(spec *runtime.Spec) *remotegpuv1.EnvironmentSpec {
	message := &remotegpuv1.EnvironmentSpec{
		Image: spec.Image, PullPolicy: pullPolicies.toProto[spec.PullPolicy],
		Entrypoint: spec.Entrypoint, Command: spec.Command, Workdir: spec.Workdir, User: spec.User, Env: spec.Env, Hostname: spec.Hostname,
		Resources: &remotegpuv1.Resources{
			CpuMillis: spec.Resources.CPUMillis, MemoryBytes: spec.Resources.MemoryBytes,
			Pids: spec.Resources.Pids, ShmBytes: spec.Resources.ShmBytes,
			DiskBytes: spec.Resources.DiskBytes, DiskBestEffort: spec.Resources.DiskBestEffort,
		},
		AllowNewPrivileges: spec.AllowNewPrivileges,
	}
	if spec.Resources.MemoryBytes != 0 {
		message.Resources.SwapBytes = &spec.Resources.SwapBytes
	}
	for _, limit := range spec.Resources.Ulimits {
		message.Resources.Ulimits = append(message.Resources.Ulimits, &remotegpuv1.Ulimit{Name: limit.Name, Soft: limit.Soft, Hard: limit.Hard})
	}
	for _, mount := range spec.Mounts {
		message.Mounts = append(message.Mounts, &remotegpuv1.Mount{
			Type: mountTypes.toProto[mount.Type], Source: mount.Source, Target: mount.Target, ReadOnly: mount.ReadOnly, SizeBytes: mount.SizeBytes,
		})
	}
	for _, request := range spec.Ports {
		message.Ports = append(message.Ports, &remotegpuv1.PortRequest{
			ServiceType: serviceTypes.toProto[request.Service], InternalPort: int32(request.Internal), ExternalPort: int32(request.External),
			Protocol: protocols.toProto[request.Protocol], Description: request.Description,
			AllowedSources: request.Sources, ExpiresAt: timestamp(request.ExpiresAt),
		})
	}
	if d := spec.Desktop; d != nil {
		message.Desktop = &remotegpuv1.Desktop{Width: int32(d.Width), Height: int32(d.Height), Depth: int32(d.Depth)}
	}
	message.Restart, message.HealthCheck = toRestart(spec.Restart), toHealthCheck(spec.HealthCheck)
	message.Snapshot, message.Network = spec.Snapshot, toNetworkPolicy(spec.Network)
	message.Gpu = toGPURequest(spec.GPU)
	return message
}

// fromSpec trusts the rules of the contract: they were checked before.
func fromSpec(message *remotegpuv1.EnvironmentSpec) runtime.Spec {
	spec := runtime.Spec{
		Image: message.GetImage(), PullPolicy: pullPolicies.toDomain[message.GetPullPolicy()],
		Entrypoint: message.GetEntrypoint(), Command: message.GetCommand(), Workdir: message.GetWorkdir(), User: message.GetUser(),
		Env: message.GetEnv(), Hostname: message.GetHostname(),
		Resources: runtime.Resources{
			CPUMillis: message.GetResources().GetCpuMillis(), MemoryBytes: message.GetResources().GetMemoryBytes(),
			SwapBytes: message.GetResources().GetSwapBytes(), Pids: message.GetResources().GetPids(), ShmBytes: message.GetResources().GetShmBytes(),
			DiskBytes: message.GetResources().GetDiskBytes(), DiskBestEffort: message.GetResources().GetDiskBestEffort(),
		},
		AllowNewPrivileges: message.GetAllowNewPrivileges(),
	}
	for _, limit := range message.GetResources().GetUlimits() {
		spec.Resources.Ulimits = append(spec.Resources.Ulimits, runtime.Ulimit{Name: limit.GetName(), Soft: limit.GetSoft(), Hard: limit.GetHard()})
	}
	for _, mount := range message.GetMounts() {
		spec.Mounts = append(spec.Mounts, volume.Mount{
			Type: mountTypes.toDomain[mount.GetType()], Source: mount.GetSource(), Target: mount.GetTarget(),
			ReadOnly: mount.GetReadOnly(), SizeBytes: mount.GetSizeBytes(),
		})
	}
	for _, request := range message.GetPorts() {
		spec.Ports = append(spec.Ports, port.Request{
			Service: serviceTypes.toDomain[request.GetServiceType()], Internal: uint16(request.GetInternalPort()),
			External: uint16(request.GetExternalPort()), Description: request.GetDescription(),
			Protocol: cmp.Or(protocols.toDomain[request.GetProtocol()], port.TCP),
			Sources:  request.GetAllowedSources(), ExpiresAt: toTime(request.GetExpiresAt()),
		})
	}
	if d := message.GetDesktop(); d != nil {
		spec.Desktop = &runtime.Desktop{Width: int(d.GetWidth()), Height: int(d.GetHeight()), Depth: int(d.GetDepth())}
	}
	spec.Restart, spec.HealthCheck = fromRestart(message.GetRestart()), fromHealthCheck(message.GetHealthCheck())
	spec.Snapshot, spec.Network = message.GetSnapshot(), fromNetworkPolicy(message.GetNetwork())
	spec.GPU = fromGPURequest(message.GetGpu())
	return spec
}

func toMapping(mapping *port.Mapping, node string) *remotegpuv1.PortMapping {
	message := &remotegpuv1.PortMapping{
		Id: mapping.ID, Project: mapping.Project, Node: node, Etag: etag(mapping.Revision), Environment: mapping.EnvID,
		ServiceType: serviceTypes.toProto[mapping.Service], InternalPort: int32(mapping.Internal), ExternalPort: int32(mapping.External),
		Protocol: protocols.toProto[mapping.Protocol], Description: mapping.Description, Status: mappingStatuses.toProto[mapping.Status],
		CreatedAt: timestamp(mapping.CreatedAt), UpdatedAt: timestamp(mapping.UpdatedAt), ReleasedAt: timestamp(mapping.ReleasedAt),
		ExpiresAt: timestamp(mapping.ExpiresAt), EnvironmentName: mapping.EnvName, Reach: reaches.toProto[mapping.Reach],
	}
	for _, source := range mapping.Sources {
		message.AllowedSources = append(message.AllowedSources, source.String())
	}
	return message
}

func (s *services) toOperation(op *operation.Operation) *remotegpuv1.Operation {
	if op == nil {
		return nil
	}
	message := &remotegpuv1.Operation{
		Id: op.ID, Project: op.Project, Node: s.cfg.NodeName, Labels: op.Labels, Etag: etag(op.Revision), Kind: op.Kind, Target: op.Target,
		State: operationStates.toProto[op.State], Attempts: int32(op.Attempts), Problem: toProblem(op.Problem),
		CreatedAt: timestamp(op.CreatedAt), StartedAt: timestamp(op.StartedAt), FinishedAt: timestamp(op.FinishedAt),
		CancelRequested: op.CancelRequested, Result: op.Result, Arguments: runtime.Arguments(op),
	}
	if p := op.Progress; p != nil {
		message.Progress = &remotegpuv1.OperationProgress{Step: p.Step, Done: p.Done, Total: p.Total, Log: p.Log}
		for _, layer := range p.Layers {
			message.Progress.Layers = append(message.Progress.Layers, &remotegpuv1.LayerProgress{
				Digest: layer.Digest, Done: layer.Done, Total: layer.Total, State: layerStates.toProto[layer.State],
			})
		}
	}
	return message
}
