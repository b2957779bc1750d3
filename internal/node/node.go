// Package node is remotegpud without its command line: it builds every part,
// hands each what it needs, and runs them together. It decides nothing that
// the parts could decide.
package node

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/remotegpu/remotegpu/build"
	"github.com/remotegpu/remotegpu/build/buildkit"
	"github.com/remotegpu/remotegpu/desktop"
	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/claim"
	"github.com/remotegpu/remotegpu/internal/config"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/rpc"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/gateway"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/containerd"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/volume"
	"github.com/remotegpu/remotegpu/store"
)

// Node is a node daemon.
type Node struct {
	cfg       config.Config
	log       *slog.Logger
	id        string
	lock      *os.File
	claims    *claim.Held
	store     *store.Store
	engine    *containerd.Engine
	firewall  *firewall.Firewall
	networks  *network.Networks
	names     *names // nil: off
	queue     *operation.Queue
	manager   *runtime.Manager
	gateway   *gateway.Gateway // nil: off
	hosts     hosts
	desktops  *desktop.Desktops
	pool      *port.Pool
	sockets   port.Sockets // hold the pool's ports
	volumes   *volume.Manager
	gpus      gpus
	prefix    string // address range
	addresses netip.Prefix
	range6    netip.Prefix // invalid: environments have no IPv6
	token     string
	scrape    string // token that opens the metrics alone
	started   time.Time
}

// New builds the node: it takes the state directory's lock, claims what only one
// node of the host can have, opens the database
// and finds out what the host offers. It serves nothing; Run does. Close gives
// back what it took. DATABASE_NEWER when the database was written by a newer
// release; STATE_DIR_LOCKED while another daemon works in it; CONFIG_INVALID, also
// when another node of the host has what this one is configured for.
func New(ctx context.Context, cfg config.Config, log *slog.Logger) (_ *Node, err error) {
	if err := CheckConfig(cfg); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: log, started: time.Now()}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if err := n.makeDirectories(); err != nil {
		return nil, err
	}
	if n.lock, err = lockDirectory(cfg.Node.StateDir); err != nil {
		return nil, err
	}
	if err := n.takeClaims(ctx); err != nil {
		return nil, err
	}
	if n.store, err = store.Open(ctx, filepath.Join(cfg.Node.StateDir, "node.db"), log); err != nil {
		return nil, err
	}
	if n.id, err = n.identity(ctx); err != nil {
		return nil, err
	}
	if n.token, err = readToken(n.statePath("token")); err != nil {
		return nil, err
	}
	if n.scrape, err = readToken(n.statePath("metrics-token")); err != nil {
		return nil, err
	}
	if err := n.buildNetwork(ctx); err != nil {
		return nil, err
	}
	n.gpus = newGPUs(cfg.GPU, n.runPath(gpuDir), cfg.Containerd.Cgroup, log)
	if n.engine, err = containerd.New(containerd.Config{
		Address: cfg.Containerd.Address, Namespace: cfg.Containerd.Namespace, Snapshotter: cfg.Containerd.Snapshotter,
		CgroupParent: cfg.Containerd.Cgroup, FIFODir: n.runPath("fifo"), LogDir: n.statePath("logs"), LogWriter: n.logWriter(), Log: log,
		HostsDir: cfg.Registries.HostsDir, Credentials: credentials(cfg.Registries.DockerConfig),
		LimitGPU: n.gpus.SetMemoryLimit,
	}); err != nil {
		return nil, err
	}
	return n, n.buildManager(ctx)
}

func (n *Node) statePath(name string) string { return filepath.Join(n.cfg.Node.StateDir, name) }
func (n *Node) runPath(name string) string   { return filepath.Join(n.cfg.Node.RunDir, name) }

// buildNetwork makes firewall, networks and port pool.
func (n *Node) buildNetwork(ctx context.Context) (err error) {
	addresses, err := n.addressRange(ctx)
	if err != nil {
		return err
	}
	n.prefix, n.addresses = addresses.String(), addresses
	if n.range6, err = n.addressRange6(addresses); err != nil {
		return err
	}
	if n.names, err = newNames(n.cfg.DNS, n.cfg.Node.PublicHost, addresses, n.range6, n.log); err != nil {
		return err
	}
	rules := firewall.Config{Subnet: addresses, Subnet6: n.range6, Path: n.cfg.Network.IPTables, Log: n.log}
	if n.names != nil {
		rules.Resolver = addresses.Addr().Next()
	}
	if n.firewall, err = firewall.New(rules); err != nil {
		return err
	}
	allow, err := parseDestinations(n.cfg.Network.Allow)
	if err != nil {
		return err
	}
	networks := network.Config{
		Allow: allow, Range: addresses, Range6: n.range6, NetNSDir: n.runPath("netns"), ResolvConf: n.cfg.Network.ResolvConf,
		Upstreams: parseAddresses(n.cfg.Network.Upstreams), Search: n.cfg.Network.Search, Firewall: n.firewall, Log: n.log,
		ClosedByDefault: n.cfg.Ports.ClosedByDefault, ReservedFile: n.runPath(reservedFile),
		ForwardFile: n.runPath(forwardFile), ForwardFile6: n.runPath(forwardFile6), RouteBetween: n.cfg.Network.Route,
		Poll: pollInterval(n.cfg.Network.Poll),
	}
	if n.names != nil {
		networks.Responder = n.names.resolver
		networks.IPv6Changed = n.ipv6Changed
	}
	if n.networks, err = network.New(networks); err != nil {
		return err
	}
	if n.names != nil {
		n.names.networks = n.networks
	} else if err := n.networks.RemoveNodeAddress(); err != nil {
		n.log.WarnContext(ctx, "the address that names were asked for at stays", "error", err)
	}
	return n.buildPorts(ctx)
}

// ipv6Changed has names lead to the addresses that environments have now.
func (n *Node) ipv6Changed() {
	if n.manager != nil { // else it is being made, and reads them then
		n.manager.AddressesChanged(context.Background()) //nolint:forbidigo // it is in memory, and nobody may cancel it
	}
}

// reservedFile, in the run directory, names the ports that are reserved because
// of us.
const reservedFile = "reserved-ports"

// forwardFile, in the run directory, says that the node switched forwarding on.
const forwardFile = "forwarding"

// forwardFile6, in the run directory, names what was changed so that the host
// forwards IPv6.
const forwardFile6 = "forwarding6"

// pollInterval is the setting in seconds as network.Config takes it: 0 is off.
func pollInterval(seconds int) time.Duration {
	if seconds == 0 {
		return -1
	}
	return time.Duration(seconds) * time.Second
}

// buildManager makes what leads environments through their life.
func (n *Node) buildManager(ctx context.Context) error {
	volumes, err := volume.New(volume.Config{
		StateDir: n.cfg.Node.StateDir, StageDir: n.runPath("mounts"), AllowedRoots: n.cfg.Mounts.AllowedRoots,
		Denied: []string{n.cfg.Node.StateDir, n.cfg.Node.RunDir, filepath.Dir(n.cfg.Containerd.Address)}, Log: n.log,
	})
	if err != nil {
		return err
	}
	n.volumes = volumes
	n.desktops = desktop.New(desktop.Config{
		Dir: n.runPath("desktop"), Log: n.log,
		InEnvironment: n.inEnvironment,
	})
	n.hosts.look = func() []string {
		return hostNames(n.cfg.Node.PublicHost, n.cfg.Node.Name, "", n.addresses, n.range6)
	}
	if n.cfg.Gateway.Listen != "" {
		if n.gateway, err = gateway.New(gateway.Config{
			Listen: n.cfg.Gateway.Listen, PublicURL: n.cfg.Gateway.PublicURL, Hosts: n.hosts.now,
			CertFile: n.cfg.Gateway.TLSCert, KeyFile: n.cfg.Gateway.TLSKey, StateDir: n.statePath("gateway"),
			FrameAncestors: n.cfg.Gateway.FrameAncestors, Desktops: n.desktops, Conditions: conditions{n}, Log: n.log,
		}); err != nil {
			return err
		}
	}
	var builder runtime.Builder
	if address := n.cfg.BuildKit.Address; address != "" {
		builder = build.New(build.Config{
			Backend: buildkit.New(buildkit.Config{Address: address, Log: n.log}), Images: n.engine, CacheDir: n.statePath("cache"),
			NetNS: n.cfg.BuildKit.NetNS, Log: n.log,
		})
	}
	n.queue = operation.New(operation.Config{
		Store: n.store, Log: n.log, Workers: n.cfg.Operations.Workers, Retention: n.cfg.Operations.Retention,
	})
	groups, err := cgroup.NewReader()
	if err != nil {
		return err
	}
	var served runtime.Names
	if n.names != nil {
		served = n.names
	}
	n.manager = runtime.New(runtime.Config{
		NamedVolumes: volumes, Meters: meters{n.engine, n.networks, groups, n.cfg.Containerd.Cgroup},
		Node: n.cfg.Node.Name, StateDir: n.statePath("environments"), LogDir: n.statePath("logs"), Store: n.store, Queue: n.queue,
		Engine: n.engine, Executor: n.engine, Roots: n.engine, Snapshotter: n.engine, Images: n.engine, Builder: builder, Networks: n.networks, Ports: n.ports(), Volumes: volumes, Desktops: n.desktops, Log: n.log,
		LoginDir: n.statePath("credentials"), BootID: bootID(), Names: served,
		Addresses: addresses{node: n},
		GPUs:      n.gpuDriver(), GPU: n.gpuConfig(), InEnvironment: n.inEnvironment, Cgroup: n.cgroupOf, Host: hostSize(), Room: n.mayGrow,
	})
	return ctx.Err()
}

// inEnvironment says whether a process is one of an environment's, "": of any.
func (n *Node) inEnvironment(pid int, envID string) (bool, error) {
	return cgroup.Contains(pid, n.cgroupOf(envID))
}

// cgroupOf is the path of an environment's control group.
func (n *Node) cgroupOf(envID string) string { return path.Join(n.cfg.Containerd.Cgroup, envID) }

// Run adopts what survived the last daemon, serves, and returns when ctx ends
// or a part fails. Order down: the API stops accepting, the gateway drains, the
// operations at work are parked for the next start. Environments keep running.
func (n *Node) Run(ctx context.Context) error {
	shown, err := n.metrics(ctx)
	if err != nil {
		return err
	}
	listeners, err := n.listen(ctx)
	if err != nil {
		return err
	}
	if n.names != nil {
		n.names.start(ctx)
	}
	n.manager.Protect(ctx)
	group, ctx := errgroup.WithContext(ctx)
	// What runs is to have names and its rules while containerd does not answer.
	group.Go(func() error { return n.networks.Run(ctx) })
	if n.names != nil {
		group.Go(func() error { return n.names.run(ctx) })
	}
	n.manager.Adopt(ctx)
	handler := withMetrics(rpc.NewHandler(rpc.Config{
		Manager: n.manager, Operations: operations{n.queue, n.store}, Ports: n.ports(), Desktops: desktops{n.desktops},
		Sessions: sessions{n.gateway}, Node: n, Firewall: n.networks, NodeName: n.cfg.Node.Name, Log: n.log,
	}), shown)
	for _, listener := range listeners {
		group.Go(func() error { return listener.serve(ctx, handler, n.log) })
	}
	group.Go(func() error { return n.queue.Run(ctx) })
	group.Go(func() error { return n.keepRoom(ctx) })
	group.Go(func() error { return n.manager.Run(ctx) })
	group.Go(func() error {
		if err := n.volumes.RemoveDeleted(ctx); err != nil && ctx.Err() == nil {
			n.log.WarnContext(ctx, "files of deleted volumes were not removed; a pass of the reconciler tries again", "error", err)
		}
		return nil
	})
	if n.gateway != nil {
		group.Go(func() error { return n.gateway.Run(ctx) })
		group.Go(func() error { return n.tellGateway(ctx) })
	}
	n.log.InfoContext(ctx, "the node serves", "node", n.cfg.Node.Name, "socket", n.cfg.API.Socket, "api", n.cfg.API.Listen,
		"gateway", n.gatewayURL(), "range", n.prefix)
	err = group.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Close gives back what New took. Environments keep running.
func (n *Node) Close() error {
	var errs []error
	if n.networks != nil {
		waiting, cancel := context.WithTimeout(context.Background(), 10*time.Second) //nolint:forbidigo // nothing outlives this
		errs = append(errs, n.networks.Wait(waiting))
		cancel()
	}
	errs = append(errs, n.gpus.Close())
	n.sockets.Close()
	if n.engine != nil {
		errs = append(errs, n.engine.Close())
	}
	if n.store != nil {
		errs = append(errs, n.store.Close())
	}
	if n.claims != nil {
		errs = append(errs, n.claims.Close())
	}
	if n.lock != nil {
		errs = append(errs, n.lock.Close())
	}
	return errors.Join(errs...)
}

func (n *Node) makeDirectories() error {
	for dir, mode := range map[string]os.FileMode{
		n.cfg.Node.StateDir: 0o711, n.cfg.Node.RunDir: 0o711, n.statePath("logs"): 0o700,
		n.statePath("environments"): 0o711, n.statePath("gateway"): 0o700, n.statePath("cache"): 0o700,
		n.statePath("credentials"): 0o700,
	} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return problem.New(problem.ConfigInvalid, "directory %s cannot be made", dir).WithCause(err).
				WithHint("run as root, or set node.state_dir and node.run_dir")
		}
	}
	return nil
}

// gatewayURL is the gateway's base URL, "" when it is off.
func (n *Node) gatewayURL() string {
	if n.gateway == nil {
		return ""
	}
	return strings.TrimSuffix(strings.TrimSuffix(n.gateway.URL(""), "/"), "/desktop")
}

// Backup writes a consistent copy of the node's database to a file that does
// not exist. The daemon may run.
func Backup(ctx context.Context, cfg config.Config, path string, log *slog.Logger) (err error) {
	db, err := store.Open(ctx, filepath.Join(cfg.Node.StateDir, "node.db"), log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.Backup(ctx, path)
}
