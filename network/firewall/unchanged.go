package firewall

import (
	"context"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/firewall/nft"
	"github.com/remotegpu/remotegpu/network/port"
)

// mark is a state of the kernel's rules in short: while it is the same nobody
// has changed any, and what was read then need not be read again. nf_tables
// counts its transactions, by whomever; of the legacy backend it is a hash of
// the tables.
type mark struct {
	known      bool
	generation uint32
	tables     tablesOf
}

// markOf is the mark of a family's rules as they are now, not known where it
// cannot be had. The caller holds mu.
func (f *Firewall) markOf(ctx context.Context, of int) mark {
	backend, err := f.askBackend(ctx)
	switch {
	case err != nil || backend == standIn:
		return mark{}
	case backend != legacyBackend:
		return generationMark()
	case of == tablesV6 && !f.wantsV6():
		return mark{} // others' tables of IPv6 are not looked at for one rule
	}
	tables, err := askTables(of, false)
	return mark{known: err == nil, tables: tables}
}

// generationMark is the mark of all that nf_tables has.
func generationMark() mark {
	generation, err := nft.Generation()
	return mark{known: err == nil, generation: generation}
}

// verified is the rules of a family that a repair has found to be in force, and
// the mark of before it looked.
type verified struct {
	mark  mark
	rules ruleset
}

// stands tells whether wanted was found to be in force, hooks and all, and
// nobody has changed a rule since.
func (v *verified) stands(now mark, wanted ruleset) bool {
	return now.known && now == v.mark && v.rules.equal(wanted)
}

// repair is that of a family, without a look at rules that nobody can have
// changed. The caller holds mu.
func (f *Firewall) repair(ctx context.Context, family *family, of int, wanted ruleset) (mended []string, err error) {
	now := f.markOf(ctx, of)
	if family.verified.stands(now, wanted) {
		return nil, nil
	}
	family.verified = verified{}
	mended, err = family.repair(ctx, wanted)
	if err == nil && len(mended) == 0 {
		family.verified = verified{mark: now, rules: wanted}
	}
	return mended, err
}

// equal tells whether both have the same chains with the same rules.
func (r ruleset) equal(other ruleset) bool {
	return maps.EqualFunc(r, other, func(a, b chains) bool { return maps.EqualFunc(a, b, slices.Equal[[]string]) })
}

// noTables tells whether the legacy backend has no tables in the calling thread's
// network namespace, so no rules of whomever.
func noTables() bool {
	for _, file := range []string{legacyTables, legacyTables6} {
		names, err := os.ReadFile(file)
		if err != nil && !os.IsNotExist(err) || len(strings.TrimSpace(string(names))) > 0 {
			return false
		}
	}
	return true
}

// seen is what was found in the rules of others when nf_tables was last looked
// through.
type seen struct {
	barriers      mark
	barriersFound []nft.Barrier
	others        mark // of the other backend, where that is nf_tables
	othersNames   bool // environments asked the node for names then
	othersFound   []*problem.Problem
	spans         mark
	local         []netip.Addr // the host's addresses then
	spansFound    []port.Span
}

// barriersNow are nft.Barriers, looked for where somebody has changed rules. The
// caller holds looking.
func (f *Firewall) barriersNow() ([]nft.Barrier, error) {
	now := generationMark()
	if now.known && now == f.seen.barriers {
		return f.seen.barriersFound, nil
	}
	found, err := nft.Barriers(f.cfg.Interface, f.wantsV6())
	if err != nil {
		now = mark{}
	}
	f.seen.barriers, f.seen.barriersFound = now, found
	return found, err
}
