package firewall

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// DifferenceKind is how a rule or chain differs from what was declared.
type DifferenceKind string

// The kinds.
const (
	Missing    DifferenceKind = "missing"    // it should be there and is not
	Unexpected DifferenceKind = "unexpected" // it is there and should not be
	Misordered DifferenceKind = "misordered" // the rules of the chain are in another order, or doubled
)

// Difference is one way in which the kernel's rules differ from what was
// declared.
type Difference struct {
	Kind  DifferenceKind
	Table string
	Chain string
	Rule  string // as iptables-save prints it; "": it is about the chain
	EnvID string // the environment that the rule serves; "" when it serves none alone
}

// String is the difference as a line: "-" is missing, "+" is there and should
// not be, "!" is in disorder.
func (d Difference) String() string {
	mark := map[DifferenceKind]string{Missing: "-", Unexpected: "+", Misordered: "!"}[d.Kind]
	switch {
	case d.Rule != "":
		return fmt.Sprintf("%s %s %s", mark, d.Table, d.Rule)
	case d.Kind == Misordered:
		return fmt.Sprintf("%s %s :%s has its rules in another order or doubled", mark, d.Table, d.Chain)
	default:
		return fmt.Sprintf("%s %s :%s", mark, d.Table, d.Chain)
	}
}

// Differences tells how the kernel's rules differ from desired, tables in the
// order in which they are applied, chains by name, hooks at the end; then those
// of IPv6. It changes nothing.
func (f *Firewall) Differences(ctx context.Context, desired Desired) ([]Difference, error) {
	wanted, err := f.v4.render(desired)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	there, err := f.v4.read(ctx)
	if err != nil {
		return nil, fmt.Errorf("compare rules: %w", err)
	}
	ofV6, _ := f.differencesV6(f.readV6(ctx), desired)
	return append(f.v4.differences(there, wanted), ofV6...), nil
}

// Diff tells how the kernel's rules differ from what was last set, one line
// for each difference. It is empty when nothing differs.
func (f *Firewall) Diff(ctx context.Context) (string, error) {
	f.mu.Lock()
	desired := f.desired
	f.mu.Unlock()
	differences, err := f.Differences(ctx, desired)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, d := range differences {
		b.WriteString(d.String() + "\n")
	}
	return b.String(), nil
}

// Text returns what was last set, as iptables-save would print our chains.
func (f *Firewall) Text() (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Render(f.desired)
}

// Render returns desired as iptables-save would print our chains, and where
// environments have IPv6 then as ip6tables-save would, behind a line that says
// so. It looks at nothing.
func (f *Firewall) Render(desired Desired) (string, error) {
	wanted, err := f.v4.render(desired)
	if err != nil {
		return "", err
	}
	if f.wantsV6() && f.v6 != nil {
		six, err := f.v6.render(desired)
		if err != nil {
			return "", err
		}
		return wanted.text() + sixMark + six.text(), nil
	}
	return wanted.text(), nil
}

// sixMark is between the rules of IPv4 and those of IPv6.
const sixMark = "# IPv6\n"

// differences tells how our chains and hooks there differ from wanted.
func (f *family) differences(there, wanted ruleset) []Difference {
	var all []Difference
	owned := f.holdings(there)
	for _, table := range tables() {
		for _, name := range slices.Sorted(maps.Keys(mergeKeys(owned[table], wanted[table]))) {
			have, exists := owned[table][name]
			want, expected := wanted[table][name]
			switch {
			case !exists:
				all = append(all, Difference{Kind: Missing, Table: table, Chain: name})
			case !expected:
				all = append(all, Difference{Kind: Unexpected, Table: table, Chain: name})
			}
			all = append(all, f.ruleDifferences(table, name, have, want)...)
		}
	}
	if !f.hasAdmin(there) {
		all = append(all, Difference{Kind: Missing, Table: "filter", Chain: f.admin()})
	}
	hooks := f.hooksTo(wanted)
	strays, removed := f.strays(there, hooks)
	for _, stray := range strays {
		all = append(all, Difference{Kind: Unexpected, Table: stray.table, Chain: stray.chain, Rule: stray.rule})
	}
	for _, h := range hooks {
		// One that is behind a barrier is taken away there and put in front.
		if !f.inPlace(there, h) || removed[h.table+h.line(f.prefix)] {
			all = append(all, Difference{Kind: Missing, Table: h.table, Chain: h.chain, Rule: h.line(f.prefix)})
		}
	}
	return all
}

// ruleDifferences compares the rules of one chain.
func (f *family) ruleDifferences(table, chain string, have, want []string) []Difference {
	var all []Difference
	add := func(kind DifferenceKind, rule string) {
		all = append(all, Difference{Kind: kind, Table: table, Chain: chain, Rule: rule, EnvID: f.envOf(rule)})
	}
	known := make(map[string]bool, len(have))
	for _, rule := range have {
		known[rule] = true
	}
	for _, rule := range want {
		if !known[rule] {
			add(Missing, rule)
		}
		delete(known, rule)
	}
	for _, rule := range have {
		if known[rule] {
			add(Unexpected, rule)
		}
	}
	if len(all) == 0 && !slices.Equal(have, want) {
		all = append(all, Difference{Kind: Misordered, Table: table, Chain: chain})
	}
	return all
}

// envOf is the environment that a rule says it serves, or "".
func (f *family) envOf(rule string) string {
	_, after, found := strings.Cut(rule, `--comment "`+strings.ToLower(f.prefix)+":env=")
	if !found {
		// iptables-save quotes only comments that need it.
		_, after, found = strings.Cut(rule, "--comment "+strings.ToLower(f.prefix)+":env=")
	}
	if !found {
		return ""
	}
	return after[:max(0, strings.IndexAny(after+" ", `: "`))]
}

func mergeKeys(a, b chains) chains {
	all := make(chains, len(a)+len(b))
	maps.Copy(all, a)
	maps.Copy(all, b)
	return all
}

// changed names the chains in which a and b differ.
func changed(a, b ruleset) []string {
	var names []string
	for _, table := range tables() {
		for _, name := range slices.Sorted(maps.Keys(mergeKeys(a[table], b[table]))) {
			have, inA := a[table][name]
			want, inB := b[table][name]
			if inA != inB || !slices.Equal(have, want) {
				names = append(names, name)
			}
		}
	}
	return names
}
