package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/remotegpu/remotegpu/network/port"
)

// Destination is where connections may go to: addresses, and of those a
// protocol and ports.
type Destination struct {
	Prefix   netip.Prefix  `json:"prefix"`             // without host bits
	Protocol port.Protocol `json:"protocol,omitempty"` // "": all; with ports TCP and UDP
	First    uint16        `json:"first,omitempty"`    // 0: all ports
	Last     uint16        `json:"last,omitempty"`     // included; not below First
}

// Contains tells whether something goes to the destination. A protocol that
// has no ports is "", which only a destination without protocol and ports
// contains.
func (d Destination) Contains(to netip.Addr, protocol port.Protocol, number uint16) bool {
	if !d.Prefix.Contains(to) || d.Protocol != "" && d.Protocol != protocol {
		return false
	}
	return d.First == 0 || protocol != "" && number >= d.First && number <= d.Last
}

// String writes it as ParseDestination reads it.
func (d Destination) String() string {
	text := d.Prefix.String()
	if d.Prefix.IsSingleIP() {
		text = d.Prefix.Addr().String()
	}
	if d.First != 0 && d.Prefix.Addr().Is6() {
		text = "[" + text + "]"
	}
	switch d.First {
	case 0:
	case d.Last:
		text += fmt.Sprintf(":%d", d.First)
	default:
		text += fmt.Sprintf(":%d-%d", d.First, d.Last)
	}
	if d.Protocol != "" {
		text += "/" + string(d.Protocol)
	}
	return text
}

// ParseDestination reads ADDRESS[/BITS][:PORT[-PORT]][/tcp|/udp]. Those of IPv6
// are in brackets when a port follows, as in [2001:db8::/32]:443/tcp.
func ParseDestination(text string) (d Destination, err error) {
	rest := text
	for _, protocol := range []port.Protocol{port.TCP, port.UDP} {
		if before, found := strings.CutSuffix(rest, "/"+string(protocol)); found {
			rest, d.Protocol = before, protocol
		}
	}
	addresses, ports, limited := strings.Cut(rest, ":")
	if bracketed, ok := strings.CutPrefix(rest, "["); ok {
		addresses, ports, limited = strings.Cut(bracketed, "]:")
		if !limited {
			if addresses, ok = strings.CutSuffix(bracketed, "]"); !ok {
				addresses = rest // is refused
			}
		}
	} else if strings.Contains(ports, ":") { // of IPv6, without a port
		addresses, limited = rest, false
	}
	if limited {
		if d.First, d.Last, err = parsePorts(ports); err != nil {
			return Destination{}, fmt.Errorf("destination %q: %w", text, err)
		}
	}
	if d.Prefix, err = ParsePrefix(addresses); err != nil {
		return Destination{}, fmt.Errorf("destination %q: %w", text, err)
	}
	return d, nil
}

func parsePorts(text string) (first, last uint16, err error) {
	low, high, span := strings.Cut(text, "-")
	if !span {
		high = low
	}
	var numbers [2]uint16
	for i, word := range []string{low, high} {
		number, err := strconv.ParseUint(word, 10, 16)
		if err != nil || number == 0 {
			return 0, 0, fmt.Errorf("%q is not a port from 1 to 65535", word)
		}
		numbers[i] = uint16(number)
	}
	if numbers[1] < numbers[0] {
		return 0, 0, fmt.Errorf("ports %s end before they begin", text)
	}
	return numbers[0], numbers[1], nil
}

// ParsePrefix reads an address or network. An address with the length of a
// network is refused, since whoever wrote it meant the one or the other; it is
// returned as it was written.
func ParsePrefix(text string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		address, failed := netip.ParseAddr(text)
		if failed != nil || address.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a network such as 198.51.100.0/24", text)
		}
		prefix = netip.PrefixFrom(address, address.BitLen())
	}
	if port.HoldsIPv4(prefix) {
		return netip.Prefix{}, fmt.Errorf("%q has an address of IPv4 in it: write that", text)
	}
	if prefix != prefix.Masked() {
		return prefix, fmt.Errorf("%q is an address with the length of a network: write %s for the network, %s for the address", text, prefix.Masked(), prefix.Addr())
	}
	return prefix, nil
}

// IsNobodys tells whether no machine has any address of a network, so that
// nothing can be reached there: 0.0.0.0/8 (RFC 1122 section 3.2.1.3),
// 255.255.255.255, and ::.
func IsNobodys(network netip.Prefix) bool {
	return Within([]netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("255.255.255.255/32"), netip.MustParsePrefix("::/128"),
	}, network)
}
