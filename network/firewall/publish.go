package firewall

import (
	"fmt"
	"net/netip"
	"strconv"

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

// portKinds are protocols in the names of chains.
var portKinds = [len(portProtocols)]string{"TCP", "UDP"} //nolint:gochecknoglobals // a constant but for its type

// renderListed renders the chain of a mapping that not everybody reaches. Who
// matches none of its rules meets the host itself, as on any port that is not
// published.
func (l *layout) renderListed(chain string, m Mapping) []string {
	sources, _ := l.sources(&m)
	rules := make([]string, 0, len(sources)+2)
	for _, source := range sources {
		rules = append(rules, l.translate(chain, fmt.Sprintf("-s %s ", source), "", m))
	}
	return append(rules,
		l.translate(chain, fmt.Sprintf("-s %s -i %s ", l.host(m.To.Addr()), l.bridges()), "", m),
		l.translate(chain, "", "-m addrtype --src-type LOCAL ", m))
}

// translate is the rule that leads to the environment, for what before and
// after the port let through.
func (l *layout) translate(chain, before, after string, m Mapping) string {
	// Put together by hand: there are ten thousand of them.
	protocol := string(m.Protocol)
	return "-A " + chain + " " + before + "-p " + protocol + " -m " + protocol + " --dport " + strconv.Itoa(int(m.HostPort)) + " " + after +
		l.owned(m.EnvID, word(string(m.Service))) + " -j DNAT --to-destination " + netip.AddrPortFrom(l.address(m.To.Addr()), m.To.Port()).String()
}

func (l *layout) check(m Mapping) error {
	if m.Protocol != port.TCP && m.Protocol != port.UDP {
		return fmt.Errorf("publish port %d of environment %s: protocol %q: %w", m.HostPort, m.EnvID, m.Protocol, errdefs.ErrInvalidArgument)
	}
	if m.HostPort == 0 || m.To.Port() == 0 || !l.subnet.Contains(m.To.Addr()) {
		return fmt.Errorf("publish %s port %d of environment %s to %s, which is not in %s: %w",
			m.Protocol, m.HostPort, m.EnvID, m.To, l.subnet, errdefs.ErrInvalidArgument)
	}
	var last netip.Prefix
	for _, source := range m.Sources {
		// iptables would print another text than we render for these.
		if !l.knows(source) || source == last || m.Inside {
			return fmt.Errorf("publish %s port %d of environment %s for %s: %w", m.Protocol, m.HostPort, m.EnvID, source, errdefs.ErrInvalidArgument)
		}
		last = source
	}
	return nil
}
