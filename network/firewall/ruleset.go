package firewall

import (
	"bufio"
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// tables is the order in which tables are applied: what protects before what
// publishes.
func tables() []string { return []string{"raw", "filter", "nat"} }

// chains are the rules of one table by chain, each rule the whole line as
// iptables-save prints it ("-A CHAIN …").
type chains map[string][]string

// ruleset is the chains of all tables.
type ruleset map[string]chains

// text renders a ruleset canonically: tables in order, chains by name.
func (r ruleset) text() string {
	var b strings.Builder
	for _, table := range tables() {
		if len(r[table]) == 0 {
			continue
		}
		names := slices.Sorted(maps.Keys(r[table]))
		fmt.Fprintf(&b, "*%s\n", table)
		for _, name := range names {
			fmt.Fprintf(&b, ":%s - [0:0]\n", name)
		}
		for _, name := range names {
			for _, rule := range r[table][name] {
				b.WriteString(rule + "\n")
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

// parse reads what iptables-save printed.
func parse(saved []byte) ruleset {
	found := make(ruleset)
	table := ""
	lines := bufio.NewScanner(bytes.NewReader(saved))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "*"):
			table = line[1:]
			found[table] = make(chains)
		case strings.HasPrefix(line, ":") && table != "":
			name, _, _ := strings.Cut(line[1:], " ")
			found[table][name] = nil
		case strings.HasPrefix(line, "-A ") && table != "":
			name, _, _ := strings.Cut(line[3:], " ")
			found[table][name] = append(found[table][name], line)
		}
	}
	return found
}

// owned returns the chains for which ours holds.
func (r ruleset) owned(ours func(chain string) bool) ruleset {
	kept := make(ruleset)
	for table, all := range r {
		for name, rules := range all {
			if !ours(name) {
				continue
			}
			if kept[table] == nil {
				kept[table] = make(chains)
			}
			kept[table][name] = rules
		}
	}
	return kept
}

// edits appends to b the lines that turn the chain from its rules there into
// wanted. A chain that only grows is edited by insertion: to rewrite it the
// kernel would have to destroy rules, and with nftables that waits for an RCU
// grace period (8-16 ms) however short the chain is.
func edits(b *strings.Builder, name string, there, wanted []string, exists bool) {
	if exists && subsequence(there, wanted) {
		at := 0
		for i, rule := range wanted {
			if at < len(there) && there[at] == rule {
				at++
				continue
			}
			if at == len(there) { // at the end, for which no program has to list the chain
				b.WriteString(rule + "\n")
				continue
			}
			fmt.Fprintf(b, "-I %s %d%s\n", name, i+1, strings.TrimPrefix(rule, "-A "+name))
		}
		return
	}
	for _, rule := range wanted {
		b.WriteString(rule + "\n")
	}
}

// rewritten tells whether edits empties the chain first.
func rewritten(there, wanted []string, exists bool) bool {
	return !exists || !subsequence(there, wanted)
}

// subsequence tells whether all of short occurs in long in the same order.
func subsequence(short, long []string) bool {
	at := 0
	for _, rule := range long {
		if at < len(short) && short[at] == rule {
			at++
		}
	}
	return at == len(short)
}

// target is the chain that a rule jumps to, or "".
func target(rule string) string {
	fields := strings.Fields(rule)
	for i := len(fields) - 2; i > 0; i-- {
		if fields[i] == "-j" || fields[i] == "-g" {
			return fields[i+1]
		}
	}
	return ""
}
