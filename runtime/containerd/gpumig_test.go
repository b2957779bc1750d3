//nolint:thelper // as in gpu_test.go
package containerd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/helper"
	"github.com/remotegpu/remotegpu/gpu/nvidia"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/containerd"
	"github.com/remotegpu/remotegpu/test/fakenvml"
)

// partitioned is the real driver software over a GPU whose MIG mode is on, with
// what its kernel driver says below /proc/driver for its helper alone.
func partitioned(t *testing.T, d *testutil.ContainerdDaemon) (*helper.Client, *fakenvml.Driver) {
	dir := filepath.Join(d.Dir, "partitioned")
	driver := fakenvml.Install(t, filepath.Join(dir, "root"), fakenvml.Version, 1)
	driver.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{{Model: gpus.A100_SXM4_40GB}}})
	driver.MIGMode(t, 0, true)
	kernel, script := filepath.Join(dir, "kernel"), filepath.Join(dir, "helper")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	testutil.Sh(t, "mkdir -p "+kernel+"/nvidia-caps")
	minors := "config 1\nmonitor 2\ngpu0/gi1/access 30\ngpu0/gi1/ci0/access 31\ngpu0/gi2/access 39\ngpu0/gi2/ci0/access 40\n"
	for path, text := range map[string]string{
		filepath.Join(kernel, "nvidia-caps", "mig-minors"): minors,
		script: fmt.Sprintf("#!/bin/sh\nexec unshare --mount --propagation private -- /bin/sh -ec 'mount --bind %s /proc/driver; exec %s %s'\n", kernel, self, helper.Subcommand),
	} {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	client := (&fakenvml.Library{}).Client(t, t.TempDir(), func(cfg *helper.Config, settings *nvidia.Config) {
		cfg.Program = script
		settings.DriverRoot, settings.DevRoot, settings.Proc, settings.Modprobe = driver.Root, driver.Root, "/proc", "/nonexistent"
		settings.Hook = toolkit(t, d, "nvidia-cdi-hook")
	})
	return client, driver
}

// Two environments have an instance each of one GPU. Both may open the GPU; what
// tells them apart is by whose capabilities they get at an instance of it.
func instances(t *testing.T, d *testutil.ContainerdDaemon, engine *containerd.Engine, container func(string, *gpu.Edits) runtime.Container) {
	client, driver := partitioned(t, d)
	all := [][]int{{30, 31}, {39, 40}} // of GPU instance and compute instance
	major := driver.Capabilities(t, 1, 2, 30, 31, 39, 40)
	ids := []string{"first", "second"}
	for i, id := range ids {
		made, err := client.CreateMIG(t.Context(), fakenvml.UUID(0), "1g.5gb", gpu.Span{Start: i, Size: 1})
		if err != nil {
			t.Fatal(err)
		}
		edits, err := client.Edits(t.Context(), gpu.EditsRequest{
			Targets: []gpu.Target{{GPU: fakenvml.UUID(0), MIG: made.UUID}}, Capabilities: []gpu.Capability{gpu.Compute, gpu.Utility},
		})
		if err != nil {
			t.Fatal(err)
		}
		c := container(id, &edits)
		if i == 1 {
			c.User = "app"
		}
		start(t, engine, c)
	}
	for i, id := range ids {
		opens := map[string]string{"/dev/nvidia0": "no such device or address", "/dev/nvidiactl": "no such device or address"}
		for _, minor := range all[i] {
			opens[fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", minor)] = "no such device or address" // it may, and there is no driver
		}
		for _, minor := range append([]int{1, 2}, all[1-i]...) { // the GPU's configuration, and what is the other's
			opens[fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", minor)] = "no such file or directory"
			if i == 1 {
				continue // a user makes no nodes
			}
			made := fmt.Sprintf("/run/cap-%d", minor)
			if got := in(t, engine, id, "mknod", made, fmt.Sprint(major), fmt.Sprint(minor)); got != "" {
				t.Fatalf("%s makes a node: %s", id, got)
			}
			opens[made] = "operation not permitted"
		}
		for path, want := range opens {
			if got := in(t, engine, id, "cat", path); !strings.HasSuffix(got, want) {
				t.Errorf("%s opens %s: %s, want %s", id, path, got, want)
			}
		}
	}
	for _, id := range ids {
		if err := engine.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}
