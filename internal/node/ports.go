package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/config"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/port"
)

// wantedFiles is how many files the daemon may have open: a socket for each
// host port of the pools, twice where both protocols are published, and what
// streams and databases need.
const wantedFiles = 65536

// raiseFiles raises the limit of open files as far as it may be. Go raises the
// soft limit at start by itself.
func raiseFiles(log *slog.Logger) {
	var limit unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	if err == nil && limit.Cur >= wantedFiles {
		return
	}
	if err == nil {
		raised := unix.Rlimit{Cur: wantedFiles, Max: max(limit.Max, wantedFiles)}
		if err = unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err == nil {
			return
		}
	}
	log.Warn("the limit of open files is low: each published port takes one (LimitNOFILE of the unit)", "files", limit.Cur, "wanted", wantedFiles, "error", err)
}

// buildPorts makes the port pool. The ports that environments have are taken
// before anything else of the daemon could take one.
func (n *Node) buildPorts(ctx context.Context) (err error) {
	raiseFiles(n.log)
	cfg := port.Config{
		HostID: n.id, Store: n.store, Holder: &n.sockets, IPv6: n.range6.IsValid(), ClosedByDefault: n.cfg.Ports.ClosedByDefault,
		Quarantine: -1, Log: n.log,
	}
	if seconds := n.cfg.Ports.Quarantine; seconds > 0 {
		cfg.Quarantine = time.Duration(seconds) * time.Second
	}
	for _, text := range n.cfg.Ports.Deny {
		first, last, err := config.ParsePorts(text)
		if err != nil {
			return fmt.Errorf("read ports that are denied: %w", err)
		}
		for _, protocol := range []port.Protocol{port.TCP, port.UDP} {
			cfg.Deny = append(cfg.Deny, port.Span{Protocol: protocol, First: first, Last: last, Rule: "[ports] deny"})
		}
	}
	if n.pool, err = port.New(ctx, cfg); err != nil {
		return err
	}
	for _, warning := range n.pool.Review() {
		n.log.WarnContext(ctx, "look at the port pools", "warning", warning)
	}
	if err := n.networks.ReservePorts(ctx, n.pool.Reservable()); err != nil {
		n.log.ErrorContext(ctx, "outgoing connections may take ports of a pool; it is tried again", "error", err)
	}
	if err := n.ports().lookForRules(ctx); err != nil {
		n.log.WarnContext(ctx, "rules of other tools are not known; it is tried again", "error", err)
	}
	return nil
}

func (n *Node) ports() ports {
	return ports{Pool: n.pool, firewall: n.firewall, networks: n.networks}
}

// ports is the pool with what it needs to know of the host.
type ports struct {
	*port.Pool
	firewall *firewall.Firewall
	networks *network.Networks
}

// lookForRules tells the pool which ports rules of other tools have.
func (p ports) lookForRules(ctx context.Context) error {
	spans, err := p.firewall.Foreign(ctx)
	if err != nil {
		return err
	}
	p.SetForeign(spans)
	return nil
}

// Allocate looks anew for rules of other tools when somebody wants a certain port,
// which may have been given away since the last look. What the pool picks by itself
// it picks by what the looks of the reconciler have found.
func (p ports) Allocate(ctx context.Context, owner port.Owner, requests []port.Request, insert func(context.Context, []port.Mapping) error) ([]port.Mapping, error) {
	if slices.ContainsFunc(requests, func(r port.Request) bool { return r.External != 0 }) {
		_ = p.lookForRules(ctx) // without it what is known stays, and each look says why
	}
	return p.Pool.Allocate(ctx, owner, requests, insert)
}

// Reallocate looks as Allocate does, for ports that are not held already.
func (p ports) Reallocate(ctx context.Context, owner port.Owner, held []port.Mapping, requests []port.Request, apply func(context.Context, port.Change) error) error {
	if slices.ContainsFunc(requests, func(r port.Request) bool {
		return r.External != 0 && !slices.ContainsFunc(held, func(m port.Mapping) bool { return m.External == r.External })
	}) {
		_ = p.lookForRules(ctx) // as above
	}
	return p.Pool.Reallocate(ctx, owner, held, requests, apply)
}

// Conflicts looks anew for rules of other tools first, and at what is held
// outside of all ranges: it may have been released.
func (p ports) Conflicts(ctx context.Context) ([]port.Conflict, error) {
	err := errors.Join(p.lookForRules(ctx), p.networks.ReservePorts(ctx, p.Reservable())) // without them what is known stays
	conflicts, holdErr := p.Pool.Conflicts(ctx)
	return conflicts, errors.Join(err, holdErr)
}

// SetRange also reserves the range, and answers how full it is then.
func (p ports) SetRange(ctx context.Context, service port.Service, first, last uint16, ifRevision int64) (port.Usage, error) {
	if _, err := p.Pool.SetRange(ctx, service, first, last, ifRevision); err != nil {
		return port.Usage{}, err
	}
	_ = p.networks.ReservePorts(ctx, p.Reservable()) // the range is set; the reconciler tries again, and says why not
	usages, err := p.Usage(ctx)
	if err != nil {
		return port.Usage{}, err
	}
	for _, usage := range usages {
		if usage.Service == service {
			return usage, nil
		}
	}
	return port.Usage{}, errdefs.ErrNotFound
}
