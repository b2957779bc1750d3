package netbench

import (
	"fmt"
	"slices"
	"strings"
)

// saved is a ruleset as iptables-save prints it.
type saved struct{ tables []*savedTable }

type savedTable struct {
	name   string
	chains []*savedChain
}

// savedChain is a chain; policy is "-" unless it is a built-in one, rules are
// whole lines.
type savedChain struct {
	name, policy string
	rules        []string
}

// parseSaved reads what iptables-save prints.
func parseSaved(text string) (*saved, error) {
	s := &saved{}
	var table *savedTable
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		switch {
		case line == "" || line[0] == '#' || line == "COMMIT":
		case line[0] == '*':
			table = &savedTable{name: line[1:]}
			s.tables = append(s.tables, table)
		case table == nil:
			return nil, fmt.Errorf("rules begin with %q", line)
		case line[0] == ':':
			fields := strings.Fields(line[1:])
			if len(fields) < 2 {
				return nil, fmt.Errorf("chain %q has no policy", line)
			}
			table.chains = append(table.chains, &savedChain{name: fields[0], policy: fields[1]})
		default:
			fields := strings.Fields(line)
			if len(fields) < 2 || fields[0] != "-A" || table.chain(fields[1]) == nil {
				return nil, fmt.Errorf("%q is no rule of a chain of table %s", line, table.name)
			}
			chain := table.chain(fields[1])
			chain.rules = append(chain.rules, line)
		}
	}
	return s, nil
}

// String is the ruleset for iptables-restore.
func (s *saved) String() string {
	var b strings.Builder
	for _, table := range s.tables {
		fmt.Fprintf(&b, "*%s\n", table.name)
		for _, chain := range table.chains {
			fmt.Fprintf(&b, ":%s %s [0:0]\n", chain.name, chain.policy)
		}
		for _, chain := range table.chains {
			for _, rule := range chain.rules {
				b.WriteString(rule + "\n")
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

// count is how many rules there are.
func (s *saved) count() (rules int) {
	for _, table := range s.tables {
		for _, chain := range table.chains {
			rules += len(chain.rules)
		}
	}
	return rules
}

// table is the one of that name, nil when there is none.
func (s *saved) table(name string) *savedTable {
	at := slices.IndexFunc(s.tables, func(t *savedTable) bool { return t.name == name })
	if at < 0 {
		return nil
	}
	return s.tables[at]
}

// chain is the one of that name, nil when there is none.
func (t *savedTable) chain(name string) *savedChain {
	at := slices.IndexFunc(t.chains, func(c *savedChain) bool { return c.name == name })
	if at < 0 {
		return nil
	}
	return t.chains[at]
}

// option is what follows a flag in a rule, "" when it is not there.
func option(rule, flag string) string {
	fields := strings.Fields(rule)
	if at := slices.Index(fields, flag); at >= 0 && at+1 < len(fields) {
		return fields[at+1]
	}
	return ""
}
