package network

import (
	"context"
	"errors"
	"fmt"

	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/port"
)

// Restore declares all published mappings at once and repairs the host's
// rules and settings, whoever changed them. A Publish younger than the
// configured grace outweighs the list, which may be older than it. Errors are
// FIREWALL_FAILED and NETWORK_FAILED.
func (n *Networks) Restore(ctx context.Context, published []port.Published) error {
	all := make(map[string][]firewall.Mapping, len(published))
	for _, p := range published {
		all[p.EnvID] = append(all[p.EnvID], toFirewall(p.EnvID, p.Address, p.Mappings)...)
	}
	var errs []error
	if err := n.forward(ctx); err != nil {
		errs = append(errs, failed("restore networks", err))
	}
	if err := n.published.restore(ctx, all); err != nil {
		errs = append(errs, fmt.Errorf("restore published ports: %w", err))
	}
	return errors.Join(errs...)
}
