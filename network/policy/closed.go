package policy

import (
	"net/netip"
	"slices"
)

// Closed are the networks that are nobody's on the internet and somebody's
// around the host: environments that are Open do not reach them. To these the
// node adds the networks that the host has addresses in.
func Closed() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"),       // RFC 1918
		netip.MustParsePrefix("100.64.0.0/10"),    // RFC 6598: carriers, overlays; Alibaba Cloud's metadata
		netip.MustParsePrefix("168.63.129.16/32"), // Azure's WireServer, which hands out a machine's secrets
		netip.MustParsePrefix("169.254.0.0/16"),   // RFC 3927; the metadata of most clouds
		netip.MustParsePrefix("172.16.0.0/12"),    // RFC 1918
		netip.MustParsePrefix("192.0.0.0/24"),     // RFC 6890: protocols of networks; the metadata of Oracle Cloud Classic
		netip.MustParsePrefix("192.88.99.0/24"),   // RFC 7526: former relays of 6to4
		netip.MustParsePrefix("192.168.0.0/16"),   // RFC 1918
		netip.MustParsePrefix("198.18.0.0/15"),    // RFC 2544: test networks, and some overlays
		netip.MustParsePrefix("240.0.0.0/4"),      // RFC 1112: reserved, and used as private by some
		// In these are addresses of IPv4, which has rules of its own: RFC 4291
		// section 2.5.5, RFC 6052 (64:ff9b::/96), RFC 4380, RFC 3056.
		netip.MustParsePrefix("::/8"),
		netip.MustParsePrefix("2001::/32"),
		netip.MustParsePrefix("2002::/16"),
		netip.MustParsePrefix("fc00::/7"),  // RFC 4193; the metadata of clouds
		netip.MustParsePrefix("fe80::/10"), // RFC 4291 section 2.5.6
		netip.MustParsePrefix("fec0::/10"), // RFC 3879
	}
}

// Metadata are where clouds hand a machine's credentials to whoever asks from
// it. No environment's policy opens them: the node's configuration does.
func Metadata() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("100.100.100.200/32"),
		netip.MustParsePrefix("168.63.129.16/32"),
		netip.MustParsePrefix("169.254.0.0/16"),
		netip.MustParsePrefix("192.0.0.192/32"),         // Oracle Cloud Classic
		netip.MustParsePrefix("fd00:42::42/128"),        // Scaleway
		netip.MustParsePrefix("fd00:c1::a9fe:a9fe/128"), // Oracle Cloud
		netip.MustParsePrefix("fd00:ec2::/32"),          // AWS: ::254 metadata, ::23 EKS Pod Identity, ::253 names
		netip.MustParsePrefix("fd20:ce::254/128"),       // Google Cloud
	}
}

// Within tells whether one of the networks holds all of a prefix.
func Within(networks []netip.Prefix, prefix netip.Prefix) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool {
		return n.Bits() <= prefix.Bits() && n.Contains(prefix.Addr())
	})
}

// IsMetadata tells whether all of a network belongs to Metadata.
func IsMetadata(prefix netip.Prefix) bool { return Within(Metadata(), prefix) }
