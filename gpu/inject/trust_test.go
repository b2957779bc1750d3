package inject_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/inject"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
)

// What others than root could change is not run, not even for its version.
func TestProgramsOfOthersAreNotRun(t *testing.T) {
	testutil.Require(t, testutil.Root)
	marker := filepath.Join(t.TempDir(), "ran")
	theirs := func(name string) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\ntouch "+marker+"\necho NVIDIA CDI Hook version 1.20.1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, 1000, 0); err != nil {
			t.Fatal(err)
		}
		return path
	}
	share := gpu.Share{Enforcement: gpu.ByCooperation, MemoryBytes: 1 << 30}
	for name, cfg := range map[string]inject.Config{
		"the hook":        {CDIHook: theirs("nvidia-cdi-hook")},
		"the classic one": {Way: inject.Hook, RuntimeHook: theirs("nvidia-container-runtime-hook"), CLI: program(t, goodCLI)},
		"its program":     {Way: inject.Hook, RuntimeHook: program(t, good), CLI: theirs("nvidia-container-cli")},
		"the library":     {CDIHook: program(t, good), Library: theirs("libvgpu.so")},
	} {
		cfg.Driver, cfg.Dir, cfg.AllowOld = &driver{edits: ofNVIDIA()}, t.TempDir(), true
		injector := inject.New(cfg)
		_, err := injector.Edits(t.Context(), gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuidA, Share: share}}})
		if p := problem.Of(err); p == nil || p.Reason != problem.GPUInjectionFailed || p.Hint == "" || !strings.Contains(p.Message, "user 1000") {
			t.Errorf("%s: %v", name, err)
		}
		injector.Problems(t.Context(), gpu.Inventory{Devices: []gpu.Device{{UUID: uuidA, Vendor: gpu.NVIDIA}}})
	}
	// From before there was a hook.
	_, err := inject.New(inject.Config{CDIHook: filepath.Join(filepath.Dir(theirs("nvidia-ctk")), "nvidia-cdi-hook")}).
		Edits(t.Context(), gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuidA}}})
	if p := problem.Of(err); p == nil || p.Reason != problem.GPUToolkitMissing {
		t.Errorf("a toolkit of another's without a hook: %v", err)
	}
	if _, err := os.Stat(marker); err == nil {
		t.Error("one of them was run")
	}
}

// A program that could not be run to its end says nothing of its version: it is
// asked again, though its file is the same.
func TestToolkitThatDidNotAnswerIsAskedAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "nvidia-cdi-hook")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho >>"+dir+"/asked\n[ -e "+dir+"/well ] || kill -9 $$\necho NVIDIA CDI Hook version 1.20.1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	injector := inject.New(inject.Config{Driver: &driver{}, CDIHook: path})
	ask := func() error {
		_, err := injector.Edits(t.Context(), gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuidA}}})
		return err
	}
	for range 3 {
		if p := problem.Of(ask()); p == nil || p.Reason != problem.Unavailable || p.Hint == "" {
			t.Fatalf("got %v", p)
		}
	}
	asked, err := os.ReadFile(filepath.Join(dir, "asked"))
	if err != nil || len(asked) > 2 {
		t.Errorf("it was run %d times in a moment, %v", len(asked), err)
	}
	if err := os.WriteFile(filepath.Join(dir, "well"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(time.Minute); ask() != nil; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("it is not asked again")
		}
	}
}
