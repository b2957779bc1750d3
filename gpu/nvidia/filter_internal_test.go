package nvidia

import (
	"testing"

	cdi "tags.cncf.io/container-device-interface/specs-go"
)

// White-box: nvcdi does not give what is tried here.
func TestNobodyGetsNodesThatPartitionGPUs(t *testing.T) {
	edits := merge(discovered{common: &cdi.ContainerEdits{}, devices: []cdi.Device{{ContainerEdits: cdi.ContainerEdits{DeviceNodes: []*cdi.DeviceNode{
		{Path: "/dev/nvidia0"}, {Path: "/dev/nvidia-caps/nvidia-cap1"}, {Path: "/dev/nvidia-caps/nvidia-cap2"}, {Path: "/dev/nvidia-caps/nvidia-cap12"},
	}}}}}, "/")
	if nodes := edits.DeviceNodes; len(nodes) != 2 || nodes[0].Path != "/dev/nvidia0" || nodes[1].Path != "/dev/nvidia-caps/nvidia-cap12" {
		t.Errorf("nodes: %+v", nodes)
	}
}
