package fakenvml

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	goruntime "runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Driver is a directory with what the packages of a driver install.
type Driver struct {
	*Library
	Root string
}

// LibDir is where libraries are, below the root and in containers.
func LibDir() string {
	if goruntime.GOARCH == "arm64" {
		return "/usr/lib/aarch64-linux-gnu"
	}
	return "/usr/lib/x86_64-linux-gnu"
}

// libraries are those of a driver that have its version, and one that has not.
var libraries = []string{
	"libcuda", "libnvidia-ptxjitcompiler", "libnvidia-encode", "libnvcuvid", "libEGL_nvidia", "libGLX_nvidia", "libnvidia-eglcore",
	"libnvidia-glcore", "libnvidia-allocator", "libnvidia-vulkan-producer", "libnvoptix",
}

// configs are files that loaders of libraries read.
var configs = map[string]string{
	"/usr/share/glvnd/egl_vendor.d/10_nvidia.json":               `{"file_format_version":"1.0.0","ICD":{"library_path":"libEGL_nvidia.so.0"}}`,
	"/usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json":  `{"file_format_version":"1.0.0","ICD":{"library_path":"libnvidia-egl-gbm.so.1"}}`,
	"/usr/share/X11/xorg.conf.d/nvidia-drm-outputclass.conf":     "Section \"OutputClass\"\nEndSection\n",
	"/usr/share/nvidia/nvoptix.bin":                              "weights",
	"/etc/vulkan/icd.d/nvidia_icd.json":                          `{"file_format_version":"1.0.1","ICD":{"library_path":"libGLX_nvidia.so.0","api_version":"1.4"}}`,
	"/etc/OpenCL/vendors/nvidia.icd":                             "libnvidia-opencl.so.1\n",
	"/lib/firmware/nvidia/999.88.77/gsp_ga10x.bin":               "firmware",
	"/usr/share/egl/egl_external_platform.d/99_not_nvidias.json": "{}",
}

// Install lays a driver out below a directory, root's, without GPUs (Set). It
// needs root: device nodes are made, of NVIDIA's major number, and of one that
// no driver of the host owns.
func Install(tb testing.TB, root, version string, gpus int) *Driver {
	tb.Helper()
	driver := &Driver{Root: root}
	driver.Upgrade(tb, version)
	for path, text := range configs {
		driver.file(tb, path, text, 0o644)
	}
	for _, program := range []string{"nvidia-smi", "nvidia-cuda-mps-control", "nvidia-xconfig"} {
		driver.file(tb, "/usr/bin/"+program, "#!/bin/sh\necho fake "+program+"\n", 0o755)
	}
	other := freeMajors(tb)[0]
	driver.Node(tb, "/dev/nvidiactl", 195, 255)
	driver.Node(tb, "/dev/nvidia-modeset", 195, 254)
	driver.Node(tb, "/dev/nvidia-uvm", other, 0)
	driver.Node(tb, "/dev/nvidia-uvm-tools", other, 1)
	for minor := range gpus {
		driver.Node(tb, fmt.Sprintf("/dev/nvidia%d", minor), 195, minor)
	}
	return driver
}

// Upgrade replaces the libraries by those of another version.
func (d *Driver) Upgrade(tb testing.TB, version string) {
	tb.Helper()
	dir := filepath.Join(d.Root, LibDir())
	old, err := filepath.Glob(filepath.Join(dir, "lib*.so.[0-9]*.*"))
	if err != nil {
		tb.Fatal(err)
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			tb.Fatal(err)
		}
	}
	d.Library = Build(tb, dir, version)
	for _, name := range libraries {
		d.library(tb, filepath.Join(LibDir(), name+".so."+version), name+".so.1")
	}
	d.library(tb, filepath.Join(LibDir(), "libnvidia-egl-gbm.so.1.1.3"), "libnvidia-egl-gbm.so.1")
	d.library(tb, "/usr/lib/xorg/modules/extensions/libglxserver_nvidia.so."+version, "libglxserver_nvidia.so")
}

func (d *Driver) library(tb testing.TB, path, soname string) {
	tb.Helper()
	path = filepath.Join(d.Root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tb.Fatal(err)
	}
	compile := exec.CommandContext(tb.Context(), "gcc", "-shared", "-nostdlib", "-x", "c", "-", "-Wl,-soname,"+soname, "-o", path)
	compile.Stdin = strings.NewReader(fmt.Sprintf("const char *is = %q;", path))
	if text, err := compile.CombinedOutput(); err != nil {
		tb.Fatalf("make %s: %v\n%s", path, err, text)
	}
}

func (d *Driver) file(tb testing.TB, path, text string, mode os.FileMode) {
	tb.Helper()
	path = filepath.Join(d.Root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		tb.Fatal(err)
	}
}

// Node makes a device node below the root.
func (d *Driver) Node(tb testing.TB, path string, major, minor int) {
	tb.Helper()
	path = filepath.Join(d.Root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(uint32(major), uint32(minor)))); err != nil {
		tb.Fatalf("make node %s: %v", path, err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		tb.Fatal(err)
	}
}

// Capabilities makes nodes of what MIG instances are opened by, as the driver
// does: anybody may read them whom the device cgroup lets. It returns their
// major number.
func (d *Driver) Capabilities(tb testing.TB, minors ...int) int {
	tb.Helper()
	major := freeMajors(tb)[1] // another than that of unified memory
	for _, minor := range minors {
		path := fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", minor)
		d.Node(tb, path, major, minor)
		if err := os.Chmod(filepath.Join(d.Root, path), 0o444); err != nil {
			tb.Fatal(err)
		}
	}
	return major
}

var deviceLine = regexp.MustCompile(`(?m)^ *(\d+) (.*)$`)

// freeMajors are two numbers of character devices that no driver owns. NVIDIA's
// must not be owned either.
func freeMajors(tb testing.TB) (free [2]int) {
	tb.Helper()
	text, err := os.ReadFile("/proc/devices")
	if err != nil {
		tb.Fatal(err)
	}
	character, _, _ := strings.Cut(string(text), "Block devices:")
	owned := map[int]bool{}
	for _, match := range deviceLine.FindAllStringSubmatch(character, -1) {
		major, err := strconv.Atoi(match[1])
		if err != nil {
			tb.Fatal(err)
		}
		owned[major] = true
	}
	if owned[195] {
		tb.Skip("this machine has an NVIDIA driver: its device numbers must not be used")
	}
	count := 0
	for major := 511; major >= 384; major-- {
		if owned[major] {
			continue
		}
		free[count] = major
		if count++; count == len(free) {
			return free
		}
	}
	tb.Fatal("all numbers of devices are owned")
	return free
}
