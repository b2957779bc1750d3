package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// Node is a remotegpud in a network namespace of its own.
type Node struct {
	Containerd *testutil.ContainerdDaemon
	Network    *testutil.Namespace
	Dir        string // holds state/, run/ and remotegpud.toml
	Shared     string // host directory that environments may bind
	Image      string // reference of the test image

	// Program is the daemon's program, with Environ on top of the environment.
	Program string
	Environ []string

	// cached says that snapshots and leases are BuildKit's as well.
	cached bool

	config  string
	daemon  *exec.Cmd
	waited  chan struct{}
	log     *os.File
	stopped bool
}

// Start starts a containerd of the kind, puts the test image into it and
// starts a node on it. Everything goes with the test, which fails when
// anything is left. extra is TOML appended to the node's configuration.
func Start(tb testing.TB, kind testutil.Need, extra string) *Node {
	tb.Helper()
	return StartWith(tb, kind, func(config string) string { return config + extra })
}

// StartWith is Start with a function that changes the node's configuration.
func StartWith(tb testing.TB, kind testutil.Need, change func(config string) string) *Node {
	tb.Helper()
	return StartAs(tb, kind, change, func(*Node) {})
}

// StartAs is StartWith with a function that changes the node before it runs.
func StartAs(tb testing.TB, kind testutil.Need, change func(config string) string, setUp func(*Node)) *Node {
	tb.Helper()
	testutil.Require(tb, testutil.Root, testutil.IPTables, kind, testutil.Programs)
	return startOn(tb, testutil.StartContainerd(tb, kind), change, setUp)
}

// startOn starts a node on a containerd that is there.
func startOn(tb testing.TB, containerd *testutil.ContainerdDaemon, change func(config string) string, setUp func(*Node)) *Node {
	tb.Helper()
	n := &Node{Containerd: containerd, Network: testutil.NewNamespace(tb), Program: testutil.Program("remotegpud")}
	n.Dir, n.Shared = n.Containerd.Dir, tb.TempDir()
	image := testutil.TestImage(tb, testutil.ImageOptions{
		Name: "docker.io/remotegpu/test:latest", Labels: map[string]string{"io.remotegpu.min-memory": "33554432", "io.remotegpu.user": "me"},
	})
	n.Containerd.Import(tb, image)
	n.Image = "remotegpu/test"
	n.config = filepath.Join(n.Dir, "remotegpud.toml")
	text := fmt.Sprintf(`version = 1
[node]
name = "node1"
state_dir = %q
run_dir = %q
[api]
listen = "127.0.0.1:7480"
[gateway]
listen = "127.0.0.1:7443"
[containerd]
address = %q
namespace = %q
cgroup = %q
[network]
upstreams = ["192.0.2.53"]
resolv_conf = %q
[registries]
hosts_dir = %q
docker_config = %q
[mounts]
allowed_roots = [%q]
`, n.Dir+"/state", n.Dir+"/run", n.Containerd.Address, n.Containerd.Namespace, n.Containerd.Cgroup,
		n.Dir+"/resolv.conf", n.Dir+"/certs.d", n.Dir+"/docker.json", n.Shared)
	if err := os.WriteFile(n.config, []byte(change(text)), 0o600); err != nil {
		tb.Fatal(err)
	}
	setUp(n)
	n.Run(tb)
	tb.Cleanup(func() { n.finish(tb) })
	return n
}

// Run starts the daemon and waits until it serves.
func (n *Node) Run(tb testing.TB) {
	tb.Helper()
	log, err := os.OpenFile(filepath.Join(n.Dir, "remotegpud.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	n.log = log
	n.daemon = exec.Command("nsenter", "--net="+n.Network.Path(), n.Program, "--config", n.config)
	n.daemon.Env = append(os.Environ(), n.Environ...)
	n.daemon.Stdout, n.daemon.Stderr = log, log
	n.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	n.stopped = false
	waited, started := make(chan struct{}), make(chan error)
	n.waited = waited
	go func() {
		goruntime.LockOSThread() // the kernel's parent death signal is the thread's
		started <- n.daemon.Start()
		_ = n.daemon.Wait()
		close(waited)
	}()
	if err := <-started; err != nil {
		tb.Fatal(err)
	}
	deadline := time.Now().Add(60 * time.Second)
	for {
		if out, _, code := n.CLI(tb, "node", "info", "-o", "json"); code == 0 && strings.Contains(out, "node1") {
			return
		}
		select {
		case <-waited:
			tb.Fatalf("remotegpud ended:\n%s", n.Log())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			tb.Fatalf("remotegpud does not answer:\n%s", n.Log())
		}
	}
}

// reconfigure changes the configuration that the next Run reads.
func (n *Node) reconfigure(tb testing.TB, change func(config string) string) {
	tb.Helper()
	text, err := os.ReadFile(n.config)
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(n.config, []byte(change(string(text))), 0o600); err != nil {
		tb.Fatal(err)
	}
}

// Stop ends the daemon with a signal and waits until it has gone.
func (n *Node) Stop(tb testing.TB, signal os.Signal) {
	tb.Helper()
	if n.stopped {
		return
	}
	n.stopped = true
	if err := n.daemon.Process.Signal(signal); err != nil {
		tb.Error(err)
	}
	select {
	case <-n.waited:
	case <-time.After(60 * time.Second):
		tb.Errorf("remotegpud did not end on %v:\n%s", signal, n.Log())
		_ = n.daemon.Process.Kill()
		<-n.waited
	}
	_ = n.log.Close()
}

// finish deletes what exists, stops the daemon and looks for leftovers.
func (n *Node) finish(tb testing.TB) {
	tb.Helper()
	if tb.Failed() {
		tb.Logf("log of remotegpud:\n%s", n.Log())
	}
	if n.stopped {
		n.Run(tb)
	}
	for _, env := range n.List(tb) {
		// 3: a delete that the test left behind was done first.
		if out, errs, code := n.CLI(tb, "env", "rm", "--force", "--grace", "0s", env.ID); code != 0 && code != 3 {
			tb.Fatalf("delete of %s: exit %d\n%s%s", env.ID, code, out, errs)
		}
	}
	n.Stop(tb, syscall.SIGTERM)
	n.NothingLeft(tb)
	out := n.command(tb, testutil.Program("remotegpud"), "--config", n.config, "cleanup")
	if text, err := out.CombinedOutput(); err != nil {
		tb.Errorf("remotegpud cleanup: %v\n%s", err, text)
	}
	if rules := n.Sh(tb, "iptables-save"); strings.Contains(rules, "RGPU") {
		tb.Errorf("rules are left after cleanup:\n%s", rules)
	}
}

// NothingLeft fails the test when environments have left anything on the host.
func (n *Node) NothingLeft(tb testing.TB) {
	tb.Helper()
	// What fails in the background is made up for by the reconciler's next pass.
	for deadline := time.Now().Add(100 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		left := n.leftovers(tb)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			tb.Errorf("left behind:\n%s", strings.Join(left, "\n"))
			return
		}
	}
}

func (n *Node) leftovers(tb testing.TB) []string {
	tb.Helper()
	// The directory of namespaces is a mount of its own until "cleanup".
	left := slices.DeleteFunc(n.Containerd.Leftovers(tb), func(what string) bool {
		return what == "mount "+n.Dir+"/run/netns" || n.cached && (strings.HasPrefix(what, "snapshot ") || strings.HasPrefix(what, "lease "))
	})
	for _, pattern := range []string{"run/netns/*", "run/mounts/*", "run/desktop/*", "state/environments/*", "state/logs/*.log"} {
		files, _ := filepath.Glob(filepath.Join(n.Dir, pattern))
		left = append(left, files...)
	}
	for line := range strings.Lines(n.Sh(tb, "ip -o link; iptables-save -t nat")) {
		if strings.Contains(line, "rgpu-") && strings.Contains(line, "mtu") || strings.Contains(line, "to-destination") {
			left = append(left, line)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, n.Dir+"/run/") && !strings.Contains(line, n.Dir+"/run/netns ") {
			left = append(left, line)
		}
	}
	return left
}

// Log is the end of what the daemon has logged.
func (n *Node) Log() string {
	text, _ := os.ReadFile(filepath.Join(n.Dir, "remotegpud.log"))
	return string(text[max(0, len(text)-16<<10):])
}

// command prepares a program in the node's network namespace, with the
// environment that the command line reads.
func (n *Node) command(tb testing.TB, program string, args ...string) *exec.Cmd {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), "nsenter", append([]string{"--net=" + n.Network.Path(), program}, args...)...)
	if tb.Context().Err() != nil { // in a cleanup
		cmd = exec.Command("nsenter", append([]string{"--net=" + n.Network.Path(), program}, args...)...)
	}
	cmd.Env = append(os.Environ(), "REMOTEGPU_ADDR=unix://"+n.Socket())
	return cmd
}

// Socket is the path of the API's unix socket.
func (n *Node) Socket() string { return filepath.Join(n.Dir, "run", "node.sock") }

// CLI runs remotegpu and returns what it wrote and its exit code.
func (n *Node) CLI(tb testing.TB, args ...string) (stdout, stderr string, code int) {
	tb.Helper()
	cmd := n.command(tb, testutil.Program("remotegpu"), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// Must runs remotegpu and fails the test unless it succeeds.
func (n *Node) Must(tb testing.TB, args ...string) string {
	tb.Helper()
	out, errs, code := n.CLI(tb, args...)
	if code != 0 {
		tb.Fatalf("remotegpu %s: exit %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// Sh runs a shell command in the node's network namespace.
func (n *Node) Sh(tb testing.TB, command string) string {
	tb.Helper()
	cmd := n.command(tb, "sh", "-ec", command)
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("%s: %v\n%s", command, err, out)
	}
	return strings.TrimSpace(string(out))
}

// Environment is what the tests read of one.
type Environment struct {
	ID           string `json:"id"`
	Name         string `json:"name"`
	State        string `json:"state"`
	Address      string `json:"address"`
	Address6     string `json:"address6"`
	DesktopReady bool   `json:"desktopReady"`
	OOMKills     int    `json:"oomKills"`
	Exit         *struct {
		Code   int  `json:"code"`
		Signal int  `json:"signal"`
		OOM    bool `json:"oomKilled"`
	} `json:"exit"`
	Problem *struct {
		Reason  string `json:"reason"`
		Message string `json:"message"`
	} `json:"problem"`
	Ports []struct {
		External int    `json:"externalPort"`
		Internal int    `json:"internalPort"`
		Service  string `json:"serviceType"`
	} `json:"portMappings"`
}

// Get reads an environment.
func (n *Node) Get(tb testing.TB, name string) Environment {
	tb.Helper()
	var env Environment
	if err := json.Unmarshal([]byte(n.Must(tb, "env", "get", name, "-o", "json")), &env); err != nil {
		tb.Fatal(err)
	}
	return env
}

// List reads all environments.
func (n *Node) List(tb testing.TB) []Environment {
	tb.Helper()
	var list struct {
		Environments []Environment `json:"environments"`
	}
	if err := json.Unmarshal([]byte(n.Must(tb, "env", "ls", "-o", "json")), &list); err != nil {
		tb.Fatal(err)
	}
	return list.Environments
}

// Ask connects to a TCP port from inside the node's network namespace and
// returns the first line that the server sends.
func (n *Node) Ask(tb testing.TB, port int) (string, error) {
	tb.Helper()
	return n.Network.Ask(tb, "tcp", fmt.Sprintf("127.0.0.1:%d", port), 2*time.Second)
}

// Eventually polls until holds, and fails the test when it does not in time.
func Eventually(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(60 * time.Second); !holds(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("waited in vain for %s", what)
		}
	}
}
