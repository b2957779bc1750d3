package firewall

import (
	"context"
	"fmt"
	"slices"

	"github.com/remotegpu/remotegpu/network/firewall/nft"
)

// ownership remembers which changes of the kernel's rules were ours, so that
// whoever watches them can leave those out. The lock of the Firewall guards it.
type ownership struct {
	spans  []generations  // nft: our transactions, the last ones
	tables [3]legacyTable // legacy: as we left them
	left   bool           // tables is set
	hashed bool           // with hashes
}

// generations are consecutive generations of nftables: after from, up to to.
type generations struct{ from, to uint32 }

// spansKept is how many changes are remembered: more than can happen before
// events of the first are read.
const spansKept = 256

// own runs what changes the host's rules in so many transactions, and notes
// that it was us. When others made some meanwhile it is noted as theirs: whoever
// watches looks once more than needed.
func (f *Firewall) own(ctx context.Context, commits int, change func() error) error {
	backend, err := f.askBackend(ctx)
	if err != nil {
		return err
	}
	if backend == legacyBackend {
		return f.ownLegacy(change)
	}
	before, errBefore := nft.Generation()
	err = change()
	after, errAfter := nft.Generation()
	// Without a number, as in a namespace that nobody may look into, all
	// changes are somebody's.
	if errBefore == nil && errAfter == nil && after != before && after-before <= uint32(commits) {
		f.mine.spans = append(f.mine.spans, generations{before, after})
		if extra := len(f.mine.spans) - spansKept; extra > 0 {
			f.mine.spans = slices.Delete(f.mine.spans, 0, extra)
		}
	}
	return err
}

// ownLegacy takes the tables as ours as they are after the change, unless they
// were not as we left them before it. It looks at them briefly: what others
// replace by as much, until the next look, is found by the next Restore.
func (f *Firewall) ownLegacy(change func() error) error {
	before, errBefore := askTables(true)
	asLeft := !f.mine.left || errBefore == nil && brief(before) == brief(f.mine.tables)
	err := change()
	if after, errAfter := askTables(true); asLeft && errAfter == nil {
		f.mine.tables, f.mine.left, f.mine.hashed = after, true, false
	}
	return err
}

// brief is tables without what it takes long to tell.
func brief(tables [3]legacyTable) [3]legacyTable {
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
func (f *Firewall) look(ctx context.Context) {
	backend, err := f.askBackend(ctx)
	if err != nil || backend != legacyBackend {
		return // what comes next says why
	}
	tables, err := askTables(false)
	f.mine.tables, f.mine.left, f.mine.hashed = tables, err == nil, true
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
	if !f.mine.left {
		return false, nil
	}
	now, err := askTables(false)
	if err != nil {
		return false, fmt.Errorf("watch rules: %w", err)
	}
	if f.mine.hashed {
		return now != f.mine.tables, nil
	}
	if brief(now) != brief(f.mine.tables) {
		return true, nil
	}
	f.mine.tables, f.mine.hashed = now, true
	return false, nil
}
