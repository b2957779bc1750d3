package helper

import (
	"context"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/fault"
)

// Probe implements gpu.Driver.
func (c *Client) Probe(ctx context.Context) (inventory gpu.Inventory, err error) {
	err = c.call(ctx, question{Method: methodProbe}, &inventory)
	if err == nil && len(inventory.Devices) == 0 {
		c.rest() // it is asked seldom on such a host, and keeps nothing ready
	}
	return inventory, err
}

// Edits implements gpu.Driver.
func (c *Client) Edits(ctx context.Context, req gpu.EditsRequest) (edits gpu.Edits, err error) {
	err = c.call(ctx, question{Method: methodEdits, Edits: &req}, &edits)
	return edits, err
}

// Usage implements gpu.Driver.
func (c *Client) Usage(ctx context.Context) (usages []gpu.Usage, err error) {
	err = c.call(ctx, question{Method: methodUsage}, &usages)
	return usages, err
}

// change makes a call that changes something.
func (c *Client) change(ctx context.Context, q question, result any) error {
	point := "gpu " + q.Method
	if err := fault.Before(ctx, point); err != nil {
		return err
	}
	if err := c.call(ctx, q, result); err != nil {
		return err
	}
	return fault.After(ctx, point)
}

// CreateMIG implements gpu.Driver.
func (c *Client) CreateMIG(ctx context.Context, gpuUUID, profile string, at gpu.Span) (instance gpu.MIGInstance, err error) {
	err = c.change(ctx, question{Method: methodCreateMIG, GPU: gpuUUID, Profile: profile, Placement: at}, &instance)
	return instance, err
}

// DestroyMIG implements gpu.Driver.
func (c *Client) DestroyMIG(ctx context.Context, migUUID string) error {
	return c.change(ctx, question{Method: methodDestroyMIG, MIG: migUUID}, nil)
}

// SetMIGMode implements gpu.Driver. The watch lets go of the GPUs meanwhile:
// the mode of a GPU that somebody has open stays pending.
func (c *Client) SetMIGMode(ctx context.Context, gpuUUID string, on bool) (resetNeeded bool, err error) {
	defer c.watching.pause()()
	err = c.change(ctx, question{Method: methodMIGMode, GPU: gpuUUID, On: on}, &resetNeeded)
	return resetNeeded, err
}

// SetExclusiveProcess implements gpu.Driver.
func (c *Client) SetExclusiveProcess(ctx context.Context, gpuUUID string, on bool) error {
	return c.change(ctx, question{Method: methodExclusive, GPU: gpuUUID, On: on}, nil)
}

// SetMemoryLimit implements gpu.Driver.
func (c *Client) SetMemoryLimit(ctx context.Context, gpuUUID, cgroup string, bytes uint64) error {
	return c.change(ctx, question{Method: methodLimit, GPU: gpuUUID, Cgroup: cgroup, Bytes: bytes}, nil)
}

// MemoryUsed implements gpu.Driver.
func (c *Client) MemoryUsed(ctx context.Context, gpuUUID string, cgroups []string) (used map[string]uint64, err error) {
	err = c.call(ctx, question{Method: methodMemory, GPU: gpuUUID, Cgroups: cgroups}, &used)
	return used, err
}
