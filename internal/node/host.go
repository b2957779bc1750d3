package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/atomicfile"
	"github.com/remotegpu/remotegpu/internal/certificate"
	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/config"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/rpc"
	"github.com/remotegpu/remotegpu/internal/version"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/gateway"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/runtime"
)

// Keys of what the store keeps about the node itself.
const (
	metaNodeID = "node_id"
	metaRange  = "address_range"
)

// lockPatience is how long a daemon that was killed may keep its lock: a
// program that it was just starting has it, too, until that is executed.
const lockPatience = 5 * time.Second

// lockDirectory makes sure that one daemon at a time works in a state
// directory: STATE_DIR_LOCKED, which ends by itself when the other is about to
// stop. The lock goes with the process.
func lockDirectory(dir string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of state directory: %w", err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(lockPatience); ; <-tick.C {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return file, nil
		}
		if errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(until) {
			continue
		}
		return nil, errors.Join(problem.New(problem.StateDirLocked, "another remotegpud works in %s", dir).WithCause(err).
			WithHint("stop it first, or give this one a state_dir of its own"), file.Close())
	}
}

// ownerID is what tells the node of a state directory from others of the host: it
// is in the file that its daemon locks, so it goes where the directory goes, and
// stays when the database is lost.
func ownerID(lock *os.File) (string, error) {
	text := make([]byte, ulid.EncodedSize)
	if n, _ := lock.ReadAt(text, 0); n == len(text) {
		if _, err := ulid.ParseStrict(string(text)); err == nil {
			return string(text), nil
		}
	}
	id := ulid.Make().String()
	if _, err := lock.WriteAt([]byte(id+"\n"), 0); err != nil {
		return "", fmt.Errorf("write who the node is: %w", err)
	}
	return id, nil
}

// identity is the node's stable id, made at the first start.
func (n *Node) identity(ctx context.Context) (string, error) {
	id, err := n.store.Meta(ctx, metaNodeID)
	if err != nil {
		return "", fmt.Errorf("read node id: %w", err)
	}
	if id == "" {
		id = ulid.Make().String()
		if err := n.store.SetMeta(ctx, metaNodeID, id); err != nil {
			return "", fmt.Errorf("keep node id: %w", err)
		}
	}
	return id, nil
}

// addressRange is the configured range, or the one chosen at the first start.
// It must stay while environments exist: their slots are places in it.
func (n *Node) addressRange(ctx context.Context) (netip.Prefix, error) {
	kept, err := n.store.Meta(ctx, metaRange)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("read address range: %w", err)
	}
	wanted := n.cfg.Network.Range
	if wanted == "" && kept == "" {
		picked, err := network.PickRange(ctx)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("pick address range: %w", err)
		}
		wanted = picked.String()
	}
	if wanted != "" && wanted != kept {
		if kept != "" {
			counts, err := n.store.CountEnvironments(ctx)
			if err != nil {
				return netip.Prefix{}, err
			}
			if len(counts) > 0 {
				return netip.Prefix{}, problem.New(problem.ConfigInvalid, "network.range is %s but environments have addresses of %s", wanted, kept).
					WithHint("delete the environments before the range is changed, or set network.range = %q", kept)
			}
		}
		if err := n.store.SetMeta(ctx, metaRange, wanted); err != nil {
			return netip.Prefix{}, fmt.Errorf("keep address range: %w", err)
		}
		kept = wanted
	}
	return netip.ParsePrefix(kept)
}

// addressRange6 is the configured IPv6 range, invalid when there is none. It may
// be another one after a restart: nothing is kept of it. CONFIG_INVALID when the
// host is in it.
func (n *Node) addressRange6(addresses netip.Prefix) (netip.Prefix, error) {
	if n.cfg.Network.Range6 == "" {
		return netip.Prefix{}, nil
	}
	wanted, err := netip.ParsePrefix(n.cfg.Network.Range6)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("read network.range6: %w", err)
	}
	if !(firewall.Twins{Subnet: addresses, Subnet6: wanted}).Fits() {
		return netip.Prefix{}, problem.New(problem.ConfigInvalid, "network.range6: %s has no room for the environments of %s", wanted, addresses).
			WithField("network.range6").WithHint("use a /64 or wider, such as fd88:1234:5678::/48")
	}
	own, err := network.AddressIn(wanted)
	if err != nil {
		return netip.Prefix{}, err
	}
	if own.IsValid() {
		return netip.Prefix{}, problem.New(problem.ConfigInvalid, "network.range6: this host has the address %s of %s", own, wanted).
			WithField("network.range6").WithHint("use a range that is for environments alone, such as fd88:1234:5678::/48")
	}
	return wanted, nil
}

// defaultRange is a range for cleaning up, which names no address.
func defaultRange() netip.Prefix { return netip.MustParsePrefix("10.88.0.0/16") }

func parseAddresses(texts []string) []netip.Addr {
	addresses := make([]netip.Addr, 0, len(texts))
	for _, text := range texts {
		if address, err := netip.ParseAddr(text); err == nil { // config has checked it
			addresses = append(addresses, address)
		}
	}
	return addresses
}

// CheckConfig refuses what only parts of the node can read: CONFIG_INVALID.
func CheckConfig(cfg config.Config) error {
	errs := []error{checkAllowed(&cfg.Network)}
	if !isLoopback(cfg.API.Listen) { // else there is no TLS
		errs = append(errs, checkCertificate("api", cfg.API.TLSCert, cfg.API.TLSKey))
	}
	if cfg.Gateway.Listen != "" {
		web := gateway.Config{Listen: cfg.Gateway.Listen, PublicURL: cfg.Gateway.PublicURL, FrameAncestors: cfg.Gateway.FrameAncestors}
		errs = append(errs, web.Check(), checkCertificate("gateway", cfg.Gateway.TLSCert, cfg.Gateway.TLSKey))
	}
	return errors.Join(errs...)
}

// isLoopback tells whether an address to listen at is one of the host alone, or
// none.
func isLoopback(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return listen == ""
	}
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.Unmap().IsLoopback()
}

// checkCertificate refuses the operator's certificate for a listener when it
// cannot be used.
func checkCertificate(listener, cert, key string) error {
	if cert == "" {
		return nil // one is made
	}
	if _, err := certificate.New(certificate.Config{CertFile: cert, KeyFile: key}); err != nil {
		return fmt.Errorf("%s.tls_cert: %w", listener, err)
	}
	return nil
}

// checkAllowed refuses destinations that no environment could reach.
func checkAllowed(cfg *config.Network) error {
	allow, err := parseDestinations(cfg.Allow)
	if err != nil {
		return err
	}
	for i, d := range allow {
		if d.Prefix.Addr().Is6() && cfg.Range6 == "" {
			return problem.New(problem.ConfigInvalid, "network.allow: %s is IPv6, and environments have none", cfg.Allow[i]).WithField("network.allow").
				WithHint("take it out, or set network.range6")
		}
	}
	return nil
}

// parseDestinations reads what all environments may reach.
func parseDestinations(texts []string) ([]policy.Destination, error) {
	destinations := make([]policy.Destination, 0, len(texts))
	for _, text := range texts {
		destination, err := policy.ParseDestination(text)
		if err != nil {
			return nil, problem.New(problem.ConfigInvalid, "network.allow: %v", err).WithField("network.allow").
				WithHint("write ADDRESS[/BITS][:PORT[-PORT]][/tcp|/udp], for example 192.168.7.20:5000/tcp")
		}
		if policy.IsNobodys(destination.Prefix) {
			return nil, problem.New(problem.ConfigInvalid, "network.allow: no machine has the address %s", destination.Prefix.Addr()).WithField("network.allow").
				WithHint("name addresses of other machines; 0.0.0.0/0 and ::/0 are all of them")
		}
		destinations = append(destinations, destination)
	}
	return destinations, nil
}

// readToken returns the API's bearer token, made at the first start.
func readToken(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err == nil && len(strings.TrimSpace(string(text))) >= 32 {
		return strings.TrimSpace(string(text)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read token: %w", err)
	}
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return "", fmt.Errorf("make token: %w", err)
	}
	token := "rgpu_" + hex.EncodeToString(secret)
	return token, atomicfile.Write(path, []byte(token+"\n"), 0o600)
}

// hostNames are the names and addresses that people may reach the node by, the
// best first: the configured one, the address it listens on, that of the default
// route, its other global ones that are not of
// environments.
func hostNames(public, name, listen string, environments ...netip.Prefix) []string {
	var names []string
	if public != "" {
		names = append(names, public)
	}
	host, _, _ := net.SplitHostPort(listen)
	if address, err := netip.ParseAddr(host); host != "" && (err != nil || !address.IsUnspecified()) {
		names = append(names, host)
	}
	if address, ok := defaultAddress(); ok {
		names = append(names, address.String())
	}
	fixed := len(names)
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		addresses = nil // loopback and name still work
	}
	for _, address := range addresses {
		if prefix, err := netip.ParsePrefix(address.String()); err == nil && prefix.Addr().IsGlobalUnicast() && !slices.ContainsFunc(environments, func(p netip.Prefix) bool { return p.Contains(prefix.Addr()) }) {
			names = append(names, prefix.Addr().String())
		}
	}
	slices.SortStableFunc(names[fixed:], func(a, b string) int { return strings.Count(a, ":") - strings.Count(b, ":") }) // IPv4 first
	names = append(names, "127.0.0.1", "localhost", name)
	seen := make(map[string]bool, len(names))
	return slices.DeleteFunc(names, func(host string) bool {
		twice := seen[host]
		seen[host] = true
		return twice
	})
}

// hostSize is what the host has for environments.
func hostSize() runtime.HostSize {
	size := runtime.HostSize{CPUs: goruntime.NumCPU()}
	var system unix.Sysinfo_t
	if unix.Sysinfo(&system) == nil {
		size.MemoryBytes = int64(system.Totalram) * int64(system.Unit)
	}
	return size
}

// Info tells about the node.
func (n *Node) Info(ctx context.Context) rpc.Node {
	info := rpc.Node{
		ID: n.id, Name: n.cfg.Node.Name, Labels: n.cfg.Node.Labels, Version: version.Version, StartedAt: n.started,
		OS: osName(), Architecture: goruntime.GOARCH, Cgroup: cgroup.Version(),
		AddressRange: n.prefix, Range6: n.cfg.Network.Range6, GatewayURL: n.gatewayURL(), Conditions: n.manager.Conditions(),
	}
	var uname unix.Utsname
	if unix.Uname(&uname) == nil {
		info.Kernel = unix.ByteSliceToString(uname.Release[:])
	}
	size := hostSize()
	info.CPUs, info.MemoryBytes = size.CPUs, size.MemoryBytes
	asking, cancel := context.WithTimeout(ctx, 2*time.Second) // a node without containerd still tells the rest
	defer cancel()
	engine, err := n.engine.Info(asking)
	if err != nil {
		engine = runtime.EngineInfo{Address: n.cfg.Containerd.Address, Namespace: n.cfg.Containerd.Namespace, Snapshotter: n.cfg.Containerd.Snapshotter}
		info.Conditions = addCondition(info.Conditions, problem.Of(err))
	}
	info.Engine = engine
	if err == nil {
		if quota, err := n.engine.DiskQuota(asking); err == nil {
			info.DiskQuota = &quota
		} else {
			info.Conditions = addCondition(info.Conditions, problem.Of(err))
		}
	}
	if info.IPTables, err = n.firewall.Backend(ctx); err != nil {
		info.Conditions = addCondition(info.Conditions, problem.Of(err))
	}
	if full := n.stateRoom(); full != nil {
		info.Conditions = addCondition(info.Conditions, full)
	} else if info.DiskQuota != nil && info.DiskQuota.Path != "" {
		if full := room(info.DiskQuota.Path, "containerd"); full != nil {
			info.Conditions = addCondition(info.Conditions, full)
		}
	}
	for _, p := range n.names.problems() {
		info.Conditions = addCondition(info.Conditions, p)
	}
	info.Repairs = n.networks.Repairs()
	for _, p := range n.networks.Conditions() {
		if p.Reason == problem.FirewallConflict { // there may be several
			info.Conditions = append(info.Conditions, runtime.Condition{Reason: p.Reason, Message: p.Error(), Hint: p.Hint})
			continue
		}
		info.Conditions = addCondition(info.Conditions, p)
	}
	for _, p := range n.gpuProblems(asking) {
		info.Conditions = addCondition(info.Conditions, p)
	}
	if writer := n.logWriter(); !writer.There() {
		info.Conditions = addCondition(info.Conditions, logWriterMissing(writer))
	}
	if n.gateway != nil && !gateway.HasNoVNC() {
		info.Conditions = addCondition(info.Conditions, problem.New(problem.DesktopUnavailable, "this remotegpud was built without noVNC").
			WithHint("build it with: make build"))
	}
	return info
}

func addCondition(conditions []runtime.Condition, p *problem.Problem) []runtime.Condition {
	if slices.ContainsFunc(conditions, func(c runtime.Condition) bool { return c.Reason == p.Reason }) {
		return conditions
	}
	return append(conditions, runtime.Condition{Reason: p.Reason, Message: p.Error(), Hint: p.Hint})
}

// osName is PRETTY_NAME of os-release(5).
func osName() string {
	text, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return goruntime.GOOS
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, "PRETTY_NAME="); found {
			return strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	return goruntime.GOOS
}
