package firewall

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/network/firewall/nft"
)

const (
	// settleTime is for how long nothing may have changed before somebody is
	// told: a program that changes rules mostly makes several transactions.
	settleTime = 20 * time.Millisecond
	// settleLimit bounds the wait for that.
	settleLimit = 60 * time.Millisecond
	// unread is how many transactions may wait to be looked at.
	unread = 1024
)

// Change says that others have changed rules, or may have.
type Change struct {
	// By are the programs that did it, as "name[pid]", in order. Empty when the
	// kernel does not tell.
	By []string
}

// Watch calls changed, one call at a time, after others have changed our
// chains, or chains that our hooks are in. Changes of our own are left out. With
// nf_tables the kernel tells at once and who it was; tables of the legacy
// backend are looked at each poll. Watch returns nil when ctx ends, and an error
// when the kernel does not tell any more. It must be called in the network
// namespace that is watched.
func (f *Firewall) Watch(ctx context.Context, poll time.Duration, changed func(context.Context, Change)) error {
	backend, err := f.Backend(ctx)
	if err != nil {
		return err
	}
	if backend == legacyBackend {
		return f.watchTables(ctx, poll, changed)
	}
	return f.watchEvents(ctx, changed)
}

// watchTables looks at the tables of the legacy backend.
func (f *Firewall) watchTables(ctx context.Context, poll time.Duration, changed func(context.Context, Change)) error {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		foreign, err := f.changedTables()
		if err != nil {
			return err
		}
		if foreign {
			changed(ctx, Change{})
		}
	}
}

// watchEvents listens to what the kernel tells of nftables.
func (f *Firewall) watchEvents(ctx context.Context, changed func(context.Context, Change)) error {
	events, err := nft.Subscribe(f.interest)
	if err != nil {
		return err
	}
	commits := make(chan nft.Commit, unread)
	ended := make(chan error, 1)
	go func() { ended <- forward(events, commits) }()
	stop := context.AfterFunc(ctx, func() { closeQuietly(events) })
	defer func() {
		if stop() {
			closeQuietly(events)
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			if ctx.Err() != nil || errors.Is(err, os.ErrClosed) {
				return nil
			}
			return err
		case first := <-commits:
			if by, foreign := f.foreign(gather(ctx, first, commits)); foreign {
				changed(ctx, Change{By: by})
			}
		}
	}
}

// closeQuietly ends a subscription. There is nothing that could be lost.
func closeQuietly(events *nft.Events) {
	if err := events.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return
	}
}

// forward passes on what touches us. It never waits: what does not fit is told
// as lost once there is room.
func forward(events *nft.Events, commits chan<- nft.Commit) error {
	lost := false
	for {
		commit, err := events.Next()
		if err != nil {
			return err
		}
		if !commit.Touched && !commit.Lost {
			continue
		}
		if lost {
			commit = nft.Commit{Lost: true}
		}
		select {
		case commits <- commit:
			lost = false
		default:
			lost = true
		}
	}
}

// gather returns first and what follows until nothing has for a while.
func gather(ctx context.Context, first nft.Commit, commits <-chan nft.Commit) []nft.Commit {
	gathered := []nft.Commit{first}
	settled := time.NewTimer(settleTime)
	defer settled.Stop()
	limit := time.NewTimer(settleLimit)
	defer limit.Stop()
	for {
		select {
		case commit := <-commits:
			gathered = append(gathered, commit)
			settled.Reset(settleTime)
		case <-settled.C:
			return gathered
		case <-limit.C:
			return gathered
		case <-ctx.Done():
			return gathered
		}
	}
}

// interest tells whether a change of the chain may be a change of our rules or
// of where our hooks are.
func (f *Firewall) interest(chain nft.Chain) bool {
	hooks := f.v4.hooks
	switch {
	case chain.Family == unix.NFPROTO_IPV6 && f.v6 != nil:
		hooks = f.v6.hooks
	case chain.Family != unix.NFPROTO_IPV4:
		return false
	}
	if !slices.ContainsFunc(hooks, func(h hook) bool { return h.table == chain.Table }) {
		return false
	}
	// Of a chain that is renamed only the new name is told.
	return chain.Name == "" || chain.Itself || f.v4.prefixed(chain.Name) ||
		slices.ContainsFunc(hooks, func(h hook) bool { return h.table == chain.Table && h.chain == chain.Name })
}

// Watches tells how changes of others are noticed: "events" or "poll".
func (f *Firewall) Watches(ctx context.Context) (string, error) {
	backend, err := f.Backend(ctx)
	if err != nil {
		return "", fmt.Errorf("tell how rules are watched: %w", err)
	}
	if backend == legacyBackend {
		return "poll", nil
	}
	return "events", nil
}
