package network_test

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

// passing is how many rules more a connection may pass on a full node than on
// one with a hundred environments: a few levels of the trees, of at most sixteen
// rules, or thirty-two in the last of policies. One environment's share of a
// rule that is not found through a tree would be 1900.
const passing = 200

// TestNoPacketWalksAllRules: with 2000 environments, of which each has ports, a
// policy and a group, a connection passes hardly more rules than with 100,
// wherever it comes from and goes to, in all tables of both address families.
// The kernel's own counters say so.
func TestNoPacketWalksAllRules(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	// Both backends have the same rules, and one reads them in a tenth of the time.
	for backend, families := range map[string][]bool{"nft": {false}, "legacy": {false, true}} {
		t.Run(backend, func(t *testing.T) {
			l := newLab6(t, backend, ula)
			few, many := crowd(t, l, 100, families...), crowd(t, l, 2000, families...)
			for flow, count := range many {
				t.Logf("%s: %d rules with 100 environments, %d with 2000", flow, few[flow], count)
				if few[flow] == 0 || count == 0 {
					t.Errorf("%s: rules are not counted", flow)
				}
				if count > few[flow]+passing {
					t.Errorf("%s: %d rules are passed with 100 environments, %d with 2000", flow, few[flow], count)
				}
			}
			for _, iptables := range []string{l.iptables, strings.Replace(l.iptables, "ip", "ip6", 1)} {
				if rules := testutil.Sh(t, iptables+"-save -t mangle"); strings.Contains(rules, "RGPU") {
					t.Errorf("%s has rules of ours in mangle, which nothing is known of:\n%s", iptables, rules)
				}
			}
			cleanUp(t, l)
		})
	}
}

// Slots of the environments that there are; those of the crowd come before, but
// for the last of its two thousand.
const (
	slotA = 1998 // has a list of destinations
	slotB = 1999 // is open
)

// crowd declares so many environments, of which the last two are there, and
// returns how many rules each flow passes, of IPv4 and, where families have true,
// of IPv6.
func crowd(t *testing.T, l *lab, environments int, families ...bool) map[string]int {
	t.Helper()
	var all []port.Published
	var policies []policy.Declared
	declare := func(slot int, egress policy.Egress, allow ...string) {
		envID, address := fmt.Sprintf("01CROWD%d", slot), l.networks.Address(slot)
		first := uint16(10000 + 4*slot)
		listed := published(port.UDP, first+1, 80)
		listed.Sources = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:1::/48")}
		all = append(all, port.Published{EnvID: envID, Address: address, Mappings: []port.Mapping{
			published(port.UDP, first, 53), listed,
		}})
		policies = append(policies, policy.Declared{EnvID: envID, Project: "crowd", Address: address, Policy: policy.Policy{
			Egress: egress, Allow: destinations(t, allow...), Groups: []string{"everybody"},
		}})
	}
	for slot := range environments - 2 {
		declare(slot, []policy.Egress{policy.AllowList, policy.Open, policy.None}[slot%3], "192.0.2.0/24", "198.51.100.128/25", "2001:db8:9::/48")
	}
	declare(slotA, policy.AllowList, "192.0.2.0/24", internetIP, internetIP6)
	declare(slotB, policy.Open)
	namespaces := make(map[int]*testutil.Namespace)
	for _, slot := range []int{slotA, slotB} {
		namespaces[slot] = l.attach(t, fmt.Sprintf("01CROWD%d", slot), slot)
	}
	if err := l.networks.Restore(t.Context(), all, policies); err != nil {
		t.Fatal(err)
	}
	if environments == 100 { // they stay
		for wildcard, outside := range map[string]string{"0.0.0.0": internetIP, "[::]": "[" + internetIP6 + "]"} {
			l.host.Answer(t, "udp", wildcard+":7001", "service")
			l.lan.Answer(t, "udp", outside+":8080", "outside")
			for _, ns := range namespaces {
				ns.Answer(t, "udp", wildcard+":53", "inside")
			}
		}
	}
	passed := make(map[string]int)
	for _, six := range families {
		host, internet, inside := hostIP, internetIP, l.networks.Address(slotB)
		iptables, family := l.iptables, "IPv4"
		if six {
			host, internet, inside = hostIP6, internetIP6, l.networks.Address6(slotB)
			iptables, family = strings.Replace(l.iptables, "ip", "ip6", 1), "IPv6"
		}
		ofA := strconv.Itoa(10000 + 4*slotA)
		before := counted(t, iptables)
		for _, flow := range []struct {
			name, address, port string
			from                *testutil.Namespace
		}{
			{"LAN to published", host, ofA, l.lan},
			{"LAN to host service", host, "7001", l.lan},
			{"environment to the internet, of a list", internet, "8080", namespaces[slotA]},
			{"environment to the internet, open", internet, "8080", namespaces[slotB]},
			{"environment to another of its group", inside.String(), "53", namespaces[slotA]},
			{"environment to published", host, ofA, namespaces[slotB]},
			{"host to published", host, ofA, l.host},
			{"host to its own service", host, "7001", l.host},
		} {
			if got, err := ask(t, flow.from, "udp", net.JoinHostPort(flow.address, flow.port), false); err != nil {
				t.Errorf("%s, %s, with %d environments: %q, %v", flow.name, family, environments, got, err)
			}
			after := counted(t, iptables)
			passed[flow.name+", "+family] = evaluated(before, after)
			before = after
		}
	}
	return passed
}

// countedTable is a table of iptables-save with how many packets each rule was
// true of.
type countedTable struct {
	chains map[string]bool
	rules  []countedRule
}

type countedRule struct {
	chain, to string
	packets   int
}

// counted are all tables by name.
func counted(t *testing.T, iptables string) map[string]*countedTable {
	t.Helper()
	tables, table := make(map[string]*countedTable), (*countedTable)(nil)
	for line := range strings.Lines(testutil.Sh(t, iptables+"-save -c")) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "*"); ok {
			table = &countedTable{chains: make(map[string]bool)}
			tables[name] = table
		}
		if name, ok := strings.CutPrefix(line, ":"); ok {
			name, _, _ = strings.Cut(name, " ")
			table.chains[name] = true
		}
		if count, rule, ok := strings.Cut(line, "] -A "); ok { // [packets:bytes] -A CHAIN … -j TARGET …
			count, _, _ = strings.Cut(count[1:], ":")
			packets, err := strconv.Atoi(count)
			if err != nil {
				t.Fatal(err)
			}
			chain, rest, _ := strings.Cut(rule, " ")
			_, to, _ := strings.Cut(" "+rest, " -j ")
			to, _, _ = strings.Cut(strings.TrimSpace(to), " ")
			table.rules = append(table.rules, countedRule{chain, to, packets})
		}
	}
	return tables
}

// evaluated is how many rules of our chains packets passed in between: all of a
// chain that they came to, up to the one that decided.
func evaluated(before, after map[string]*countedTable) (sum int) {
	for name, table := range after {
		came, chains := make(map[string]int), make(map[string][]countedRule)
		for i, rule := range table.rules {
			rule.packets -= before[name].rules[i].packets
			came[rule.to] += rule.packets
			chains[rule.chain] = append(chains[rule.chain], rule)
		}
		decided := make(map[string]int) // how many did not come back from a chain
		var walk func(chain string) int
		walk = func(chain string) int {
			if known, ok := decided[chain]; ok {
				return known
			}
			left, lost := came[chain], 0
			for _, rule := range chains[chain] {
				sum += left
				gone := 0
				switch {
				case rule.packets == 0:
				case rule.to == "RETURN":
					left -= rule.packets
				case !table.chains[rule.to]:
					gone = rule.packets
				default: // those of another caller had the same fate
					gone = walk(rule.to) * rule.packets / came[rule.to]
				}
				left -= gone
				lost += gone
			}
			decided[chain] = lost
			return lost
		}
		for chain := range came {
			if came[chain] > 0 && table.chains[chain] {
				walk(chain)
			}
		}
	}
	return sum
}
