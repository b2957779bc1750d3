package firewall

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/network/port"
)

// Mappings that only the host and environments reach are in a tree of their
// own below the chain -NEAR, which packets of these alone get to: so such a
// mapping is one rule of a leaf as any other. One with a list of sources has a
// chain of its own for them, so that a long list costs who asks for that port
// and nobody else.
const (
	nearMark   = "N" // in the names of chains of the tree below -NEAR
	sourceMark = "S" // in the names of chains of one mapping's sources
)

// renderPublished renders the trees of chains that lead to environments.
func (f *Firewall) renderPublished(desired Desired) (chains, error) {
	mappings := slices.SortedFunc(slices.Values(desired.Mappings), func(a, b Mapping) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.HostPort, b.HostPort))
	})
	root, near := f.cfg.Prefix+"-DNAT", f.cfg.Prefix+"-NEAR"
	nat := chains{root: nil}
	var last Mapping
	for _, m := range mappings {
		if err := f.check(m); err != nil {
			return nil, err
		}
		if m.Protocol == last.Protocol && m.HostPort == last.HostPort {
			return nil, fmt.Errorf("publish %s port %d of environments %s and %s: %w",
				m.Protocol, m.HostPort, last.EnvID, m.EnvID, errdefs.ErrAlreadyExists)
		}
		last = m
		switch {
		case m.Inside:
			leaf := f.leaf(nat, near, nearMark, m)
			nat[leaf] = append(nat[leaf], f.translate(leaf, "", "", m))
		case len(m.Sources) > 0:
			leaf := f.leaf(nat, root, "", m)
			own := fmt.Sprintf("%s-%s-%s%d", f.cfg.Prefix, kindOf(m), sourceMark, m.HostPort)
			nat[leaf] = append(nat[leaf], fmt.Sprintf("-A %s -p %s -m %s --dport %d -j %s", leaf, m.Protocol, m.Protocol, m.HostPort, own))
			nat[own] = f.renderSources(own, m)
		default:
			leaf := f.leaf(nat, root, "", m)
			nat[leaf] = append(nat[leaf], f.translate(leaf, "", "", m))
		}
	}
	if _, ok := nat[near]; ok {
		// An address of an environment counts only where environments are, or a
		// neighbour could send datagrams in its name.
		nat[root] = append(nat[root],
			fmt.Sprintf("-A %s -s %s -i %s+ -j %s", root, f.cfg.Subnet, f.cfg.Interface, near),
			fmt.Sprintf("-A %s -m addrtype --src-type LOCAL -j %s", root, near))
	}
	return nat, nil
}

// renderSources renders the chain of a mapping that not everybody reaches. Who
// matches none of its rules meets the host itself, as on any port that is not
// published.
func (f *Firewall) renderSources(chain string, m Mapping) []string {
	rules := make([]string, 0, len(m.Sources)+2)
	for _, source := range m.Sources {
		rules = append(rules, f.translate(chain, fmt.Sprintf("-s %s ", source), "", m))
	}
	return append(rules,
		f.translate(chain, fmt.Sprintf("-s %s/32 -i %s+ ", m.To.Addr(), f.cfg.Interface), "", m),
		f.translate(chain, "", "-m addrtype --src-type LOCAL ", m))
}

// leaf is the chain of a mapping's block of ports in the tree below root, which
// gets the chains that lead there.
func (f *Firewall) leaf(nat chains, root, mark string, m Mapping) string {
	above := root
	for _, level := range levels() {
		first := int(m.HostPort) / level.size * level.size
		chain := fmt.Sprintf("%s-%s-%s%s%d", f.cfg.Prefix, kindOf(m), mark, level.mark, first)
		if _, ok := nat[chain]; !ok {
			nat[above] = append(nat[above], dispatch(above, m.Protocol, first, level.size, chain))
			nat[chain] = nil
		}
		above = chain
	}
	return above
}

// translate is the rule that leads to the environment, for what before and
// after the port let through.
func (f *Firewall) translate(chain, before, after string, m Mapping) string {
	return fmt.Sprintf("-A %s %s-p %s -m %s --dport %d %s%s -j DNAT --to-destination %s",
		chain, before, m.Protocol, m.Protocol, m.HostPort, after, f.owned(m.EnvID, word(string(m.Service))), m.To)
}

func kindOf(m Mapping) string { return strings.ToUpper(string(m.Protocol)) }

func (f *Firewall) check(m Mapping) error {
	if m.Protocol != port.TCP && m.Protocol != port.UDP {
		return fmt.Errorf("publish port %d of environment %s: protocol %q: %w", m.HostPort, m.EnvID, m.Protocol, errdefs.ErrInvalidArgument)
	}
	if m.HostPort == 0 || m.To.Port() == 0 || !f.cfg.Subnet.Contains(m.To.Addr()) {
		return fmt.Errorf("publish %s port %d of environment %s to %s, which is not in %s: %w",
			m.Protocol, m.HostPort, m.EnvID, m.To, f.cfg.Subnet, errdefs.ErrInvalidArgument)
	}
	var last netip.Prefix
	for _, source := range m.Sources {
		// iptables would print another text than we render for these.
		if !source.Addr().Is4() || source.Bits() < 1 || source != source.Masked() || source == last || m.Inside {
			return fmt.Errorf("publish %s port %d of environment %s for %s: %w", m.Protocol, m.HostPort, m.EnvID, source, errdefs.ErrInvalidArgument)
		}
		last = source
	}
	return nil
}
