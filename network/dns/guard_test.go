package dns_test

import (
	"net/netip"
	"testing"

	miekg "github.com/miekg/dns"

	"github.com/remotegpu/remotegpu/network/dns"
)

// TestGuardOfTheSite: public names do not lead into networks that the host is in
// or that environments have, whatever was kept before the host was in them; names
// of the site do.
func TestGuardOfTheSite(t *testing.T) {
	t.Parallel()
	server := upstream(t, func(w miekg.ResponseWriter, request *miekg.Msg) {
		name := request.Question[0].Name
		switch request.Question[0].Qtype {
		case miekg.TypeAAAA:
			answerWith(name+" 60 IN AAAA 2001:db8:8::2", name+" 60 IN AAAA 64:ff9b::c000:207", name+" 60 IN AAAA 2001:db9::1")(w, request)
		case miekg.TypeHTTPS:
			answerWith(name+` 60 IN HTTPS 1 . ipv6hint="2001:db8:8::2"`)(w, request)
		default:
			answerWith(name+" 60 IN A 192.0.2.7", name+" 60 IN A 198.51.100.9")(w, request)
		}
	})
	forwarder, _ := forwarding(t, nil, server)
	count := func(name string, kind uint16) int {
		return len(forwarder.Resolve(t.Context(), dns.Question{Name: name, Type: kind}).Answer)
	}
	site := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:8::/48")}
	for _, step := range []struct {
		what           string
		site           []netip.Prefix
		a, aaaa, https int
	}{
		{"before", nil, 2, 3, 1}, {"in other networks", site, 1, 1, 0}, {"still", site, 1, 1, 0}, {"out of them", nil, 2, 3, 1},
	} {
		forwarder.Guard(step.site)
		for range 2 { // the second is kept
			a, aaaa, https := count("www.example.org.", miekg.TypeA), count("www.example.org.", miekg.TypeAAAA), count("www.example.org.", miekg.TypeHTTPS)
			if a != step.a || aaaa != step.aaaa || https != step.https {
				t.Errorf("%s: %d, %d and %d records, want %d, %d and %d", step.what, a, aaaa, https, step.a, step.aaaa, step.https)
			}
			if a := count("www.site.example.", miekg.TypeA); a != 2 {
				t.Errorf("%s: %d records of the site, want 2", step.what, a)
			}
		}
	}
}
