package firewall

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

// policies reads the rules of the filter table as renderPolicies writes them:
// the policies that an earlier process declared, by address. A rule that it
// cannot read is left out; the next application mends it.
func (f *Firewall) policies(there ruleset) []Policy {
	found := make(map[netip.Addr]*Policy)
	filter := there.owned(f.v4.ours)["filter"]
	mark := strings.ToLower(f.cfg.Prefix) + ":env="
	for _, chain := range slices.Sorted(maps.Keys(filter)) {
		for _, rule := range filter[chain] {
			read := readRule(rule, mark)
			if read.envID == "" {
				continue
			}
			key, value, _ := strings.Cut(read.what, "=")
			switch {
			case key == "group" && read.source.IsValid():
				one := policyOf(found, read.source, read.envID)
				one.Groups = append(one.Groups, value)
			case key == "egress" && read.source.IsValid():
				policyOf(found, read.source, read.envID).Egress = policy.Egress(value)
			case key == "allow" && read.to.Prefix.IsValid():
				address, err := netip.ParseAddr(strings.TrimPrefix(chain, f.cfg.Prefix+"-ENV-"))
				if err == nil {
					one := policyOf(found, address, read.envID)
					one.Allow = append(one.Allow, read.to)
				}
			}
		}
	}
	var all []Policy
	for _, address := range slices.SortedFunc(maps.Keys(found), netip.Addr.Compare) {
		all = append(all, *found[address])
	}
	return all
}

func policyOf(found map[netip.Addr]*Policy, address netip.Addr, envID string) *Policy {
	if found[address] == nil {
		found[address] = &Policy{EnvID: envID, Address: address, Egress: policy.Open}
	}
	return found[address]
}

// policyRule is what a rule of an environment says.
type policyRule struct {
	envID  string
	what   string
	source netip.Addr
	to     policy.Destination
}

func readRule(rule, mark string) (read policyRule) {
	fields := strings.Fields(rule)
	for i := 0; i+1 < len(fields); i++ {
		value := fields[i+1]
		switch fields[i] {
		case "-s":
			if prefix, err := netip.ParsePrefix(value); err == nil && prefix.IsSingleIP() {
				read.source = prefix.Addr()
			}
		case "-p":
			read.to.Protocol = port.Protocol(value)
		case "--ctorigdst":
			if prefix, err := policy.ParsePrefix(value); err == nil {
				read.to.Prefix = prefix
			}
		case "--ctorigdstport":
			low, high, span := strings.Cut(value, ":")
			if !span {
				high = low
			}
			first, err := strconv.ParseUint(low, 10, 16)
			last, failed := strconv.ParseUint(high, 10, 16)
			if err != nil || failed != nil {
				return policyRule{}
			}
			read.to.First, read.to.Last = uint16(first), uint16(last)
		case "--comment":
			if comment, ours := strings.CutPrefix(strings.Trim(value, `"`), mark); ours {
				read.envID, read.what, _ = strings.Cut(comment, ":")
			}
		}
	}
	return read
}
