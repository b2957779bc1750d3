package runtime_test

import (
	"slices"
	"testing"

	"github.com/remotegpu/remotegpu/runtime"
)

// Limits that the host cannot give are told of for as long as they are asked
// for.
func TestLimitsBeyondTheHostAreTold(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	req := plain("desk")
	req.Spec.Resources.CPUMillis, req.Spec.Resources.MemoryBytes = 1_000_000, 99999<<40
	env, _ := d.create(req)
	want := []string{"it may use 1000 CPUs, and the host has 2", "it may use 104856551424 MiB of memory, and the host has 8192 MiB"}
	if !slices.Equal(env.Beyond, want) {
		t.Errorf("told %q", env.Beyond)
	}
	updated, err := d.Update(t.Context(), runtime.UpdateRequest{
		Environment: "desk", Fields: []string{"spec.resources.cpu_millis", "spec.resources.memory_bytes"},
		Spec: runtime.Spec{Resources: runtime.Resources{CPUMillis: 2000, MemoryBytes: 8 << 30}},
	})
	if err != nil {
		t.Fatal(err)
	}
	d.done(updated.Operation)
	if got, err := d.Get(t.Context(), "", "desk"); err != nil || len(got.Beyond) > 0 {
		t.Errorf("afterwards: %q, %v", got.Beyond, err)
	}
}
