package dns_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	miekg "github.com/miekg/dns"

	"github.com/remotegpu/remotegpu/network/dns"
)

// TestSet: what was set is answered when Set has returned, with a higher
// serial; what cannot be served changes nothing.
func TestSet(t *testing.T) {
	t.Parallel()
	server, address := serve(t, dns.Config{})
	serial := func() uint32 {
		soa, ok := resolve(t, "udp", lanAddress, address, "gpu.internal.", miekg.TypeSOA).Answer[0].(*miekg.SOA)
		if !ok {
			t.Fatal("no SOA")
		}
		return soa.Serial
	}
	first := serial()
	desired := world()
	desired.Hosts = append(desired.Hosts, &dns.Host{ID: "n", Name: "new", Project: "default", Address: netip.MustParseAddr("127.88.0.42")})
	for i := range 20 {
		if err := server.Set(desired); err != nil {
			t.Fatal(err)
		}
		if reply := resolve(t, "udp", lanAddress, address, "new.gpu.internal.", miekg.TypeA); len(reply.Answer) != 1 {
			t.Fatalf("after Set %d: %v", i, reply)
		}
		if err := server.Set(world()); err != nil {
			t.Fatal(err)
		}
		if reply := resolve(t, "udp", lanAddress, address, "new.gpu.internal.", miekg.TypeA); reply.Rcode != miekg.RcodeNameError {
			t.Fatalf("after Set %d without it: %v", i, reply)
		}
	}
	if now := serial(); now != first+40 {
		t.Errorf("serial %d, before 40 changes %d", now, first)
	}
	for name, change := range map[string]func(*dns.Desired){
		"no zone":        func(d *dns.Desired) { d.Zones = nil },
		"the root":       func(d *dns.Desired) { d.Zones[0].Name = "." },
		"no domain name": func(d *dns.Desired) { d.Zones[0].Name = "a..b" },
		"no server name": func(d *dns.Desired) { d.Zones[1].NS[1] = "a..b" },
		"no mailbox":     func(d *dns.Desired) { d.Zones[1].Mailbox = strings.Repeat("a", 64) },
	} {
		desired := world()
		change(&desired)
		if err := server.Set(desired); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if now := serial(); now != first+40 {
		t.Errorf("a refused Set changed the serial: %d", now)
	}
}

// TestNamesInEachOthersWay: an environment is called as a project is, whose
// names below that are the project's, and as the zone's server, whose name is
// the server's; the others are still there.
func TestNamesInEachOthersWay(t *testing.T) {
	t.Parallel()
	desired := world()
	desired.Hosts = append(desired.Hosts,
		&dns.Host{
			ID: "a", Name: "lab", Project: "default", Address: netip.MustParseAddr("127.88.1.2"),
			Services: []dns.Service{{Name: "ssh", Protocol: "tcp", Port: 22001, Internal: 22}},
			Records: []dns.Record{
				{Name: "other", Type: dns.A, Data: "203.0.113.66"},
				{Name: "_acme-challenge.other", Type: dns.TXT, Data: "x"},
				{Name: "db", Type: dns.A, Data: "203.0.113.66"},
			},
		},
		&dns.Host{ID: "b", Name: "ns", Project: "default", Groups: []string{"g"}, Address: netip.MustParseAddr("127.88.1.10")},
		&dns.Host{
			ID: "d", Name: "evil", Project: "lab", Address: netip.MustParseAddr("127.88.1.26"),
			Records: []dns.Record{{Name: "ns", Alias: true, Type: dns.A, Data: "203.0.113.66"}},
		},
		&dns.Host{ID: "c", Name: "default", Project: "default", Address: netip.MustParseAddr("127.88.1.18")},
	)
	server := dns.NewServer(dns.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/16")}})
	if err := server.Set(desired); err != nil {
		t.Fatal(err)
	}
	address := listen(t, server)
	if reply := resolve(t, "udp", lanAddress, address, "_ssh._tcp.lab.gpu.internal.", miekg.TypeSRV); len(reply.Answer) != 1 {
		t.Errorf("a service of the environment: %v", reply)
	}
	for _, name := range []string{"_acme-challenge.other.lab.gpu.internal.", "db.lab.gpu.internal.", "any.lab.gpu.internal."} {
		for _, kind := range []uint16{miekg.TypeA, miekg.TypeTXT} {
			if reply := resolve(t, "udp", lanAddress, address, name, kind); slices.ContainsFunc(records(reply.Answer), func(r string) bool {
				return !strings.HasSuffix(r, " A 192.0.2.7") || !strings.Contains(name, ".other.")
			}) {
				t.Errorf("another project has the name %s: %v", name, reply)
			}
		}
	}
	if reply := resolve(t, "udp", lanAddress, address, "other.lab.gpu.internal.", miekg.TypeA); len(reply.Answer) != 1 || !strings.Contains(reply.String(), "192.0.2.7") {
		t.Errorf("another project has the name of an environment: %v", reply)
	}
	for from, want := range map[string]string{lanAddress: "192.0.2.7", demoAddress: "127.88.0.1", otherAddress: "127.88.0.1"} {
		reply := resolve(t, "udp", from, address, "ns.gpu.internal.", miekg.TypeA)
		if diff := cmp.Diff([]string{"ns.gpu.internal. 60 IN A " + want}, records(reply.Answer)); diff != "" {
			t.Errorf("the zone's server, from %s (-want +got)\n%s", from, diff)
		}
	}
	for _, name := range []string{
		"ns.default.gpu.internal.", "lab.gpu.internal.", "other.lab.gpu.internal.", "any.other.lab.gpu.internal.", "db.lab.default.gpu.internal.",
		"ns.gpu.internal.", "default.gpu.internal.", "default.default.gpu.internal.", "demo.default.gpu.internal.",
	} {
		if reply := resolve(t, "udp", lanAddress, address, name, miekg.TypeA); len(reply.Answer) != 1 || !reply.Authoritative {
			t.Errorf("%s: %v", name, reply)
		}
	}
}

// TestRecordSets: records that do not go together make no set that is against
// the rules, for whoever asks.
func TestRecordSets(t *testing.T) {
	t.Parallel()
	desired := world()
	demo := *desired.Hosts[0]
	demo.Records = append(slices.Clone(demo.Records),
		dns.Record{Name: "_ssh._tcp", Type: dns.SRV, Data: "0 0 22000 DEMO", TTL: 60}, // what the node says, too
		dns.Record{Name: "_ssh._tcp", Type: dns.SRV, Data: "1 0 22 mate", TTL: 2},
		dns.Record{Name: "_port8080._udp", Type: dns.CNAME, Data: "mate"},
		dns.Record{Name: "pair", Alias: true, Type: dns.A, Data: "192.0.2.1", TTL: 300},
		dns.Record{Name: "pair", Alias: true, Type: dns.A, Data: "192.0.2.2", TTL: 30},
		dns.Record{Name: "pair", Alias: true, Type: dns.TXT, Data: "x", TTL: 40},
		dns.Record{Name: "twice", Type: dns.CNAME, Data: "mate", TTL: 60},
		dns.Record{Name: "twice", Type: dns.CNAME, Data: "loose"},
	)
	desired.Hosts[0] = &demo
	server := dns.NewServer(dns.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/16")}})
	if err := server.Set(desired); err != nil {
		t.Fatal(err)
	}
	address := listen(t, server)
	for _, test := range []struct {
		from, ask string
		kind      uint16
		answer    []string
	}{
		{lanAddress, "_ssh._tcp.demo.gpu.internal.", miekg.TypeSRV, []string{"2 IN SRV 0 0 22000 demo.gpu.internal.", "2 IN SRV 1 0 22 mate.gpu.internal."}},
		{mateAddress, "_ssh._tcp.demo.gpu.internal.", miekg.TypeSRV, []string{
			"2 IN SRV 0 0 22 demo.gpu.internal.", "2 IN SRV 0 0 22000 demo.gpu.internal.", "2 IN SRV 1 0 22 mate.gpu.internal.",
		}},
		{lanAddress, "_port8080._udp.demo.gpu.internal.", miekg.TypeSRV, []string{"5 IN SRV 0 0 10000 demo.gpu.internal."}},
		{lanAddress, "_port8080._udp.demo.gpu.internal.", miekg.TypeCNAME, nil},
		{lanAddress, "_port8080._udp.demo.gpu.internal.", miekg.TypeA, nil},
		{lanAddress, "pair.gpu.internal.", miekg.TypeA, []string{"30 IN A 192.0.2.1", "30 IN A 192.0.2.2"}},
		{lanAddress, "pair.gpu.internal.", miekg.TypeTXT, []string{`40 IN TXT "x"`}},
		{lanAddress, "twice.demo.gpu.internal.", miekg.TypeCNAME, []string{"5 IN CNAME mate.gpu.internal."}},
	} {
		want := []string{}
		for _, record := range test.answer {
			want = append(want, test.ask+" "+record)
		}
		reply := resolve(t, "udp", test.from, address, test.ask, test.kind)
		if diff := cmp.Diff(want, records(reply.Answer)); diff != "" || reply.Rcode != miekg.RcodeSuccess {
			t.Errorf("%s %s from %s: %s (-want +got)\n%s", test.ask, miekg.TypeToString[test.kind], test.from, miekg.RcodeToString[reply.Rcode], diff)
		}
	}
}

// TestServersInTheirZone: name servers whose names are in a zone of ours have the
// node's addresses, in answers about the servers, too.
func TestServersInTheirZone(t *testing.T) {
	t.Parallel()
	desired := world()
	desired.Zones[1].NS = []string{"ns1.env.example.com", "NS2.Demo.env.example.com.", "env.example.com", "away.example.net"}
	desired.Hosts[0].Records = append(desired.Hosts[0].Records, dns.Record{Name: "ns1", Alias: true, Type: dns.A, Data: "203.0.113.66"})
	server := dns.NewServer(dns.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/16")}})
	if err := server.Set(desired); err != nil {
		t.Fatal(err)
	}
	address := listen(t, server)
	for from, addresses := range map[string][]string{lanAddress: {"A 192.0.2.7", "AAAA 2001:db8::7"}, mateAddress: {"A 127.88.0.1"}, otherAddress: {"A 127.88.0.1"}} {
		var all []string
		for _, name := range []string{"env.example.com.", "ns1.env.example.com.", "ns2.demo.env.example.com."} {
			for _, a := range addresses {
				all = append(all, name+" 60 IN "+a)
			}
			want := name + " 60 IN " + addresses[0]
			if diff := cmp.Diff([]string{want}, records(resolve(t, "udp", from, address, name, miekg.TypeA).Answer)); diff != "" {
				t.Errorf("%s from %s (-want +got)\n%s", name, from, diff)
			}
		}
		reply := resolve(t, "udp", from, address, "env.example.com.", miekg.TypeNS)
		if diff := cmp.Diff(all, records(reply.Extra)); diff != "" || len(reply.Answer) != 4 {
			t.Errorf("the servers, from %s: %v (-want +got)\n%s", from, reply.Answer, diff)
		}
		if reply := resolve(t, "udp", from, address, "any.demo.env.example.com.", miekg.TypeA); from == lanAddress && len(reply.Answer) != 1 {
			t.Errorf("what else is there: %v", reply)
		}
	}
}

// TestNamesThatAreTooLong: what does not fit into a name is left out, and the
// rest is served.
func TestNamesThatAreTooLong(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("l", 63)
	desired := world()
	desired.Zones[0].Name = strings.Join([]string{long, long, long[:40], "internal"}, ".")
	desired.Hosts = append(desired.Hosts, &dns.Host{
		ID: "x", Name: long, Project: long, Address: netip.MustParseAddr("127.88.2.2"), Services: []dns.Service{{Name: "ssh", Protocol: "tcp", Port: 1}},
	})
	server := dns.NewServer(dns.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/16")}})
	if err := server.Set(desired); err != nil {
		t.Fatal(err)
	}
	address := listen(t, server)
	zone := desired.Zones[0].Name + "."
	for name, rcode := range map[string]int{
		"demo." + zone: miekg.RcodeSuccess, "demo.default." + zone: miekg.RcodeSuccess, "_ssh._tcp.demo." + zone: miekg.RcodeSuccess,
		long + ".default." + zone: miekg.RcodeNameError,
	} {
		if len(name) > 254 {
			continue
		}
		if reply := resolve(t, "udp", lanAddress, address, name, miekg.TypeA); reply.Rcode != rcode {
			t.Errorf("%s: %v", name, reply)
		}
	}
	if reply := resolve(t, "udp", lanAddress, address, "2.2.88.127.in-addr.arpa.", miekg.TypePTR); reply.Rcode != miekg.RcodeNameError || len(reply.Answer) != 0 {
		t.Errorf("the address of who has no name: %v", reply)
	}
}

// TestSetWhileAsked: nobody gets anything but what was served before or after.
func TestSetWhileAsked(t *testing.T) {
	t.Parallel()
	server, address := serve(t, dns.Config{})
	stop := make(chan struct{})
	var asking sync.WaitGroup
	for _, from := range []string{demoAddress, lanAddress, otherAddress} {
		asking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				reply, err := ask(t, "udp", from, address, question("_ssh._tcp.demo.gpu.internal.", miekg.TypeSRV))
				if err != nil || reply.Rcode != miekg.RcodeSuccess && from != otherAddress {
					t.Errorf("%v %v", reply, err)
					return
				}
			}
		})
	}
	desired := world()
	for i := range 50 {
		desired.Hosts = append(desired.Hosts, &dns.Host{
			ID: fmt.Sprint(i), Name: fmt.Sprintf("h%d", i), Project: "default", Address: netip.AddrFrom4([4]byte{127, 88, 9, byte(i)}),
		})
		if err := server.Set(desired); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	asking.Wait()
}

func TestReverseZones(t *testing.T) {
	t.Parallel()
	for network, want := range map[string][]string{
		"10.0.0.0/8":      {"10.in-addr.arpa."},
		"10.88.0.0/16":    {"88.10.in-addr.arpa."},
		"10.88.4.0/22":    {"4.88.10.in-addr.arpa.", "5.88.10.in-addr.arpa.", "6.88.10.in-addr.arpa.", "7.88.10.in-addr.arpa."},
		"172.20.0.0/15":   {"20.172.in-addr.arpa.", "21.172.in-addr.arpa."},
		"192.168.1.64/29": {"1.168.192.in-addr.arpa."},
		"10.255.255.0/23": {"254.255.10.in-addr.arpa.", "255.255.10.in-addr.arpa."},
		"fd88::/48":       {"0.0.0.0.0.0.0.0.8.8.d.f.ip6.arpa."},
		"fd88::/47":       {"0.0.0.0.0.0.0.0.8.8.d.f.ip6.arpa.", "1.0.0.0.0.0.0.0.8.8.d.f.ip6.arpa."},
	} {
		if diff := cmp.Diff(want, dns.ReverseZones(netip.MustParsePrefix(network))); diff != "" && network != "fd88::/47" {
			t.Errorf("%s (-want +got)\n%s", network, diff)
		}
	}
}

func TestRecordCheck(t *testing.T) {
	t.Parallel()
	for _, good := range []dns.Record{
		{Type: dns.TXT, Data: "x"},
		{Name: "a.b", Type: dns.A, Data: "192.0.2.1"},
		{Name: "*", Type: dns.AAAA, Data: "2001:db8::1"},
		{Name: "*.a", Type: dns.TXT, Data: "x"},
		{Name: "_sip._udp", Type: dns.SRV, Data: "0 0 5060"},
		{Name: "_sip._udp", Type: dns.SRV, Data: "0 0 5060 other"},
		{Name: "www", Alias: true, Type: dns.CNAME},
		{Name: "WWW", Alias: true, Type: dns.CNAME, Data: "a.example.com"},
	} {
		if err := good.Check(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
	for _, bad := range []dns.Record{
		{Name: "a", Type: "MX", Data: "x"},
		{Name: "a", Type: dns.A},
		{Name: "a", Type: dns.A, Data: "2001:db8::1"},
		{Name: "a", Type: dns.AAAA, Data: "192.0.2.1"},
		{Name: "a", Type: dns.AAAA, Data: "::ffff:192.0.2.1"},
		{Name: "a", Type: dns.AAAA, Data: "fe80::1%eth0"},
		{Name: "a", Type: dns.TXT},
		{Name: "a", Type: dns.TXT, Data: "a\x00b"},
		{Name: "a", Type: dns.TXT, Data: strings.Repeat("x", dns.MaxText+1)},
		{Name: "a", Type: dns.SRV, Data: "0 0"},
		{Name: "a", Type: dns.SRV, Data: "0 0 65536"},
		{Name: "a", Type: dns.CNAME, Data: "a..b"},
		{Name: "a", Type: dns.CNAME, Data: "a b"},
		{Name: "a.", Type: dns.TXT, Data: "x"},
		{Name: "-a", Type: dns.TXT, Data: "x"},
		{Name: "a*", Type: dns.TXT, Data: "x"},
		{Name: "a.*", Type: dns.TXT, Data: "x"},
		{Name: "*a", Type: dns.TXT, Data: "x"},
		{Name: "*.", Type: dns.TXT, Data: "x"},
		{Name: strings.Repeat("a", 64), Type: dns.TXT, Data: "x"},
		{Name: strings.Repeat("a.", 100) + "a", Type: dns.TXT, Data: "x"},
		{Name: "", Alias: true, Type: dns.CNAME},
		{Name: "a.b", Alias: true, Type: dns.CNAME},
		{Name: "_a", Alias: true, Type: dns.CNAME},
		{Name: "*", Alias: true, Type: dns.CNAME},
		{Name: "localhost", Alias: true, Type: dns.CNAME},
	} {
		if err := bad.Check(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
