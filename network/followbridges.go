package network

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/tick"
)

const (
	// bridgeSettleTime is how long changes of bridges are gathered: a program
	// that flushes one flushes others, too.
	bridgeSettleTime = 200 * time.Millisecond
	// eventsBuffer is how much the kernel keeps of what was not read yet, bytes:
	// a thousand environments come or go within a second.
	eventsBuffer = 1 << 20
)

// followBridges has bridges mended that others take addresses, routes or ports
// from, until ctx ends.
func (h *healer) followBridges(ctx context.Context) {
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() {
		for ctx.Err() == nil {
			err := h.watchBridges(ctx)
			if ctx.Err() != nil {
				return
			}
			h.networks.cfg.Log.WarnContext(ctx, "the bridges of environments are not watched; it is tried again", "error", err)
			if !tick.Pause(ctx, retryLast) {
				return
			}
		}
	})
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.damaged:
		}
		if !tick.Pause(ctx, bridgeSettleTime) || !tick.Pause(ctx, h.bridgePace.wait(time.Now())) {
			return
		}
		h.healBridges(ctx)
	}
}

// damage has bridges looked at.
func (h *healer) damage() {
	select {
	case h.damaged <- struct{}{}:
	default: // somebody is about to
	}
}

// healBridges mends what others changed of bridges. Before the first Restore it
// is not known what should be, and the rules may not be in force.
func (h *healer) healBridges(ctx context.Context) {
	if !h.networks.restored.Load() {
		return
	}
	began := time.Now()
	mended, err := h.networks.mendNetworks(ctx)
	if err != nil && ctx.Err() == nil {
		h.networks.cfg.Log.WarnContext(ctx, "the bridges of environments are not as they should be; it is tried again", "error", err)
		time.AfterFunc(retryLast, h.damage)
	}
	if len(mended) > 0 {
		h.note(ctx, Repair{At: time.Now(), What: mended, Took: time.Since(began)})
	}
}

// watchBridges listens to what the kernel tells of links, addresses and routes.
func (h *healer) watchBridges(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	events, err := subscribe(ctx)
	if err != nil {
		return err
	}
	defer events.drain()
	h.damage() // what happened before
	for {
		lost, err := events.next(ctx, host, h.networks)
		if err != nil {
			return err
		}
		if lost {
			h.damage()
		}
	}
}

// linkEvents are the kernel's messages of links, addresses and routes.
type linkEvents struct {
	links                          chan netlink.LinkUpdate
	addresses                      chan netlink.AddrUpdate
	routes                         chan netlink.RouteUpdate
	ofLinks, ofAddresses, ofRoutes error // why there are no more; written before their channels are closed
}

// subscribe asks for these until ctx ends.
func subscribe(ctx context.Context) (*linkEvents, error) {
	e := &linkEvents{links: make(chan netlink.LinkUpdate, 64), addresses: make(chan netlink.AddrUpdate, 64), routes: make(chan netlink.RouteUpdate, 64)}
	err := netlink.LinkSubscribeWithOptions(e.links, ctx.Done(), netlink.LinkSubscribeOptions{
		ReceiveBufferSize: eventsBuffer, ErrorCallback: func(err error) { e.ofLinks = err },
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to links: %w", err)
	}
	err = netlink.AddrSubscribeWithOptions(e.addresses, ctx.Done(), netlink.AddrSubscribeOptions{
		ReceiveBufferSize: eventsBuffer, ErrorCallback: func(err error) { e.ofAddresses = err },
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to addresses: %w", err)
	}
	err = netlink.RouteSubscribeWithOptions(e.routes, ctx.Done(), netlink.RouteSubscribeOptions{
		ReceiveBufferSize: eventsBuffer, ErrorCallback: func(err error) { e.ofRoutes = err },
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to routes: %w", err)
	}
	return e, nil
}

// drain reads what comes until the channels are closed: whoever sends into one
// waits for its reader, also when nobody wants to know any more.
func (e *linkEvents) drain() {
	go func() {
		for range e.links { // thrown away
		}
	}()
	go func() {
		for range e.addresses { // thrown away
		}
	}()
	go func() {
		for range e.routes { // thrown away
		}
	}()
}

// next waits for a message and tells whether something is lost that an attached
// environment needs.
func (e *linkEvents) next(ctx context.Context, host *netlink.Handle, n *Networks) (lost bool, err error) {
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case update, open := <-e.links:
		if !open {
			return false, fmt.Errorf("the kernel tells of links no more: %w", e.ofLinks)
		}
		return (update.Header.Type == unix.RTM_DELLINK || !inOrder(update.Link)) && n.looksAfter(update.Link), nil
	case update, open := <-e.addresses:
		if !open {
			return false, fmt.Errorf("the kernel tells of addresses no more: %w", e.ofAddresses)
		}
		return !update.NewAddr && n.ofNetworks(&update.LinkAddress) && n.looksAfterIndex(host, update.LinkIndex), nil
	case update, open := <-e.routes:
		if !open {
			return false, fmt.Errorf("the kernel tells of routes no more: %w", e.ofRoutes)
		}
		return update.Type == unix.RTM_DELROUTE && n.wantsRoute(host, &update.Route), nil
	}
}

// inOrder tells whether a bridge, or an environment's interface, is up and on a
// bridge.
func inOrder(link netlink.Link) bool {
	return isUp(link) && (link.Type() != "veth" || link.Attrs().MasterIndex != 0)
}

// looksAfter tells whether a link is one of an environment that is attached. Those
// that are being made or removed are not.
func (n *Networks) looksAfter(link netlink.Link) bool {
	envID, ok := strings.CutPrefix(link.Attrs().Alias, aliasPrefix)
	if !ok || !isOurs(link) {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	_, held := n.slots[envID]
	return held
}

func (n *Networks) looksAfterIndex(host *netlink.Handle, index int) bool {
	link, err := host.LinkByIndex(index)
	return err == nil && n.looksAfter(link) // with an error it has gone
}

// wantsRoute tells whether a route is one that environments need.
func (n *Networks) wantsRoute(host *netlink.Handle, route *netlink.Route) bool {
	if route.Protocol == rangeProtocol {
		to, ok := prefixOf(route.Dst)
		return ok && (to == n.cfg.Range || n.wants6() && to == n.cfg.Range6)
	}
	return n.ofNetworks(route.Dst) && n.looksAfterIndex(host, route.LinkIndex)
}
