package network

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/policy"
)

// settle notes how an application went, which declared these surroundings. Of a
// failed one what it opened is taken back, unless that was changed since, so
// that one bad mapping does not fail everyone's next application. What it closed
// or narrowed stays wanted, and is tried again.
func (p *publisher) settle(b *batch, around firewall.Surroundings) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dirty = b.err != nil
	if !p.dirty {
		p.applied, p.inForce = true, around
		return
	}
	defer p.failed()
	mine := maps.Clone(b.changed)
	maps.DeleteFunc(mine, func(envID string, changed publication) bool { return !p.current[envID].at.Equal(changed.at) })
	for envID, changed := range b.changed {
		left := narrowed(b.before[envID], changed, p.surroundings.Closed)
		if _, is := mine[envID]; is {
			p.current[envID] = left
		} else if p.next != nil {
			p.next.before[envID] = left // changed since, from what was never in force
		}
	}
	if !errdefs.IsInvalidArgument(b.err) && !errdefs.IsAlreadyExists(b.err) {
		return
	}
	// It was refused as it is. What is left of it may be as bad.
	if _, err := p.firewall.Render(p.desired(p.current)); err == nil {
		return
	}
	for envID, changed := range mine {
		now, before := changed, b.before[envID]
		if len(changed.mappings) > 0 {
			now.mappings, now.at = before.mappings, before.at
		}
		now.policy = before.policy
		p.current[envID] = now
	}
}

// unsettled tells whether the last application failed.
func (p *publisher) unsettled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dirty
}

// narrowed is what stays wanted of a change that could not be applied: what it
// closes and narrows. What it opens is taken back. closed are networks that
// open environments do not reach.
func narrowed(before, after publication, closed []netip.Prefix) publication {
	result := after
	result.mappings = sharedMappings(before.mappings, after.mappings)
	// A policy of nobody is lifted: nothing is sent any more.
	if after.policy.EnvID != "" && !samePolicy(&before.policy, &after.policy) {
		result.policy = sharedPolicy(&before.policy, &after.policy, closed)
	}
	if len(after.mappings) > 0 && len(without(before.mappings, result.mappings)) == 0 &&
		len(result.mappings) == len(before.mappings) && samePolicy(&before.policy, &result.policy) {
		result.at = before.at // a list may be made of it again
	}
	return result
}

// samePolicy tells whether two policies have the same rules.
func samePolicy(a, b *firewall.Policy) bool {
	return a.IsDefault() && b.IsDefault() || a.Equal(b)
}

// sharedMappings are those of after as far as before had them.
func sharedMappings(before, after []firewall.Mapping) (shared []firewall.Mapping) {
	for _, m := range after {
		at := slices.IndexFunc(before, func(b firewall.Mapping) bool { return b.Protocol == m.Protocol && b.HostPort == m.HostPort })
		if at < 0 || before[at].To != m.To {
			continue
		}
		if narrow, some := sharedSources(before[at], m); some {
			shared = append(shared, narrow)
		}
	}
	return shared
}

// sharedSources is after for whom before lets in too, unless that is nobody. A
// list of sources and the inside of the node count as having nobody in common.
func sharedSources(before, after firewall.Mapping) (m firewall.Mapping, some bool) {
	everybody := func(m firewall.Mapping) bool { return len(m.Sources) == 0 && !m.Inside }
	switch {
	case everybody(before), before.Inside && after.Inside:
		return after, true
	case everybody(after):
		after.Sources, after.Inside = before.Sources, before.Inside
		return after, true
	case before.Inside != after.Inside:
		return after, false
	}
	var sources []netip.Prefix
	for _, a := range before.Sources {
		for _, b := range after.Sources {
			if a.Overlaps(b) {
				sources = append(sources, longer(a, b))
			}
		}
	}
	slices.SortFunc(sources, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	after.Sources = sources
	return after, len(sources) > 0
}

// longer is of two networks the one that is within the other.
func longer(a, b netip.Prefix) netip.Prefix {
	if a.Bits() > b.Bits() {
		return a
	}
	return b
}

// sharedPolicy is what both policies let an environment reach, or less.
func sharedPolicy(before, after *firewall.Policy, closed []netip.Prefix) firewall.Policy {
	shared := firewall.Policy{EnvID: after.EnvID, Address: after.Address}
	for _, group := range after.Groups {
		if slices.Contains(before.Groups, group) {
			shared.Groups = append(shared.Groups, group)
		}
	}
	was, is := cmp.Or(before.Egress, policy.Open), cmp.Or(after.Egress, policy.Open)
	switch {
	case was == policy.None || is == policy.None:
		shared.Egress = policy.None
	case was == is:
		shared.Egress = is
		shared.Allow = sharedDestinations(before.Allow, after.Allow)
	case is == policy.AllowList:
		shared.Egress = policy.AllowList
		shared.Allow = reached(after.Allow, before.Allow, closed)
	default:
		shared.Egress = policy.AllowList
		shared.Allow = reached(before.Allow, after.Allow, closed)
	}
	return shared
}

// sharedDestinations are those of one list that are within one of the other.
func sharedDestinations(a, b []policy.Destination) (shared []policy.Destination) {
	add := func(from, others []policy.Destination) {
		for _, d := range from {
			if !slices.Contains(shared, d) && slices.ContainsFunc(others, func(o policy.Destination) bool { return covers(o, d) }) {
				shared = append(shared, d)
			}
		}
	}
	add(b, a)
	add(a, b)
	return shared
}

// reached are the destinations of a list that an open environment reaches which
// is allowed some more.
func reached(list, allowed []policy.Destination, closed []netip.Prefix) (kept []policy.Destination) {
	closed = append(policy.Closed(), closed...)
	for _, d := range list {
		if slices.ContainsFunc(allowed, func(a policy.Destination) bool { return covers(a, d) }) ||
			!slices.ContainsFunc(closed, d.Prefix.Overlaps) {
			kept = append(kept, d)
		}
	}
	return kept
}

// covers tells whether everything that goes to a destination goes to a wider
// one too.
func covers(wide, d policy.Destination) bool {
	return policy.Within([]netip.Prefix{wide.Prefix}, d.Prefix) &&
		(wide.Protocol == d.Protocol || wide.Protocol == "") &&
		(wide.First == 0 || wide.First <= d.First && d.Last <= wide.Last)
}
