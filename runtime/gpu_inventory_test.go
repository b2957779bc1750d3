package runtime_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/gputest"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// While the software of NVIDIA does not answer, who has a GPU of another vendor
// goes on, and who has one of NVIDIA's loses nothing.
func TestNVIDIAsSoftwareDoesNotAnswer(t *testing.T) {
	h := newHost(t)
	const amd = "PCI-0000:03:00.0"
	h.gpus = gputest.NewDriver(append(gputest.Plain(1), gpu.Device{UUID: amd, Vendor: gpu.AMD, Model: "AMD Navi", Index: -1, Minor: -1, PCI: "0000:03:00.0"})...)
	h.gpus.Do = h.faults.Do
	h.gpu.HandOver = time.Millisecond
	d := start(t, h)
	draws := gpu.Request{Mode: gpu.Shared, UUIDs: []string{amd}}
	d.create(withGPU("draws", draws))
	d.create(withGPU("computes", gpu.Request{}))
	d.stop()
	h.gpus.Silence(errors.New("NVML hangs"))
	d = start(t, h)
	d.reconcile(false)
	waitFor(t, "the condition", func() bool { return strings.Contains(conditionOf(d, problem.GPUUnavailable), "does not answer") })
	if env := d.get("computes"); env.GPURun.Lost != "" {
		t.Errorf("it is lost: %s", env.GPURun.Lost)
	}
	for _, do := range []func(context.Context, runtime.ActionRequest) (*runtime.Environment, *operation.Operation, error){d.Stop, d.Start} {
		if op := d.act(do, "draws"); op.State != operation.Succeeded {
			t.Errorf("it draws: %+v", op.Problem)
		}
	}
	if env, op := d.create(withGPU("more", draws)); op.State != operation.Succeeded || len(env.GPUs) != 1 || env.GPUs[0].GPU != amd {
		t.Errorf("another that draws: %+v, %+v", env, op)
	}
	d.act(d.Stop, "computes")
	_, _, err := d.Start(t.Context(), runtime.ActionRequest{Environment: "computes"})
	d.refusedGPU(err, problem.GPUUnavailable)
	_, _, err = d.Create(t.Context(), withGPU("new", gpu.Request{Mode: gpu.Shared, Capabilities: []gpu.Capability{gpu.Graphics}}))
	d.refusedGPU(err, problem.GPUUnavailable)
	if held := d.holders()[gputest.UUID(0)]; len(held) != 1 {
		t.Errorf("it has given its GPU back: %v", held)
	}
}
