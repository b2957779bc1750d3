package dns

import (
	"net/netip"
	"strings"

	miekg "github.com/miekg/dns"
)

// insideNetworks are addresses that no public name should lead to, besides
// those that net/netip knows: private ones, loopback, link-local, those that
// stand for them in IPv6.
var insideNetworks = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),  // carriers' NAT, and clouds' metadata
	netip.MustParsePrefix("192.0.0.192/32"), // clouds' metadata; the answer to ipv4only.arpa is beside it (RFC 7050)
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("fec0::/10"),
	// In these are addresses of IPv4 (policy.Closed), which need not be public.
	netip.MustParsePrefix("::/8"),
	netip.MustParsePrefix("2001::/32"),
	netip.MustParsePrefix("2002::/16"),
}

// guard is what answers about public names must not lead to, besides addresses
// that are private wherever they are.
type guard struct {
	site []netip.Prefix
}

// isInside says whether an address is of a network of its own, or in one of the
// site's.
func isInside(address netip.Addr, site ...netip.Prefix) bool {
	address = address.Unmap()
	if address.Is6() {
		bytes := address.As16()
		// 64:ff9b::/96 is translated to the IPv4 address at its end, where the
		// host's network has IPv6 alone.
		if strings.HasPrefix(string(bytes[:]), "\x00\x64\xff\x9b\x00\x00\x00\x00\x00\x00\x00\x00") {
			return isInside(netip.AddrFrom4([4]byte(bytes[12:])), site...)
		}
	}
	if address.IsPrivate() || address.IsLoopback() || address.IsLinkLocalUnicast() || address.IsUnspecified() || address.IsMulticast() {
		return true
	}
	for _, network := range insideNetworks {
		if network.Contains(address) {
			return true
		}
	}
	for _, network := range site {
		if network.Contains(address) {
			return true
		}
	}
	return false
}

// leadsInside says whether a record leads to an address that is inside.
func leadsInside(rr miekg.RR, site []netip.Prefix) bool {
	switch rr := rr.(type) {
	case *miekg.A:
		address, ok := netip.AddrFromSlice(rr.A)
		return !ok || isInside(address, site...)
	case *miekg.AAAA:
		address, ok := netip.AddrFromSlice(rr.AAAA)
		return !ok || isInside(address, site...)
	case *miekg.HTTPS:
		return hintsInside(rr.Value, site)
	case *miekg.SVCB:
		return hintsInside(rr.Value, site)
	}
	return false
}

// hintsInside looks at the addresses that services are to be found at.
func hintsInside(values []miekg.SVCBKeyValue, site []netip.Prefix) bool {
	for _, value := range values {
		if key := value.Key(); key != miekg.SVCB_IPV4HINT && key != miekg.SVCB_IPV6HINT {
			continue
		}
		for text := range strings.SplitSeq(value.String(), ",") {
			if address, err := netip.ParseAddr(text); err != nil || isInside(address, site...) {
				return true
			}
		}
	}
	return false
}

// homeDomain is for networks of homes. It is the one domain of more than one
// label that is not forwarded itself.
const homeDomain = "home.arpa."

// neverForwarded are domains that nobody else could know anything of: RFC 6761,
// RFC 6762 section 22.1, RFC 7686, RFC 8375 section 4, and .internal of ICANN.
var neverForwarded = []string{"internal.", "invalid.", "local.", "onion.", homeDomain}

// local answers what is never asked of others: names that are private, unless
// the site has them; reverse names of private addresses; names of one label,
// but for what validating resolvers ask of top-level domains; localhost.
func local(name string, q Question, private bool) (answer Answer, ours bool) {
	if name == "localhost." || strings.HasSuffix(name, ".localhost.") { // RFC 6761 section 6.3
		answer := Answer{}
		header := miekg.RR_Header{Name: q.Name, Rrtype: q.Type, Class: miekg.ClassINET, Ttl: zoneTTL}
		switch q.Type {
		case miekg.TypeA:
			answer.Answer = []miekg.RR{&miekg.A{Hdr: header, A: []byte{127, 0, 0, 1}}}
		case miekg.TypeAAAA:
			loopback := netip.IPv6Loopback().As16()
			answer.Answer = []miekg.RR{&miekg.AAAA{Hdr: header, AAAA: loopback[:]}}
		}
		return answer, true
	}
	if private || name == "." {
		return Answer{}, false
	}
	missing := Answer{Rcode: miekg.RcodeNameError}
	if strings.Count(name, ".") == 1 || name == homeDomain {
		switch q.Type {
		case miekg.TypeNS, miekg.TypeDS, miekg.TypeDNSKEY, miekg.TypeSOA:
			return Answer{}, false
		}
		return missing, true
	}
	for _, domain := range neverForwarded {
		if strings.HasSuffix(name, "."+domain) {
			return missing, true
		}
	}
	var reverse query
	reverse.set(toWire(name))
	if strings.HasSuffix(name, ".in-addr.arpa.") || strings.HasSuffix(name, ".ip6.arpa.") {
		// The name of a network, too: it is private when its first address and
		// its last are. That of 2001::/16 is not, though 2001::/32 is.
		if network, ok := reverse.reversed(); ok && isInside(network.Addr()) && isInside(lastOf(network)) {
			return missing, true
		}
	}
	return Answer{}, false
}

// lastOf is the last address of a network.
func lastOf(network netip.Prefix) netip.Addr {
	bytes, bits := network.Addr().AsSlice(), network.Bits()
	for i := range bytes {
		switch kept := bits - 8*i; {
		case kept <= 0:
			bytes[i] = 0xff
		case kept < 8:
			bytes[i] |= 0xff >> kept
		}
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last
}
