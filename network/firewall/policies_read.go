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
//
// The rules of IPv6 are the same but for destinations, which are added.
func (f *Firewall) policies(there, six ruleset) []Policy {
	found := make(map[netip.Addr]*Policy)
	f.readPolicies(there, func(address netip.Addr, envID, key, value string, to policy.Destination) {
		if found[address] == nil {
			found[address] = &Policy{EnvID: envID, Address: address, Egress: policy.Open}
		}
		one := found[address]
		switch key {
		case "group":
			one.Groups = append(one.Groups, value)
		case "egress":
			one.Egress = policy.Egress(value)
		case "allow":
			one.Allow = append(one.Allow, to)
		}
	})
	f.readPolicies(six, func(address netip.Addr, envID, key, _ string, to policy.Destination) {
		if one := found[address]; one != nil && one.EnvID == envID && key == "allow" {
			one.Allow = append(one.Allow, to)
		}
	})
	var all []Policy
	for _, address := range slices.SortedFunc(maps.Keys(found), netip.Addr.Compare) {
		all = append(all, *found[address])
	}
	return all
}

// readPolicies tells each thing that rules say of an environment by its IPv4
// address, as far as they name that.
func (f *Firewall) readPolicies(there ruleset, tell func(address netip.Addr, envID, key, value string, to policy.Destination)) {
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
			case (key == "group" || key == "egress") && read.source.IsValid():
				tell(read.source, read.envID, key, value, policy.Destination{})
			case key == "allow" && read.to.Prefix.IsValid():
				if address, err := netip.ParseAddr(strings.TrimPrefix(chain, f.cfg.Prefix+"-ENV-")); err == nil {
					tell(address, read.envID, key, value, read.to)
				}
			}
		}
	}
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
