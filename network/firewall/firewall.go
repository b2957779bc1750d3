// Package firewall keeps the node's part of the host's packet filter as
// declared state: callers say what should be published, whole; the package
// renders every chain as the text iptables-save would print, compares it with
// what is there and applies the difference in one iptables-restore, which the
// kernel commits atomically per table. Only chains with our prefix are ever
// touched, plus one jump to them in each built-in chain. Methods are safe for
// concurrent use; one process owns a prefix.
package firewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/coreos/go-iptables/iptables"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
)

// DefaultPrefix begins the names of our chains.
const DefaultPrefix = "RGPU"

// DefaultInterface begins the names of the environments' bridges.
const DefaultInterface = "rgpu-"

// Each environment has a network of that length in the subnet, and of that the
// address with that number; it sends from no other.
const (
	NetworkBits = 29
	HostNumber  = 2
)

// lockWait is how long, in seconds, an iptables program waits for the xtables
// lock. Only the legacy backend has that lock.
const lockWait = 5

// Config says what a Firewall is for.
type Config struct {
	// Prefix begins the names of our chains; DefaultPrefix when empty. At most
	// 8 letters, so that all names stay below iptables' 28.
	Prefix string
	// Subnet holds the addresses of all environments, by which they are
	// declared.
	Subnet netip.Prefix
	// Subnet6 holds their addresses of IPv6, which are the Twins of those.
	// Invalid: they have none, and what they send by IPv6 is dropped.
	Subnet6 netip.Prefix
	// Interface begins the names of the environments' bridges;
	// DefaultInterface when empty.
	Interface string
	// Resolver is the address of the node at which environments may ask for
	// names while Surroundings.Names; invalid: there is none.
	Resolver netip.Addr
	// Path is the iptables program, whose -save and -restore twins lie beside
	// it; the first iptables in PATH when empty. It decides the backend.
	Path string
	// Tables and Tables6 are what tests have in place of the kernel's, which
	// are the default; then Path is not looked at. What others do to the host
	// (Foreign, Conflicts, Watch) is no part of them. Without Tables6 there is no
	// ip6tables.
	Tables, Tables6 Tables
	Log             *slog.Logger
}

// Twins are the addresses of environments.
func (c *Config) Twins() Twins { return Twins{c.Subnet, c.Subnet6} }

// Mapping is a published port.
type Mapping struct {
	EnvID    string
	Service  port.Service
	Protocol port.Protocol
	HostPort uint16
	To       netip.AddrPort // in the subnet
	// Sources are the networks that reach it, masked, ascending and none within
	// another; the host and the environment itself always do. Of an address
	// family that has none in the list nobody does. Empty: everybody does,
	// unless Inside.
	Sources []netip.Prefix
	// Inside lets only the host and the environments on it reach it. It has no
	// Sources then.
	Inside bool
}

// Equal tells whether both publish the same to the same.
func (m Mapping) Equal(other Mapping) bool {
	return m.EnvID == other.EnvID && m.Service == other.Service && m.Protocol == other.Protocol && m.HostPort == other.HostPort &&
		m.To == other.To && m.Inside == other.Inside && slices.Equal(m.Sources, other.Sources)
}

// Desired is everything that should be in force.
type Desired struct {
	Mappings     []Mapping
	Policies     []Policy // of environments that differ from the default
	Surroundings Surroundings
}

// Firewall declares the state of the host's packet filter.
type Firewall struct {
	cfg Config
	v4  *family
	v6  *family // nil: there is no ip6tables

	failedV6 atomic.Pointer[error] // see failureV6

	looking sync.Mutex // held while rules of others are looked through; before mu
	seen    seen

	mu      sync.Mutex
	backend string // "": not asked for yet
	desired Desired
	mine    ownership
}

// New checks the configuration and finds the iptables programs. It touches no
// rule.
func New(cfg Config) (*Firewall, error) {
	if cfg.Prefix == "" {
		cfg.Prefix = DefaultPrefix
	}
	if cfg.Interface == "" {
		cfg.Interface = DefaultInterface
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Prefix) > 8 || strings.Trim(cfg.Prefix, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return nil, problem.New(problem.ConfigInvalid, "the chain prefix %q is not up to 8 capital letters", cfg.Prefix)
	}
	if !cfg.Subnet.IsValid() || !cfg.Subnet.Addr().Is4() || cfg.Subnet != cfg.Subnet.Masked() {
		return nil, problem.New(problem.ConfigInvalid, "the environments' subnet %s is not an IPv4 network", cfg.Subnet)
	}
	if cfg.Subnet6.IsValid() && (cfg.Subnet6 != cfg.Subnet6.Masked() || !cfg.Twins().Fits()) {
		return nil, problem.New(problem.ConfigInvalid, "the environments' subnet %s is not an IPv6 network with room for those of %s", cfg.Subnet6, cfg.Subnet)
	}
	f := &Firewall{cfg: cfg}
	path, tables := "", cfg.Tables
	if tables != nil {
		f.backend = standIn
	} else {
		var err error
		if path, err = findProgram(cfg.Path); err != nil {
			return nil, err
		}
		ipt, err := iptables.New(iptables.IPFamily(iptables.ProtocolIPv4), iptables.Timeout(lockWait), iptables.Path(path))
		if err != nil {
			return nil, failed("ask iptables for its version", err)
		}
		tables = kernelTables{path, ipt}
	}
	l := &layout{prefix: cfg.Prefix, iface: cfg.Interface, subnet: cfg.Subnet, resolver: cfg.Resolver, six: cfg.Subnet6.IsValid()}
	f.v4 = &family{
		program: path, tables: tables, layout: l, render: l.render, hooks: hooksOf(l), prefix: cfg.Prefix, log: cfg.Log,
		own: func(ctx context.Context, script string, there ruleset, change func() error) error {
			return f.own(ctx, tablesV4, script, there, change)
		},
	}
	f.v6 = f.newV6()
	return f, nil
}

// families are those that publish ports.
func (f *Firewall) families() []*family {
	if f.publishesV6() {
		return []*family{f.v4, f.v6}
	}
	return []*family{f.v4}
}

// Set makes desired what is published. What it knows to be applied already is
// neither rendered again nor read back: publishing costs one program run for
// each address family, however much is published. The first call, and one after
// an error, compares with the kernel first. Errors are FIREWALL_FAILED problems
// and leave each table either as it was or as desired. A kernel that does not
// take the rules of IPv6 is no error: see IPv6.
func (f *Firewall) Set(ctx context.Context, desired Desired) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	changed, err := f.take(desired)
	if err != nil {
		return err
	}
	for i, family := range f.families() {
		if family.applied == nil {
			_, err := f.restore(ctx, desired)
			return err
		}
		if err := family.change(ctx, changed[i]); err != nil {
			if ctx.Err() != nil {
				return err
			}
			// Most likely something else changed our chains under us.
			f.cfg.Log.WarnContext(ctx, "firewall is not as it was left, repairing", "cause", err)
			_, err := f.restore(ctx, desired)
			return err
		}
	}
	f.desired = desired
	return nil
}

// take renders a desired state for each family and returns the chains that it
// changes.
func (f *Firewall) take(desired Desired) (changed []selection, err error) {
	for _, family := range f.families() {
		chains, err := family.take(desired)
		if err != nil {
			for _, other := range f.families()[:len(changed)] {
				other.applied = nil // what it rendered is ahead of what it applied
			}
			return nil, err
		}
		changed = append(changed, chains)
	}
	return changed, nil
}

// Restore does as Set but trusts nothing it remembers: it reads the kernel's
// rules, mends what differs and returns the names of the chains and hooks it
// mended. It reads nothing when the same was in force the last time and the kernel
// says that nobody has changed a rule since.
func (f *Firewall) Restore(ctx context.Context, desired Desired) (mended []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.restore(ctx, desired)
}

// Repair mends whatever differs from what was last set, and returns the names
// of the chains and hooks that did.
func (f *Firewall) Repair(ctx context.Context) (mended []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.restore(ctx, f.desired)
}

// repairRounds is how often the legacy backend is looked at anew after a repair.
// What others replace by as many rules between a change of ours and the look at
// its outcome would count as ours; nf_tables counts changes, which tells them apart.
const repairRounds = 3

// restore brings the kernel's rules to desired. The caller holds mu.
func (f *Firewall) restore(ctx context.Context, desired Desired) ([]string, error) {
	if _, err := f.v4.take(desired); err != nil {
		return nil, err
	}
	mended, err := f.bring(ctx, f.v4, tablesV4)
	if err != nil {
		return mended, err
	}
	more, err := f.restoreV6(ctx, desired)
	mended = append(mended, more...)
	if err != nil {
		return mended, err
	}
	f.desired = desired
	return mended, nil
}

// bring brings the kernel's rules of a family to what it has rendered.
func (f *Firewall) bring(ctx context.Context, family *family, of int) (mended []string, err error) {
	family.applied = nil
	wanted := family.state()
	for range repairRounds {
		f.look(ctx, of)
		more, err := f.repair(ctx, family, of, wanted)
		mended = append(mended, more...)
		if err != nil {
			return mended, err
		}
		if len(more) == 0 || f.backend != legacyBackend {
			family.applied = wanted
			return mended, nil
		}
	}
	// Somebody is as quick as we are: whoever watches has to come back.
	f.mine.tables[of] = tablesOf{}
	family.applied = wanted
	return mended, nil
}

// Kept is what CleanUp leaves in force: that nothing is forwarded between these
// interfaces of the host, by IPv4 and by IPv6.
type Kept struct{ Apart, Apart6 []HostLink }

// CleanUp removes every jump to a chain with our prefix and every such chain,
// the administrator's included, but for what kept needs. It needs no state: what
// another process or a crash left, in either backend, is removed too. What is not
// ours stays.
func (f *Firewall) CleanUp(ctx context.Context, kept Kept) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.desired = Desired{}
	for _, family := range []*family{f.v4, f.v6} {
		if family != nil {
			family.applied = nil
		}
	}
	there, err := f.v4.read(ctx)
	if err != nil {
		return err
	}
	if script := f.v4.cleanUp(there, f.v4.layout.apart(kept.Apart)); script != "" {
		if err := f.v4.run(ctx, script, there); err != nil {
			return fmt.Errorf("remove chains %s: %w", f.cfg.Prefix, err)
		}
	}
	return errors.Join(f.cleanUpV6(ctx, kept.Apart6), f.leaveOther(ctx))
}
