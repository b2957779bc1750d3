package firewall

import "strings"

// A chain of ours that somebody renames (iptables -E) keeps its rules, and the
// hook to it, which then says that it is ours and leads to a name that is not.

// isHook tells whether a rule says that it is a hook of ours.
func (f *family) isHook(rule string) bool {
	return strings.Contains(rule, ` --comment "`+strings.ToLower(f.prefix)+`:hook" `)
}

// holdings are our chains: those of our names, and those that were called so
// before somebody renamed them.
func (f *family) holdings(there ruleset) ruleset {
	kept := there.owned(f.ours)
	for table, all := range f.renamed(there) {
		for name, rules := range all {
			kept.set(table, name, rules)
		}
	}
	return kept
}

// renamed are chains of other names that hooks of ours lead to, and no rule of
// others, and that have no rule but ours.
func (f *family) renamed(there ruleset) ruleset {
	found := make(ruleset)
	for table, all := range there {
		for chain, rules := range all {
			if f.prefixed(chain) {
				continue
			}
			for _, rule := range rules {
				to := target(rule)
				if has, exists := all[to]; exists && !f.prefixed(to) && f.isHook(rule) && f.hasOnlyOurs(has) && !f.othersLeadTo(all, to) {
					found.set(table, to, has)
				}
			}
		}
	}
	return found
}

// hasOnlyOurs tells whether all rules are ours, but for those that do nothing.
func (f *family) hasOnlyOurs(rules []string) bool {
	for _, rule := range rules {
		to := target(rule)
		ours := f.prefixed(to) || to == "RETURN" || strings.Contains(rule, ` --comment "`+strings.ToLower(f.prefix)+`:`) ||
			f.layout != nil && strings.Contains(rule, " "+f.layout.bridges()+" ")
		if !ours {
			return false
		}
	}
	return true
}

// othersLeadTo tells whether a rule that is not ours leads to a chain.
func (f *family) othersLeadTo(all chains, to string) bool {
	for chain, rules := range all {
		for _, rule := range rules {
			if target(rule) == to && !f.ours(chain) && !f.isHook(rule) {
				return true
			}
		}
	}
	return false
}
