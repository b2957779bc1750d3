package network_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
)

const (
	// patience is how long an answer may take; quiet how long silence must
	// last to count as blocked.
	patience = 10 * time.Second
	quiet    = 700 * time.Millisecond

	hostIP = "203.0.113.1"
	lanIP  = "203.0.113.2"
	// privateIP and internetIP are beyond the host's own network; lanIP leads to
	// both.
	privateIP  = "192.168.77.7"
	internetIP = "198.51.100.9"
)

var subnet = netip.MustParsePrefix("10.88.0.0/16")

// lab is a host with an uplink to a LAN, all in namespaces of the test. The
// process itself is on the host.
type lab struct {
	networks  *network.Networks
	host, lan *testutil.Namespace
	iptables  string
	dir       string
	range6    netip.Prefix // of IPv6; invalid: none
}

func newLab(t *testing.T, backend string) *lab {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(dir, "xtables.lock"))
	l := &lab{
		host: testutil.OpenNamespace(t, "/proc/self/ns/net"), lan: testutil.NewNamespace(t),
		iptables: "/usr/sbin/iptables-" + backend, dir: filepath.Join(dir, "netns"),
	}
	// Addresses of IPv6 that are there a second later would be changes in the
	// middle of a test.
	testutil.Sh(t, "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad")
	testutil.Sh(t, fmt.Sprintf(`
		ip link add uplink mtu 1400 type veth peer name lan netns %s
		ip addr add %s/24 dev uplink
		ip link set uplink up`, l.lan.Path(), hostIP))
	l.lan.Sh(t, fmt.Sprintf("ip addr add %s/24 dev lan; ip link set lan mtu 1400 up; ip addr add %s/32 dev lo; ip addr add %s/32 dev lo",
		lanIP, privateIP, internetIP))
	if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte("nameserver "+lanIP+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	testutil.Sh(t, "ip route add default via "+lanIP)
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "link", "del", "uplink").CombinedOutput(); err != nil {
			t.Errorf("remove uplink: %v: %s", err, out)
		}
	})
	l.networks = l.open(t, nil)
	return l
}

// open makes another Networks over the same host, as a daemon that starts.
func (l *lab) open(t *testing.T, change func(*network.Config)) *network.Networks {
	t.Helper()
	rules, err := firewall.New(firewall.Config{Subnet: subnet, Subnet6: l.range6, Path: l.iptables})
	if err != nil {
		t.Fatal(err)
	}
	cfg := network.Config{
		Range: subnet, Range6: l.range6, ForwardFile6: l.dir + ".forwarding", NetNSDir: l.dir, Firewall: rules, RestoreGrace: -1, ResolvConf: filepath.Join(filepath.Dir(l.dir), "resolv.conf"),
	}
	if change != nil {
		change(&cfg)
	}
	networks, err := network.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return networks
}

func (l *lab) attach(t *testing.T, envID string, slot int) *testutil.Namespace {
	t.Helper()
	if err := l.networks.Attach(t.Context(), envID, slot); err != nil {
		t.Fatal(err)
	}
	return testutil.OpenNamespace(t, l.networks.NetNS(envID))
}

func published(protocol port.Protocol, external, internal uint16) port.Mapping {
	return port.Mapping{Service: port.Custom, Protocol: protocol, External: external, Internal: internal}
}

// clean checks that nothing of ours is left on the host.
func (l *lab) clean(t *testing.T) {
	t.Helper()
	if links := testutil.Sh(t, "ip -o link"); strings.Contains(links, "rgpu") {
		t.Errorf("links are left:\n%s", links)
	}
	if rules := testutil.Sh(t, l.iptables+"-save; "+strings.Replace(l.iptables, "ip", "ip6", 1)+"-save"); strings.Contains(rules, "RGPU") {
		t.Errorf("rules are left:\n%s", rules)
	}
	if routes := testutil.Sh(t, "ip route show type unreachable proto 171; ip -6 route show type unreachable proto 171 2>/dev/null || true"); routes != "" {
		t.Errorf("routes are left:\n%s", routes)
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), l.dir) {
		t.Errorf("mounts are left:\n%s", mounts)
	}
	if entries, err := os.ReadDir(l.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("files are left: %v, %v", entries, err)
	}
}

func cleanUp(t *testing.T, l *lab) {
	t.Helper()
	if err := l.open(t, nil).CleanUp(t.Context()); err != nil {
		t.Error(err)
	}
	l.clean(t)
}

// TestWhoReachesWhom is the matrix of who gets through to whom, and as whom.
func TestWhoReachesWhom(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			l := newLab(t, backend)
			matrix(t, l)
			if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err == nil {
				testutil.Sh(t, "echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables")
				t.Run("br_netfilter", func(t *testing.T) { flowsOfMatrix(t, l) })
				testutil.Sh(t, "echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables")
			}
			withdraw(t, l, hostIP, lanIP)
			cleanUp(t, l)
		})
	}
}

// matrix sets two environments up and checks the flows.
func matrix(t *testing.T, l *lab) {
	t.Helper()
	for i, envID := range []string{"01ENVA", "01ENVB"} {
		env := l.attach(t, envID, i*31) // the second is in another /24
		name := string(envID[5])
		env.Answer(t, "tcp", "0.0.0.0:80", name)
		env.Answer(t, "udp", "0.0.0.0:53", name)
		mappings := []port.Mapping{
			published(port.TCP, uint16(10000+i), 80),
			published(port.UDP, uint16(10000+i), 53),
		}
		if err := l.networks.Publish(t.Context(), envID, l.networks.Address(i*31), mappings); err != nil {
			t.Fatal(err)
		}
	}
	for _, network := range []string{"tcp", "udp"} {
		l.host.Answer(t, network, "127.0.0.1:7000", "loopback")
		l.host.Answer(t, network, "0.0.0.0:7001", "service")
		l.lan.Answer(t, network, "0.0.0.0:8000", "lan")
		l.lan.Answer(t, network, lanIP+":53", "resolver")
		l.lan.Answer(t, network, internetIP+":8080", "internet")
		l.lan.Answer(t, network, privateIP+":8080", "private")
	}
	// The metadata address would be answered if it were let through.
	l.lan.Sh(t, "ip addr add 169.254.169.254/32 dev lan; ip addr add 100.100.100.200/32 dev lan; ip addr add 192.0.0.192/32 dev lan; ip route add 10.88.0.0/16 via "+hostIP)
	flowsOfMatrix(t, l)
}

func flowsOfMatrix(t *testing.T, l *lab) {
	t.Helper()
	a := testutil.OpenNamespace(t, l.networks.NetNS("01ENVA"))
	b := testutil.OpenNamespace(t, l.networks.NetNS("01ENVB"))
	addressA, addressB := l.networks.Address(0).String(), l.networks.Address(31).String()
	gatewayA, gatewayB := l.networks.Address(0).Prev().String(), l.networks.Address(31).Prev().String()
	// Routes that a neighbour might try.
	l.lan.Sh(t, "ip route replace 10.88.0.0/16 via "+hostIP)
	rows := []struct {
		name, address string
		from          *testutil.Namespace
		want          string // "": blocked
	}{
		{"LAN to published", hostIP + ":10000", l.lan, "A " + lanIP},
		{"LAN to the other's published", hostIP + ":10001", l.lan, "B " + lanIP},
		{"host loopback to published", "127.0.0.1:10000", l.host, "A " + gatewayA},
		{"host address to published", hostIP + ":10001", l.host, "B " + hostIP},
		{"host to environment", addressA + ":PORT", l.host, "A " + gatewayA},
		{"environment to its own published", hostIP + ":10000", a, "A " + gatewayA},
		{"environment to the other's published", hostIP + ":10001", a, "B " + gatewayB},
		{"environment to published by its gateway", gatewayA + ":10001", a, "B " + gatewayB},
		{"environment to the internet, masqueraded", internetIP + ":8080", b, "internet " + hostIP},
		{"environment to a name server in the LAN", lanIP + ":53", b, "resolver " + hostIP},
		{"environment to LAN", lanIP + ":8000", b, ""},
		{"environment to a private network", privateIP + ":8080", b, ""},
		{"LAN to host service", hostIP + ":7001", l.lan, "service " + lanIP},
		{"environment to the other's address", addressB + ":PORT", a, ""},
		{"environment to host service by gateway", gatewayA + ":7001", a, ""},
		{"environment to host service by host address", hostIP + ":7001", a, ""},
		{"environment to the other's gateway", gatewayB + ":7001", a, ""},
		{"LAN to environment", addressA + ":PORT", l.lan, ""},
		{"environment to metadata", "169.254.169.254:8000", a, ""},
		{"environment to metadata of another cloud", "100.100.100.200:8000", a, ""},
		{"environment to metadata of a third cloud", "192.0.0.192:8000", a, ""},
	}
	var all sync.WaitGroup // what is blocked takes its time
	for _, row := range rows {
		for _, network := range []string{"tcp", "udp"} {
			address := strings.Replace(row.address, "PORT", map[string]string{"tcp": "80", "udp": "53"}[network], 1)
			all.Go(func() {
				got, err := ask(t, row.from, network, address, row.want == "")
				switch {
				case row.want != "" && (err != nil || got != row.want):
					t.Errorf("%s, %s: got %q, %v, want %q", row.name, network, got, err, row.want)
				case row.want == "" && err == nil:
					t.Errorf("%s, %s: got %q, want it blocked", row.name, network, got)
				}
			})
		}
	}
	all.Wait()
	martians(t, l, a)
	spoof(t, a, addressB, l.lan, internetIP)
	spoof(t, a, l.networks.Address(0).Next().String(), l.lan, internetIP) // spare, and in its own network
	spoof(t, l.lan, addressB, l.host, hostIP)
}

// ask gives an answer that should come time, and a datagram a second chance.
func ask(t *testing.T, from *testutil.Namespace, network, address string, blocked bool) (string, error) {
	t.Helper()
	if blocked {
		return from.Ask(t, network, address, quiet)
	}
	got, err := from.Ask(t, network, address, patience)
	if err != nil && network == "udp" {
		got, err = from.Ask(t, network, address, patience)
	}
	return got, err
}

// martians: what listens on the host's loopback, or is published there, is not
// reached by packets addressed to 127.0.0.1 from the LAN or an environment.
func martians(t *testing.T, l *lab, env *testutil.Namespace) {
	t.Helper()
	for name, from := range map[string]struct {
		ns  *testutil.Namespace
		via string
		dev string
	}{"LAN": {l.lan, hostIP, "lan"}, "environment": {env, l.networks.Address(0).Prev().String(), "eth0"}} {
		// The sender's own kernel must be made to route 127/8 out.
		from.ns.Sh(t, fmt.Sprintf(`
			sysctl -qw net.ipv4.conf.%[1]s.route_localnet=1 net.ipv4.conf.all.route_localnet=1
			ip rule add pref 1 to 127.0.0.1 lookup 7 2>/dev/null
			ip rule del pref 0
			ip rule add pref 10 lookup local
			ip route replace 127.0.0.1 via %[2]s dev %[1]s table 7`, from.dev, from.via))
		for _, address := range []string{"127.0.0.1:7000", "127.0.0.1:10000"} {
			if got, err := from.ns.Ask(t, "tcp", address, quiet); err == nil {
				t.Errorf("%s to %s: got %q, want it blocked", name, address, got)
			}
		}
		from.ns.Sh(t, `
			ip rule add pref 0 lookup local; ip rule del pref 10; ip rule del pref 1
			ip route flush table 7`)
	}
}

// spoof: who takes an address of an environment that is not its own gets nothing
// through to an address of another.
func spoof(t *testing.T, from *testutil.Namespace, other string, on *testutil.Namespace, to string) {
	t.Helper()
	from.Sh(t, "ip addr add "+other+"/32 dev lo")
	defer from.Sh(t, "ip addr del "+other+"/32 dev lo")
	received := make(chan string, 1)
	var sink net.PacketConn
	on.Do(t, func() { sink, _ = net.ListenPacket("udp4", to+":8001") })
	if sink == nil {
		t.Fatal("no socket at " + to)
	}
	defer sink.Close()
	go func() {
		_, from, err := sink.ReadFrom(make([]byte, 16))
		if err == nil {
			received <- from.String()
		}
	}()
	from.Do(t, func() {
		conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(other)}, &net.UDPAddr{IP: net.ParseIP(to), Port: 8001})
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		conn.Write([]byte("spoofed"))
	})
	select {
	case from := <-received:
		t.Errorf("a datagram with address %s, which is not the sender's own, got to %s as from %s", other, to, from)
	case <-time.After(quiet):
	}
}

// withdraw: what is withdrawn is refused, and tracked datagrams follow a port
// to whom it leads now.
func withdraw(t *testing.T, l *lab, hostIP, lanIP string) {
	t.Helper()
	var client net.Conn
	var err error
	l.lan.Do(t, func() { client, err = net.Dial("udp", net.JoinHostPort(hostIP, "10000")) })
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if got := converse(t, client); got != "A "+lanIP {
		t.Errorf("before: %q", got)
	}
	if err := l.networks.Publish(t.Context(), "01ENVA", l.networks.Address(0), nil); err != nil {
		t.Fatal(err)
	}
	mapping := []port.Mapping{published(port.UDP, 10000, 53)}
	if err := l.networks.Publish(t.Context(), "01ENVB", l.networks.Address(31), mapping); err != nil {
		t.Fatal(err)
	}
	if got := converse(t, client); got != "B "+lanIP {
		t.Errorf("the same client after the port moved: %q", got)
	}
	for _, external := range []string{"10000", "10001"} {
		if got, err := l.lan.Ask(t, "tcp", net.JoinHostPort(hostIP, external), patience); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("withdrawn port %s: %q, %v, want it refused", external, got, err)
		}
	}
	if err := l.networks.Detach(t.Context(), "01ENVB"); err != nil {
		t.Fatal(err)
	}
	if got, err := l.lan.Ask(t, "udp", net.JoinHostPort(hostIP, "10000"), quiet); err == nil {
		t.Errorf("the port of a detached environment answers %q", got)
	}
}

// converse sends until something comes back.
func converse(t *testing.T, conn net.Conn) string {
	t.Helper()
	buffer := make([]byte, 64)
	for range 10 {
		conn.Write([]byte("?"))
		conn.SetReadDeadline(time.Now().Add(time.Second))
		if size, err := conn.Read(buffer); err == nil {
			return string(buffer[:size])
		}
	}
	return "nothing"
}

var _ runtime.Networks = (*network.Networks)(nil)
