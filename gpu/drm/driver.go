package drm

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
)

// Driver is a gpu.Driver with the GPUs of AMD and Intel in its inventory and
// among what it measures. All else is NVIDIA's.
type Driver struct {
	gpu.Driver
	Sys    string // "/sys"
	PCIIDs string // path of pci.ids(5)
}

// Probe implements gpu.Driver. Software of NVIDIA that does not answer hides no
// GPU of another vendor.
func (d Driver) Probe(ctx context.Context) (gpu.Inventory, error) {
	inventory, missing := d.Driver.Probe(ctx)
	if errors.Is(ctx.Err(), context.Canceled) {
		return gpu.Inventory{}, missing
	}
	devices, err := Devices(d.Sys, d.PCIIDs)
	if err := errors.Join(missing, err); err != nil && len(devices) == 0 {
		return gpu.Inventory{}, err
	}
	if missing != nil {
		inventory = gpu.Inventory{At: time.Now(), Missing: missing, Notes: []string{"GPUs of NVIDIA are not known: " + missing.Error()}}
	}
	inventory.Devices = append(inventory.Devices, devices...)
	slices.SortFunc(inventory.Devices, func(a, b gpu.Device) int { return strings.Compare(a.PCI, b.PCI) })
	return inventory, nil
}

// Usage implements gpu.Driver. Which processes use a GPU of these vendors is
// not known.
func (d Driver) Usage(ctx context.Context) ([]gpu.Usage, error) {
	usages, err := d.Driver.Usage(ctx)
	if err != nil {
		return nil, err
	}
	devices, err := Devices(d.Sys, "")
	if err != nil {
		return nil, err
	}
	for _, device := range devices {
		usages = append(usages, measure(filepath.Join(d.Sys, "bus/pci/devices", device.PCI), device.UUID))
	}
	return usages, nil
}

// measure reads what amdgpu tells, and hwmon of either vendor.
func measure(dir, uuid string) gpu.Usage {
	usage := gpu.Untold(uuid)
	if percent, err := strconv.Atoi(read(dir, "gpu_busy_percent")); err == nil {
		usage.UtilPercent = percent
	}
	if bytes, err := strconv.ParseUint(read(dir, "mem_info_vram_used"), 10, 64); err == nil {
		usage.MemoryUsed = bytes
	}
	sensors, err := filepath.Glob(filepath.Join(dir, "hwmon/hwmon*"))
	if err != nil {
		return usage
	}
	for _, sensor := range sensors {
		if millidegrees, err := strconv.Atoi(read(sensor, "temp1_input")); err == nil {
			usage.Temperature = millidegrees / 1000
		}
		for _, name := range []string{"power1_average", "power1_input"} {
			if microwatts, err := strconv.Atoi(read(sensor, name)); err == nil && usage.PowerMilliwatts < 0 {
				usage.PowerMilliwatts = microwatts / 1000
			}
		}
	}
	return usage
}
