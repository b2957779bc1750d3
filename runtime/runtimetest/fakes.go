package runtimetest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

// FakeNetworks is a runtime.Networks without a network. Calls are named
// "Networks.…".
type FakeNetworks struct {
	Faults *Faults
	// Range is how many slots there are; 0 means 64.
	Range int
	// Servers are the resolvers; none means 192.0.2.53.
	Servers []netip.Addr

	ipv6 atomic.Bool

	mu        sync.Mutex
	attached  map[string]int
	unpinned  map[string]bool // whose namespace Unpin let go
	published map[string]port.Published
	policies  map[string]policy.Declared
	strays    []string
}

var _ runtime.Networks = (*FakeNetworks)(nil)

// NetNS returns a path that does not exist.
func (n *FakeNetworks) NetNS(envID string) string { return filepath.Join("/nonexistent/netns", envID) }

// Address returns 10.99.slot/64.2 + 4*slot.
func (n *FakeNetworks) Address(slot int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 99, byte(slot >> 6), byte(slot<<2 | 2)})
}

// SetIPv6 gives environments addresses of IPv6, or takes them.
func (n *FakeNetworks) SetIPv6(on bool) { n.ipv6.Store(on) }

// Address6 returns fd99::slot:2, or nothing without IPv6.
func (n *FakeNetworks) Address6(slot int) netip.Addr {
	if !n.ipv6.Load() {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte{0xfd, 0x99, 12: byte(slot >> 8), 13: byte(slot), 15: 2})
}

// Slots returns Range.
func (n *FakeNetworks) Slots() int {
	if n.Range == 0 {
		return 64
	}
	return n.Range
}

// Resolvers returns Servers.
func (n *FakeNetworks) Resolvers() (servers []netip.Addr, search []string, err error) {
	err = n.Faults.Do("Networks.Resolvers", func() error {
		servers = n.Servers
		if len(servers) == 0 {
			servers = []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 53})}
		}
		return nil
	})
	return servers, nil, err
}

// Attach notes the environment. A slot that another one has is AlreadyExists.
func (n *FakeNetworks) Attach(_ context.Context, envID string, slot int) error {
	return n.Faults.Do("Networks.Attach", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		if slot < 0 || slot >= n.Slots() {
			return fmt.Errorf("attach %s: slot %d: %w", envID, slot, errdefs.ErrInvalidArgument)
		}
		for id, taken := range n.attached {
			if id != envID && taken == slot {
				return fmt.Errorf("attach %s: slot %d is %s's: %w", envID, slot, id, errdefs.ErrAlreadyExists)
			}
		}
		if n.attached == nil {
			n.attached = make(map[string]int)
		}
		n.attached[envID] = slot
		delete(n.unpinned, envID)
		return nil
	})
}

// Detach forgets the environment's network and policy, not what it has
// published.
func (n *FakeNetworks) Detach(_ context.Context, envID string) error {
	return n.Faults.Do("Networks.Detach", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.attached, envID)
		delete(n.policies, envID)
		return nil
	})
}

// Publish notes the mappings. A host port of another environment is
// AlreadyExists.
func (n *FakeNetworks) Publish(ctx context.Context, envID string, address netip.Addr, mappings []port.Mapping) error {
	err := n.Faults.Do("Networks.Publish", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		if len(mappings) == 0 {
			delete(n.published, envID)
			return nil
		}
		for id, other := range n.published {
			for _, m := range other.Mappings {
				if id != envID && slices.ContainsFunc(mappings, func(o port.Mapping) bool {
					return o.External == m.External && o.Protocol == m.Protocol
				}) {
					return fmt.Errorf("publish %d of %s: %s has it: %w", m.External, envID, id, errdefs.ErrAlreadyExists)
				}
			}
		}
		if n.published == nil {
			n.published = make(map[string]port.Published)
		}
		n.published[envID] = port.Published{EnvID: envID, Address: address, Mappings: slices.Clone(mappings)}
		return nil
	})
	return cmp.Or(err, context.Cause(ctx)) // who does not wait has it published all the same
}

// CheckPolicy refuses 169.254.0.0/16.
func (n *FakeNetworks) CheckPolicy(wanted policy.Policy, field string) error {
	for i, d := range wanted.Allow {
		if policy.IsMetadata(d.Prefix) {
			return problem.New(problem.DestinationNotAllowed, "%s is metadata", d).WithField(fmt.Sprintf("%s.allow[%d]", field, i))
		}
	}
	return nil
}

// SetPolicy notes the policy, the default as none.
func (n *FakeNetworks) SetPolicy(_ context.Context, declared policy.Declared) error {
	return n.Faults.Do("Networks.SetPolicy", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.policies == nil {
			n.policies = make(map[string]policy.Declared)
		}
		if delete(n.policies, declared.EnvID); !reflect.DeepEqual(declared.Policy, policy.Policy{}) {
			n.policies[declared.EnvID] = declared
		}
		return nil
	})
}

// Policies are those in force that are not the default.
func (n *FakeNetworks) Policies() map[string]policy.Declared {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.policies)
}

// Restore replaces everything that is published, and all policies.
func (n *FakeNetworks) Restore(_ context.Context, published []port.Published, policies []policy.Declared) error {
	return n.Faults.Do("Networks.Restore", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.policies = make(map[string]policy.Declared)
		for _, p := range policies {
			if !reflect.DeepEqual(p.Policy, policy.Policy{}) {
				n.policies[p.EnvID] = p
			}
		}
		n.published = make(map[string]port.Published)
		for _, p := range published {
			if len(p.Mappings) > 0 {
				n.published[p.EnvID] = p
			}
		}
		return nil
	})
}

// Present tells what is attached, and what AddStray made. No other node has
// networks here.
func (n *FakeNetworks) Present(context.Context) (present *port.Present, err error) {
	err = n.Faults.Do("Networks.Present", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		present = &port.Present{
			Attached: slices.Sorted(maps.Keys(n.attached)), Slots: make(map[string]int, len(n.attached)), Strays: slices.Clone(n.strays),
		}
		maps.Copy(present.Slots, n.attached)
		return nil
	})
	return present, err
}

// Pinned tells whether the environment has a network that Unpin has not touched.
func (n *FakeNetworks) Pinned(envID string) (there bool, err error) {
	err = n.Faults.Do("Networks.Pinned", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		_, attached := n.attached[envID]
		there = attached && !n.unpinned[envID]
		return nil
	})
	return there, err
}

// Unpin has somebody remove what holds an environment's network namespace.
func (n *FakeNetworks) Unpin(envID string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.unpinned == nil {
		n.unpinned = make(map[string]bool)
	}
	n.unpinned[envID] = true
}

// Pin notes the environment again.
func (n *FakeNetworks) Pin(ctx context.Context, envID string, slot int, _ *os.File) error {
	return n.Faults.Do("Networks.Pin", func() error { return n.Attach(ctx, envID, slot) })
}

// Drift compares what is published, as a whole per environment.
func (n *FakeNetworks) Drift(_ context.Context, published []port.Published, _ []policy.Declared) (drift []port.Drift, err error) {
	err = n.Faults.Do("Networks.Drift", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		wanted := make(map[string]bool)
		for _, p := range published {
			wanted[p.EnvID] = true
			if _, there := n.published[p.EnvID]; !there {
				drift = append(drift, port.Drift{EnvID: p.EnvID, Name: "ports", Message: "not published"})
			}
		}
		for _, id := range slices.Sorted(maps.Keys(n.published)) {
			if !wanted[id] {
				drift = append(drift, port.Drift{EnvID: id, Name: "ports", Message: "published"})
			}
		}
		return nil
	})
	return drift, err
}

// AddStray makes an interface that belongs to nobody.
func (n *FakeNetworks) AddStray(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.strays = append(n.strays, name)
}

// RemoveStray removes one.
func (n *FakeNetworks) RemoveStray(_ context.Context, name string) error {
	return n.Faults.Do("Networks.RemoveStray", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.strays = slices.DeleteFunc(n.strays, func(stray string) bool { return stray == name })
		return nil
	})
}

// Withdraw forgets some of an environment's mappings.
func (n *FakeNetworks) Withdraw(_ context.Context, envID string, mappings []port.Mapping) error {
	return n.Faults.Do("Networks.Withdraw", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		p, there := n.published[envID]
		p.Mappings = slices.DeleteFunc(slices.Clone(p.Mappings), func(m port.Mapping) bool {
			return slices.ContainsFunc(mappings, func(o port.Mapping) bool { return o.External == m.External && o.Protocol == m.Protocol })
		})
		if there {
			n.published[envID] = p
		}
		if len(p.Mappings) == 0 {
			delete(n.published, envID)
		}
		return nil
	})
}

// Published returns the mappings of an environment, for tests.
func (n *FakeNetworks) Published(envID string) []port.Mapping {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.published[envID].Mappings)
}

// Leftovers names everything that is held, for tests.
func (n *FakeNetworks) Leftovers() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var left []string
	for _, id := range slices.Sorted(maps.Keys(n.attached)) {
		left = append(left, "network of "+id)
	}
	for _, id := range slices.Sorted(maps.Keys(n.published)) {
		left = append(left, "published ports of "+id)
	}
	for _, id := range slices.Sorted(maps.Keys(n.policies)) {
		left = append(left, "network policy of "+id)
	}
	for _, name := range n.strays {
		left = append(left, "interface "+name)
	}
	return left
}

// FakeVolumes is a runtime.Volumes without mounts. Calls are named
// "Volumes.…".
type FakeVolumes struct {
	Faults *Faults
	// Refuse, when set, is asked about each mount by Check.
	Refuse func(m volume.Mount) error

	mu     sync.Mutex
	staged map[string][]volume.Staged
}

var _ runtime.Volumes = (*FakeVolumes)(nil)

// Check asks Refuse.
func (v *FakeVolumes) Check(mounts []volume.Mount, _ string) error {
	return v.Faults.Do("Volumes.Check", func() error {
		for _, m := range mounts {
			if v.Refuse == nil {
				continue
			}
			if err := v.Refuse(m); err != nil {
				return err
			}
		}
		return nil
	})
}

// Stage notes the mounts.
func (v *FakeVolumes) Stage(_ context.Context, envID string, mounts []volume.Mount) (staged []volume.Staged, err error) {
	err = v.Faults.Do("Volumes.Stage", func() error {
		for i, m := range mounts {
			s := volume.Staged{FSType: "bind", Target: m.Target, Options: []string{"rbind"}}
			s.Source = fmt.Sprintf("/nonexistent/staged/%s/%d", envID, i)
			if m.Type == volume.Tmpfs {
				s.FSType, s.Source, s.Options = "tmpfs", "tmpfs", nil
			}
			if m.ReadOnly {
				s.Options = append(s.Options, "ro")
			}
			staged = append(staged, s)
		}
		if len(staged) == 0 {
			return nil
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.staged == nil {
			v.staged = make(map[string][]volume.Staged)
		}
		v.staged[envID] = staged
		return nil
	})
	if err != nil {
		return nil, err
	}
	return staged, nil
}

// Unstage forgets the environment's mounts.
func (v *FakeVolumes) Unstage(_ context.Context, envID string) error {
	return v.Faults.Do("Volumes.Unstage", func() error {
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.staged, envID)
		return nil
	})
}

// Staged lists the environments that have staged mounts, sorted.
func (v *FakeVolumes) Staged(context.Context) (ids []string, err error) {
	err = v.Faults.Do("Volumes.Staged", func() error {
		v.mu.Lock()
		defer v.mu.Unlock()
		ids = slices.Sorted(maps.Keys(v.staged))
		return nil
	})
	return ids, err
}

// Leftovers names everything that is staged, for tests.
func (v *FakeVolumes) Leftovers() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var left []string
	for _, id := range slices.Sorted(maps.Keys(v.staged)) {
		left = append(left, "staged mounts of "+id)
	}
	return left
}

// FakeDesktops is a runtime.Desktops without files. Calls are named
// "Desktops.…".
type FakeDesktops struct {
	Faults *Faults

	mu       sync.Mutex
	prepared map[string]bool
	drawn    chan struct{} // closed by Draw
}

var _ runtime.Desktops = (*FakeDesktops)(nil)

// Prepare notes the environment and returns one mount and one variable.
func (d *FakeDesktops) Prepare(_ context.Context, envID string, desktop runtime.Desktop) (mounts []volume.Staged, env []string, err error) {
	err = d.Faults.Do("Desktops.Prepare", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.prepared == nil {
			d.prepared = make(map[string]bool)
		}
		d.prepared[envID] = true
		mounts = []volume.Staged{{
			FSType: "bind", Source: "/nonexistent/desktop/" + envID, Target: "/run/remotegpu", Options: []string{"rbind"},
		}}
		env = []string{fmt.Sprintf("VNC_RESOLUTION=%dx%d", desktop.Width, desktop.Height)}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return mounts, env, nil
}

// Remove forgets the environment.
func (d *FakeDesktops) Remove(_ context.Context, envID string) error {
	return d.Faults.Do("Desktops.Remove", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.prepared, envID)
		return nil
	})
}

// Prepared lists the environments that are prepared, sorted.
func (d *FakeDesktops) Prepared(context.Context) (ids []string, err error) {
	err = d.Faults.Do("Desktops.Prepared", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		ids = slices.Sorted(maps.Keys(d.prepared))
		return nil
	})
	return ids, err
}

// AwaitDrawn waits for Draw.
func (d *FakeDesktops) AwaitDrawn(ctx context.Context, _ string) error {
	return d.Faults.Do("Desktops.AwaitDrawn", func() error {
		select {
		case <-d.draws():
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
}

// AwaitConnectable finds every desktop connectable.
func (d *FakeDesktops) AwaitConnectable(context.Context, string) error {
	return d.Faults.Do("Desktops.AwaitConnectable", func() error { return nil })
}

// Draw makes every desktop draw, now and from now on.
func (d *FakeDesktops) Draw() {
	drawn := d.draws()
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-drawn:
	default:
		close(drawn)
	}
}

func (d *FakeDesktops) draws() chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.drawn == nil {
		d.drawn = make(chan struct{})
	}
	return d.drawn
}

// Leftovers names everything that is prepared, for tests.
func (d *FakeDesktops) Leftovers() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var left []string
	for _, id := range slices.Sorted(maps.Keys(d.prepared)) {
		left = append(left, "desktop of "+id)
	}
	return left
}
