package node

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"github.com/remotegpu/remotegpu/internal/config"
	"github.com/remotegpu/remotegpu/network"
)

// rules6 are rules of IPv6 that failed.
type rules6 struct {
	network.Firewall
	failure error
}

func (r *rules6) IPv6() error { return r.failure }

// White-box: where names lead is else seen of a whole node alone. They lead to
// IPv6 only while environments are published by it.
func TestNamesLeadToIPv6(t *testing.T) {
	t.Parallel()
	addresses, range6, public := netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("fd88::/48"), netip.MustParseAddr("2001:db8::5")
	for _, failure := range []error{nil, errors.New("no rules")} {
		n, err := newNames(config.Default().DNS, public.String(), addresses, range6, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if n.networks, err = network.New(network.Config{Range: addresses, Range6: range6, Firewall: &rules6{failure: failure}}); err != nil {
			t.Fatal(err)
		}
		if got := n.addressesOfHost(); slices.Contains(got, public) != (failure == nil) {
			t.Errorf("with %v names lead to %v", failure, got)
		}
	}
}
