// Package firewalltest has Tables in memory that stand for the kernel's: tests
// of what is declared need neither root nor iptables with them.
package firewalltest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/remotegpu/remotegpu/internal/hostexec"
)

// Limits of iptables (XT_EXTENSION_MAXNAMELEN of linux/netfilter/x_tables.h
// without the byte at the end, and XT_MAX_COMMENT_LEN).
const (
	nameLimit    = 28
	commentLimit = 255
)

// Exit codes of iptables (xtables.h): of what the kernel refuses, and of what is
// no rule.
const (
	exitOther     = 1
	exitParameter = 2
)

// builtIn are the chains that each table has.
func builtIn(table string) ([]string, bool) {
	chains, known := map[string][]string{
		"raw": {"PREROUTING", "OUTPUT"}, "mangle": {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"},
		"nat": {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"}, "filter": {"INPUT", "FORWARD", "OUTPUT"}, "security": {"INPUT", "FORWARD", "OUTPUT"},
	}[table]
	return chains, known
}

// table is one table's rules: by chain, without "-A CHAIN ".
type table struct {
	name     string
	chains   map[string][]string
	policies map[string]string // of built-in chains
}

func newTable(name string) (*table, error) {
	chains, known := builtIn(name)
	if !known {
		return nil, fmt.Errorf("can't initialize iptables table `%s': Table does not exist", name)
	}
	t := &table{name: name, chains: make(map[string][]string), policies: make(map[string]string)}
	for _, chain := range chains {
		t.chains[chain], t.policies[chain] = nil, "ACCEPT"
	}
	return t, nil
}

func (t *table) clone() *table {
	copied := &table{name: t.name, chains: make(map[string][]string, len(t.chains)), policies: maps.Clone(t.policies)}
	for chain, rules := range t.chains {
		copied.chains[chain] = slices.Clone(rules)
	}
	return copied
}

// Tables implements firewall.Tables in memory. They do with a script what
// iptables-restore --noflush does, and refuse what iptables or the kernel
// refuses: chains that are not there, that are in use or too long, jumps in a
// circle, matches and options that rules of ours do not have. A rule is kept as
// it is written, so it has to be written as iptables-save prints it. The zero
// value has no rules. Safe for concurrent use.
type Tables struct {
	mu     sync.Mutex
	tables map[string]*table
	fail   error
}

// Fail has the next calls return err and change nothing; nil: no more.
func (t *Tables) Fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fail = err
}

// Save implements firewall.Tables.
func (t *Tables) Save(context.Context) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fail != nil {
		return nil, t.fail
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(t.tables)) {
		one := t.tables[name]
		fmt.Fprintf(&b, "# made by firewalltest\n*%s\n", name)
		chains := slices.Sorted(maps.Keys(one.chains))
		for _, chain := range chains {
			policy := one.policies[chain]
			if policy == "" {
				policy = "-"
			}
			fmt.Fprintf(&b, ":%s %s [0:0]\n", chain, policy)
		}
		for _, chain := range chains {
			for _, rule := range one.chains[chain] {
				fmt.Fprintf(&b, "-A %s %s\n", chain, rule)
			}
		}
		b.WriteString("COMMIT\n")
	}
	return []byte(b.String()), nil
}

// NewChain implements firewall.Tables.
func (t *Tables) NewChain(ctx context.Context, table, chain string) error {
	return t.Restore(ctx, fmt.Sprintf("*%s\n-N %s\nCOMMIT\n", table, chain))
}

// Restore implements firewall.Tables.
func (t *Tables) Restore(_ context.Context, script string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fail != nil {
		return t.fail
	}
	var at *table
	number := 0
	for line := range strings.Lines(script) {
		number++
		line = strings.TrimSuffix(line, "\n")
		var err error
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '*':
			at, err = t.open(line[1:])
		case at == nil:
			err = errParameter("no table is named")
		case line == "COMMIT":
			if err = at.acyclic(); err == nil {
				if t.tables == nil {
					t.tables = make(map[string]*table)
				}
				t.tables[at.name], at = at, nil
			}
		case line[0] == ':':
			err = at.declare(line[1:])
		default:
			err = at.command(line)
		}
		if err != nil {
			return refuse(number, err)
		}
	}
	if at != nil {
		return refuse(number+1, errParameter("COMMIT expected"))
	}
	return nil
}

// open is a copy of a table, which COMMIT puts in its place.
func (t *Tables) open(name string) (*table, error) {
	if there := t.tables[name]; there != nil {
		return there.clone(), nil
	}
	return newTable(name)
}

// errParameter is what iptables does not take for a rule, whatever the kernel
// has.
type errParameter string

func (e errParameter) Error() string { return string(e) }

// refuse says in which line iptables-restore ended.
func refuse(line int, err error) error {
	code := exitOther
	if _, ok := errors.AsType[errParameter](err); ok {
		code = exitParameter
	}
	said := fmt.Sprintf("%v\nError occurred at line: %d", err, line)
	return &hostexec.Error{Program: "iptables-restore", Code: code, Stderr: said, Err: os.ErrInvalid}
}

// declare makes a chain, or empties it: "NAME POLICY [0:0]". A built-in one keeps
// its rules.
func (t *table) declare(line string) error {
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return errParameter("a chain needs a policy")
	}
	chain, policy := fields[0], fields[1]
	if t.policies[chain] != "" {
		if policy != "-" {
			t.policies[chain] = policy
		}
		return nil
	}
	if policy != "-" {
		return errParameter("can't set policy of " + chain)
	}
	if err := checkName(chain); err != nil {
		return err
	}
	t.chains[chain] = nil
	return nil
}

func checkName(chain string) error {
	if chain == "" || len(chain) > nameLimit || strings.ContainsAny(chain, " \"") || strings.HasPrefix(chain, "-") {
		return errParameter(fmt.Sprintf("chain name `%s' too long (must be under %d chars)", chain, nameLimit+1))
	}
	return nil
}

// refused is what iptables says of what is not possible with the rules there are.
type refused string

func (r refused) Error() string { return string(r) }

// command runs one line of a script.
func (t *table) command(line string) error {
	verb, rest, _ := strings.Cut(line, " ")
	chain, rest, _ := strings.Cut(rest, " ")
	rules, there := t.chains[chain]
	switch {
	case verb == "-N":
		return t.make(chain, there)
	case (verb == "-F" || verb == "-X") && chain == "":
		return t.all(verb)
	case !there:
		return refused("No chain/target/match by that name.")
	}
	switch verb {
	case "-P":
		return t.declare(chain + " " + rest)
	case "-F":
		t.chains[chain] = nil
		return nil
	case "-X":
		return t.remove(chain)
	case "-A":
		return t.insert(chain, len(rules)+1, rest)
	case "-I":
		at, rule := position(rest)
		return t.insert(chain, max(at, 1), rule)
	case "-D", "-R":
		at, rule := position(rest)
		if verb == "-D" && at == 0 {
			text, err := t.check(rule)
			if err != nil {
				return err
			}
			if at = slices.Index(rules, text) + 1; at == 0 {
				return refused("Bad rule (does a matching rule exist in that chain?).")
			}
		}
		if at < 1 || at > len(rules) {
			return refused("Index of deletion too big.")
		}
		t.chains[chain] = slices.Delete(rules, at-1, at)
		if verb == "-R" {
			return t.insert(chain, at, rule)
		}
		return nil
	}
	return errParameter("unknown option " + verb)
}

func (t *table) make(chain string, there bool) error {
	if there {
		return refused("Chain already exists.")
	}
	if err := checkName(chain); err != nil {
		return err
	}
	t.chains[chain] = nil
	return nil
}

// all empties all chains, or removes all that are not built in.
func (t *table) all(verb string) error {
	for _, chain := range slices.Sorted(maps.Keys(t.chains)) {
		if verb == "-F" {
			t.chains[chain] = nil
			continue
		}
		if t.policies[chain] != "" {
			continue
		}
		if err := t.remove(chain); err != nil {
			return err
		}
	}
	return nil
}

// remove removes a chain that is empty and that nothing leads to.
func (t *table) remove(chain string) error {
	switch {
	case t.policies[chain] != "":
		return refused("Can't delete built-in chain.")
	case len(t.chains[chain]) > 0:
		return refused("Directory not empty.")
	}
	for _, rules := range t.chains {
		if slices.ContainsFunc(rules, func(rule string) bool { return target(rule) == chain }) {
			return refused("Too many links.")
		}
	}
	delete(t.chains, chain)
	return nil
}

// position is the number that a rule begins with, 0 when it has none.
func position(text string) (at int, rule string) {
	first, rest, _ := strings.Cut(text, " ")
	if at, err := strconv.Atoi(first); err == nil {
		return at, rest
	}
	return 0, text
}

// insert puts a rule in its place, the first being 1.
func (t *table) insert(chain string, at int, rule string) error {
	text, err := t.check(rule)
	if err != nil {
		return err
	}
	if at > len(t.chains[chain])+1 {
		return refused("Index of insertion too big.")
	}
	t.chains[chain] = slices.Insert(t.chains[chain], at-1, text)
	return nil
}

// acyclic refuses jumps in a circle.
func (t *table) acyclic() error {
	const entered, left = 1, 2
	seen := make(map[string]int, len(t.chains))
	var enter func(chain string) error
	enter = func(chain string) error {
		switch seen[chain] {
		case entered:
			return refused("Too many levels of symbolic links.")
		case left:
			return nil
		}
		seen[chain] = entered
		for _, rule := range t.chains[chain] {
			if to := target(rule); to != "" {
				if err := enter(to); err != nil {
					return err
				}
			}
		}
		seen[chain] = left
		return nil
	}
	for chain := range t.chains {
		if err := enter(chain); err != nil {
			return err
		}
	}
	return nil
}
