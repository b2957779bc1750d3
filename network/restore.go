package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

// Restore declares all published mappings and policies at once and repairs the
// host's rules and settings, whoever changed them. A Publish or SetPolicy
// younger than the configured grace outweighs the lists, which may be older
// than it. Errors are FIREWALL_FAILED and NETWORK_FAILED.
func (n *Networks) Restore(ctx context.Context, published []port.Published, policies []policy.Declared) error {
	defer n.stirs.happened()
	known, began := n.published.knows(), time.Now() // before anything declares what is there
	var errs []error
	if _, err := n.forward4.switchOn(ctx); err != nil {
		errs = append(errs, failed("restore networks", err))
	}
	if !n.wants6() {
		if err := n.forward6.switchOff(ctx); err != nil { // of a daemon that had it
			errs = append(errs, failed("restore networks", err))
		}
	}
	if len(published) > 0 { // before a port leads into the range
		if err := n.ensureRange4(); err != nil {
			errs = append(errs, failed("restore networks", err))
		}
	}
	n.heldBefore(published, policies)
	listed := sync.OnceValues(ours)
	links, err := listed()
	if err != nil {
		errs = append(errs, failed("restore networks", err))
	}
	settings, err := n.mendBridges(links)
	if err != nil {
		errs = append(errs, failed("restore networks", err))
	}
	all, err := n.wanted(ctx, published, policies, listed)
	var closes bool
	var mended []string
	if err == nil {
		closes, mended, err = n.published.restore(ctx, all)
	}
	n.healer.failed(err)
	if err != nil {
		errs = append(errs, fmt.Errorf("restore published ports and policies: %w", err))
	} else if closes {
		n.endRefused(ctx)
	}
	if err == nil { // an address comes after the rules for it
		n.restored.Store(true)
		more, err := n.mendNetworks(ctx)
		settings = append(settings, more...)
		if err != nil {
			errs = append(errs, failed("restore networks", err))
		}
	}
	errs = append(errs, n.restoreBandwidth(ctx, policies, links), n.reserveAgain(ctx))
	mended = append(settings, mended...)
	switch {
	case len(mended) > 0 && known:
		n.healer.note(ctx, Repair{At: time.Now(), What: mended, Took: time.Since(began)})
	case len(mended) > 0:
		n.cfg.Log.InfoContext(ctx, "firewall brought in order", "what", mended)
	}
	if !known { // what began before the daemon, or one that died before it did this
		n.forgetStrayed(ctx)
	}
	return errors.Join(errs...)
}

// wanted is what each environment publishes and may reach: what the lists say,
// and of networks that are there and in no list, as after a loss of the
// database, the policy that is in force. Its processes may still run. links lists ours.
func (n *Networks) wanted(ctx context.Context, published []port.Published, policies []policy.Declared, links func() ([]hostLink, error)) (map[string]publication, error) {
	all := n.gather(published, policies)
	inForce, err := n.published.policies(ctx)
	if err != nil {
		return nil, fmt.Errorf("read policies: %w", err)
	}
	if len(inForce) == 0 {
		return all, nil
	}
	listed, err := links()
	if err != nil {
		return nil, err
	}
	attached, err := n.attachedWith(listed)
	if err != nil {
		return nil, err
	}
	held := make(map[netip.Addr]bool, len(policies))
	for i := range policies {
		held[policies[i].Address] = true
	}
	for _, rules := range inForce {
		if _, listed := all[rules.EnvID]; !listed && slices.Contains(attached, rules.EnvID) && !held[rules.Address] {
			all[rules.EnvID] = publication{policy: rules}
		}
	}
	return all, nil
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
		one.policy = n.toPolicy(&policies[i])
		all[policies[i].EnvID] = one
	}
	return all
}
