package dns_test

import (
	"fmt"
	"net/netip"
	"testing"

	miekg "github.com/miekg/dns"

	"github.com/remotegpu/remotegpu/network/dns"
)

func crowd(count int) dns.Desired {
	desired := world()
	for i := range count {
		desired.Hosts = append(desired.Hosts, &dns.Host{
			ID: fmt.Sprint(i), Name: fmt.Sprintf("h%d", i), Project: fmt.Sprintf("p%d", i%20), Groups: []string{fmt.Sprint(i % 7)},
			Address:  netip.AddrFrom4([4]byte{127, 88, byte(1 + i>>5), byte(i << 3)}),
			Services: []dns.Service{{Name: "ssh", Protocol: "tcp", Port: 22000, Internal: 22}, {Name: "port80", Protocol: "tcp", Port: 10000, Internal: 80}},
		})
	}
	return desired
}

// BenchmarkSet is what one change costs among 2000 environments.
func BenchmarkSet(b *testing.B) {
	server := dns.NewServer(dns.Config{})
	desired := crowd(2000)
	if err := server.Set(desired); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		changed := *desired.Hosts[1000]
		desired.Hosts[1000] = &changed
		if err := server.Set(desired); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHandle is what an answer costs without the network.
func BenchmarkHandle(b *testing.B) {
	server := dns.NewServer(dns.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	if err := server.Set(crowd(2000)); err != nil {
		b.Fatal(err)
	}
	for name, kind := range map[string]uint16{"h7.p7.gpu.internal.": miekg.TypeA, "absent.gpu.internal.": miekg.TypeA, "_ssh._tcp.h7.p7.gpu.internal.": miekg.TypeSRV} {
		packed, err := question(name, kind).Pack()
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			from := netip.MustParseAddr(lanAddress)
			for b.Loop() {
				if answer, _ := server.HandleMessage(packed, from, false); len(answer) == 0 {
					b.Fatal("no answer")
				}
			}
		})
	}
}
