package netbench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

// few is how many ports are published where rules are flushed.
const few = 1000

// rewrites is how often rules are rewritten at least while connections are made,
// and moved is by how much host ports differ before and after.
const (
	rewrites = 20
	moved    = 20000
)

// rewritten is one of two states of which hardly a rule is in the other: all
// ports but the first are others and lead elsewhere, so that every chain on the
// way to them differs, and so do the policies and what holds for everybody, in
// all tables.
func (r *rules) rewritten(other bool) (desired firewall.Desired, err error) {
	metadata := netip.MustParseAddr("169.254.169.254")
	n := node{Environments: r.Mappings / mappingsOf}
	desired.Mappings = mappings(r.Mappings)
	if desired.Policies, err = n.rules(); err != nil {
		return desired, err
	}
	if !other {
		desired.Surroundings.Resolvers = []netip.Addr{metadata}
		return desired, nil
	}
	for i := range desired.Mappings[1:] {
		m := &desired.Mappings[1+i]
		m.HostPort += moved
		m.To = netip.AddrPortFrom(target(n.Environments+i/mappingsOf), innerPort)
	}
	for i := range desired.Policies {
		desired.Policies[i].Address = target(n.Environments + i)
	}
	desired.Surroundings.Closed = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
	return desired, nil
}

// refused counts the connections that are refused while all rules but those of
// their own port are rewritten again and again.
func (r *rules) refused(ctx context.Context) error {
	one, err := r.rewritten(false)
	if err != nil {
		return err
	}
	other, err := r.rewritten(true)
	if err != nil {
		return err
	}
	f, err := newFirewall(r.backend)
	if err != nil {
		return err
	}
	p, err := newPath(ctx, columns.RemoteGPU, []int{0}, func(ctx context.Context) error { return f.Set(ctx, one) })
	if err != nil {
		return err
	}
	defer p.close()
	rewriting, stop := context.WithCancel(ctx)
	defer stop()
	rewritten := make(chan error, 1)
	var times atomic.Int64
	go func() {
		rewritten <- p.host.NS.Do(func() error {
			for ; rewriting.Err() == nil; times.Add(1) {
				if err := f.Set(ctx, []firewall.Desired{other, one}[times.Load()%2]); err != nil {
					return err
				}
			}
			return nil
		})
	}()
	made, refused := 0, 0
	for made < 10*r.Connects || times.Load() < rewrites {
		more, errCount := p.countRefused(r.Connects)
		made, refused, err = made+r.Connects, refused+more, errCount
		if err != nil || len(rewritten) > 0 {
			break
		}
	}
	stop()
	if err := errors.Join(err, <-rewritten); err != nil {
		return err
	}
	r.results[columns.RemoteGPU].AddValue(rows[r.backend].refused, float64(refused))
	r.say(fmt.Sprintf("%d of %d connections were refused while the rules of %d ports were rewritten %d times", refused, made, r.Mappings, times.Load()))
	return nil
}

// countRefused makes connections to the first port.
func (p *path) countRefused(count int) (refused int, err error) {
	err = p.host.Client().Do(func() error {
		for i := range count {
			switch _, err := connect(netip.AddrPortFrom(netip.MustParseAddr(sandbox.HostAddress), firstPort)); {
			case errors.Is(err, unix.ECONNREFUSED):
				refused++
			case err != nil:
				return fmt.Errorf("connect while rules are rewritten: %w", err)
			}
			if i%turn == 0 {
				p.drain()
			}
		}
		return nil
	})
	return refused, err
}

// heal times how long it takes from a flush of everything until the node has
// mended it.
func (r *rules) heal(ctx context.Context) (err error) {
	f, err := newFirewall(r.backend)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "netns")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	networks, err := network.New(network.Config{Range: netip.MustParsePrefix(rangeOf), NetNSDir: dir + "/netns", Firewall: f})
	if err != nil {
		return err
	}
	var all []port.Published
	for i := range min(few, r.Mappings) / mappingsOf {
		one := port.Published{EnvID: mapping(i * mappingsOf).EnvID, Address: target(i)}
		for j := range mappingsOf {
			one.Mappings = append(one.Mappings, port.Mapping{
				Service: port.Custom, Protocol: port.TCP, External: uint16(firstPort + i*mappingsOf + j), Internal: innerPort,
			})
		}
		all = append(all, one)
	}
	if err := networks.Restore(ctx, all, nil); err != nil {
		return err
	}
	watching, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- networks.Run(watching) }()
	defer func() {
		stop()
		err = errors.Join(err, <-ended, networks.Wait(ctx), f.CleanUp(ctx, firewall.Kept{}))
	}()
	for networks.Repairs().Watch == "" {
		if err := wait(ctx, time.Millisecond); err != nil {
			return err
		}
	}
	flush := "nft flush ruleset"
	if r.backend == "legacy" {
		flush = "for table in nat filter raw; do " + program(r.backend) + " -t $table -F; " + program(r.backend) + " -t $table -X; done"
	}
	for round := -1; round < r.Rounds; round++ { // the first may come before the watch
		took, err := healed(ctx, networks, flush)
		if err != nil {
			return err
		}
		if round >= 0 {
			r.results[columns.RemoteGPU].Add(rows[r.backend].heal, took)
		}
		if err := wait(ctx, 300*time.Millisecond); err != nil { // so that a flush is not a flood
			return err
		}
	}
	r.say(fmt.Sprintf("a flush of %d ports was mended %d times", min(few, r.Mappings), r.Rounds))
	return nil
}

// healed flushes and waits for the repair.
func healed(ctx context.Context, networks *network.Networks, flush string) (time.Duration, error) {
	before := networks.Repairs().Count
	if err := script(ctx, flush); err != nil {
		return 0, err
	}
	begun := time.Now()
	const limit = 30 * time.Second
	for time.Since(begun) < limit {
		if repairs := networks.Repairs(); repairs.Count > before {
			// With legacy a part of the flush may have been mended before its end.
			if differences, err := networks.Differences(ctx); err != nil || len(differences) == 0 {
				return max(0, repairs.Latest[len(repairs.Latest)-1].At.Sub(begun)), err
			}
		}
		if err := wait(ctx, time.Millisecond); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("a flush was not mended within %s", limit)
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
