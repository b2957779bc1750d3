package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/config"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/dns"
	"github.com/remotegpu/remotegpu/runtime"
)

// namesRetry is how often it is tried again to listen, and looked whether the
// host has other addresses.
const namesRetry = 4 * time.Second

// names is the node's DNS responder: what is served, and where.
type names struct {
	cfg       config.DNS
	public    string // host that people reach the node by; "": not configured
	log       *slog.Logger
	server    *dns.Server
	forwarder *dns.Forwarder
	networks  *network.Networks
	addresses []netip.Prefix // of environments, of both families where they have them
	listen    []netip.AddrPort
	retry     time.Duration
	serving   atomic.Bool // at the address that environments ask at

	mu         sync.Mutex
	hosts      []*dns.Host
	declared   bool
	advertised []netip.Addr
	broken     map[netip.AddrPort]error // where it could not listen
	open       map[netip.AddrPort]*dns.Listener
}

// newNames makes the responder; nil when it is off. networks is set later.
func newNames(cfg config.DNS, public string, addresses, range6 netip.Prefix, log *slog.Logger) (*names, error) {
	if !cfg.Enabled {
		return nil, nil //nolint:nilnil // it is off
	}
	if err := cfg.CheckListen(addresses, range6); err != nil { // the range may have been picked
		return nil, err
	}
	listen, err := cfg.Addresses()
	if err != nil {
		return nil, err
	}
	n := &names{
		cfg: cfg, public: public, log: log, addresses: []netip.Prefix{addresses}, listen: listen, retry: namesRetry,
		broken: make(map[netip.AddrPort]error), open: make(map[netip.AddrPort]*dns.Listener),
	}
	if range6.IsValid() {
		n.addresses = append(n.addresses, range6)
	}
	private := cfg.PrivateDomains
	if _, err := netip.ParseAddr(public); err != nil && public != "" {
		private = append(slices.Clone(private), public) // it leads to this host, as it should
	}
	n.forwarder = dns.NewForwarder(dns.ForwarderConfig{Upstreams: n.upstreams, Private: private, Log: log})
	n.server = dns.NewServer(dns.Config{
		Allow: parsePrefixes(cfg.Allow), Environments: n.addresses, Forwarder: n.forwarder, Log: log,
		RateLimit: dns.RateLimit{PerSecond: cfg.RateLimit, Outside: cfg.RateOutside, Slip: cfg.RateSlip, Exempt: parsePrefixes(cfg.RateExempt)},
	})
	return n, nil
}

func parsePrefixes(texts []string) []netip.Prefix {
	networks := make([]netip.Prefix, 0, len(texts))
	for _, text := range texts {
		if network, err := netip.ParsePrefix(text); err == nil { // config has checked it
			networks = append(networks, network.Masked())
		}
	}
	return networks
}

// Zones implements runtime.Names.
func (n *names) Zones() []string {
	zones := []string{strings.ToLower(strings.TrimSuffix(n.cfg.Zone, "."))}
	for _, zone := range n.cfg.Zones {
		zones = append(zones, strings.ToLower(strings.TrimSuffix(zone.Name, ".")))
	}
	return zones
}

// Advertised implements runtime.Names.
func (n *names) Advertised() []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.advertised
}

// addressesOfHost are those that names lead to now.
func (n *names) addressesOfHost() []netip.Addr {
	if len(n.cfg.Advertise) > 0 {
		return parseAddresses(n.cfg.Advertise)
	}
	var four, six netip.Addr
	for _, name := range hostNames(n.public, "", "", n.addresses...) {
		address, err := netip.ParseAddr(name)
		switch {
		case err != nil || address.IsLoopback():
		case address.Is4() && !four.IsValid():
			four = address
		case address.Is6() && !six.IsValid() && len(n.addresses) > 1: // where environments are published by it
			six = address
		}
	}
	if n.networks != nil && !n.networks.HasIPv6() { // a condition says why; clients would try it first
		six = netip.Addr{}
	}
	return slices.DeleteFunc([]netip.Addr{four, six}, func(a netip.Addr) bool { return !a.IsValid() })
}

// Declare implements runtime.Names.
func (n *names) Declare(_ context.Context, hosts []*dns.Host) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts, n.declared = hosts, true
	return n.set()
}

// set declares everything to the server. The caller holds mu.
func (n *names) set() error {
	desired := dns.Desired{
		Zones: []dns.Zone{{Name: n.cfg.Zone}}, Reverse: n.addresses, Default: runtime.DefaultProject,
		Node: n.networks.NodeAddress(), Advertised: n.advertised, Hosts: n.hosts,
	}
	for _, zone := range n.cfg.Zones {
		desired.Zones = append(desired.Zones, dns.Zone{Name: zone.Name, NS: zone.NS, Mailbox: zone.Mailbox})
	}
	if err := n.server.Set(desired); err != nil {
		return problem.New(problem.ConfigInvalid, "the zones cannot be served").WithField("dns.zone").WithCause(err).
			WithHint("zones, ns and mailbox are domain names")
	}
	return nil
}

// resolver is where and in which domain environments ask, while they can.
func (n *names) resolver() (domain string, serving bool) { return n.Zones()[0], n.serving.Load() }

// upstreams are the host's name servers, without ourselves.
func (n *names) upstreams() (servers []netip.AddrPort, private []string) {
	all, search := n.networks.Upstreams()
	servers = slices.DeleteFunc(slices.Clone(all), func(s netip.AddrPort) bool { return slices.Contains(n.listen, s) })
	return servers, search
}

// start opens the sockets, so that the first environment that is made finds
// them. What cannot be opened is tried again by run.
func (n *names) start(ctx context.Context) {
	n.guard(ctx)
	n.mu.Lock()
	n.advertised = n.addressesOfHost()
	if err := n.set(); err != nil {
		n.log.ErrorContext(ctx, "no names are served", "error", err)
	}
	n.mu.Unlock()
	for _, address := range n.places() {
		n.listenAt(ctx, address)
	}
}

// own is where environments ask.
func (n *names) own() netip.AddrPort { return netip.AddrPortFrom(n.networks.NodeAddress(), 53) }

func (n *names) places() []netip.AddrPort { return append([]netip.AddrPort{n.own()}, n.listen...) }

// listenAt opens the sockets of one address.
func (n *names) listenAt(ctx context.Context, address netip.AddrPort) *dns.Listener {
	own := address == n.own()
	var listener *dns.Listener
	var err error
	if own {
		if err = n.networks.EnsureNodeAddress(); err != nil {
			err = fmt.Errorf("%s: %w", address.Addr(), err)
		}
	}
	if err == nil {
		listener, err = n.server.Listen(ctx, address, own)
	}
	n.mu.Lock()
	if err != nil {
		if n.broken[address] == nil {
			n.log.WarnContext(ctx, "DNS is not served at an address; it is tried again", "address", address, "error", err)
		}
		n.broken[address] = err
		n.mu.Unlock()
		return nil
	}
	delete(n.broken, address)
	n.open[address] = listener
	n.mu.Unlock()
	if own {
		n.serving.Store(true)
		n.networks.ResponderChanged(ctx)
	}
	return listener
}

// run serves until ctx ends.
func (n *names) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, address := range n.places() {
		group.Go(func() error { n.serve(ctx, address); return nil })
	}
	group.Go(func() error { return n.forwarder.Run(ctx) })
	group.Go(func() error { n.watch(ctx); return nil })
	return group.Wait()
}

// serve serves at one address, and tries again when it cannot.
func (n *names) serve(ctx context.Context, address netip.AddrPort) {
	n.mu.Lock()
	listener := n.open[address]
	n.mu.Unlock()
	for {
		if listener == nil {
			listener = n.listenAt(ctx, address)
		}
		if listener != nil {
			err := listener.Serve(ctx)
			listener = nil
			if address == n.own() {
				n.serving.Store(false)
				if ctx.Err() == nil { // the daemon that comes next serves again
					n.networks.ResponderChanged(ctx)
				}
			}
			if err != nil && ctx.Err() == nil {
				n.log.WarnContext(ctx, "DNS at an address broke; it is opened again", "address", address, "error", err)
			}
		}
		if !wait(ctx, n.retry) {
			return
		}
	}
}

// watch keeps the node's address in place, and names at the host's address
// when that changes. The kernel tells of both, and each pass of the reconciler
// has it look; what fails is tried again while there are environments.
func (n *names) watch(ctx context.Context) {
	looks := n.networks.Looks()
	for due := looks.WaitStirred; due(ctx, n.retry); {
		n.guard(ctx)
		due = looks.WaitStirred
		if err := n.networks.EnsureNodeAddress(); err != nil {
			n.log.WarnContext(ctx, "environments cannot ask for names", "error", err)
			due = looks.Wait
		}
		advertised := n.addressesOfHost()
		n.mu.Lock()
		if n.declared && !slices.Equal(advertised, n.advertised) {
			n.log.InfoContext(ctx, "the host has another address; names lead there now", "addresses", advertised)
			before := n.advertised
			n.advertised = advertised
			if err := n.set(); err != nil {
				n.log.WarnContext(ctx, "names still lead to the address before", "error", err)
				n.advertised, due = before, looks.Wait
			}
		}
		n.mu.Unlock()
	}
}

// guard keeps answers about public names out of the networks that the host is in
// now. While these cannot be read, those of before count.
func (n *names) guard(ctx context.Context) {
	site, err := n.networks.Site()
	if err != nil {
		n.log.WarnContext(ctx, "answers of name servers may lead into networks of the host", "error", err)
		return
	}
	n.forwarder.Guard(site)
}

// wait waits a while; false when ctx ends first.
func wait(ctx context.Context, duration time.Duration) bool {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// listenHint is what to do where it could not listen.
func listenHint(address netip.AddrPort, err error) string {
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Sprintf("give the host the address %s, or take it out of dns.listen (ip -br addr shows what there is)", address.Addr())
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return "run the daemon as root, or with CAP_NET_BIND_SERVICE"
	}
	return fmt.Sprintf("see what listens on port %d (ss -lnp sport = :%d); let it listen on its own addresses only, as with bind-interfaces of dnsmasq",
		address.Port(), address.Port())
}

// problems are what is not as it should be.
func (n *names) problems() []*problem.Problem {
	if n == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var found []*problem.Problem
	if len(n.broken) > 0 {
		var errs []error
		var hints []string
		for _, address := range n.places() {
			if err := n.broken[address]; err != nil {
				errs = append(errs, err)
				if hint := listenHint(address, err); !slices.Contains(hints, hint) {
					hints = append(hints, hint)
				}
			}
		}
		p := problem.New(problem.DNSListenFailed, "DNS is not served everywhere").WithCause(errors.Join(errs...))
		p.Hint = strings.Join(hints, "; ")
		found = append(found, p)
	}
	if loops := n.forwarder.Loops(); len(loops) > 0 {
		found = append(found, problem.New(problem.DNSUpstreamLoops, "name servers of the host ask this node in turn: %v", loops).
			WithHint("take them out of the host's resolv.conf, or let them ask others"))
	}
	if servers, _ := n.upstreams(); len(servers) == 0 {
		found = append(found, problem.New(problem.NoUpstreamDNS, "the host names no DNS server; environments only resolve each other").
			WithHint("name one in the host's resolv.conf, or set network.upstreams"))
	}
	return found
}
