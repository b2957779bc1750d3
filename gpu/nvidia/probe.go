package nvidia

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/remotegpu/remotegpu/gpu"
)

// Probe implements gpu.Driver. A GPU that does not answer is in the inventory
// as unhealthy if the kernel still knows its UUID, else in the notes.
func (d *Driver) Probe(ctx context.Context) (gpu.Inventory, error) {
	inventory := gpu.Inventory{At: time.Now()}
	cards := d.cfg.cards()
	s, err := d.open()
	if errors.Is(err, errNoLibrary) {
		inventory.Notes = d.withoutDriver(cards)
		return inventory, nil
	}
	if err != nil {
		return gpu.Inventory{}, err
	}
	defer s.close()
	if err := s.versions(&inventory); err != nil {
		return gpu.Inventory{}, err
	}
	handles, silent, err := s.all()
	if err != nil {
		return gpu.Inventory{}, err
	}
	byPCI := make(map[string]nvml.Device, len(handles))
	for _, index := range slices.Sorted(maps.Keys(handles)) {
		if err := ctx.Err(); err != nil {
			return gpu.Inventory{}, context.Cause(ctx)
		}
		device, ret := s.device(index, handles[index])
		if ret != nvml.SUCCESS {
			silent[index] = ret
			continue
		}
		inventory.Devices = append(inventory.Devices, device)
		byPCI[device.PCI] = handles[index]
	}
	if err := noneAnswers(len(inventory.Devices), silent); err != nil {
		return gpu.Inventory{}, err
	}
	s.peers(inventory.Devices, byPCI)
	s.silent(&inventory, cards, silent)
	slices.SortFunc(inventory.Devices, func(a, b gpu.Device) int { return strings.Compare(a.PCI, b.PCI) })
	if len(inventory.Devices) == 0 && len(inventory.Notes) == 0 {
		inventory.Notes = []string{"NVIDIA's driver is loaded but has no GPU"}
	}
	return inventory, nil
}

// withoutDriver says why there is no GPU of NVIDIA's.
func (d *Driver) withoutDriver(cards []card) []string {
	if len(cards) == 0 {
		return []string{"no NVIDIA GPU: there is no NVIDIA driver (" + d.cfg.library() + ") and no such PCI device"}
	}
	notes := make([]string, 0, len(cards))
	for _, card := range cards {
		notes = append(notes, fmt.Sprintf("the NVIDIA GPU at %s has no NVIDIA driver: %s is not installed%s", card.pci, d.cfg.library(), card.boundTo()))
	}
	return notes
}

func (s *session) versions(inventory *gpu.Inventory) error {
	var ret nvml.Return
	if inventory.Driver, ret = s.lib.SystemGetDriverVersion(); ret != nvml.SUCCESS {
		return failure(ret, "read the driver's version")
	}
	if version, ret := s.lib.SystemGetNVMLVersion(); ret == nvml.SUCCESS {
		inventory.NVML = version
	}
	if version, ret := s.lib.SystemGetCudaDriverVersion(); ret == nvml.SUCCESS {
		inventory.CUDA = fmt.Sprintf("%d.%d", version/1000, version%1000/10)
	}
	return nil
}

// device reads all about a GPU. Which one it is must be known; what it does not
// tell is left out.
func (s *session) device(index int, handle nvml.Device) (gpu.Device, nvml.Return) {
	device := gpu.Device{Vendor: gpu.NVIDIA, Index: index, Minor: -1}
	var ret nvml.Return
	if device.UUID, ret = handle.GetUUID(); ret != nvml.SUCCESS {
		return gpu.Device{}, ret
	}
	wrapped, err := s.devices.NewDevice(handle)
	if err != nil {
		return gpu.Device{}, returned(err)
	}
	if device.PCI, err = wrapped.GetPCIBusID(); err != nil {
		return gpu.Device{}, returned(err)
	}
	c := check{}
	if name, ret := handle.GetName(); c.ok(ret) {
		device.Model = name
	}
	if minor, ret := handle.GetMinorNumber(); c.ok(ret) {
		device.Minor = minor
	}
	if memory, ret := handle.GetMemoryInfo(); c.ok(ret) {
		device.MemoryBytes = memory.Total
	}
	if major, minor, ret := handle.GetCudaComputeCapability(); c.ok(ret) {
		device.ComputeCapability = fmt.Sprintf("%d.%d", major, minor)
	}
	if ecc, _, ret := handle.GetEccMode(); c.ok(ret) {
		device.ECC = ecc == nvml.FEATURE_ENABLED
	}
	device.Virtualization = virtualization(handle, &c)
	var architecture nvml.DeviceArchitecture
	if s.has("nvmlDeviceGetArchitecture") {
		if architecture, ret = handle.GetArchitecture(); c.ok(ret) {
			device.Architecture, _ = wrapped.GetArchitectureAsString() // "" where it is newer than go-nvlib
		}
	}
	device.MemoryLimits = s.limitsMemory()
	device.NUMANode = s.cfg.numaNode(device.PCI)
	device.CardNode, device.RenderNode = s.cfg.drmNodes(device.PCI)
	device.MIG = s.mig(handle, device, architecture, &c)
	device.Vitals = s.vitals(handle, &c)
	device.Health = s.health(handle, &c)
	return device, nvml.SUCCESS
}

// returned is what NVML returned as far as go-nvlib's errors say.
func returned(err error) nvml.Return {
	if ret, is := errors.AsType[nvml.Return](err); is {
		return ret
	}
	return nvml.ERROR_UNKNOWN
}

// check remembers whether one of the calls found the GPU lost, and what else of
// it has to be known and is not.
type check struct {
	lost    nvml.Return
	unknown string
}

func (c *check) ok(ret nvml.Return) bool {
	if isLost(ret) {
		c.lost = ret
	}
	return ret == nvml.SUCCESS
}

func virtualization(handle nvml.Device, c *check) string {
	mode, ret := handle.GetVirtualizationMode()
	if !c.ok(ret) {
		return ""
	}
	switch mode {
	case nvml.GPU_VIRTUALIZATION_MODE_PASSTHROUGH:
		return "passthrough"
	case nvml.GPU_VIRTUALIZATION_MODE_VGPU:
		return vgpuGuest
	default:
		return ""
	}
}

const vgpuGuest = "vgpu-guest"

// peers tells which GPUs NVLink connects: directly, or all that are at a
// switch.
func (s *session) peers(devices []gpu.Device, handles map[string]nvml.Device) {
	uuids := make(map[string]string, len(devices))
	for _, device := range devices {
		uuids[device.PCI] = device.UUID
	}
	peers, switched := make(map[string][]string, len(devices)), []string(nil)
	for _, device := range devices {
		remotes, atSwitch := s.links(handles[device.PCI])
		for _, remote := range remotes {
			if uuid, found := uuids[remote]; found {
				peers[device.UUID] = append(peers[device.UUID], uuid)
			}
		}
		if atSwitch {
			switched = append(switched, device.UUID)
		}
	}
	for i := range devices {
		found := peers[devices[i].UUID]
		if slices.Contains(switched, devices[i].UUID) {
			found = append(found, switched...)
		}
		slices.Sort(found)
		found = slices.DeleteFunc(slices.Compact(found), func(uuid string) bool { return uuid == devices[i].UUID })
		if len(found) > 0 {
			devices[i].Peers = found
		}
	}
}

// links are the PCI addresses at the other ends of a GPU's active links, and
// whether a switch is at one.
func (s *session) links(handle nvml.Device) (remotes []string, atSwitch bool) {
	types := s.has("nvmlDeviceGetNvLinkRemoteDeviceType")
	for link := range nvml.NVLINK_MAX_LINKS {
		state, ret := handle.GetNvLinkState(link)
		if ret == nvml.ERROR_NOT_SUPPORTED {
			return nil, false
		}
		if ret != nvml.SUCCESS || state != nvml.FEATURE_ENABLED {
			continue
		}
		if types {
			if kind, ret := handle.GetNvLinkRemoteDeviceType(link); ret == nvml.SUCCESS && kind == nvml.NVLINK_DEVICE_TYPE_SWITCH {
				atSwitch = true
				continue
			}
		}
		if info, ret := handle.GetNvLinkRemotePciInfo(link); ret == nvml.SUCCESS {
			remotes = append(remotes, pciAddress(info))
		}
	}
	return remotes, atSwitch
}

// pciAddress is as the kernel writes it: NVML has a domain of eight digits.
func pciAddress(info nvml.PciInfo) string {
	return fmt.Sprintf("%04x:%02x:%02x.0", info.Domain, info.Bus, info.Device)
}
