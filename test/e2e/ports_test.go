package e2e_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// Host ports come from pools that can be changed; what a foreign program holds
// is skipped; history stays. The command line shows it all.
func TestPortsAndCommandLine(t *testing.T) {
	n := Start(t, usual, "")
	n.Network.Answer(t, "tcp", "0.0.0.0:23000", "foreign")
	out := n.Must(t, "port", "pool", "set", "ssh", "23000-23001")
	if !strings.Contains(out, "23000-23001") {
		t.Errorf("pool set: %s", out)
	}
	if out := n.Must(t, "port", "pool"); !strings.Contains(out, "23000-23001") || !strings.Contains(out, "10000-19999") {
		t.Errorf("pools: %s", out)
	}

	watch := n.command(t, testutil.Program("remotegpu"), "env", "watch", "-o", "json")
	var stream syncBuffer
	watch.Stdout = &stream
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = watch.Process.Kill(); _ = watch.Wait() })
	Eventually(t, "the watch to be in step", func() bool { return strings.Contains(stream.String(), `"synced":true`) })

	n.Must(t, "env", "create", "one", "--image", n.Image, "-p", "ssh", "-p", "15000:8080", "-p", "15001:8080/udp", "--", "banner", ":8080", "one")
	one := n.Get(t, "one")
	ports := map[string]int{}
	for _, mapping := range one.Ports {
		ports[mapping.Service] = max(ports[mapping.Service], mapping.External)
	}
	if ports["SERVICE_TYPE_SSH"] != 23001 || ports["SERVICE_TYPE_CUSTOM"] != 15001 {
		t.Errorf("ports: %v, want ssh at 23001, which is free", ports)
	}
	if answer, err := n.Ask(t, 15000); err != nil || !strings.HasPrefix(answer, "one ") {
		t.Errorf("the chosen port answers %q %v", answer, err)
	}
	if answer, err := n.Ask(t, 23000); err != nil || !strings.HasPrefix(answer, "foreign ") {
		t.Errorf("the foreign program's port answers %q %v", answer, err)
	}
	if _, errs, code := n.CLI(t, "env", "create", "two", "--image", n.Image, "-p", "ssh"); code != 5 || !strings.Contains(errs, "Try: ") {
		t.Errorf("an exhausted pool: exit %d\n%s", code, errs)
	}
	for _, test := range []struct {
		code int
		argv []string
	}{
		{0, []string{"node", "info"}},
		{2, []string{"env", "frobnicate"}},
		{2, []string{"env", "create", "two", "--image", n.Image, "--memory", "1MiB"}},
		{3, []string{"env", "get", "absent"}},
		{3, []string{"port", "ls", "--env", "absent"}},
		{4, []string{"env", "create", "one", "--image", n.Image}},
		{4, []string{"env", "rm", "one"}},
		{6, []string{"--addr", "unix:///run/absent.sock", "node", "info"}},
		{7, []string{"--addr", "http://127.0.0.1:7480", "node", "info"}},
		{7, []string{"env", "exec", "--stdin=false", "one", "--", "testprog", "exit", "7"}},
		{127, []string{"env", "exec", "--stdin=false", "one", "--", "absent"}},
	} {
		if out, errs, code := n.CLI(t, test.argv...); code != test.code {
			t.Errorf("remotegpu %s: exit %d, want %d\n%s%s", strings.Join(test.argv, " "), code, test.code, out, errs)
		}
	}
	if out := n.Must(t, "__complete", "env", "stop", "o"); !strings.Contains(out, "one\t") {
		t.Errorf("completion: %s", out)
	}
	var node struct {
		Name, Version, Cgroup, AddressRange string
		Containerd                          struct{ Version string }
		Environments                        map[string]int
		Conditions                          []json.RawMessage
	}
	if err := json.Unmarshal([]byte(n.Must(t, "node", "info", "-o", "json")), &node); err != nil {
		t.Fatal(err)
	}
	version := map[testutil.Need]string{testutil.Containerd: "1.", testutil.Containerd2: "2."}[usual]
	if node.Name != "node1" || node.Version == "" || node.AddressRange == "" || !strings.HasPrefix(strings.TrimPrefix(node.Containerd.Version, "v"), version) {
		t.Errorf("node: %+v", node)
	}

	n.Must(t, "env", "rm", "--force", "--grace", "0s", "one")
	if out := n.Must(t, "port", "ls", "-o", "json"); strings.Contains(out, one.ID) {
		t.Errorf("released mappings are listed: %s", out)
	}
	for _, env := range []string{one.ID, "one"} {
		if out := n.Must(t, "port", "ls", "--all", "--env", env); strings.Count(out, " released ") != 3 || strings.Count(out, " one ") != 3 {
			t.Errorf("the history: %s", out)
		}
	}
	Eventually(t, "the watch to show the delete", func() bool { return strings.Contains(stream.String(), "ENVIRONMENT_STATE_DELETED") })
	for line := range strings.Lines(stream.String()) {
		if strings.HasSuffix(line, "\n") && !json.Valid([]byte(line)) {
			t.Errorf("a line of the watch is no JSON: %s", line)
		}
	}
	if err := watch.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = watch.Wait()
	if code := watch.ProcessState.ExitCode(); code != 130 {
		t.Errorf("the interrupted watch: exit %d", code)
	}
}

// An environment reaches published ports, its own too, but neither another
// environment's address nor the API.
func TestWhoReachesWhom(t *testing.T) {
	n := Start(t, usual, "")
	const host = "198.51.100.7"
	n.Sh(t, "ip link add uplink0 type bridge; ip addr add "+host+"/24 dev uplink0; ip link set uplink0 up")
	external := map[string]int{}
	for _, name := range []string{"one", "two"} {
		n.Must(t, "env", "create", name, "--image", n.Image, "-p", "custom:8080", "--", "banner", ":8080", name)
		external[name] = n.Get(t, name).Ports[0].External
	}
	two := n.Get(t, "two")
	dial := func(address string) string {
		out, _, _ := n.CLI(t, "env", "exec", "--stdin=false", "one", "--", "testprog", "dial", address)
		return out
	}
	for _, name := range []string{"one", "two"} {
		if out := dial(fmt.Sprintf("%s:%d", host, external[name])); !strings.Contains(out, name+" ") {
			t.Errorf("the port of %s, from one: %q", name, out)
		}
	}
	gateway := n.Sh(t, "ip -4 -o addr show | awk '/rgpu-/ {sub(/\\/.*/, \"\", $4); print $4; exit}'")
	if gateway == "" {
		t.Fatal("no address of a bridge")
	}
	var dials sync.WaitGroup // beside one another: what is dropped takes its time
	for what, address := range map[string]string{
		"the address of two": two.Address + ":8080", "the API": host + ":7480", "the API at the bridge": gateway + ":7480",
	} {
		dials.Go(func() {
			if out := dial(address); strings.Contains(out, "connected") {
				t.Errorf("%s is reached: %q", what, out)
			}
		})
	}
	dials.Wait()
}
