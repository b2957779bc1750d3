package firewall

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

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
	return f.published(there), nil
}

func (f *Firewall) published(there ruleset) Desired {
	mark := strings.ToLower(f.cfg.Prefix) + ":env="
	found := Desired{Policies: f.policies(there)}
	for chain, rules := range there.owned(f.v4.ours)["nat"] {
		block := chain[strings.LastIndex(chain, "-")+1:]
		if strings.HasPrefix(block, sourceMark) {
			found.Mappings = append(found.Mappings, parseSources(rules, mark)...)
			continue
		}
		for _, rule := range rules {
			if m, _, ok := parseMapping(rule, mark); ok {
				m.Inside = strings.HasPrefix(block, nearMark)
				found.Mappings = append(found.Mappings, m)
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
			other.Sources, other.Inside = nil, false
			return other.Equal(m)
		})
		if at < 0 {
			at, m.Inside = len(found), true
			found = append(found, m)
		}
		if source.IsValid() {
			found[at].Sources, found[at].Inside = append(found[at].Sources, source), false
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
	there, err := f.v4.read(ctx)
	if err != nil {
		return Desired{}, nil, fmt.Errorf("check rules: %w", err)
	}
	_, ofV6 := f.differencesV6(ctx)
	return f.published(there), append(f.v4.differs(there, wanted), ofV6...), nil
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
