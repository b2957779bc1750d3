package dns_test

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/remotegpu/remotegpu/network/dns"
)

// Askers of the tests are told apart by their address, of which loopback has
// many.
const (
	demoAddress  = "127.88.0.2" // project default, group g
	mateAddress  = "127.88.0.10"
	looseAddress = "127.88.0.18" // project default, no group
	otherAddress = "127.88.0.26" // project lab
	closeAddress = "127.88.0.34" // project lab, nothing is forwarded for it
	lanAddress   = "127.0.0.1"
	aliensAddr   = "127.99.0.1" // neither an environment nor allowed
)

// world is what the tests serve.
func world() dns.Desired {
	return dns.Desired{
		Zones: []dns.Zone{
			{Name: "gpu.internal"},
			{Name: "env.example.com.", NS: []string{"ns1.example.com", "ns2.example.com"}, Mailbox: "dns.example.com"},
		},
		Reverse: []netip.Prefix{netip.MustParsePrefix("127.88.0.0/16"), netip.MustParsePrefix("fd88::/48")}, Default: "default",
		Node: netip.MustParseAddr("127.88.0.1"), Advertised: []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")},
		Hosts: []*dns.Host{
			{
				ID: "1", Name: "demo", Project: "default", Groups: []string{"f", "g"}, Address: netip.MustParseAddr(demoAddress), Forward: true,
				Text: []string{"id=1"},
				Services: []dns.Service{
					{Name: "ssh", Protocol: "tcp", Port: 22000, Internal: 22},
					{Name: "port8080", Protocol: "udp", Port: 10000, Internal: 8080},
				},
				Records: []dns.Record{
					{Name: "www", Alias: true, Type: dns.CNAME},
					{Name: "deep.er", Type: dns.A, Data: "192.0.2.99", TTL: 60},
					{Name: "six", Type: dns.AAAA, Data: "2001:db8::6"},
					{Name: "text", Type: dns.TXT, Data: strings.Repeat("x", 300)},
					{Name: "away", Alias: true, Type: dns.CNAME, Data: "www.example.org."},
					{Name: "nowhere", Alias: true, Type: dns.CNAME, Data: "gone.demo.gpu.internal."},
					{Name: "across", Alias: true, Type: dns.CNAME, Data: "gone.env.example.com"},
					{Name: "top", Alias: true, Type: dns.CNAME, Data: "env.example.com"},
					{Name: "loop1", Alias: true, Type: dns.CNAME, Data: "loop2"},
					{Name: "loop2", Alias: true, Type: dns.CNAME, Data: "loop1"},
					{Name: "_sip._udp", Type: dns.SRV, Data: "1 2 5060 mate"},
					{Name: "mate", Alias: true, Type: dns.A, Data: "192.0.2.66"}, // an environment's name: not served
				},
			},
			{ID: "2", Name: "mate", Project: "default", Groups: []string{"g", "h"}, Address: netip.MustParseAddr(mateAddress), Address6: netip.MustParseAddr("fd88:0:0:1::2"), Forward: true},
			{ID: "3", Name: "loose", Project: "default", Address: netip.MustParseAddr(looseAddress), Forward: true},
			{ID: "4", Name: "other", Project: "lab", Groups: []string{"g"}, Address: netip.MustParseAddr(otherAddress), Forward: true, Records: []dns.Record{
				{Name: "_lab._tcp", Type: dns.SRV, Data: "0 0 1 mate.default.gpu.internal."},
			}},
			{ID: "5", Name: "closed", Project: "lab", Address: netip.MustParseAddr(closeAddress)},
		},
	}
}

// serve runs a server with the world on loopback until the test ends.
func serve(tb testing.TB, cfg dns.Config) (*dns.Server, netip.AddrPort) {
	tb.Helper()
	if cfg.Allow == nil {
		cfg.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/16")}
	}
	server := dns.NewServer(cfg)
	if err := server.Set(world()); err != nil {
		tb.Fatal(err)
	}
	return server, listen(tb, server)
}

// run calls serve until the test ends.
func run(tb testing.TB, serve func(context.Context) error) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	done := make(chan error, 1)
	go func() { done <- serve(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("serve: %v", err)
		}
	})
}

// ask sends a message from an address and returns the answer.
func ask(tb testing.TB, network, from string, to netip.AddrPort, message *miekg.Msg) (*miekg.Msg, error) {
	tb.Helper()
	client := &miekg.Client{Net: network, Timeout: 10 * time.Second, UDPSize: 4096, Dialer: dialer(network, from)}
	reply, _, err := client.ExchangeContext(tb.Context(), message, to.String())
	return reply, err
}

func dialer(network, from string) *net.Dialer {
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	if network == "tcp" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	} else {
		dialer.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from)}
	}
	return dialer
}

func question(name string, kind uint16) *miekg.Msg {
	message := new(miekg.Msg)
	message.SetQuestion(name, kind)
	return message
}

// records are the records of a section as text, fields apart by one blank, in
// order.
func records(rrs []miekg.RR) []string {
	texts := make([]string, 0, len(rrs))
	for _, rr := range rrs {
		if rr.Header().Rrtype == miekg.TypeOPT {
			continue
		}
		if soa, ok := rr.(*miekg.SOA); ok {
			soa.Serial = 1 // it is the time
		}
		texts = append(texts, strings.Join(strings.Fields(rr.String()), " "))
	}
	slices.SortFunc(texts, cmp.Compare[string])
	return texts
}
