package network_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

// TestBridgesAreMended: what others take of an environment's bridge comes back
// within seconds, in both families, without anybody asking for it; who is
// detached stays so.
func TestBridgesAreMended(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	l := newLab6(t, "nft", ula)
	env := l.attach(t, "01ENVA", 3)
	for _, address := range []string{"0.0.0.0:80", "[::]:80"} {
		env.Answer(t, "tcp", address, "A")
	}
	all := []port.Published{{EnvID: "01ENVA", Address: l.networks.Address(3), Mappings: []port.Mapping{published(port.TCP, 10000, 80)}}}
	if err := l.networks.Restore(t.Context(), all, nil); err != nil {
		t.Fatal(err)
	}
	limited := policy.Declared{EnvID: "01ENVA", Project: "p", Address: l.networks.Address(3), Policy: policy.Policy{IngressBits: 1e9, EgressBits: 1e9}}
	if err := l.networks.SetPolicy(t.Context(), limited); err != nil {
		t.Fatal(err)
	}
	before := l.networks.Repairs().Count
	stop := run(t, l.networks)
	bridge := testutil.Sh(t, "ip -o -4 addr show to 10.88.0.25 | awk '{print $2}'")
	veth := strings.Replace(bridge, "rgpu-", "rgpuv-", 1)
	state := func() string {
		t.Helper()
		return testutil.Sh(t, "set +e; ip -o addr show dev "+bridge+" | awk '{print $4}'; ip route show dev "+bridge+"; ip -6 route show dev "+bridge+
			" | grep -v '::1 proto kernel' | sort; ip neigh show dev "+bridge+" nud permanent | sort; ip -o link show master "+bridge+" up | wc -l; "+
			"tc filter show dev "+veth+" ingress 2>&1 | grep -c mirred; tc qdisc show | grep -o 'rate .*' | sort; ip route show type unreachable proto 171; ip -6 route show type unreachable proto 171; true")
	}
	whole := state()
	other := l.attach(t, "01ENVB", 4)
	awake := func(what string) {
		t.Helper()
		for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			now := state()
			if now == whole {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("%s: the bridge has\n%s\nwant\n%s", what, now, whole)
				return
			}
		}
	}
	// Who listens by now notices: until then each change is made once more.
	for deadline := time.Now().Add(patience); l.networks.Repairs().Count == before && time.Now().Before(deadline); time.Sleep(300 * time.Millisecond) {
		testutil.Sh(t, "ip -4 addr flush dev "+bridge)
	}
	awake("the first")
	for _, damage := range []string{
		"ip addr flush dev " + bridge, "ip -6 addr flush dev " + bridge, "ip -4 route flush dev " + bridge, "ip -6 route flush dev " + bridge,
		"ip link set " + bridge + " down", "ip link set " + veth + " nomaster",
		"ip link del " + bridge, "ip link del " + veth, "ip link del " + bridge + "; ip link del " + veth,
		"ip route del unreachable " + subnet.String() + " proto 171", "ip -6 route del unreachable " + ula.String() + " proto 171",
	} {
		testutil.Sh(t, damage)
		awake(damage)
		if drift, err := l.networks.Drift(t.Context(), all, []policy.Declared{limited}); err != nil || len(drift) > 0 {
			t.Errorf("%s: drift %v, %v", damage, drift, err)
		}
		for _, host := range []string{hostIP, hostIP6} {
			if _, err := l.lan.Ask(t, "tcp", net.JoinHostPort(host, "10000"), patience); err != nil {
				t.Errorf("%s: the LAN to %s: %v", damage, host, err)
			}
		}
	}
	for _, repair := range l.networks.Repairs().Latest[before:] {
		if len(repair.What) != 1 || !strings.HasPrefix(repair.What[0], bridge) {
			t.Errorf("mended %v, and nothing but %s was changed", repair.What, bridge)
		}
	}
	if _, err := other.Ask(t, "tcp", net.JoinHostPort(hostIP, "10000"), patience); err != nil {
		t.Errorf("another environment to the port: %v", err)
	}
	if err := l.networks.Detach(t.Context(), "01ENVB"); err != nil {
		t.Fatal(err)
	}
	testutil.Sh(t, "ip addr flush dev "+bridge) // all bridges are looked at
	awake("after another was detached")
	if err := l.networks.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := testutil.Sh(t, "ip -o addr show to 10.88.0.33"); left != "" {
		t.Errorf("a detached environment has its address again: %s", left)
	}
	stop()
	cleanUp(t, l)
}
