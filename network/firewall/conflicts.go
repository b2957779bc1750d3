package firewall

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/remotegpu/remotegpu/internal/hostexec"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/firewall/nft"
)

// Conflicts tells what others have on the host that keeps packets from where
// our rules lead them and that no rule of ours can overrule, each as a
// FIREWALL_CONFLICT problem with what to do. It removes chains of ours from the
// backend that is not in use, where an iptables of before left them, and changes
// nothing else. trusted says that firewalld was told to let our bridges through.
func (f *Firewall) Conflicts(ctx context.Context, trusted bool) ([]*problem.Problem, error) {
	f.looking.Lock()
	defer f.looking.Unlock()
	conflicts, names := f.turned(), f.serveNames()
	others, err := f.otherBackend(ctx, names)
	if err != nil {
		return nil, err
	}
	conflicts = append(conflicts, others...)
	barriers, err := f.barriersNow()
	if err != nil {
		// A kernel without nftables has no such chains.
		f.cfg.Log.DebugContext(ctx, "chains of nftables cannot be listed", "error", err)
	}
	for _, barrier := range barriers {
		if conflict := f.barrier(barrier, trusted); conflict != nil {
			conflicts = append(conflicts, conflict)
		}
	}
	if names {
		conflicts = append(conflicts, f.nameConflicts()...)
	}
	return conflicts, nil
}

// nameConflicts are the conflicts that keep environments from the node's names:
// our accept in the chain INPUT of iptables does not overrule another chain.
func (f *Firewall) nameConflicts() (conflicts []*problem.Problem) {
	barriers, err := nft.NameBarriers(f.cfg.Interface, f.cfg.Resolver)
	if err != nil {
		f.cfg.Log.Debug("chains of nftables cannot be followed", "error", err) // as above
	}
	for _, b := range barriers {
		if b.Table == firewalldTable {
			continue // where the bridges are not trusted it stops what is forwarded, too, which is told
		}
		at := fmt.Sprintf("nft insert rule %s %s %s iifname \"%s*\"", b.Family, b.Table, b.Chain, f.cfg.Interface)
		conflicts = append(conflicts, problem.New(problem.FirewallConflict,
			"chain %s of the nftables table %s %s stops what environments ask the node for names (%s)", b.Chain, b.Family, b.Table, b.How()).
			WithHint("An accept elsewhere does not help; let their questions through there: %s udp dport 53 accept; %s tcp dport 53 accept. "+
				"Put the same into the file that makes the table.", at, at))
	}
	return conflicts
}

// serveNames tells whether environments ask the node for names.
func (f *Firewall) serveNames() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.desired.Surroundings.Names && f.cfg.Resolver.Is4()
}

// turned tells when the name iptables leads to another program by now than it
// did when we started.
func (f *Firewall) turned() []*problem.Problem {
	now, err := findProgram(f.cfg.Path)
	if err != nil {
		return []*problem.Problem{problem.New(problem.FirewallConflict, "iptables is not there any more").WithCause(err).
			WithHint("Install the iptables package again: rules cannot be changed without it.")}
	}
	if now == f.v4.program {
		return nil
	}
	return []*problem.Problem{problem.New(problem.FirewallConflict,
		"iptables was %s when the node started and is %s now; the node goes on with the former", filepath.Base(f.v4.program), filepath.Base(now)).
		WithHint("Restart remotegpud: it makes its rules in the new backend and removes those in the old one. Or turn it back with update-alternatives.")}
}

// otherBackend looks at the rules of the backend that is not in use. Packets
// pass both.
func (f *Firewall) otherBackend(ctx context.Context, names bool) ([]*problem.Problem, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	other, err := f.other(ctx)
	if err != nil || other == nil {
		return nil, err
	}
	var now mark
	switch {
	case f.backend != legacyBackend && noTables():
		return nil, nil
	case f.backend == legacyBackend:
		if now = generationMark(); now.known && now == f.seen.others && names == f.seen.othersNames {
			return f.seen.othersFound, nil
		}
	}
	saved, err := other.tables.Save(ctx)
	if err != nil {
		// The kernel may not have that backend at all.
		f.cfg.Log.DebugContext(ctx, "rules of the other backend cannot be read", "program", other.program, "error", err)
		return nil, nil // then there are no rules in it
	}
	if f.v4.applied != nil {
		if err := errors.Join(leave(ctx, other, parse(saved)), leaveV6(ctx, other)); err != nil {
			return nil, err
		}
	}
	found := f.foreignIn(other, saved, names)
	if program, ok := twinV6(other.program); ok && f.wantsV6() {
		six := *other
		six.program = program
		if saved, err := hostexec.Run(ctx, nil, program+"-save"); err == nil { // else there are none
			found = append(found, f.foreignIn(&six, saved, false)...)
		}
	}
	if f.v4.applied == nil {
		now = mark{} // what of ours is in it still has to go
	}
	f.seen.others, f.seen.othersNames, f.seen.othersFound = now, names, found
	return found, nil
}

// foreignIn are the conflicts that rules in the other backend make; names says
// that environments ask the node for names.
func (f *Firewall) foreignIn(other *family, saved []byte, names bool) []*problem.Problem {
	rules, drops := foreignRules(other, saved)
	name := filepath.Base(other.program)
	switch {
	case names && rules == 0 && drops["INPUT"] && !drops["FORWARD"]:
		return []*problem.Problem{problem.New(problem.FirewallConflict, "the policy of INPUT is DROP in the other backend (%s): "+
			"the node does not get what environments ask it for names", name).
			WithHint("Try: %s -P INPUT ACCEPT; then find out what uses %s and have it use %s as well.", name, name, filepath.Base(f.v4.program))}
	case drops["FORWARD"]:
		return []*problem.Problem{problem.New(problem.FirewallConflict, "the policy of FORWARD is DROP in the other backend (%s): "+
			"nothing gets to environments or from them", name).
			WithHint("Try: %s -P FORWARD ACCEPT; then find out what uses %s and have it use %s as well.", name, name, filepath.Base(f.v4.program))}
	case rules > 0:
		return []*problem.Problem{problem.New(problem.FirewallConflict, "the other backend (%s) has %d rules, which packets of environments pass as well", name, rules).
			WithHint("Look at them with: %s-save. Have what made them use %s as well.", name, filepath.Base(f.v4.program))}
	}
	return nil
}

// foreignRules counts the rules that are not ours, and tells which chains drop
// packets by their policy.
func foreignRules(other *family, saved []byte) (rules int, drops map[string]bool) {
	drops = make(map[string]bool)
	table := ""
	lines := bufio.NewScanner(bytes.NewReader(saved))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "*"):
			table = line[1:]
		case table == "filter" && strings.HasPrefix(line, ":") && strings.Contains(line, " DROP "):
			chain, _, _ := strings.Cut(line[1:], " ")
			drops[chain] = true
		case strings.HasPrefix(line, "-A "):
			if chain, _, _ := strings.Cut(line[3:], " "); !other.prefixed(chain) && !other.prefixed(target(line)) {
				rules++
			}
		}
	}
	return rules, drops
}

// leaveOther removes everything of ours from the backend that is not in use.
// The caller holds mu.
func (f *Firewall) leaveOther(ctx context.Context) error {
	other, err := f.other(ctx)
	if err != nil || other == nil {
		return err
	}
	saved, err := other.tables.Save(ctx)
	if err != nil {
		saved = nil // the kernel does not have that backend, so nothing is in it
	}
	return errors.Join(leave(ctx, other, parse(saved)), leaveV6(ctx, other))
}

// leaveV6 removes everything of ours from IPv6 in the backend of an IPv4.
func leaveV6(ctx context.Context, v4 *family) error {
	program, ok := twinV6(v4.program)
	if !ok {
		return nil
	}
	other := *v4
	other.program, other.tables = program, kernelTables{path: program}
	saved, err := other.tables.Save(ctx)
	if err != nil {
		return nil //nolint:nilerr // as above
	}
	return leave(ctx, &other, parse(saved))
}

// leave removes everything of ours that is there.
func leave(ctx context.Context, other *family, there ruleset) error {
	script := other.cleanUp(there, nil)
	if script == "" {
		return nil
	}
	if err := other.run(ctx, script, there); err != nil {
		return fmt.Errorf("remove chains %s of %s: %w", other.prefix, filepath.Base(other.program), err)
	}
	other.log.InfoContext(ctx, "rules of ours in the other backend are removed", "program", filepath.Base(other.program))
	return nil
}

// barrier is the conflict that a chain of nftables makes, nil when it lets pass
// what we need.
func (f *Firewall) barrier(b nft.Barrier, trusted bool) *problem.Problem {
	// firewalld has the bridges in a chain of their zone.
	bridges := b.Accepts.Bridges || trusted && b.Table == firewalldTable
	if b.Accepts.Known && b.Accepts.DNAT && bridges {
		return nil
	}
	p := problem.New(problem.FirewallConflict, "chain %s of the nftables table %s %s stops forwarded packets (%s)", b.Chain, b.Family, b.Table, b.How())
	if b.Table == firewalldTable && !bridges {
		return p.WithHint("Have firewalld trust environments: firewall-cmd --permanent --zone=trusted --add-interface=%s+ && firewall-cmd --reload", f.cfg.Interface)
	}
	if b.Table == firewalldTable {
		return p.WithHint("Published ports need StrictForwardPorts=no in /etc/firewalld/firewalld.conf.")
	}
	at := fmt.Sprintf("nft insert rule %s %s %s", b.Family, b.Table, b.Chain)
	return p.WithHint("An accept elsewhere does not help; let packets of environments through there: %s ct status dnat accept; "+
		"%s ct state established,related accept; %s iifname \"%s*\" accept. Put the same into the file that makes the table.", at, at, at, f.cfg.Interface)
}

// firewalldTable is the table that firewalld makes with nftables.
const firewalldTable = "firewalld"
