package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"

	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/test/fakenvml"
)

// mpsControl stands for nvidia-cuda-mps-control: a daemon that lives until it is
// told to quit, and what gives it commands, which are written down.
const mpsControl = `#!/bin/sh
if [ "$1" = -d ]; then
	test -e %[1]s.broken && { echo "no such device" >&2; exit 1; }
	echo start >> %[1]s
	setsid sleep 1000 > /dev/null 2>&1 < /dev/null &
	echo $! > $CUDA_MPS_PIPE_DIRECTORY/pid
	exit 0
fi
read command
pid=$(cat $CUDA_MPS_PIPE_DIRECTORY/pid 2> /dev/null) && test -e /proc/$pid && ! grep -q ') Z ' /proc/$pid/stat || exit 1
case $command in
get_default_active_thread_percentage) echo 100.0 ;;
set_*) echo "$command" >> %[1]s ;;
quit) echo quit >> %[1]s; kill $pid ;;
esac
`

// sharedGPU is a host with one GPU of NVIDIA's, its driver, the container
// toolkit's hooks and stand-ins for nvidia-container-cli and MPS.
type sharedGPU struct {
	*fakenvml.Driver
	host fakenvml.Host
	dir  string
}

func newSharedGPU(tb testing.TB, containerd *testutil.ContainerdDaemon) *sharedGPU {
	tb.Helper()
	g := &sharedGPU{dir: containerd.Dir, host: fakenvml.Host{GPUs: []fakenvml.GPU{{Model: gpus.Config{
		Name: "NVIDIA L4", Architecture: nvml.DEVICE_ARCH_ADA, MemoryMB: 23034, CudaMajor: 8, CudaMinor: 9,
	}}}}}
	g.Driver = fakenvml.Install(tb, g.in("driver"), fakenvml.Version, 1)
	g.Set(tb, g.host)
	for _, name := range []string{"nvidia-cdi-hook", "nvidia-container-runtime-hook"} {
		testutil.Sh(tb, "install -m 755 "+testutil.Tool(name)+" "+g.in(name))
	}
	for name, text := range map[string]string{
		"mps-control": fmt.Sprintf(mpsControl, g.in("mps")), "container-cli": fmt.Sprintf("#!/bin/sh\n[ \"$1\" = --version ] && echo cli-version: 1.20.1 || echo \"$*\" >> %s\n", g.in("cli")),
	} {
		if err := os.WriteFile(g.in(name), []byte(text), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	return g
}

func (g *sharedGPU) in(name string) string { return filepath.Join(g.dir, name) }

// config is the section of a node that shares the GPU by MPS.
func (g *sharedGPU) config() string {
	return fmt.Sprintf("[gpu]\ndriver_root = %q\ndev_root = %[1]q\nhook = %q\ninjection = \"hook\"\nruntime_hook = %q\ncontainer_cli = %q\nmps_control = %q\n",
		g.Root, g.in("nvidia-cdi-hook"), g.in("nvidia-container-runtime-hook"), g.in("container-cli"), g.in("mps-control"))
}

// said are the lines that one of the stand-ins has written.
func (g *sharedGPU) said(tb testing.TB, name string) []string {
	tb.Helper()
	text, err := os.ReadFile(g.in(name))
	if err != nil && !os.IsNotExist(err) {
		tb.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// left is what is left of the MPS daemon of the GPU, and of limits of its memory:
// "" when nothing is.
func (g *sharedGPU) left(tb testing.TB, containerd *testutil.ContainerdDaemon) string {
	tb.Helper()
	var left []string
	homes, _ := filepath.Glob(filepath.Join(containerd.Dir, "run/gpu/mps/*"))
	left = append(left, homes...)
	group := containerd.Cgroup + "/mps-" + fakenvml.UUID(0)
	if pids, err := cgroup.Processes(group); err != nil || len(pids) > 0 || cgroup.Exists(group) {
		left = append(left, fmt.Sprintf("cgroup %s with %d, %v", group, pids, err))
	}
	mode, limits := "0", map[string]string{}
	for _, line := range g.Log(tb) {
		switch words := strings.Fields(line); {
		case len(words) == 3 && words[0] == "compute_mode":
			mode = words[2]
		case len(words) == 5 && words[0] == "memory_limits":
			limits[words[2]] = words[3]
		}
	}
	if mode != "0" {
		left = append(left, "compute mode "+mode)
	}
	for group, soft := range limits {
		// One that the driver could not be told to forget goes with its cgroup.
		if soft != "0" && cgroup.Exists(strings.TrimPrefix(group, "/sys/fs/cgroup")) {
			left = append(left, "a limit of "+group)
		}
	}
	return strings.Join(left, "\n")
}

// Environments share a GPU by the Multi-Process Service, and their driver comes
// by the classic hook: all of it as the configuration says.
func TestGPUsByTheClassicHookAndMPS(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables, usual, testutil.Programs, testutil.NVIDIA)
	containerd := testutil.StartContainerd(t, usual)
	driver := newSharedGPU(t, containerd)
	containerd.Import(t, testutil.TestImage(t, testutil.ImageOptions{Name: "docker.io/remotegpu/cuda:latest", Env: []string{"NVIDIA_VISIBLE_DEVICES=all", "CUDA_VERSION=12.0"}}))
	n := startOn(t, containerd, func(config string) string { return config + driver.config() }, func(*Node) {})
	said := func(name string) []string { return driver.said(t, name) }
	for name, memory := range map[string]string{"small": "1GiB", "large": "4GiB"} {
		n.Must(t, "env", "create", name, "--image", "remotegpu/cuda", "--gpus", "1", "--gpu-mode", "vgpu", "--gpu-memory", memory)
	}
	for _, line := range said("cli") {
		if !strings.Contains(line, "--device="+fakenvml.UUID(0)+" ") || !strings.Contains(line, "--no-cgroups") || strings.Contains(line, "--require") {
			t.Errorf("nvidia-container-cli was run with %s", line)
		}
	}
	for name, limit := range map[string]string{"small": "0=1024M", "large": "0=4096M"} {
		env := n.answer(t, name, "env") + "\n"
		for _, want := range []string{"NVIDIA_VISIBLE_DEVICES=void", "CUDA_MPS_PIPE_DIRECTORY=/dev/remotegpu-mps", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=" + limit} {
			if !strings.Contains(env, want+"\n") {
				t.Errorf("%s lacks %s: %s", name, want, env)
			}
		}
		if got := n.answer(t, name, "cat", "/dev/nvidia0"); !strings.Contains(got, "no such device or address") {
			t.Errorf("%s opens its GPU: %s", name, got)
		}
		if got := n.answer(t, name, "ls", "/dev/remotegpu-mps"); got != "pid" {
			t.Errorf("the MPS daemon as %s sees it: %s", name, got)
		}
	}
	if got := n.Must(t, "env", "get", "small", "-o", "json"); !strings.Contains(got, "MPS") && !strings.Contains(got, "mps") {
		t.Errorf("the lease does not say what enforces it: %s", got)
	}
	// Where the hook puts the driver's files nothing else is mounted.
	n.refused(t, "is in the way of "+fakenvml.LibDir(), "env", "create", "covers", "--image", "remotegpu/cuda", "--gpus", "1", "--gpu-mode", "vgpu",
		"--gpu-memory", "1GiB", "--tmpfs", fakenvml.LibDir())
	n.Must(t, "env", "rm", "covers")
	calls := said("mps")
	if starts := slices.DeleteFunc(slices.Clone(calls), func(call string) bool { return call != "start" }); len(starts) != 1 {
		t.Errorf("the daemon of the GPU was started %d times: %q", len(starts), calls)
	}
	if !slices.Contains(calls, "set_default_device_pinned_mem_limit 0 4096M") {
		t.Errorf("the server's limit is not the largest share: %q", calls)
	}
	// It is there while somebody has a process, and not after.
	n.Must(t, "env", "stop", "small")
	n.Must(t, "node", "reconcile")
	if calls := said("mps"); slices.Contains(calls, "quit") {
		t.Errorf("the daemon was ended though an environment uses it: %q", calls)
	}
	n.Must(t, "env", "stop", "large")
	if calls := said("mps"); calls[len(calls)-1] != "quit" {
		t.Errorf("the daemon was not ended with its last holder: %q", calls)
	}
	n.Must(t, "env", "start", "small")
	if calls := said("mps"); !slices.Contains(calls[len(calls)-3:], "start") || calls[len(calls)-1] != "set_default_device_pinned_mem_limit 0 1024M" {
		t.Errorf("the next holder has no daemon of its own share: %q", calls)
	}
	n.Must(t, "env", "rm", "--force", "small", "large")
	if calls := said("mps"); calls[len(calls)-1] != "quit" {
		t.Errorf("the daemon was not ended with its last holder: %q", calls)
	}
}
