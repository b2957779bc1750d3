package inject_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/inject"
)

// A GPU that is not MPS's is open to any number of processes, whoever has closed
// it before, and its turns are as long as the node's configuration says.
func TestTurnsOfThoseWhoShare(t *testing.T) {
	dir := t.TempDir()
	smi := filepath.Join(dir, "nvidia-smi")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(smi, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	asked := func() string {
		text, err := os.ReadFile(filepath.Join(dir, "asked"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		_ = os.Remove(filepath.Join(dir, "asked"))
		return strings.TrimSpace(string(text))
	}
	const works = "echo \"$*\" >> \"${0%/*}/asked\""
	write(works)
	served := &daemons{}
	d := &driver{edits: ofNVIDIA()}
	turns := inject.New(inject.Config{
		Driver: d, CDIHook: program(t, good), MPS: served, SharedBy: gpu.TimeSlicing, TimeSlice: "long", SMI: smi,
	})
	of := func(share gpu.Share) gpu.EditsRequest {
		return gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuidA, Share: share}}}
	}
	for name, test := range map[string]struct {
		share         gpu.Share
		opened, slice bool
	}{
		"alone":          {gpu.Share{}, true, false},
		"shared":         {gpu.Share{Enforcement: gpu.ByNone}, true, true},
		"held by it":     {gpu.Share{Enforcement: gpu.ByMPS, MemoryBytes: 1 << 30}, false, false},
		"by the driver":  {gpu.Share{Enforcement: gpu.ByDriver, MemoryBytes: 1 << 30}, true, true},
		"held by nobody": {gpu.Share{Enforcement: gpu.ByNone, MemoryBytes: 1 << 30}, true, true},
	} {
		d.opened, served.asked = nil, nil
		edits, err := turns.Edits(t.Context(), of(test.share))
		if err != nil || len(edits.Warnings) > 0 {
			t.Errorf("%s: %v, warnings %q", name, err, edits.Warnings)
		}
		if slices.Equal(d.opened, []string{uuidA}) != test.opened || (len(served.asked) == 0) != test.opened {
			t.Errorf("%s: opened %q, daemons of %q", name, d.opened, served.asked)
		}
		want := ""
		if test.slice {
			want = "compute-policy -i " + uuidA + " --set-timeslice 3"
		}
		if got := asked(); got != want {
			t.Errorf("%s: nvidia-smi was run with %q, want %q", name, got, want)
		}
	}
	d.opened = nil
	if _, err := turns.Edits(t.Context(), gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuidA, MIG: "MIG-1"}}}); err != nil || len(d.opened) > 0 || asked() != "" {
		t.Errorf("an instance: opened %q, %v", d.opened, err)
	}

	// A GPU that takes no other length is shared all the same.
	write("echo 'Setting the timeslice is not supported on this GPU'; echo 'Treating as warning'; exit 3")
	edits, err := turns.Edits(t.Context(), of(gpu.Share{Enforcement: gpu.ByNone}))
	if err != nil || len(edits.Warnings) != 1 || !strings.Contains(edits.Warnings[0], "not long: Setting the timeslice is not supported") {
		t.Errorf("one that is not supported: %v, %q", err, edits.Warnings)
	}
	write(works)
	if err := os.Chmod(smi, 0o777); err != nil {
		t.Fatal(err)
	}
	if edits, err := turns.Edits(t.Context(), of(gpu.Share{Enforcement: gpu.ByNone})); err != nil || len(edits.Warnings) != 1 || asked() != "" {
		t.Errorf("a program that others could change: %v, %q", err, edits.Warnings)
	}
	// One that stays closed cannot be shared.
	d.closed = errors.New("no permission")
	if _, err := turns.Edits(t.Context(), of(gpu.Share{Enforcement: gpu.ByNone})); !errors.Is(err, d.closed) {
		t.Errorf("one that stays closed: %v", err)
	}
	if edits, err := turns.Edits(t.Context(), of(gpu.Share{})); err != nil || len(edits.Warnings) != 1 || !strings.Contains(edits.Warnings[0], "no permission") {
		t.Errorf("one that stays closed, alone: %v, %q", err, edits.Warnings)
	}
}
