//nolint:thelper // as in gpu_test.go
package containerd_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cdi "tags.cncf.io/container-device-interface/specs-go"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/inject"
	"github.com/remotegpu/remotegpu/gpu/mps"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/containerd"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

// standIn is a driver that computes the edits of one GPU.
type standIn struct {
	gpu.Driver
	edits *gpu.Edits
}

func (s standIn) Edits(context.Context, gpu.EditsRequest) (gpu.Edits, error) { return *s.edits, nil }

func (s standIn) SetExclusiveProcess(context.Context, string, bool) error { return nil }

// saysVersion is what a stand-in for nvidia-container-cli does before all else, as
// printf has it.
const saysVersion = `test "$1" = --version && { echo cli-version: 1.20.1; exit; }\n`

// The classic hook runs nvidia-container-cli for the leased UUID alone, with
// nothing else in its environment, and nodes are as with CDI.
func classicHook(t *testing.T, d *testutil.ContainerdDaemon, engine *containerd.Engine, driver *fakeDriver, container func(string, *gpu.Edits) runtime.Container) {
	hook, cli, record := toolkit(t, d, "nvidia-container-runtime-hook"), filepath.Join(d.Dir, "nvidia-container-cli"), filepath.Join(d.Dir, "cli")
	testutil.Sh(t, fmt.Sprintf("printf '#!/bin/sh\\n"+saysVersion+"for last; do :; done\\necho \"$*\" > %s.args\\n/usr/bin/env > %s.env\\n' > %s; chmod 755 %s", record, record, cli, cli))
	for i, uuid := range []string{"GPU-aaaaaaaa-0000-0000-0000-000000000000", "GPU-bbbbbbbb-0000-0000-0000-000000000000"} {
		injector := inject.New(inject.Config{
			Driver: standIn{edits: driver.edits(i)}, Way: inject.Hook, RuntimeHook: hook, CLI: cli, Dir: filepath.Join(d.Dir, "gpu"),
		})
		edits, err := injector.Edits(t.Context(), gpu.EditsRequest{Targets: []gpu.Target{{GPU: uuid}}, Capabilities: []gpu.Capability{gpu.Compute, gpu.Utility}})
		if err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprintf("hooked-%d", i)
		start(t, engine, container(id, &edits))
		args, err := os.ReadFile(record + ".args")
		if err != nil {
			t.Fatalf("nvidia-container-cli did not run: %v", err)
		}
		words := strings.Fields(string(args))
		for _, want := range []string{"configure", "--device=" + uuid, "--compute", "--utility", "--no-cgroups"} {
			if !slices.Contains(words, want) {
				t.Errorf("nvidia-container-cli was run with %q, want %s", words, want)
			}
		}
		for _, word := range words {
			if strings.HasPrefix(word, "--mig-") || strings.HasPrefix(word, "--require") || word == "--graphics" || word == "--display" {
				t.Errorf("nvidia-container-cli was run with %s", word)
			}
		}
		if root := words[len(words)-1]; !filepath.IsAbs(root) {
			t.Errorf("root: %s", root)
		}
		if env, err := os.ReadFile(record + ".env"); err != nil || strings.Contains(string(env), "CUDA_V") || strings.Contains(string(env), "NVIDIA_VISIBLE") {
			t.Errorf("environment of nvidia-container-cli: %s, %v", env, err)
		}
		if err := os.Remove(record + ".args"); err != nil {
			t.Error(err)
		}
	}
	for i := range 2 {
		id := fmt.Sprintf("hooked-%d", i)
		hasOnly(t, engine, id, i)
		hasVariables(t, engine, id, gpu.Void, "NVIDIA_DRIVER_CAPABILITIES=compute,utility", "CUDA_VERSION=12.0")
		if err := engine.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	start(t, engine, container("none", nil)) // has no hook
	if _, err := os.Stat(record + ".args"); err == nil {
		t.Error("nvidia-container-cli ran for an environment without a GPU")
	}
	if err := engine.Delete(t.Context(), "none"); err != nil {
		t.Error(err)
	}
	testutil.Sh(t, "printf '#!/bin/sh\\n"+saysVersion+"echo driver is broken >&2\\nexit 1\\n' > "+cli)
	edits, err := inject.New(inject.Config{
		Driver: standIn{edits: driver.edits(0)}, Way: inject.Hook, RuntimeHook: hook, CLI: cli, Dir: filepath.Join(d.Dir, "gpu"),
	}).Edits(t.Context(), gpu.EditsRequest{Targets: []gpu.Target{{GPU: "GPU-1"}}})
	if err != nil {
		t.Fatal(err)
	}
	failing := container("failing", &edits)
	if err := engine.Create(t.Context(), failing); err != nil {
		t.Fatal(err)
	}
	_, err = engine.Start(t.Context(), failing)
	if p := problem.Of(err); p == nil || p.Reason != problem.GPUInjectionFailed || !strings.Contains(p.Message, "driver is broken") {
		t.Errorf("a hook that fails: %v, want GPU_INJECTION_FAILED with what it said", err)
	}
	if err := engine.Delete(t.Context(), "failing"); err != nil {
		t.Error(err)
	}
}

// sharedBy answers with directories, as MPS daemons do.
type sharedBy struct{ dir string }

func (s sharedBy) Prepare(context.Context, string, gpu.Share) (mps.Client, error) {
	return mps.Client{Pipe: filepath.Join(s.dir, "pipe"), Shm: filepath.Join(s.dir, "shm")}, nil
}

// A desktop that shares a GPU finds its render node at a stable place, also as
// another user than root, and the MPS daemon where it is told to look.
func graphicsAndShare(t *testing.T, d *testutil.ContainerdDaemon, engine *containerd.Engine, driver *fakeDriver, container func(string, *gpu.Edits) runtime.Container) {
	dir := filepath.Join(d.Dir, "mps")
	testutil.Sh(t, "mkdir -p "+dir+"/pipe "+dir+"/shm; chmod 1777 "+dir+"/shm; echo -n here > "+dir+"/pipe/control; echo '{}' > "+dir+"/10_nvidia.json")
	edits := driver.edits(1)
	edits.CDI.DeviceNodes = append(edits.CDI.DeviceNodes, &cdi.DeviceNode{Path: "/dev/dri/renderD130", HostPath: filepath.Join(driver.dir, "dev", "nvidia1")})
	edits.CDI.Mounts = append(edits.CDI.Mounts, &cdi.Mount{HostPath: dir + "/10_nvidia.json", ContainerPath: "/usr/share/glvnd/egl_vendor.d/10_nvidia.json", Options: []string{"ro", "bind"}})
	edits.CDI.Mounts = append(edits.CDI.Mounts, &cdi.Mount{HostPath: "tmpfs", ContainerPath: "/tmp/vgpulock", Type: "tmpfs", Options: []string{"mode=1777", "size=64k"}})
	injector := inject.New(inject.Config{Driver: standIn{edits: edits}, CDIHook: driver.hook, MPS: sharedBy{dir}})
	for i, id := range []string{"first", "second"} {
		got, err := injector.Edits(t.Context(), gpu.EditsRequest{
			Targets:      []gpu.Target{{GPU: "GPU-1", Share: gpu.Share{Enforcement: gpu.ByMPS, MemoryBytes: 1 << 30}}},
			Capabilities: []gpu.Capability{gpu.Compute, gpu.Utility, gpu.Graphics},
		})
		if err != nil {
			t.Fatal(err)
		}
		c := container(id, &got)
		if i == 0 {
			c.User = "app"
			for _, target := range []string{"/tmp", "/run"} { // what nobody can do without
				c.Mounts = append(c.Mounts, volume.Staged{FSType: "tmpfs", Source: "tmpfs", Target: target})
			}
		}
		start(t, engine, c)
	}
	for _, node := range []string{"/dev/remotegpu/render0", "/dev/dri/renderD130"} {
		if got := in(t, engine, "first", "cat", node); !strings.HasSuffix(got, "no such device or address") {
			t.Errorf("a user opens %s: %s", node, got)
		}
	}
	hasVariables(t, engine, "first", gpu.Void, "NVIDIA_CTK_LIBCUDA_DIR="+libDir, "VGL_DISPLAY=egl0", "REMOTEGPU_RENDER_NODE=/dev/remotegpu/render0",
		"__EGL_VENDOR_LIBRARY_FILENAMES=/usr/share/glvnd/egl_vendor.d/10_nvidia.json",
		"CUDA_MPS_PIPE_DIRECTORY=/dev/remotegpu-mps", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=1024M")
	if got := in(t, engine, "first", "cat", "/dev/remotegpu-mps/control"); got != "here" {
		t.Errorf("the daemon's directory: %s", got)
	}
	if got := in(t, engine, "first", "write", "/tmp/vgpulock/lock", "mine"); got != "" {
		t.Errorf("a user writes below a mount of the request: %s", got)
	}
	if got := in(t, engine, "first", "write", "/dev/shm/x", "seen"); got != "" {
		t.Errorf("a client writes to the shared memory: %s", got)
	}
	if got := in(t, engine, "second", "cat", "/dev/shm/x"); got != "seen" {
		t.Errorf("the clients of one daemon do not share memory: %s", got)
	}
	for _, id := range []string{"first", "second"} {
		if err := engine.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}
