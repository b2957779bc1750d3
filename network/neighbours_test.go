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

// TestSprayedNeighbours: an environment that calls itself anything does not fill
// the host's table of neighbours, which has room for a thousand: it has one entry
// in each family, which nobody can take, and others are found.
func TestSprayedNeighbours(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	l := newLab6(t, "nft", ula)
	envs := []*testutil.Namespace{l.attach(t, "01ENVA", 0), l.attach(t, "01ENVB", 1)}
	if err := l.networks.Restore(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"0.0.0.0:80", "[::]:80"} {
		envs[1].Answer(t, "tcp", address, "B")
	}
	bridge := testutil.Sh(t, "ip -o -4 addr show to 10.88.0.1/29 | awk '$4 == \"10.88.0.1/29\" {print $2}'")
	const sprayed = 100 // of each kind; the machine has room for a thousand
	envs[0].Do(t, func() {
		send := sender(t)
		mac, gateway := send.mac, net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		for i := range sprayed {
			low := []byte{byte(i >> 8), byte(i)}
			for _, network := range [][]byte{{10, 88}, {203, 0}, {198, 51}} {
				from := netip.AddrFrom4([4]byte{network[0], network[1], low[0], low[1]})
				send.frame(t, arpRequest(mac, from, netip.MustParseAddr("10.88.0.1")))
			}
			for _, network := range []string{"fe80::", "fd88::5:0:0:0", "2001:db8:7::"} {
				from := netip.MustParseAddr(network).As16()
				from[12], from[13], from[14], from[15] = 7, 7, low[0], low[1]
				for _, target := range []string{"fe80::1", "fd88::1"} {
					send.frame(t, solicitation(mac, gateway, netip.AddrFrom16(from), netip.MustParseAddr(target)))
				}
			}
		}
	})
	var strange []string
	for line := range strings.SplitSeq(testutil.Sh(t, "ip neigh show dev "+bridge+" nud all"), "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[len(fields)-1] == "NOARP" { // the kernel's own, of multicast
			continue
		}
		own := fields[0] == "10.88.0.2" || fields[0] == "fd88::2" || fields[0] == "fe80::2"
		if own != (fields[len(fields)-1] == "PERMANENT") {
			t.Errorf("neighbour %q", line)
		}
		if !own {
			strange = append(strange, fields[0])
		}
	}
	if len(strange) > 5 { // spare addresses of its own network
		t.Errorf("%d neighbours are made up: %v", len(strange), strange)
	}
	for _, address := range []string{"10.88.0.10", "fd88:0:0:1::2"} {
		if got := testutil.Sh(t, "ip neigh show "+address); !strings.HasSuffix(got, "PERMANENT") {
			t.Errorf("the other is known as %q", got)
		}
		if got, err := l.host.Ask(t, "tcp", net.JoinHostPort(address, "80"), patience); err != nil {
			t.Errorf("the host to the other: %q, %v", got, err)
		}
	}
	if got := envs[0].Sh(t, "ip neigh show nud permanent | sed 's/ dev.*//' | sort | xargs"); got != "10.88.0.1 fe80::1" {
		t.Errorf("an environment knows of %s", got)
	}
	cleanUp(t, l)
}

// sending sends frames from an environment.
type sending struct {
	fd, index int
	mac       net.HardwareAddr
}

// sender opens a packet socket in the namespace that the thread is in.
func sender(t *testing.T) *sending {
	t.Helper()
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return &sending{fd, link.Index, link.HardwareAddr}
}

func (s *sending) frame(t *testing.T, frame []byte) {
	t.Helper()
	if err := unix.Sendto(s.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: s.index}); err != nil {
		t.Error(err)
	}
}

// arpRequest asks everybody for an address, as who has another.
func arpRequest(mac net.HardwareAddr, from, of netip.Addr) []byte {
	frame := arp(mac, 1, from)
	copy(frame[len(frame)-4:], of.AsSlice())
	return frame
}

// solicitation asks for a target (RFC 4861 section 4.3), as who has another
// address.
func solicitation(mac, to net.HardwareAddr, from, target netip.Addr) []byte {
	message := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice()...)
	message = append(append(message, 1, 1), mac...)
	pseudo := append(append(from.AsSlice(), target.AsSlice()...), 0, 0, 0, byte(len(message)), 0, 0, 0, unix.IPPROTO_ICMPV6)
	binary.BigEndian.PutUint16(message[2:], checksum(append(pseudo, message...)))
	frame := append(append(append([]byte{}, to...), mac...), 0x86, 0xdd)
	frame = append(frame, 0x60, 0, 0, 0, 0, byte(len(message)), unix.IPPROTO_ICMPV6, 255)
	return append(append(append(frame, from.AsSlice()...), target.AsSlice()...), message...)
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
