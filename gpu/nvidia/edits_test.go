package nvidia_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	"github.com/google/go-cmp/cmp"
	cdi "tags.cncf.io/container-device-interface/specs-go"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/gputest"
	"github.com/remotegpu/remotegpu/gpu/helper"
	"github.com/remotegpu/remotegpu/gpu/nvidia"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/test/fakenvml"
)

// installed is a driver of two GPUs with a client of it.
func installed(t *testing.T) (*fakenvml.Driver, *helper.Client) {
	t.Helper()
	driver := fakenvml.Install(t, t.TempDir(), fakenvml.Version, 2)
	driver.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{{Model: plain()}, {Model: gpus.A100_SXM4_40GB, Minor: 1, WithGraphics: true}}})
	return driver, clientOf(t, driver)
}

// clientOf finds the library in the driver root by itself.
func clientOf(t *testing.T, driver *fakenvml.Driver, change ...func(*helper.Config, *nvidia.Config)) *helper.Client {
	t.Helper()
	return (&fakenvml.Library{}).Client(t, t.TempDir(), append([]func(*helper.Config, *nvidia.Config){func(_ *helper.Config, cfg *nvidia.Config) {
		cfg.DriverRoot, cfg.DevRoot, cfg.Hook, cfg.Proc = driver.Root, driver.Root, testutil.Tool("nvidia-cdi-hook"), "/proc"
		cfg.Modprobe = "/nonexistent"
	}}, change...)...)
}

func edits(t *testing.T, client *helper.Client, targets []gpu.Target, capabilities ...gpu.Capability) gpu.Edits {
	t.Helper()
	found, err := client.Edits(t.Context(), gpu.EditsRequest{Targets: targets, Capabilities: capabilities})
	if err != nil {
		t.Fatalf("edits: %v", err)
	}
	return found
}

func nodes(e gpu.Edits) []string {
	var paths []string
	for _, node := range e.CDI.DeviceNodes {
		paths = append(paths, node.Path)
	}
	slices.Sort(paths)
	return paths
}

// files are the names of what is mounted, and hooks by what they do.
func files(e gpu.Edits) (names, hooks []string) {
	for _, mount := range e.CDI.Mounts {
		names = append(names, filepath.Base(mount.ContainerPath))
	}
	for _, hook := range e.CDI.Hooks {
		hooks = append(hooks, strings.Join(hook.Args[1:], " "))
	}
	slices.Sort(names)
	return names, hooks
}

func TestEditsByCapability(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.NVIDIA)
	t.Parallel()
	_, client := installed(t)
	first := []gpu.Target{{GPU: fakenvml.UUID(0)}}

	compute := edits(t, client, first, gpu.Compute, gpu.Utility)
	if diff := cmp.Diff([]string{"/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia0", "/dev/nvidiactl"}, nodes(compute)); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	names, hooks := files(compute)
	want := []string{
		"gsp_ga10x.bin", "libcuda.so." + fakenvml.Version, "libnvidia-allocator.so." + fakenvml.Version, "libnvidia-ml.so." + fakenvml.Version,
		"libnvidia-ptxjitcompiler.so." + fakenvml.Version, "nvidia-cuda-mps-control", "nvidia-smi", "nvidia.icd",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for _, env := range []string{"NVIDIA_VISIBLE_DEVICES=void", "NVIDIA_CTK_LIBCUDA_DIR=" + fakenvml.LibDir()} {
		if !slices.Contains(compute.CDI.Env, env) {
			t.Errorf("environment %q lacks %s", compute.CDI.Env, env)
		}
	}
	all := strings.Join(hooks, "\n")
	for _, hook := range []string{"create-symlinks", "libcuda.so.1", "update-ldcache", "enable-cuda-compat", "disable-device-node-modification"} {
		if !strings.Contains(all, hook) {
			t.Errorf("no hook says %s:\n%s", hook, all)
		}
	}
	for _, hook := range []string{"apply-cuda-memory-limits", "update-application-profile", "libGLX", "gbm", "egl", "libnvcuvid"} {
		if strings.Contains(all, hook) {
			t.Errorf("a hook says %s:\n%s", hook, all)
		}
	}
	for _, hook := range compute.CDI.Hooks {
		if hook.Path != testutil.Tool("nvidia-cdi-hook") || len(hook.Env) != 2 || !strings.HasPrefix(hook.Env[0], "PATH=/") {
			t.Errorf("hook %+v", hook)
		}
	}
	if len(compute.Warnings) != 0 {
		t.Errorf("warnings %q", compute.Warnings)
	}

	names, hooks = files(edits(t, client, first, gpu.Compute, gpu.Video))
	if !slices.Contains(names, "libnvcuvid.so."+fakenvml.Version) || slices.Contains(names, "libnvidia-eglcore.so."+fakenvml.Version) {
		t.Errorf("files for video %q, hooks %q", names, hooks)
	}
	drawing := edits(t, client, first, gpu.Graphics)
	names, hooks = files(drawing)
	for _, name := range []string{"10_nvidia.json", "15_nvidia_gbm.json", "nvidia_icd.json", "libEGL_nvidia.so." + fakenvml.Version, "libnvidia-egl-gbm.so.1.1.3", "nvoptix.bin"} {
		if !slices.Contains(names, name) {
			t.Errorf("files for graphics %q lack %s", names, name)
		}
	}
	if slices.Contains(names, "nvidia-drm-outputclass.conf") || slices.Contains(names, "99_not_nvidias.json") || !strings.Contains(strings.Join(hooks, "\n"), "update-application-profile") {
		t.Errorf("files for graphics %q, hooks %q", names, hooks)
	}
	if len(drawing.Warnings) != 1 || !strings.Contains(drawing.Warnings[0], "modeset=1") {
		t.Errorf("warnings %q", drawing.Warnings)
	}
}

func TestEditsOfHostsThatLackThings(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.NVIDIA)
	t.Parallel()
	driver, client := installed(t)
	request := gpu.EditsRequest{Targets: []gpu.Target{{GPU: fakenvml.UUID(0)}}, Capabilities: []gpu.Capability{gpu.Display}}
	remove := func(path string) {
		t.Helper()
		if err := os.Remove(filepath.Join(driver.Root, path)); err != nil {
			t.Fatal(err)
		}
	}
	remove("dev/nvidia-modeset")
	found := edits(t, client, request.Targets, gpu.Display)
	names, _ := files(found)
	if len(found.Warnings) != 1 || !strings.Contains(found.Warnings[0], "nvidia-modeset") || slices.Contains(names, "libglxserver_nvidia.so."+fakenvml.Version) {
		t.Errorf("display without modeset: %q, %q", found.Warnings, names)
	}
	// Nodes that are missing after a boot are made by nvidia-modprobe.
	modprobe := filepath.Join(t.TempDir(), "nvidia-modprobe")
	for _, node := range []string{"nvidia-uvm", "nvidia0"} {
		remove("dev/" + node)
		_, err := client.Edits(t.Context(), request)
		wantReason(t, err, problem.GPUSoftwareMissing, "device node", "nvidia-modprobe")
	}
	write(t, modprobe, fmt.Sprintf("#!/bin/sh\nset -e\n[ \"$*\" = '-u -c=0' ]\nmknod -m 666 %[1]s/dev/nvidia0 c 195 0\nmknod -m 666 %[1]s/dev/nvidia-uvm c 511 0\n", driver.Root))
	if err := os.Chmod(modprobe, 0o755); err != nil {
		t.Fatal(err)
	}
	edits(t, clientOf(t, driver, func(_ *helper.Config, cfg *nvidia.Config) { cfg.Modprobe = modprobe }), request.Targets)

	_, err := clientOf(t, driver, func(_ *helper.Config, cfg *nvidia.Config) { cfg.Hook = "/nonexistent" }).Edits(t.Context(), request)
	wantReason(t, err, problem.GPUToolkitMissing)
	for _, target := range []gpu.Target{{GPU: "GPU-no"}, {}} {
		_, err = client.Edits(t.Context(), gpu.EditsRequest{Targets: []gpu.Target{target}})
		wantReason(t, err, problem.GPUNotFound)
	}
	_, err = client.Edits(t.Context(), gpu.EditsRequest{})
	wantReason(t, err, problem.FieldInvalid)
	_, err = client.Edits(t.Context(), gpu.EditsRequest{Targets: append(request.Targets, request.Targets...)})
	wantReason(t, err, problem.FieldInvalid, "twice")

	// The driver is upgraded: the next start gets the files of the new one.
	driver.Upgrade(t, "1000.1.2")
	host := fakenvml.Host{Driver: "1000.1.2", GPUs: []fakenvml.GPU{{Model: plain()}}}
	driver.Set(t, host)
	names, _ = files(edits(t, client, request.Targets, gpu.Compute))
	if !slices.Contains(names, "libcuda.so.1000.1.2") || slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(n, fakenvml.Version) }) {
		t.Errorf("files after an upgrade: %q", names)
	}
}

// What needs files of the kernel's: MIG and DRM nodes.
func TestEditsInANamespace(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.NVIDIA)
	if !testutil.Isolated(t) {
		return
	}
	driver, client := installed(t)
	driver.MIGMode(t, 1, true)
	testutil.Sh(t, "mount -t tmpfs none /sys/bus/pci/devices; mount -t tmpfs none /proc/driver")
	testutil.Sh(t, "mkdir -p /sys/bus/pci/devices/"+fakenvml.PCI(0)+"/drm/card1 /sys/bus/pci/devices/"+fakenvml.PCI(0)+"/drm/renderD129 /proc/driver/nvidia-caps")
	driver.Node(t, "/dev/dri/card1", 195, 101)
	driver.Node(t, "/dev/dri/renderD129", 195, 229)
	testutil.Sh(t, "mkdir "+driver.Root+"/dev/dri/by-path; ln -s ../renderD129 "+driver.Root+"/dev/dri/by-path/pci-"+fakenvml.PCI(0)+"-render")

	drawing := edits(t, client, []gpu.Target{{GPU: fakenvml.UUID(0)}}, gpu.Graphics)
	for _, node := range []string{"/dev/dri/card1", "/dev/dri/renderD129", "/dev/nvidia-modeset"} {
		if !slices.Contains(nodes(drawing), node) {
			t.Errorf("nodes %q lack %s", nodes(drawing), node)
		}
	}
	if _, hooks := files(drawing); len(drawing.Warnings) != 0 || !strings.Contains(strings.Join(hooks, " "), "../renderD129::/dev/dri/by-path/pci-"+fakenvml.PCI(0)+"-render") {
		t.Errorf("warnings %q, hooks %q", drawing.Warnings, hooks)
	}
	compute := edits(t, client, []gpu.Target{{GPU: fakenvml.UUID(0)}}, gpu.Compute)
	if _, hooks := files(compute); slices.ContainsFunc(nodes(compute), isDRI) || strings.Contains(strings.Join(hooks, " "), "by-path") {
		t.Errorf("for computing: nodes %q, hooks %q", nodes(compute), hooks)
	}

	uuid := fakenvml.UUID(1)
	_, err := client.Edits(t.Context(), gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuid}}})
	wantReason(t, err, problem.GPUModeConflict)
	var targets []gpu.Target
	for start := range 2 {
		made, err := client.CreateMIG(t.Context(), uuid, "1g.5gb", gpu.Span{Start: start, Size: 1})
		if err != nil {
			t.Fatal(err)
		}
		targets = append(targets, gpu.Target{GPU: uuid, MIG: made.UUID})
	}
	_, err = client.Edits(t.Context(), gpu.EditsRequest{Targets: targets[:1]})
	wantReason(t, err, problem.GPUSoftwareMissing) // the driver says nothing of capabilities
	testutil.Sh(t, `printf 'config 1\nmonitor 2\ngpu1/gi1/access 30\ngpu1/gi1/ci0/access 31\ngpu1/gi2/access 39\ngpu1/gi2/ci0/access 40\n' > /proc/driver/nvidia-caps/mig-minors`)
	_, err = client.Edits(t.Context(), gpu.EditsRequest{Targets: targets[:1]})
	wantReason(t, err, problem.GPUSoftwareMissing, "nvidia-caps") // nor are there nodes
	for _, minor := range []int{1, 2, 30, 31, 39, 40} {
		driver.Node(t, fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", minor), 195, minor)
	}
	own := nodes(edits(t, client, targets[:1], gpu.Compute))
	want := []string{"/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia-caps/nvidia-cap31", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia1", "/dev/nvidiactl"}
	if diff := cmp.Diff(want, own); diff != "" {
		t.Errorf("nodes of an instance (-want +got):\n%s", diff)
	}
	both := nodes(edits(t, client, targets, gpu.Compute))
	if len(both) != len(slices.Compact(both)) || len(both) != 8 {
		t.Errorf("nodes of two instances %q", both)
	}
	if found := edits(t, client, targets[:1], gpu.Graphics); len(found.Warnings) != 1 || !strings.Contains(found.Warnings[0], "+gfx") {
		t.Errorf("warnings %q", found.Warnings)
	}
	_, err = client.Edits(t.Context(), gpu.EditsRequest{Targets: []gpu.Target{{GPU: fakenvml.UUID(1), MIG: "MIG-no"}}})
	wantReason(t, err, problem.MIGInstanceNotFound)
}

func isDRI(path string) bool { return strings.HasPrefix(path, "/dev/dri") }

// NVIDIA's own program, asked about the same stand-in, wants the same nodes and
// libraries in containers.
func TestEditsAgreeWithNvidiaCTK(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.NVIDIA)
	t.Parallel()
	driver, client := installed(t)
	out := filepath.Join(t.TempDir(), "nvidia.json")
	generate := exec.CommandContext(t.Context(), testutil.Tool("nvidia-ctk"), "cdi", "generate", "--mode=nvml", "--format=json", "--output="+out,
		"--driver-root="+driver.Root, "--dev-root="+driver.Root, "--device-name-strategy=uuid", "--nvidia-cdi-hook-path="+testutil.Tool("nvidia-cdi-hook"))
	if text, err := generate.CombinedOutput(); err != nil {
		t.Fatalf("nvidia-ctk: %v\n%s", err, text)
	}
	spec := readSpec(t, out)
	own := edits(t, client, []gpu.Target{{GPU: fakenvml.UUID(0)}}, gpu.Compute, gpu.Utility, gpu.Graphics, gpu.Video, gpu.Display)
	theirs := spec.ContainerEdits
	for _, device := range spec.Devices {
		if device.Name == fakenvml.UUID(0) {
			theirs.DeviceNodes = append(theirs.DeviceNodes, device.ContainerEdits.DeviceNodes...)
		}
	}
	wanted := gpu.Edits{CDI: theirs}
	if diff := cmp.Diff(nodes(wanted), nodes(own)); diff != "" || len(nodes(own)) != 5 {
		t.Errorf("nodes (-nvidia-ctk +own):\n%s", diff)
	}
	mounts := func(e gpu.Edits) map[string]string {
		all := map[string]string{}
		for _, mount := range e.CDI.Mounts {
			all[mount.ContainerPath] = mount.HostPath + " " + strings.Join(mount.Options, ",")
		}
		return all
	}
	if diff := cmp.Diff(mounts(wanted), mounts(own)); diff != "" || len(mounts(own)) < 15 {
		t.Errorf("files (-nvidia-ctk +own):\n%s", diff)
	}
	hooks := func(e *cdi.ContainerEdits) []string {
		var all []string
		for _, hook := range e.Hooks {
			all = append(all, hook.HookName+" "+hook.Args[1])
		}
		slices.Sort(all)
		return all
	}
	if diff := cmp.Diff(hooks(&theirs), hooks(&own.CDI)); diff != "" {
		t.Errorf("hooks (-nvidia-ctk +own):\n%s", diff)
	}
}

func TestConformance(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.NVIDIA)
	t.Parallel()
	gputest.Run(t, func(t *testing.T) gputest.Subject {
		t.Helper()
		driver := fakenvml.Install(t, t.TempDir(), fakenvml.Version, 2)
		world := fakenvml.Host{GPUs: []fakenvml.GPU{{Model: gpus.A100_SXM4_40GB}, {Model: plain(), Minor: 1}}}
		driver.Set(t, world)
		driver.MIGMode(t, 0, true)
		return gputest.Subject{
			Driver: clientOf(t, driver),
			Ail: func(v gpu.Vitals) {
				g := &world.GPUs[0]
				g.Temperature, g.Slowdown, g.Shutdown, g.Throttled, g.Remap, g.Retire = v.Temperature, v.SlowdownAt, v.ShutdownAt, v.Throttled, v.RemapPending, v.RetirePending
				if g.ECC = v.UncorrectedErrors != nil; g.ECC {
					g.ECCEver = int(*v.UncorrectedErrors)
				}
				driver.Set(t, world)
			},
			Happen: func(event gpu.Event) {
				for index := range 2 {
					if event.UUID == fakenvml.UUID(index) {
						driver.XID(t, index, event.XID)
					}
				}
			},
		}
	})
}

func readSpec(t *testing.T, path string) cdi.Spec {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var spec cdi.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		t.Fatal(err)
	}
	return spec
}
