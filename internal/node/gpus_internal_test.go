package node

import (
	"log/slog"
	"slices"
	"testing"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/config"
)

// A lease says what holds it. What has to be brought into containers holds
// nothing where the way brings render nodes alone, or nothing.
func TestEnforcersAreThoseThatTheWayBrings(t *testing.T) {
	for way, want := range map[string][]gpu.Enforcement{
		"cdi":  {gpu.ByDriver, gpu.ByMPS, gpu.ByCooperation},
		"hook": {gpu.ByDriver, gpu.ByMPS, gpu.ByCooperation},
		"dri":  {gpu.ByDriver},
		"none": {gpu.ByDriver},
	} {
		g := newGPUs(config.GPU{
			GPURules: config.GPURules{Enabled: true}, Injection: way, MemoryLimits: true, MPSControl: "/usr/bin/nvidia-cuda-mps-control",
			HAMiLibrary: "/opt/libvgpu.so",
		}, t.TempDir(), "/remotegpu-test", slog.New(slog.DiscardHandler))
		if !slices.Equal(g.enforcers, want) {
			t.Errorf("%s: %q, want %q", way, g.enforcers, want)
		}
	}
}

// All who share a GPU are clients of MPS where the node runs it, unless they are
// to take turns.
func TestHowGPUsAreShared(t *testing.T) {
	const control = "/usr/bin/nvidia-cuda-mps-control"
	for _, test := range []struct {
		injection, control, by string
		want                   gpu.SharedBy
	}{
		{"cdi", "", "", gpu.TimeSlicing},
		{"cdi", control, "", gpu.MPS},
		{"hook", control, "mps", gpu.MPS},
		{"cdi", control, "time-slicing", gpu.TimeSlicing},
		{"none", control, "", gpu.TimeSlicing},
	} {
		if got := sharedBy(&config.GPU{Injection: test.injection, MPSControl: test.control, SharedBy: test.by}); got != test.want {
			t.Errorf("%+v: %s", test, got)
		}
	}
}
