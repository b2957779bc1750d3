package network_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/policy"
)

// TestBandwidth: limits hold in both directions, are there again when somebody
// removed them or the interfaces, and go when the policy has none any more.
func TestBandwidth(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	m := newMembers(t, "nft")
	veth := testutil.Sh(t, "ip -o link | grep 'alias remotegpu:env="+m.ids[0]+"' | grep -o 'rgpuv-[a-z2-7]*' | head -1")
	buckets := func(when, receives, sends string) {
		t.Helper()
		if got := testutil.Sh(t, "tc qdisc show dev "+veth); !strings.Contains(got, receives) || receives == "" && strings.Contains(got, "tbf") {
			t.Errorf("%s: the host's end has %q, want %q", when, got, receives)
		}
		ifb := testutil.Sh(t, "for i in $(ip -o link show type ifb | grep -o 'rgpui-[a-z2-7]*'); do tc qdisc show dev $i; done")
		if !strings.Contains(ifb, sends) || sends == "" && ifb != "" {
			t.Errorf("%s: the intermediate device has %q, want %q", when, ifb, sends)
		}
		if got := testutil.Sh(t, "tc filter show dev "+veth+" ingress"); strings.Contains(got, "rgpui-") != (sends != "") {
			t.Errorf("%s: what comes in goes by %q", when, got)
		}
		if got := m.in[0].Sh(t, "tc qdisc show dev eth0"); !strings.Contains(got, sends) || sends == "" && strings.Contains(got, "tbf") {
			t.Errorf("%s: its own end has %q, want %q", when, got, sends)
		}
	}
	limited := policy.Policy{IngressBits: 1_000_000, EgressBits: 2_000_000}
	m.set(t, 0, policy.Policy{})
	buckets("no limit", "", "")
	for range 2 {
		m.set(t, 0, limited)
		buckets("limited", "rate 1Mbit", "rate 2Mbit")
	}
	m.reach(t, "limited", 0, "internet published")
	// At these speeds most of it is still to come when the last one is sent.
	for name, way := range map[string]struct {
		from, to *testutil.Namespace
		address  string
	}{
		"to the environment":   {m.host, m.in[0], m.address(0).String() + ":9999"},
		"from the environment": {m.in[0], m.lan, internetIP + ":9999"},
	} {
		if sent, got := flood(t, way.from, way.to, way.address); got == 0 || got > sent/2 {
			t.Errorf("%s: %d of %d datagrams came through a limit", name, got, sent)
		}
	}
	if sent, got := bypass(t, m); got == 0 || got > sent/2 {
		t.Errorf("past the bucket at its own end: %d of %d datagrams came through a limit", got, sent)
	}
	m.set(t, 0, policy.Policy{IngressBits: 40_000_000_000})
	buckets("another limit, in one direction", "rate 40Gbit", "")
	declared := []policy.Declared{m.declared(0, "default", limited)}
	testutil.Sh(t, "tc qdisc del dev "+veth+" root; ip link del $(ip -o link show type ifb | grep -o 'rgpui-[a-z2-7]*' | head -1) 2>/dev/null || true")
	if err := m.networks.Restore(t.Context(), m.all(), declared); err != nil {
		t.Fatal(err)
	}
	buckets("restored", "rate 1Mbit", "rate 2Mbit")
	testutil.Sh(t, `ip link set $(ip -o link show type ifb | grep -o 'rgpui-[a-z2-7]*' | head -1) alias ""`) // as between its making and naming
	if strays := present(t, m.networks).Strays; len(strays) > 0 {
		t.Errorf("of an environment that is there, these are strays: %v", strays)
	}
	testutil.Sh(t, "ip link del "+veth)
	m.in[0] = m.attach(t, m.ids[0], m.slots[0])
	m.set(t, 0, limited)
	buckets("attached again", "rate 1Mbit", "rate 2Mbit")
	// As after a lifting that failed.
	if err := m.networks.Restore(t.Context(), m.all(), []policy.Declared{m.declared(0, "default", policy.Policy{})}); err != nil {
		t.Fatal(err)
	}
	buckets("lifted by a restore", "", "")
	m.set(t, 0, limited)
	m.set(t, 0, policy.Policy{})
	buckets("no limit any more", "", "")
	outweighs(t, m, limited, buckets)
	m.set(t, 0, limited)
	if err := m.networks.Detach(t.Context(), m.ids[0]); err != nil {
		t.Fatal(err)
	}
	if err := m.networks.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := testutil.Sh(t, "ip -o link show type ifb | grep rgpui- || true"); left != "" {
		t.Errorf("after Detach there is %q", left)
	}
	m.set(t, 0, limited) // there is nothing to limit, and it comes with the next start
	cleanUp(t, m.lab)
}

// outweighs: a list that is older than a change takes neither limits nor rules
// back, not even what an earlier process had put in force before it died.
func outweighs(t *testing.T, m *members, limited policy.Policy, buckets func(when, receives, sends string)) {
	t.Helper()
	limited.Egress = policy.None
	m.set(t, 0, limited)
	careful := m.open(t, func(cfg *network.Config) { cfg.RestoreGrace = time.Hour })
	if err := careful.SetPolicy(t.Context(), m.declared(0, "default", limited)); err != nil {
		t.Fatal(err)
	}
	if err := careful.Restore(t.Context(), m.all(), []policy.Declared{m.declared(0, "default", policy.Policy{})}); err != nil {
		t.Fatal(err)
	}
	buckets("an older list", "rate 1Mbit", "rate 2Mbit")
	if rules := testutil.Sh(t, "iptables-save -t filter"); !strings.Contains(rules, m.ids[0]+":egress=none") {
		t.Errorf("an older list opens what was closed:\n%s", rules)
	}
	m.reach(t, "an older list", 0, "!internet")
	if drift, err := careful.Drift(t.Context(), m.all(), []policy.Declared{m.declared(0, "default", policy.Policy{})}); err != nil || len(drift) > 0 {
		t.Errorf("drift of an older list: %v, %v", drift, err)
	}
	// What is published is the list's.
	m.reach(t, "an older list", 1, "published")
}

// bypass does as flood from the environment to the internet, in a way that no
// bucket of the environment's own interface is asked for (packet(7)).
func bypass(t *testing.T, m *members) (sent, got int) {
	t.Helper()
	const mac = " | grep -o 'link/ether [0-9a-f:]*' | cut -d' ' -f2"
	gateway, err := net.ParseMAC(testutil.Sh(t, "ip -o link show type bridge | grep 'alias remotegpu:env="+m.ids[0]+"'"+mac))
	if err != nil {
		t.Fatal(err)
	}
	own, err := net.ParseMAC(m.in[0].Sh(t, "ip -o link show eth0"+mac))
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	var link *net.Interface
	m.in[0].Do(t, func() {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0); err == nil {
			link, err = net.InterfaceByName("eth0")
		}
	})
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	const port, payload = 9999, 1300
	to := &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: link.Index, Halen: 6, Addr: [8]byte(append(append([]byte(nil), gateway...), 0, 0))}
	from, target := m.address(0).As4(), netip.MustParseAddr(internetIP).As4()
	datagram := append(append(append([]byte(nil), gateway...), own...), 0x08, 0x00)
	header := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	binary.BigEndian.PutUint16(header[2:], 20+8+payload)
	header = append(append(header, from[:]...), target[:]...)
	var sum uint32
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	binary.BigEndian.PutUint16(header[10:], ^uint16(sum>>16+sum&0xffff))
	datagram = append(datagram, header...)
	for _, word := range []uint16{40000, port, 8 + payload, 0} { // without a checksum
		datagram = binary.BigEndian.AppendUint16(datagram, word)
	}
	datagram = append(datagram, make([]byte, payload)...)
	return count(t, m.lan, fmt.Sprintf("%s:%d", internetIP, port), func() { _ = unix.Sendto(fd, datagram, 0, to) })
}

// flood sends datagrams as fast as it can and counts those that arrive while
// it does, and shortly after.
func flood(t *testing.T, from, to *testutil.Namespace, address string) (sent, got int) {
	t.Helper()
	var conn net.Conn
	var err error
	from.Do(t, func() { conn, err = net.Dial("udp4", address) })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return count(t, to, address, func() {
		// A full queue may refuse some.
		conn.SetWriteDeadline(time.Now().Add(time.Millisecond))
		conn.Write(make([]byte, 1300))
	})
}

// count sends many datagrams and counts those that arrive at an address.
func count(t *testing.T, at *testutil.Namespace, address string, send func()) (sent, got int) {
	t.Helper()
	var sink net.PacketConn
	var err error
	at.Do(t, func() { sink, err = net.ListenPacket("udp4", address) })
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	counted := make(chan int)
	go func() {
		count := 0
		for buffer := make([]byte, 2000); ; count++ {
			if _, _, err := sink.ReadFrom(buffer); err != nil {
				counted <- count
				return
			}
		}
	}()
	const datagrams = 3000 // of 1300 bytes: 31 s at 1 Mbit/s
	for range datagrams {
		send()
	}
	sink.SetReadDeadline(time.Now().Add(quiet))
	return datagrams, <-counted
}
