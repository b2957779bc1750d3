package containerd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	cdi "tags.cncf.io/container-device-interface/specs-go"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/testutil"
)

// libDir is where libraries go in containers of these tests.
const libDir = "/usr/lib/x86_64-linux-gnu"

// fakeDriver is a directory with what a driver installs: libraries, device
// nodes of NVIDIA's major number, and a program. No driver owns that number on
// a machine without a GPU: a node that a container may open gives ENXIO, one
// that its device cgroup denies EPERM.
type fakeDriver struct {
	dir     string
	version string
	hook    string // nvidia-cdi-hook, the real one
}

// newDriver makes one with the GPUs 0 and 1.
func newDriver(tb testing.TB, d *testutil.ContainerdDaemon) *fakeDriver {
	tb.Helper()
	driver := &fakeDriver{dir: filepath.Join(d.Dir, "driver"), hook: toolkit(tb, d, "nvidia-cdi-hook")}
	testutil.Sh(tb, "mkdir -p "+driver.dir+"/dev "+driver.dir+"/lib "+driver.dir+"/bin")
	for name, minor := range map[string]int{"nvidia0": 0, "nvidia1": 1, "nvidiactl": 255} {
		testutil.Sh(tb, fmt.Sprintf("mknod -m 666 %s/dev/%s c 195 %d", driver.dir, name, minor))
	}
	testutil.Sh(tb, "printf '#!/bin/sh\\necho fake\\n' > "+driver.dir+"/bin/nvidia-smi; chmod 755 "+driver.dir+"/bin/nvidia-smi")
	driver.install(tb, "999.88.77")
	return driver
}

// toolkit copies a program of the toolkit to where only root writes.
func toolkit(tb testing.TB, d *testutil.ContainerdDaemon, name string) string {
	tb.Helper()
	testutil.Require(tb, testutil.NVIDIA)
	path := filepath.Join(d.Dir, name)
	testutil.Sh(tb, "install -m 755 "+testutil.Tool(name)+" "+path)
	return path
}

// install replaces the driver by one of another version.
func (f *fakeDriver) install(tb testing.TB, version string) {
	tb.Helper()
	testutil.Sh(tb, "rm -f "+f.dir+"/lib/*")
	for _, name := range []string{"libcuda", "libnvidia-ml"} {
		testutil.Sh(tb, fmt.Sprintf("echo 'const char *version = \"%s\";' | gcc -shared -fPIC -x c - -Wl,-soname,%s.so.1 -o %s/lib/%s.so.%s", version, name, f.dir, name, version))
	}
	f.version = version
}

// edits are what nvcdi says of the GPU of a minor number, in its order.
func (f *fakeDriver) edits(minor int) *gpu.Edits {
	mode := os.FileMode(0o666)
	node := func(name string) *cdi.DeviceNode {
		return &cdi.DeviceNode{Path: "/dev/" + name, HostPath: filepath.Join(f.dir, "dev", name), FileMode: &mode, Permissions: "rwm"}
	}
	mount := func(host, container string) *cdi.Mount {
		return &cdi.Mount{HostPath: host, ContainerPath: container, Options: []string{"ro", "nosuid", "nodev", "rbind", "rprivate"}}
	}
	hook := func(args ...string) *cdi.Hook {
		return &cdi.Hook{HookName: "createContainer", Path: f.hook, Args: append([]string{"nvidia-cdi-hook"}, args...), Env: []string{"NVIDIA_CTK_DEBUG=false"}}
	}
	libcuda := "libcuda.so." + f.version
	return &gpu.Edits{CDI: cdi.ContainerEdits{
		Env:         []string{gpu.Void, "NVIDIA_CTK_LIBCUDA_DIR=" + libDir},
		DeviceNodes: []*cdi.DeviceNode{node(fmt.Sprintf("nvidia%d", minor)), node("nvidiactl")},
		Mounts: []*cdi.Mount{
			mount(filepath.Join(f.dir, "lib", libcuda), filepath.Join(libDir, libcuda)),
			mount(filepath.Join(f.dir, "lib", "libnvidia-ml.so."+f.version), libDir+"/libnvidia-ml.so."+f.version),
			mount(filepath.Join(f.dir, "bin", "nvidia-smi"), "/usr/bin/nvidia-smi"),
		},
		Hooks: []*cdi.Hook{
			hook("create-symlinks", "--link", libcuda+"::"+libDir+"/libcuda.so.1", "--link", "libcuda.so.1::"+libDir+"/libcuda.so"),
			hook("update-ldcache", "--ldconfig-path", "/sbin/ldconfig", "--folder", libDir),
			hook("disable-device-node-modification"),
		},
	}}
}
