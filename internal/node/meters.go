package node

import (
	"context"
	"path"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/containerd"
)

// meters measures environments for the Manager: processes by their control
// group, traffic by their interface, disk by the engine.
type meters struct {
	*containerd.Engine
	networks *network.Networks
	groups   *cgroup.Reader
	parent   string // of the groups
}

// Usage reads the counters of those that run.
func (m meters) Usage(ctx context.Context, envIDs []string) (map[string]runtime.Usage, error) {
	traffic, err := m.networks.Traffic(envIDs)
	if err != nil {
		return nil, err
	}
	usages := make(map[string]runtime.Usage, len(envIDs))
	for _, id := range envIDs {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		usage, err := m.groups.Usage(path.Join(m.parent, id))
		if errdefs.IsNotFound(err) {
			continue // it has ended
		}
		if err != nil {
			return nil, err
		}
		usages[id] = runtime.Usage{
			At: time.Now(), CPU: usage.CPU, MemoryBytes: usage.MemoryBytes, WorkingSetBytes: usage.WorkingSetBytes, Pids: usage.Pids,
			NetworkReceived: traffic[id].Received, NetworkSent: traffic[id].Sent,
			BlockReadBytes: usage.BlockReadBytes, BlockWriteBytes: usage.BlockWriteBytes,
		}
	}
	return usages, nil
}
