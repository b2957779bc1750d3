package firewall

import (
	"context"
	"fmt"
	"net/netip"
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
	found := Desired{Policies: f.policies(there)}
	for _, rules := range there.owned(f.v4.ours)["nat"] {
		for _, rule := range rules {
			if m, ok := parseMapping(rule, strings.ToLower(f.cfg.Prefix)+":env="); ok {
				found.Mappings = append(found.Mappings, m)
			}
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
	return f.published(there), f.v4.differs(there, wanted), nil
}

// parseMapping reads a rule as renderPublished writes it.
func parseMapping(rule, mark string) (m Mapping, ok bool) {
	fields := strings.Fields(rule)
	for i := 0; i+1 < len(fields); i++ {
		value := fields[i+1]
		switch fields[i] {
		case "-p":
			m.Protocol = port.Protocol(value)
		case "--dport":
			number, err := strconv.ParseUint(value, 10, 16)
			if err != nil {
				return m, false
			}
			m.HostPort = uint16(number)
		case "--comment":
			comment, ours := strings.CutPrefix(strings.Trim(value, `"`), mark)
			if !ours {
				return m, false
			}
			env, service, _ := strings.Cut(comment, ":")
			m.EnvID, m.Service = env, port.Service(service)
		case "--to-destination":
			to, err := netip.ParseAddrPort(value)
			if err != nil {
				return m, false
			}
			m.To = to
		}
	}
	return m, m.EnvID != "" && m.To.IsValid() && m.HostPort != 0
}
