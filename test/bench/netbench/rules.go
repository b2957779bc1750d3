package netbench

import (
	"context"
	"errors"
	"fmt"
	goruntime "runtime"
	"strings"
	"time"

	"github.com/coreos/go-iptables/iptables"

	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/report"
	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

const (
	// added is how many ports an environment more has.
	added = 5
	// appended is how many rules are appended one by one, to an empty chain and
	// to a full one. The time of all is taken between the two, since each rule
	// takes longer than the one before.
	appended = 300
	// samples are taken of the quick ways to add ports in each round.
	samples = 4
	// settle is the pause before each of them.
	settle = 30 * time.Millisecond
	// flatChain is the chain of those that have one.
	flatChain = "BENCH"
)

// rows are those of a backend.
var rows = map[string]struct{ add, set, refused, heal report.Row }{
	"nft":    {report.AddNFT, report.SetNFT, report.RefusedNFT, report.HealNFT},
	"legacy": {report.AddLegacy, report.SetLegacy, report.RefusedLegacy, report.HealLegacy},
}

// rules is a backend under measurement.
type rules struct {
	Options
	backend string
	results map[string]*report.Column
	say     func(string)
}

// measureRules measures both backends, one after the other.
func measureRules(ctx context.Context, options Options, results map[string]*report.Column, say func(string)) error {
	for _, backend := range []string{"nft", "legacy"} {
		r := &rules{Options: options, backend: backend, results: results, say: func(text string) { say(backend + ": " + text) }}
		for _, step := range []func(context.Context) error{r.add, r.set, r.refused, r.heal} {
			err := step(ctx)
			if ctx.Err() != nil {
				return fmt.Errorf("measure rules: %w", context.Cause(ctx))
			}
			if err != nil {
				results[columns.RemoteGPU].Failure = err.Error()
				return nil //nolint:nilerr // it is told in the result
			}
		}
	}
	return nil
}

// add times five ports more where all environments have policies, in turns: as
// the node does it, the same file by hand, and rule by rule into one flat chain,
// which is in a namespace of its own.
func (r *rules) add(ctx context.Context) error {
	policies, err := node{Environments: r.Mappings / mappingsOf}.rules()
	if err != nil {
		return err
	}
	without := firewall.Desired{Mappings: mappings(r.Mappings), Policies: policies}
	with := firewall.Desired{Mappings: mappings(r.Mappings + added), Policies: policies}
	f, err := newFirewall(r.backend)
	if err != nil {
		return err
	}
	if err := f.Set(ctx, without); err != nil {
		return err
	}
	file, err := growth(f, without, with)
	if err != nil {
		return err
	}
	flat, err := sandbox.NewNetNS()
	if err != nil {
		return err
	}
	defer flat.Close()
	if err := flat.Do(func() error { return restore(ctx, r.backend, flatFile("", without.Mappings)) }); err != nil {
		return err
	}
	row := rows[r.backend].add
	for round := -1; round < r.Rounds; round++ { // the first does not count
		for range samples {
			ours, byHand, err := r.addOnce(ctx, f, file, without, with)
			if err != nil {
				return err
			}
			if round >= 0 {
				r.results[columns.RemoteGPU].Add(row, ours)
				r.results[report.ByHand].Add(row, byHand)
			}
		}
		if err := calm(ctx); err != nil {
			return err
		}
		unique, err := r.addUnique(ctx, flat, with.Mappings[r.Mappings:])
		if err != nil {
			return err
		}
		if round >= 0 {
			r.results[report.Unique].Add(row, unique)
		}
	}
	r.say("five ports were added")
	return f.CleanUp(ctx, firewall.Kept{})
}

// calm waits a moment in which the kernel destroys what was removed before, and
// collects the garbage of what it was removed with: neither is what is timed.
func calm(ctx context.Context) error {
	goruntime.GC()
	return wait(ctx, settle)
}

// addOnce adds the ports as the node does it and by hand.
func (r *rules) addOnce(ctx context.Context, f *firewall.Firewall, file string, without, with firewall.Desired) (ours, byHand time.Duration, err error) {
	if err := calm(ctx); err != nil {
		return 0, 0, err
	}
	if ours, err = timed(func() error { return f.Set(ctx, with) }); err != nil {
		return 0, 0, err
	}
	if err := f.Set(ctx, without); err != nil {
		return 0, 0, err
	}
	if err := calm(ctx); err != nil {
		return 0, 0, err
	}
	if byHand, err = timed(func() error { return restore(ctx, r.backend, file) }); err != nil {
		return 0, 0, err
	}
	_, err = f.Restore(ctx, without)
	return ours, byHand, err
}

// addUnique adds rules one by one as go-iptables does it, and takes them back.
func (r *rules) addUnique(ctx context.Context, flat *sandbox.NetNS, more []firewall.Mapping) (took time.Duration, err error) {
	err = flat.Do(func() error {
		ipt, err := iptables.New(iptables.Path(program(r.backend)), iptables.Timeout(5))
		if err != nil {
			return err
		}
		took, err = timed(func() error {
			for _, m := range more {
				if err := ipt.AppendUnique("nat", flatChain, flatRule(m)...); err != nil {
					return err
				}
			}
			return nil
		})
		return errors.Join(err, restore(ctx, r.backend, flatFile("-D", more)))
	})
	return took, err
}

// set times a whole table, from nothing.
func (r *rules) set(ctx context.Context) error {
	all, row := mappings(r.Mappings), rows[r.backend].set
	f, err := newFirewall(r.backend)
	if err != nil {
		return err
	}
	text, err := f.Render(firewall.Desired{Mappings: all})
	if err != nil {
		return err
	}
	// The administrator's chain is made apart from the rest.
	byHand := strings.Replace(text, "*filter\n", "*filter\n:"+firewall.DefaultPrefix+"-USER - [0:0]\n", 1)
	for range r.Rounds {
		fresh, err := newFirewall(r.backend)
		if err != nil {
			return err
		}
		ours, err := timed(func() error { return fresh.Set(ctx, firewall.Desired{Mappings: all}) })
		if err != nil {
			return err
		}
		if err := fresh.CleanUp(ctx, firewall.Kept{}); err != nil {
			return err
		}
		hand, err := timed(func() error { return restore(ctx, r.backend, byHand) })
		if err != nil {
			return err
		}
		if err := fresh.CleanUp(ctx, firewall.Kept{}); err != nil {
			return err
		}
		r.results[columns.RemoteGPU].Add(row, ours)
		r.results[report.ByHand].Add(row, hand)
	}
	flat, err := sandbox.NewNetNS()
	if err != nil {
		return err
	}
	defer flat.Close()
	return flat.Do(func() error { return r.append(ctx, all) })
}

// append times rules that are appended one by one, at both ends of the growth
// of their chain.
func (r *rules) append(ctx context.Context, all []firewall.Mapping) error {
	count := min(appended, len(all)/2)
	first, middle, last := all[:count], all[count:len(all)-count], all[len(all)-count:]
	ipt, err := iptables.New(iptables.Path(program(r.backend)), iptables.Timeout(5))
	if err != nil {
		return err
	}
	one := func(some []firewall.Mapping) (float64, error) {
		took, err := timed(func() error {
			for _, m := range some {
				if err := ipt.Append("nat", flatChain, flatRule(m)...); err != nil {
					return err
				}
			}
			return nil
		})
		return report.Millis(took) / float64(len(some)), err
	}
	if err := ipt.NewChain("nat", flatChain); err != nil {
		return err
	}
	empty, err := one(first)
	if err != nil {
		return err
	}
	if err := restore(ctx, r.backend, flatFile("-A", middle)); err != nil {
		return err
	}
	full, err := one(last)
	if err != nil {
		return err
	}
	r.results[report.Append].AddValue(rows[r.backend].set, (empty+full)/2*float64(len(all)))
	r.say(fmt.Sprintf("%d ports were set at once; a rule was appended in %.1f ms to an empty chain and in %.1f ms to a full one", len(all), empty, full))
	return nil
}

// timed tells how long it takes.
func timed(do func() error) (time.Duration, error) {
	begun := time.Now()
	err := do()
	return time.Since(begun), err
}

// flatFile is the rules of one flat chain as a file: to make it, or with
// another command.
func flatFile(command string, all []firewall.Mapping) string {
	body := flatRules(flatChain, all)
	if command == "" {
		return "*nat\n:" + flatChain + " - [0:0]\n" + body + "COMMIT\n"
	}
	return "*nat\n" + strings.ReplaceAll(body, "-A "+flatChain, command+" "+flatChain) + "COMMIT\n"
}

// growth is the file that leads from one state to a larger one: new chains
// whole, and insertions into those that grow.
func growth(f *firewall.Firewall, from, to firewall.Desired) (string, error) {
	before, err := f.Render(from)
	if err != nil {
		return "", err
	}
	after, err := f.Render(to)
	if err != nil {
		return "", err
	}
	there := make(map[string]bool)
	for line := range strings.Lines(before) {
		there[line] = true
	}
	var declared, edits strings.Builder
	position := make(map[string]int)
	for line := range strings.Lines(after) {
		if strings.HasPrefix(line, ":") && !there[line] {
			declared.WriteString(line)
		}
		rule, isRule := strings.CutPrefix(line, "-A ")
		if !isRule {
			continue
		}
		chain, rest, _ := strings.Cut(rule, " ")
		position[chain]++
		if !there[line] {
			fmt.Fprintf(&edits, "-I %s %d %s", chain, position[chain], rest)
		}
	}
	return "*nat\n" + declared.String() + edits.String() + "COMMIT\n", nil
}
