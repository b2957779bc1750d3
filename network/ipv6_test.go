package network_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

// by tells whether the LAN gets to a published port by either address family.
func (l *lab) by(t *testing.T, want6 bool) (four, six bool) {
	t.Helper()
	long := quiet
	if want6 {
		long = patience
	}
	_, err4 := l.lan.Ask(t, "tcp", hostIP+":10000", patience)
	_, err6 := l.lan.Ask(t, "tcp", net.JoinHostPort(hostIP6, "10000"), long)
	return err4 == nil, err6 == nil
}

// TestIPv6ComesAndGoes: environments get IPv6, and lose it, as the node's
// configuration says after a restart; what others do to it is mended; the host
// goes on to be configured by routers, and everything is taken back.
func TestIPv6ComesAndGoes(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	l := newLab6(t, "nft", netip.Prefix{})
	testutil.Sh(t, "ip link add managed type veth peer name managed2; echo 0 >/proc/sys/net/ipv6/conf/managed/accept_ra; echo 1 >/proc/sys/net/ipv6/conf/uplink/accept_ra")
	accepts := func() string {
		t.Helper()
		return testutil.Sh(t, "cd /proc/sys/net/ipv6/conf; cat all/forwarding uplink/accept_ra managed/accept_ra | xargs")
	}
	env := l.attach(t, "01ENVA", 3)
	for _, address := range []string{"0.0.0.0:80", "[::]:80"} {
		env.Answer(t, "tcp", address, "A")
	}
	all := []port.Published{{EnvID: "01ENVA", Address: l.networks.Address(3), Mappings: []port.Mapping{published(port.TCP, 10000, 80)}}}
	restore := func(what string, want bool) {
		t.Helper()
		if err := l.networks.Restore(t.Context(), all, nil); err != nil {
			t.Fatal(err)
		}
		if four, six := l.by(t, want); !four || six != want {
			t.Errorf("%s: IPv4 %v, IPv6 %v, want the latter %v", what, four, six, want)
		}
		if drift, err := l.networks.Drift(t.Context(), all, nil); err != nil || len(drift) > 0 {
			t.Errorf("%s: drift %v, %v", what, drift, err)
		}
	}
	restore("without IPv6", false)
	if got := accepts(); got != "0 1 0" || l.networks.Address6(3).IsValid() {
		t.Errorf("without IPv6: forwarding and accept_ra %s, address %s", got, l.networks.Address6(3))
	}
	inside := func() string {
		t.Helper()
		return env.Sh(t, "ip -o -6 addr show dev eth0 scope global | awk '{print $4}'; ip -6 route show default; ip -6 addr show scope global tentative; "+
			"cat /proc/sys/net/ipv6/conf/eth0/accept_ra")
	}
	const whole = "fd88:0:0:3::2/128\ndefault via fe80::1 dev eth0 metric 1024 pref medium\n0"
	l.range6 = ula
	l.networks = l.open(t, nil)
	restore("with IPv6", true)
	if site, err := l.networks.Site(); err != nil || !slices.Contains(site, ula) || !slices.Contains(site, subnet) ||
		!slices.Contains(site, netip.MustParsePrefix(hostIP+"/24").Masked()) || !slices.Contains(site, netip.MustParsePrefix(hostIP6+"/64").Masked()) {
		t.Errorf("networks that public names are kept out of: %v, %v", site, err)
	}
	if got := inside(); got != whole {
		t.Errorf("inside an environment that was there before:\n%s\nwant\n%s", got, whole)
	}
	if got := accepts(); got != "1 2 0" {
		t.Errorf("forwarding and accept_ra %s", got)
	}
	fresh := l.attach(t, "01ENVB", 31) // a new one is not told from it
	if got := fresh.Sh(t, "ip -6 route show default; ip -6 addr show scope global tentative"); !strings.HasPrefix(got, "default via fe80::1") || strings.Contains(got, "inet6") {
		t.Errorf("inside a new environment: %s", got)
	}
	refused := func() string {
		t.Helper()
		return testutil.Sh(t, "ip -6 route show type unreachable | awk '{print $2}'")
	}
	if got := refused(); got != ula.String() {
		t.Errorf("what leads to no environment is refused: %q", got)
	}
	bridge := testutil.Sh(t, "ip -o -4 addr show to 10.88.0.25 | awk '{print $2}'")
	for _, damage := range []string{
		"ip addr flush dev " + bridge, "ip -4 route flush dev " + bridge, "ip neigh flush dev " + bridge + " nud permanent",
		"ip link set " + strings.Replace(bridge, "rgpu-", "rgpuv-", 1) + " nomaster",
		"echo 1 >/proc/sys/net/ipv6/conf/" + bridge + "/disable_ipv6", "ip -6 addr flush dev " + bridge, "ip -6 route flush dev " + bridge, "ip -6 route add fd88:0:0:9::2 dev " + bridge,
		"ip link set " + bridge + " down; ip link set " + bridge + " up", "echo 0 >/proc/sys/net/ipv6/conf/all/forwarding",
	} {
		testutil.Sh(t, damage)
		before := l.networks.Repairs().Count
		restore(damage, true)
		if repairs := l.networks.Repairs(); repairs.Count != before+1 && !strings.Contains(damage, "forwarding") {
			t.Errorf("%s: repairs %+v", damage, repairs)
		}
	}
	if got := testutil.Sh(t, "ip -6 route show fd88:0:0:9::2"); got != "" {
		t.Errorf("a bridge still leads to another's address: %s", got)
	}
	if got := accepts(); got != "1 2 0" {
		t.Errorf("forwarding and accept_ra after damage: %s", got)
	}
	tracked := func() string {
		t.Helper()
		return testutil.Sh(t, "conntrack -f ipv6 -L 2>/dev/null | grep -c 'src=fd' || true")
	}
	if got := tracked(); got == "0" {
		t.Error("no connection to an environment's address is tracked")
	}
	l.range6 = netip.MustParsePrefix("fd99:0:0:100::/56")
	l.networks = l.open(t, nil)
	if err := l.networks.Restore(t.Context(), all, nil); err != nil {
		t.Fatal(err)
	}
	if got := tracked(); got != "0" {
		t.Errorf("%s connections of the range before are tracked", got)
	}
	restore("with another range", true)
	if got := inside(); !strings.HasPrefix(got, "fd99::100:0:0:3:2/128\ndefault") || strings.Contains(got, "fd88") {
		t.Errorf("inside with another range:\n%s", got)
	}
	if got := refused(); got != l.range6.String() {
		t.Errorf("of another range, what leads to no environment is refused: %q", got)
	}
	if got := testutil.Sh(t, "ip -6 route show root fd88::/16"); got != "" {
		t.Errorf("the routes of the range before are left: %s", got)
	}
	if err := l.networks.Detach(t.Context(), "01ENVB"); err != nil {
		t.Fatal(err)
	}
	if left := testutil.Sh(t, "ip -6 route show fd99::100:0:0:1f:2; ip -o -6 addr show to fd99::100:0:0:1f:1"); left != "" {
		t.Errorf("a detached environment has left: %s", left)
	}
	l.range6 = netip.Prefix{}
	l.networks = l.open(t, nil)
	if got := tracked(); got == "0" {
		t.Error("no connection to an environment's address of another range is tracked")
	}
	restore("without IPv6 again", false)
	if got := tracked(); got != "0" {
		t.Errorf("%s connections are tracked of a range that has gone", got)
	}
	if got := inside(); strings.Contains(got, "fd99") || strings.Contains(got, "default") {
		t.Errorf("inside without IPv6 again:\n%s", got)
	}
	if got := refused(); got != "" {
		t.Errorf("after IPv6 the range is refused: %q", got)
	}
	if got := accepts(); got != "0 1 0" {
		t.Errorf("forwarding and accept_ra after IPv6: %s", got)
	}
	if _, err := os.Stat(l.dir + ".forwarding"); err == nil {
		t.Error("what forwarding took is still noted")
	}
	cleanUp(t, l)
}

// TestIPv6WithoutRules: environments have no IPv6 while its rules cannot be
// made, IPv4 has all that was declared, and it is told; later they have it.
func TestIPv6WithoutRules(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	l := newLab6(t, "nft", ula)
	programs := t.TempDir()
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, twin := range []string{"", "-save", "-restore"} {
			testutil.Sh(t, fmt.Sprintf(`printf '#!/bin/sh\nif [ -e %[1]s/broken-%[2]s ]; then echo broken >&2; exit 1; fi\nexec /usr/sbin/%[2]s-nft%[3]s "$@"\n' >%[1]s/%[2]s%[3]s
				chmod +x %[1]s/%[2]s%[3]s`, programs, name, twin))
		}
	}
	l.iptables = programs + "/iptables"
	var flips atomic.Int32
	l.networks = l.open(t, func(cfg *network.Config) { cfg.IPv6Changed = func() { flips.Add(1) } })
	env := l.attach(t, "01ENVA", 0)
	for _, address := range []string{"0.0.0.0:80", "[::]:80"} {
		env.Answer(t, "tcp", address, "A")
	}
	mappings := []port.Mapping{published(port.TCP, 10000, 80)}
	publish := func(mappings ...port.Mapping) {
		t.Helper()
		if err := l.networks.Publish(t.Context(), "01ENVA", l.networks.Address(0), mappings); err != nil {
			t.Fatal(err)
		}
	}
	told := func() bool {
		return slices.ContainsFunc(l.networks.Conditions(), func(p *problem.Problem) bool { return p.Reason == problem.IPv6Unavailable })
	}
	publish(mappings...)
	if four, six := l.by(t, true); !four || !six || told() {
		t.Errorf("in order: IPv4 %v, IPv6 %v, told %v", four, six, told())
	}
	testutil.Sh(t, "touch "+programs+"/broken-ip6tables")
	listed := published(port.TCP, 10001, 80)
	listed.Sources = []netip.Prefix{netip.MustParsePrefix(lanIP + "/32"), netip.MustParsePrefix(lanIP6 + "/128")}
	publish(append(mappings, listed)...)
	if four, six := l.by(t, false); !four || six || !told() || l.networks.Address6(0).IsValid() {
		t.Errorf("without rules: IPv4 %v, IPv6 %v, told %v, address %s", four, six, told(), l.networks.Address6(0))
	}
	if _, err := l.lan.Ask(t, "tcp", hostIP+":10001", patience); err != nil {
		t.Errorf("IPv4 lacks what was published meanwhile: %v", err)
	}
	declared := policy.Declared{EnvID: "01ENVA", Address: l.networks.Address(0), Policy: policy.Policy{Allow: destinations(t, privateIP, privateIP6)}}
	if err := l.networks.SetPolicy(t.Context(), declared); err != nil {
		t.Fatal(err)
	}
	both := []port.Published{{EnvID: "01ENVA", Address: l.networks.Address(0), Mappings: append(mappings, listed)}}
	if drift, err := l.networks.Drift(t.Context(), both, []policy.Declared{declared}); err != nil || len(drift) > 0 {
		t.Errorf("what IPv6 lacks is told once more as drift: %v, %v", drift, err)
	}
	if err := l.networks.Wait(t.Context()); err != nil { // it is switched off in the background
		t.Fatal(err)
	}
	before := flips.Load()
	if before%2 != 0 || before == 0 {
		t.Errorf("that IPv6 came and went was told %d times", before)
	}
	if got := testutil.Sh(t, "cat /proc/sys/net/ipv6/conf/all/forwarding"); got != "0" {
		t.Errorf("forwarding of IPv6 is %s without the rules that keep networks apart", got)
	}
	// One that is made meanwhile has none.
	other := l.attach(t, "01ENVB", 1)
	if got := other.Sh(t, "ip -o -6 addr"); got != "" {
		t.Errorf("an environment without rules has %s", got)
	}
	testutil.Sh(t, "rm "+programs+"/broken-ip6tables")
	// Who mends rules looks at no bridge: who tries those of IPv6 again does,
	// also when they are in force by then.
	publish(mappings...)
	stop := run(t, l.networks)
	for deadline := time.Now().Add(patience); l.networks.Repairs().Watch == "" && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
	}
	testutil.Sh(t, "iptables-nft -t nat -F RGPU-POST")
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if _, err := l.lan.Ask(t, "tcp", net.JoinHostPort(hostIP6, "10000"), quiet); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Errorf("IPv6 does not come back by itself: %v", err)
			break
		}
	}
	stop()
	all := []port.Published{{EnvID: "01ENVA", Address: l.networks.Address(0), Mappings: mappings}}
	if err := l.networks.Restore(t.Context(), all, nil); err != nil {
		t.Fatal(err)
	}
	if four, six := l.by(t, true); !four || !six || told() {
		t.Errorf("in order again: IPv4 %v, IPv6 %v, told %v", four, six, told())
	}
	if err := l.networks.Wait(t.Context()); err != nil || flips.Load() != before+1 {
		t.Errorf("that IPv6 came back was told %d times, %v", flips.Load()-before, err)
	}
	if got := other.Sh(t, "ip -o -6 addr show dev eth0 scope global | awk '{print $4}'"); got != "fd88:0:0:1::2/128" {
		t.Errorf("the one that was made meanwhile has %s", got)
	}
	l.iptables = "/usr/sbin/iptables-nft"
	cleanUp(t, l)
}

func TestNewRefusesRange6(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"10.0.0.0/8", "fd88::/100", "fd88::1/48"} {
		_, err := network.New(network.Config{Range: subnet, Range6: netip.MustParsePrefix(bad), Firewall: &recorder{}})
		if p := problem.Of(err); err == nil || p.Reason != problem.ConfigInvalid {
			t.Errorf("%s: %v", bad, err)
		}
		if _, err := firewall.New(firewall.Config{Subnet: subnet, Subnet6: netip.MustParsePrefix(bad), Path: "/usr/sbin/iptables"}); err == nil {
			t.Errorf("%s: accepted by the firewall", bad)
		}
	}
}

// TestIPv6NeedsAnMTU: behind an uplink that is too narrow for it environments
// have IPv4 alone, and it is told.
func TestIPv6NeedsAnMTU(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	l := newLab6(t, "nft", ula)
	testutil.Sh(t, "ip link set uplink mtu 1200")
	env := l.attach(t, "01ENVA", 0)
	if err := l.networks.Restore(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	if got := env.Sh(t, "ip -o -6 addr; ip -o -4 addr show dev eth0 | awk '{print $4}'"); got != "10.88.0.2/29" || l.networks.Address6(0).IsValid() {
		t.Errorf("inside: %s, address %s", got, l.networks.Address6(0))
	}
	if told := l.networks.Conditions(); len(told) != 1 || told[0].Reason != problem.IPv6Unavailable || !strings.Contains(told[0].Message, "1200") || told[0].Hint == "" {
		t.Errorf("conditions %v", told)
	}
	cleanUp(t, l)
}
