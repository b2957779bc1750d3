package node

import (
	"log/slog"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/drm"
	"github.com/remotegpu/remotegpu/gpu/helper"
	"github.com/remotegpu/remotegpu/gpu/nvidia"
	"github.com/remotegpu/remotegpu/internal/config"
)

// pciIDs names PCI devices: of the package pci.ids, which a host need not have.
const pciIDs = "/usr/share/misc/pci.ids"

// gpus is the GPU software of the host. Nothing is started before it is asked.
type gpus struct {
	gpu.Driver
	helper *helper.Client
}

func newGPUs(cfg config.GPU, log *slog.Logger) gpus {
	client := helper.New(helper.Config{Log: log, Settings: nvidia.Config{
		DriverRoot: cfg.DriverRoot, DevRoot: cfg.DevRoot, Library: cfg.Library, Hook: cfg.Hook, Ldconfig: cfg.Ldconfig,
	}})
	return gpus{Driver: drm.Driver{Driver: client, Sys: "/sys", PCIIDs: pciIDs}, helper: client}
}

// Close ends the helper process.
func (g gpus) Close() error {
	if g.helper == nil {
		return nil
	}
	return g.helper.Close()
}
