package network_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// run has networks mend the host until stop is called or the test ends.
func run(t *testing.T, networks *network.Networks) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- networks.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// beyond is an address behind the LAN, which environments reach.
const beyond = "192.0.2.77"

// peopled is a lab with two environments that publish a port each, and others
// to talk to.
func peopled(t *testing.T, backend string, change func(*network.Config)) *lab {
	t.Helper()
	l := newLab(t, backend)
	l.networks = l.open(t, change)
	var all []port.Published
	for i, envID := range []string{"01ENVA", "01ENVB"} {
		env := l.attach(t, envID, i)
		env.Answer(t, "tcp", "0.0.0.0:80", envID)
		env.Answer(t, "udp", "0.0.0.0:53", envID)
		all = append(all, port.Published{EnvID: envID, Address: l.networks.Address(i), Mappings: []port.Mapping{
			published(port.TCP, uint16(10000+i), 80), published(port.UDP, uint16(10000+i), 53),
		}})
	}
	if err := l.networks.Restore(t.Context(), all, nil); err != nil {
		t.Fatal(err)
	}
	l.host.Answer(t, "tcp", "0.0.0.0:7001", "service")
	l.lan.Answer(t, "tcp", "0.0.0.0:8000", "lan")
	l.lan.Sh(t, "ip addr add "+beyond+"/32 dev lan")
	return l
}

// inOrder checks that what is published answers and what is closed does not.
func (l *lab) inOrder(t *testing.T, after string) {
	t.Helper()
	a := testutil.OpenNamespace(t, l.networks.NetNS("01ENVA"))
	var asked sync.WaitGroup
	for _, row := range []struct {
		from          *testutil.Namespace
		proto, to     string
		want          string // "": blocked
		refusedAtOnce bool
	}{
		{l.lan, "tcp", hostIP + ":10000", "01ENVA " + lanIP, false},
		{l.lan, "udp", hostIP + ":10001", "01ENVB " + lanIP, false},
		{l.host, "tcp", "127.0.0.1:10001", "01ENVB", false},
		{a, "tcp", hostIP + ":10001", "01ENVB", false},
		{a, "tcp", beyond + ":8000", "lan " + hostIP, false},
		{l.lan, "tcp", hostIP + ":10002", "", true},
		{a, "tcp", l.networks.Address(1).String() + ":80", "", false},
		{a, "tcp", hostIP + ":7001", "", false},
		{l.lan, "tcp", l.networks.Address(0).String() + ":80", "", false},
	} {
		asked.Go(func() {
			got, err := l.ask(t, row.from, row.proto, row.to, row.want == "" && !row.refusedAtOnce)
			switch {
			case row.want != "" && (err != nil || !strings.HasPrefix(got, row.want)):
				t.Errorf("%s: %s %s answers %q, %v, want %q", after, row.proto, row.to, got, err, row.want)
			case row.want == "" && err == nil:
				t.Errorf("%s: %s %s answers %q, want it closed", after, row.proto, row.to, got)
			case row.refusedAtOnce && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EHOSTUNREACH): // firewalld says the latter
				t.Errorf("%s: %s: %v, want it refused", after, row.to, err)
			}
		})
	}
	asked.Wait()
}

// ask is the ask of the matrix with less patience for silence: there are many.
func (*lab) ask(t *testing.T, from *testutil.Namespace, proto, to string, blocked bool) (string, error) {
	t.Helper()
	if blocked {
		return from.Ask(t, proto, to, 250*time.Millisecond)
	}
	return ask(t, from, proto, to, false)
}

// mended waits until the host's rules are as declared.
func (l *lab) mended(t *testing.T, after string) {
	t.Helper()
	runtimetest.Eventually(t, "the rules are mended after: "+after, func() bool {
		differences, err := l.networks.Differences(t.Context())
		return err == nil && len(differences) == 0
	})
}

// TestHeal: whatever others do to the host's rules, what is published answers
// again, what is closed stays closed, and it is told what was mended.
func TestHeal(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	// Some may be mended before they are done: then the rest of it fails.
	damages := []struct{ name, do string }{
		{"filter flushed", "$I -F"},
		{"nat flushed", "$I -t nat -F"},
		{"chains deleted", "$I -t nat -F; $I -t nat -X || true"},
		{"all tables flushed", "for t in raw filter nat; do $I -t $t -F; $I -t $t -X || true; done"},
		{"rules deleted one by one", "for i in 1 2 3; do $I -D RGPU-FWD 1; $I -t nat -D RGPU-TCP-10000 1 || true; done"},
		{"a chain renamed", "$I -t nat -E RGPU-TCP-10000 ELSEWHERE"},
		{"hooks removed", "$I -D FORWARD 1; $I -t nat -D PREROUTING 1; $I -t raw -D PREROUTING 1"},
		{"a rule of ours opened", "$I -R RGPU-IN 3 -i rgpu-+ -j ACCEPT"},
		{"a barrier before the hook", "$I -I FORWARD 1 -j DROP"},
		{"accepts before the hooks", "$I -I FORWARD 1 -i rgpu-+ -j ACCEPT; $I -I INPUT 1 -p tcp --dport 7001 -j ACCEPT"},
		{"a rule of another", "$I -A FORWARD -s 192.0.2.0/24 -j DROP; $I -P FORWARD DROP"},
		{"the administrator's chain deleted", "printf '*filter\\n-F RGPU-FWD\\n-X RGPU-USER\\nCOMMIT\\n' | $I-restore --noflush"},
		{"forwarding switched off", "echo 0 >/proc/sys/net/ipv4/ip_forward"},
		{"reserved ports forgotten", "echo >/proc/sys/net/ipv4/ip_local_reserved_ports"},
	}
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			// The interval is short because the kernel tells nothing of the legacy
			// backend.
			l := peopled(t, backend, func(cfg *network.Config) {
				cfg.Poll, cfg.ReservedFile = 20*time.Millisecond, filepath.Join(t.TempDir(), "reserved-ports")
			})
			if err := l.networks.ReservePorts(t.Context(), port.DefaultRanges()); err != nil {
				t.Fatal(err)
			}
			stop := run(t, l.networks)
			runtimetest.Eventually(t, "the rules are watched", func() bool { return l.networks.Repairs().Watch != "" })
			l.inOrder(t, "nothing")
			damages := slices.Clone(damages)
			if backend == "nft" {
				damages = append(damages, struct{ name, do string }{"the ruleset flushed", "nft flush ruleset"})
			}
			for _, damage := range damages {
				before := l.networks.Repairs().Count
				testutil.Sh(t, strings.ReplaceAll(damage.do, "$I", l.iptables))
				l.mended(t, damage.name)
				if damage.name == "a rule of another" {
					l.inOrder(t, damage.name)
					continue // nothing is wrong
				}
				runtimetest.Eventually(t, "the repair is told after: "+damage.name, func() bool { return l.networks.Repairs().Count > before })
				l.inOrder(t, damage.name)
			}
			by := func() (all []string) {
				for _, repair := range l.networks.Repairs().Latest {
					all = append(all, repair.By...)
				}
				return all
			}()
			if told := slices.ContainsFunc(by, func(who string) bool { return strings.HasPrefix(who, "iptables-nft[") }); told != (backend == "nft") {
				t.Errorf("who did it: %q", by)
			}
			// Of settings of bridges nobody tells.
			bridge := testutil.Sh(t, "ip -o link show type bridge | sed 's/^[0-9]*: //;s/:.*//' | head -n 1")
			settings := fmt.Sprintf("/proc/sys/net/ipv4/conf/%[1]s/route_localnet /proc/sys/net/ipv4/conf/%[1]s/rp_filter /proc/sys/net/ipv6/conf/%[1]s/disable_ipv6", bridge)
			damage := func() { testutil.Sh(t, "for setting in "+settings+"; do echo 0 >$setting; done") }
			right := func() bool { return testutil.Sh(t, "cat "+settings+" | xargs") == "1 2 1" }
			told := func(since int64) bool {
				repairs := l.networks.Repairs()
				return repairs.Count > since && strings.Contains(fmt.Sprint(repairs.Latest[len(repairs.Latest)-1].What), bridge)
			}
			before := l.networks.Repairs().Count
			damage()
			runtimetest.Eventually(t, "settings are looked at", func() bool { return right() && told(before) })
			// Nor of limits.
			if err := l.networks.SetPolicy(t.Context(), policy.Declared{EnvID: "01ENVA", Address: l.networks.Address(0), Policy: policy.Policy{IngressBits: 1_000_000}}); err != nil {
				t.Fatal(err)
			}
			veth := testutil.Sh(t, "ip -o link | grep 'alias remotegpu:env=01ENVA' | grep -o 'rgpuv-[a-z2-7]*' | head -n 1")
			limited := func() bool { return strings.Contains(testutil.Sh(t, "tc qdisc show dev "+veth), "rate 1Mbit") }
			if !limited() {
				t.Error("the speed is not limited")
			}
			testutil.Sh(t, "tc qdisc del dev "+veth+" root")
			runtimetest.Eventually(t, "the limit is there again", limited)
			stop() // and by a pass of the reconciler
			before = l.networks.Repairs().Count
			damage()
			if err := l.networks.Restore(t.Context(), nil, nil); err != nil || !right() || !told(before) {
				t.Errorf("after a restore: %v, right %t, told %t", err, right(), told(before))
			}
			cleanUp(t, l)
			testutil.Sh(t, l.iptables+" -t nat -F; "+l.iptables+" -t nat -X; "+l.iptables+" -F; "+l.iptables+" -P FORWARD ACCEPT")
		})
	}
}

// TestHealIsBounded: what fails is tried again and told until it succeeds, and
// somebody who changes rules again and again is told of.
func TestHealIsBounded(t *testing.T) {
	testutil.Require(t, testutil.Root)
	if !testutil.Isolated(t) { // Restore sees to settings of the host
		return
	}
	rules := &recorder{changes: make(chan firewall.Change), mends: []string{"RGPU-FWD"}}
	networks, err := network.New(network.Config{Range: subnet, Firewall: rules, Poll: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	run(t, networks)
	// Nobody has said yet what should be: nothing may be withdrawn.
	for range 2 { // who takes the second one is done with the first
		rules.changes <- firewall.Change{By: []string{"early[1]"}}
	}
	if _, err := networks.Differences(t.Context()); problem.Of(err).Reason != problem.FirewallFailed {
		t.Errorf("differences before anything is declared: %v", err)
	}
	if repairs := networks.Repairs(); repairs.Count != 0 || len(rules.applied) != 0 {
		t.Errorf("before the first restore: %+v, %d applications", repairs, len(rules.applied))
	}
	if err := networks.Restore(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	has := func(reason problem.Reason) bool {
		return slices.ContainsFunc(networks.Conditions(), func(p *problem.Problem) bool { return p.Reason == reason && p.Hint != "" })
	}
	rules.set(problem.New(problem.FirewallFailed, "the lock is held").WithHint("find it"))
	// Beside: what the change of before began may meet the failure as well, and
	// then goes on until it is gone.
	go func() { rules.changes <- firewall.Change{By: []string{"foe[7]"}} }()
	runtimetest.Eventually(t, "the failure is a condition", func() bool { return has(problem.FirewallFailed) })
	rules.set(nil)
	runtimetest.Eventually(t, "the condition is gone", func() bool { return !has(problem.FirewallFailed) })
	for range 12 {
		rules.changes <- firewall.Change{By: []string{"foe[7]"}}
	}
	runtimetest.Eventually(t, "the foe is a condition", func() bool { return has(problem.FirewallContested) })
	for _, p := range networks.Conditions() {
		if p.Reason == problem.FirewallContested && !strings.Contains(p.Message, "foe[7]") {
			t.Errorf("the condition does not name the foe: %s", p.Message)
		}
	}
}

// TestForwardingIsToldOf: the kernel tells when somebody switches forwarding off, so
// that nobody has to look.
func TestForwardingIsToldOf(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	l := newLab(t, "nft")
	if err := l.networks.Restore(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	stop := run(t, l.networks)
	for range 4 { // without an environment looks come after something has happened, once or twice
		before := l.networks.Repairs().Count
		testutil.Sh(t, "echo 0 >/proc/sys/net/ipv4/ip_forward")
		runtimetest.Eventually(t, "forwarding is on again, and told", func() bool {
			return testutil.Sh(t, "cat /proc/sys/net/ipv4/ip_forward") == "1" && l.networks.Repairs().Count > before
		})
	}
	stop()
	cleanUp(t, l)
}
