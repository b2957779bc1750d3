package firewall

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ipv6Settings is there where the kernel has IPv6.
const ipv6Settings = "/proc/sys/net/ipv6"

// tableV6 is how a table of IPv6 is called among others.
const tableV6 = " (IPv6)"

// newV6 is the family that keeps environments from the host's IPv6, of which
// they have none: one setting of each bridge is all that does so otherwise, and
// others may set it. It has no rule for anything else. It is nil where ip6tables
// is not beside iptables.
func (f *Firewall) newV6() *family {
	program, ok := twinV6(f.v4.program)
	if !ok {
		f.cfg.Log.Info("ip6tables is not beside iptables: environments have no IPv6 by the settings of their bridges alone")
		return nil
	}
	bridges := f.cfg.Interface + "+"
	to := f.cfg.Prefix + "-RAW"
	return &family{
		program: program, save: program + "-save", restore: program + "-restore", prefix: f.cfg.Prefix, log: f.cfg.Log,
		hooks: []hook{{"raw", "PREROUTING", []string{"-i", bridges}, to}},
		render: func(Desired) (ruleset, error) {
			return ruleset{"raw": {to: {fmt.Sprintf("-A %s -i %s %s -j DROP", to, bridges, f.note("no IPv6"))}}}, nil
		},
		own: func(ctx context.Context, commits int, change func() error) error {
			if f.backend == legacyBackend {
				return change() // what is remembered is the tables of IPv4
			}
			return f.own(ctx, commits, change)
		},
	}
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

// hasV6 tells whether there are rules of IPv6, or could be.
func (f *Firewall) hasV6() bool {
	if f.v6 == nil {
		return false
	}
	_, err := os.Stat(ipv6Settings)
	return err == nil
}

// repairV6 mends the rules of IPv6 and names what differed. What fails is
// logged once: a kernel may have IPv6 and not its packet filter, and nothing
// else may depend on that. The caller holds mu.
func (f *Firewall) repairV6(ctx context.Context) (mended []string) {
	if !f.hasV6() {
		return nil
	}
	if _, err := f.askBackend(ctx); err != nil {
		return nil // the rules of IPv4 say why
	}
	wanted, err := f.v6.render(Desired{})
	if err == nil {
		mended, err = f.v6.repair(ctx, wanted)
	}
	if ctx.Err() != nil {
		return nil
	}
	if err != nil && !f.failedV6 {
		f.cfg.Log.WarnContext(ctx, "no rule keeps environments from the host's IPv6; the settings of their bridges do", "error", err)
	}
	f.failedV6 = err != nil
	for i := range mended {
		mended[i] += tableV6
	}
	return mended
}

// differencesV6 tells how the rules of IPv6 differ from what they should be,
// also by the names that repairV6 would return. Nothing, where they cannot be
// made. The caller holds mu.
func (f *Firewall) differencesV6(ctx context.Context) (all []Difference, names []string) {
	if !f.hasV6() || f.failedV6 {
		return nil, nil
	}
	wanted, err := f.v6.render(Desired{})
	if err != nil {
		return nil, nil
	}
	there, err := f.v6.read(ctx)
	if err != nil {
		f.cfg.Log.DebugContext(ctx, "rules of IPv6 cannot be read", "error", err)
		return nil, nil
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

// cleanUpV6 removes the rules of IPv6. The caller holds mu.
func (f *Firewall) cleanUpV6(ctx context.Context) error {
	f.failedV6 = false
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
	script := f.v6.cleanUp(there)
	if script == "" {
		return nil
	}
	if err := f.v6.run(ctx, script); err != nil {
		return fmt.Errorf("remove chains %s of IPv6: %w", f.cfg.Prefix, err)
	}
	return nil
}
