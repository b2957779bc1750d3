package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/policy"
)

// Speeds are limited by token buckets at both ends of an environment's pair of
// interfaces, each where packets leave: what it receives at the host's end,
// what it sends at its own. There a full queue slows the sender down instead of
// losing its packets. To change its end takes CAP_NET_ADMIN over the namespace,
// which no environment has; to pass by it takes less, so the same bound is on
// the host's side too (limitAtHost).

const (
	// bucketTime is how much a bucket holds, in seconds at its rate, but not
	// less than bucketLeast bytes: one packet of the largest size with
	// segmentation offload.
	bucketTime  = 0.010
	bucketLeast = 64 << 10
	// queueTime is how long a packet waits at most, in seconds.
	queueTime = 0.050
)

// speeds are what an environment receives and sends at most, bits per second; 0:
// no limit.
type speeds struct{ in, out int64 }

// notes keeps the limits of an environment for when its interface is made anew.
func (n *Networks) notes(envID string, wanted speeds) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if wanted == (speeds{}) {
		delete(n.limits, envID)
		return
	}
	n.limits[envID] = wanted
}

// setBandwidth limits, or does not limit any more, what an environment sends and
// receives, when it has a network. Another Attach leaves the limits as they are.
func (n *Networks) setBandwidth(ctx context.Context, declared *policy.Declared) error {
	unlock, err := n.locks.Lock(ctx, declared.EnvID)
	if err != nil {
		return fmt.Errorf("limit bandwidth of environment %s: %w", declared.EnvID, err)
	}
	defer unlock()
	return n.setSpeeds(ctx, declared.EnvID, speeds{declared.Policy.IngressBits, declared.Policy.EgressBits})
}

// setSpeeds is setBandwidth under the lock of the environment.
func (n *Networks) setSpeeds(ctx context.Context, envID string, wanted speeds) error {
	n.notes(envID, wanted)
	if err := n.limit(ctx, envID, wanted); err != nil {
		what := "limit bandwidth of environment " + envID
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
			return problem.New(problem.NetworkFailed, "%s", what).WithCause(err).
				WithHint("The kernel lacks what limits speeds: try modprobe -a sch_tbf sch_ingress cls_u32 act_mirred ifb")
		}
		return failed(what, err)
	}
	return nil
}

// restoreBandwidth sets the limits of environments again that have some, and
// takes those that are left because it failed when they were lifted. What was
// changed so recently that the caller may not have known outweighs the list. links
// are ours.
func (n *Networks) restoreBandwidth(ctx context.Context, policies []policy.Declared, links []hostLink) error {
	limited, err := limitedAmong(links)
	if err != nil {
		return failed("look at limits of bandwidth", err)
	}
	var errs []error
	for i := range policies {
		names := n.names(policies[i].EnvID)
		if policies[i].Policy.IngressBits != 0 || policies[i].Policy.EgressBits != 0 || limited[names.veth] || limited[names.ifb] {
			errs = append(errs, n.restoreLimits(ctx, &policies[i]))
		}
	}
	return errors.Join(errs...)
}

// keepLimits sets the limits again that environments have: the kernel tells nobody
// that somebody took one.
func (n *Networks) keepLimits(ctx context.Context) error {
	n.mu.Lock()
	limited := slices.Collect(maps.Keys(n.limits))
	n.mu.Unlock()
	var errs []error
	for _, envID := range limited {
		errs = append(errs, n.keepLimit(ctx, envID))
	}
	return errors.Join(errs...)
}

func (n *Networks) keepLimit(ctx context.Context, envID string) error {
	unlock, err := n.locks.Lock(ctx, envID)
	if err != nil {
		return fmt.Errorf("limit bandwidth of environment %s: %w", envID, err)
	}
	defer unlock()
	n.mu.Lock()
	wanted, still := n.limits[envID]
	n.mu.Unlock()
	if !still {
		return nil
	}
	return n.setSpeeds(ctx, envID, wanted)
}

func (n *Networks) restoreLimits(ctx context.Context, declared *policy.Declared) error {
	unlock, err := n.locks.Lock(ctx, declared.EnvID)
	if err != nil {
		return fmt.Errorf("limit bandwidth of environment %s: %w", declared.EnvID, err)
	}
	defer unlock()
	wanted := speeds{declared.Policy.IngressBits, declared.Policy.EgressBits}
	// Looked at under the lock: SetPolicy is noted before it waits for that, and
	// sets its limits after this.
	if n.published.restrictedLately(declared.EnvID) {
		n.mu.Lock()
		wanted = n.limits[declared.EnvID]
		n.mu.Unlock()
		if wanted == (speeds{}) {
			return nil
		}
	}
	return n.setSpeeds(ctx, declared.EnvID, wanted)
}

// limitedAmong are the interfaces among some that limit what passes: with a
// bucket, or made for one.
func limitedAmong(links []hostLink) (map[string]bool, error) {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	buckets, err := dump(func() ([]netlink.Qdisc, error) { return host.QdiscList(nil) })
	if err != nil {
		return nil, fmt.Errorf("list queues: %w", err)
	}
	has := make(map[int]bool)
	for _, bucket := range buckets {
		if bucket.Type() == "tbf" {
			has[bucket.Attrs().LinkIndex] = true
		}
	}
	limited := make(map[string]bool)
	for _, link := range links {
		if link.Type() == "ifb" || has[link.Attrs().Index] {
			limited[link.Attrs().Name] = true
		}
	}
	return limited, nil
}

// limit does so. The caller holds the environment's lock.
func (n *Networks) limit(ctx context.Context, envID string, wanted speeds) error {
	names := n.names(envID)
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	veth, err := find(host, names.veth)
	if err != nil || veth == nil || veth.Attrs().Alias != names.alias {
		return err // Attach makes it, and SetPolicy follows
	}
	if err := shape(host, veth, wanted.in); err != nil {
		return fmt.Errorf("limit what it receives: %w", err)
	}
	if err := fault.Point(ctx, "reception limited"); err != nil {
		return err
	}
	ownEnd := func() error { return limitInside(names.netns, wanted.out) }
	atHost := func() error { return limitAtHost(ctx, host, names, veth, wanted.out) }
	steps := []func() error{atHost, ownEnd}
	if wanted.out == 0 { // the one that restoreBandwidth sees goes last
		steps = []func() error{ownEnd, atHost}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("limit what it sends: %w", err)
		}
	}
	return nil
}

// limitInside limits what an environment sends at its own end.
func limitInside(netns string, bits int64) error {
	there, err := pinned(netns)
	if err != nil || !there {
		return err
	}
	return inNamespace(netns, false, func(int) error {
		inner, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink in namespace: %w", err)
		}
		defer inner.Close()
		link, err := find(inner, inside)
		if err != nil || link == nil {
			return err
		}
		return shape(inner, link, bits)
	})
}

// shape limits what leaves by a link to so many bits per second; 0 takes the
// limit away.
func shape(handle *netlink.Handle, link netlink.Link, bits int64) error {
	root := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	if bits == 0 {
		err := handle.QdiscDel(&netlink.Tbf{QdiscAttrs: root})
		// There is none, or the kernel's own one.
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !gone(err) {
			return fmt.Errorf("remove bucket of %s: %w", link.Attrs().Name, err)
		}
		return nil
	}
	rate := float64(bits) / 8
	bucket := max(rate*bucketTime, bucketLeast)
	limit := min(rate*queueTime+bucket, math.MaxUint32)
	ticks := bucket / rate * 1e6 * netlink.TickInUsec()
	if err := handle.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: root, Rate: uint64(rate), Buffer: uint32(min(ticks, math.MaxUint32)), Limit: uint32(limit),
	}); err != nil {
		return fmt.Errorf("set bucket of %s: %w", link.Attrs().Name, err)
	}
	// Below it a fair queue, so that a download does not delay a shell. Kernels
	// without one keep the queue that the bucket has.
	fair := netlink.NewFqCodel(netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(2, 0), Parent: netlink.MakeHandle(1, 1),
	})
	if err := handle.QdiscReplace(fair); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("set fair queue of %s: %w", link.Attrs().Name, err)
	}
	return nil
}
