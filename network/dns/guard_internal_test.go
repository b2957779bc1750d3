package dns

import (
	"net/netip"
	"testing"

	miekg "github.com/miekg/dns"
)

// White-box: what is inside is seen from outside by one answer each.
func TestInside(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"10.1.2.3": true, "192.0.2.1": false, "::10.1.2.3": true, "64:ff9b::10.1.2.3": true, "64:ff9b::192.0.2.1": false, "64:ff9b:1::1": true,
		"2002:a01:203::1": true, "2001::1": true, "2001:db8::1": false, "2003::1": false, "fd00::1": true,
	} {
		if got := isInside(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s is inside: %v", text, got)
		}
	}
	for name, want := range map[string]bool{
		"10.in-addr.arpa.": true, "1.10.in-addr.arpa.": true, "192.in-addr.arpa.": false, "1.0.0.2.ip6.arpa.": false, "0.0.0.0.1.0.0.2.ip6.arpa.": true,
		"8.b.d.0.1.0.0.2.ip6.arpa.": false, "2.0.0.2.ip6.arpa.": true, "2.ip6.arpa.": false, "d.f.ip6.arpa.": true,
	} {
		if _, got := local(name, Question{Name: name, Type: miekg.TypePTR}, false); got != want {
			t.Errorf("%s is never asked of others: %v", name, got)
		}
	}
}
