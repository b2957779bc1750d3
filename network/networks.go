// Package network gives each environment a network of its own: a network
// namespace, a bridge of its own on the host (the only topology that behaves
// the same with and without br_netfilter), an address, a way out and published
// ports. What the kernel holds is found again by name, so nothing here has to
// be persisted but the address range and each environment's slot.
package network

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/keylock"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

const (
	// DefaultNetNSDir is where namespaces are pinned.
	DefaultNetNSDir = "/run/remotegpu/netns"
	// DefaultMTU is used when the host has no default route to copy from.
	DefaultMTU = 1500

	// leastMTU6 is the least MTU of a link with IPv6 (RFC 8200 section 5).
	leastMTU6 = 1280

	// slotBits is the length of the network of one environment: a /29 has a
	// gateway, the environment and four spare addresses.
	slotBits = firewall.NetworkBits
	slotSize = 1 << (32 - slotBits)

	bridgePrefix = firewall.DefaultInterface
	// vethPrefix must not begin with bridgePrefix: the rules of environments
	// match bridges by prefix.
	vethPrefix  = "rgpuv-"
	ifbPrefix   = "rgpui-" // of what limits an environment at the host's end
	inside      = "eth0"
	aliasPrefix = "remotegpu:env="
	hashSize    = 8 // characters of an environment in names of interfaces: 40 bits in base32
)

// Firewall is what publishes ports and enforces policies; *firewall.Firewall implements it.
type Firewall interface {
	Set(ctx context.Context, desired firewall.Desired) error
	Restore(ctx context.Context, desired firewall.Desired) (mended []string, err error)
	Published(ctx context.Context) (firewall.Desired, error)
	Check(ctx context.Context, desired firewall.Desired) (published firewall.Desired, differs []string, err error)
	Differences(ctx context.Context, desired firewall.Desired) ([]firewall.Difference, error)
	Render(desired firewall.Desired) (string, error)
	Watch(ctx context.Context, poll time.Duration, changed func(context.Context, firewall.Change)) error
	Watches(ctx context.Context) (string, error)
	Conflicts(ctx context.Context, trusted bool) ([]*problem.Problem, error)
	CleanUp(ctx context.Context, kept firewall.Kept) error
	IPv6() error
}

// Config says how to make networks.
type Config struct {
	// Range holds the addresses of all environments, an IPv4 network from /8
	// to /29. It must stay the same while environments exist: take it from
	// PickRange once and persist it.
	Range netip.Prefix
	// Range6 holds their addresses of IPv6, each of which follows from that of
	// IPv4 (firewall.Twins): it may be another one, or none, after a restart.
	// Invalid: environments have no IPv6.
	Range6 netip.Prefix
	// ForwardFile6 is the same as ForwardFile for IPv6, and names what else was
	// changed for it.
	ForwardFile6 string
	// IPv6Changed is called, in a goroutine of its own, after HasIPv6 has another
	// answer. nil: nobody wants to know.
	IPv6Changed func()
	// NetNSDir is where namespaces are pinned; DefaultNetNSDir when empty.
	NetNSDir string
	// ResolvConf and ResolvedConf are the host's resolv.conf and the one that
	// systemd-resolved keeps of its upstreams; the usual paths when empty.
	ResolvConf, ResolvedConf string
	// Upstreams are the name servers to use when the host's files name none
	// that environments can reach.
	Upstreams []netip.Addr
	// Search replaces the host's search domains unless it is empty.
	Search []string
	// Responder tells whether the node answers questions at NodeAddress, and
	// in which domain environments have their names: then that is what
	// Resolvers returns. nil: it does not.
	Responder func() (domain string, serving bool)
	// Allow are destinations in closed networks (policy.Closed, and those that
	// the host is in) that all environments reach whose egress is open.
	Allow []policy.Destination
	// MTU of bridges and environments, bytes; 0 copies the MTU of the
	// interface of the host's default route.
	MTU int
	// RestoreGrace is for how long a Publish outweighs a Restore, whose caller
	// may have listed what is published before it; 1 minute when 0, none when
	// negative.
	RestoreGrace time.Duration
	// ClosedByDefault lets only the host and environments reach a published
	// port that names no sources.
	ClosedByDefault bool
	// ReservedFile names the ports that ReservePorts has added to
	// net.ipv4.ip_local_reserved_ports. It has to go when the host restarts, as
	// the setting does. Empty: none are reserved.
	ReservedFile string
	// ForwardFile names the interfaces that the host had when the node switched
	// net.ipv4.ip_forward on: nothing is forwarded between these, unless
	// RouteBetween. It has to go when the host restarts, as the setting does.
	// Empty: everything is forwarded, and the setting stays.
	ForwardFile string
	// RouteBetween lets the host route between its own networks.
	RouteBetween bool
	// Poll is how often Run looks at rules that tell nothing by themselves, and after
	// thirty times that, a minute at most, at what takes more; DefaultPoll when 0.
	// Negative: it looks once a minute alone.
	Poll     time.Duration
	Firewall Firewall
	Log      *slog.Logger
}

// Networks makes and removes the networks of environments.
type Networks struct {
	cfg        Config
	locks      keylock.Map[string]     // by environment
	addresses  keylock.Map[netip.Addr] // by address, held until a former user is gone
	published  publisher
	forgetter  forgetter
	untrack    func(netlink.InetFamily, ...netlink.CustomConntrackFilter) error // see the function of that name
	host       hostServers
	healer     healer
	stirs      stirs // of Looks
	background sync.WaitGroup

	forward4, forward6 forwarding

	restored atomic.Bool                    // Restore has had rules in force
	mending  sync.Mutex                     // held by mendNetworks: one look at a time
	site     atomic.Pointer[[]netip.Prefix] // see Site; nil: not looked at yet
	routed4  atomic.Bool                    // ensureRange4 was called
	routed6  atomic.Bool                    // the range is refused where it leads to no environment

	preparing sync.Mutex // held while NetNSDir is made or removed

	reserving sync.Mutex
	ranges    []port.Range // whose ports are reserved
	// nothingLost is what the settings were when none of them was lost: they are
	// looked at often.
	nothingLost string

	mu       sync.Mutex
	removing map[string]bool   // environments that Detach is removing
	slots    map[string]int    // of environments that have a network which is looked after
	limits   map[string]speeds // of environments that have some
	silenced map[string]bool   // environments whose network Detach has taken the address from
	servers  []netip.Addr      // name servers that environments reach, as last read
	down6    bool              // the rules of IPv6 were not in force when they were last applied
	had6     bool              // HasIPv6, as was told last
	failure6 error             // why environments have no IPv6 though its rules are in force; nil: they have
}

// New checks the configuration. It makes nothing.
func New(cfg Config) (*Networks, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Firewall == nil {
		return nil, errors.New("make networks: no firewall")
	}
	if cfg.NetNSDir == "" {
		cfg.NetNSDir = DefaultNetNSDir
	}
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = "/etc/resolv.conf"
	}
	if cfg.ResolvedConf == "" {
		cfg.ResolvedConf = "/run/systemd/resolve/resolv.conf"
	}
	if cfg.RestoreGrace == 0 {
		cfg.RestoreGrace = time.Minute
	}
	if cfg.Poll == 0 {
		cfg.Poll = DefaultPoll
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	n := &Networks{cfg: cfg, untrack: untrack, removing: make(map[string]bool), slots: make(map[string]int), limits: make(map[string]speeds), silenced: make(map[string]bool)}
	n.published = publisher{
		firewall: cfg.Firewall, around: n.surroundings, applied6: n.cut6, grace: cfg.RestoreGrace, log: cfg.Log,
		current: make(map[string]publication), background: &n.background, failed: n.healer.kick,
	}
	n.setForwardings()
	n.healer.kicked, n.healer.lost6, n.healer.damaged = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	n.healer.bridgePace.burst, n.healer.bridgePace.interval = healBurst, healInterval
	n.healer.networks, n.healer.pace.burst, n.healer.pace.interval = n, healBurst, healInterval
	return n, nil
}

// check refuses ranges and an MTU that no networks can be made of.
func (cfg *Config) check() error {
	if !cfg.Range.IsValid() || !cfg.Range.Addr().Is4() || cfg.Range != cfg.Range.Masked() ||
		cfg.Range.Bits() < 8 || cfg.Range.Bits() > slotBits {
		return problem.New(problem.ConfigInvalid, "the address range %s is not an IPv4 network of /8 to /%d", cfg.Range, slotBits).
			WithHint("Use a private network that nothing else on this host uses, such as 10.88.0.0/16.")
	}
	if twins := (firewall.Twins{Subnet: cfg.Range, Subnet6: cfg.Range6}); cfg.Range6.IsValid() && (!twins.Fits() || cfg.Range6 != cfg.Range6.Masked()) {
		return problem.New(problem.ConfigInvalid, "the address range %s is not an IPv6 network with room for %s", cfg.Range6, cfg.Range).
			WithHint("Use a /48 of unique local addresses, such as fd88:1234:5678::/48, or a /64 or wider that is routed to this host.")
	}
	if cfg.MTU != 0 && (cfg.Range6.IsValid() && cfg.MTU < leastMTU6) {
		return problem.New(problem.ConfigInvalid, "the MTU %d is less than the %d that IPv6 needs", cfg.MTU, leastMTU6)
	}
	if cfg.MTU != 0 && (cfg.MTU < 576 || cfg.MTU > 65535) {
		return problem.New(problem.ConfigInvalid, "the MTU %d is not between 576 and 65535", cfg.MTU)
	}
	return nil
}

// Wait blocks until what Detach and Publish left to the background is done,
// or ctx ends.
func (n *Networks) Wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		n.background.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// NetNS is the path the environment's network namespace has or will have.
func (n *Networks) NetNS(envID string) string { return filepath.Join(n.cfg.NetNSDir, envID) }

// Slots is how many environments the range holds.
func (n *Networks) Slots() int { return 1 << (slotBits - n.cfg.Range.Bits()) }

// Address is the address of the environment in a slot, the second of its
// network; the first is the gateway.
func (n *Networks) Address(slot int) netip.Addr { return n.nth(slot, firewall.HostNumber) }

func (n *Networks) gateway(slot int) netip.Addr { return n.nth(slot, 1) }

func (n *Networks) nth(slot, offset int) netip.Addr {
	base := n.cfg.Range.Addr().As4()
	var address [4]byte
	binary.BigEndian.PutUint32(address[:], binary.BigEndian.Uint32(base[:])+uint32(slot*slotSize+offset))
	return netip.AddrFrom4(address)
}

// names are what an environment's network is called. They follow from the id.
type names struct {
	bridge, veth, ifb, alias, netns string
	bridgeMAC, insideMAC            net.HardwareAddr
}

// names derives an interface name of 8 characters from the whole id: ids made
// in the same millisecond differ only at their end.
func (n *Networks) names(envID string) names {
	sum := sha256.Sum256([]byte(envID))
	short := strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5]))
	return names{
		bridge: bridgePrefix + short, veth: vethPrefix + short, ifb: ifbPrefix + short,
		alias: aliasPrefix + envID, netns: n.NetNS(envID),
		// Locally administered, and fixed: a bridge would otherwise change its
		// address with its ports, and neighbours would lose it.
		bridgeMAC: net.HardwareAddr{0x02, 0x42, sum[5], sum[6], sum[7], sum[8]},
		insideMAC: net.HardwareAddr{0x02, 0x43, sum[5], sum[6], sum[7], sum[8]},
	}
}

// check refuses ids that could not be a file name or an alias.
func check(envID string) error {
	if envID == "" || len(envID) > 200 || strings.ContainsAny(envID, "/\x00 \n") || envID[0] == '.' {
		return problem.New(problem.FieldInvalid, "the environment id %q cannot name a network", envID)
	}
	return nil
}

// failed is a NETWORK_FAILED problem with the hint that fits.
func failed(what string, err error) error {
	p := problem.New(problem.NetworkFailed, "%s", what).WithCause(err)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return p.WithHint("remotegpud needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN) to make networks.")
	case errors.Is(err, unix.EOPNOTSUPP):
		return p.WithHint("The kernel lacks bridges or veth: try modprobe -a bridge veth")
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return p.WithHint("A limit of the host is reached: see user.max_net_namespaces and fs.file-max.")
	}
	return p.WithHint("Try again. If it fails again, see remotegpu node info and the node's log for what else is wrong with the host's network.")
}
