package dns_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	miekg "github.com/miekg/dns"

	"github.com/remotegpu/remotegpu/network/dns"
)

const (
	soa       = "gpu.internal. 5 IN SOA ns.gpu.internal. hostmaster.gpu.internal. 1 3600 600 86400 5"
	soaLong   = "gpu.internal. 60 IN SOA ns.gpu.internal. hostmaster.gpu.internal. 1 3600 600 86400 5"
	soaPublic = "env.example.com. 5 IN SOA ns1.example.com. dns.example.com. 1 3600 600 86400 5"
	zoneSix   = "0.0.0.0.0.0.0.0.8.8.d.f.ip6.arpa."
	soaSix    = zoneSix + " 5 IN SOA ns.gpu.internal. hostmaster.gpu.internal. 1 3600 600 86400 5"
	soaBack   = "88.127.in-addr.arpa. 5 IN SOA ns.gpu.internal. hostmaster.gpu.internal. 1 3600 600 86400 5"
)

// TestAnswers asks the real server over UDP and TCP, with and without EDNS0,
// and looks at what came over the wire.
func TestAnswers(t *testing.T) {
	t.Parallel()
	_, address := serve(t, dns.Config{})
	type row struct {
		name    string
		from    string // "": the LAN
		ask     string
		kind    uint16
		rcode   int
		answer  []string
		ns      []string
		extra   []string
		foreign bool // not authoritative
	}
	rows := []row{
		{name: "A for the LAN", ask: "demo.gpu.internal.", kind: miekg.TypeA, answer: []string{"demo.gpu.internal. 5 IN A 192.0.2.7"}},
		{name: "AAAA for the LAN", ask: "demo.gpu.internal.", kind: miekg.TypeAAAA, answer: []string{"demo.gpu.internal. 5 IN AAAA 2001:db8::7"}},
		{name: "in the project's zone", ask: "demo.default.gpu.internal.", kind: miekg.TypeA, answer: []string{"demo.default.gpu.internal. 5 IN A 192.0.2.7"}},
		{name: "of another project", ask: "other.lab.gpu.internal.", kind: miekg.TypeA, answer: []string{"other.lab.gpu.internal. 5 IN A 192.0.2.7"}},
		{name: "of another project without it", ask: "other.gpu.internal.", kind: miekg.TypeA, rcode: miekg.RcodeNameError, ns: []string{soa}},
		{name: "in the public zone", ask: "demo.env.example.com.", kind: miekg.TypeA, answer: []string{"demo.env.example.com. 5 IN A 192.0.2.7"}},
		{name: "missing in the public zone", ask: "absent.env.example.com.", kind: miekg.TypeA, rcode: miekg.RcodeNameError, ns: []string{soaPublic}},
		{name: "for itself, in a group", from: demoAddress, ask: "demo.gpu.internal.", kind: miekg.TypeA, answer: []string{"demo.gpu.internal. 5 IN A 127.88.0.2"}},
		{name: "for one of its group", from: mateAddress, ask: "demo.gpu.internal.", kind: miekg.TypeA, answer: []string{"demo.gpu.internal. 5 IN A 127.88.0.2"}},
		{name: "for one of its project", from: looseAddress, ask: "demo.gpu.internal.", kind: miekg.TypeA, answer: []string{"demo.gpu.internal. 5 IN A 127.88.0.1"}},
		{name: "AAAA of what has IPv4 only is NODATA", from: looseAddress, ask: "demo.gpu.internal.", kind: miekg.TypeAAAA, ns: []string{soa}},
		{name: "AAAA for one of its group", from: demoAddress, ask: "mate.gpu.internal.", kind: miekg.TypeAAAA, answer: []string{"mate.gpu.internal. 5 IN AAAA fd88:0:0:1::2"}},
		{name: "AAAA of a wildcard for one of its group", from: demoAddress, ask: "x.mate.gpu.internal.", kind: miekg.TypeAAAA, answer: []string{"x.mate.gpu.internal. 5 IN AAAA fd88:0:0:1::2"}},
		{name: "AAAA for one of its project", from: looseAddress, ask: "mate.gpu.internal.", kind: miekg.TypeAAAA, ns: []string{soa}},
		{name: "AAAA for another project", from: otherAddress, ask: "mate.default.gpu.internal.", kind: miekg.TypeAAAA, rcode: miekg.RcodeNameError, ns: []string{soa}},
		{name: "AAAA of one with an address of its own for the LAN", ask: "mate.gpu.internal.", kind: miekg.TypeAAAA, answer: []string{"mate.gpu.internal. 5 IN AAAA 2001:db8::7"}},
		{name: "PTR of IPv6", ask: "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.8.8.d.f.ip6.arpa.", kind: miekg.TypePTR, answer: []string{"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.8.8.d.f.ip6.arpa. 5 IN PTR mate.gpu.internal."}},
		{name: "PTR of IPv6 for another project", from: otherAddress, ask: "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.8.8.d.f.ip6.arpa.", kind: miekg.TypePTR, rcode: miekg.RcodeNameError, ns: []string{soaSix}},
		{name: "PTR of IPv6 of nobody", ask: "3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.8.8.d.f.ip6.arpa.", kind: miekg.TypePTR, rcode: miekg.RcodeNameError, ns: []string{soaSix}},
		{name: "for another project", from: otherAddress, ask: "demo.gpu.internal.", kind: miekg.TypeA, rcode: miekg.RcodeNameError, ns: []string{soa}},
		{name: "for another project, in full", from: otherAddress, ask: "demo.default.gpu.internal.", kind: miekg.TypeA, rcode: miekg.RcodeNameError, ns: []string{soa}},
		{name: "of its own project, in full", from: otherAddress, ask: "other.lab.gpu.internal.", kind: miekg.TypeA, answer: []string{"other.lab.gpu.internal. 5 IN A 127.88.0.26"}},
		{name: "TXT", ask: "demo.gpu.internal.", kind: miekg.TypeTXT, answer: []string{`demo.gpu.internal. 5 IN TXT "id=1"`}},
		{name: "a long TXT", ask: "text.demo.gpu.internal.", kind: miekg.TypeTXT, answer: []string{
			`text.demo.gpu.internal. 5 IN TXT "` + strings.Repeat("x", 255) + `" "` + strings.Repeat("x", 45) + `"`,
		}},
		{
			name: "SRV", ask: "_ssh._tcp.demo.gpu.internal.", kind: miekg.TypeSRV,
			answer: []string{"_ssh._tcp.demo.gpu.internal. 5 IN SRV 0 0 22000 demo.gpu.internal."},
			extra:  []string{"demo.gpu.internal. 5 IN A 192.0.2.7", "demo.gpu.internal. 5 IN AAAA 2001:db8::7"},
		},
		{
			name: "SRV in a group", from: mateAddress, ask: "_ssh._tcp.demo.gpu.internal.", kind: miekg.TypeSRV,
			answer: []string{"_ssh._tcp.demo.gpu.internal. 5 IN SRV 0 0 22 demo.gpu.internal."},
			extra:  []string{"demo.gpu.internal. 5 IN A 127.88.0.2"},
		},
		{
			name: "SRV that leads to another", ask: "_sip._udp.demo.gpu.internal.", kind: miekg.TypeSRV,
			answer: []string{"_sip._udp.demo.gpu.internal. 5 IN SRV 1 2 5060 mate.gpu.internal."},
			extra:  []string{"mate.gpu.internal. 5 IN A 192.0.2.7", "mate.gpu.internal. 5 IN AAAA 2001:db8::7"},
		},
		{
			name: "SRV that leads to another of the asker's group", from: demoAddress, ask: "_sip._udp.demo.gpu.internal.", kind: miekg.TypeSRV,
			answer: []string{"_sip._udp.demo.gpu.internal. 5 IN SRV 1 2 5060 mate.gpu.internal."},
			extra:  []string{"mate.gpu.internal. 5 IN A 127.88.0.10", "mate.gpu.internal. 5 IN AAAA fd88:0:0:1::2"},
		},
		{
			name: "SRV that leads to what the asker does not see", from: otherAddress, ask: "_lab._tcp.other.gpu.internal.", kind: miekg.TypeSRV,
			answer: []string{"_lab._tcp.other.gpu.internal. 5 IN SRV 0 0 1 mate.default.gpu.internal."},
		},
		{name: "an empty non-terminal is NODATA", ask: "_tcp.demo.gpu.internal.", kind: miekg.TypeA, ns: []string{soa}},
		{name: "an empty non-terminal stops the wildcard", ask: "x._tcp.demo.gpu.internal.", kind: miekg.TypeA, rcode: miekg.RcodeNameError, ns: []string{soa}},
		{name: "an empty non-terminal of a record", ask: "er.demo.gpu.internal.", kind: miekg.TypeA, ns: []string{soa}},
		{name: "a record", ask: "deep.er.demo.gpu.internal.", kind: miekg.TypeA, answer: []string{"deep.er.demo.gpu.internal. 60 IN A 192.0.2.99"}},
		{name: "wildcard", ask: "anything.demo.gpu.internal.", kind: miekg.TypeA, answer: []string{"anything.demo.gpu.internal. 5 IN A 192.0.2.7"}},
		{name: "wildcard two labels deep", ask: "any.thing.demo.gpu.internal.", kind: miekg.TypeA, answer: []string{"any.thing.demo.gpu.internal. 5 IN A 192.0.2.7"}},
		{name: "the wildcard itself", ask: "*.demo.gpu.internal.", kind: miekg.TypeA, answer: []string{"*.demo.gpu.internal. 5 IN A 192.0.2.7"}},
		{name: "a wildcard owns its types", ask: "anything.demo.gpu.internal.", kind: miekg.TypeTXT, ns: []string{soa}},
		{name: "a name stops the wildcard, whatever its types", ask: "six.demo.gpu.internal.", kind: miekg.TypeA, ns: []string{soa}},
		{name: "no wildcard for the whole zone", ask: "a.absent.gpu.internal.", kind: miekg.TypeA, rcode: miekg.RcodeNameError, ns: []string{soa}},
		{name: "owners in the case of the question", ask: "DeMo.GPU.interNAL.", kind: miekg.TypeA, answer: []string{"DeMo.GPU.interNAL. 5 IN A 192.0.2.7"}},
		{name: "a negative answer in the case of the question", ask: "nOne.GPU.interNAL.", kind: miekg.TypeA, rcode: miekg.RcodeNameError, ns: []string{
			"GPU.interNAL. 5 IN SOA ns.GPU.interNAL. hostmaster.GPU.interNAL. 1 3600 600 86400 5",
		}},
		{name: "apex NODATA", ask: "gpu.internal.", kind: miekg.TypeA, ns: []string{soa}},
		{name: "SOA", ask: "gpu.internal.", kind: miekg.TypeSOA, answer: []string{soaLong}},
		{
			name: "NS", ask: "gpu.internal.", kind: miekg.TypeNS, answer: []string{"gpu.internal. 60 IN NS ns.gpu.internal."},
			extra: []string{"ns.gpu.internal. 60 IN A 192.0.2.7", "ns.gpu.internal. 60 IN AAAA 2001:db8::7"},
		},
		{
			name: "NS for environments", from: otherAddress, ask: "gpu.internal.", kind: miekg.TypeNS, answer: []string{"gpu.internal. 60 IN NS ns.gpu.internal."},
			extra: []string{"ns.gpu.internal. 60 IN A 127.88.0.1"},
		},
		{name: "NS of the public zone", ask: "env.example.com.", kind: miekg.TypeNS, answer: []string{
			"env.example.com. 60 IN NS ns1.example.com.", "env.example.com. 60 IN NS ns2.example.com.",
		}},
		{name: "the name server's address", ask: "ns.gpu.internal.", kind: miekg.TypeA, answer: []string{"ns.gpu.internal. 60 IN A 192.0.2.7"}},
		{name: "the name server's address for environments", from: otherAddress, ask: "ns.gpu.internal.", kind: miekg.TypeA, answer: []string{"ns.gpu.internal. 60 IN A 127.88.0.1"}},
		{name: "ANY", ask: "demo.gpu.internal.", kind: miekg.TypeANY, answer: []string{`demo.gpu.internal. 60 IN HINFO "RFC8482" ""`}},
		{name: "ANY of a zone", ask: "gpu.internal.", kind: miekg.TypeANY, answer: []string{`gpu.internal. 60 IN HINFO "RFC8482" ""`}},
		{name: "ANY of an address", ask: "2.0.88.127.in-addr.arpa.", kind: miekg.TypeANY, answer: []string{`2.0.88.127.in-addr.arpa. 60 IN HINFO "RFC8482" ""`}},
		{name: "ANY of what is missing", ask: "absent.gpu.internal.", kind: miekg.TypeANY, rcode: miekg.RcodeNameError, ns: []string{soa}},
		{name: "ANY of the address of nobody", ask: "200.0.88.127.in-addr.arpa.", kind: miekg.TypeANY, rcode: miekg.RcodeNameError, ns: []string{soaBack}},
		{name: "ANY of an empty non-terminal", ask: "_tcp.demo.gpu.internal.", kind: miekg.TypeANY, ns: []string{soa}},
		{name: "ANY of an alias", ask: "www.gpu.internal.", kind: miekg.TypeANY, answer: []string{"www.gpu.internal. 5 IN CNAME demo.gpu.internal."}},
		{name: "ANY of an alias to a name of others", ask: "away.gpu.internal.", kind: miekg.TypeANY, answer: []string{"away.gpu.internal. 5 IN CNAME www.example.org."}},
		{name: "ANY for another project", from: otherAddress, ask: "demo.gpu.internal.", kind: miekg.TypeANY, rcode: miekg.RcodeNameError, ns: []string{soa}},
		{name: "alias", ask: "www.gpu.internal.", kind: miekg.TypeA, answer: []string{
			"demo.gpu.internal. 5 IN A 192.0.2.7", "www.gpu.internal. 5 IN CNAME demo.gpu.internal.",
		}},
		{name: "alias in a group", from: mateAddress, ask: "www.gpu.internal.", kind: miekg.TypeA, answer: []string{
			"demo.gpu.internal. 5 IN A 127.88.0.2", "www.gpu.internal. 5 IN CNAME demo.gpu.internal.",
		}},
		{name: "the alias itself", ask: "www.gpu.internal.", kind: miekg.TypeCNAME, answer: []string{"www.gpu.internal. 5 IN CNAME demo.gpu.internal."}},
		{name: "alias to a type that is missing", from: mateAddress, ask: "www.gpu.internal.", kind: miekg.TypeAAAA, answer: []string{
			"www.gpu.internal. 5 IN CNAME demo.gpu.internal.",
		}, ns: []string{soa}},
		{name: "alias to what is missing", ask: "nowhere.gpu.internal.", kind: miekg.TypeTXT, answer: []string{
			"nowhere.gpu.internal. 5 IN CNAME gone.demo.gpu.internal.",
		}, ns: []string{soa}},
		{name: "alias to what is missing in another zone", ask: "across.gpu.internal.", kind: miekg.TypeA, rcode: miekg.RcodeNameError, answer: []string{
			"across.gpu.internal. 5 IN CNAME gone.env.example.com.",
		}, ns: []string{soaPublic}},
		{name: "alias to a type that is missing at another zone", ask: "top.gpu.internal.", kind: miekg.TypeA, answer: []string{
			"top.gpu.internal. 5 IN CNAME env.example.com.",
		}, ns: []string{soaPublic}},
		{name: "alias to another zone", ask: "top.gpu.internal.", kind: miekg.TypeSOA, answer: []string{
			strings.Replace(soaPublic, " 5 ", " 60 ", 1), "top.gpu.internal. 5 IN CNAME env.example.com.",
		}},
		{name: "alias in the public zone", ask: "www.env.example.com.", kind: miekg.TypeCNAME, answer: []string{"www.env.example.com. 5 IN CNAME demo.env.example.com."}},
		{name: "alias to a name of others", ask: "away.gpu.internal.", kind: miekg.TypeA, answer: []string{"away.gpu.internal. 5 IN CNAME www.example.org."}},
		{name: "a loop", ask: "loop1.gpu.internal.", kind: miekg.TypeA, rcode: miekg.RcodeServerFailure},
		{name: "an environment's name outweighs an alias", ask: "mate.gpu.internal.", kind: miekg.TypeA, answer: []string{"mate.gpu.internal. 5 IN A 192.0.2.7"}},
		{name: "PTR", ask: "2.0.88.127.in-addr.arpa.", kind: miekg.TypePTR, answer: []string{"2.0.88.127.in-addr.arpa. 5 IN PTR demo.gpu.internal."}},
		{name: "PTR of another project", ask: "26.0.88.127.in-addr.arpa.", kind: miekg.TypePTR, answer: []string{"26.0.88.127.in-addr.arpa. 5 IN PTR other.lab.gpu.internal."}},
		{name: "PTR for its own project", from: otherAddress, ask: "26.0.88.127.in-addr.arpa.", kind: miekg.TypePTR, answer: []string{"26.0.88.127.in-addr.arpa. 5 IN PTR other.gpu.internal."}},
		{name: "PTR for another project", from: otherAddress, ask: "2.0.88.127.in-addr.arpa.", kind: miekg.TypePTR, rcode: miekg.RcodeNameError, ns: []string{soaBack}},
		{name: "PTR of the node", from: otherAddress, ask: "1.0.88.127.in-addr.arpa.", kind: miekg.TypePTR, answer: []string{"1.0.88.127.in-addr.arpa. 5 IN PTR ns.gpu.internal."}},
		{name: "PTR of nobody", ask: "200.0.88.127.in-addr.arpa.", kind: miekg.TypePTR, rcode: miekg.RcodeNameError, ns: []string{soaBack}},
		{name: "another type of an address", ask: "2.0.88.127.in-addr.arpa.", kind: miekg.TypeA, ns: []string{soaBack}},
		{name: "PTR of a network", ask: "0.88.127.in-addr.arpa.", kind: miekg.TypePTR, ns: []string{soaBack}},
		{name: "PTR of a network of the node alone", from: closeAddress, ask: "0.88.127.in-addr.arpa.", kind: miekg.TypePTR, ns: []string{soaBack}},
		{name: "PTR of a network of nobody", ask: "9.88.127.in-addr.arpa.", kind: miekg.TypePTR, rcode: miekg.RcodeNameError, ns: []string{soaBack}},
		{name: "PTR of a network of IPv6", ask: "0.0.0." + zoneSix, kind: miekg.TypePTR, ns: []string{soaSix}},
		{name: "PTR of a network of IPv6 of nobody", ask: "2.0.0.0." + zoneSix, kind: miekg.TypePTR, rcode: miekg.RcodeNameError, ns: []string{soaSix}},
		{name: "PTR of a network of IPv6 of another project", from: otherAddress, ask: "0.0.0." + zoneSix, kind: miekg.TypePTR, rcode: miekg.RcodeNameError, ns: []string{soaSix}},
		{name: "PTR of no address", ask: "2.x.88.127.in-addr.arpa.", kind: miekg.TypePTR, rcode: miekg.RcodeNameError, ns: []string{soaBack}},
		{name: "PTR of a number with a zero before it", ask: "02.0.88.127.in-addr.arpa.", kind: miekg.TypePTR, rcode: miekg.RcodeNameError, ns: []string{soaBack}},
		{name: "PTR of too many numbers", ask: "1.2.0.88.127.in-addr.arpa.", kind: miekg.TypePTR, rcode: miekg.RcodeNameError, ns: []string{soaBack}},
		{name: "a name of others", ask: "www.example.org.", kind: miekg.TypeA, rcode: miekg.RcodeRefused, foreign: true},
		{name: "the zone above", ask: "internal.", kind: miekg.TypeA, rcode: miekg.RcodeRefused, foreign: true},
		{name: "the root", ask: ".", kind: miekg.TypeNS, rcode: miekg.RcodeRefused, foreign: true},
		{name: "a name that only ends alike", ask: "xgpu.internal.", kind: miekg.TypeA, rcode: miekg.RcodeRefused, foreign: true},
		{name: "whoever is neither an environment nor allowed", from: aliensAddr, ask: "demo.gpu.internal.", kind: miekg.TypeA, rcode: miekg.RcodeRefused, foreign: true},
		{name: "AXFR", ask: "gpu.internal.", kind: miekg.TypeAXFR, rcode: miekg.RcodeRefused, foreign: true},
	}
	for _, row := range rows {
		for _, network := range []string{"udp", "tcp"} {
			for _, edns := range []bool{false, true} {
				message := question(row.ask, row.kind)
				if edns {
					message.SetEdns0(4096, true)
				}
				from := row.from
				if from == "" {
					from = lanAddress
				}
				reply, err := ask(t, network, from, address, message)
				if from == aliensAddr && network == "tcp" {
					if err == nil {
						t.Errorf("%s has a connection: %v", row.name, reply)
					}
					continue
				}
				if err != nil {
					t.Errorf("%s, %s: %v", row.name, network, err)
					continue
				}
				if reply.Rcode != row.rcode || reply.Truncated || reply.RecursionAvailable || reply.Authoritative == row.foreign || !reply.RecursionDesired {
					t.Errorf("%s, %s: %s, flags %+v", row.name, network, miekg.RcodeToString[reply.Rcode], reply.MsgHdr)
				}
				if reply.Question[0] != message.Question[0] {
					t.Errorf("%s, %s: question %v", row.name, network, reply.Question)
				}
				if opt := reply.IsEdns0(); (opt != nil) != edns || (opt != nil && (opt.UDPSize() != 1232 || !opt.Do() || opt.Version() != 0 || len(opt.Option) > 0)) {
					t.Errorf("%s, %s: EDNS0 %v", row.name, network, opt)
				}
				for section, pair := range map[string][2][]string{
					"answer": {row.answer, records(reply.Answer)}, "authority": {row.ns, records(reply.Ns)}, "additional": {row.extra, records(reply.Extra)},
				} {
					if diff := cmp.Diff(append([]string{}, pair[0]...), pair[1]); diff != "" {
						t.Errorf("%s, %s: %s section (-want +got)\n%s", row.name, network, section, diff)
					}
				}
			}
		}
	}
}
