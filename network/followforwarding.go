package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/tick"
)

const (
	// ofAllLinks is the interface of messages about what holds for all of them
	// (NETCONFA_IFINDEX and NETCONFA_IFINDEX_ALL of linux/netconf.h).
	netconfLink = 1
	ofAllLinks  = -1
	// netconfHead is the size of a netconfmsg, with what aligns the attributes.
	netconfHead = 4
	// forwardingPace is the time between two looks at forwarding: somebody may
	// switch it off again and again.
	forwardingPace = time.Second
)

// followForwarding has the host forward packets again when somebody has switched
// that off, until ctx ends.
func (h *healer) followForwarding(ctx context.Context) {
	for {
		err := h.watchForwarding(ctx)
		if ctx.Err() != nil {
			return
		}
		h.networks.cfg.Log.WarnContext(ctx, "forwarding is not watched; it is tried again", "error", err)
		if !tick.Pause(ctx, retryLast) {
			return
		}
	}
}

// watchForwarding listens to what the kernel tells of settings (RTM_NEWNETCONF).
func (h *healer) watchForwarding(ctx context.Context) error {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF)
	if err != nil {
		return fmt.Errorf("subscribe to settings: %w", err)
	}
	defer socket.Close()
	defer context.AfterFunc(ctx, socket.Close)()
	for look := true; ; { // what happened before nobody told
		for again := forwardingPace; look; again = min(2*again, retryLast) {
			look = !h.healForwarding(ctx)
			if !tick.Pause(ctx, again) {
				return ctx.Err()
			}
		}
		messages, _, err := socket.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS): // some were lost
			look = true
			continue
		case err != nil:
			return fmt.Errorf("listen to settings: %w", err)
		}
		for i := range messages {
			look = look || messages[i].Header.Type == unix.RTM_NEWNETCONF && concernsAll(messages[i].Data)
		}
	}
}

// concernsAll tells whether a message about settings is of those of all interfaces.
func concernsAll(message []byte) bool {
	if len(message) < netconfHead {
		return false
	}
	attributes, err := nl.ParseRouteAttr(message[netconfHead:])
	if err != nil {
		return true
	}
	for i := range attributes {
		if value := attributes[i].Value; attributes[i].Attr.Type == netconfLink && len(value) == 4 {
			return int32(binary.NativeEndian.Uint32(value)) == ofAllLinks // an index may be negative
		}
	}
	return false
}

// healForwarding looks whether the host forwards packets, and tells whether that is as
// it should be. Before the first Restore the rules may not be in force without which it
// should not, and that switches it on.
func (h *healer) healForwarding(ctx context.Context) (done bool) {
	if !h.networks.restored.Load() {
		return true
	}
	done = true
	for _, f := range []*forwarding{&h.networks.forward4, &h.networks.forward6} {
		if f == &h.networks.forward6 && (!h.networks.wants6() || h.networks.cfg.Firewall.IPv6() != nil) {
			continue
		}
		began := time.Now()
		changed, err := f.switchOn(ctx)
		if err != nil {
			done = false
			level := slog.LevelWarn
			if f == &h.networks.forward6 {
				level = slog.LevelDebug // a condition says so
			}
			h.networks.cfg.Log.Log(ctx, level, "forwarding cannot be looked at", "setting", f.name(), "error", err)
		}
		if changed {
			h.note(ctx, Repair{At: time.Now(), What: []string{f.name()}, Took: time.Since(began)})
		}
	}
	return done
}
