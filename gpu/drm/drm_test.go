package drm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/drm"
	"github.com/remotegpu/remotegpu/gpu/gputest"
)

// device makes a PCI device of files; those that end with / are directories.
func device(t *testing.T, sys, pci string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(sys, "bus/pci/devices", pci, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

const pciIDs = `#	comment
1002  Advanced Micro Devices, Inc. [AMD/ATI]
	73bf  Navi 21 [Radeon RX 6800/6800 XT / 6900 XT]
		1002 0e3a  a subsystem
	740f  Aldebaran/MI200 [Instinct MI210]
8086  Intel Corporation
	56c0  Data Center GPU Flex 170
C 03  Display controller
`

func host(t *testing.T) (sys, ids string) {
	t.Helper()
	sys, ids = t.TempDir(), filepath.Join(t.TempDir(), "pci.ids")
	if err := os.WriteFile(ids, []byte(pciIDs), 0o644); err != nil {
		t.Fatal(err)
	}
	device(t, sys, "0000:65:00.0", map[string]string{
		"vendor": "0x8086\n", "device": "0x56c0\n", "class": "0x038000\n", "numa_node": "-1\n", "drm/card2/dev": "", "drm/renderD130/dev": "",
	})
	device(t, sys, "0000:03:00.0", map[string]string{
		"vendor": "0x1002\n", "device": "0x73bf\n", "class": "0x030000\n", "numa_node": "1\n", "mem_info_vram_total": "17163091968\n",
		"drm/card0/dev": "", "drm/renderD128/dev": "", "drm/version": "", "gpu_busy_percent": "42\n", "mem_info_vram_used": "1048576\n",
		"hwmon/hwmon3/temp1_input": "61000\n", "hwmon/hwmon3/power1_average": "123000000\n",
	})
	device(t, sys, "0000:04:00.0", map[string]string{
		"vendor": "0x1002\n", "device": "0x740f\n", "class": "0x038000\n", "product_name": "Instinct MI210\n", "drm/renderD129/dev": "",
	})
	device(t, sys, "0000:05:00.0", map[string]string{"vendor": "0x1002\n", "device": "0xffff\n", "class": "0x030000\n", "drm/renderD131/dev": ""})
	device(t, sys, "0000:06:00.0", map[string]string{"vendor": "0x1002\n", "class": "0x030000\n"})                           // no driver
	device(t, sys, "0000:07:00.0", map[string]string{"vendor": "0x10de\n", "class": "0x030000\n", "drm/renderD132/dev": ""}) // NVIDIA's
	device(t, sys, "0000:08:00.0", map[string]string{"vendor": "0x8086\n", "class": "0x020000\n"})                           // a network card
	return sys, ids
}

func TestDevices(t *testing.T) {
	t.Parallel()
	sys, ids := host(t)
	got, err := drm.Devices(sys, ids)
	if err != nil {
		t.Fatal(err)
	}
	want := []gpu.Device{
		{
			UUID: "PCI-0000:03:00.0", Vendor: gpu.AMD, Model: "AMD Navi 21 [Radeon RX 6800/6800 XT / 6900 XT]", Index: -1, Minor: -1, PCI: "0000:03:00.0",
			NUMANode: 1, MemoryBytes: 17163091968, CardNode: "/dev/dri/card0", RenderNode: "/dev/dri/renderD128",
		},
		{UUID: "PCI-0000:04:00.0", Vendor: gpu.AMD, Model: "Instinct MI210", Index: -1, Minor: -1, PCI: "0000:04:00.0", NUMANode: -1, RenderNode: "/dev/dri/renderD129"},
		{UUID: "PCI-0000:05:00.0", Vendor: gpu.AMD, Model: "AMD GPU ffff", Index: -1, Minor: -1, PCI: "0000:05:00.0", NUMANode: -1, RenderNode: "/dev/dri/renderD131"},
		{
			UUID: "PCI-0000:65:00.0", Vendor: gpu.Intel, Model: "Intel Data Center GPU Flex 170", Index: -1, Minor: -1, PCI: "0000:65:00.0",
			NUMANode: -1, CardNode: "/dev/dri/card2", RenderNode: "/dev/dri/renderD130",
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
	if got, err := drm.Devices(t.TempDir(), ""); err != nil || len(got) != 0 {
		t.Errorf("a host without PCI has %+v, %v", got, err)
	}
	if got, _ := drm.Devices(sys, "/nonexistent"); len(got) != 4 || got[0].Model != "AMD GPU 73bf" {
		t.Errorf("without pci.ids: %+v", got)
	}
}

func TestProbeAddsThem(t *testing.T) {
	t.Parallel()
	sys, ids := host(t)
	fake := gputest.NewDriver(gputest.Plain(1)...) // at 0000:10:00.0
	driver := drm.Driver{Driver: fake, Sys: sys, PCIIDs: ids}
	inventory, err := driver.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, device := range inventory.Devices {
		order = append(order, device.PCI[:7])
	}
	if diff := cmp.Diff([]string{"0000:03", "0000:04", "0000:05", "0000:10", "0000:65"}, order); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	usages, err := driver.Usage(t.Context())
	if err != nil || len(usages) != 5 {
		t.Fatalf("usage %+v, %v", usages, err)
	}
	amd := gpu.Untold("PCI-0000:03:00.0")
	amd.UtilPercent, amd.MemoryUsed, amd.Temperature, amd.PowerMilliwatts = 42, 1<<20, 61, 123000
	want := []gpu.Usage{amd, gpu.Untold("PCI-0000:04:00.0")}
	if diff := cmp.Diff(want, usages[1:3]); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}

	// When NVIDIA's software does not answer, the others are told, and that.
	broken := errors.New("broken")
	fake.Do = func(string, func() error) error { return broken }
	if inventory, err := driver.Probe(t.Context()); err != nil || len(inventory.Devices) != 4 || !errors.Is(inventory.Missing, broken) || len(inventory.Notes) != 1 {
		t.Errorf("without NVIDIA's software: %+v, %v", inventory, err)
	}
	if inventory, err := (drm.Driver{Driver: fake, Sys: t.TempDir()}).Probe(t.Context()); !errors.Is(err, broken) {
		t.Errorf("without other GPUs: %+v, %v", inventory, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if inventory, err := driver.Probe(ctx); !errors.Is(err, context.Canceled) || len(inventory.Devices) != 0 {
		t.Errorf("a probe that failed: %+v, %v", inventory, err)
	}
}
