package dns_test

import (
	"net/netip"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/remotegpu/remotegpu/network/dns"
)

// TestRateLimit: beyond its rate an asker gets some answers that say TCP, and
// mostly none; TCP, other networks and those that are exempt are not limited.
func TestRateLimit(t *testing.T) {
	t.Parallel()
	_, address := serve(t, dns.Config{
		Sockets: 1,
		Allow:   []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		RateLimit: dns.RateLimit{PerSecond: 1_000_000, Outside: 20, Slip: 2, Exempt: []netip.Prefix{
			netip.MustParsePrefix("127.7.0.0/16"),
		}},
	})
	const burst = 200 // no more than a socket holds
	count := func(from string, least int) (whole, cut int) {
		conn, err := dialer("udp", from).Dial("udp", address.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		co := &miekg.Conn{Conn: conn}
		for range burst {
			if err := co.WriteMsg(question("demo.gpu.internal.", miekg.TypeA)); err != nil {
				t.Fatal(err)
			}
		}
		// So many come, however long that takes; then it may be over.
		for {
			patience := 20 * time.Second
			if whole+cut >= least {
				patience = 500 * time.Millisecond
			}
			conn.SetReadDeadline(time.Now().Add(patience))
			reply, err := co.ReadMsg()
			if err != nil {
				return whole, cut
			}
			if reply.Truncated {
				cut++
			} else {
				whole++
			}
		}
	}
	if whole, cut := count("127.1.0.1", 70); whole < 20 || whole > burst*3/4 || cut < 10 || whole+cut >= burst {
		t.Errorf("of %d questions %d were answered and %d told to use TCP", burst, whole, cut)
	}
	if whole, cut := count(demoAddress, burst); whole != burst || cut != 0 {
		t.Errorf("an environment, whose limit is another: of %d questions %d were answered and %d told to use TCP", burst, whole, cut)
	}
	if whole, cut := count("127.7.0.1", burst); whole != burst || cut != 0 {
		t.Errorf("exempt: of %d questions %d were answered and %d told to use TCP", burst, whole, cut)
	}
	// The network counts, not the address, unless it is an environment.
	if whole, _ := count("127.1.0.200", 50); whole > burst*3/4 {
		t.Errorf("another address of the network: %d", whole)
	}
	for range 3 * 20 {
		if reply, err := ask(t, "tcp", "127.1.0.1", address, question("demo.gpu.internal.", miekg.TypeA)); err != nil || reply.Truncated {
			t.Fatalf("over TCP: %v %v", reply, err)
		}
	}
}

// TestFloodFromEverywhere: askers are forgotten rather than remembered without
// end, and one that comes later is answered.
func TestFloodFromEverywhere(t *testing.T) {
	t.Parallel()
	limit := dns.NewTestLimiter(dns.RateLimit{Outside: 5, Slip: 0})
	var address [4]byte
	for i := range 1 << 17 {
		address = [4]byte{byte(i >> 16), byte(i >> 8), byte(i), 1}
		limit(netip.AddrFrom4(address))
	}
	if !limit(netip.MustParseAddr("203.0.113.1")) {
		t.Error("who was never seen is refused")
	}
}

// TestQuota: askers that take what they can leave room for others, and a host
// with many addresses is one asker.
func TestQuota(t *testing.T) {
	t.Parallel()
	enter := dns.NewTestQuota(128, 1024)
	takes := func(from func(i int) netip.Addr) (count int) {
		for i := range 2000 {
			if enter(from(i)) {
				count++
			}
		}
		return count
	}
	one := func(last byte) func(int) netip.Addr {
		return func(int) netip.Addr { return netip.AddrFrom4([4]byte{10, 88, 0, last}) }
	}
	if got := takes(one(1)); got != 128 {
		t.Errorf("one alone gets %d", got)
	}
	for i := range byte(15) {
		takes(one(2 + i))
	}
	if got := takes(one(100)); got < 8 {
		t.Errorf("after 16 that took what they could, one gets %d", got)
	}
	enter = dns.NewTestQuota(64, 1024)
	if got := takes(func(i int) netip.Addr {
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(i >> 8), 15: byte(i)})
	}); got != 64 {
		t.Errorf("a /64 gets %d", got)
	}
	if !enter(netip.MustParseAddr("2001:db8:0:1::1")) {
		t.Error("another /64 gets none")
	}
}
