package port

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// SourceLimit is how many sources a mapping may name.
const SourceLimit = 64

// ParseSources reads who may reach a mapping: IPv4 networks (203.0.113.0/24)
// and addresses. They come back masked, ascending and none within another, so
// that two lists that mean the same are the same. at is the path of the list in
// the API request. FIELD_INVALID, for each entry at fault: the caller joins.
func ParseSources(texts []string, at string) (sources []netip.Prefix, errs []error) {
	if len(texts) > SourceLimit {
		return nil, []error{problem.New(problem.FieldInvalid, "%d sources are more than %d", len(texts), SourceLimit).WithField(at).
			WithHint("name larger networks, or filter in the environment")}
	}
	for i, text := range texts {
		source, err := parseSource(text)
		if err != nil {
			errs = append(errs, err.WithField(fmt.Sprintf("%s[%d]", at, i)))
			continue
		}
		sources = append(sources, source)
	}
	return narrowed(sources), errs
}

func parseSource(text string) (netip.Prefix, *problem.Problem) {
	const like = "write an IPv4 network such as 203.0.113.0/24, an address, or 0.0.0.0/0 for everybody"
	source, err := netip.ParsePrefix(text)
	if address, addressErr := netip.ParseAddr(text); addressErr == nil {
		source, err = netip.PrefixFrom(address.WithZone(""), address.BitLen()), nil
	}
	switch {
	case err != nil:
		return source, problem.New(problem.FieldInvalid, "source %q is neither a network nor an address", text).WithHint(like)
	case !source.Addr().Is4():
		return source, problem.New(problem.FieldInvalid, "source %q is IPv6, which does not reach environments yet", text).WithHint(like)
	case source != source.Masked():
		// Whoever wrote it meant the one or the other.
		return source, problem.New(problem.FieldInvalid, "source %q is an address with the length of a network", text).
			WithHint("write %s for the network, %s for the address", source.Masked(), source.Addr())
	}
	return source, nil
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

// Everybody says that a list of sources leaves nobody out.
func Everybody(sources []netip.Prefix) bool {
	return len(sources) == 1 && sources[0].Bits() == 0
}
