package nvidia_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/test/fakenvml"
)

func TestMain(m *testing.M) { fakenvml.Main(m) }

// plain is a GPU of 24 GB without MIG.
func plain() gpus.Config {
	return gpus.Config{Name: "NVIDIA L4", Architecture: nvml.DEVICE_ARCH_ADA, MemoryMB: 23034, CudaMajor: 8, CudaMinor: 9}
}

// write makes a file below a directory.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// card makes a PCI device of NVIDIA's.
func card(t *testing.T, root, pci, driver string, drm ...string) {
	t.Helper()
	dir := filepath.Join(root, "sys/bus/pci/devices", pci)
	write(t, filepath.Join(dir, "vendor"), "0x10de\n")
	write(t, filepath.Join(dir, "class"), "0x030200\n")
	write(t, filepath.Join(dir, "numa_node"), "1\n")
	for _, node := range drm {
		write(t, filepath.Join(dir, "drm", node, "dev"), "")
	}
	if driver != "" {
		if err := os.Symlink("../../../../bus/pci/drivers/"+driver, filepath.Join(dir, "driver")); err != nil {
			t.Fatal(err)
		}
	}
}

func probe(t *testing.T, driver gpu.Driver) gpu.Inventory {
	t.Helper()
	inventory, err := driver.Probe(t.Context())
	if err != nil {
		t.Fatalf("probe: %v", err)
	}
	return inventory
}

func TestInventory(t *testing.T) {
	t.Parallel()
	root, library := t.TempDir(), fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	library.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{
		{Model: gpus.A100_SXM4_40GB, ECC: true, Minor: 3, Links: []int{1}},
		{Model: plain(), Minor: 1, VirtMode: nvml.GPU_VIRTUALIZATION_MODE_PASSTHROUGH, Links: []int{0}},
		{Model: plain(), Minor: 2, VirtMode: nvml.GPU_VIRTUALIZATION_MODE_VGPU, PCI: "0000:01:00.0"},
	}})
	card(t, root, fakenvml.PCI(0), "nvidia", "card1", "renderD128")
	card(t, root, "0000:09:00.0", "vfio-pci")
	client := library.Client(t, root)
	inventory := probe(t, client)
	want := gpu.Inventory{
		Driver: fakenvml.Version, NVML: "13." + fakenvml.Version, CUDA: "13.2",
		Notes: []string{"the NVIDIA GPU at 0000:09:00.0 is not used (it is bound to the driver vfio-pci)"},
		Devices: []gpu.Device{
			{
				UUID: fakenvml.UUID(2), Vendor: gpu.NVIDIA, Model: "NVIDIA L4", Index: 2, Minor: 2, PCI: "0000:01:00.0", NUMANode: -1, MemoryBytes: 23034 << 20,
				Architecture: "Ada Lovelace", ComputeCapability: "8.9", Virtualization: "vgpu-guest",
			},
			{
				UUID: fakenvml.UUID(0), Vendor: gpu.NVIDIA, Model: gpus.A100_SXM4_40GB.Name, Index: 0, Minor: 3, PCI: fakenvml.PCI(0), NUMANode: 1,
				MemoryBytes: 40960 << 20, Architecture: "Ampere", ComputeCapability: "8.0", CardNode: "/dev/dri/card1", RenderNode: "/dev/dri/renderD128",
				ECC: true, Peers: []string{fakenvml.UUID(1)}, MIG: gpu.MIG{Capable: true, ResetNeeded: true}, Vitals: gpu.Vitals{UncorrectedErrors: new(uint64)},
			},
			{
				UUID: fakenvml.UUID(1), Vendor: gpu.NVIDIA, Model: "NVIDIA L4", Index: 1, Minor: 1, PCI: fakenvml.PCI(1), NUMANode: -1, MemoryBytes: 23034 << 20,
				Architecture: "Ada Lovelace", ComputeCapability: "8.9", Virtualization: "passthrough", Peers: []string{fakenvml.UUID(0)},
			},
		},
	}
	options := cmp.Options{cmpopts.IgnoreFields(gpu.Inventory{}, "At"), cmpopts.IgnoreFields(gpu.MIG{}, "Profiles")}
	if diff := cmp.Diff(want, inventory, options); diff != "" {
		t.Errorf("inventory (-want +got):\n%s", diff)
	}
	if inventory.At.IsZero() {
		t.Error("the inventory has no time")
	}

	// All that are at a switch are peers of each other.
	library.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{{Model: plain(), Links: []int{-1}}, {Model: plain(), Links: []int{-1, -1}}, {Model: plain()}}})
	var peers [][]string
	for _, device := range probe(t, client).Devices {
		peers = append(peers, device.Peers)
	}
	if diff := cmp.Diff([][]string{{fakenvml.UUID(1)}, {fakenvml.UUID(0)}, nil}, peers); diff != "" {
		t.Errorf("peers (-want +got):\n%s", diff)
	}
}

// A GPU that does not answer hides neither itself nor the others.
func TestLostGPU(t *testing.T) {
	t.Parallel()
	root, library := t.TempDir(), fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	library.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{{Model: plain(), Lost: true}, {Model: plain(), Lost: true}, {Model: plain()}}})
	for index := range 3 {
		card(t, root, fakenvml.PCI(index), "nvidia")
	}
	write(t, filepath.Join(root, "proc/driver/nvidia/gpus", fakenvml.PCI(0), "information"),
		"Model: \t\t NVIDIA L4\nIRQ:   \t\t 92\nGPU UUID: \t "+fakenvml.UUID(0)+"\nVideo BIOS: \t ??.??.??.??.??\nDevice Minor: \t 0\n")
	write(t, filepath.Join(root, "proc/driver/nvidia/gpus", fakenvml.PCI(1), "information"), "GPU UUID: \t GPU-????????-????-????-????-????????????\n")
	inventory := probe(t, library.Client(t, root))
	if len(inventory.Devices) != 2 || inventory.Devices[1].UUID != fakenvml.UUID(2) || inventory.Devices[1].Health.Unhealthy {
		t.Fatalf("inventory %+v", inventory)
	}
	lost := inventory.Devices[0]
	if lost.UUID != fakenvml.UUID(0) || lost.Model != "NVIDIA L4" || lost.Minor != 0 || !lost.Health.Unhealthy || !strings.Contains(lost.Health.Reason, "GPU is lost") {
		t.Errorf("the lost GPU: %+v", lost)
	}
	if len(inventory.Notes) != 1 || !strings.Contains(inventory.Notes[0], fakenvml.PCI(1)) {
		t.Errorf("notes %q", inventory.Notes)
	}
}

// Whatever else is wrong with one GPU, the others are told, measured, found and
// partitioned.
func TestSickGPUHidesNoOther(t *testing.T) {
	t.Parallel()
	root, library := t.TempDir(), fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	client := library.Client(t, root)
	for index := range 2 {
		card(t, root, fakenvml.PCI(index), "nvidia")
		write(t, filepath.Join(root, "proc/driver/nvidia/gpus", fakenvml.PCI(index), "information"), "GPU UUID: \t "+fakenvml.UUID(index)+"\n")
	}
	sick, well := fakenvml.UUID(0), fakenvml.UUID(1)
	library.MIGMode(t, 0, true)
	library.MIGMode(t, 1, true)
	for _, rule := range []string{
		"fail nvmlDeviceGetHandleByIndex_v2 18 0", "fail nvmlDeviceGetHandleByIndex_v2 8 0", "fail nvmlDeviceGetUUID 15 0",
		"fail nvmlDeviceGetPciInfo_v3 999 0", "fail nvmlDeviceGetGpuInstanceProfileInfo 999 0", "fail nvmlDeviceGetMaxMigDeviceCount 999 0",
	} {
		// A search by UUID fails for one that does not answer.
		library.Set(t, fakenvml.Host{
			GPUs:  []fakenvml.GPU{{Model: gpus.A100_SXM4_40GB}, {Model: gpus.A100_SXM4_40GB}},
			Rules: []string{rule, "fail nvmlDeviceGetHandleByUUID 18"},
		})
		devices := probe(t, client).Devices
		if len(devices) != 2 || devices[0].UUID != sick || !devices[0].Health.Unhealthy || devices[1].Health.Unhealthy {
			t.Errorf("%s: %+v", rule, devices)
		}
		usage, err := client.Usage(t.Context())
		if err != nil || len(usage) == 0 || usage[len(usage)-1].UUID != well {
			t.Errorf("%s: usage %+v, %v", rule, usage, err)
		}
		made, err := client.CreateMIG(t.Context(), well, "1g.5gb", gpu.Span{Start: 0, Size: 1})
		if err != nil {
			t.Errorf("%s: %v", rule, err)
			continue
		}
		if err := client.DestroyMIG(t.Context(), made.UUID); err != nil {
			t.Errorf("%s: %v", rule, err)
		}
	}
	// When none answers it is the driver that fails, and no GPU.
	library.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{{Model: plain()}, {Model: plain()}}, Rules: []string{"fail nvmlDeviceGetUUID 999"}})
	_, err := client.Probe(t.Context())
	wantReason(t, err, problem.GPUUnavailable)
	_, err = client.Usage(t.Context())
	wantReason(t, err, problem.GPUUnavailable)
}

// A library that is missing for a moment, as while a package is upgraded, does
// not make a host one without GPUs.
func TestNoLibraryForAGPUThatTheKernelHas(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	client := (&fakenvml.Library{Path: filepath.Join(root, "libnvidia-ml.so.1")}).Client(t, root)
	card(t, root, fakenvml.PCI(1), "nouveau")
	if inventory := probe(t, client); len(inventory.Devices) != 0 || len(inventory.Notes) != 1 {
		t.Errorf("inventory %+v", inventory)
	}
	card(t, root, fakenvml.PCI(0), "nvidia")
	_, err := client.Probe(t.Context())
	wantReason(t, err, problem.GPUUnavailable)
	_, err = client.Usage(t.Context())
	wantReason(t, err, problem.GPUUnavailable)
}

// The helper is root's: a library that others could change is not loaded.
func TestLibraryOfOthersIsNotLoaded(t *testing.T) {
	testutil.Require(t, testutil.Root)
	t.Parallel()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	library.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{{Model: plain()}}})
	client := library.Client(t, t.TempDir())
	if err := os.Chown(filepath.Dir(library.Path), 1000, 0); err != nil {
		t.Fatal(err)
	}
	_, err := client.Probe(t.Context())
	wantReason(t, err, problem.GPUUnavailable)
	if !strings.Contains(err.Error(), "user 1000") {
		t.Error(err)
	}
	if err := os.Chown(filepath.Dir(library.Path), 0, 0); err != nil {
		t.Fatal(err)
	}
	probe(t, client)
}

func TestHealthThatTheGPUTells(t *testing.T) {
	t.Parallel()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	library.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{
		{Model: plain()}, {Model: plain(), RemapFailed: true}, {Model: plain(), Recovery: nvml.GPU_RECOVERY_ACTION_NODE_REBOOT},
	}})
	client := library.Client(t, t.TempDir())
	for i, reason := range []string{"", "could not be remapped", "a reboot of the host"} {
		health := probe(t, client).Devices[i].Health
		if health.Unhealthy != (reason != "") || !strings.Contains(health.Reason, reason) || health.Unhealthy == health.Since.IsZero() {
			t.Errorf("health of GPU %d: %+v, want %q", i, health, reason)
		}
	}
	library.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{{Model: plain()}}, Rules: []string{"fail nvmlDeviceGetEccMode 15"}})
	if health := probe(t, client).Devices[0].Health; !health.Failed() {
		t.Errorf("health of a GPU that is being lost: %+v", health)
	}
	// Other failures of a call may be of the moment.
	library.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{{Model: gpus.A100_SXM4_40GB}}, Rules: []string{"fail nvmlDeviceGetGpuInstanceProfileInfo 999"}})
	library.MIGMode(t, 0, true)
	if health := probe(t, client).Devices[0].Health; !health.Unhealthy || !health.Unsure || health.Failed() {
		t.Errorf("health of a GPU that does not tell its profiles: %+v", health)
	}
}

func TestVitals(t *testing.T) {
	t.Parallel()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	library.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{
		{Model: plain(), Temperature: 95, Slowdown: 90, Shutdown: 100, Throttled: true, ECC: true, ECCErrors: 1, ECCEver: 7, Remap: true},
		{Model: plain(), Temperature: 80, Margin: 9, Retire: true},
		{Model: plain(), Temperature: 80, Margin: -2},
		{Model: plain()},
	}})
	ever := uint64(7)
	want := []gpu.Vitals{
		{Temperature: 95, SlowdownAt: 90, ShutdownAt: 100, Throttled: true, UncorrectedErrors: &ever, RemapPending: true},
		{Temperature: 80, SlowdownAt: 89, RetirePending: true},
		{Temperature: 80, SlowdownAt: 78},
		{},
	}
	var got []gpu.Vitals
	for _, d := range probe(t, library.Client(t, t.TempDir())).Devices {
		if got = append(got, d.Vitals); d.Health.Unhealthy {
			t.Errorf("GPU %d is unhealthy: %+v", d.Index, d.Health)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("vitals (-want +got):\n%s", diff)
	}
	// Drivers that have not all of it.
	old := fakenvml.Build(t, t.TempDir(), fakenvml.Version, "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetMarginTemperature",
		"nvmlDeviceGetTemperatureThreshold", "nvmlDeviceGetRetiredPagesPendingStatus", "nvmlDeviceGetRemappedRows")
	old.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{{Model: plain(), Temperature: 95, Slowdown: 90, Throttled: true, Remap: true, Retire: true}}})
	if diff := cmp.Diff(gpu.Vitals{Temperature: 95, Throttled: true}, probe(t, old.Client(t, t.TempDir())).Devices[0].Vitals); diff != "" {
		t.Errorf("vitals of an old driver (-want +got):\n%s", diff)
	}
}

// A driver that lacks what newer ones have is asked for the rest.
func TestOldDriver(t *testing.T) {
	t.Parallel()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version,
		"nvmlDeviceGetGpuInstanceProfileInfoV", "nvmlDeviceGetArchitecture", "nvmlDeviceGetRemappedRows", "nvmlDeviceGetFieldValues",
		"nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetNvLinkRemoteDeviceType", "nvmlDeviceSetMemoryLimits_v1", "nvmlDeviceGetMPSComputeRunningProcesses_v3",
		"nvmlDeviceGetTemperature", "nvmlDeviceCreateGpuInstanceWithPlacement")
	library.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{{Model: gpus.A100_SXM4_80GB, Links: []int{1}, UsedMB: 100}, {Model: plain(), Links: []int{0}}}})
	client := library.Client(t, t.TempDir())
	devices := probe(t, client).Devices
	if len(devices) != 2 || devices[0].Architecture != "" || devices[0].Peers[0] != fakenvml.UUID(1) {
		t.Fatalf("devices %+v", devices)
	}
	var names []string
	for _, profile := range devices[0].MIG.Profiles {
		names = append(names, profile.Name)
	}
	if got := strings.Join(names, " "); got != "1g.10gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb 1g.10gb+me 1g.20gb" {
		t.Errorf("profiles %s", got)
	}
	if usage, err := client.Usage(t.Context()); err != nil || usage[0].MemoryUsed == 0 || usage[0].Temperature != -1 {
		t.Errorf("usage %+v, %v", usage, err)
	}
	library.MIGMode(t, 0, true)
	_, err := client.CreateMIG(t.Context(), fakenvml.UUID(0), "1g.10gb", gpu.Span{Start: 0, Size: 1})
	wantReason(t, err, problem.GPUUnsupported)

	older := fakenvml.Build(t, t.TempDir(), fakenvml.Version, "nvmlDeviceGetMigMode", "nvmlDeviceIsMigDeviceHandle")
	older.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{{Model: plain()}}})
	if mig := probe(t, older.Client(t, t.TempDir())).Devices[0].MIG; mig.Capable {
		t.Errorf("MIG of a driver without it: %+v", mig)
	}
}
