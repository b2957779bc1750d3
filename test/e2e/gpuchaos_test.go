package e2e_test

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/test/fakenvml"
)

// helpers are the processes that talk to the driver for the node's daemon.
func (n *Node) helpers(tb testing.TB) (pids []int) {
	tb.Helper()
	files, err := filepath.Glob("/proc/" + strconv.Itoa(n.daemon.Process.Pid) + "/task/*/children")
	if err != nil {
		tb.Fatal(err)
	}
	for _, file := range files {
		text, _ := os.ReadFile(file) // of a thread that may have ended
		for field := range strings.FieldsSeq(string(text)) {
			command, _ := os.ReadFile("/proc/" + field + "/cmdline")
			pid, err := strconv.Atoi(field)
			if err == nil && strings.Contains(string(command), "gpu-helper") {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// What GPUs depend on ends or goes away in the middle: each time it is told what
// is wrong, nothing is held that should not be, and when it is back all goes on.
func TestGPUsInChaos(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables, usual, testutil.Programs, testutil.NVIDIA)
	containerd := testutil.StartContainerd(t, usual)
	driver := newSharedGPU(t, containerd)
	n := startOn(t, containerd, func(config string) string { return config + driver.config() + "hand_over = 1\n" }, func(*Node) {})
	share := func(name string, more ...string) []string {
		return append([]string{"env", "create", name, "--image", n.Image, "--gpus", "1", "--gpu-mode", "vgpu", "--gpu-memory", "1GiB"}, more...)
	}
	tells := func(what, words string, args ...string) {
		t.Helper()
		Eventually(t, what, func() bool {
			n.Must(t, "node", "reconcile")
			return strings.Contains(n.Must(t, args...), words)
		})
	}
	info := func() string { return n.Must(t, "node", "info", "-o", "json") }
	clean := func(what string) {
		t.Helper()
		Eventually(t, what+" to leave nothing", func() bool {
			n.Must(t, "node", "reconcile")
			return driver.left(t, containerd) == "" && len(n.gpus(t).GPUs[0].Leases) == 0
		})
	}

	// The helper process is killed in a create, while the driver hangs.
	hanging := driver.host
	hanging.Rules = []string{"hang nvmlDeviceGetComputeRunningProcesses_v3"}
	driver.Set(t, hanging)
	n.Must(t, share("one", "--no-wait")...)
	Eventually(t, "the driver to hang", func() bool { return slices.Contains(driver.Log(t), "hang nvmlDeviceGetComputeRunningProcesses_v3") })
	for _, pid := range n.helpers(t) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	driver.Set(t, driver.host)
	Eventually(t, "the create to end", func() bool { return n.Get(t, "one").State != "ENVIRONMENT_STATE_CREATING" })
	if env := n.Get(t, "one"); env.Problem == nil || env.Problem.Reason != "GPU_UNAVAILABLE" {
		t.Errorf("the helper was killed in its create: %+v %+v", env, env.Problem)
	}
	clean("a create without a helper")
	n.Must(t, "env", "rm", "one")

	// The daemon of MPS dies under its clients.
	n.Must(t, share("one")...)
	daemon := func() int {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(containerd.Dir, "run/gpu/mps", fakenvml.UUID(0), "pipe/pid"))
		if err != nil {
			return 0
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	first := daemon()
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	tells("the holder to be told", "had ended and was begun anew", "env", "events", "one")
	if again := daemon(); again == 0 || again == first || n.Get(t, "one").State != stateRunning {
		t.Errorf("the daemon was %d and is %d; its holder is %+v", first, again, n.Get(t, "one"))
	}
	if said := driver.said(t, "mps"); said[len(said)-1] != "set_default_device_pinned_mem_limit 0 1024M" {
		t.Errorf("the next daemon has no limits: %q", said)
	}
	// It dies, and does not start again until what is wrong is mended.
	if err := os.WriteFile(driver.in("mps.broken"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(daemon(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	tells("the condition", "GPU_SHARING_FAILED", "node", "info", "-o", "json")
	n.refused(t, "does not start", share("two")...)
	n.Must(t, "env", "rm", "--force", "two")
	if err := os.Remove(driver.in("mps.broken")); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "the condition to go", func() bool {
		n.Must(t, "node", "reconcile")
		return !strings.Contains(info(), "GPU_SHARING_FAILED") && daemon() != 0
	})

	// The driver's library goes away under it.
	if err := os.Rename(driver.Path, driver.Path+".away"); err != nil {
		t.Fatal(err)
	}
	_, errs, code := n.CLI(t, "env", "restart", "one")
	if code == 0 || !strings.Contains(errs, "Try: ") {
		t.Errorf("a restart without the driver's library: exit %d, %s", code, errs)
	}
	t.Logf("without the driver's library: %s", errs)
	if list := n.gpus(t); len(list.GPUs) != 1 || len(list.GPUs[0].Leases) != 1 || list.GPUs[0].Health == "GPU_HEALTH_HEALTHY" {
		t.Errorf("without the driver's library: %+v", list)
	}
	if err := os.Rename(driver.Path+".away", driver.Path); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "it to start again", func() bool {
		_, _, code := n.CLI(t, "env", "start", "one")
		return code == 0 && n.Get(t, "one").State == stateRunning
	})

	// GPUs are turned off while it runs, without its daemon ever being told.
	n.Stop(t, syscall.SIGKILL)
	n.reconfigure(t, func(config string) string { return strings.Replace(config, "[gpu]\n", "[gpu]\nenabled = false\n", 1) })
	n.Run(t)
	tells("the holder to be told", "was turned off on this node", "env", "events", "one")
	Eventually(t, "nothing of MPS to be left", func() bool { return driver.left(t, containerd) == "" })
	if env := n.Get(t, "one"); env.State != stateRunning {
		t.Errorf("it was ended: %+v", env)
	}
	n.Must(t, "env", "rm", "--force", "one")
}
