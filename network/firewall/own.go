package firewall

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/remotegpu/remotegpu/network/firewall/nft"
)

// ownership remembers which changes of the kernel's rules were ours, so that
// whoever watches them can leave those out. The lock of the Firewall guards it.
type ownership struct {
	spans  []generations      // nft: our transactions, the last ones
	tables [families]tablesOf // legacy: as we left them
	left   [families]bool     // tables is set
	hashed [families]bool     // with hashes
}

// tablesOf are tables() of one address family.
type tablesOf = [3]legacyTable

// Address families, as the tables of the legacy backend are counted.
const (
	tablesV4 = iota
	tablesV6
	families
)

// generations are consecutive generations of nftables: after from, up to to.
type generations struct{ from, to uint32 }

// spansKept is how many changes are remembered: more than can happen before
// events of the first are read.
const spansKept = 256

// own runs what changes the host's rules by a script, where these chains are,
// and notes that it was us; of is the family. When others made some meanwhile it
// is noted as theirs: whoever watches looks once more than needed.
func (f *Firewall) own(ctx context.Context, of int, script string, there ruleset, change func() error) error {
	backend, err := f.askBackend(ctx)
	if err != nil {
		return err
	}
	switch backend {
	case legacyBackend:
		return f.ownLegacy(of, script, there, change)
	case standIn:
		return change()
	}
	before, errBefore := nft.Generation()
	err = change()
	after, errAfter := nft.Generation()
	// Without a number, as in a namespace that nobody may look into, all
	// changes are somebody's.
	if errBefore == nil && errAfter == nil && after != before && after-before <= uint32(strings.Count(script, "COMMIT\n")) {
		f.mine.spans = append(f.mine.spans, generations{before, after})
		if extra := len(f.mine.spans) - spansKept; extra > 0 {
			f.mine.spans = slices.Delete(f.mine.spans, 0, extra)
		}
	}
	return err
}

// ownLegacy takes each table as ours as it is after the change, if it was as we
// left it before and has become what the script makes of it. It looks at them
// briefly: what others replace by as much, until the next look, is found by the
// next Restore.
func (f *Firewall) ownLegacy(of int, script string, there ruleset, change func() error) error {
	left := brief(f.mine.tables[of])
	before, errBefore := askTables(of, true)
	if !f.mine.left[of] {
		left = before
	}
	err := change()
	after, errAfter := askTables(of, true)
	grown := growth(script, there)
	if err != nil {
		grown = nil // what was committed before that has to be looked at
	}
	for i, table := range tables() {
		growth, changed := grown[table]
		asMade := after[i] == before[i] || changed && int(after[i].info.entries) == int(before[i].info.entries)+growth
		if errBefore != nil || errAfter != nil || before[i] != left[i] || !asMade {
			after[i] = legacyTable{} // what no table is
		}
	}
	f.mine.tables[of], f.mine.left[of], f.mine.hashed[of] = after, true, false
	return err
}

// brief is tables without what it takes long to tell.
func brief(tables tablesOf) tablesOf {
	for i := range tables {
		tables[i].hash = 0
	}
	return tables
}

// ours tells whether we made the transaction that led to the generation.
func (o *ownership) ours(generation uint32) bool {
	return slices.ContainsFunc(o.spans, func(s generations) bool { return generation-s.from-1 < s.to-s.from })
}

// look notes the tables of the legacy backend before they are read to be
// mended: what others change from now on is theirs. The caller holds mu.
func (f *Firewall) look(ctx context.Context, of int) {
	backend, err := f.askBackend(ctx)
	if err != nil || backend != legacyBackend {
		return // what comes next says why
	}
	tables, err := askTables(of, false)
	f.mine.tables[of], f.mine.left[of], f.mine.hashed[of] = tables, err == nil, true
}

// foreign tells which of the transactions others made, as programs, in order
// and without repetition; lost ones are others'. It waits for a change of ours
// that is being made.
func (f *Firewall) foreign(commits []nft.Commit) (by []string, others bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, commit := range commits {
		if !commit.Lost && (!commit.Touched || f.mine.ours(commit.Generation)) {
			continue
		}
		others = true
		if commit.By != "" && !slices.Contains(by, commit.By) {
			by = append(by, commit.By)
		}
	}
	return by, others
}

// changedTables tells whether tables of the legacy backend are not as we left
// them.
func (f *Firewall) changedTables() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for of := range families {
		if !f.mine.left[of] {
			continue
		}
		now, err := askTables(of, false)
		if err != nil {
			return false, fmt.Errorf("watch rules: %w", err)
		}
		if f.mine.hashed[of] && now != f.mine.tables[of] || brief(now) != brief(f.mine.tables[of]) {
			return true, nil
		}
		f.mine.tables[of], f.mine.hashed[of] = now, true
	}
	return false, nil
}
