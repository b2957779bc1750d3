package network

import (
	"context"
	"net/netip"
	"time"

	"github.com/remotegpu/remotegpu/network/firewall"
)

// restrict sets one environment's policy and returns the batch to wait for; nil:
// there is nothing to do. It tells whether that, or what is around environments,
// was another one.
func (p *publisher) restrict(ctx context.Context, policy firewall.Policy) (changed bool, b *batch, err error) {
	if err := p.seed(ctx); err != nil {
		return false, nil, err
	}
	inForce, err := p.look(ctx)
	if err != nil {
		return false, nil, err
	}
	defer p.mu.Unlock()
	stale := p.holders(policy.Address, policy.EnvID)
	wanted := p.current[policy.EnvID]
	same := samePolicy(&policy, &wanted.policy)
	if same && len(stale) == 0 && inForce && p.idle() {
		// It is noted, so that an older list does not take it back: an earlier
		// process may have put it in force before it could say so.
		wanted.confirmed = time.Now()
		p.current[policy.EnvID] = wanted
		return false, nil, nil
	}
	changed = !same || !inForce
	b = p.join(ctx)
	for _, envID := range stale {
		former := p.current[envID]
		former.policy, former.at = firewall.Policy{}, time.Now()
		b.change(p, envID, former)
	}
	wanted.policy, wanted.at = policy, time.Now()
	b.change(p, policy.EnvID, wanted)
	return changed, b, nil
}

// surround looks at what is around environments and applies it when that is not
// in force, which it tells. Before a restore it applies nothing.
func (p *publisher) surround(ctx context.Context) (changed bool, err error) {
	inForce, err := p.look(ctx)
	if err != nil {
		return false, err
	}
	// What is being applied may be of before. What failed is tried again by the
	// healer, which tells what it had to mend.
	busy := p.next != nil || p.running
	if !p.restored || inForce && !busy {
		p.mu.Unlock()
		return false, nil
	}
	b := p.join(ctx)
	p.mu.Unlock()
	return !inForce, b.wait(ctx)
}

// enforce sees to it that what is declared, or what an earlier process left, is
// in force with what is around environments now.
func (p *publisher) enforce(ctx context.Context) error {
	if err := p.seed(ctx); err != nil {
		return err
	}
	inForce, err := p.look(ctx)
	if err != nil {
		return err
	}
	if inForce && p.idle() {
		p.mu.Unlock()
		return nil
	}
	b := p.join(ctx)
	p.mu.Unlock()
	return b.wait(ctx)
}

// policies are those in force that differ from the default: as declared, or as
// an earlier process left them while nothing is.
func (p *publisher) policies(ctx context.Context) (all []firewall.Policy, err error) {
	if !p.knows() {
		there, err := p.firewall.Published(ctx)
		return there.Policies, err
	}
	return p.all().Policies, nil
}

// holders are other environments with a policy for an address: they had it
// before, and what took it from them could not say so. The caller holds mu.
func (p *publisher) holders(address netip.Addr, envID string) (others []string) {
	for id, publication := range p.current {
		if id != envID && publication.policy.Address == address && !publication.policy.IsDefault() {
			others = append(others, id)
		}
	}
	return others
}

// lift takes an environment's policy back. It must be able to send nothing.
func (p *publisher) lift(ctx context.Context, envID string) error {
	if err := p.seed(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	wanted := p.current[envID]
	if wanted.policy.IsDefault() && p.idle() {
		p.mu.Unlock()
		return nil
	}
	b := p.join(ctx)
	wanted.policy, wanted.at = firewall.Policy{}, time.Now()
	b.change(p, envID, wanted)
	p.mu.Unlock()
	return b.wait(ctx)
}
