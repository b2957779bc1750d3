package containerd

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// labelGPUMemory names, in a record, the GPUs whose memory the driver limits
// for the container: UUIDs with commas.
const labelGPUMemory = "remotegpu.dev/gpu-memory"

// liftTimeout is how long a stop waits for the driver to forget limits.
const liftTimeout = 10 * time.Second

func limitedGPUs(c *runtime.Container) string {
	uuids := make([]string, len(c.GPUMemory))
	for i, limit := range c.GPUMemory {
		uuids[i] = limit.GPU
	}
	return strings.Join(uuids, ",")
}

// limitGPUs has the driver limit a container that has a cgroup by now, and no
// process of its own yet. Whether it can the driver says: that takes cgroup v2.
func (e *Engine) limitGPUs(ctx context.Context, c *runtime.Container) error {
	if len(c.GPUMemory) == 0 {
		return nil
	}
	if e.cfg.LimitGPU == nil {
		return problem.New(problem.GPUNotEnforceable, "this node does not limit memory of GPUs").
			WithHint("use the mode mig or exclusive, or accept a share that nothing enforces")
	}
	for _, limit := range c.GPUMemory {
		err := e.cfg.LimitGPU(ctx, limit.GPU, e.cgroup(c.ID), limit.Bytes)
		if err == nil {
			continue
		}
		if errdefs.IsNotImplemented(err) {
			return problem.New(problem.GPUNotEnforceable, "the driver cannot limit memory of GPU %s", limit.GPU).WithCause(err).
				WithHint("use the mode mig or exclusive, or accept a share that nothing enforces")
		}
		return fmt.Errorf("limit memory of GPU %s: %w", limit.GPU, err)
	}
	return nil
}

// liftGPULimits has the driver forget limits while the cgroup is there that they
// are of. They are nothing without it, so a failure stops nobody.
func (e *Engine) liftGPULimits(ctx context.Context, record *containers.Container) {
	names := record.Labels[labelGPUMemory]
	if names == "" || e.cfg.LimitGPU == nil || !cgroup.Exists(e.cgroup(record.ID)) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, liftTimeout)
	defer cancel()
	for uuid := range strings.SplitSeq(names, ",") {
		if err := e.cfg.LimitGPU(ctx, uuid, e.cgroup(record.ID), 0); err != nil && !errdefs.IsNotFound(err) {
			e.cfg.Log.WarnContext(ctx, "the limit of a GPU's memory was not lifted", "container", record.ID, "gpu", uuid, "error", err)
		}
	}
}

// liftGPULimitsOf is liftGPULimits for who does not have the record.
func (e *Engine) liftGPULimitsOf(ctx context.Context, id string) {
	record, err := e.store.Get(ctx, id)
	if err != nil {
		e.cfg.Log.DebugContext(ctx, "limits of GPUs are not known", "container", id, "error", err)
		return
	}
	e.liftGPULimits(ctx, &record)
}
