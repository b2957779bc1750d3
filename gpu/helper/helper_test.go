package helper_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/helper"
	"github.com/remotegpu/remotegpu/gpu/nvidia"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/test/fakenvml"
)

func TestMain(m *testing.M) { fakenvml.Main(m) }

func one() fakenvml.Host { return fakenvml.Host{GPUs: []fakenvml.GPU{{Model: gpus.A100_SXM4_40GB}}} }

// mustProbe probes and expects as many GPUs.
func mustProbe(t *testing.T, driver gpu.Driver, want int) gpu.Inventory {
	t.Helper()
	inventory, err := driver.Probe(t.Context())
	if err != nil {
		t.Fatalf("probe: %v", err)
	}
	if len(inventory.Devices) != want {
		t.Fatalf("%d GPUs, want %d: %+v", len(inventory.Devices), want, inventory)
	}
	return inventory
}

// mustFail expects an error that says that the software failed, and why.
func mustFail(t *testing.T, err error, words ...string) {
	t.Helper()
	if !errdefs.IsUnavailable(err) || problem.Of(err).Reason != problem.GPUUnavailable || problem.Of(err).Hint == "" {
		t.Fatalf("%v is not GPU_UNAVAILABLE with a hint", err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not say %q", err, word)
		}
	}
}

func TestMissingSymbolCostsOneCall(t *testing.T) {
	t.Parallel()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version, "nvmlDeviceGetTotalEccErrors")
	library.Set(t, one())
	client := library.Client(t, t.TempDir())
	mustProbe(t, client, 1)
	for range 2 {
		_, err := client.Usage(t.Context())
		mustFail(t, err, "symbol lookup error", "nvmlDeviceGetTotalEccErrors", "exit status 127")
		mustProbe(t, client, 1)
	}
}

func TestCrashCostsOneCall(t *testing.T) {
	t.Parallel()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	host := one()
	host.Rules = []string{"crash nvmlDeviceGetPowerUsage"}
	library.Set(t, host)
	client := library.Client(t, t.TempDir())
	_, err := client.Usage(t.Context())
	mustFail(t, err, "SIGSEGV")
	mustProbe(t, client, 1)
	library.Set(t, one())
	if usage, err := client.Usage(t.Context()); err != nil || len(usage) != 1 {
		t.Fatalf("usage after the crash: %+v, %v", usage, err)
	}
}

func TestHangIsKilled(t *testing.T) {
	t.Parallel()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	host := one()
	host.Rules = []string{"hang nvmlDeviceGetPowerUsage"}
	library.Set(t, host)
	client := library.Client(t, t.TempDir(), func(cfg *helper.Config, _ *nvidia.Config) {
		cfg.Timeout, cfg.Grace = time.Second, 10*time.Millisecond
	})
	_, err := client.Usage(t.Context()) // the client's own limit
	mustFail(t, err, "did not answer in 1s")
	mustProbe(t, client, 1)

	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = client.Usage(ctx) // the caller's
	mustFail(t, err, "in time")
	mustProbe(t, client, 1) // waits until the one that hangs is gone

	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err = client.Usage(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("a call that was cancelled: %v", err)
	}
	mustProbe(t, client, 1)
}

// What changes something is whole when its caller has gone.
func TestCallGoesOnForAMomentAfterItsContext(t *testing.T) {
	t.Parallel()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	host := one()
	host.Rules = []string{"hang nvmlGpuInstanceCreateComputeInstance"}
	library.Set(t, host)
	library.MIGMode(t, 0, true)
	client := library.Client(t, t.TempDir(), func(cfg *helper.Config, _ *nvidia.Config) { cfg.Grace = time.Minute })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := client.CreateMIG(ctx, fakenvml.UUID(0), "1g.5gb", gpu.Span{Start: 2, Size: 1})
		done <- err
	}()
	eventually(t, func() bool { return slices.Contains(library.Log(t), "hang nvmlGpuInstanceCreateComputeInstance") })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("a call that was cancelled: %v", err)
	}
	library.Set(t, one())
	instances := mustProbe(t, client, 1).Devices[0].MIG.Instances
	if len(instances) != 1 || instances[0].Placement.Start != 2 {
		t.Errorf("instances %+v", instances)
	}
}

func eventually(t *testing.T, is func() bool) {
	t.Helper()
	for until := time.Now().Add(time.Minute); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("it did not come about within a minute")
		}
	}
}

func TestDriverUpgradeIsFollowed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	library := fakenvml.Build(t, dir, fakenvml.Version)
	library.Set(t, one())
	client := library.Client(t, t.TempDir())
	if got := mustProbe(t, client, 1).Driver; got != fakenvml.Version {
		t.Fatalf("driver %s", got)
	}
	// The kernel has the new one, the files are still the old ones.
	host := one()
	host.Driver = "1000.1.2"
	library.Set(t, host)
	_, err := client.Probe(t.Context())
	mustFail(t, err, "different versions")
	// The process that has the old library loaded must not be asked again.
	fakenvml.Build(t, dir, "1000.1.2").Set(t, host)
	if got := mustProbe(t, client, 1).Driver; got != "1000.1.2" {
		t.Fatalf("driver %s", got)
	}
}

func TestNoDriver(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	client := (&fakenvml.Library{Path: filepath.Join(root, "libnvidia-ml.so.1")}).Client(t, root)
	inventory := mustProbe(t, client, 0)
	if len(inventory.Notes) != 1 || !strings.Contains(inventory.Notes[0], "no NVIDIA driver") {
		t.Errorf("notes %q", inventory.Notes)
	}
	if usage, err := client.Usage(t.Context()); err != nil || len(usage) != 0 {
		t.Errorf("usage %+v, %v", usage, err)
	}
	err := client.SetExclusiveProcess(t.Context(), "GPU-x", true)
	mustFail(t, err, "no NVIDIA driver")

	// A library that cannot be loaded is no sign of a host without GPUs.
	if err := os.WriteFile(filepath.Join(root, "libnvidia-ml.so.1"), []byte("not a library"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = client.Probe(t.Context())
	mustFail(t, err, "cannot be loaded")

	// Nor is a driver that is not loaded, or any other failure.
	library := fakenvml.Build(t, root, fakenvml.Version)
	_, err = client.Probe(t.Context())
	mustFail(t, err, "not loaded")
	library.Set(t, fakenvml.Host{Rules: []string{"fail nvmlDeviceGetCount_v2 999"}})
	_, err = client.Probe(t.Context())
	mustFail(t, err, "count GPUs")
	library.Set(t, fakenvml.Host{})
	if notes := mustProbe(t, client, 0).Notes; len(notes) != 1 || !strings.Contains(notes[0], "has no GPU") {
		t.Errorf("notes %q", notes)
	}
}

// A library may write to the standard output, which the answers are on.
func TestOutputOfALibraryIsNoAnswer(t *testing.T) {
	t.Parallel()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	host := one()
	host.Rules = []string{"print nvmlDeviceGetCount_v2"}
	library.Set(t, host)
	mustProbe(t, library.Client(t, t.TempDir()), 1)
}

func TestEnvironmentOfTheDaemonIsNotTheHelpers(t *testing.T) {
	t.Setenv("LD_LIBRARY_PATH", "/nonexistent")
	t.Setenv("SECRET", "x")
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	library.Set(t, one())
	client := library.Client(t, t.TempDir())
	mustProbe(t, client, 1)
	for _, pid := range children(t) {
		environ, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
		if err != nil {
			t.Fatal(err)
		}
		for variable := range strings.SplitSeq(strings.Trim(string(environ), "\x00"), "\x00") {
			if name, _, _ := strings.Cut(variable, "="); name != "PATH" && name != "LC_ALL" {
				t.Errorf("the helper has %s", variable)
			}
		}
	}
}

// children are the helpers of this process.
func children(t *testing.T) []int {
	t.Helper()
	var pids []int
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // a thread that has ended
		}
		for field := range strings.FieldsSeq(string(text)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			cmdline, err := os.ReadFile(filepath.Join("/proc", field, "cmdline"))
			if err == nil && slices.Contains(strings.Split(string(cmdline), "\x00"), helper.Subcommand) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
