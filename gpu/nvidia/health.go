package nvidia

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/remotegpu/remotegpu/gpu"
)

// health is what the GPU itself says about it now. Events say more (Watch).
func (s *session) health(handle nvml.Device, c *check) gpu.Health {
	bad := func(format string, args ...any) gpu.Health {
		return gpu.Health{Unhealthy: true, Reason: fmt.Sprintf(format, args...), Since: time.Now()}
	}
	if s.has("nvmlDeviceGetRemappedRows") {
		if _, _, _, failed, ret := handle.GetRemappedRows(); c.ok(ret) && failed {
			return bad("rows of its memory could not be remapped: it has to be replaced")
		}
	}
	if action := s.recoveryAction(handle, c); action != "" {
		return bad("its driver asks for: %s", action)
	}
	if c.lost != nvml.SUCCESS {
		return bad("it does not answer: %v", c.lost)
	}
	if c.unknown != "" {
		health := bad("it does not tell %s", c.unknown)
		health.Unsure = true
		return health
	}
	return gpu.Health{}
}

// recoveryActions are those after which a GPU can be used again
// (nvmlDeviceGpuRecoveryAction_t).
var recoveryActions = map[nvml.DeviceGpuRecoveryAction]string{
	nvml.GPU_RECOVERY_ACTION_GPU_RESET:       "a reset of the GPU",
	nvml.GPU_RECOVERY_ACTION_NODE_REBOOT:     "a reboot of the host",
	nvml.GPU_RECOVERY_ACTION_DRAIN_P2P:       "its peers to be drained",
	nvml.GPU_RECOVERY_ACTION_DRAIN_AND_RESET: "its peers to be drained and a reset of the GPU",
	nvml.GPU_RECOVERY_ACTION_BUS_RESET:       "a reset of its PCIe bus",
	nvml.GPU_RECOVERY_ACTION_SYSTEM_REBOOT:   "a reboot of the host",
}

// recoveryAction is what the driver wants done, "" when nothing or when it
// does not know.
func (s *session) recoveryAction(handle nvml.Device, c *check) string {
	values := []nvml.FieldValue{{FieldId: nvml.FI_DEV_GET_GPU_RECOVERY_ACTION}}
	if !s.has("nvmlDeviceGetFieldValues") || !c.ok(handle.GetFieldValues(values)) || nvml.Return(values[0].NvmlReturn) != nvml.SUCCESS {
		return ""
	}
	return recoveryActions[nvml.DeviceGpuRecoveryAction(binary.NativeEndian.Uint32(values[0].Value[:]))]
}

// silent finds the GPUs that the kernel knows and NVML does not give.
func (s *session) silent(inventory *gpu.Inventory, cards []card, returns map[int]nvml.Return) {
	for _, card := range cards {
		if slices.ContainsFunc(inventory.Devices, func(d gpu.Device) bool { return d.PCI == card.pci }) {
			continue
		}
		if !card.driven() {
			inventory.Notes = append(inventory.Notes, fmt.Sprintf("the NVIDIA GPU at %s is not used%s", card.pci, card.boundTo()))
			continue
		}
		device, known := s.cfg.remembered(card.pci)
		// Which of those that do not answer it is cannot be told.
		reason, lost := "it does not answer", false
		for i, index := range slices.Sorted(maps.Keys(returns)) {
			if i == 0 {
				reason = fmt.Sprintf("it does not answer: %v", returns[index])
			}
			lost = lost || isLost(returns[index])
		}
		if !known {
			inventory.Notes = append(inventory.Notes, fmt.Sprintf("the NVIDIA GPU at %s cannot be used: %s", card.pci, reason))
			continue
		}
		device.Health = gpu.Health{Unhealthy: true, Reason: reason, Since: time.Now(), Unsure: !lost}
		inventory.Devices = append(inventory.Devices, device)
	}
	if len(cards) == 0 { // a machine without a PCI bus that we can see, such as a container
		for _, index := range slices.Sorted(maps.Keys(returns)) {
			inventory.Notes = append(inventory.Notes, fmt.Sprintf("NVIDIA GPU %d does not answer: %v", index, returns[index]))
		}
	}
}
