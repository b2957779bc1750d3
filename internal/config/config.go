// Package config is the node's configuration: one strict TOML file whose
// defaults are complete. Flags of remotegpud override what the file says.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// Version is the version of the file format.
const Version = 1

// DefaultPath is where remotegpud looks for its file.
const DefaultPath = "/etc/remotegpu/remotegpud.toml"

// Config is the whole configuration.
type Config struct {
	Version    int        `toml:"version" comment:"Version of this file's format."`
	Node       Node       `toml:"node"`
	API        API        `toml:"api"`
	Gateway    Gateway    `toml:"gateway"`
	Containerd Containerd `toml:"containerd"`
	Registries Registries `toml:"registries"`
	BuildKit   BuildKit   `toml:"buildkit"`
	Network    Network    `toml:"network"`
	Ports      Ports      `toml:"ports"`
	DNS        DNS        `toml:"dns"`
	Mounts     Mounts     `toml:"mounts"`
	GPU        GPU        `toml:"gpu"`
	Operations Operations `toml:"operations"`
	Metrics    Metrics    `toml:"metrics"`
	Logs       Logs       `toml:"logs"`
	Log        Log        `toml:"log"`
}

// Node is who the node is and where it keeps things.
type Node struct {
	Name   string            `toml:"name" comment:"Name of the node. Empty: the host name."`
	Labels map[string]string `toml:"labels" comment:"Labels of the node."`
	// PublicHost is used in addresses that people are told.
	PublicHost string `toml:"public_host" comment:"Host name or address that people reach published ports by. Empty: the address that the default route uses."`
	StateDir   string `toml:"state_dir" comment:"What survives a reboot: database, volumes, logs, keys."`
	RunDir     string `toml:"run_dir" comment:"What does not: sockets, network namespaces, desktop passwords. On a tmpfs."`
}

// API is where the API listens.
type API struct {
	Socket  string `toml:"socket" comment:"Unix socket, for root only. Empty: <run_dir>/node.sock."`
	Listen  string `toml:"listen" comment:"TCP address; callers need the token in <state_dir>/token (for /metrics, that in metrics-token will do). Beyond loopback it speaks TLS. Empty: off."`
	TLSCert string `toml:"tls_cert" comment:"Certificate (PEM) for TCP beyond loopback. Empty: a self-signed one is made."`
	TLSKey  string `toml:"tls_key" comment:"Key (PEM) of tls_cert."`
}

// Gateway is the web listener for people.
type Gateway struct {
	Listen         string   `toml:"listen" comment:"TCP address. Empty: off."`
	PublicURL      string   `toml:"public_url" comment:"Base URL that people reach it by. Empty: https://HOST:<port>, where HOST is the address of listen, else node.public_host, else the address that the default route uses."`
	TLSCert        string   `toml:"tls_cert" comment:"Certificate (PEM). Empty: a self-signed one is made."`
	TLSKey         string   `toml:"tls_key" comment:"Key (PEM) of tls_cert."`
	FrameAncestors []string `toml:"frame_ancestors" comment:"Origins that may embed desktops in an iframe."`
}

// Containerd is the containerd to use.
type Containerd struct {
	Address     string `toml:"address" comment:"Socket."`
	Namespace   string `toml:"namespace" comment:"containerd namespace that holds our objects."`
	Snapshotter string `toml:"snapshotter" comment:"Snapshotter."`
	Cgroup      string `toml:"cgroup" comment:"cgroup above those of environments."`
}

// Registries is how registries of images are spoken to.
type Registries struct {
	HostsDir     string `toml:"hosts_dir" comment:"Directory with a directory per registry, as containerd has it: mirrors, certificate authorities (hosts.toml). It need not exist."`
	DockerConfig string `toml:"docker_config" comment:"Docker configuration with the node's credentials (docker login, credential helpers). It need not exist. Empty: none."`
}

// BuildKit is the BuildKit to build images with.
type BuildKit struct {
	Address string `toml:"address" comment:"Socket of buildkitd, for example unix:///run/remotegpu/buildkitd.sock. Empty: nothing can be built."`
	NetNS   string `toml:"netns" comment:"Network namespace (path) in which bases are bootstrapped from the package mirror. Empty: the daemon's own."`
}

// Network is the network of environments.
type Network struct {
	Range      string   `toml:"range" comment:"IPv4 range to cut subnets from (CIDR). Empty: one that collides with no route, kept once chosen."`
	Range6     string   `toml:"range6" comment:"IPv6 range to cut subnets from (CIDR): unique local addresses, such as fd88:1234:5678::/48, which are masqueraded, or a prefix that is routed to this host, which is not. Empty: environments have no IPv6. The host forwards IPv6 then."`
	Upstreams  []string `toml:"upstreams" comment:"Name servers for environments where the host has none but loopback ones."`
	Search     []string `toml:"search" comment:"DNS search domains of environments in place of the host's. Empty: those of the host."`
	ResolvConf string   `toml:"resolv_conf" comment:"The host's resolv.conf."`
	IPTables   string   `toml:"iptables" comment:"iptables program. Empty: the one on PATH."`
	Allow      []string `toml:"allow" comment:"Destinations in private networks, in those of the host or at a cloud's metadata that environments reach: ADDRESS[/BITS][:PORT[-PORT]][/tcp|/udp], for example 192.168.7.20:5000/tcp or [fd12::/64]:443. Empty: none but the name servers."`
	Route      bool     `toml:"route_host_networks" comment:"Where the node had to switch forwarding on (net.ipv4.ip_forward), let the host also route between its own networks. Off: it does not, as before."`
	Poll       int      `toml:"firewall_poll" comment:"Seconds between looks at rules and settings that others may change where the kernel does not tell (1 to 3600). 0: others' changes of rules and settings are mended once a minute only, also where it tells."`
}

// Ports is how host ports are given to environments.
type Ports struct {
	ClosedByDefault bool     `toml:"closed_by_default" comment:"A published port that names no allowed sources is reached from the host and from environments only."`
	Quarantine      int      `toml:"quarantine" comment:"Seconds that a released host port rests before it is given out again. 0: it does not."`
	Deny            []string `toml:"deny" comment:"Host ports that are never given out: a port, or FIRST-LAST."`
}

// DefaultDeny are host ports inside the pools' default ranges that programs on
// GPU hosts are found at: WinRM, TensorBoard, Redis and Ray, Kubernetes, Ceph,
// Slurm, Prometheus with its exporters, Elasticsearch, Kafka, memcached, Ollama,
// RabbitMQ, Netdata, Syncthing.
func DefaultDeny() []string {
	return []string{
		"5985-5986", "6006", "6379", "6443", "6789", "6800-7300", "9090-9093", "9100", "9200", "9300", "9400", "10001", "10250-10259",
		"11211", "11434", "15672", "19999", "22000",
	}
}

// ParsePorts reads a port, or FIRST-LAST.
func ParsePorts(text string) (first, last uint16, err error) {
	from, to, isRange := strings.Cut(text, "-")
	if !isRange {
		to = from
	}
	low, err := strconv.ParseUint(from, 10, 16)
	high, highErr := strconv.ParseUint(to, 10, 16)
	if err != nil || highErr != nil || low == 0 || high < low {
		return 0, 0, fmt.Errorf("%q is neither a port nor FIRST-LAST", text)
	}
	return uint16(low), uint16(high), nil
}

func (p *Ports) check() error {
	var errs []error
	if p.Quarantine < 0 || p.Quarantine > 86400 {
		errs = append(errs, fault("ports.quarantine", "120 is the default", "%d is not between 0 and 86400 seconds", p.Quarantine))
	}
	for _, text := range p.Deny {
		if _, _, err := ParsePorts(text); err != nil {
			errs = append(errs, fault("ports.deny", `write "6006" or "6800-7300"`, "%v", err))
		}
	}
	return errors.Join(errs...)
}

// ranges are the configured ranges of environments.
func (n *Network) ranges() (ranges []netip.Prefix) {
	for _, text := range []string{n.Range, n.Range6} {
		if prefix, err := netip.ParsePrefix(text); err == nil {
			ranges = append(ranges, prefix)
		}
	}
	return ranges
}

// checkPublicHost refuses what cannot be the host of a URL.
func (n *Node) checkPublicHost() error {
	if n.PublicHost == "" || publicHost.MatchString(n.PublicHost) {
		return nil
	}
	if _, err := netip.ParseAddr(n.PublicHost); err == nil {
		return nil
	}
	return fault("node.public_host", "write gpu1.example.com or an address, without a port", "%q is neither a host name nor an address", n.PublicHost)
}

var publicHost = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,251}[a-zA-Z0-9])?$`)

// Mounts is what environments may mount.
type Mounts struct {
	AllowedRoots []string `toml:"allowed_roots" comment:"Host directories beneath which bind mounts are allowed. Empty: none."`
}

// Operations is the queue of long work.
type Operations struct {
	Workers   int           `toml:"workers" comment:"Operations at work at the same time, without those that only wait for a process to end or for a registry."`
	Retention time.Duration `toml:"-"`
	KeepDays  int           `toml:"keep_days" comment:"Days that operations are kept after they are done."`
}

// Logs is what is kept of what environments write.
type Logs struct {
	MaxSize  int64 `toml:"max_size" comment:"Bytes after which the log of an environment is rotated, at least 65536."`
	MaxFiles int   `toml:"max_files" comment:"Files that are kept of each log, the one that is written included."`
}

// Log is how the daemon logs.
type Log struct {
	Format string `toml:"format" comment:"text or json."`
	Level  string `toml:"level" comment:"debug, info, warn or error."`
}

// Least is the level from which on the daemon logs.
func (l *Log) Least() (level slog.Level, err error) {
	err = level.UnmarshalText([]byte(l.Level))
	return level, err
}

// Default returns the configuration of a node without a file.
func Default() Config {
	return Config{
		Version:    Version,
		Node:       Node{StateDir: "/var/lib/remotegpu", RunDir: "/run/remotegpu"},
		API:        API{Listen: "127.0.0.1:7480"},
		Gateway:    Gateway{Listen: "0.0.0.0:7443"},
		Containerd: Containerd{Address: "/run/containerd/containerd.sock", Namespace: "remotegpu", Snapshotter: "overlayfs", Cgroup: "/remotegpu"},
		Registries: Registries{HostsDir: "/etc/containerd/certs.d", DockerConfig: "/root/.docker/config.json"},
		Network:    Network{ResolvConf: "/etc/resolv.conf", Poll: 2},
		Ports:      Ports{Quarantine: 120, Deny: DefaultDeny()},
		DNS:        defaultDNS(),
		GPU:        defaultGPU(),
		Operations: Operations{Workers: 16, KeepDays: 30},
		Metrics:    Metrics{DCGM: true},
		Logs:       Logs{MaxSize: 16 << 20, MaxFiles: 4},
		Log:        Log{Format: "text", Level: "info"},
	}
}

// Load reads a file over the defaults. A file that is not there is an error
// unless optional. Unknown keys are errors: CONFIG_INVALID.
func Load(path string, optional bool) (Config, error) {
	cfg := Default()
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && optional:
		return cfg, cfg.complete()
	case err != nil:
		return cfg, problem.New(problem.ConfigInvalid, "the configuration cannot be read").WithCause(err).
			WithHint("write one with: remotegpud config default")
	}
	decoder := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	if err := decoder.Decode(&cfg); err != nil {
		detail := err.Error()
		if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
			detail = strict.String()
		} else if wrong, ok := errors.AsType[*toml.DecodeError](err); ok {
			detail = wrong.String()
		}
		return cfg, problem.New(problem.ConfigInvalid, "%s: %s", path, detail).
			WithHint("compare it with: remotegpud config default")
	}
	return cfg, cfg.complete()
}

// complete fills in what follows from other settings and checks the whole.
func (c *Config) complete() error {
	if c.Node.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return fault("node.name", "set node.name", "the host has no name: %v", err)
		}
		c.Node.Name = name
	}
	if c.API.Socket == "" {
		c.API.Socket = filepath.Join(c.Node.RunDir, "node.sock")
	}
	for _, dir := range []*string{&c.Node.StateDir, &c.Node.RunDir} {
		*dir = clean(*dir)
	}
	for i, root := range c.Mounts.AllowedRoots {
		c.Mounts.AllowedRoots[i] = clean(root)
	}
	c.Operations.Retention = time.Duration(c.Operations.KeepDays) * 24 * time.Hour
	return errors.Join(c.check(), c.Network.check(), c.Ports.check(), c.DNS.check(), c.GPU.check(), c.GPU.checkRules(), c.Node.checkPublicHost(), c.DNS.CheckListen(c.Network.ranges()...))
}

// clean takes what says nothing out of a path: a slash at its end, say. What
// is no path stays, to be refused.
func clean(path string) string {
	if path == "" {
		return ""
	}
	return filepath.Clean(path)
}

func (c *Config) check() error {
	var errs []error
	if c.Version != Version {
		errs = append(errs, fault("version", "compare it with: remotegpud config default",
			"this program reads version %d, the file has %d", Version, c.Version))
	}
	for field, path := range c.paths() {
		if !filepath.IsAbs(path) {
			errs = append(errs, fault(field, "begin it with /", "%q is not an absolute path", path))
		}
	}
	for field, address := range map[string]string{"api.listen": c.API.Listen, "gateway.listen": c.Gateway.Listen} {
		if address == "" {
			continue
		}
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			errs = append(errs, fault(field, "write it like 127.0.0.1:7480", "%q is not host:port", address))
		} else if number, err := strconv.Atoi(port); err == nil && (number < 0 || number > 65535) { // else it may be a service of services(5)
			errs = append(errs, fault(field, "use a port from 0 (any) to 65535", "%q is no port", port))
		}
	}
	for field, pair := range map[string][2]string{
		"api.tls_cert": {c.API.TLSCert, c.API.TLSKey}, "gateway.tls_cert": {c.Gateway.TLSCert, c.Gateway.TLSKey},
	} {
		if (pair[0] == "") != (pair[1] == "") {
			errs = append(errs, fault(field, "set both or neither", "a certificate needs its key and a key its certificate"))
		}
	}
	errs = append(errs, c.Operations.check())
	if c.Logs.MaxSize < 64<<10 || c.Logs.MaxFiles < 1 || c.Logs.MaxFiles > 1000 {
		errs = append(errs, fault("logs", "", "max_size is at least 65536 bytes and max_files 1 to 1000"))
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		errs = append(errs, fault("log.format", "", "%q is neither text nor json", c.Log.Format))
	}
	if _, err := c.Log.Least(); err != nil {
		errs = append(errs, fault("log.level", "debug, info, warn or error", "%q is no level", c.Log.Level))
	}
	return errors.Join(errs...)
}

// paths are the settings that are absolute paths, those that are empty and may
// be left out.
func (c *Config) paths() map[string]string {
	paths := map[string]string{"node.state_dir": c.Node.StateDir, "node.run_dir": c.Node.RunDir, "containerd.cgroup": c.Containerd.Cgroup}
	for field, path := range map[string]string{"registries.hosts_dir": c.Registries.HostsDir, "registries.docker_config": c.Registries.DockerConfig} {
		if path != "" {
			paths[field] = path
		}
	}
	maps.Copy(paths, c.GPU.paths())
	for _, root := range c.Mounts.AllowedRoots {
		paths["mounts.allowed_roots"] = root
		if !filepath.IsAbs(root) {
			break
		}
	}
	return paths
}

func (o *Operations) check() error {
	if o.Workers < 1 || o.KeepDays < 1 || o.KeepDays > 36500 {
		return fault("operations", "", "workers and keep_days are at least 1, and keep_days at most 36500")
	}
	return nil
}

func (n *Network) check() error {
	var errs []error
	if n.Range != "" {
		if prefix, err := netip.ParsePrefix(n.Range); err != nil || !prefix.Addr().Is4() || prefix.Bits() > 29 || prefix != prefix.Masked() {
			errs = append(errs, fault("network.range", "write it like 10.88.0.0/16", "%q is not an IPv4 range of at least a /29", n.Range))
		}
	}
	if n.Range6 != "" {
		if prefix, err := netip.ParsePrefix(n.Range6); err != nil || !prefix.Addr().Is6() || prefix.Addr().Is4In6() || prefix != prefix.Masked() || !assigned(prefix) {
			errs = append(errs, fault("network.range6", "write it like fd88:1234:5678::/48, or a prefix that is routed to this host", "%q is not an IPv6 range of unique local or global addresses", n.Range6))
		}
	}
	if n.Poll < 0 || n.Poll > 3600 {
		errs = append(errs, fault("network.firewall_poll", "2 is a good value", "%d is not between 0 and 3600 seconds", n.Poll))
	}
	for _, server := range n.Upstreams {
		if _, err := netip.ParseAddr(server); err != nil {
			errs = append(errs, fault("network.upstreams", "write addresses, not names", "%q is not an address", server))
		}
	}
	return errors.Join(errs...)
}

// assigned tells whether hosts may have addresses of an IPv6 range: global
// unicast (RFC 4291 section 2.4, 2000::/3) and unique local ones (RFC 4193).
func assigned(prefix netip.Prefix) bool {
	within := func(network string) bool {
		outer := netip.MustParsePrefix(network)
		return outer.Bits() <= prefix.Bits() && outer.Contains(prefix.Addr())
	}
	return within("2000::/3") || within("fc00::/7")
}

func fault(field, hint, format string, args ...any) error {
	return problem.New(problem.ConfigInvalid, field+": "+format, args...).WithField(field).WithHint("%s", hint)
}

// Marshal renders the configuration as a commented file.
func (c Config) Marshal() ([]byte, error) {
	text, err := toml.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("render configuration: %w", err)
	}
	return text, nil
}
