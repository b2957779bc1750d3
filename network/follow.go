package network

import (
	"context"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/remotegpu/remotegpu/internal/tick"
)

// settleTime is how long changes of addresses and routes are gathered: a network that
// comes up brings several.
const settleTime = 50 * time.Millisecond

// followAddresses closes networks to environments as soon as the host gets an
// address in them, or a route to their neighbours, until ctx ends.
func (n *Networks) followAddresses(ctx context.Context) {
	for ctx.Err() == nil {
		err := n.watchAddresses(ctx)
		if ctx.Err() != nil {
			return
		}
		n.cfg.Log.WarnContext(ctx, "the host's addresses are not watched; it is tried again", "error", err)
		if !tick.Pause(ctx, retryLast) {
			return
		}
	}
}

func (n *Networks) watchAddresses(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	updates := make(chan netlink.AddrUpdate, 64)
	routes := make(chan netlink.RouteUpdate, 64)
	var failure, lost error // written before their channels are closed
	err := netlink.AddrSubscribeWithOptions(updates, ctx.Done(), netlink.AddrSubscribeOptions{ErrorCallback: func(err error) { failure = err }})
	if err != nil {
		return fmt.Errorf("subscribe to addresses: %w", err)
	}
	err = netlink.RouteSubscribeWithOptions(routes, ctx.Done(), netlink.RouteSubscribeOptions{ErrorCallback: func(err error) { lost = err }})
	if err != nil {
		return fmt.Errorf("subscribe to routes: %w", err)
	}
	n.lookAround(ctx) // what changed before
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case update, open := <-updates:
			if !open {
				return fmt.Errorf("the kernel tells of addresses no more: %w", failure)
			}
			n.stirs.happened()
			if n.ofNetworks(&update.LinkAddress) {
				continue // an environment comes or goes
			}
		case update, open := <-routes:
			if !open {
				return fmt.Errorf("the kernel tells of routes no more: %w", lost)
			}
			n.stirs.happened()
			if _, closes := n.closes(update.Dst); !closes || !isOnLink(&update.Route) {
				continue
			}
		}
		if !tick.Pause(ctx, settleTime) {
			return ctx.Err()
		}
		for len(updates) > 0 {
			<-updates
		}
		for len(routes) > 0 {
			<-routes
		}
		n.lookAround(ctx)
	}
}

// ResponderChanged opens the responder's port to environments, or closes it,
// after Config.Responder has another answer. Before a Restore it does nothing:
// that asks. A failure is logged: the reconciler comes by.
func (n *Networks) ResponderChanged(ctx context.Context) {
	if _, err := n.published.surround(ctx); err != nil && ctx.Err() == nil {
		n.cfg.Log.WarnContext(ctx, "whether environments can ask for names is not as it should be yet", "error", err)
	}
}

// lookAround declares what holds for all environments when it is another than
// before. A failure is logged: the reconciler comes by.
func (n *Networks) lookAround(ctx context.Context) {
	defer n.stirs.happened() // Site may be another
	changed, err := n.published.surround(ctx)
	if err != nil {
		if ctx.Err() == nil {
			n.cfg.Log.WarnContext(ctx, "networks that the host is in now are not closed to environments yet", "error", err)
		}
		return
	}
	if changed {
		n.cfg.Log.InfoContext(ctx, "the host is in other networks than before, which are closed to environments")
		n.endRefused(ctx)
	}
}
