package firewall

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-iptables/iptables"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// ipv6Settings is there where the kernel has IPv6.
const ipv6Settings = "/proc/sys/net/ipv6"

// tableV6 is how a table of IPv6 is called among others.
const tableV6 = " (IPv6)"

// newV6 is the family of IPv6. Where environments have addresses of it, it has
// the rules that those of IPv4 have. Otherwise it keeps them from the host's
// IPv6, with one rule: a setting of each bridge is all that does so besides, and
// others may set it. It is nil where ip6tables is not beside iptables.
func (f *Firewall) newV6() *family {
	program, tables := "", f.cfg.Tables6
	if f.cfg.Tables == nil {
		if twin, ok := twinV6(f.v4.program); ok {
			program, tables = twin, kernelTables{path: twin}
		}
	}
	if tables == nil {
		if f.wantsV6() {
			f.failV6(errors.New("ip6tables is not beside " + f.v4.program))
		} else {
			f.cfg.Log.Info("ip6tables is not beside iptables: environments have no IPv6 by the settings of their bridges alone")
		}
		return nil
	}
	six := &family{
		program: program, tables: tables, prefix: f.cfg.Prefix, log: f.cfg.Log,
		own: func(ctx context.Context, script string, there ruleset, change func() error) error {
			if f.backend == legacyBackend && !f.wantsV6() {
				return change() // others' tables of IPv6 are not looked at for one rule
			}
			return f.own(ctx, tablesV6, script, there, change)
		},
	}
	if !f.wantsV6() {
		bridges, to := f.cfg.Interface+"+", f.cfg.Prefix+"-RAW"
		rule := fmt.Sprintf("-A %s -i %s %s -j DROP", to, bridges, f.v4.layout.note("no IPv6"))
		six.hooks = []hook{{"raw", "PREROUTING", []string{"-i", bridges}, to}, {"filter", "FORWARD", nil, f.cfg.Prefix + "-FWD"}}
		six.render = func(desired Desired) (ruleset, error) {
			rules := f.v4.layout.apart(desired.Surroundings.Apart6) // of a node that had it and left forwarding on
			rules.set("raw", to, []string{rule})
			return rules, nil
		}
		return six
	}
	if program != "" {
		ipt, err := iptables.New(iptables.IPFamily(iptables.ProtocolIPv6), iptables.Timeout(lockWait), iptables.Path(program))
		if err != nil {
			f.failV6(failed("ask ip6tables for its version", err))
			return nil
		}
		six.tables = kernelTables{program, ipt}
	}
	twins := f.cfg.Twins()
	l := &layout{prefix: f.cfg.Prefix, iface: f.cfg.Interface, subnet: f.cfg.Subnet, twins: &twins, six: true}
	six.layout, six.render, six.hooks = l, l.render, hooksOf(l)
	return six
}

// twinV6 is the ip6tables beside an iptables.
func twinV6(program string) (twin string, ok bool) {
	rest, ok := strings.CutPrefix(filepath.Base(program), "iptables")
	if !ok {
		return "", false
	}
	twin = filepath.Join(filepath.Dir(program), "ip6tables"+rest)
	found, _ := exec.LookPath(twin) // its absence is no error
	return twin, found != "" && missingTwin(twin) == ""
}

// wantsV6 tells whether environments are to have IPv6.
func (f *Firewall) wantsV6() bool { return f.cfg.Subnet6.IsValid() }

// failureV6 is why the rules of IPv6 are not in force; nil: they are, or were not
// asked for. It is read without the lock, which is held while programs run.
func (f *Firewall) failureV6() error {
	if failure := f.failedV6.Load(); failure != nil {
		return *failure
	}
	return nil
}

func (f *Firewall) failV6(err error) {
	if err == nil {
		f.failedV6.Store(nil)
		return
	}
	f.failedV6.Store(&err)
}

// publishesV6 tells whether the rules of IPv6 are those of environments that
// have it, and in force as far as is known.
func (f *Firewall) publishesV6() bool { return f.wantsV6() && f.v6 != nil && f.failureV6() == nil }

// hasV6 tells whether there are rules of IPv6, or could be.
func (f *Firewall) hasV6() bool {
	if f.v6 == nil {
		return false
	}
	if f.cfg.Tables6 != nil {
		return true
	}
	_, err := os.Stat(ipv6Settings)
	return err == nil
}

var errNoIPv6 = errors.New("the kernel has no IPv6")

// IPv6 tells why the rules that environments with IPv6 need are not in force,
// nil when they are, or will be with the first Set or Restore: an environment
// must not have an address of IPv6 otherwise. IPV6_UNAVAILABLE. It tells what the
// last Restore found; the next one looks again.
func (f *Firewall) IPv6() error {
	cause := f.failureV6()
	if cause == nil && !f.hasV6() {
		cause = errNoIPv6
	}
	switch {
	case f.wantsV6() && cause == nil:
		return nil
	case !f.wantsV6():
		return problem.New(problem.IPv6Unavailable, "environments have no IPv6").
			WithHint("Set network.range6 in the node's configuration.")
	}
	p := problem.New(problem.IPv6Unavailable, "environments have no IPv6 although network.range6 is set").WithCause(cause)
	if hint := problem.Of(cause).Hint; hint != "" {
		return p.WithHint("%s", hint)
	}
	return p.WithHint("Install ip6tables beside iptables and boot the kernel with IPv6 (no ipv6.disable=1), or set network.range6 to \"\".")
}

// restoreV6 brings the rules of IPv6 to desired and names what differed. A
// kernel may have IPv6 and not its packet filter, or none of both, and what IPv4
// has must not depend on that: what fails is logged once, and IPv6 tells it. An
// error is that of a lock that others hold, which is tried again. The caller
// holds mu.
func (f *Firewall) restoreV6(ctx context.Context, desired Desired) (mended []string, err error) {
	if f.v6 == nil || !f.hasV6() && !f.wantsV6() {
		return nil, nil
	}
	before := f.failureV6()
	mended, err = f.tryV6(ctx, desired)
	for i := range mended {
		mended[i] += tableV6
	}
	if err != nil && (ctx.Err() != nil || isLocked(err) && f.wantsV6() && f.backend == legacyBackend) {
		return mended, err
	}
	f.failV6(err)
	switch {
	case err == nil && before != nil:
		f.cfg.Log.InfoContext(ctx, "the rules of IPv6 are in force")
	case err == nil || before != nil: // nothing new
	case f.wantsV6():
		f.cfg.Log.ErrorContext(ctx, "environments have no IPv6: its rules cannot be made", "error", err)
	default:
		f.cfg.Log.WarnContext(ctx, "no rule keeps environments from the host's IPv6; the settings of their bridges do", "error", err)
	}
	return mended, nil //nolint:nilerr // IPv6 tells it, and IPv4 does not depend on it
}

// tryV6 brings the rules of IPv6 to desired.
func (f *Firewall) tryV6(ctx context.Context, desired Desired) (mended []string, err error) {
	if !f.hasV6() {
		return nil, errNoIPv6
	}
	if _, err := f.askBackend(ctx); err != nil {
		return nil, err
	}
	if _, err := f.v6.take(desired); err != nil {
		return nil, err
	}
	return f.bringV6(ctx)
}

// patienceV6 are the pauses after which the rules of IPv6 are tried again when
// others change them at the same time: to give up takes it from environments.
var patienceV6 = []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, 400 * time.Millisecond} //nolint:gochecknoglobals // a constant but for its type

// bringV6 brings the rules of IPv6 to what it has rendered.
func (f *Firewall) bringV6(ctx context.Context) (mended []string, err error) {
	if f.wantsV6() {
		for _, pause := range slices.Concat(patienceV6, []time.Duration{0}) {
			var more []string
			more, err = f.bring(ctx, f.v6, tablesV6)
			mended = append(mended, more...)
			if err == nil || pause == 0 || lacksModule(err.Error()) {
				break
			}
			timer := time.NewTimer(pause)
			select {
			case <-ctx.Done():
				timer.Stop()
				return mended, err
			case <-timer.C:
			}
		}
		return mended, err
	}
	return f.repair(ctx, f.v6, tablesV6, f.v6.state())
}

// readV6 reads the rules of IPv6; nil where there can be none. The caller holds
// mu.
func (f *Firewall) readV6(ctx context.Context) ruleset {
	if !f.hasV6() {
		return nil
	}
	there, err := f.v6.read(ctx)
	if err != nil {
		f.cfg.Log.DebugContext(ctx, "rules of IPv6 cannot be read", "error", err)
		return nil
	}
	return there
}

// publishing is the rules of IPv6 that were read, as far as they publish
// anything: nil when they do not. The caller holds mu.
func (f *Firewall) publishing(there ruleset) ruleset {
	if !f.publishesV6() {
		return nil
	}
	if there == nil {
		return ruleset{}
	}
	return there
}

// differencesV6 tells how the rules of IPv6 that are there differ from what they
// should be, also by the names that restoreV6 would return. Nothing, where they
// cannot be made. The caller holds mu.
func (f *Firewall) differencesV6(there ruleset, desired Desired) (all []Difference, names []string) {
	if there == nil || f.failureV6() != nil {
		return nil, nil
	}
	wanted, err := f.v6.render(desired)
	if err != nil {
		return nil, nil // those of IPv4 say why
	}
	all, names = f.v6.differences(there, wanted), f.v6.differs(there, wanted)
	for i := range all {
		all[i].Table += tableV6
	}
	for i := range names {
		names[i] += tableV6
	}
	return all, names
}

// cleanUpV6 removes the rules of IPv6 but those that keep interfaces apart. The
// caller holds mu.
func (f *Firewall) cleanUpV6(ctx context.Context, apart []HostLink) error {
	if f.v6 != nil {
		f.failV6(nil)
	}
	if !f.hasV6() {
		return nil
	}
	if _, err := f.askBackend(ctx); err != nil {
		return err
	}
	there, err := f.v6.read(ctx)
	if err != nil {
		f.cfg.Log.DebugContext(ctx, "rules of IPv6 cannot be read", "error", err)
		return nil // then there are none
	}
	script := f.v6.cleanUp(there, f.v4.layout.apart(apart))
	if script == "" {
		return nil
	}
	if err := f.v6.run(ctx, script, there); err != nil {
		return fmt.Errorf("remove chains %s of IPv6: %w", f.cfg.Prefix, err)
	}
	return nil
}
