package e2e_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// Without the file that holds its namespace an environment runs on, and gets the
// file and all of its network back by a pass, with the port that it publishes.
func TestUnpinnedNetwork(t *testing.T) {
	n := Start(t, usual, "")
	n.Must(t, "env", "create", "one", "--image", n.Image, "-p", "15000:8080", "--", "banner", ":8080", "one")
	env := n.Get(t, "one")
	pin := filepath.Join(n.Dir, "run", "netns", env.ID)
	unpin := "umount -l " + pin + "; "
	for _, damage := range []string{
		unpin, unpin + "rm " + pin, unpin + "rm " + pin + "; for i in $(ip -o link | grep -o 'rgpuv-[a-z0-9]*'); do ip link del $i; done",
		unpin + "rm " + pin + "; for i in $(ip -o link | grep -o ' rgpuv*-[a-z0-9]*' | sort -u); do ip link del $i; done",
	} {
		n.Sh(t, damage)
		n.reconcile(t) // or the node's own pass, which may come first
		if kind := strings.TrimSpace(n.Sh(t, "stat -f -c %T "+pin)); kind != "nsfs" {
			t.Fatalf("%s: it is not pinned, but on %s", damage, kind)
		}
		if answer, err := n.Ask(t, 15000); err != nil || !strings.HasPrefix(answer, "one ") {
			t.Errorf("%s: the published port: %q, %v", damage, answer, err)
		}
		if found := n.reconcile(t, "--dry-run"); len(found) > 0 {
			t.Errorf("%s: it is not as it should be: %+v", damage, found)
		}
	}
	if starts := strings.Count(strings.Join(n.events(t, "one"), " "), "started"); starts != 1 {
		t.Errorf("it was started %d times", starts)
	}
}

// What an environment may reach is what the command line says, from its first
// process on and while it runs, across a death of the daemon and a stop.
func TestNetworkPolicy(t *testing.T) {
	n := Start(t, usual, "")
	const host, gateway, internet, private = "203.0.113.1", "203.0.113.2", "198.51.100.9", "192.168.77.7"
	lan := testutil.NewNamespace(t)
	n.Sh(t, fmt.Sprintf(`ip link add uplink type veth peer name lan netns %s; ip addr add %s/24 dev uplink; ip link set uplink up
		ip route replace default via %s`, lan.Path(), host, gateway))
	lan.Sh(t, fmt.Sprintf("ip addr add %s/24 dev lan; ip link set lan up; ip addr add %s/32 dev lo; ip addr add %s/32 dev lo", gateway, internet, private))
	lan.Answer(t, "tcp", "0.0.0.0:8080", "lan")
	reaches := func(when, name string, targets ...string) {
		t.Helper()
		var dials sync.WaitGroup // beside one another: what is dropped takes its time
		for _, target := range targets {
			dials.Go(func() {
				address, closed := strings.CutPrefix(target, "!")
				out, _, _ := n.CLI(t, "env", "exec", "--stdin=false", name, "--", "testprog", "dial", address+":8080")
				if strings.Contains(out, "connected") == closed {
					t.Errorf("%s: %s to %s: %q, want it closed: %v", when, name, address, out, closed)
				}
			})
		}
		dials.Wait()
	}
	n.Must(t, "env", "create", "one", "--image", n.Image, "--", "banner", ":8080", "one")
	// It asks at once, and for good.
	n.CLI(t, "env", "create", "two", "--image", n.Image, "--egress", "none", "--group", "web", "--bandwidth-in", "100M",
		"-p", "15000:8080", "--", "dial", internet+":8080", ";", "echo", "it got out")
	if logs := n.Must(t, "env", "logs", "two"); strings.Contains(logs, "connected") {
		t.Errorf("the first process of an environment without egress says %q", logs)
	}
	n.Must(t, "env", "rm", "--force", "two")
	n.Must(t, "env", "create", "two", "--image", n.Image, "--egress", "none", "--group", "web", "--bandwidth-in", "100M",
		"-p", "15000:8080", "--", "banner", ":8080", "two")
	one, two := n.Get(t, "one"), n.Get(t, "two")
	reaches("default", "one", internet, "!"+private, "!"+gateway, "!"+two.Address)
	reaches("none", "two", "!"+internet, "!"+private, "!"+one.Address)
	if answer, err := n.Ask(t, 15000); err != nil || !strings.HasPrefix(answer, "two ") {
		t.Errorf("its published port: %q, %v", answer, err)
	}
	if facts := n.Must(t, "env", "get", "two"); !strings.Contains(facts, "none") || !strings.Contains(facts, "web") || !strings.Contains(facts, "100 Mbit/s") {
		t.Errorf("env get: %s", facts)
	}
	if out := n.Sh(t, "tc qdisc show"); !strings.Contains(out, "rate 100Mbit") {
		t.Errorf("no limit: %s", out)
	}
	n.Must(t, "env", "update", "one", "--group", "web", "--egress", "allow", "--allow", private+":8080/tcp")
	reaches("in a group", "one", two.Address, private, "!"+internet)
	reaches("in a group", "two", one.Address, "!"+private)
	if starts := strings.Count(strings.Join(n.events(t, "one"), " "), "started"); starts != 1 {
		t.Errorf("it was started %d times", starts)
	}
	for range 2 { // a second time nothing is left to do
		n.Must(t, "env", "update", "one", "--group", "web", "--allow", private+":8080/tcp")
	}
	n.fails(t, 2, "credentials", "env", "update", "one", "--allow", "169.254.169.254")
	n.fails(t, 2, "spec.network.allow", "env", "create", "bad", "--image", n.Image, "--egress", "allow")
	n.Stop(t, syscall.SIGKILL)
	n.Run(t)
	reaches("the next daemon", "one", two.Address, private, "!"+internet)
	reaches("the next daemon", "two", one.Address, "!"+internet)
	n.Must(t, "env", "stop", "two", "-t", "1s")
	n.Must(t, "env", "start", "two")
	reaches("started again", "two", one.Address, "!"+internet)
	n.Must(t, "env", "update", "one", "--ungroup", "web", "--egress", "open", "--disallow", private+":8080/tcp")
	reaches("open again", "one", internet, "!"+private, "!"+two.Address)
	if drift := n.reconcile(t, "--dry-run"); len(drift) > 0 {
		t.Errorf("it is not as it should be: %+v", drift)
	}
}
