package dns_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	miekg "github.com/miekg/dns"

	"github.com/remotegpu/remotegpu/network/dns"
)

// FuzzMessage: whatever comes, what is answered can be read, is of the size
// that the client takes, and goes with the question.
func FuzzMessage(f *testing.F) {
	server := dns.NewServer(dns.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/16")}})
	if err := server.Set(world()); err != nil {
		f.Fatal(err)
	}
	for _, name := range []string{
		".", "demo.gpu.internal.", "DEMO.gpu.internal.", "_ssh._tcp.demo.gpu.internal.", "www.gpu.internal.", "loop1.gpu.internal.",
		"away.gpu.internal.", "2.0.88.127.in-addr.arpa.", "*.demo.gpu.internal.", "absent.gpu.internal.", `a\.b\000.gpu.internal.`,
	} {
		for _, kind := range []uint16{miekg.TypeA, miekg.TypeSRV, miekg.TypePTR, miekg.TypeANY, miekg.TypeSOA, miekg.TypeAXFR} {
			message := question(name, kind)
			if kind == miekg.TypeSRV {
				message.SetEdns0(700, true)
			}
			packed, err := message.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(packed, byte(kind))
		}
	}
	f.Add([]byte("\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"), byte(0))
	f.Add([]byte("\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x01\x00\x00\x01\x00\x01\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x04\x00\x0a\xff\xff"), byte(1))
	f.Fuzz(func(t *testing.T, message []byte, who byte) {
		from := netip.MustParseAddr([]string{lanAddress, demoAddress, otherAddress, aliensAddr}[who%4])
		tcp := who&4 != 0
		answer, later := server.HandleMessage(message, from, tcp)
		if later {
			t.Fatal("it would be forwarded, though there is nobody to ask")
		}
		if len(answer) == 0 {
			if len(message) >= 12 && message[2]&0x80 == 0 {
				t.Fatalf("a question is not answered: %x", message)
			}
			return
		}
		var reply miekg.Msg
		if err := reply.Unpack(answer); err != nil {
			t.Fatalf("%v: %x", err, answer)
		}
		if reply.Id != binary.BigEndian.Uint16(message) || !reply.Response {
			t.Fatalf("it is not the answer: %v", &reply)
		}
		limit := 65535
		if !tcp {
			limit = 1232
		}
		if len(answer) > limit || (reply.IsEdns0() == nil && !tcp && len(answer) > 512) {
			t.Fatalf("%d bytes", len(answer))
		}
		if reply.Rcode == miekg.RcodeSuccess && len(reply.Answer)+len(reply.Ns) == 0 && !reply.Truncated {
			t.Fatalf("neither an answer nor why there is none: %v", &reply)
		}
	})
}
