package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/test/fakenvml"
)

// gpuList is what gpu ls says.
type gpuList struct {
	GPUs []struct {
		UUID    string `json:"uuid"`
		Mode    string `json:"mode"`
		Health  string `json:"health"`
		Drained bool   `json:"drained"`
		MIG     bool   `json:"migEnabled"`
		Leases  []struct {
			Environment string `json:"environmentName"`
			Instance    string `json:"migInstance"`
		} `json:"leases"`
		Instances []struct {
			UUID string `json:"uuid"`
		} `json:"instances"`
	} `json:"gpus"`
	Driver string   `json:"driver"`
	Notes  []string `json:"notes"`
}

func (n *Node) gpus(tb testing.TB) gpuList {
	tb.Helper()
	var list gpuList
	if err := json.Unmarshal([]byte(n.Must(tb, "gpu", "ls", "-o", "json")), &list); err != nil {
		tb.Fatal(err)
	}
	return list
}

// refused runs a command that is refused, for a reason that it says.
func (n *Node) refused(tb testing.TB, words string, args ...string) {
	tb.Helper()
	_, errs, code := n.CLI(tb, args...)
	if code < 2 || !strings.Contains(errs, words) || !strings.Contains(errs, "Try: ") {
		tb.Errorf("%v: exit %d, %s; want %s", args, code, errs, words)
	}
}

// pid is the first process of an environment, as the host knows it.
func (n *Node) pid(tb testing.TB, name string) int {
	tb.Helper()
	for line := range strings.Lines(n.Containerd.Ctr(tb, "task", "ls")) {
		if words := strings.Fields(line); len(words) == 3 && words[0] == n.Get(tb, name).ID {
			pid, err := strconv.Atoi(words[1])
			if err != nil {
				tb.Fatal(err)
			}
			return pid
		}
	}
	tb.Fatalf("%s has no process", name)
	return 0
}

// A node without GPUs works, and says what it has not.
func TestNoGPU(t *testing.T) {
	n := StartWith(t, usual, func(config string) string {
		return config + fmt.Sprintf("[gpu]\nlibrary = %q\n", filepath.Join(t.TempDir(), "libnvidia-ml.so.1"))
	})
	if list := n.gpus(t); len(list.GPUs) == 0 && len(list.Notes) == 0 {
		t.Errorf("a host without GPUs says nothing: %+v", list)
	} else if len(list.GPUs) > 0 {
		t.Skip("this host has GPUs of other vendors")
	}
	n.refused(t, "this host has no GPU", "env", "create", "one", "--image", n.Image, "--gpus", "1")
	n.refused(t, "no GPU 0", "gpu", "drain", "0")
	if info := n.Must(t, "node", "info", "-o", "json"); strings.Contains(info, "GPU_") {
		t.Errorf("a host without GPUs is told to be broken: %s", info)
	}
	n.Must(t, "env", "create", "one", "--image", n.Image)
	n.refused(t, "this host has no GPU", "env", "update", "one", "--gpus", "1")
}

// Environments get GPUs of the vendor's own code over a stand-in of its
// library, and keep them whatever becomes of the daemon.
func TestGPULeases(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables, usual, testutil.Programs)
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	plain := gpus.Config{Name: "NVIDIA L4", Architecture: 9, MemoryMB: 23034, CudaMajor: 8, CudaMinor: 9}
	world := fakenvml.Host{GPUs: []fakenvml.GPU{{Model: plain}, {Model: plain, Minor: 1}, {Model: gpus.A100_SXM4_40GB, Minor: 2}}}
	library.Set(t, world)
	library.MIGMode(t, 2, true)
	n := Start(t, usual, fmt.Sprintf("[gpu]\nlibrary = %q\ninjection = \"none\"\nhand_over = 1\n", library.Path))
	if info := n.Must(t, "node", "info"); !strings.Contains(info, "3, 3 free: NVIDIA L4") {
		t.Errorf("the node says of its GPUs: %s", info)
	}
	list := n.gpus(t)
	if len(list.GPUs) != 3 || list.Driver != fakenvml.Version || !list.GPUs[2].MIG {
		t.Fatalf("got %+v", list)
	}
	create := func(name string, more ...string) []string {
		return append([]string{"env", "create", name, "--image", n.Image}, more...)
	}
	n.Must(t, create("alone", "--gpus", "1")...)
	n.Must(t, create("named", "--gpus", "uuid=1")...)
	n.refused(t, "is used by alone", create("late", "--gpus", "model=l4")...)
	n.refused(t, "keeps others off a share", create("late", "--gpu-mode", "vgpu", "--gpu-memory", "1G")...)
	n.refused(t, "64 MiB or more; 8 is 8 bytes, did you mean 8G?", create("late", "--gpu-mode", "vgpu", "--gpu-memory", "8")...)
	for _, place := range []string{"/etc/vulkan", "/etc", "/etc/ld.so.preload"} {
		n.refused(t, "which belongs to the node", create("late", "--gpus", "1", "--tmpfs", place)...)
	}
	n.Must(t, create("part", "--gpu-mode", "mig", "--gpu-profile", "1g.5gb")...)
	n.refused(t, "cannot draw", create("draws", "--gpu-mode", "mig", "--gpu-profile", "1g.5gb", "--gpu-capabilities", "graphics")...)
	n.refused(t, "have GPU", "gpu", "mig", "mode", "2", "off")
	made := n.gpus(t).GPUs[2]
	if len(made.Leases) != 1 || len(made.Instances) != 1 || made.Leases[0].Instance != made.Instances[0].UUID {
		t.Errorf("the instance of an environment: %+v", made)
	}
	n.refused(t, "environment part has", "gpu", "mig", "delete", made.Instances[0].UUID)
	kept := strings.TrimSpace(n.Must(t, "gpu", "mig", "create", "2", "2g.10gb"))

	// Who has what outlives the daemon; one that runs has what it had.
	n.Stop(t, syscall.SIGKILL)
	n.Run(t)
	after := n.gpus(t)
	if after.GPUs[0].Leases[0].Environment != "alone" || after.GPUs[1].Leases[0].Environment != "named" || after.GPUs[2].Leases[0].Instance != made.Instances[0].UUID {
		t.Errorf("after the daemon was killed: %+v", after)
	}

	// One whose GPU fails is told, and nobody else gets it.
	library.XID(t, 1, 31) // of a program
	Eventually(t, "the failure to be told", func() bool {
		library.XID(t, 1, 79)
		return slices.Contains(n.events(t, "named"), "gpu_fail")
	})
	if info := n.Must(t, "node", "info", "-o", "json"); !strings.Contains(info, "GPU_UNHEALTHY") || !strings.Contains(info, "79") {
		t.Errorf("the node does not say that a GPU failed: %s", info)
	}
	n.Must(t, "env", "rm", "--force", "--grace", "0s", "named")
	n.refused(t, "XID 79", create("late", "--gpus", "uuid=1")...)
	if said := n.Must(t, "gpu", "leases", "1"); !strings.Contains(said, "named (deleted)") || !strings.Contains(said, "exclusive, enforced by sole") {
		t.Errorf("gpu leases says: %s", said)
	}
	n.Must(t, "gpu", "undrain", "--reset-health", "1")
	n.Must(t, "gpu", "drain", "1", "--reason", "a new fan")
	n.refused(t, "a new fan", create("late", "--gpus", "uuid=1")...)
	n.Must(t, "gpu", "undrain", "1")

	// What its processes use is its own; what others leave is not handed over.
	pid, stranger := n.pid(t, "alone"), os.Getpid()
	world.GPUs[0].Util, world.GPUs[0].Processes = 42, []fakenvml.Process{{Kind: 'c', PID: pid, MB: 300}}
	world.GPUs[1].Processes = []fakenvml.Process{{Kind: 'c', PID: stranger, MB: 5}}
	library.Set(t, world)
	Eventually(t, "the use of a GPU to be told", func() bool {
		return strings.Contains(n.Must(t, "env", "stats", "alone"), "300 MiB of ") && strings.Contains(n.Must(t, "env", "stats", "alone"), "42%")
	})
	n.refused(t, fmt.Sprintf("%d (5 MiB)", stranger), create("late", "--gpus", "uuid=1")...)
	n.Must(t, "env", "rm", "late")
	world.GPUs[0].Processes, world.GPUs[1].Processes = nil, nil
	library.Set(t, world)

	// It changes what it has when it is started again.
	if _, errs, code := n.CLI(t, "env", "update", "alone", "--gpus", "2"); code != 0 || !strings.Contains(errs, "spec.gpu") {
		t.Errorf("update: exit %d, %s", code, errs)
	}
	n.Must(t, "env", "restart", "alone")
	if now := n.gpus(t); now.GPUs[1].Leases == nil || now.GPUs[1].Leases[0].Environment != "alone" {
		t.Errorf("after the change: %+v", now)
	}
	n.Must(t, "env", "update", "alone", "--no-gpus", "--now")
	n.Must(t, "env", "rm", "--force", "--grace", "0s", "part")
	for _, g := range n.gpus(t).GPUs {
		if len(g.Leases) > 0 {
			t.Errorf("GPU %s is still held: %+v", g.UUID, g)
		}
	}
	if left := n.gpus(t).GPUs[2].Instances; len(left) != 1 || left[0].UUID != kept {
		t.Errorf("left are %+v, and only that of the administrator stays", left)
	}
	// A GPU that is drained can be reset: the daemon watches the others alone.
	open := func(index int) bool { return len(library.Open(t, index)) > 0 }
	Eventually(t, "the GPUs to be watched", func() bool { return open(0) && open(1) && open(2) })
	n.Must(t, "gpu", "drain", "1")
	Eventually(t, "a drained GPU to be closed", func() bool { return open(0) && !open(1) && open(2) })
	n.Must(t, "gpu", "undrain", "1")
	Eventually(t, "it to be watched again", func() bool { return open(1) })

	// What the administrator made outlives a boot of the host.
	n.Must(t, create("holds", "--gpu-mode", "mig", "--gpu-profile", "2g.10gb")...)
	n.Must(t, "env", "stop", "--grace", "0s", "holds")
	n.Stop(t, syscall.SIGKILL)
	library.Reboot(t)
	n.Run(t)
	n.Must(t, "env", "start", "holds") // whoever comes first
	again := n.gpus(t).GPUs[2]
	if len(again.Instances) != 1 || again.Instances[0].UUID == kept || len(again.Leases) != 1 || again.Leases[0].Instance != again.Instances[0].UUID {
		t.Errorf("after the boot of the host: %+v", again)
	}
	n.Must(t, "env", "rm", "--force", "--grace", "0s", "holds")
	if out := n.Must(t, "gpu", "mig", "delete", again.Instances[0].UUID, "-o", "json"); !strings.Contains(out, again.Instances[0].UUID) {
		t.Errorf("mig delete: %s", out)
	}
	if found := n.reconcile(t, "--dry-run"); len(found) > 0 {
		t.Errorf("found %+v", found)
	}
}
