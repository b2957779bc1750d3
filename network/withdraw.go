package network

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/remotegpu/remotegpu/internal/cleanup"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/port"
)

// Withdraw makes some mappings of an environment unreachable, ends their
// connections, and publishes nothing: unlike Publish of the others it may be
// called while somebody else publishes or withdraws the environment's ports.
// FIREWALL_FAILED.
func (n *Networks) Withdraw(ctx context.Context, envID string, mappings []port.Mapping) error {
	if err := check(envID); err != nil {
		return err
	}
	before, after, err := n.published.without(ctx, envID, mappings)
	if err != nil {
		return fmt.Errorf("withdraw ports of environment %s: %w", envID, err)
	}
	n.endWithdrawn(ctx, before, after)
	return nil
}

// endWithdrawn ends, in the background, the connections through mappings that
// are not published any more.
func (n *Networks) endWithdrawn(ctx context.Context, before, after []firewall.Mapping) {
	removed := n.withdrawn(without(before, after), after)
	if removed == nil {
		return
	}
	n.background.Go(func() {
		ctx, cancel := cleanup.Context(ctx)
		defer cancel()
		n.forgetter.later(removed, func(which ...flows) { n.forget(ctx, which...) })
	})
}

// without publishes what an environment publishes but for some mappings, and
// waits until that is applied.
func (p *publisher) without(ctx context.Context, envID string, dropped []port.Mapping) (before, after []firewall.Mapping, err error) {
	if err := p.seed(ctx); err != nil {
		return nil, nil, err
	}
	p.mu.Lock()
	wanted := p.current[envID]
	before = wanted.mappings
	after = slices.DeleteFunc(slices.Clone(before), func(m firewall.Mapping) bool {
		return slices.ContainsFunc(dropped, func(d port.Mapping) bool { return d.Protocol == m.Protocol && d.External == m.HostPort })
	})
	if len(after) == len(before) && p.idle() {
		p.mu.Unlock()
		return before, before, nil
	}
	b := p.join(ctx)
	wanted.mappings, wanted.at = after, time.Now()
	b.change(p, envID, wanted)
	p.mu.Unlock()
	return before, after, b.wait(ctx)
}
