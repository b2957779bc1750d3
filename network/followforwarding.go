package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/tick"
)

const (
	// linkOfMessage is where a message about settings names the interface: behind
	// nlmsghdr, netconfmsg and the head of the first attribute (NETCONFA_IFINDEX,
	// inet_netconf_fill_devconf of net/ipv4/devinet.c).
	linkOfMessage = unix.SizeofNlMsghdr + 4 + unix.SizeofNlAttr
	// allLinksIndex is the interface of what holds for all (NETCONFA_IFINDEX_ALL, -1).
	allLinksIndex = 0xffffffff
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
	if err := unix.SetsockoptSockFprog(socket.GetFd(), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, ofAllLinks()); err != nil {
		return fmt.Errorf("choose settings to listen to: %w", err)
	}
	defer context.AfterFunc(ctx, socket.Close)()
	for look := true; ; { // what happened before nobody told
		for again := forwardingPace; look; again = min(2*again, retryLast) {
			look = !h.healForwarding(ctx)
			if !tick.Pause(ctx, again) {
				return ctx.Err()
			}
		}
		_, _, err := socket.Receive()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) { // some were lost
			return fmt.Errorf("listen to settings: %w", err)
		}
		look = true
	}
}

// ofAllLinks lets messages through that are of the settings of all interfaces: each
// one that comes or goes with an environment brings some of its own.
func ofAllLinks() *unix.SockFprog {
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: linkOfMessage},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: allLinksIndex, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: ^uint32(0)},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	return &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
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
		if err != nil && ctx.Err() == nil { // else nobody waits for it
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
