package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

const (
	defaultShares = 1024  // cpu.shares of a cgroup v1 that nobody set
	defaultWeight = "100" // cpu.weight of a cgroup v2 that nobody set
)

// Update changes the limits of a running container, in its cgroup and in its
// record, or in neither.
func (e *Engine) Update(ctx context.Context, id string, r runtime.Resources) error {
	whole, done := uninterrupted(ctx)
	defer done()
	if err := e.update(whole, id, &r); err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	return nil
}

func (e *Engine) update(ctx context.Context, id string, r *runtime.Resources) error {
	if _, err := e.paused(ctx, id); err != nil {
		return err
	}
	record, err := e.store.Get(ctx, id)
	if err != nil {
		return fmt.Errorf("get record: %w", e.explain(ctx, err))
	}
	var spec specs.Spec
	if err := json.Unmarshal(record.Spec.GetValue(), &spec); err != nil {
		return fmt.Errorf("read spec: %w", err)
	}
	if spec.Linux == nil || spec.Linux.Resources == nil {
		return fmt.Errorf("read spec: no resources: %w", errdefs.ErrInvalidArgument)
	}
	former := e.allLimits(spec.Linux.Resources)
	spec.Linux.Resources.CPU, spec.Linux.Resources.Memory, spec.Linux.Resources.Pids = nil, nil, nil
	limit(spec.Linux.Resources, r, e.host().swapLimit)
	if err := e.checkMemory(id, r); err != nil {
		return err
	}
	err = e.setLimits(ctx, id, e.allLimits(spec.Linux.Resources))
	if err == nil {
		err = e.keepSpec(ctx, &record, &spec)
	}
	if err == nil {
		return nil
	}
	if back := e.setLimits(ctx, id, former); back != nil && !errdefs.IsNotFound(back) {
		err = errors.Join(err, fmt.Errorf("set the former limits again: %w", back))
	}
	return err
}

// allLimits are limits with those spelled out that are not limited: what a
// runtime is not told of it leaves as it is.
func (e *Engine) allLimits(r *specs.LinuxResources) *specs.LinuxResources {
	h := e.host()
	all := &specs.LinuxResources{CPU: r.CPU, Memory: r.Memory, Pids: r.Pids}
	if all.CPU == nil {
		quota, period, shares := int64(-1), uint64(cpuPeriod), uint64(defaultShares)
		all.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
		if h.unified { // no number of shares is the default weight
			all.Unified = map[string]string{"cpu.weight": defaultWeight}
		} else {
			all.CPU.Shares = &shares
		}
	}
	if all.Memory == nil {
		none := int64(-1)
		all.Memory = &specs.LinuxMemory{Limit: &none}
		if h.swapLimit {
			all.Memory.Swap = &none
		}
	}
	if all.Pids == nil {
		none := int64(-1)
		all.Pids = &specs.LinuxPids{Limit: &none}
	}
	return all
}

func (e *Engine) setLimits(ctx context.Context, id string, limits *specs.LinuxResources) error {
	encoded, err := typeurl.MarshalAny(limits)
	if err != nil {
		return fmt.Errorf("encode limits: %w", err)
	}
	_, err = e.tasks.Update(ctx, &tasks.UpdateTaskRequest{
		ContainerID: id, Resources: &anypb.Any{TypeUrl: encoded.GetTypeUrl(), Value: encoded.GetValue()},
	})
	if err == nil {
		return nil
	}
	explained := e.explain(ctx, err)
	if errdefs.IsUnavailable(explained) {
		return explained
	}
	if _, gone := e.paused(ctx, id); errdefs.IsNotFound(gone) {
		return gone
	}
	return problem.New(problem.LimitsRefused, "the limits could not be set: %s", said(err)).
		WithField("spec.resources").WithHint("memory cannot be limited to less than is in use: ask for more, or stop the environment first").
		WithCause(err)
}

// checkMemory refuses a limit that the kernel would enforce by killing: with
// cgroup v2 it takes any limit. With v1 it refuses what it cannot reclaim.
func (e *Engine) checkMemory(id string, r *runtime.Resources) error {
	if !e.host().unified || r.MemoryBytes == 0 {
		return nil
	}
	reader, err := cgroup.NewReader()
	if err != nil {
		return err
	}
	usage, err := reader.Usage(e.cgroup(id))
	if err != nil {
		return err
	}
	if usage.WorkingSetBytes <= r.MemoryBytes {
		return nil
	}
	return problem.New(problem.LimitsRefused, "%d bytes of memory are in use, more than the limit of %d", usage.WorkingSetBytes, r.MemoryBytes).
		WithField("spec.resources.memory_bytes").WithHint("ask for more, or stop the environment first")
}

func (e *Engine) keepSpec(ctx context.Context, record *containers.Container, spec *specs.Spec) error {
	encoded, err := typeurl.MarshalAny(spec)
	if err != nil {
		return fmt.Errorf("encode spec: %w", err)
	}
	record.Spec = encoded
	if _, err := e.store.Update(ctx, *record, "spec"); err != nil {
		return fmt.Errorf("update record: %w", e.explain(ctx, err))
	}
	return nil
}

// Relabel replaces the labels of a container's record, those of the engine's
// own aside.
func (e *Engine) Relabel(ctx context.Context, id string, labels map[string]string) error {
	whole, done := uninterrupted(ctx)
	defer done()
	record, err := e.store.Get(whole, id)
	if err != nil {
		return fmt.Errorf("label container %s: %w", id, e.explain(whole, err))
	}
	all := maps.Clone(labels)
	if all == nil {
		all = make(map[string]string)
	}
	for _, own := range []string{LabelEnvironment, labelLog, labelMade, labelLayer, labelContent, labelDisk, labelGPUMemory} {
		if value, found := record.Labels[own]; found {
			all[own] = value
		}
	}
	if maps.Equal(all, record.Labels) {
		return nil
	}
	record.Labels = all
	if _, err := e.store.Update(whole, record, "labels"); err != nil {
		return fmt.Errorf("label container %s: %w", id, e.explain(whole, err))
	}
	return nil
}
