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
	// Also of those that an earlier daemon published, or a restore left out.
	end := func(ctx context.Context) { n.end(ctx, n.throughAny(mappings)) }
	b, err := n.published.without(ctx, envID, mappings)
	switch {
	case err == nil && b == nil:
		end(ctx)
	case err == nil:
		err = n.await(ctx, b, end)
	}
	if err != nil {
		return fmt.Errorf("withdraw ports of environment %s: %w", envID, err)
	}
	return nil
}

// endWithdrawn ends, in the background, the connections through mappings that
// are not published any more.
func (n *Networks) endWithdrawn(ctx context.Context, before, after []firewall.Mapping) {
	if removed := n.withdrawn(without(before, after), after); removed != nil {
		n.end(ctx, removed)
	}
}

// end ends connections in the background.
func (n *Networks) end(ctx context.Context, removed flows) {
	n.background.Go(func() {
		ctx, cancel := cleanup.Context(ctx)
		defer cancel()
		n.forgetter.later(removed, func(which ...flows) { n.forget(ctx, which...) })
	})
}

// without publishes what an environment publishes but for some mappings, and
// returns the batch to wait for; nil: there is nothing to do.
func (p *publisher) without(ctx context.Context, envID string, dropped []port.Mapping) (*batch, error) {
	if err := p.seed(ctx); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	wanted := p.current[envID]
	left := slices.DeleteFunc(slices.Clone(wanted.mappings), func(m firewall.Mapping) bool {
		return slices.ContainsFunc(dropped, func(d port.Mapping) bool { return d.Protocol == m.Protocol && d.External == m.HostPort })
	})
	if len(left) == len(wanted.mappings) && p.idle() {
		return nil, nil //nolint:nilnil // absence is an answer here
	}
	b := p.join(ctx)
	wanted.mappings, wanted.at = left, time.Now()
	b.change(p, envID, wanted)
	return b, nil
}
