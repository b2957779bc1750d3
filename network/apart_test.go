package network_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network"
)

const (
	siteIP      = "192.0.2.2" // in another network of the host
	containerIP = "172.30.0.2"
)

// TestHostNetworksStayApart: that environments need forwarding does not make the
// host route between the networks it is in, as long as it was us who switched
// that on; what others forward by interfaces of their own goes through, and
// cleaning up leaves the host as it was.
func TestHostNetworksStayApart(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) { hostNetworks(t, backend) })
	}
}

func hostNetworks(t *testing.T, backend string) {
	t.Helper()
	l := newLab(t, backend)
	testutil.Sh(t, "echo 0 > /proc/sys/net/ipv4/ip_forward")
	file := filepath.Join(t.TempDir(), "forwarding")
	open := func(between bool) *network.Networks {
		return l.open(t, func(cfg *network.Config) { cfg.ForwardFile, cfg.RouteBetween = file, between })
	}
	// A site behind a second interface, and the containers of another tool: the
	// bridge that is there before has no way out, as docker0 without the network.
	site, container := testutil.NewNamespace(t), testutil.NewNamespace(t)
	testutil.Sh(t, "ip link add second type veth peer name site netns "+site.Path()+"; ip addr add 192.0.2.1/24 dev second; ip link set second up; ip link add ctr0 type bridge")
	defer func() { testutil.Sh(t, "ip link del second; ip link del ctr0 2>/dev/null || true") }()
	site.Sh(t, "ip addr add "+siteIP+"/24 dev site; ip link set site up; ip route add default via 192.0.2.1")
	l.lan.Sh(t, "ip route add 192.0.2.0/24 via "+hostIP+"; ip route add 172.30.0.0/24 via "+hostIP)
	site.Answer(t, "tcp", "0.0.0.0:80", "site")
	l.lan.Answer(t, "tcp", internetIP+":80", "internet")
	reach := func(when, who string, from *testutil.Namespace, address string, reached bool) {
		t.Helper()
		patience := patience
		if !reached {
			patience = quiet
		}
		if got, err := from.Ask(t, "tcp", address, patience); (err == nil) != reached {
			t.Errorf("%s: %s got %q, %v, want it reached: %v", when, who, got, err, reached)
		}
	}
	reach("at first", "the LAN from the site", l.lan, siteIP+":80", false)

	l.networks = open(false)
	env := l.attach(t, "01ENVA", 0)
	if err := l.networks.Restore(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	testutil.Sh(t, "ip link set ctr0 up; ip addr add 172.30.0.1/24 dev ctr0; ip link add ctr1 master ctr0 type veth peer name eth0 netns "+container.Path()+"; ip link set ctr1 up")
	container.Sh(t, "ip addr add "+containerIP+"/24 dev eth0; ip link set eth0 up; ip route add default via 172.30.0.1")
	container.Answer(t, "tcp", "0.0.0.0:80", "container")
	check := func(when string, apart bool) {
		t.Helper()
		reach(when, "an environment from the internet", env, internetIP+":80", true)
		reach(when, "the LAN from the site", l.lan, siteIP+":80", !apart)
		reach(when, "the site from the internet", site, internetIP+":80", !apart)
		reach(when, "the LAN from a container", l.lan, containerIP+":80", true)
		reach(when, "a container from the site", container, siteIP+":80", true)
	}
	check("switched on", true)
	// Another daemon knows whose doing it is, also when somebody switched it off
	// in between.
	testutil.Sh(t, "echo 0 > /proc/sys/net/ipv4/ip_forward")
	l.networks = open(false)
	if err := l.networks.Restore(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	check("restored", true)
	l.networks = open(true)
	if err := l.networks.Restore(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	check("not kept apart", false)

	forwarding := func(when, want string, noted bool) {
		t.Helper()
		if err := open(false).CleanUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if noted { // then the host goes on forwarding because of us
			reach(when+", cleaned up", "the LAN from the site", l.lan, siteIP+":80", false)
			reach(when+", cleaned up", "the LAN from a container", l.lan, containerIP+":80", true)
			if rules := testutil.Sh(t, l.iptables+"-save | grep '^:RGPU' | cut -d' ' -f1 | xargs"); rules != ":RGPU-APART :RGPU-FWD" {
				t.Errorf("%s: chains that are left: %s", when, rules)
			}
		} else {
			l.clean(t)
		}
		if got := testutil.Sh(t, "cat /proc/sys/net/ipv4/ip_forward"); got != want {
			t.Errorf("%s: ip_forward is %s after cleaning up, want %s", when, got, want)
		}
		if _, err := os.Stat(file); (err == nil) != noted {
			t.Errorf("%s: the note: %v, want it there: %v", when, err, noted)
		}
	}
	forwarding("beside containers", "1", true)
	// A daemon that comes after it knows whose doing it is.
	l.networks = open(false)
	env = l.attach(t, "01ENVA", 0)
	if err := l.networks.Restore(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	check("after a clean-up beside containers", true)
	forwarding("beside containers again", "1", true)
	// Somebody switches it off: nothing has to be kept apart any more.
	testutil.Sh(t, "echo 0 > /proc/sys/net/ipv4/ip_forward")
	forwarding("switched off by others", "0", false)
	testutil.Sh(t, "echo 1 > /proc/sys/net/ipv4/ip_forward")
	// On a host that forwards anyway nothing is kept apart.
	l.networks = open(false)
	env = l.attach(t, "01ENVA", 0)
	if err := l.networks.Restore(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	check("forwarding before", false)
	forwarding("forwarding before", "1", false)
	// Nobody else has come, so nobody relies on it.
	testutil.Sh(t, "echo 0 > /proc/sys/net/ipv4/ip_forward") // of what was there before nobody did
	l.networks = open(false)
	l.attach(t, "01ENVA", 0)
	if err := l.networks.Restore(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	forwarding("beside what was there", "0", false)
}
