package firewall

import "maps"

// rendering is the rules of a state, kept so that the next one is rendered only
// where it differs. Its zero value is that of no state.
type rendering struct {
	published    *portTree
	around       ruleset // everything else
	policies     map[string]*Policy
	surroundings Surroundings
}

// selection names chains by table.
type selection map[string]map[string]bool

// add adds all chains of rules.
func (s selection) add(rules ruleset) {
	for table, all := range rules {
		if s[table] == nil {
			s[table] = make(map[string]bool, len(all))
		}
		for name := range all {
			s[table][name] = true
		}
	}
}

// take renders desired and returns the chains that may be others now, came or
// went. What is refused changes nothing: the errors are those of a mapping or a
// policy.
func (r *rendering) take(l *layout, desired Desired) (changed selection, err error) {
	var around ruleset
	if r.around == nil || !r.surroundings.Equal(&desired.Surroundings) || !r.samePolicies(desired.Policies) {
		if around, err = l.renderAround(&desired); err != nil {
			return nil, err
		}
	}
	if r.published == nil {
		r.published = newPortTree(l)
	}
	ports, err := r.published.take(desired.Mappings)
	if err != nil {
		return nil, err
	}
	changed = selection{"nat": ports}
	if around == nil {
		return changed, nil
	}
	changed.add(r.around)
	changed.add(around)
	r.around, r.surroundings = around, desired.Surroundings
	r.policies = make(map[string]*Policy, len(desired.Policies))
	for i := range desired.Policies {
		r.policies[desired.Policies[i].EnvID] = &desired.Policies[i]
	}
	return changed, nil
}

// samePolicies tells whether the policies are those that were rendered, in
// whatever order.
func (r *rendering) samePolicies(policies []Policy) bool {
	if len(policies) != len(r.policies) {
		return false
	}
	for i := range policies {
		if known := r.policies[policies[i].EnvID]; known == nil || !known.Equal(&policies[i]) {
			return false
		}
	}
	return true
}

// only is the rules of the chains that are selected, those that there are.
func (r *rendering) only(chosen selection) ruleset {
	kept := r.around.only(chosen)
	for name := range chosen["nat"] {
		if rules, ok := r.published.chains[name]; ok {
			kept.set("nat", name, rules)
		}
	}
	return kept
}

// state is all rules, as a copy that following states do not change.
func (r *rendering) state() ruleset {
	all := make(ruleset, len(r.around))
	for table, rules := range r.around {
		all[table] = maps.Clone(rules)
	}
	for name, rules := range r.published.chains {
		all.set("nat", name, rules)
	}
	return all
}

// only is the rules of the chains that are selected, those that there are.
func (r ruleset) only(chosen selection) ruleset {
	kept := make(ruleset)
	for table, names := range chosen {
		for name := range names {
			if rules, ok := r[table][name]; ok {
				kept.set(table, name, rules)
			}
		}
	}
	return kept
}

// set gives a chain its rules.
func (r ruleset) set(table, name string, rules []string) {
	if r[table] == nil {
		r[table] = make(chains)
	}
	r[table][name] = rules
}

// update makes the chains that are selected those of other; what is not there
// goes.
func (r ruleset) update(chosen selection, other ruleset) {
	for table, names := range chosen {
		for name := range names {
			if rules, ok := other[table][name]; ok {
				r.set(table, name, rules)
			} else {
				delete(r[table], name)
			}
		}
	}
}
