package firewall

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"
)

// family is one address family's programs and layout.
type family struct {
	program string // its iptables; "": the tables are not the kernel's
	tables  Tables
	render  func(Desired) (ruleset, error)
	hooks   []hook // those to chains that are wanted
	prefix  string
	log     *slog.Logger
	// own runs what changes rules by a script, where these chains are.
	own func(ctx context.Context, script string, there ruleset, change func() error) error

	layout   *layout // nil: it publishes nothing, and has no chain of the administrator's
	bare     ruleset // all its rules then
	rendered rendering
	applied  ruleset // what the kernel holds as far as we know, rendered before; nil: unknown
	verified verified
}

// hook is the jump from a built-in chain into one of ours.
type hook struct {
	table, chain string
	match        []string
	to           string
}

// loopback are the addresses of a host to itself (RFC 1122).
const loopback = "127.0.0.0/8"

// hooksOf are the hooks of a family. DNAT applies to what is addressed to the host
// itself, whatever its addresses are at the time. The host's own packets pass
// as few of our rules as can be: INPUT leads to ours only from bridges,
// POSTROUTING only from addresses that may need another.
func hooksOf(l *layout) []hook {
	prefix, local := l.prefix, []string{"-m", "addrtype", "--dst-type", "LOCAL"}
	incoming, own := local, local
	if l.twins != nil {
		// What has a link-local source is not forwarded, and there is no
		// route_localnet of IPv6 that would let ::1 leave the loopback.
		incoming = append([]string{"!", "-s", "fe80::/10"}, local...)
		own = append([]string{"!", "-s", "fe80::/10", "!", "-d", "::1/128"}, local...)
	}
	hooks := []hook{
		{"raw", "PREROUTING", nil, prefix + "-RAW"},
		{"filter", "FORWARD", nil, prefix + "-FWD"},
		{"filter", "INPUT", []string{"-i", l.bridges()}, prefix + "-IN"},
		{"nat", "POSTROUTING", []string{"-s", l.network().String()}, prefix + "-POST"},
		{"nat", "PREROUTING", incoming, prefix + "-DNAT"},
		{"nat", "OUTPUT", own, prefix + "-DNAT"},
	}
	if l.twins == nil {
		hooks = append(hooks, hook{"nat", "POSTROUTING", []string{"-s", loopback}, prefix + "-POST"})
	}
	return hooks
}

// take renders a desired state and returns the chains that it changes.
func (f *family) take(desired Desired) (selection, error) {
	if f.layout == nil {
		bare, err := f.render(desired)
		if err == nil {
			f.bare = bare
		}
		return nil, err // nothing changes that a change would be applied of
	}
	return f.rendered.take(f.layout, desired)
}

// state is all rules of the state that was taken last.
func (f *family) state() ruleset {
	if f.layout == nil {
		return f.bare
	}
	return f.rendered.state()
}

// change applies the chains that were changed by the last take, to what is
// known to be applied. After an error nothing is known.
func (f *family) change(ctx context.Context, changed selection) error {
	there, wanted := f.applied.only(changed), f.rendered.only(changed)
	script := f.script(there, wanted, nil)
	if script == "" {
		return nil
	}
	applied := f.applied
	f.applied = nil
	if err := f.run(ctx, script, there); err != nil {
		return err
	}
	applied.update(changed, wanted)
	f.applied = applied
	return nil
}

// line is the hook as iptables-save prints it.
func (h hook) line(prefix string) string {
	parts := slices.Concat([]string{"-A", h.chain}, h.match,
		[]string{"-m", "comment", "--comment", `"` + strings.ToLower(prefix) + `:hook"`, "-j", h.to})
	return strings.Join(parts, " ")
}

func (h hook) name() string { return h.table + " " + h.chain + " hook" }

// admin is the chain that belongs to the administrator: made once, never
// flushed, never named in what is applied (naming it would empty it).
func (f *family) admin() string { return f.prefix + "-USER" }

// hasAdmin tells whether that chain is there, if there should be one.
func (f *family) hasAdmin(there ruleset) bool {
	_, ok := there["filter"][f.admin()]
	return ok || f.layout == nil
}

func (f *family) prefixed(chain string) bool { return strings.HasPrefix(chain, f.prefix+"-") }

func (f *family) ours(chain string) bool { return f.prefixed(chain) && chain != f.admin() }

// read returns all rules of the host.
func (f *family) read(ctx context.Context) (ruleset, error) {
	var out []byte
	err := retry(ctx, func() (err error) {
		out, err = f.tables.Save(ctx)
		return err
	})
	if err != nil {
		return nil, failed("read the host's rules", err)
	}
	return parse(out), nil
}

// run applies a script for iptables-restore, where these chains are. Each table
// in it is committed whole or not at all.
func (f *family) run(ctx context.Context, script string, there ruleset) error {
	err := f.own(ctx, script, there, func() error {
		return retry(ctx, func() error { return f.tables.Restore(ctx, script) })
	})
	if err != nil {
		return failed("apply rules", err)
	}
	return nil
}

// script is what turns our chains there into wanted and then adds hooks, by
// table, or "". It declares only chains that must be made or emptied, and
// removes those nobody wants.
func (f *family) script(there, wanted ruleset, hooks map[string]string) string {
	var b strings.Builder
	for _, table := range tables() {
		var declared, rules, removed strings.Builder
		for _, name := range slices.Sorted(maps.Keys(wanted[table])) {
			have, exists := there[table][name]
			want := wanted[table][name]
			if exists && slices.Equal(have, want) {
				continue
			}
			if rewritten(have, want, exists) {
				fmt.Fprintf(&declared, ":%s - [0:0]\n", name)
			}
			edits(&rules, name, have, want, exists)
		}
		for _, name := range slices.Sorted(maps.Keys(there[table])) {
			if _, keep := wanted[table][name]; !keep {
				fmt.Fprintf(&declared, ":%s - [0:0]\n", name)
				fmt.Fprintf(&removed, "-X %s\n", name)
			}
		}
		rules.WriteString(hooks[table])
		if declared.Len()+rules.Len()+removed.Len() > 0 {
			fmt.Fprintf(&b, "*%s\n%s%s%sCOMMIT\n", table, declared.String(), rules.String(), removed.String())
		}
	}
	return b.String()
}

// repair reads the kernel's rules and mends what differs from wanted, each
// table at once: no hook leads to a chain that is not complete, and none is
// absent while it is moved.
func (f *family) repair(ctx context.Context, wanted ruleset) (mended []string, err error) {
	there, err := f.read(ctx)
	if err != nil {
		return nil, err
	}
	if !f.hasAdmin(there) {
		made := fmt.Sprintf("*filter\n:%s - [0:0]\nCOMMIT\n", f.admin())
		if err := f.own(ctx, made, there, func() error { return f.tables.NewChain(ctx, "filter", f.admin()) }); err != nil {
			return nil, failed("make chain "+f.admin(), err)
		}
		mended = append(mended, f.admin())
	}
	owned := f.holdings(there)
	hooks, names := f.hookEdits(there, wanted)
	if script := f.script(owned, wanted, hooks); script != "" {
		if err := f.run(ctx, script, there); err != nil {
			return mended, err
		}
		mended = append(append(mended, changed(owned, wanted)...), names...)
	}
	if len(mended) > 0 {
		f.log.DebugContext(ctx, "firewall mended", "what", mended)
	}
	return mended, nil
}

// hookEdits are rules by table that take away jumps to our chains which should
// not be where they are, and put the hooks that are not in place in front of
// everything else, and the names of what that mends.
func (f *family) hookEdits(there, wanted ruleset) (rules map[string]string, names []string) {
	rules = make(map[string]string)
	hooks := f.hooksTo(wanted)
	strays, removed := f.strays(there, hooks)
	isHook := func(s stray) bool {
		return slices.ContainsFunc(hooks, func(h hook) bool { return h.table == s.table && h.line(f.prefix) == s.rule })
	}
	remove := func(table, rule string) { rules[table] += "-D" + strings.TrimPrefix(rule, "-A") + "\n" }
	for _, s := range strays {
		if !isHook(s) {
			remove(s.table, s.rule)
		}
	}
	if len(strays) > 0 {
		names = append(names, "stray hooks")
	}
	for _, h := range hooks {
		line := h.line(f.prefix)
		if f.inPlace(there, h) && !slices.Contains(strays, stray{h.table, h.chain, line}) {
			continue
		}
		// A rule is deleted by what it says, and of two that say the same the
		// first one goes, which may be the right one: all go.
		for _, rule := range there[h.table][h.chain] {
			if rule == line {
				remove(h.table, line)
			}
		}
		rules[h.table] += fmt.Sprintf("-I %s 1%s\n", h.chain, strings.TrimPrefix(line, "-A "+h.chain))
		if !f.inPlace(there, h) || removed[h.table+line] {
			names = append(names, h.name())
		}
	}
	return rules, names
}

// differs names what repair would mend.
func (f *family) differs(there, wanted ruleset) []string {
	var names []string
	if !f.hasAdmin(there) {
		names = append(names, f.admin())
	}
	names = append(names, changed(f.holdings(there), wanted)...)
	_, hooks := f.hookEdits(there, wanted)
	return append(names, hooks...)
}

// hooksTo are the hooks that lead to chains which are wanted.
func (f *family) hooksTo(wanted ruleset) (hooks []hook) {
	for _, h := range f.hooks {
		if _, ok := wanted[h.table][h.to]; ok {
			hooks = append(hooks, h)
		}
	}
	return hooks
}

// inPlace tells whether the hook is there, wherever in its chain.
func (f *family) inPlace(there ruleset, h hook) bool {
	return slices.Contains(there[h.table][h.chain], h.line(f.prefix))
}

// stray is a jump to our chains from a built-in chain that should not be
// there.
type stray struct{ table, chain, rule string }

// strays lists every jump to our chains from built-in chains that is doubled,
// of another form than we make, or that comes after a rule which may keep
// packets from it, and every hook that leads elsewhere. removed has table and
// rule of those hooks of which none is where it should be.
func (f *family) strays(there ruleset, hooks []hook) (all []stray, removed map[string]bool) {
	removed = make(map[string]bool)
	renamed := f.renamed(there) // they go with all that is in them
	for _, table := range tables() {
		for _, chain := range slices.Sorted(maps.Keys(there[table])) {
			if _, goes := renamed[table][chain]; goes || f.prefixed(chain) {
				continue
			}
			seen, sealed := map[string]bool{}, false
			for _, rule := range there[table][chain] {
				to := target(rule)
				if !f.ours(to) && !f.isHook(rule) {
					sealed = sealed || table == "filter" || seals(rule, chain)
					continue
				}
				known := slices.ContainsFunc(hooks, func(h hook) bool { return h.table == table && h.line(f.prefix) == rule })
				if !known || seen[rule] || sealed {
					all = append(all, stray{table, chain, rule})
					removed[table+rule] = removed[table+rule] || !seen[rule]
				}
				seen[rule] = true
			}
		}
	}
	return all, removed
}

// seals tells whether no packet gets past the rule. In the filter table every
// rule counts as such: what it accepts neither isolation nor a policy sees.
func seals(rule, chain string) bool {
	rest := strings.TrimPrefix(rule, "-A "+chain+" ")
	return rest == "-j DROP" || rest == "-j ACCEPT" || strings.HasPrefix(rest, "-j REJECT")
}

// cleanUp is a script that removes all jumps to chains with our prefix, all
// such chains and those that were, what publishes first, but for those of kept,
// whose hooks come first then.
func (f *family) cleanUp(there, kept ruleset) string {
	var b strings.Builder
	renamed := f.renamed(there)
	for _, table := range slices.Backward(tables()) {
		var declared, rules, removed strings.Builder
		for _, chain := range slices.Sorted(maps.Keys(there[table])) {
			if _, keep := kept[table][chain]; keep {
				continue
			}
			if _, was := renamed[table][chain]; was || f.prefixed(chain) {
				fmt.Fprintf(&declared, ":%s - [0:0]\n", chain)
				fmt.Fprintf(&removed, "-X %s\n", chain)
				continue
			}
			for _, rule := range there[table][chain] {
				if f.prefixed(target(rule)) || f.isHook(rule) {
					fmt.Fprintf(&rules, "-D%s\n", strings.TrimPrefix(rule, "-A"))
				}
			}
		}
		for _, chain := range slices.Sorted(maps.Keys(kept[table])) {
			fmt.Fprintf(&declared, ":%s - [0:0]\n", chain)
			rules.WriteString(strings.Join(kept[table][chain], "\n") + "\n")
		}
		for _, h := range f.hooksTo(kept) {
			if h.table == table {
				fmt.Fprintf(&rules, "-I %s 1%s\n", h.chain, strings.TrimPrefix(h.line(f.prefix), "-A "+h.chain))
			}
		}
		if declared.Len()+rules.Len() > 0 {
			fmt.Fprintf(&b, "*%s\n%s%s%sCOMMIT\n", table, declared.String(), rules.String(), removed.String())
		}
	}
	return b.String()
}

// retry runs do again while another program holds the xtables lock.
func retry(ctx context.Context, do func() error) error {
	const attempts = 3
	for attempt := 1; ; attempt++ {
		err := do()
		if err == nil || attempt == attempts || !isLocked(err) {
			return err
		}
		timer := time.NewTimer(time.Duration(attempt) * 100 * time.Millisecond)
		select {
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-timer.C:
		}
	}
}
