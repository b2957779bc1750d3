package netbench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

// few is how many ports are published where rules are rewritten and flushed.
const few = 1000

// refused counts the connections that are refused while all rules of all other
// ports are rewritten again and again.
func (r *rules) refused(ctx context.Context) error {
	state := func(shift int) (desired firewall.Desired) {
		desired.Mappings = mappings(min(few, r.Mappings))
		for i := range desired.Mappings {
			desired.Mappings[i].To = netip.AddrPortFrom(target(1+i/mappingsOf+shift), innerPort)
		}
		desired.Mappings[0].To = netip.AddrPortFrom(target(0), innerPort)
		return desired
	}
	f, err := newFirewall(r.backend)
	if err != nil {
		return err
	}
	p, err := newPath(ctx, columns.RemoteGPU, []int{0}, func(ctx context.Context) error { return f.Set(ctx, state(0)) })
	if err != nil {
		return err
	}
	defer p.close()
	rewriting, stop := context.WithCancel(ctx)
	defer stop()
	rewritten := make(chan error, 1)
	times := 0
	go func() {
		rewritten <- p.host.NS.Do(func() error {
			for ; rewriting.Err() == nil; times++ {
				if err := f.Set(ctx, state(few*((times+1)%2))); err != nil {
					return err
				}
			}
			return nil
		})
	}()
	count, err := p.countRefused(10 * r.Connects)
	stop()
	if err := errors.Join(err, <-rewritten); err != nil {
		return err
	}
	r.results[columns.RemoteGPU].AddValue(rows[r.backend].refused, float64(count))
	r.say(fmt.Sprintf("%d of %d connections were refused while %d rules were rewritten %d times", count, 10*r.Connects, min(few, r.Mappings), times))
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
