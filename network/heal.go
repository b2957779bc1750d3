package network

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sync/errgroup"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/tick"
	"github.com/remotegpu/remotegpu/network/firewall"
)

const (
	// DefaultPoll is how often what tells nothing by itself is looked at.
	DefaultPoll = 2 * time.Second

	// healBurst is how often the host's rules are mended at once; after that,
	// once each healInterval.
	healBurst    = 20
	healInterval = 3 * time.Second
	// retryFirst and retryLast are the pauses before a repair that failed is
	// tried again.
	retryFirst = 500 * time.Millisecond
	retryLast  = 10 * time.Second
	// conflictInterval is how often conflicts are looked for.
	conflictInterval = time.Minute
	// untoldPolls is how many Config.Poll pass at most between two looks at what is
	// found by looking alone, which come each conflictInterval else.
	untoldPolls = 30
	// unseenTries is how often rules are tried to be mended that such a look found
	// changed.
	unseenTries = 3
	// repairsKept is how many repairs are remembered one by one.
	repairsKept = 32
	// contestedBy is how many repairs within contestedTime mean that somebody
	// changes our rules again and again.
	contestedBy   = 10
	contestedTime = time.Minute
)

// Repair is one time that the node put back what others had changed on the
// host.
type Repair struct {
	At   time.Time
	What []string      // chains, hooks and settings
	By   []string      // programs that changed them, "name[pid]"; empty: not known
	Took time.Duration // from when it was known until it was mended
}

// Repairs tells what had to be mended since the daemon began.
type Repairs struct {
	Watch  string // how changes are noticed: "events" or "poll"; "": looked at once a minute only
	Count  int64
	Latest []Repair // oldest first
}

// healer mends what others change.
type healer struct {
	networks *Networks
	pace     pace
	working  sync.Mutex    // one repair at a time
	kicked   chan struct{} // holds one when an application has failed
	lost6    chan struct{} // holds one when the rules of IPv6 could not be made
	damaged  chan struct{} // holds one when bridges have to be looked at

	bridgePace pace

	mu          sync.Mutex
	watch       string
	count       int64
	latest      []Repair
	failure     *problem.Problem // of the last attempt; nil: it went well
	conflicts   []*problem.Problem
	neighbours  [2]neighbourTable // as neighbourTables
	connections connectionTable
	trusted     bool       // firewalld lets our bridges through
	firewalld   *dbus.Conn // where firewalld is; nil: it is not there
}

// Run mends the host's rules and settings as soon as others change them, until
// ctx ends: with nf_tables the kernel tells, firewalld tells on the system bus,
// the rest is looked at each Config.Poll. It needs a Restore before, which says
// what should be. With a negative Config.Poll it looks at rules and settings once a
// minute, whatever the kernel tells, and after firewalld's reloads, and does the rest.
func (n *Networks) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	if n.cfg.Poll > 0 {
		group.Go(func() error { n.healer.followRules(ctx); return nil })
		group.Go(func() error { n.healer.followForwarding(ctx); return nil })
	}
	group.Go(func() error { n.healer.followUntold(ctx); return nil })
	group.Go(func() error { n.healer.followFailures(ctx); return nil })
	group.Go(func() error { n.healer.followIPv6(ctx); return nil })
	group.Go(func() error { n.healer.followFirewalld(ctx); return nil })
	group.Go(func() error { n.healer.followConflicts(ctx); return nil })
	group.Go(func() error { n.followAddresses(ctx); return nil })
	group.Go(func() error { n.healer.followBridges(ctx); return nil })
	return group.Wait()
}

// Repairs tells what had to be mended.
func (n *Networks) Repairs() Repairs {
	h := &n.healer
	h.mu.Lock()
	defer h.mu.Unlock()
	return Repairs{Watch: h.watch, Count: h.count, Latest: slices.Clone(h.latest)}
}

// Conditions tells what about the host's network is not as it should be:
// FIREWALL_FAILED, FIREWALL_CONTESTED, FIREWALL_CONFLICT, IPV6_UNAVAILABLE,
// NEIGHBOUR_TABLE_FULL and CONNECTION_TABLE_FULL.
func (n *Networks) Conditions() []*problem.Problem {
	h := &n.healer
	h.mu.Lock()
	defer h.mu.Unlock()
	var conditions []*problem.Problem
	if h.failure != nil {
		conditions = append(conditions, h.failure)
	}
	if n.wants6() {
		if err := n.unavailable6(); err != nil {
			conditions = append(conditions, problem.Of(err))
		}
	}
	if contested := h.contested(time.Now()); contested != nil {
		conditions = append(conditions, contested)
	}
	if full := h.overflown(time.Now()); full != nil {
		conditions = append(conditions, full)
	}
	if full := h.untracked(time.Now()); full != nil {
		conditions = append(conditions, full)
	}
	return append(conditions, h.conflicts...)
}

// contested is the condition that somebody changes our rules again and again,
// nil when nobody does. The caller holds mu.
func (h *healer) contested(now time.Time) *problem.Problem {
	var times int
	var by []string
	for _, repair := range h.latest {
		if now.Sub(repair.At) > contestedTime {
			continue
		}
		times++
		for _, who := range repair.By {
			if !slices.Contains(by, who) {
				by = append(by, who)
			}
		}
	}
	if times < contestedBy {
		return nil
	}
	const named = 4
	who := "somebody"
	if len(by) > 0 {
		who = strings.Join(by[:min(named, len(by))], ", ")
	}
	return problem.New(problem.FirewallContested, "%s changes the node's rules or bridges again and again: %d repairs in the last minute", who, times).
		WithHint("Find out what flushes or rewrites iptables, or the addresses and routes of bridges, on this host and stop it. Until then they are mended every %s.", healInterval)
}

// followRules watches the host's rules.
func (h *healer) followRules(ctx context.Context) {
	for ctx.Err() == nil {
		watch, err := h.networks.cfg.Firewall.Watches(ctx)
		if err == nil {
			h.mu.Lock()
			h.watch = watch
			h.mu.Unlock()
			err = h.networks.cfg.Firewall.Watch(ctx, h.networks.cfg.Poll, func(ctx context.Context, change firewall.Change) { h.heal(ctx, change.By) })
		}
		if ctx.Err() != nil {
			return
		}
		h.networks.cfg.Log.WarnContext(ctx, "the host's rules are not watched; it is tried again", "error", err)
		h.mu.Lock()
		h.watch = ""
		h.mu.Unlock()
		if !tick.Pause(ctx, retryLast) {
			return
		}
		h.heal(ctx, nil) // what happened meanwhile nobody told
	}
}

// followUntold looks at name servers, reserved ports, settings of environments'
// bridges and limits of their speeds, and at rules whose changes the watch does not see:
// those of IPv6 in the legacy backend. Where the kernel says that nobody has changed a
// rule, no rule is read. While there is no environment the passes of the reconciler do.
func (h *healer) followUntold(ctx context.Context) {
	every := conflictInterval
	if h.networks.cfg.Poll > 0 {
		every = min(every, untoldPolls*h.networks.cfg.Poll)
	}
	for looks := h.networks.Looks(); looks.Wait(ctx, every); {
		lacking := h.networks.wants6() && h.networks.unavailable6() != nil
		h.healUnseen(ctx)
		if lacking { // its rules may be there by now, or what else it needs
			h.damage()
		}
		h.healForwarding(ctx) // of which the kernel tells, where it is listened to
		h.healReserved(ctx)
		began := time.Now()
		var mended []string
		bridges, err := ourBridges()
		if err == nil {
			mended, err = h.networks.mendBridges(bridges)
		}
		if err != nil && ctx.Err() == nil {
			h.networks.cfg.Log.WarnContext(ctx, "settings of environments' bridges cannot be looked at; it is tried again", "error", err)
		}
		if len(mended) > 0 {
			h.note(ctx, Repair{At: time.Now(), What: mended, Took: time.Since(began)})
		}
		if err := h.networks.keepLimits(ctx); err != nil && ctx.Err() == nil {
			h.networks.cfg.Log.WarnContext(ctx, "the speeds of environments are not limited as they should be; it is tried again", "error", err)
		}
	}
}

// healUnseen mends the host's rules and looks around, if nobody mends them already: a
// look would do it then, and not tell. What fails again and again is left to
// followFailures, so that nothing else waits for it.
func (h *healer) healUnseen(ctx context.Context) {
	if !h.working.TryLock() {
		return
	}
	defer h.working.Unlock()
	h.awaitFirewalld(ctx, nil)
	began := time.Now()
	for range unseenTries {
		mended, err := h.networks.published.verify(ctx)
		if ctx.Err() != nil {
			return
		}
		if h.failed(err); err == nil {
			if len(mended) > 0 {
				h.note(ctx, Repair{At: time.Now(), What: mended, Took: time.Since(began)})
			}
			h.networks.lookAround(ctx)
			return
		}
		h.networks.cfg.Log.WarnContext(ctx, "the host's rules cannot be looked at or mended; it is tried again", "error", err)
		if !tick.Pause(ctx, retryFirst) {
			return
		}
	}
}

// healReserved has ports of the pools reserved again that programs have let go
// of which set everything anew: a connection that takes one is in the way for
// as long as it lasts.
func (h *healer) healReserved(ctx context.Context) {
	began := time.Now()
	lost, err := h.networks.reservationLost()
	if err == nil && lost != "" {
		err = h.networks.reserveAgain(ctx)
	}
	switch {
	case err != nil && ctx.Err() == nil:
		h.networks.cfg.Log.WarnContext(ctx, "outgoing connections may take ports of a pool; it is tried again", "error", err)
	case lost != "":
		h.note(ctx, Repair{At: time.Now(), What: []string{"net.ipv4.ip_local_reserved_ports"}, Took: time.Since(began)})
	}
}

// followConflicts looks for rules of others that are in the way.
func (h *healer) followConflicts(ctx context.Context) {
	for {
		h.lookForConflicts(ctx)
		h.lookAtNeighbours(kernelStats, time.Now())
		h.lookAtConnections(connectionSettings, kernelStats, time.Now())
		if !tick.Wait(ctx, conflictInterval) {
			return
		}
	}
}

// lookForConflicts brings the conditions up to date.
func (h *healer) lookForConflicts(ctx context.Context) {
	h.mu.Lock()
	trusted := h.trusted
	h.mu.Unlock()
	conflicts, err := h.networks.cfg.Firewall.Conflicts(ctx, trusted)
	if err != nil {
		if ctx.Err() == nil {
			h.networks.cfg.Log.WarnContext(ctx, "conflicts with other rules cannot be looked for", "error", err)
		}
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, conflict := range conflicts {
		if !slices.ContainsFunc(h.conflicts, func(known *problem.Problem) bool { return known.Message == conflict.Message }) {
			h.networks.cfg.Log.WarnContext(ctx, "rules of others are in the way of environments", "what", conflict.Message, "hint", conflict.Hint)
		}
	}
	h.conflicts = conflicts
}

// kick has an application that failed tried again.
func (h *healer) kick() {
	select {
	case h.kicked <- struct{}{}:
	default: // somebody is about to
	}
}

// followFailures tries again what could not be applied: what was withdrawn or
// narrowed is open until then.
func (h *healer) followFailures(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.kicked:
		}
		if !tick.Pause(ctx, retryFirst) {
			return
		}
		h.settle(ctx)
	}
}

// settle applies what is declared until that succeeds, unless it has meanwhile,
// and ends what it closes.
func (h *healer) settle(ctx context.Context) {
	h.working.Lock()
	defer h.working.Unlock()
	if h.networks.published.unsettled() {
		mended, done := h.mend(ctx, nil)
		if !done {
			return
		}
		h.networks.cfg.Log.InfoContext(ctx, "rules that could not be changed are in force now", "what", mended)
	}
	h.networks.forgetStrayed(ctx)
	h.networks.endRefused(ctx)
}

// heal mends the host's rules, by whom they were changed.
func (h *healer) heal(ctx context.Context, by []string) {
	h.working.Lock()
	defer h.working.Unlock()
	if !tick.Pause(ctx, h.pace.wait(time.Now())) {
		return
	}
	h.awaitFirewalld(ctx, by)
	began := time.Now()
	if mended, done := h.mend(ctx, by); done && len(mended) > 0 {
		h.note(ctx, Repair{At: time.Now(), What: mended, By: by, Took: time.Since(began)})
	}
}

// mend applies what is declared. What fails is tried again until it succeeds,
// or ctx ends: then it is not done. The caller holds working.
func (h *healer) mend(ctx context.Context, by []string) (mended []string, done bool) {
	for retry := retryFirst; ; retry = min(2*retry, retryLast) {
		mended, err := h.networks.published.verify(ctx)
		if ctx.Err() != nil {
			return nil, false
		}
		h.failed(err)
		if err == nil {
			return mended, true
		}
		h.networks.cfg.Log.WarnContext(ctx, "the host's rules cannot be mended or changed; it is tried again", "by", by, "error", err)
		if !tick.Pause(ctx, retry) {
			return nil, false
		}
	}
}

// failed remembers how the last attempt went.
func (h *healer) failed(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failure = nil
	if err != nil {
		p := problem.Of(err)
		h.failure = problem.New(problem.FirewallFailed, "%s", fmt.Errorf("mend the host's rules: %w", err).Error()).WithHint("%s", p.Hint)
	}
}

// note remembers a repair and drops tracked connections that began without the
// rules and lead nowhere, or to where they may not.
func (h *healer) note(ctx context.Context, repair Repair) {
	h.networks.cfg.Log.WarnContext(ctx, "others changed the host's rules or settings; they are mended",
		"what", repair.What, "by", repair.By, "took", repair.Took)
	h.mu.Lock()
	h.count++
	h.latest = append(h.latest, repair)
	if extra := len(h.latest) - repairsKept; extra > 0 {
		h.latest = slices.Delete(h.latest, 0, extra)
	}
	h.mu.Unlock()
	h.networks.forgetStrayed(ctx)
	h.networks.endRefused(ctx)
}
