// Package columns holds what the benchmark compares: each column makes, enters
// and removes containers in the way of one product.
package columns

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

// Column is one product under measurement. The time that Create, Exec and
// Remove take is what is measured; they do nothing that is not the product's.
// They may be called at the same time for different containers.
type Column interface {
	// Name is the column's name.
	Name() string
	// Missing says what the machine lacks for it; "" when nothing.
	Missing() string
	// Start brings up what the product needs, with the image loaded.
	Start(ctx context.Context) error
	// Stop ends what Start began.
	Stop()
	// Versions names the programs it runs on.
	Versions(ctx context.Context) []string
	// Create makes a container and returns once its process runs and its port
	// is published.
	Create(ctx context.Context, id string) (*Instance, error)
	// Exec runs "true" in it and returns once it has succeeded.
	Exec(ctx context.Context, instance *Instance) error
	// Remove sends SIGTERM, waits for the end and removes all that Create made.
	Remove(ctx context.Context, instance *Instance) error
	// Tail is the end of what the product's daemon logged, for a failure.
	Tail() string
}

// Complete is a Column of a product that has what every suite measures.
type Complete interface {
	Column
	// List calls for all containers, at most limit of them, and tells how many
	// were answered.
	List(ctx context.Context, limit int) (int, error)
	// Restart starts a container again whose process has ended.
	Restart(ctx context.Context, instance *Instance) error
	// Deaths calls told with the id of each container whose process has ended,
	// as the product's stream tells of it, until ctx ends. ready is called once
	// the stream stands.
	Deaths(ctx context.Context, ready func(), told func(id string)) error
	// Logs calls each with every line of the log of a container, or only the
	// last so many unless tail is 0.
	Logs(ctx context.Context, instance *Instance, tail int, each func(line []byte)) error
}

// Publisher is a Column of a product that publishes any port of a container.
type Publisher interface {
	Column
	// Publish makes a container as Create does, with other published ports.
	Publish(ctx context.Context, id string, bindings []Binding) (*Instance, error)
	// Inspect tells what the product knows of a container that runs.
	Inspect(ctx context.Context, instance *Instance) (Details, error)
}

// Binding is a published port.
type Binding struct {
	Host, Inner uint16
	Protocol    string // tcp or udp
}

// Details are what a product knows of a container.
type Details struct {
	ID      string     // that the product gave it
	Process int        // process id of its first process
	Address netip.Addr // in its network
}

// Instance is a container that a column made.
type Instance struct {
	ID      string
	Host    *sandbox.Host            // the host that publishes its port; nil without a network
	Port    int                      // on that host
	Spans   map[string]time.Duration // what parts of Create took, where known
	Removal map[string]time.Duration // what parts of Remove took, where known
}

// What all columns run.
const (
	ImageName     = "localhost/remotegpu-bench:latest"
	Banner        = "remotegpu-bench\n"
	ContainerPort = 8080
	truePath      = "/bin/true"
	stopSeconds   = 10
)

// Config is what columns need to know.
type Config struct {
	Dir              string // the run's directory
	Name             string // the run's name: cgroup parent and containerd namespace
	Archive          string // the image, as "docker save" writes it
	Containerd       int    // major version: 1 is the distribution's, 2 that of Tools
	Tools            string // directory of the tools that "make tools" built
	Remotegpud       string // the daemon's program
	RemotegpudConfig string // its configuration; "": the defaults
}

// systemPath is where the distribution's programs are; a developer's PATH has
// no say in what is measured.
const systemPath = "/usr/sbin:/usr/bin:/sbin:/bin"

// path is the PATH of the column's daemons.
func (c *Config) path() string {
	if c.Containerd == 2 {
		return c.Tools + ":" + systemPath
	}
	return systemPath
}

// program finds a program on the daemons' PATH, "" when it is not there.
func (c *Config) program(name string) string {
	for _, dir := range filepath.SplitList(c.path()) {
		if found, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return found
		}
	}
	return ""
}

// environ is the environment of the column's daemons.
func (c *Config) environ(extra ...string) []string {
	return append([]string{"PATH=" + c.path(), "HOME=" + c.Dir, "LANG=C.UTF-8"}, extra...)
}

// missing names the programs that are not there, with the packages that bring
// them.
func (c *Config) missing(programs ...[2]string) string {
	var lacks []string
	for _, program := range programs {
		if c.program(program[0]) == "" {
			lacks = append(lacks, fmt.Sprintf("%s is not installed (%s)", program[0], program[1]))
		}
	}
	return strings.Join(lacks, ", ")
}

// engine is what every column on containerd needs.
func (c *Config) engine() [][2]string {
	source := "Debian package containerd"
	if c.Containerd == 2 {
		source = "make tools"
	}
	return [][2]string{
		{"containerd", source},
		{"containerd-shim-runc-v2", source},
		{"runc", "Debian package runc"},
		{"iptables-restore", "Debian package iptables"},
	}
}

// version is the first line that a program prints about its version.
func (c *Config) version(ctx context.Context, name string) string {
	cmd := exec.CommandContext(ctx, c.program(name), "--version")
	cmd.Env = c.environ()
	out, err := cmd.Output()
	if err != nil {
		return name + ": " + err.Error()
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(first)
}

// subdir makes a directory of a column.
func (c *Config) subdir(parts ...string) (string, error) {
	dir := filepath.Join(append([]string{c.Dir}, parts...)...)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make directory: %w", err)
	}
	return dir, nil
}

// socket is the path of a column's socket: on the sandbox's own tmpfs, since
// the path of a socket has to be short.
func socket(name string) (string, error) {
	const dir = "/run/remotegpu-bench"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make directory of sockets: %w", err)
	}
	return filepath.Join(dir, name+".sock"), nil
}

// Names are the columns in the order of the table.
func Names() []string {
	return []string{RemoteGPU, GoClient, GoClientShared, GoClientAhead, GoClientWarm, Ctr, Podman, Docker}
}

// IsComplete says whether the column of a name is a Complete one that every
// suite measures.
func IsComplete(name string) bool {
	return name == RemoteGPU || name == GoClient || IsPeer(name)
}

// IsExperiment says whether the column of a name shows what could be, and need
// not be there.
func IsExperiment(name string) bool { return name == GoClientAhead || name == GoClientWarm }

// IsPeer says whether the column of a name is another product with a daemon.
func IsPeer(name string) bool { return name == Podman || name == Docker }

// The columns' names.
const (
	RemoteGPU      = "remotegpu"
	GoClient       = "go-client"
	GoClientShared = "go-client-shared" // one bridge for all containers
	GoClientAhead  = "go-client-ahead"  // an experiment: shims started ahead
	GoClientWarm   = "go-client-warm"   // an experiment: no wait for process migrations
	Ctr            = "ctr"
	Podman         = "podman"
	Docker         = "docker"
)

// New makes the column of a name; it starts nothing.
func New(name string, config *Config) (Column, error) {
	switch name {
	case RemoteGPU:
		return &remoteGPU{config: config}, nil
	case GoClient, GoClientShared, GoClientAhead, GoClientWarm:
		return &goClient{config: config, name: name}, nil
	case Ctr:
		return &ctr{config: config}, nil
	case Podman:
		return newPodman(config), nil
	case Docker:
		return newDocker(config), nil
	}
	return nil, fmt.Errorf("no column %q, there are %s", name, strings.Join(Names(), ", "))
}
