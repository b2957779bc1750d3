package network_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
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
	m.set(t, 0, policy.Policy{IngressBits: 40_000_000_000})
	buckets("another limit, in one direction", "rate 40Gbit", "")
	declared := []policy.Declared{m.declared(0, "default", limited)}
	testutil.Sh(t, "tc qdisc del dev "+veth+" root")
	if err := m.networks.Restore(t.Context(), m.all(), declared); err != nil {
		t.Fatal(err)
	}
	buckets("restored", "rate 1Mbit", "rate 2Mbit")
	testutil.Sh(t, "ip link del "+veth)
	m.in[0] = m.attach(t, m.ids[0], m.slots[0])
	m.set(t, 0, limited)
	buckets("attached again", "rate 1Mbit", "rate 2Mbit")
	m.set(t, 0, policy.Policy{})
	buckets("no limit any more", "", "")
	if err := m.networks.Detach(t.Context(), m.ids[0]); err != nil {
		t.Fatal(err)
	}
	m.set(t, 0, limited) // there is nothing to limit, and it comes with the next start
	cleanUp(t, m.lab)
}

// flood sends datagrams as fast as it can and counts those that arrive while
// it does, and shortly after.
func flood(t *testing.T, from, to *testutil.Namespace, address string) (sent, got int) {
	t.Helper()
	var sink net.PacketConn
	var conn net.Conn
	var err error
	to.Do(t, func() { sink, err = net.ListenPacket("udp4", address) })
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	from.Do(t, func() { conn, err = net.Dial("udp4", address) })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
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
		// A full queue may refuse some.
		conn.SetWriteDeadline(time.Now().Add(time.Millisecond))
		conn.Write(make([]byte, 1300))
	}
	sink.SetReadDeadline(time.Now().Add(quiet))
	return datagrams, <-counted
}
