package inject_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	cdi "tags.cncf.io/container-device-interface/specs-go"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/inject"
	"github.com/remotegpu/remotegpu/gpu/mps"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// driver answers with what it was given and keeps what it was asked.
type driver struct {
	gpu.Driver
	inventory gpu.Inventory
	edits     gpu.Edits
	asked     []gpu.EditsRequest
	opened    []string // GPUs
	closed    error    // what opening one fails with
}

func (d *driver) Probe(context.Context) (gpu.Inventory, error) { return d.inventory, nil }

func (d *driver) Edits(_ context.Context, req gpu.EditsRequest) (gpu.Edits, error) {
	d.asked = append(d.asked, req)
	return d.edits, nil
}

func (d *driver) SetExclusiveProcess(_ context.Context, uuid string, on bool) error {
	d.opened = append(d.opened, uuid+map[bool]string{true: " closed"}[on])
	return d.closed
}

// program writes a program that says a version.
func program(tb testing.TB, output string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "nvidia-hook")
	if err := os.WriteFile(path, []byte("#!/bin/sh\ncat <<'E'\n"+output+"\nE\n"), 0o755); err != nil {
		tb.Fatal(err)
	}
	return path
}

const (
	good    = "NVIDIA CDI Hook version 1.20.1\ncommit: abc"
	goodCLI = "cli-version: 1.20.1\nlib-version: 1.20.1\nbuild date: 2026-01-01T00:00+0000\nbuild compiler: gcc 7.5.0"
	uuidA   = "GPU-11111111-1111-1111-1111-111111111111"
	amd     = "PCI-0000:03:00.0"
)

// ofNVIDIA is the beginning of what nvcdi says of a GPU.
func ofNVIDIA() gpu.Edits {
	return gpu.Edits{CDI: cdi.ContainerEdits{
		Env:         []string{"NVIDIA_VISIBLE_DEVICES=void", "NVIDIA_CTK_LIBCUDA_DIR=/usr/lib"},
		DeviceNodes: []*cdi.DeviceNode{{Path: "/dev/nvidia1"}, {Path: "/dev/nvidiactl"}, {Path: "/dev/dri/card2", HostPath: "/root/dev/dri/card2"}, {Path: "/dev/dri/renderD130"}},
		Mounts: []*cdi.Mount{
			{HostPath: "/usr/lib/libcuda.so.9", ContainerPath: "/usr/lib/libcuda.so.9"},
			{HostPath: "/x", ContainerPath: "/usr/share/glvnd/egl_vendor.d/10_nvidia.json"},
			{HostPath: "/x", ContainerPath: "/usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json"},
			{HostPath: "/x", ContainerPath: "/etc/vulkan/icd.d/nvidia_icd.json"},
			{HostPath: "/x", ContainerPath: "/etc/vulkan/implicit_layer.d/nvidia_layers.json"},
		},
		Hooks: []*cdi.Hook{{HookName: "createContainer", Path: "/usr/bin/nvidia-cdi-hook", Env: []string{"NVIDIA_CTK_DEBUG=false"}}},
	}}
}

func paths(edits gpu.Edits) []string {
	var all []string
	for _, node := range edits.CDI.DeviceNodes {
		all = append(all, node.Path)
	}
	return all
}

func TestCDIPassesOnWhatTheDriverSays(t *testing.T) {
	d := &driver{edits: ofNVIDIA()}
	request := gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuidA}}, Capabilities: []gpu.Capability{gpu.Compute, gpu.Utility}}
	edits, err := inject.New(inject.Config{Driver: d, CDIHook: program(t, good)}).Edits(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ofNVIDIA(), edits); diff != "" {
		t.Errorf("the edits have changed:\n%s", diff)
	}
	if diff := cmp.Diff([]gpu.EditsRequest{request}, d.asked); diff != "" {
		t.Errorf("asked:\n%s", diff)
	}
}

func TestGraphicsUsesTheGPUThatWasLeased(t *testing.T) {
	d := &driver{edits: ofNVIDIA()}
	edits, err := inject.New(inject.Config{Driver: d, CDIHook: program(t, good)}).Edits(t.Context(),
		gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuidA}}, Capabilities: []gpu.Capability{gpu.Graphics}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"NVIDIA_VISIBLE_DEVICES=void", "NVIDIA_CTK_LIBCUDA_DIR=/usr/lib", "VGL_DISPLAY=egl0",
		"__EGL_VENDOR_LIBRARY_FILENAMES=/usr/share/glvnd/egl_vendor.d/10_nvidia.json", "VK_DRIVER_FILES=/etc/vulkan/icd.d/nvidia_icd.json",
		"REMOTEGPU_RENDER_NODE=/dev/remotegpu/render0",
	}
	if diff := cmp.Diff(want, edits.CDI.Env); diff != "" {
		t.Errorf("variables:\n%s", diff)
	}
	if diff := cmp.Diff(append(paths(ofNVIDIA()), "/dev/remotegpu/card0", "/dev/remotegpu/render0"), paths(edits)); diff != "" {
		t.Errorf("nodes:\n%s", diff)
	}
	if card := edits.CDI.DeviceNodes[4]; card.HostPath != "/root/dev/dri/card2" {
		t.Errorf("card0 is %s on the host", card.HostPath)
	}
	if len(edits.Warnings) != 0 {
		t.Errorf("warnings: %q", edits.Warnings)
	}
	d.edits.CDI.Mounts = nil
	edits, err = inject.New(inject.Config{Driver: d, CDIHook: program(t, good)}).Edits(t.Context(),
		gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuidA}}, Capabilities: []gpu.Capability{gpu.Graphics}})
	if err != nil || len(edits.Warnings) != 2 || slices.Contains(edits.CDI.Env, "VGL_DISPLAY=egl0") {
		t.Errorf("without the driver's files: %q, %q, %v; want two warnings", edits.Warnings, edits.CDI.Env, err)
	}
}

func TestHookIsAskedByUUIDAndConfiguredByUs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gpu")
	hook, cli := program(t, "NVIDIA Container Runtime Hook version 1.20.1"), program(t, goodCLI)
	d := inject.New(inject.Config{Driver: &driver{edits: ofNVIDIA()}, Way: inject.Hook, RuntimeHook: hook, CLI: cli, DriverRoot: "/run/nvidia/driver", Dir: dir})
	edits, err := d.Edits(t.Context(), gpu.EditsRequest{
		Targets: []gpu.Target{{GPU: uuidA}, {GPU: "GPU-2", MIG: "MIG-3"}}, Capabilities: []gpu.Capability{gpu.Utility, gpu.Compute},
	})
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "nvidia-container-runtime-hook.toml")
	options := []string{"bind", "ro", "nosuid", "noexec"}
	want := gpu.Edits{CDI: cdi.ContainerEdits{
		Env:         []string{"NVIDIA_VISIBLE_DEVICES=void", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"},
		DeviceNodes: slices.Delete(ofNVIDIA().CDI.DeviceNodes, 2, 3), // one is an instance
		Mounts: append(ofNVIDIA().CDI.Mounts[1:],
			&cdi.Mount{HostPath: "/dev/null", ContainerPath: "/var/run/nvidia-container-devices/" + uuidA, Options: options},
			&cdi.Mount{HostPath: "/dev/null", ContainerPath: "/var/run/nvidia-container-devices/MIG-3", Options: options},
		),
		Hooks: []*cdi.Hook{{
			HookName: "createRuntime", Path: hook, Args: []string{"nvidia-hook", "-config=" + config, "prestart"},
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "NVIDIA_CTK_DEBUG=false"},
		}},
	}, Brought: []string{"/usr/lib/libcuda.so.9", "/usr/lib64/libcuda.so.9", "/usr/lib/x86_64-linux-gnu/libcuda.so.9", "/usr/lib/aarch64-linux-gnu/libcuda.so.9"}}
	for target, want := range map[string]bool{"/usr/lib64": true, "/usr/lib/x86_64-linux-gnu": true, "/etc/vulkan/icd.d": true, "/data": false, "/run": false} {
		if _, is := edits.TargetOf(target); is != want {
			t.Errorf("a mount at %s is in the way: %v", target, is)
		}
	}
	if diff := cmp.Diff(want, edits); diff != "" {
		t.Errorf("edits:\n%s", diff)
	}
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"disable-require = true", "accept-nvidia-visible-devices-envvar-when-unprivileged = false", "accept-nvidia-visible-devices-as-volume-mounts = true",
		`path = "` + cli + `"`, `root = "/run/nvidia/driver"`, "no-cgroups = true", `mode = "legacy"`,
	} {
		if !strings.Contains(string(text), line+"\n") {
			t.Errorf("the configuration lacks %q:\n%s", line, text)
		}
	}
	absent := inject.New(inject.Config{Driver: &driver{}, Way: inject.Hook, RuntimeHook: hook, CLI: "/nowhere/nvidia-container-cli", Dir: dir})
	_, err = absent.Edits(t.Context(), gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuidA}}})
	if p := problem.Of(err); p == nil || p.Reason != problem.GPUToolkitMissing || p.Hint == "" {
		t.Errorf("without nvidia-container-cli: %v", err)
	}
}

func TestOtherVendorsGetTheirRenderNode(t *testing.T) {
	d := &driver{inventory: gpu.Inventory{Devices: []gpu.Device{
		{UUID: amd, Vendor: gpu.AMD, RenderNode: "/dev/null", CardNode: "/dev/zero"}, // a device that any host has
		{UUID: "PCI-2", Vendor: gpu.Intel},
		{UUID: "PCI-3", Vendor: gpu.Intel, RenderNode: "/nowhere"},
		{UUID: "PCI-4", Vendor: gpu.Intel, RenderNode: "/etc/passwd"},
	}}}
	injector := inject.New(inject.Config{Driver: d})
	edits, err := injector.Edits(t.Context(), gpu.EditsRequest{Targets: []gpu.Target{{GPU: amd}}, Capabilities: []gpu.Capability{gpu.Graphics}})
	if err != nil {
		t.Fatal(err)
	}
	if got := paths(edits); !slices.Equal(got, []string{"/dev/null"}) || len(d.asked) != 0 {
		t.Errorf("nodes %q, the driver was asked %v", got, d.asked)
	}
	if node := edits.CDI.DeviceNodes[0]; node.Major != 1 || node.Minor != 3 || *node.FileMode != 0o666 || node.GID == nil || node.Permissions != "rw" {
		t.Errorf("node: %+v", node)
	}
	for uuid, want := range map[string]problem.Reason{
		"PCI-9": problem.GPUNotFound, "PCI-2": problem.GPUCapability, "PCI-3": problem.GPUUnavailable, "PCI-4": problem.GPUUnavailable,
	} {
		_, err := injector.Edits(t.Context(), gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuid}}})
		if p := problem.Of(err); p == nil || p.Reason != want || p.Hint == "" {
			t.Errorf("%s: %v, want %s with a hint", uuid, err, want)
		}
	}
}

func TestNoneGivesNothingAndSaysSo(t *testing.T) {
	d := &driver{edits: ofNVIDIA()}
	edits, err := inject.New(inject.Config{Driver: d, Way: inject.None}).Edits(t.Context(), gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuidA}}})
	if err != nil || len(edits.Warnings) != 1 || len(edits.CDI.DeviceNodes) != 0 || len(d.asked) != 0 {
		t.Errorf("got %+v, %v", edits, err)
	}
}

func TestOldToolkitsAreRefused(t *testing.T) {
	nvidia := gpu.Inventory{Devices: []gpu.Device{{UUID: uuidA, Vendor: gpu.NVIDIA}}}
	request := gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuidA}}}
	for _, test := range []struct {
		name, output string
		want         problem.Reason // "": it will do
	}{
		{"the newest", good, ""},
		{"the oldest that will do", "NVIDIA Container Toolkit CLI version 1.19.1", ""},
		{"the one before it", "NVIDIA CDI Hook version 1.19.0\ncommit: 1", problem.GPUToolkitOld},
		{"its release candidate", "NVIDIA CDI Hook version 1.19.1-rc.2", problem.GPUToolkitOld},
		{"an old one", "NVIDIA Container Toolkit CLI version 1.9.20", problem.GPUToolkitOld},
		{"one of a distribution", "NVIDIA CDI Hook version v1.21.0-1~bpo12", ""},
		{"one that does not know", "NVIDIA CDI Hook version unknown", problem.GPUToolkitOld},
		{"something else", "hello", problem.GPUToolkitOld},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := program(t, test.output)
			_, err := inject.New(inject.Config{Driver: &driver{}, CDIHook: path}).Edits(t.Context(), request)
			if p := problem.Of(err); test.want == "" && err != nil || test.want != "" && (p == nil || p.Reason != test.want || p.Hint == "") {
				t.Errorf("got %v, want %q", err, test.want)
			}
			allowing := inject.New(inject.Config{Driver: &driver{}, CDIHook: path, AllowOld: true})
			if _, err := allowing.Edits(t.Context(), request); err != nil {
				t.Errorf("when it is allowed: %v", err)
			}
			if found := allowing.Problems(t.Context(), nvidia); (len(found) > 0) != (test.want != "") {
				t.Errorf("when it is allowed the node says %v", found)
			}
			if found := allowing.Problems(t.Context(), gpu.Inventory{}); len(found) != 0 {
				t.Errorf("without a GPU of NVIDIA: %v", found)
			}
		})
	}
	for output, want := range map[string]problem.Reason{
		goodCLI: "",
		"cli-version: 1.18.0\nlib-version: 1.18.0": problem.GPUToolkitOld,
		"cli-version: 1.20.1\nlib-version: 1.17.7": problem.GPUToolkitOld,
		"": problem.GPUToolkitOld,
	} {
		injector := inject.New(inject.Config{Driver: &driver{}, Way: inject.Hook, RuntimeHook: program(t, good), CLI: program(t, output), Dir: t.TempDir()})
		_, err := injector.Edits(t.Context(), request)
		if p := problem.Of(err); want == "" && err != nil || want != "" && (p == nil || p.Reason != want || !strings.Contains(p.Message, "nvidia-container-cli")) {
			t.Errorf("with nvidia-container-cli that says %q: %v", output, err)
		}
		if found := injector.Problems(t.Context(), nvidia); (len(found) > 0) != (want != "") {
			t.Errorf("with nvidia-container-cli that says %q the node says %v", output, found)
		}
	}
	missing := inject.New(inject.Config{Driver: &driver{}, CDIHook: "/nowhere/nvidia-cdi-hook", AllowOld: true})
	_, err := missing.Edits(t.Context(), request)
	if p := problem.Of(err); p == nil || p.Reason != problem.GPUToolkitMissing || p.Hint == "" {
		t.Errorf("without a toolkit: %v", err)
	}
	ancient := filepath.Join(filepath.Dir(program(t, "")), "nvidia-cdi-hook") // from before there was one
	if err := os.Rename(program(t, "NVIDIA Container Toolkit CLI version 1.13.5"), filepath.Join(filepath.Dir(ancient), "nvidia-ctk")); err != nil {
		t.Fatal(err)
	}
	_, err = inject.New(inject.Config{Driver: &driver{}, CDIHook: ancient, AllowOld: true}).Edits(t.Context(), request)
	if p := problem.Of(err); p == nil || p.Reason != problem.GPUToolkitOld || !strings.Contains(p.Message, "1.13.5") || p.Hint == "" {
		t.Errorf("with a toolkit that has no hook: %v", err)
	}
	if found := missing.Problems(t.Context(), nvidia); len(found) != 1 || found[0].Reason != problem.GPUToolkitMissing {
		t.Errorf("without a toolkit the node says %v", found)
	}
}

// An upgrade of the toolkit is seen without a restart of the node.
func TestToolkitIsAskedAgainWhenItChanges(t *testing.T) {
	path := program(t, "NVIDIA CDI Hook version 1.17.8")
	injector := inject.New(inject.Config{Driver: &driver{}, CDIHook: path})
	request := gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuidA}}}
	if _, err := injector.Edits(t.Context(), request); err == nil {
		t.Fatal("an old toolkit was accepted")
	}
	newer := program(t, good)
	if err := os.Rename(newer, path); err != nil {
		t.Fatal(err)
	}
	if _, err := injector.Edits(t.Context(), request); err != nil {
		t.Errorf("after the upgrade: %v", err)
	}
}

// daemons answers for any GPU.
type daemons struct{ asked []string }

func (d *daemons) Prepare(_ context.Context, uuid string, _ gpu.Share) (mps.Client, error) {
	d.asked = append(d.asked, uuid)
	return mps.Client{Pipe: "/host/" + uuid + "/pipe", Shm: "/host/" + uuid + "/shm"}, nil
}

func TestSharesAreHeldByWhatTheLeaseSays(t *testing.T) {
	library := program(t, "")
	share := func(e gpu.Enforcement) gpu.EditsRequest {
		return gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuidA, Share: gpu.Share{Enforcement: e, MemoryBytes: 2 << 30, ComputePercent: 30}}}}
	}
	served := &daemons{}
	whole := inject.New(inject.Config{Driver: &driver{edits: ofNVIDIA()}, CDIHook: program(t, good), MPS: served, SharedBy: gpu.MPS, Library: library, Dir: t.TempDir()})
	slicing := inject.New(inject.Config{Driver: &driver{edits: ofNVIDIA()}, CDIHook: program(t, good), Library: library, Dir: t.TempDir()})
	for _, test := range []struct {
		by     gpu.Enforcement
		env    []string
		mounts []string
	}{
		{
			gpu.ByMPS,
			[]string{"CUDA_MPS_PIPE_DIRECTORY=/dev/remotegpu-mps", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=2048M", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=30"},
			[]string{"/dev/remotegpu-mps", "/dev/shm"},
		},
		{
			gpu.ByCooperation,
			[]string{"CUDA_DEVICE_MEMORY_SHARED_CACHE=/tmp/.remotegpu-vgpu.cache", "CUDA_DEVICE_MEMORY_LIMIT_0=2048m", "CUDA_DEVICE_SM_LIMIT=30"},
			[]string{"/dev/remotegpu-vgpu/libvgpu.so", "/etc/ld.so.preload", "/tmp/vgpulock"},
		},
		{gpu.ByDriver, nil, nil},
		{gpu.ByNone, nil, nil},
	} {
		injector := slicing
		if test.by == gpu.ByMPS {
			injector = whole
		}
		edits, err := injector.Edits(t.Context(), share(test.by))
		if err != nil {
			t.Errorf("%s: %v", test.by, err)
			continue
		}
		if diff := cmp.Diff(append(ofNVIDIA().CDI.Env, test.env...), edits.CDI.Env); diff != "" {
			t.Errorf("variables by %s:\n%s", test.by, diff)
		}
		var mounts []string
		for _, m := range edits.CDI.Mounts[len(ofNVIDIA().CDI.Mounts):] {
			mounts = append(mounts, m.ContainerPath)
		}
		if !slices.Equal(mounts, test.mounts) {
			t.Errorf("mounts by %s: %q, want %q", test.by, mounts, test.mounts)
		}
	}
	// A GPU that has a daemon is closed to all but its clients.
	unlimited := gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuidA, Share: gpu.Share{Enforcement: gpu.ByNone}}}}
	edits, err := whole.Edits(t.Context(), unlimited)
	if err != nil || !slices.Equal(edits.CDI.Env[len(ofNVIDIA().CDI.Env):], []string{"CUDA_MPS_PIPE_DIRECTORY=/dev/remotegpu-mps"}) {
		t.Errorf("one that shares without a limit: %q, %v", edits.CDI.Env, err)
	}
	if edits, err := whole.Edits(t.Context(), gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuidA}}}); err != nil || len(edits.CDI.Env) != len(ofNVIDIA().CDI.Env) {
		t.Errorf("one that has a GPU alone: %q, %v", edits.CDI.Env, err)
	}
	if !slices.Equal(served.asked, []string{uuidA, uuidA}) {
		t.Errorf("daemons of %q, want one for each that shares", served.asked)
	}
	bare := inject.New(inject.Config{Driver: &driver{edits: ofNVIDIA()}, CDIHook: program(t, good)})
	two := share(gpu.ByMPS)
	two.Targets = append(two.Targets, gpu.Target{GPU: "GPU-2"})
	for name, try := range map[string]func() error{
		"no MPS":     func() error { _, err := bare.Edits(t.Context(), share(gpu.ByMPS)); return err },
		"no library": func() error { _, err := bare.Edits(t.Context(), share(gpu.ByCooperation)); return err },
		"two by MPS": func() error { _, err := whole.Edits(t.Context(), two); return err },
	} {
		if p := problem.Of(try()); p == nil || p.Reason != problem.GPUNotEnforceable || p.Hint == "" {
			t.Errorf("%s: %v, want GPU_NOT_ENFORCEABLE with a hint", name, p)
		}
	}
}

// Who has a part of a GPU does not get the node that reads what others draw.
func TestCardsAreOfThoseWhoHaveTheGPUAlone(t *testing.T) {
	for name, test := range map[string]struct {
		target gpu.Target
		want   bool
	}{
		"alone":    {gpu.Target{GPU: uuidA}, true},
		"shared":   {gpu.Target{GPU: uuidA, Share: gpu.Share{Enforcement: gpu.ByNone}}, false},
		"a share":  {gpu.Target{GPU: uuidA, Share: gpu.Share{Enforcement: gpu.ByDriver, MemoryBytes: 1 << 30}}, false},
		"instance": {gpu.Target{GPU: uuidA, MIG: "MIG-1"}, false},
	} {
		edits, err := inject.New(inject.Config{Driver: &driver{edits: ofNVIDIA()}, CDIHook: program(t, good)}).Edits(t.Context(),
			gpu.EditsRequest{Targets: []gpu.Target{test.target}, Capabilities: []gpu.Capability{gpu.Graphics}})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		found := paths(edits)
		for path, want := range map[string]bool{
			"/dev/dri/card2": test.want, "/dev/remotegpu/card0": test.want, "/dev/dri/renderD130": true, "/dev/remotegpu/render0": true,
		} {
			if slices.Contains(found, path) != want {
				t.Errorf("%s: %s in %v, want %v", name, path, found, want)
			}
		}
	}
}

// The variables that have EGL and Vulkan use the GPU name files which the hook does
// not bring.
func TestHookBringsWhatGraphicsIsToldOf(t *testing.T) {
	edits, err := inject.New(inject.Config{
		Driver: &driver{edits: ofNVIDIA()}, Way: inject.Hook, RuntimeHook: program(t, good), CLI: program(t, goodCLI), Dir: t.TempDir(),
	}).Edits(t.Context(), gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuidA}}, Capabilities: []gpu.Capability{gpu.Graphics}})
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, variable := range edits.CDI.Env {
		name, file, _ := strings.Cut(variable, "=")
		if name != "__EGL_VENDOR_LIBRARY_FILENAMES" && name != "VK_DRIVER_FILES" {
			continue
		}
		named++
		if !slices.ContainsFunc(edits.CDI.Mounts, func(m *cdi.Mount) bool { return m.ContainerPath == file }) {
			t.Errorf("%s names %s, which nobody brings", name, file)
		}
	}
	if named != 2 {
		t.Errorf("variables: %q", edits.CDI.Env)
	}
}

// A capability that the host cannot give is asked of neither way.
func TestHookIsNotAskedForWhatTheHostLacks(t *testing.T) {
	for _, modeset := range []bool{true, false} {
		edits := ofNVIDIA()
		if modeset {
			edits.CDI.DeviceNodes = append(edits.CDI.DeviceNodes, &cdi.DeviceNode{Path: "/dev/nvidia-modeset"})
		}
		found, err := inject.New(inject.Config{
			Driver: &driver{edits: edits}, Way: inject.Hook, RuntimeHook: program(t, good), CLI: program(t, goodCLI), Dir: t.TempDir(),
		}).Edits(t.Context(), gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuidA}}, Capabilities: []gpu.Capability{gpu.Display, gpu.Utility}})
		if err != nil {
			t.Fatal(err)
		}
		want := "NVIDIA_DRIVER_CAPABILITIES=utility"
		if modeset {
			want = "NVIDIA_DRIVER_CAPABILITIES=display,utility"
		}
		if !slices.Contains(found.CDI.Env, want) {
			t.Errorf("got %q, want %s", found.CDI.Env, want)
		}
	}
}
