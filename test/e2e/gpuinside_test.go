package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/test/fakenvml"
)

// answer is what a command in an environment says, all of it.
func (n *Node) answer(tb testing.TB, env string, args ...string) string {
	tb.Helper()
	out, errs, _ := n.CLI(tb, append([]string{"env", "exec", "--stdin=false", env, "--", "testprog"}, args...)...)
	return strings.TrimSpace(out + errs)
}

// What environments find of their GPU: files of the driver by nvcdi, put in
// place by NVIDIA's hooks, and nodes. Only the silicon and what the driver's
// library says of it are made up.
func TestGPUsInside(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables, usual, testutil.Programs, testutil.NVIDIA)
	containerd := testutil.StartContainerd(t, usual)
	driver := fakenvml.Install(t, filepath.Join(containerd.Dir, "driver"), fakenvml.Version, 2)
	model := gpus.Config{Name: "NVIDIA L4", Architecture: nvml.DEVICE_ARCH_ADA, MemoryMB: 23034, CudaMajor: 8, CudaMinor: 9}
	host := fakenvml.Host{GPUs: []fakenvml.GPU{{Model: model}, {Model: model, Minor: 1}}}
	driver.Set(t, host)
	hook := filepath.Join(containerd.Dir, "nvidia-cdi-hook")
	testutil.Sh(t, "install -m 755 "+testutil.Tool("nvidia-cdi-hook")+" "+hook)
	containerd.Import(t, testutil.TestImage(t, testutil.ImageOptions{
		Name: "docker.io/remotegpu/cuda:latest", Env: []string{"NVIDIA_VISIBLE_DEVICES=all", "CUDA_VERSION=12.0"},
		Files: map[string]string{"/etc/ld.so.conf.d/libc.conf": "/lib\n"},
	}))
	n := startOn(t, containerd, func(config string) string {
		return config + fmt.Sprintf("[gpu]\ndriver_root = %q\ndev_root = %q\nhook = %q\n", driver.Root, driver.Root, hook)
	}, func(*Node) {})
	for _, name := range []string{"zero", "one"} {
		n.Must(t, "env", "create", name, "--image", "remotegpu/cuda", "--gpus", "uuid="+map[string]string{"zero": "0", "one": "1"}[name])
	}
	n.Must(t, "env", "create", "none", "--image", "remotegpu/cuda")

	cuda := fakenvml.LibDir() + "/libcuda.so.1"
	for index, name := range []string{"zero", "one"} {
		for path, want := range map[string]string{
			fmt.Sprintf("/dev/nvidia%d", index):   "no such device or address", // it may open it, and there is no GPU
			fmt.Sprintf("/dev/nvidia%d", 1-index): "no such file or directory",
			"/dev/nvidia-uvm":                     "no such device or address",
		} {
			if got := n.answer(t, name, "cat", path); !strings.Contains(got, want) {
				t.Errorf("%s opens %s: %s, want %s", name, path, got, want)
			}
		}
		n.answer(t, name, "mknod", "/stolen", "195", fmt.Sprint(1-index))
		if got := n.answer(t, name, "cat", "/stolen"); !strings.Contains(got, "operation not permitted") {
			t.Errorf("%s opens the GPU of the other: %s", name, got)
		}
		if got := n.answer(t, name, "readlink", cuda); got != "libcuda.so."+fakenvml.Version {
			t.Errorf("%s has libcuda %s", name, got)
		}
		if cache := n.answer(t, name, "cat", "/etc/ld.so.cache"); !strings.Contains(cache, "libcuda.so.1") || strings.Contains(cache, "libEGL_nvidia") {
			t.Errorf("the libraries that %s finds: %q", name, cache)
		}
		if env := n.answer(t, name, "env"); !strings.Contains(env, "NVIDIA_VISIBLE_DEVICES=void") || strings.Contains(env, "VISIBLE_DEVICES=all") {
			t.Errorf("variables of %s: %s", name, env)
		}
	}
	if got := n.answer(t, "none", "ls", "/dev"); strings.Contains(got, "nvidia") {
		t.Errorf("nodes of an environment without a GPU: %s", got)
	}

	// The driver is upgraded below them. What runs keeps its files; what is
	// started again has those of the new one.
	driver.Upgrade(t, "1000.1.2")
	host.Driver = "1000.1.2"
	driver.Set(t, host)
	n.Must(t, "env", "restart", "zero")
	for name, version := range map[string]string{"zero": "1000.1.2", "one": fakenvml.Version} {
		if got := n.answer(t, name, "readlink", cuda); got != "libcuda.so."+version {
			t.Errorf("after an upgrade %s has libcuda %s, want %s", name, got, version)
		}
		if got := n.answer(t, name, "cat", cuda); !strings.Contains(got, "ELF") {
			t.Errorf("after an upgrade the libcuda of %s is no file: %.80q", name, got)
		}
	}

	// Without the toolkit nothing with a GPU starts, which says why; then it does.
	if err := os.Rename(hook, hook+".away"); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := n.CLI(t, "env", "restart", "one"); code == 0 || !strings.Contains(errs, "Container Toolkit is not installed") || !strings.Contains(errs, "Try: install it") {
		t.Errorf("a start without the toolkit: exit %d, %s", code, errs)
	}
	if info := n.Must(t, "node", "info"); !strings.Contains(info, "GPU_TOOLKIT_MISSING") {
		t.Errorf("without the toolkit the node says: %s", info)
	}
	if err := os.Rename(hook+".away", hook); err != nil {
		t.Fatal(err)
	}
	if info := n.Must(t, "node", "info"); strings.Contains(info, "GPU_TOOLKIT") {
		t.Errorf("with the toolkit the node says: %s", info)
	}
	n.Must(t, "env", "start", "one")
	if got := n.answer(t, "one", "readlink", cuda); got != "libcuda.so.1000.1.2" {
		t.Errorf("libcuda %s", got)
	}

	// One that draws has what OpenGL and Vulkan take, and nobody asks for GPUs by
	// a variable.
	n.Must(t, "env", "rm", "--force", "zero")
	n.Must(t, "env", "create", "drawing", "--image", "remotegpu/cuda", "--gpus", "1", "--gpu-capabilities", "compute,utility,graphics")
	// Which GPU EGL and Vulkan show the hook tells the driver.
	if got := n.answer(t, "drawing", "cat", "/etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf"); !strings.Contains(got, "EGLVisibleDGPUDevices") || !strings.Contains(got, "0x1") {
		t.Errorf("application profile: %s", got)
	}
	env := n.answer(t, "drawing", "env") + "\n"
	for _, want := range []string{"VGL_DISPLAY=egl0", "__EGL_VENDOR_LIBRARY_FILENAMES=/usr/share/glvnd/egl_vendor.d/10_nvidia.json", "VK_DRIVER_FILES=/etc/vulkan/icd.d/nvidia_icd.json"} {
		if !strings.Contains(env, want+"\n") {
			t.Errorf("one that draws lacks %s: %s", want, env)
		}
	}
	if got := n.answer(t, "drawing", "cat", "/usr/share/glvnd/egl_vendor.d/10_nvidia.json"); !strings.Contains(got, "libEGL_nvidia") {
		t.Errorf("EGL: %s", got)
	}
	_, errs, code := n.CLI(t, "env", "create", "greedy", "--image", "remotegpu/cuda", "-e", "NVIDIA_VISIBLE_DEVICES=all")
	if code == 0 || !strings.Contains(errs, "NVIDIA_VISIBLE_DEVICES is reserved") || !strings.Contains(errs, "CUDA_VISIBLE_DEVICES") {
		t.Errorf("a request for all GPUs by a variable: exit %d, %s", code, errs)
	}
}
