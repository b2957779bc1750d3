package network_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network/policy"
)

// TestForgedNeighbours: what an environment says of others' addresses (ARP) and
// of routes (IPv6 router advertisements) on its bridge changes nothing: it is
// alone there with the host, which asks it about its own address alone and has
// no IPv6.
func TestForgedNeighbours(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	m := newMembers(t, "nft")
	// Members of a group, so that one's packets to the other pass the host.
	for i := range 2 {
		m.set(t, i, policy.Policy{Groups: []string{"web"}})
	}
	m.reach(t, "before", 1, "internet/tcp a/tcp")
	m.reach(t, "before", 0, "internet/tcp b/tcp")
	routes := func() string {
		return testutil.Sh(t, "ip -4 route; ip -6 route show table all | grep -v '^local\\|^multicast\\|^ff00' || true; ip -6 -o addr | grep rgpu || true")
	}
	before := routes()
	forge(t, m.in[0], m.address(0).Prev(), m.address(1), m.address(1).Prev(), netip.MustParseAddr(lanIP), netip.MustParseAddr(hostIP))
	if after := routes(); after != before {
		t.Errorf("routes before:\n%s\nafter:\n%s", before, after)
	}
	bridge := testutil.Sh(t, "ip -o -4 addr | grep ' 10.88.0.1/29 ' | awk '{print $2}'")
	for entry := range strings.SplitSeq(testutil.Sh(t, "ip neigh show dev "+bridge), "\n") {
		if entry != "" && !strings.HasPrefix(entry, m.address(0).String()+" ") {
			t.Errorf("the host believes %q on %s", entry, bridge)
		}
	}
	// Its port is in hairpin mode, so it has heard, and believed, itself.
	m.in[0].Sh(t, "ip neigh flush dev eth0")
	m.reach(t, "after", 0, "internet published b !c/tcp")
	m.reach(t, "after", 1, "internet resolver a")
	if got, err := ask(t, m.host, "tcp", m.address(1).String()+":80", false); err != nil || !strings.HasPrefix(got, "B ") {
		t.Errorf("the host to the other: %q, %v", got, err)
	}
	cleanUp(t, m.lab)
}

// forge sends, as a program with CAP_NET_RAW in an environment can, ARP answers
// and announcements for addresses that are others', and a router advertisement.
func forge(t *testing.T, env *testutil.Namespace, addresses ...netip.Addr) {
	t.Helper()
	env.Do(t, func() {
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			t.Error(err)
			return
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		send := func(frame []byte) {
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index}); err != nil {
				t.Error(err)
			}
		}
		for _, address := range addresses {
			for _, operation := range []byte{1, 2} { // an announcement is a request for one's own address (RFC 5227)
				send(arp(link.HardwareAddr, operation, address))
			}
		}
		send(routerAdvertisement(link.HardwareAddr))
	})
}

// arp says to everybody that an address is at a MAC (RFC 826).
func arp(mac net.HardwareAddr, operation byte, address netip.Addr) []byte {
	all := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	frame := append(append(append([]byte{}, all...), mac...), 0x08, 0x06)
	frame = append(frame, 0, 1, 0x08, 0, 6, 4, 0, operation)
	frame = append(append(frame, mac...), address.AsSlice()...)
	return append(append(frame, all...), address.AsSlice()...)
}

// routerAdvertisement offers a default route and a prefix (RFC 4861 section
// 4.2) to all nodes.
func routerAdvertisement(mac net.HardwareAddr) []byte {
	source, all := netip.MustParseAddr("fe80::bad"), netip.MustParseAddr("ff02::1")
	message := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0}
	message = append(message, 3, 4, 64, 0xc0, 0, 0, 0x07, 0x08, 0, 0, 0x07, 0x08, 0, 0, 0, 0)
	message = append(message, netip.MustParseAddr("2001:db8:bad::").AsSlice()...)
	pseudo := append(append(source.AsSlice(), all.AsSlice()...), 0, 0, 0, byte(len(message)), 0, 0, 0, unix.IPPROTO_ICMPV6)
	binary.BigEndian.PutUint16(message[2:], checksum(append(pseudo, message...)))
	frame := append(append([]byte{0x33, 0x33, 0, 0, 0, 1}, mac...), 0x86, 0xdd)
	frame = append(frame, 0x60, 0, 0, 0, 0, byte(len(message)), unix.IPPROTO_ICMPV6, 255)
	return append(append(append(frame, source.AsSlice()...), all.AsSlice()...), message...)
}

// checksum is that of RFC 1071, of an even number of bytes.
func checksum(data []byte) uint16 {
	var sum uint32
	for i := 0; i < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
