package nvidia

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/remotegpu/remotegpu/gpu"
)

// card is a GPU of NVIDIA's as the kernel's PCI bus has it.
type card struct {
	pci    string
	driver string // that it is bound to, ""
}

// driven says whether NVIDIA's kernel driver has the GPU.
func (c card) driven() bool { return c.driver == kernelDriver }

func (c card) boundTo() string {
	if c.driver == "" {
		return " (no driver is bound to it)"
	}
	return " (it is bound to the driver " + c.driver + ")"
}

const (
	pciVendorNVIDIA = "0x10de"
	pciClassDisplay = "0x03" // VGA and 3D controllers
	kernelDriver    = "nvidia"
)

// cards are the GPUs of NVIDIA's that are in the machine. A host without PCI
// has none.
func (c Config) cards() []card {
	var cards []card
	devices, err := filepath.Glob(filepath.Join(c.Sys, "bus/pci/devices/*"))
	if err != nil {
		return nil
	}
	for _, device := range devices {
		if readLine(filepath.Join(device, "vendor")) != pciVendorNVIDIA || !strings.HasPrefix(readLine(filepath.Join(device, "class")), pciClassDisplay) {
			continue
		}
		found := card{pci: strings.ToLower(filepath.Base(device))}
		if target, err := os.Readlink(filepath.Join(device, "driver")); err == nil {
			found.driver = filepath.Base(target)
		}
		cards = append(cards, found)
	}
	return cards
}

// numaNode is -1 where the kernel does not know.
func (c Config) numaNode(pci string) int {
	node, err := strconv.Atoi(readLine(filepath.Join(c.Sys, "bus/pci/devices", pci, "numa_node")))
	if err != nil {
		return -1
	}
	return node
}

// drmNodes are the paths of a GPU's DRM nodes, "" without nvidia-drm modeset=1.
func (c Config) drmNodes(pci string) (card, render string) {
	entries, err := os.ReadDir(filepath.Join(c.Sys, "bus/pci/devices", pci, "drm"))
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

// remembered is what the driver knows of a GPU that it does not reach any
// more.
func (c Config) remembered(pci string) (gpu.Device, bool) {
	text, err := os.ReadFile(filepath.Join(c.Proc, "driver/nvidia/gpus", pci, "information"))
	if err != nil {
		return gpu.Device{}, false
	}
	device := gpu.Device{Vendor: gpu.NVIDIA, PCI: pci, Index: -1, Minor: -1, NUMANode: c.numaNode(pci)}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		switch value = strings.TrimSpace(value); strings.TrimSpace(key) {
		case "Model":
			device.Model = value
		case "GPU UUID":
			device.UUID = value
		case "Device Minor":
			if minor, err := strconv.Atoi(value); err == nil {
				device.Minor = minor
			}
		}
	}
	device.CardNode, device.RenderNode = c.drmNodes(pci)
	return device, strings.HasPrefix(device.UUID, "GPU-") && !strings.Contains(device.UUID, "?")
}

func readLine(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
