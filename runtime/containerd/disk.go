package containerd

import (
	"context"
	"fmt"
)

// DiskUsage is the size of a container's writable layer in bytes. A
// snapshotter that does not know it walks the files, until ctx ends. NotFound
// when there is no such container.
func (e *Engine) DiskUsage(ctx context.Context, id string) (int64, error) {
	if quota, limited, err := e.diskQuota(ctx, id); err == nil && limited {
		return quota.Used, nil
	}
	usage, err := e.snapshots.Usage(ctx, id)
	if err != nil {
		return 0, fmt.Errorf("measure writable layer of container %s: %w", id, e.explain(ctx, err))
	}
	return usage.Size, nil
}
