package network_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network/port"
)

// Addresses of the lab in IPv6, as those of IPv4. 2001:db8:7::/48 is the LAN's.
const (
	hostIP6     = "2001:db8:7::1"
	lanIP6      = "2001:db8:7::2"
	privateIP6  = "fd77::7"
	internetIP6 = "2001:db8:99::9"
	metadataIP6 = "fd00:ec2::254"
)

var (
	ula    = netip.MustParsePrefix("fd88::/48")
	routed = netip.MustParsePrefix("2001:db8:8::/48")
)

// newLab6 is a lab whose environments have IPv6, too.
func newLab6(t *testing.T, backend string, range6 netip.Prefix) *lab {
	t.Helper()
	l := newLab(t, backend)
	testutil.Sh(t, fmt.Sprintf("ip addr add %s/64 dev uplink nodad; ip route add ::/0 via %s", hostIP6, lanIP6))
	for _, address := range []string{lanIP6 + "/64 dev lan", privateIP6 + "/128 dev lo", internetIP6 + "/128 dev lo", metadataIP6 + "/128 dev lo"} {
		l.lan.Sh(t, "ip addr add "+address+" nodad")
	}
	// To what is routed here the way is known; of the other it is one that a
	// neighbour might try.
	if range6.IsValid() {
		l.lan.Sh(t, fmt.Sprintf("ip route add %s via %s", range6, hostIP6))
	}
	l.range6 = range6
	l.networks = l.open(t, nil)
	return l
}

// TestWhoReachesWhomByIPv6 is the matrix for IPv6, on both backends, and for
// both kinds of ranges.
func TestWhoReachesWhomByIPv6(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	for _, c := range []struct {
		name, backend string
		range6        netip.Prefix
	}{{"nft", "nft", ula}, {"legacy", "legacy", ula}, {"routed", "nft", routed}} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab6(t, c.backend, c.range6)
			matrix6(t, l)
			if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-ip6tables"); err == nil && c.range6 == ula {
				testutil.Sh(t, "echo 1 > /proc/sys/net/bridge/bridge-nf-call-ip6tables")
				t.Run("br_netfilter", func(t *testing.T) { flowsOfMatrix6(t, l) })
				testutil.Sh(t, "echo 0 > /proc/sys/net/bridge/bridge-nf-call-ip6tables")
			}
			withdraw(t, l, hostIP6, lanIP6)
			cleanUp(t, l)
			if got := testutil.Sh(t, "cat /proc/sys/net/ipv6/conf/all/forwarding"); got != "0" {
				t.Errorf("forwarding is %s after the clean-up", got)
			}
		})
	}
}

func matrix6(t *testing.T, l *lab) {
	t.Helper()
	for i, envID := range []string{"01ENVA", "01ENVB"} {
		env := l.attach(t, envID, i*31)
		name := string(envID[5])
		env.Answer(t, "tcp", "[::]:80", name)
		env.Answer(t, "udp", "[::]:53", name)
		mappings := []port.Mapping{published(port.TCP, uint16(10000+i), 80), published(port.UDP, uint16(10000+i), 53)}
		if err := l.networks.Publish(t.Context(), envID, l.networks.Address(i*31), mappings); err != nil {
			t.Fatal(err)
		}
	}
	for _, network := range []string{"tcp", "udp"} {
		l.host.Answer(t, network, "[::1]:7000", "loopback")
		l.host.Answer(t, network, "[::]:7001", "service")
		l.lan.Answer(t, network, "[::]:8000", "lan")
		l.lan.Answer(t, network, "["+internetIP6+"]:8080", "internet")
		l.lan.Answer(t, network, "["+privateIP6+"]:8080", "private")
		l.lan.Answer(t, network, "["+metadataIP6+"]:80", "metadata")
	}
	flowsOfMatrix6(t, l)
}

func flowsOfMatrix6(t *testing.T, l *lab) {
	t.Helper()
	a, b := testutil.OpenNamespace(t, l.networks.NetNS("01ENVA")), testutil.OpenNamespace(t, l.networks.NetNS("01ENVB"))
	addressA, addressB := l.networks.Address6(0), l.networks.Address6(31)
	gatewayA, gatewayB := addressA.Prev().String(), addressB.Prev().String()
	seen := hostIP6
	if l.range6 == routed {
		seen = addressB.String()
	}
	rows := []struct {
		name, address, port string
		from                *testutil.Namespace
		want                string // "": blocked
	}{
		{"LAN to published", hostIP6, "10000", l.lan, "A " + lanIP6},
		{"LAN to the other's published", hostIP6, "10001", l.lan, "B " + lanIP6},
		{"host address to published", hostIP6, "10001", l.host, "B " + hostIP6},
		{"host to environment", addressA.String(), "PORT", l.host, "A " + gatewayA},
		{"environment to its own published", hostIP6, "10000", a, "A " + gatewayA},
		{"environment to the other's published", hostIP6, "10001", a, "B " + gatewayB},
		{"environment to published by its gateway", gatewayA, "10001", a, "B " + gatewayB},
		{"environment to the internet", internetIP6, "8080", b, "internet " + seen},
		{"environment to itself", "::1", "PORT", a, "A ::1"},
		{"environment to LAN", lanIP6, "8000", b, ""},
		{"environment to a private network", privateIP6, "8080", b, ""},
		{"LAN to host service", hostIP6, "7001", l.lan, "service " + lanIP6},
		{"environment to the other's address", addressB.String(), "PORT", a, ""},
		{"environment to host service by gateway", gatewayA, "7001", a, ""},
		{"environment to host service by host address", hostIP6, "7001", a, ""},
		{"environment to host service by link-local address", "fe80::1%eth0", "7001", a, ""},
		{"environment to published by link-local address", "fe80::1%eth0", "10001", a, ""},
		{"environment to the other's gateway", gatewayB, "7001", a, ""},
		{"LAN to environment", addressA.String(), "PORT", l.lan, ""},
		{"environment to metadata", metadataIP6, "80", a, ""},
		{"host's loopback to published", "::1", "10000", l.host, ""},
	}
	var all sync.WaitGroup
	for _, row := range rows {
		for _, network := range []string{"tcp", "udp"} {
			address := net.JoinHostPort(row.address, strings.Replace(row.port, "PORT", map[string]string{"tcp": "80", "udp": "53"}[network], 1))
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
	for i, lie := range []struct {
		from, on  *testutil.Namespace
		other, to string
	}{
		{a, l.lan, addressB.String(), internetIP6},
		{a, l.lan, addressA.Next().String(), internetIP6},
		{a, l.lan, gatewayA, internetIP6},
		{l.lan, l.host, addressB.String(), hostIP6},
	} {
		all.Go(func() { spoof6(t, lie.from, lie.other, lie.on, lie.to, 9001+i) })
	}
	all.Wait()
	advertise(t, a)
}

// spoof6 does as spoof, beside others.
func spoof6(t *testing.T, from *testutil.Namespace, other string, on *testutil.Namespace, to string, number int) {
	t.Helper()
	var sink, liar *net.UDPConn
	var err error
	on.Do(t, func() { sink, err = net.ListenUDP("udp6", &net.UDPAddr{IP: net.ParseIP(to), Port: number}) })
	if err != nil {
		t.Error(err)
		return
	}
	defer sink.Close()
	from.Do(t, func() {
		testutil.Sh(t, "ip addr add "+other+"/128 dev lo nodad")
		liar, err = net.DialUDP("udp6", &net.UDPAddr{IP: net.ParseIP(other)}, &net.UDPAddr{IP: net.ParseIP(to), Port: number})
		testutil.Sh(t, "ip addr del "+other+"/128 dev lo") // the socket keeps it
	})
	if err != nil {
		t.Error(err)
		return
	}
	defer liar.Close()
	if _, err := liar.Write([]byte("spoofed")); err != nil {
		t.Errorf("nothing was sent as from %s: %v", other, err)
	}
	sink.SetReadDeadline(time.Now().Add(quiet))
	if _, from, err := sink.ReadFrom(make([]byte, 16)); err == nil {
		t.Errorf("a datagram with address %s, which is not the sender's own, got to %s as from %s", other, to, from)
	}
	// With its own address it gets there.
	var honest net.Conn
	from.Do(t, func() { honest, err = net.DialUDP("udp6", nil, &net.UDPAddr{IP: net.ParseIP(to), Port: number}) })
	if err != nil {
		t.Error(err)
		return
	}
	defer honest.Close()
	if _, err := honest.Write([]byte("honest")); err != nil {
		t.Error(err)
	}
	sink.SetReadDeadline(time.Now().Add(patience))
	if _, _, err := sink.ReadFrom(make([]byte, 16)); err != nil {
		t.Errorf("a datagram with the sender's own address did not get to %s: %v", to, err)
	}
}

// advertise: an environment that claims to be a router changes nothing at the
// host.
func advertise(t *testing.T, env *testutil.Namespace) {
	t.Helper()
	state := func() string {
		return testutil.Sh(t, "ip -6 route | sed 's/ expires.*//'; ip -o -6 addr | awk '{print $2, $4}'")
	}
	before := state()
	env.Do(t, func() {
		socket, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(socket)
		// A router for half an hour, with a prefix to make addresses of (RFC 4861
		// sections 4.2 and 4.6.2).
		message := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 3, 4, 64, 0xc0}
		for range 2 {
			message = binary.BigEndian.AppendUint32(message, 3600)
		}
		message = append(message, 0, 0, 0, 0)
		prefix := netip.MustParseAddr("2001:db8:666::").As16()
		message = append(message, prefix[:]...)
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			t.Error(err)
			return
		}
		to := &unix.SockaddrInet6{ZoneId: uint32(link.Index), Addr: netip.MustParseAddr("ff02::1").As16()}
		for _, err := range []error{
			unix.SetsockoptInt(socket, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255),
			unix.Sendto(socket, message, 0, to),
		} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	time.Sleep(100 * time.Millisecond) // nothing may come of it
	if after := state(); after != before {
		t.Errorf("an environment advertised itself as a router, and the host has\n%s\ninstead of\n%s", after, before)
	}
}
