package port

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// SourceLimit is how many sources a mapping may name.
const SourceLimit = 64

// ParseSources reads who may reach a mapping: networks (203.0.113.0/24,
// 2001:db8::/32) and addresses. Of an address family without any nobody may. They come back masked, ascending and none within another, so
// that two lists that mean the same are the same. Those of IPv6
// are refused without six. at is the path of the list in the API request. FIELD_INVALID, for each entry at fault: the caller joins.
func ParseSources(texts []string, at string, six bool) (sources []netip.Prefix, errs []error) {
	if len(texts) > SourceLimit {
		return nil, []error{problem.New(problem.FieldInvalid, "%d sources are more than %d", len(texts), SourceLimit).WithField(at).
			WithHint("name larger networks, or filter in the environment")}
	}
	for i, text := range texts {
		source, err := parseSource(text, six)
		if err != nil {
			errs = append(errs, err.WithField(fmt.Sprintf("%s[%d]", at, i)))
			continue
		}
		sources = append(sources, source)
	}
	return narrowed(sources), errs
}

// linkLocalBits is the length of the network of IPv6 that is link-local
// (RFC 4291 section 2.4).
const linkLocalBits = 10

func parseSource(text string, six bool) (netip.Prefix, *problem.Problem) {
	const like = "write a network such as 203.0.113.0/24 or 2001:db8::/32, an address, or 0.0.0.0/0 and ::/0 for everybody"
	source, err := readSource(text)
	switch {
	case strings.Contains(text, "%"):
		return source, problem.New(problem.FieldInvalid, "source %q has a zone, which no packet has on its way", text).
			WithHint("name an address that is valid beyond a link")
	case err != nil:
		return source, problem.New(problem.FieldInvalid, "source %q is neither a network nor an address", text).WithHint(like)
	case source.Addr().Is6() && !six:
		return source, problem.New(problem.FieldInvalid, "source %q is IPv6, which does not reach environments of this node", text).
			WithHint("name IPv4 networks, or set network.range6 in the node's configuration")
	case source.Addr().Is6() && source.Addr().IsLinkLocalUnicast() && source.Bits() >= linkLocalBits:
		// Nothing that comes from there is forwarded (RFC 4291 section 2.5.6).
		return source, problem.New(problem.FieldInvalid, "source %q is link-local: nobody reaches an environment from there", text).
			WithHint("name addresses that are valid beyond a link")
	case source.Addr().IsUnspecified() && source.IsSingleIP(), source.Addr().IsMulticast():
		return source, problem.New(problem.FieldInvalid, "source %q is no machine's address", text).WithHint(like)
	case HoldsIPv4(source):
		return source, problem.New(problem.FieldInvalid, "source %q has an address of IPv4 in it", text).WithHint("write that")
	case source != source.Masked():
		// Whoever wrote it meant the one or the other.
		return source, problem.New(problem.FieldInvalid, "source %q is an address with the length of a network", text).
			WithHint("write %s for the network, %s for the address", source.Masked(), source.Addr())
	}
	return source, nil
}

// readSource reads a network, or an address as a network of one.
func readSource(text string) (netip.Prefix, error) {
	if address, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(address.WithZone(""), address.BitLen()), nil
	}
	return netip.ParsePrefix(text)
}

// keptSources are the sources of a request that was checked once. What would be
// refused today stays in the list: without its only source a mapping would be
// everybody's.
func keptSources(texts []string) []netip.Prefix {
	var sources []netip.Prefix
	for _, text := range texts {
		if source, err := readSource(text); err == nil {
			sources = append(sources, source)
		}
	}
	return narrowed(sources)
}

// narrowed sorts networks and leaves out those within another.
func narrowed(sources []netip.Prefix) []netip.Prefix {
	slices.SortFunc(sources, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var kept []netip.Prefix
	for _, source := range sources {
		if len(kept) == 0 || !kept[len(kept)-1].Overlaps(source) { // a wider one comes first
			kept = append(kept, source)
		}
	}
	return kept
}

// Everybody says that a list of sources leaves nobody out, of those who have
// addresses of the families there are: IPv6 with six.
func Everybody(sources []netip.Prefix, six bool) bool {
	all := func(is6 bool) bool {
		return slices.ContainsFunc(sources, func(p netip.Prefix) bool { return p.Bits() == 0 && p.Addr().Is6() == is6 })
	}
	return all(false) && (!six || all(true))
}

// Reach is from where a mapping is reached. The host itself and the environment
// always reach it.
type Reach string

// How far mappings are reached.
const (
	FromEverywhere Reach = "everybody"
	FromSources    Reach = "sources"
	FromNode       Reach = "node" // the host and environments of the node only
	FromNowhere    Reach = "nowhere"
)

// Reach tells from where a mapping is reached, by its sources or, where it has
// none, by the node's default.
func (p *Pool) Reach(m *Mapping) Reach {
	switch {
	case m.Status == Released:
		return FromNowhere
	case len(m.Sources) == 0 && p.cfg.ClosedByDefault:
		return FromNode
	case len(m.Sources) == 0, Everybody(m.Sources, p.cfg.IPv6):
		return FromEverywhere
	}
	return FromSources
}

// reachThen is from where a mapping with these sources was reached at a time that
// may be over; "" where the node's default of then decided, which nobody knows.
func (p *Pool) reachThen(sources []netip.Prefix) Reach {
	switch {
	case len(sources) == 0:
		return ""
	case Everybody(sources, p.cfg.IPv6):
		return FromEverywhere
	}
	return FromSources
}

// HoldsIPv4 tells whether an address or network of IPv6 is of those that stand
// for IPv4 (RFC 4291 section 2.5.5), which no packet on the wire has.
func HoldsIPv4(prefix netip.Prefix) bool {
	address := prefix.Addr()
	if !address.Is6() || address.IsLoopback() || address.IsUnspecified() {
		return false
	}
	const ahead = 12 // bytes before the address of IPv4
	bytes := address.As16()
	return address.Is4In6() || prefix.Bits() > 8*ahead && [ahead]byte(bytes[:ahead]) == [ahead]byte{}
}
