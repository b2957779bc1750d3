package network_test

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network"
)

const (
	siteIP6      = "2001:db8:5::2" // in another network of the host
	containerIP6 = "fd30::2"
)

// TestHostNetworksStayApartByIPv6: as TestHostNetworksStayApart; and the host's
// networks stay apart for as long as it forwards because of the node: also when
// that has no range any more, and after a clean-up.
func TestHostNetworksStayApartByIPv6(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) { hostNetworks6(t, backend) })
	}
}

func hostNetworks6(t *testing.T, backend string) {
	t.Helper()
	l := newLab6(t, backend, ula)
	testutil.Sh(t, "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding")
	site, container := testutil.NewNamespace(t), testutil.NewNamespace(t)
	testutil.Sh(t, "ip link add second type veth peer name site netns "+site.Path()+"; ip addr add 2001:db8:5::1/64 dev second nodad; ip link set second up")
	defer func() { testutil.Sh(t, "ip link del second; ip link del ctr0 2>/dev/null || true") }()
	site.Sh(t, "ip addr add "+siteIP6+"/64 dev site nodad; ip link set site up; ip route add default via 2001:db8:5::1")
	l.lan.Sh(t, "ip route add 2001:db8:5::/64 via "+hostIP6+"; ip route add fd30::/64 via "+hostIP6)
	site.Answer(t, "tcp", "[::]:80", "site")
	l.lan.Answer(t, "tcp", net.JoinHostPort(internetIP6, "80"), "internet")
	reach := func(when, what string, from *testutil.Namespace, address string, reached bool) {
		t.Helper()
		patience := patience
		if !reached {
			patience = quiet
		}
		if got, err := from.Ask(t, "tcp", net.JoinHostPort(address, "80"), patience); (err == nil) != reached {
			t.Errorf("%s: %s got %q, %v, want it reached: %v", when, what, got, err, reached)
		}
	}
	check := func(when string) {
		t.Helper()
		reach(when, "the LAN from the site", l.lan, siteIP6, false)
		reach(when, "the site from the internet", site, internetIP6, false)
		reach(when, "the LAN from a container", l.lan, containerIP6, true)
		reach(when, "a container from the site", container, siteIP6, true)
	}
	open := func(range6 netip.Prefix) *network.Networks {
		l.range6 = range6
		return l.open(t, nil)
	}
	start := func(range6 netip.Prefix) {
		t.Helper()
		l.networks = open(range6)
		if err := l.networks.Restore(t.Context(), nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	l.networks = open(ula)
	env := l.attach(t, "01ENVA", 0)
	start(ula)
	// The bridge of another program comes after forwarding is on.
	testutil.Sh(t, "ip link add ctr0 type bridge; ip link set ctr0 up; ip addr add fd30::1/64 dev ctr0 nodad; ip link add ctr1 master ctr0 type veth peer name eth0 netns "+container.Path()+"; ip link set ctr1 up")
	container.Sh(t, "ip addr add "+containerIP6+"/64 dev eth0 nodad; ip link set eth0 up; ip route add default via fd30::1")
	container.Answer(t, "tcp", "[::]:80", "container")
	reach("with a range", "an environment from the internet", env, internetIP6, true)
	check("with a range")
	start(netip.Prefix{})
	check("without a range")
	reach("without a range", "an environment from the internet", env, internetIP6, false)
	// What others take of it comes back as the other rules do.
	ip6tables := strings.Replace(l.iptables, "ip", "ip6", 1)
	testutil.Sh(t, ip6tables+" -F FORWARD")
	if err := l.networks.Restore(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	check("without a range, mended")
	for range 2 { // a clean-up can be repeated
		if err := open(netip.Prefix{}).CleanUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		check("cleaned up")
		if got := testutil.Sh(t, "cat /proc/sys/net/ipv6/conf/all/forwarding"); got != "1" {
			t.Errorf("forwarding is %s beside containers", got)
		}
		var left []string
		for line := range strings.Lines(testutil.Sh(t, ip6tables+"-save; "+l.iptables+"-save")) {
			if strings.HasPrefix(line, ":RGPU") {
				left = append(left, strings.Fields(line)[0])
			}
		}
		if got := strings.Join(left, " "); got != ":RGPU-APART :RGPU-FWD" {
			t.Errorf("chains that are left: %s", got)
		}
	}
	start(ula)
	check("with a range again")
	testutil.Sh(t, "ip link del ctr1; ip link del ctr0")
	cleanUp(t, l)
	if got := testutil.Sh(t, "cat /proc/sys/net/ipv6/conf/all/forwarding"); got != "0" {
		t.Errorf("forwarding is %s when the bridge has gone", got)
	}
	if _, err := os.Stat(l.dir + ".forwarding"); err == nil {
		t.Error("the note is left")
	}
}
