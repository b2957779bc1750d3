package netbench

import (
	"errors"
	"strconv"
	"strings"

	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/port"
)

// step is a rule of the tree that leads to published TCP ports.
type step struct {
	first, last int // ports that it is about; none when last is 0
	to          string
}

// portSteps are the rules of each chain of the nat table, of TCP ports alone.
func portSteps(rules *saved) map[string][]step {
	steps := make(map[string][]step)
	table := rules.table("nat")
	if table == nil {
		return nil
	}
	for _, chain := range table.chains {
		for _, rule := range chain.rules {
			one := step{to: option(rule, "-j")}
			if option(rule, "-p") == "tcp" {
				low, high, span := strings.Cut(option(rule, "--dport"), ":")
				if !span {
					high = low
				}
				one.first, _ = strconv.Atoi(low) // no number: the rule is about none
				one.last, _ = strconv.Atoi(high)
			}
			steps[chain.name] = append(steps[chain.name], one)
		}
	}
	return steps
}

// passed is how many rules a packet to a port passes from a chain on, with that
// which leads to the environment.
func passed(steps map[string][]step, chain string, number int) (count int, found bool) {
	for _, one := range steps[chain] {
		count++
		if number < one.first || number > one.last {
			continue
		}
		if _, more := steps[one.to]; !more {
			return count, true
		}
		below, found := passed(steps, one.to, number)
		count += below
		if found {
			return count, true
		}
	}
	return count, false
}

// worst is the index of the mapping, of those that everybody reaches by TCP, to
// which a packet passes most of our rules.
func worst(f *firewall.Firewall, all []firewall.Mapping) (int, error) {
	text, err := f.Render(firewall.Desired{Mappings: all})
	if err != nil {
		return 0, err
	}
	rules, err := parseSaved(text)
	if err != nil {
		return 0, err
	}
	steps, most, at := portSteps(rules), 0, -1
	for i := range all {
		if all[i].Protocol != port.TCP || len(all[i].Sources) > 0 {
			continue
		}
		count, found := passed(steps, firewall.DefaultPrefix+"-DNAT", int(all[i].HostPort))
		if found && count > most {
			most, at = count, i
		}
	}
	if at < 0 {
		return 0, errors.New("no rule leads to a published port")
	}
	return at, nil
}
