package firewall

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

// Published returns the mappings, in no order, and the policies that the
// kernel's rules hold: what an earlier process declared and nobody withdrew. It
// does not tell the surroundings.
func (f *Firewall) Published(ctx context.Context) (Desired, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	there, err := f.v4.read(ctx)
	if err != nil {
		return Desired{}, fmt.Errorf("list published ports and policies: %w", err)
	}
	return f.published(there, f.publishing(f.readV6(ctx))), nil
}

// published reads the rules of both families; six is nil when there are none of
// IPv6 that publish.
func (f *Firewall) published(there, six ruleset) Desired {
	found := Desired{Policies: f.policies(there, six), Mappings: f.mappings(there)}
	if six == nil {
		return found
	}
	type key struct {
		protocol port.Protocol
		port     uint16
	}
	twins := make(map[key]Mapping, len(found.Mappings))
	for _, m := range f.mappings(six) {
		twins[key{m.Protocol, m.HostPort}] = m
	}
	for i := range found.Mappings {
		m := &found.Mappings[i]
		twin, there := twins[key{m.Protocol, m.HostPort}]
		if !there || twin.EnvID != m.EnvID || twin.Inside {
			// What IPv6 does not publish is not more open for that.
			twin = Mapping{Sources: []netip.Prefix{Nobody()}}
		}
		m.Sources = together(m, &twin)
	}
	return found
}

// Nobody is a source that no packet has: a list of it alone is for the host and
// the environment itself.
func Nobody() netip.Prefix { return netip.PrefixFrom(netip.IPv6Unspecified(), 128) }

// together is the sources of a mapping that is read from the rules of both
// families.
func together(m, twin *Mapping) (sources []netip.Prefix) {
	if m.Inside || len(m.Sources) == 0 && len(twin.Sources) == 0 {
		return nil
	}
	for _, part := range []struct {
		sources   []netip.Prefix
		everybody netip.Prefix
	}{
		{m.Sources, netip.PrefixFrom(netip.IPv4Unspecified(), 0)},
		{twin.Sources, netip.PrefixFrom(netip.IPv6Unspecified(), 0)},
	} {
		if len(part.sources) == 0 {
			sources = append(sources, part.everybody)
		}
		for _, source := range part.sources {
			if source != Nobody() {
				sources = append(sources, source)
			}
		}
	}
	if len(sources) == 0 {
		return []netip.Prefix{Nobody()}
	}
	return sources
}

// mappings reads the rules of one family.
func (f *Firewall) mappings(there ruleset) (found []Mapping) {
	mark := strings.ToLower(f.cfg.Prefix) + ":env="
	for chain, rules := range there.owned(f.v4.ours)["nat"] {
		block := chain[strings.LastIndex(chain, "-")+1:]
		if strings.HasPrefix(block, sourceMark) {
			found = append(found, parseSources(rules, mark)...)
			continue
		}
		for _, rule := range rules {
			if m, _, ok := parseMapping(rule, mark); ok {
				m.Inside = strings.HasPrefix(block, nearMark)
				found = append(found, m)
			}
		}
	}
	return found
}

// parseSources reads a chain as renderSources writes it. Of one that has lost
// its sources the mapping is not more open for that.
func parseSources(rules []string, mark string) []Mapping {
	var found []Mapping
	for _, rule := range rules {
		m, source, ok := parseMapping(rule, mark)
		if !ok {
			continue
		}
		at := slices.IndexFunc(found, func(other Mapping) bool {
			other.Sources = nil
			return other.Equal(m)
		})
		if at < 0 {
			at, m.Sources = len(found), []netip.Prefix{Nobody()}
			found = append(found, m)
		}
		if source.IsValid() {
			found[at].Sources = append(slices.DeleteFunc(found[at].Sources, func(p netip.Prefix) bool { return p == Nobody() }), source)
		}
	}
	return found
}

// Check tells what the kernel's rules hold, as Published does, and the names of the chains and
// hooks that Restore of the same would mend. It changes nothing.
func (f *Firewall) Check(ctx context.Context, desired Desired) (published Desired, differs []string, err error) {
	wanted, err := f.v4.render(desired)
	if err != nil {
		return Desired{}, nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	there := wanted // ours alone
	stands := f.v4.verified.stands(f.markOf(ctx, tablesV4), wanted)
	if !stands {
		if there, err = f.v4.read(ctx); err != nil {
			return Desired{}, nil, fmt.Errorf("check rules: %w", err)
		}
	}
	six, standsV6 := f.standsV6(ctx, desired)
	if stands && standsV6 {
		return f.published(there, f.publishing(six)), nil, nil
	}
	six = f.readV6(ctx)
	_, ofV6 := f.differencesV6(six, desired)
	published = f.published(there, f.publishing(six))
	if f.wantsV6() && f.failureV6() != nil {
		f.completeV6(&published, &desired)
	}
	if !stands {
		differs = f.v4.differs(there, wanted)
	}
	return published, append(differs, ofV6...), nil
}

// standsV6 is what IPv6 should have, and whether that was found to be in force
// and nobody has changed a rule since. The caller holds mu.
func (f *Firewall) standsV6(ctx context.Context, desired Desired) (wanted ruleset, stands bool) {
	if f.v6 == nil || !f.hasV6() {
		return nil, !f.wantsV6()
	}
	if f.failureV6() != nil {
		return nil, false
	}
	wanted, err := f.v6.render(desired)
	return wanted, err == nil && f.v6.verified.stands(f.markOf(ctx, tablesV6), wanted)
}

// completeV6 gives what was read from the rules of IPv4 alone the part of IPv6
// that it would have: while that has no rules, their absence is told as such and
// not once more for each port.
func (f *Firewall) completeV6(found, desired *Desired) {
	type key struct {
		protocol port.Protocol
		port     uint16
	}
	wanted := make(map[key]*Mapping, len(desired.Mappings))
	for i := range desired.Mappings {
		m := &desired.Mappings[i]
		wanted[key{m.Protocol, m.HostPort}] = m
	}
	for i := range found.Mappings {
		m := &found.Mappings[i]
		if w := wanted[key{m.Protocol, m.HostPort}]; w != nil && m.Equal(f.ofV4(*w)) {
			m.Sources = w.Sources
		}
	}
	policies := make(map[string]*Policy, len(desired.Policies))
	for i := range desired.Policies {
		policies[desired.Policies[i].EnvID] = &desired.Policies[i]
	}
	for i := range found.Policies {
		p := &found.Policies[i]
		w := policies[p.EnvID]
		if w == nil {
			continue
		}
		four := *w
		four.Allow = slices.DeleteFunc(slices.Clone(w.Allow), func(d policy.Destination) bool { return d.Prefix.Addr().Is6() })
		if p.Equal(&four) {
			p.Allow = w.Allow
		}
	}
}

// ofV4 is a mapping as it is read from the rules of IPv4 alone.
func (f *Firewall) ofV4(m Mapping) Mapping {
	sources, all := f.v4.layout.sources(&m)
	if !all && len(sources) == 0 {
		sources = []netip.Prefix{Nobody()}
	}
	m.Sources = sources
	return m
}

// parseMapping reads a rule as translate writes it. source is whom it is for,
// invalid when that is not one of the mapping's own sources.
func parseMapping(rule, mark string) (m Mapping, source netip.Prefix, ok bool) {
	fields := strings.Fields(rule)
	environments := false
	for i := 0; i+1 < len(fields); i++ {
		value := fields[i+1]
		var err error
		switch fields[i] {
		case "-s":
			source, err = netip.ParsePrefix(value)
		case "-i":
			environments = true
		case "-p":
			m.Protocol = port.Protocol(value)
		case "--dport":
			var number uint64
			number, err = strconv.ParseUint(value, 10, 16)
			m.HostPort = uint16(number)
		case "--comment":
			comment, ours := strings.CutPrefix(strings.Trim(value, `"`), mark)
			if !ours {
				return m, source, false
			}
			env, service, _ := strings.Cut(comment, ":")
			m.EnvID, m.Service = env, port.Service(service)
		case "--to-destination":
			m.To, err = netip.ParseAddrPort(value)
		}
		if err != nil {
			return m, source, false
		}
	}
	if environments {
		source = netip.Prefix{}
	}
	return m, source, m.EnvID != "" && m.To.IsValid() && m.HostPort != 0
}
