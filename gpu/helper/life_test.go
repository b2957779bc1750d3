package helper_test

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/helper"
	"github.com/remotegpu/remotegpu/gpu/nvidia"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/test/fakenvml"
)

// daemonVariable has the program of the tests be a daemon with a client on the
// library that it names.
const daemonVariable = "REMOTEGPU_TEST_GPU_DAEMON"

// TestDaemon is no test: it is the daemon of TestHelperEndsWithTheDaemon.
func TestDaemon(t *testing.T) {
	path := os.Getenv(daemonVariable)
	if path == "" {
		t.Skip("the daemon of another test")
	}
	library := &fakenvml.Library{Path: path}
	client := library.Client(t, t.TempDir())
	mustProbe(t, client, 1)
	go func() { _ = client.Watch(t.Context(), nil, func(gpu.Event) {}) }()
	eventually(t, func() bool { return len(children(t)) == 2 })
	for _, pid := range children(t) {
		_, _ = os.Stdout.WriteString("helper " + strconv.Itoa(pid) + "\n")
	}
	_, _ = client.Usage(t.Context()) // hangs
	<-t.Context().Done()
}

func TestHelperEndsWithTheDaemon(t *testing.T) {
	t.Parallel()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	host := one()
	host.Rules = []string{"hang nvmlDeviceGetPowerUsage"}
	library.Set(t, host)
	daemon := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDaemon$", "-test.timeout=5m")
	daemon.Env = append(os.Environ(), daemonVariable+"="+library.Path)
	out, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	var pids []int
	for lines := bufio.NewScanner(out); len(pids) < 2 && lines.Scan(); {
		if text, is := strings.CutPrefix(lines.Text(), "helper "); is {
			pid, err := strconv.Atoi(text)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	eventually(t, func() bool {
		return strings.Contains(strings.Join(library.Log(t), " "), "hang nvmlDeviceGetPowerUsage")
	})
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = daemon.Wait() // it was killed
	if len(pids) != 2 {
		t.Fatalf("the daemon has the helpers %v", pids)
	}
	for _, pid := range pids {
		eventually(t, func() bool { return !runs(pid) })
	}
}

// runs says whether a process has not ended; what nobody has waited for has.
func runs(pid int) bool {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(text), ") ")
	return !strings.HasPrefix(state, "Z")
}

func TestIdleHelperEnds(t *testing.T) {
	t.Parallel()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	library.Set(t, one())
	client := library.Client(t, t.TempDir(), func(cfg *helper.Config, _ *nvidia.Config) { cfg.Idle = time.Millisecond })
	for range 20 {
		mustProbe(t, client, 1) // whether it is just ending or not
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := client.Probe(t.Context())
	if problem.Of(err) == nil || problem.Of(err).Reason != problem.NodeStopping {
		t.Errorf("a client that was closed: %v", err)
	}
}

func TestCloseEndsACall(t *testing.T) {
	t.Parallel()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	host := one()
	host.Rules = []string{"hang nvmlDeviceGetPowerUsage"}
	library.Set(t, host)
	client := library.Client(t, t.TempDir())
	done := make(chan error)
	go func() {
		_, err := client.Usage(t.Context())
		done <- err
	}()
	eventually(t, func() bool { return strings.Contains(strings.Join(library.Log(t), " "), "hang") })
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("a call that hangs was answered")
	}
}

// Whatever ends a helper between two calls costs none.
func TestHelperKilledBetweenCalls(t *testing.T) {
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	library.Set(t, one())
	client := library.Client(t, t.TempDir())
	for range 3 {
		mustProbe(t, client, 1)
		for _, pid := range children(t) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() bool { // waited for: a thread of it may have its pipes until then
				_, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid)))
				return err != nil
			})
		}
	}
	mustProbe(t, client, 1)
}

// Calls of many wait for each other, crash or not.
func TestManyCallers(t *testing.T) {
	t.Parallel()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	host := one()
	host.Rules = []string{"crash nvmlDeviceGetPowerUsage"}
	library.Set(t, host)
	client := library.Client(t, t.TempDir())
	var group sync.WaitGroup
	for i := range 12 {
		group.Go(func() {
			if i%4 == 3 {
				_, err := client.Usage(t.Context())
				mustNotWork(t, err)
				return
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if inventory, err := client.Probe(ctx); err != nil || len(inventory.Devices) != 1 {
				t.Errorf("probe: %+v, %v", inventory, err)
			}
		})
	}
	group.Wait()
}

func mustNotWork(t *testing.T, err error) {
	t.Helper()
	if problem.Of(err) == nil || problem.Of(err).Reason != problem.GPUUnavailable {
		t.Errorf("a call that crashed: %v", err)
	}
}

func TestProgramThatIsNoHelper(t *testing.T) {
	t.Parallel()
	for script, word := range map[string]string{"read settings; echo hello; cat": "no answer", "read settings; exit 3": "exit status 3", "": "cannot be started"} {
		cfg := helper.Config{Program: "/bin/sh", Args: []string{"-c", script}}
		if script == "" {
			cfg.Program = "/nonexistent"
		}
		client := helper.New(cfg)
		for range 2 {
			_, err := client.Probe(t.Context())
			mustFail(t, err, word)
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
}
