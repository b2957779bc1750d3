// Package drm finds the GPUs of AMD and Intel that have render nodes: they draw
// desktops. It reads sysfs alone; there is nothing to ask.
package drm

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/remotegpu/remotegpu/gpu"
)

// UUIDPrefix begins the UUID of a GPU of these vendors; its PCI address
// follows.
const UUIDPrefix = "PCI-"

var vendors = map[string]gpu.Vendor{"0x1002": gpu.AMD, "0x8086": gpu.Intel}

const classDisplay = "0x03" // VGA, 3D and other display controllers

// Devices are the GPUs of AMD and Intel below a sysfs ("/sys"), by PCI address.
// pciIDs is the path of pci.ids(5), which names models; it need not exist.
func Devices(sys, pciIDs string) ([]gpu.Device, error) {
	dirs, err := filepath.Glob(filepath.Join(sys, "bus/pci/devices/*"))
	if err != nil {
		return nil, fmt.Errorf("list PCI devices: %w", err)
	}
	var devices []gpu.Device
	for _, dir := range dirs {
		vendor, known := vendors[read(dir, "vendor")]
		if !known || !strings.HasPrefix(read(dir, "class"), classDisplay) {
			continue
		}
		device := gpu.Device{Vendor: vendor, PCI: strings.ToLower(filepath.Base(dir)), Index: -1, Minor: -1, NUMANode: -1}
		device.CardNode, device.RenderNode = nodes(dir)
		if device.RenderNode == "" {
			continue // nothing can be drawn with it: a console, or no driver
		}
		device.UUID = UUIDPrefix + device.PCI
		if node, err := strconv.Atoi(read(dir, "numa_node")); err == nil {
			device.NUMANode = node
		}
		if bytes, err := strconv.ParseUint(read(dir, "mem_info_vram_total"), 10, 64); err == nil { // amdgpu's
			device.MemoryBytes = bytes
		}
		device.Model = model(dir, vendor, pciIDs)
		devices = append(devices, device)
	}
	slices.SortFunc(devices, func(a, b gpu.Device) int { return strings.Compare(a.PCI, b.PCI) })
	return devices, nil
}

func read(dir, name string) string {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// nodes are the DRM nodes of a device.
func nodes(dir string) (card, render string) {
	entries, err := os.ReadDir(filepath.Join(dir, "drm"))
	if err != nil {
		return "", ""
	}
	for _, entry := range entries {
		switch name := entry.Name(); {
		case strings.HasPrefix(name, "renderD"):
			render = "/dev/dri/" + name
		case strings.HasPrefix(name, "card"):
			card = "/dev/dri/" + name
		}
	}
	return card, render
}

// model is what the driver, or pci.ids, calls a device, else its numbers.
func model(dir string, vendor gpu.Vendor, pciIDs string) string {
	maker := map[gpu.Vendor]string{gpu.AMD: "AMD", gpu.Intel: "Intel"}[vendor]
	if name := read(dir, "product_name"); name != "" { // amdgpu's, of some cards
		return name
	}
	number := strings.TrimPrefix(read(dir, "device"), "0x")
	if name := lookUp(pciIDs, strings.TrimPrefix(read(dir, "vendor"), "0x"), number); name != "" {
		return maker + " " + name
	}
	return cmp.Or(strings.TrimSpace(maker+" GPU "+number), maker)
}

// lookUp finds a device's name in pci.ids: a vendor's line begins with its
// number, its devices follow with a tab before theirs.
func lookUp(path, vendor, device string) string {
	text, err := os.ReadFile(path)
	if err != nil || device == "" {
		return ""
	}
	of := false
	for line := range strings.Lines(string(text)) {
		switch {
		case strings.HasPrefix(line, "#"):
		case !strings.HasPrefix(line, "\t"):
			if of {
				return ""
			}
			of = strings.HasPrefix(line, vendor+" ")
		case of && strings.HasPrefix(line, "\t"+device+" "):
			return strings.TrimSpace(strings.TrimPrefix(line, "\t"+device))
		}
	}
	return ""
}
