package network

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

// Restore declares all published mappings and policies at once and repairs the
// host's rules and settings, whoever changed them. A Publish or SetPolicy
// younger than the configured grace outweighs the lists, which may be older
// than it. Errors are FIREWALL_FAILED and NETWORK_FAILED.
func (n *Networks) Restore(ctx context.Context, published []port.Published, policies []policy.Declared) error {
	var errs []error
	if err := n.forward(ctx); err != nil {
		errs = append(errs, failed("restore networks", err))
	}
	known, began := n.published.knows(), time.Now()
	settings, err := n.routeLocal()
	if err != nil {
		errs = append(errs, failed("restore networks", err))
	}
	closes, mended, err := n.published.restore(ctx, n.gather(published, policies))
	n.healer.failed(err)
	if err != nil {
		errs = append(errs, fmt.Errorf("restore published ports and policies: %w", err))
	} else if closes {
		n.endRefused(ctx)
	}
	for i := range policies {
		if err := n.restoreBandwidth(ctx, &policies[i]); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, n.reserveAgain(ctx))
	mended = append(settings, mended...)
	switch {
	case len(mended) > 0 && known:
		n.healer.note(ctx, Repair{At: time.Now(), What: mended, Took: time.Since(began)})
	case len(mended) > 0:
		n.cfg.Log.InfoContext(ctx, "firewall brought in order", "what", mended)
	}
	return errors.Join(errs...)
}

// gather is what each environment publishes and may reach.
func (n *Networks) gather(published []port.Published, policies []policy.Declared) map[string]publication {
	all := make(map[string]publication, max(len(published), len(policies)))
	for _, p := range published {
		one := all[p.EnvID]
		one.mappings = append(one.mappings, n.toFirewall(p.EnvID, p.Address, p.Mappings)...)
		all[p.EnvID] = one
	}
	for i := range policies {
		one := all[policies[i].EnvID]
		one.policy = toPolicy(&policies[i])
		all[policies[i].EnvID] = one
	}
	return all
}
