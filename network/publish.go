package network

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/internal/cleanup"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/port"
)

// Publish makes the mappings of one environment reachable, replacing those it
// had; none withdraws them. Calls that arrive while rules are being applied
// are applied together. After FIREWALL_FAILED what the call opens is not
// published, and what it withdraws or narrows is as soon as rules can be changed
// again. When ctx ends the change is applied all the same; a following call, or
// Detach, waits for that.
func (n *Networks) Publish(ctx context.Context, envID string, address netip.Addr, mappings []port.Mapping) error {
	if err := check(envID); err != nil {
		return err
	}
	after := n.toFirewall(envID, address, mappings)
	before, b, err := n.published.publish(ctx, envID, after)
	if err == nil && b != nil {
		err = n.await(ctx, b, func(ctx context.Context) {
			if stale := n.staleUDP(without(after, before), localAddresses); stale != nil {
				n.forget(ctx, stale)
			}
			n.endWithdrawn(ctx, before, after)
		})
	}
	if err != nil {
		return fmt.Errorf("publish ports of environment %s: %w", envID, err)
	}
	return nil
}

// await waits until a batch is applied and does what comes after that. When ctx
// ends before, it is done in the background.
func (n *Networks) await(ctx context.Context, b *batch, then func(context.Context)) error {
	err := b.wait(ctx)
	if err == nil {
		then(ctx)
		return nil
	}
	n.background.Go(func() {
		<-b.done
		if b.err == nil {
			ctx, cancel := cleanup.Context(ctx)
			defer cancel()
			then(ctx)
		}
	})
	return err
}

// toFirewall is how mappings are published. One that nobody is named for is
// everybody's, or nobody's from outside with ClosedByDefault.
func (n *Networks) toFirewall(envID string, address netip.Addr, mappings []port.Mapping) []firewall.Mapping {
	rules := make([]firewall.Mapping, 0, len(mappings))
	for _, m := range mappings {
		rule := firewall.Mapping{
			EnvID: envID, Service: m.Service, Protocol: m.Protocol, HostPort: m.External,
			To: netip.AddrPortFrom(address, m.Internal), Sources: m.Sources,
		}
		switch {
		case len(m.Sources) == 0:
			rule.Inside = n.cfg.ClosedByDefault
		case port.Everybody(m.Sources, n.wants6()):
			rule.Sources = nil
		case !n.wants6():
			rule.Sources = slices.DeleteFunc(slices.Clone(m.Sources), func(s netip.Prefix) bool { return s.Addr().Is6() })
			if len(rule.Sources) == 0 {
				rule.Sources = []netip.Prefix{firewall.Nobody()}
			}
		}
		rules = append(rules, rule)
	}
	return rules
}

// without is what of from is not the same in others.
func without(from, others []firewall.Mapping) []firewall.Mapping {
	type key struct {
		protocol port.Protocol
		port     uint16
	}
	there := make(map[key]firewall.Mapping, len(others))
	for _, m := range others {
		there[key{m.Protocol, m.HostPort}] = m
	}
	return slices.DeleteFunc(slices.Clone(from), func(m firewall.Mapping) bool {
		other, ok := there[key{m.Protocol, m.HostPort}]
		return ok && m.Equal(other)
	})
}

// publisher keeps what all environments publish and may reach and applies it,
// one application at a time.
type publisher struct {
	firewall   Firewall
	applied6   func(context.Context) // called after each application; nil: nothing is
	around     func(context.Context) (firewall.Surroundings, error)
	grace      time.Duration
	log        *slog.Logger
	background *sync.WaitGroup
	failed     func() // called after an application that failed

	looking sync.Mutex // held from a look at the surroundings until they are noted, so that none overtakes another; before mu
	seeding sync.Mutex // held while the kernel is asked what is published; before looking
	seeded  bool       // current includes what an earlier process published

	mu           sync.Mutex
	current      map[string]publication // by environment; empty ones are remembered for grace
	surroundings firewall.Surroundings  // as they were seen last: what is to be in force
	inForce      firewall.Surroundings  // of the last application that succeeded, if applied
	next         *batch                 // what the next application will include, nil: nothing
	running      bool
	dirty        bool // the last application failed: rules may be as before it
	applied      bool // one has succeeded
	restored     bool // restore was called
}

// publication is what an environment publishes and may reach, and since when.
type publication struct {
	mappings []firewall.Mapping
	policy   firewall.Policy // the zero value is the default
	at       time.Time
	// confirmed is when the policy was asked for last and was in force already.
	confirmed time.Time
}

// batch is the changes that are applied together.
type batch struct {
	verify  bool // read the kernel's rules, trust nothing
	before  map[string]publication
	changed map[string]publication
	done    chan struct{} // closed when applied
	mended  []string      // by a verification
	err     error
}

// publish changes one environment's mappings and returns those of before, and
// the batch to wait for; nil: there is nothing to do.
func (p *publisher) publish(ctx context.Context, envID string, mappings []firewall.Mapping) (before []firewall.Mapping, b *batch, err error) {
	if err := p.seed(ctx); err != nil {
		return nil, nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	wanted := p.current[envID]
	before, wanted.mappings, wanted.at = wanted.mappings, mappings, time.Now()
	if len(before) == 0 && len(mappings) == 0 && p.idle() {
		// Nothing to withdraw. It is noted, so that an older list does not
		// publish it again.
		p.current[envID] = wanted
		return nil, nil, nil
	}
	b = p.join(ctx)
	b.change(p, envID, wanted)
	return before, b, nil
}

// withdraw does as publish of nothing, mostly without a mark when nothing was
// there.
func (p *publisher) withdraw(ctx context.Context, envID string) error {
	if err := p.seed(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	wanted := p.current[envID]
	// What is being applied may withdraw its ports only now: whoever asked for
	// that need not have waited.
	if len(wanted.mappings) == 0 && p.idle() {
		p.mu.Unlock()
		return nil
	}
	b := p.join(ctx)
	wanted.mappings, wanted.at = nil, time.Now()
	b.change(p, envID, wanted)
	p.mu.Unlock()
	return b.wait(ctx)
}

// idle says that no application is needed or at work. The caller holds mu.
func (p *publisher) idle() bool { return !p.dirty && p.next == nil && !p.running }

// seed takes over what an earlier process published, once, so that the first
// change before a restore does not withdraw everyone else's ports.
func (p *publisher) seed(ctx context.Context) error {
	p.seeding.Lock()
	defer p.seeding.Unlock()
	if p.seeded {
		return nil
	}
	there, err := p.firewall.Published(ctx)
	if err != nil {
		return err
	}
	if _, err := p.look(ctx); err != nil {
		return err
	}
	defer p.mu.Unlock()
	for _, m := range there.Mappings {
		publication := p.current[m.EnvID]
		publication.mappings = append(publication.mappings, m)
		p.current[m.EnvID] = publication
	}
	for _, policy := range there.Policies {
		publication := p.current[policy.EnvID]
		publication.policy = policy
		p.current[policy.EnvID] = publication
	}
	p.seeded = true
	return nil
}

// look brings what is around environments up to date and tells whether that is
// in force. It returns with mu held, unless it fails.
func (p *publisher) look(ctx context.Context) (inForce bool, err error) {
	p.looking.Lock()
	defer p.looking.Unlock()
	around, err := p.around(ctx)
	if err != nil {
		return false, err
	}
	p.mu.Lock()
	p.surroundings = around
	return p.applied && p.inForce.Equal(&around), nil
}

// restore replaces all mappings and policies, except those changed so recently
// that the caller may not have known, and waits until the kernel has exactly
// that. It tells whether that closes something that was open,
// and what differed.
func (p *publisher) restore(ctx context.Context, all map[string]publication) (closes bool, mended []string, err error) {
	p.seeding.Lock()
	inForce, err := p.look(ctx)
	if err != nil {
		p.seeding.Unlock()
		return false, nil, err
	}
	p.seeded = true // all is more than the kernel knows
	p.seeding.Unlock()
	b := p.join(ctx)
	b.verify = true
	// An earlier process may have ended between closing and ending.
	closes = !p.restored || p.dirty || !inForce
	p.restored = true
	for envID := range p.current {
		if _, ok := all[envID]; !ok && !p.recent(envID) {
			delete(p.current, envID)
		}
	}
	for envID, publication := range all {
		if !p.recent(envID) {
			before := p.current[envID].policy
			publication = p.younger(envID, publication)
			closes = closes || !before.IsDefault() && !before.Equal(&publication.policy) || before.IsDefault() && !publication.policy.IsDefault()
			p.current[envID] = publication
		}
	}
	p.mu.Unlock()
	if err := b.wait(ctx); err != nil {
		return false, nil, err
	}
	return closes, b.mended, nil
}

// verify compares the kernel's rules with what is published and mends what
// differs. Before anything was declared or seeded it does nothing: what should
// be is not known then.
func (p *publisher) verify(ctx context.Context) (mended []string, err error) {
	if !p.knows() {
		return nil, nil
	}
	p.mu.Lock()
	b := p.join(ctx)
	b.verify = true
	p.mu.Unlock()
	err = b.wait(ctx)
	if err != nil {
		return nil, err
	}
	return b.mended, nil
}

// knows tells whether what should be published is known.
func (p *publisher) knows() bool {
	p.seeding.Lock()
	defer p.seeding.Unlock()
	return p.seeded
}

// all is everything that is declared, or should be.
func (p *publisher) all() firewall.Desired {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.desired(p.current)
}

// recent says whether what an environment has was changed so lately that a
// list may be older. The caller holds mu.
func (p *publisher) recent(envID string) bool {
	return p.lately(p.current[envID].at)
}

// younger is what an environment has when a list says that it has listed: what
// the caller of the list may not have known outweighs it. The caller holds mu.
func (p *publisher) younger(envID string, listed publication) publication {
	now := p.current[envID]
	if p.recent(envID) {
		return now
	}
	if p.lately(now.confirmed) {
		listed.policy, listed.confirmed = now.policy, now.confirmed
	}
	return listed
}

func (p *publisher) lately(at time.Time) bool { return !at.IsZero() && time.Since(at) < p.grace }

// restrictedLately says whether an environment's policy was asked for so lately
// that a list may be older.
func (p *publisher) restrictedLately(envID string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.recent(envID) || p.lately(p.current[envID].confirmed)
}

func (p *publisher) forgetAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.current)
	p.dirty, p.applied = false, false
}

// join returns the batch that will be applied next, and sees to it that it is.
// The caller holds mu and makes its change before it lets go.
func (p *publisher) join(ctx context.Context) *batch {
	if p.next == nil {
		p.next = &batch{before: make(map[string]publication), changed: make(map[string]publication), done: make(chan struct{})}
	}
	if !p.running {
		p.running = true
		// The application serves many callers: none of them cancels it.
		p.background.Go(func() { p.run(context.WithoutCancel(ctx)) })
	}
	return p.next
}

func (b *batch) change(p *publisher, envID string, to publication) {
	if _, ok := b.before[envID]; !ok {
		b.before[envID] = p.current[envID]
	}
	b.changed[envID] = to
	p.current[envID] = to
}

func (b *batch) wait(ctx context.Context) error {
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// run applies batches until there is none.
func (p *publisher) run(ctx context.Context) {
	for {
		p.mu.Lock()
		b := p.next
		p.next = nil
		if b == nil {
			p.running = false
			p.mu.Unlock()
			return
		}
		desired := p.desired(p.current)
		p.mu.Unlock()
		b.mended, b.err = p.apply(ctx, b.verify, desired)
		p.settle(b, desired.Surroundings)
		close(b.done)
	}
}

// desired is what the firewall is told to have. The caller holds mu.
func (p *publisher) desired(all map[string]publication) firewall.Desired {
	desired := firewall.Desired{Surroundings: p.surroundings}
	for _, publication := range all {
		desired.Mappings = append(desired.Mappings, publication.mappings...)
		if !publication.policy.IsDefault() {
			desired.Policies = append(desired.Policies, publication.policy)
		}
	}
	return desired
}

func (p *publisher) apply(ctx context.Context, verify bool, desired firewall.Desired) (mended []string, err error) {
	ctx, cancel := cleanup.Context(ctx)
	defer cancel()
	if p.applied6 != nil {
		defer p.applied6(ctx)
	}
	if !verify {
		return nil, p.firewall.Set(ctx, desired)
	}
	return p.firewall.Restore(ctx, desired)
}
