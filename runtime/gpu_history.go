package runtime

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/gpu"
)

// GPULeases returns who has GPUs and who had them, the latest first, and the
// cursor of the next page: of one GPU, or, where name is "", of all. One that the
// host does not have any more is found by its UUID. GPU_NOT_FOUND,
// PAGE_TOKEN_INVALID.
func (m *Manager) GPULeases(ctx context.Context, name string, limit int, after string) ([]gpu.Lease, string, error) {
	filter := LeaseFilter{GPU: name, Limit: limit, After: after}
	var unknown error
	if name != "" {
		g, err := m.GPU(ctx, name, false)
		switch {
		case err == nil:
			filter.GPU = g.UUID
		case errdefs.IsNotFound(err):
			unknown = err
		default:
			return nil, "", err
		}
	}
	leases, next, err := m.cfg.Store.GPULeases(ctx, filter)
	if err != nil {
		return nil, "", err
	}
	if unknown != nil && len(leases) == 0 {
		return nil, "", unknown
	}
	books := gpu.Books{Devices: m.gpus.seen().Devices}
	for i := range leases {
		if l := &leases[i]; l.ReleasedAt.IsZero() {
			device, _ := books.Device(l.GPU)
			instance, _ := device.InstanceOf(*l)
			l.MIG = instance.UUID
		}
	}
	return leases, next, nil
}
