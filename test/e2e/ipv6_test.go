package e2e_test

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// With a range of IPv6 environments are reached by it, reach others by it, and
// are called by it; what keeps them apart holds for it, across a death of the
// daemon and a flush of its rules. Without it again nothing of it is left, and
// what runs goes on.
func TestIPv6(t *testing.T) {
	const host, lanIP, internet, private = "2001:db8:7::1", "2001:db8:7::2", "2001:db8:99::9", "fd77::7"
	const host4, lan4 = "192.168.7.1", "192.168.7.2"
	lan := testutil.NewNamespace(t)
	with := func(config string) string {
		return strings.Replace(config, "[network]\n", "[network]\nrange6 = \"fd88:1234:5678::/48\"\n", 1) + "[dns]\nlisten = [\"" + host4 + "\"]\n"
	}
	n := StartAs(t, usual, with, func(n *Node) {
		n.Sh(t, fmt.Sprintf(`ip link add uplink type veth peer name lan netns %s; ip addr add %s/24 dev uplink; ip addr add %s/64 dev uplink nodad; ip link set uplink up
			ip route add default via %s; ip route add ::/0 via %s`, lan.Path(), host4, host, lan4, lanIP))
		lan.Sh(t, fmt.Sprintf("ip addr add %s/24 dev lan; ip addr add %s/64 dev lan nodad; ip link set lan up; ip addr add %s/128 dev lo; ip addr add %s/128 dev lo", lan4, lanIP, internet, private))
	})
	lan.Answer(t, "tcp", "[::]:8080", "lan")
	for _, name := range []string{"one", "two"} {
		n.Must(t, "env", "create", name, "--image", n.Image, "--group", "web", "-p", map[string]string{"one": "15000:8080", "two": "15001:8080"}[name], "--", "banner", ":8080", name)
	}
	one, two := n.Get(t, "one"), n.Get(t, "two")
	if one.Address6 == "" || !strings.HasPrefix(two.Address6, "fd88:1234:5678:") || one.Address6 == two.Address6 {
		t.Fatalf("addresses %q and %q", one.Address6, two.Address6)
	}
	if out := n.Must(t, "node", "info"); !strings.Contains(out, "fd88:1234:5678::/48") || strings.Contains(out, "IPV6") {
		t.Errorf("node info: %s", out)
	}
	ask := func(port string) (string, error) {
		return lan.Ask(t, "tcp", net.JoinHostPort(host, port), 2*time.Second)
	}
	inOrder := func(when string) {
		t.Helper()
		if answer, err := ask("15000"); err != nil || !strings.HasPrefix(answer, "one ["+lanIP+"]:") {
			t.Errorf("%s: the published port answers %q, %v", when, answer, err)
		}
		targets := map[string]bool{
			"[" + internet + "]:8080": true, "[" + two.Address6 + "]:8080": true, "[" + host + "]:15001": true, "[" + private + "]:8080": false,
		}
		if when == "created" { // what is not answered takes its time
			targets["["+lanIP+"]:8080"], targets["["+host+"]:7480"] = false, false
		}
		var dials sync.WaitGroup // beside one another
		for target, open := range targets {
			dials.Go(func() {
				if out, _, _ := n.CLI(t, "env", "exec", "--stdin=false", "one", "--", "testprog", "dial", target); strings.Contains(out, "connected") != open {
					t.Errorf("%s: one to %s: %q, want it open: %v", when, target, out, open)
				}
			})
		}
		dials.Wait()
	}
	inOrder("created")
	if out := n.Must(t, "env", "exec", "--stdin=false", "two", "--", "testprog", "dial", "one:8080"); !strings.Contains(out, "connected") {
		t.Errorf("one, by name: %q", out)
	}
	for question, want := range map[string]string{"one.gpu.internal AAAA": host, "-x " + one.Address6: "one.gpu.internal."} {
		if got := lan.Sh(t, "dig +short +tries=3 +time=5 @"+host4+" "+question); got != want {
			t.Errorf("dig %s: %q, want %q", question, got, want)
		}
	}
	n.Must(t, "port", "update", "15001", "--allow", "2001:db8:8::/48,"+lan4)
	if answer, err := ask("15001"); err == nil {
		t.Errorf("who is not allowed gets %q", answer)
	}
	n.Must(t, "port", "update", "15001", "--allow", "2001:db8:7::/48,fd88:1234:5678::/48")
	if answer, err := ask("15001"); err != nil || !strings.HasPrefix(answer, "two ["+lanIP+"]:") {
		t.Errorf("who is allowed gets %q, %v", answer, err)
	}
	n.fails(t, 2, "spec.network.allow", "env", "update", "one", "--allow", two.Address6)
	n.Sh(t, "for t in raw filter nat; do ip6tables -t $t -F; ip6tables -t $t -X || true; done")
	Eventually(t, "the rules of IPv6 to be back", func() bool {
		return strings.Contains(n.Must(t, "node", "firewall", "diff"), "as declared")
	})
	inOrder("flushed")
	n.Stop(t, syscall.SIGKILL)
	n.Run(t)
	inOrder("the next daemon")
	if drift := n.reconcile(t, "--dry-run"); len(drift) > 0 {
		t.Errorf("it is not as it should be: %+v", drift)
	}
	n.Stop(t, syscall.SIGTERM)
	n.reconfigure(t, func(config string) string {
		return strings.Replace(config, "range6 = \"fd88:1234:5678::/48\"\n", "", 1)
	})
	n.Run(t)
	Eventually(t, "IPv6 to be gone", func() bool {
		return n.Get(t, "one").Address6 == "" && !strings.Contains(n.Sh(t, "ip -6 addr"), "fd88:")
	})
	if answer, err := ask("15000"); err == nil {
		t.Errorf("without IPv6 the published port answers %q", answer)
	}
	if answer, err := lan.Ask(t, "tcp", host4+":15000", 2*time.Second); err != nil || !strings.HasPrefix(answer, "one "+lan4+":") {
		t.Errorf("without IPv6 it answers %q, %v by IPv4", answer, err)
	}
	if got := n.Sh(t, "cat /proc/sys/net/ipv6/conf/all/forwarding"); got != "0" {
		t.Errorf("the host still forwards IPv6: %s", got)
	}
}
