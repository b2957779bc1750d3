package containerd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"

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
// process of its own yet. What was limited before one failed goes with the task.
func (e *Engine) limitGPUs(ctx context.Context, c *runtime.Container) error {
	if len(c.GPUMemory) == 0 {
		return nil
	}
	if e.cfg.LimitGPU == nil || !e.host().unified {
		return problem.New(problem.GPUNotEnforceable, "memory of GPUs can be limited with cgroup v2 alone, by the driver").
			WithHint("use the mode mig or exclusive, or accept a share that nothing enforces")
	}
	for i, limit := range c.GPUMemory {
		err := e.cfg.LimitGPU(ctx, limit.GPU, e.cgroup(c.ID), limit.Bytes)
		if err == nil {
			continue
		}
		undo, cancel := afterwards(ctx)
		defer cancel()
		for _, done := range c.GPUMemory[:i] {
			err = errors.Join(err, e.cfg.LimitGPU(undo, done.GPU, e.cgroup(c.ID), 0))
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
	if names == "" || e.cfg.LimitGPU == nil {
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
