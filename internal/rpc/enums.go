package rpc

import (
	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

// enum is a two-way table between a generated enum and a type of ours. Values
// it does not have become the zero value of the other side.
type enum[P, D comparable] struct {
	toDomain map[P]D
	toProto  map[D]P
}

func newEnum[P, D comparable](toDomain map[P]D) enum[P, D] {
	e := enum[P, D]{toDomain: toDomain, toProto: make(map[D]P, len(toDomain))}
	for p, d := range toDomain {
		e.toProto[d] = p
	}
	return e
}

var (
	environmentStates = newEnum(map[remotegpuv1.EnvironmentState]runtime.State{
		remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_CREATING: runtime.Creating,
		remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_RUNNING:  runtime.Running,
		remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_STOPPED:  runtime.Stopped,
		remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_ERROR:    runtime.Failed,
		remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_DELETED:  runtime.Deleted,
	})
	operationStates = newEnum(map[remotegpuv1.OperationState]operation.State{
		remotegpuv1.OperationState_OPERATION_STATE_QUEUED:    operation.Queued,
		remotegpuv1.OperationState_OPERATION_STATE_RUNNING:   operation.Running,
		remotegpuv1.OperationState_OPERATION_STATE_SUCCEEDED: operation.Succeeded,
		remotegpuv1.OperationState_OPERATION_STATE_FAILED:    operation.Failed,
		remotegpuv1.OperationState_OPERATION_STATE_CANCELLED: operation.Cancelled,
	})
	layerStates = newEnum(map[remotegpuv1.LayerState]operation.LayerState{
		remotegpuv1.LayerState_LAYER_STATE_WAITING:      operation.LayerWaiting,
		remotegpuv1.LayerState_LAYER_STATE_TRANSFERRING: operation.LayerTransferring,
		remotegpuv1.LayerState_LAYER_STATE_TRANSFERRED:  operation.LayerTransferred,
		remotegpuv1.LayerState_LAYER_STATE_UNPACKED:     operation.LayerUnpacked,
		remotegpuv1.LayerState_LAYER_STATE_PRESENT:      operation.LayerPresent,
	})
	pullPolicies = newEnum(map[remotegpuv1.PullPolicy]runtime.PullPolicy{
		remotegpuv1.PullPolicy_PULL_POLICY_IF_NOT_PRESENT: runtime.PullIfNotPresent,
		remotegpuv1.PullPolicy_PULL_POLICY_ALWAYS:         runtime.PullAlways,
		remotegpuv1.PullPolicy_PULL_POLICY_NEVER:          runtime.PullNever,
	})
	mountTypes = newEnum(map[remotegpuv1.MountType]volume.Type{
		remotegpuv1.MountType_MOUNT_TYPE_BIND:   volume.Bind,
		remotegpuv1.MountType_MOUNT_TYPE_VOLUME: volume.Volume,
		remotegpuv1.MountType_MOUNT_TYPE_TMPFS:  volume.Tmpfs,
	})
	serviceTypes = newEnum(map[remotegpuv1.ServiceType]port.Service{
		remotegpuv1.ServiceType_SERVICE_TYPE_SSH:     port.SSH,
		remotegpuv1.ServiceType_SERVICE_TYPE_RDP:     port.RDP,
		remotegpuv1.ServiceType_SERVICE_TYPE_JUPYTER: port.Jupyter,
		remotegpuv1.ServiceType_SERVICE_TYPE_VNC:     port.VNC,
		remotegpuv1.ServiceType_SERVICE_TYPE_NOVNC:   port.NoVNC,
		remotegpuv1.ServiceType_SERVICE_TYPE_CUSTOM:  port.Custom,
	})
	egressModes = newEnum(map[remotegpuv1.EgressMode]policy.Egress{
		remotegpuv1.EgressMode_EGRESS_MODE_OPEN:       policy.Open,
		remotegpuv1.EgressMode_EGRESS_MODE_ALLOW_LIST: policy.AllowList,
		remotegpuv1.EgressMode_EGRESS_MODE_NONE:       policy.None,
	})
	protocols = newEnum(map[remotegpuv1.Protocol]port.Protocol{
		remotegpuv1.Protocol_PROTOCOL_TCP: port.TCP,
		remotegpuv1.Protocol_PROTOCOL_UDP: port.UDP,
	})
	mappingStatuses = newEnum(map[remotegpuv1.PortMappingStatus]port.Status{
		remotegpuv1.PortMappingStatus_PORT_MAPPING_STATUS_RESERVED: port.Reserved,
		remotegpuv1.PortMappingStatus_PORT_MAPPING_STATUS_ACTIVE:   port.Active,
		remotegpuv1.PortMappingStatus_PORT_MAPPING_STATUS_RELEASED: port.Released,
	})
	reaches = newEnum(map[remotegpuv1.PortReach]port.Reach{
		remotegpuv1.PortReach_PORT_REACH_EVERYBODY: port.FromEverywhere,
		remotegpuv1.PortReach_PORT_REACH_SOURCES:   port.FromSources,
		remotegpuv1.PortReach_PORT_REACH_NODE:      port.FromNode,
		remotegpuv1.PortReach_PORT_REACH_NOWHERE:   port.FromNowhere,
	})
)
