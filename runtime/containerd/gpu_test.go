//nolint:thelper // what both runs are tests, and a failure should name their lines
package containerd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cdi "tags.cncf.io/container-device-interface/specs-go"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/containerd"
)

// greedyImage is an image that asks for all GPUs by all means.
const greedyImage = "docker.io/remotegpu/greedy:latest"

// in runs testprog in a container and returns what it said.
func in(tb testing.TB, engine *containerd.Engine, id string, args ...string) string {
	tb.Helper()
	result, err := engine.Run(tb.Context(), id, runtime.Command{Argv: append([]string{"testprog"}, args...), Timeout: time.Minute, OutputLimit: 1 << 20})
	if err != nil {
		tb.Fatalf("run %q in %s: %v", args, id, err)
	}
	return strings.TrimSpace(string(result.Stdout) + string(result.Stderr))
}

// hasOnly checks that a container may open the node of one GPU and none of the
// other, by whatever name.
func hasOnly(t *testing.T, engine *containerd.Engine, id string, own int) {
	t.Helper()
	other := 1 - own
	for path, want := range map[string]string{
		fmt.Sprintf("/dev/nvidia%d", own):   "no such device or address", // it may, and there is no GPU
		"/dev/nvidiactl":                    "no such device or address",
		fmt.Sprintf("/dev/nvidia%d", other): "no such file or directory",
	} {
		if got := in(t, engine, id, "cat", path); !strings.HasSuffix(got, want) {
			t.Errorf("%s opens %s: %s, want %s", id, path, got, want)
		}
	}
	made := fmt.Sprintf("/run/stolen-%d", time.Now().UnixNano())
	if got := in(t, engine, id, "mknod", made, "195", fmt.Sprint(other)); got != "" {
		t.Fatalf("%s makes a node: %s", id, got)
	}
	if got := in(t, engine, id, "cat", made); !strings.HasSuffix(got, "operation not permitted") {
		t.Errorf("%s opens the GPU of another: %s", id, got)
	}
}

func hasVariables(t *testing.T, engine *containerd.Engine, id string, want ...string) {
	t.Helper()
	env := strings.Split(in(t, engine, id, "env"), "\n")
	for _, variable := range want {
		if !slices.Contains(env, variable) {
			t.Errorf("%s lacks the variable %s: %q", id, variable, env)
		}
	}
	for _, variable := range env {
		if name, _, _ := strings.Cut(variable, "="); gpu.Reserved(name) && !slices.Contains(want, variable) {
			t.Errorf("%s has the variable %s", id, variable)
		}
	}
}

// Which GPU a container may open is a rule of its cgroup, which a change of its
// limits does not take away, of whatever version cgroups are.
func TestGPUDevices(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine := open(t, d)
		for i, id := range []string{"zero", "one"} {
			edits := &gpu.Edits{CDI: cdi.ContainerEdits{DeviceNodes: []*cdi.DeviceNode{
				{Path: fmt.Sprintf("/dev/nvidia%d", i), Type: "c", Major: 195, Minor: int64(i)}, {Path: "/dev/nvidiactl", Type: "c", Major: 195, Minor: 255},
			}}}
			start(t, engine, runtime.Container{ID: id, Image: testutil.ImageName, GPU: edits})
			hasOnly(t, engine, id, i)
		}
		for i, id := range []string{"zero", "one"} {
			if err := engine.Update(t.Context(), id, runtime.Resources{CPUMillis: 500, MemoryBytes: 256 << 20, Pids: 50}); err != nil {
				t.Errorf("change limits of %s: %v", id, err)
			}
			hasOnly(t, engine, id, i)
			if err := engine.Delete(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestGPUs(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.Containerd, testutil.Containerd2, testutil.NVIDIA)
	for _, need := range []testutil.Need{testutil.Containerd, testutil.Containerd2} {
		t.Run(string(need), func(t *testing.T) {
			d := testutil.StartContainerd(t, need)
			driver, bird := newDriver(t, d), newCanary(t, d)
			d.Import(t, testutil.TestImage(t, testutil.ImageOptions{
				Name: greedyImage, Env: []string{
					"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=all", "CUDA_VERSION=12.0", "NVIDIA_MIG_CONFIG_DEVICES=all",
					"NVIDIA_REQUIRE_CUDA=cuda>=99", "LD_PRELOAD=/proc/self/cwd/canary.so",
				},
				Files: map[string]string{"/etc/ld.so.conf.d/libc.conf": "/lib\n", "/canary.so": bird.content(t)},
			}))
			engine := open(t, d)
			networks := netNS(t, d)
			container := func(id string, edits *gpu.Edits) runtime.Container {
				return runtime.Container{
					ID: id, Image: greedyImage, Hostname: id, NetNS: networks(), GPU: edits,
					// What an earlier release let into the store.
					Env:    []string{"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_GPU_MEMORY_LIMIT=1", "CUDA_VISIBLE_DEVICES=0"},
					Labels: map[string]string{"cdi.k8s.io/all": "nvidia.com/gpu=all"},
				}
			}
			t.Run("side by side", func(t *testing.T) { sideBySide(t, d, engine, driver, container) })
			t.Run("another driver", func(t *testing.T) { anotherDriver(t, engine, driver, container) })
			t.Run("classic hook", func(t *testing.T) { classicHook(t, d, engine, driver, container) })
			t.Run("stages", func(t *testing.T) { stages(t, d, engine, driver, bird, container) })
			t.Run("graphics and a share", func(t *testing.T) { graphicsAndShare(t, d, engine, driver, container) })
			t.Run("instances", func(t *testing.T) { instances(t, d, engine, container) })
			if bird.sang() {
				t.Error("a hook has loaded a library of the tenant")
			}
		})
	}
}

// Two environments have a GPU each and a third has none, and each sees that
// much, whatever image and request say.
func sideBySide(t *testing.T, d *testutil.ContainerdDaemon, engine *containerd.Engine, driver *fakeDriver, container func(string, *gpu.Edits) runtime.Container) {
	for i, id := range []string{"zero", "one"} {
		start(t, engine, container(id, driver.edits(i)))
	}
	start(t, engine, container("none", nil))
	for i, id := range []string{"zero", "one"} {
		hasOnly(t, engine, id, i)
		hasVariables(t, engine, id, gpu.Void, "NVIDIA_CTK_LIBCUDA_DIR="+libDir, "CUDA_VERSION=12.0", "CUDA_VISIBLE_DEVICES=0")
	}
	hasVariables(t, engine, "none", gpu.Void, "CUDA_VERSION=12.0", "CUDA_VISIBLE_DEVICES=0")
	if got := in(t, engine, "none", "ls", "/dev"); strings.Contains(got, "nvidia") {
		t.Errorf("nodes without a GPU: %s", got)
	}
	for _, id := range []string{"zero", "none"} {
		if info := d.Ctr(t, "containers", "info", "--spec", id); strings.Contains(info, "cdi.k8s.io") {
			t.Errorf("the spec of %s has annotations of CDI: %s", id, info)
		}
	}
	if got := in(t, engine, "zero", "readlink", libDir+"/libcuda.so.1"); got != "libcuda.so."+driver.version {
		t.Errorf("libcuda.so.1 leads to %s", got)
	}
	if got := in(t, engine, "zero", "cat", libDir+"/libcuda.so"); !strings.Contains(got, driver.version) {
		t.Error("libcuda.so is not the driver's")
	}
	if cache := in(t, engine, "zero", "cat", "/etc/ld.so.cache"); !strings.Contains(cache, libDir+"/libcuda.so.1") || !strings.Contains(cache, "libnvidia-ml.so.1") {
		t.Error("the loader does not know the driver's libraries")
	}
	if got := in(t, engine, "zero", "write", libDir+"/libcuda.so."+driver.version, "x"); !strings.Contains(got, "read-only") {
		t.Errorf("a tenant writes to the driver's library: %s", got)
	}
	for _, id := range []string{"zero", "one", "none"} {
		if err := engine.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

// Between a stop and a start the driver becomes another: what is injected is
// the one of then, and nothing gathers.
func anotherDriver(t *testing.T, engine *containerd.Engine, driver *fakeDriver, container func(string, *gpu.Edits) runtime.Container) {
	c := container("one", driver.edits(1))
	start(t, engine, c)
	hooks := func() (found []string) {
		for name := range strings.FieldsSeq(in(t, engine, "one", "ls", "/etc/ld.so.conf.d")) {
			if strings.Contains(name, "-nvcr-") {
				found = append(found, name)
			}
		}
		return found
	}
	first := hooks()
	if len(first) == 0 {
		t.Fatal("the hook has left nothing: this test is of no use any more")
	}
	stop(t, engine, "one")
	former := driver.version
	driver.install(t, "999.99.1")
	_, err := engine.Start(t.Context(), c)
	if p := problem.Of(err); p == nil || p.Reason != problem.GPUInjectionFailed || !strings.Contains(p.Message, former) || p.Hint == "" {
		t.Fatalf("with what was computed before: %v, want GPU_INJECTION_FAILED that names the file", err)
	}
	c.GPU = driver.edits(0)
	if _, err := engine.Start(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got := in(t, engine, "one", "readlink", libDir+"/libcuda.so.1"); got != "libcuda.so."+driver.version {
		t.Errorf("libcuda.so.1 leads to %s, want that of %s", got, driver.version)
	}
	hasOnly(t, engine, "one", 0)
	stop(t, engine, "one")
	if _, err := engine.Start(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if again := hooks(); len(again) != len(first) {
		t.Errorf("after three starts: %q, after one: %q", again, first)
	}
	if got := in(t, engine, "one", "ls", "/etc/ld.so.conf.d"); !strings.Contains(got, "libc.conf") {
		t.Errorf("the image's own file is gone: %s", got)
	}
	if err := engine.Delete(t.Context(), "one"); err != nil {
		t.Error(err)
	}
}

// canary is a library that tells when a process of the host loads it: it makes
// a file where containers see none.
type canary struct{ library, mark string }

func newCanary(tb testing.TB, d *testutil.ContainerdDaemon) canary {
	tb.Helper()
	bird := canary{library: filepath.Join(d.Dir, "canary.so"), mark: filepath.Join(d.Dir, "sang")}
	source := fmt.Sprintf("#include <fcntl.h>\n__attribute__((constructor)) static void sing(void) { open(%q, O_CREAT|O_WRONLY, 0600); }\n", bird.mark)
	if err := os.WriteFile(bird.library+".c", []byte(source), 0o600); err != nil {
		tb.Fatal(err)
	}
	testutil.Sh(tb, "gcc -shared -fPIC -o "+bird.library+" "+bird.library+".c")
	testutil.Sh(tb, "LD_PRELOAD="+bird.library+" /bin/true")
	if !bird.sang() {
		tb.Fatal("the canary does not sing")
	}
	if err := os.Remove(bird.mark); err != nil {
		tb.Fatal(err)
	}
	return bird
}

func (c canary) sang() bool { _, err := os.Stat(c.mark); return err == nil }

func (c canary) content(tb testing.TB) string {
	tb.Helper()
	data, err := os.ReadFile(c.library)
	if err != nil {
		tb.Fatal(err)
	}
	return string(data)
}

// A library that a tenant has everything preload is in no hook, whatever the
// stage, and no variable of the container, the node or containerd either.
func stages(t *testing.T, d *testutil.ContainerdDaemon, engine *containerd.Engine, driver *fakeDriver, bird canary, container func(string, *gpu.Edits) runtime.Container) {
	record := filepath.Join(d.Dir, "record")
	testutil.Sh(t, fmt.Sprintf("printf '#!/bin/sh\\ncat > /dev/null\\n/usr/bin/env > %s.$1\\n' > %s; chmod 755 %s", record, record, record))
	all := []string{"prestart", "createRuntime", "createContainer", "poststart", "poststop"}
	edits := driver.edits(0)
	for _, stage := range all {
		edits.CDI.Hooks = append(edits.CDI.Hooks, &cdi.Hook{HookName: stage, Path: record, Args: []string{"record", stage}, Env: []string{"OWN=" + stage}})
	}
	c := container("one", edits)
	c.Env = append(c.Env, "LD_PRELOAD=/proc/self/cwd/canary.so:"+bird.library, "SECRET=1")
	start(t, engine, c)
	if got := in(t, engine, "one", "env"); !strings.Contains(got, "LD_PRELOAD=/proc/self/cwd/canary.so:") {
		t.Errorf("the tenant's own variable is gone: %s", got)
	}
	if err := engine.Delete(t.Context(), "one"); err != nil {
		t.Error(err)
	}
	for _, stage := range all {
		text, err := os.ReadFile(record + "." + stage)
		if err != nil {
			t.Errorf("the hook at %s did not run: %v", stage, err)
			continue
		}
		for line := range strings.Lines(string(text)) {
			switch name, _, _ := strings.Cut(strings.TrimSpace(line), "="); name {
			case "OWN", "PWD", "_", "SHLVL", "OLDPWD": // its own, and the shell's
			default:
				t.Errorf("the hook at %s has the variable %s", stage, name)
			}
		}
	}
}
