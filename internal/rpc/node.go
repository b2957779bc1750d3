package rpc

import (
	"context"
	"time"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/runtime"
)

// NodeInfo tells about the node.
type NodeInfo interface {
	Info(ctx context.Context) Node
}

// Node is what a node is and what it runs on.
type Node struct {
	ID           string
	Name         string
	Labels       map[string]string
	Version      string
	StartedAt    time.Time
	OS           string
	Kernel       string
	Architecture string
	CPUs         int
	MemoryBytes  int64
	Engine       runtime.EngineInfo
	Cgroup       string
	IPTables     string
	AddressRange string
	Range6       string // "": environments have no IPv6
	GatewayURL   string
	Conditions   []runtime.Condition
	DiskQuota    *runtime.DiskQuota // nil while it is not known
	Repairs      network.Repairs
}

// GetNodeInfo implements the RPC.
func (s *nodeService) GetNodeInfo(ctx context.Context, _ *remotegpuv1.GetNodeInfoRequest) (*remotegpuv1.GetNodeInfoResponse, error) {
	node := s.cfg.Node.Info(ctx)
	counts, err := s.cfg.Manager.Count(ctx)
	if err != nil {
		return nil, err
	}
	message := &remotegpuv1.Node{
		Id: node.ID, Name: node.Name, Labels: node.Labels, Version: node.Version, StartedAt: timestamp(node.StartedAt), Etag: etag(node.StartedAt.UnixMilli()),
		Os: node.OS, Kernel: node.Kernel, Architecture: node.Architecture, Cpus: int32(node.CPUs), MemoryBytes: node.MemoryBytes,
		Containerd: &remotegpuv1.Containerd{
			Address: node.Engine.Address, Version: node.Engine.Version, Namespace: node.Engine.Namespace, Snapshotter: node.Engine.Snapshotter,
		},
		Cgroup: node.Cgroup, Iptables: node.IPTables, AddressRange: node.AddressRange, AddressRange6: node.Range6, GatewayUrl: node.GatewayURL,
		Environments: make(map[string]int32, len(counts)),
	}
	if quota := node.DiskQuota; quota != nil {
		message.DiskQuota = &remotegpuv1.DiskQuota{
			Supported: quota.Supported, Method: quota.Method, Filesystem: quota.Filesystem, Path: quota.Path, Reason: quota.Reason, Hint: quota.Hint,
		}
	}
	message.Firewall = toFirewallState(node.Repairs)
	if gpus, err := s.cfg.Manager.GPUSummary(ctx); err == nil { // else a condition tells
		message.Gpus = &remotegpuv1.NodeGPUs{
			Count: int32(len(gpus.Devices)), Free: int32(gpus.Free), Models: gpus.Models, Driver: gpus.Driver, Cuda: gpus.CUDA,
		}
		for _, e := range gpus.Enforcers {
			message.Gpus.Enforcers = append(message.Gpus.Enforcers, gpuEnforcements.toProto[e])
		}
	}
	for state, count := range counts {
		message.Environments[string(state)] = int32(count)
	}
	for _, condition := range node.Conditions {
		message.Conditions = append(message.Conditions, &remotegpuv1.NodeCondition{
			Reason: string(condition.Reason), Message: condition.Message, Hint: condition.Hint,
		})
	}
	return &remotegpuv1.GetNodeInfoResponse{Node: message}, nil
}
