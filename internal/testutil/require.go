// Package testutil holds what tests of several packages need: a guard that
// says what a test needs, network namespaces, private containerds and images
// that need no registry. Nothing else imports it.
package testutil

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// Need is something of the host that a test needs.
type Need string

// The needs. A test that needs one which REMOTEGPU_TEST does not name is
// skipped and says so; one that is named and missing fails the test.
const (
	Root        Need = "root"        // uid 0, network namespaces, mounts
	IPTables    Need = "iptables"    // iptables, ip, conntrack, nft
	Containerd  Need = "containerd"  // the distribution's containerd and runc
	Containerd2 Need = "containerd2" // containerd 2.x built by "make tools"
	BuildKit    Need = "buildkit"    // buildkitd built by "make tools", mmdebstrap
	Browser     Need = "browser"     // Chromium, node and playwright-core
	Programs    Need = "programs"    // the built programs in bin/
	NVIDIA      Need = "nvidia"      // the container toolkit's programs built by "make tools", gcc
	Prometheus  Need = "prometheus"  // Debian's Prometheus with promtool
	Peers       Need = "peers"       // docker, podman, firewalld, ufw
	VM          Need = "vm"          // QEMU, mke2fs, and the image that test/vm/image.sh makes
	GPU         Need = "gpu"         // a GPU of NVIDIA with its driver, the container toolkit, and what gpucheck is compiled with
	DiskQuota   Need = "diskquota"   // a kernel with project quotas of ext4 and XFS, mkfs of both
)

// Require skips the test unless REMOTEGPU_TEST (comma-separated needs, or
// "all" for what a host can be given: all but VM, GPU and DiskQuota) asks for every
// need, and fails it when one is asked for and missing.
func Require(tb testing.TB, needs ...Need) {
	tb.Helper()
	asked := strings.Split(os.Getenv("REMOTEGPU_TEST"), ",")
	for _, need := range needs {
		special := need == VM || need == GPU || need == DiskQuota
		if !slices.Contains(asked, string(need)) && (special || !slices.Contains(asked, "all")) {
			target := "test"
			switch {
			case slices.Contains(needs, VM):
				target = "test-vm"
			case slices.Contains(needs, GPU):
				target = "test-gpu"
			}
			tb.Skipf("needs %s: run with REMOTEGPU_TEST=%s (make %s does)", need, join(needs), target)
		}
	}
	for _, need := range needs {
		if missing := missing(need); missing != "" {
			tb.Fatalf("REMOTEGPU_TEST asks for %s, but %s", need, missing)
		}
	}
}

func join(needs []Need) string {
	names := make([]string, len(needs))
	for i, need := range needs {
		names[i] = string(need)
	}
	return strings.Join(names, ",")
}

func missing(need Need) string {
	switch need {
	case Root:
		if os.Geteuid() != 0 {
			return "this is not root"
		}
	case IPTables:
		return missingPrograms("iptables", "iptables-restore", "iptables-save", "ip", "conntrack", "nft")
	case Containerd:
		return missingPrograms("containerd", "containerd-shim-runc-v2", "runc")
	case Containerd2:
		return missingFiles(Tool("containerd"), Tool("containerd-shim-runc-v2"))
	case BuildKit:
		if m := missingFiles(Tool("buildkitd")); m != "" {
			return m
		}
		return missingPrograms("mmdebstrap")
	case Browser:
		return missingPrograms("chromium", "node")
	case Programs:
		return missingFiles(Program("remotegpud"), Program("remotegpu"))
	case DiskQuota:
		return missingPrograms("mkfs.ext4", "mkfs.xfs")
	case NVIDIA:
		if m := missingFiles(Tool("nvidia-ctk"), Tool("nvidia-cdi-hook"), Tool("nvidia-container-runtime-hook")); m != "" {
			return m
		}
		return missingPrograms("gcc")
	case Prometheus:
		return missingPrograms("prometheus", "promtool")
	case Peers:
		return missingPrograms("dockerd", "podman", "firewalld", "dbus-daemon", "ufw")
	case GPU:
		if m := missingFiles("/dev/nvidiactl", "/usr/include/ffnvcodec/nvEncodeAPI.h", "/usr/include/EGL/eglext.h", "/usr/include/vulkan/vulkan.h"); m != "" {
			return m
		}
		return missingPrograms("nvidia-cdi-hook", "gcc", "ldd")
	case VM:
		if m := missingFiles(Repository() + "/.tools/vm/image/root.ext4"); m != "" {
			return m
		}
		return missingPrograms("qemu-system-x86_64", "qemu-img", "mke2fs")
	}
	return ""
}

func missingPrograms(names ...string) string {
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			return name + " is not installed"
		}
	}
	return ""
}

func missingFiles(paths ...string) string {
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil {
			return path + " is not there"
		}
	}
	return ""
}
