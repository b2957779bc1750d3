package columns

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

// engine is a private containerd. Every column that uses one has its own, of
// the same program with the same configuration, so that no column's events or
// garbage are another's work.
type engine struct {
	address string
	daemon  *sandbox.Daemon
	host    *sandbox.Host
}

const engineConfig = `version = 2
root = %q
state = %q
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = %q
[debug]
  level = "warn"
[plugins."io.containerd.gc.v1.scheduler"]
  pause_threshold = 0.0002
`

// startEngine starts a host with a containerd in it for a column.
func startEngine(ctx context.Context, config *Config, column string) (*engine, error) {
	dir, err := config.subdir(column, "containerd")
	if err != nil {
		return nil, err
	}
	e := &engine{}
	if e.address, err = socket(column + "-containerd"); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "config.toml")
	content := fmt.Sprintf(engineConfig, filepath.Join(dir, "root"), filepath.Join(dir, "state"), e.address)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		return nil, fmt.Errorf("write configuration of containerd: %w", err)
	}
	if e.host, err = sandbox.NewHost(); err != nil {
		return nil, err
	}
	e.daemon, err = sandbox.StartDaemon(e.host.NS, filepath.Join(dir, "log"), config.environ(),
		config.program("containerd"), "--config", file)
	if err != nil {
		e.stop()
		return nil, err
	}
	err = e.daemon.Await(ctx, 30*time.Second, func(ctx context.Context) error {
		client, err := containerd.New(e.address, containerd.WithTimeout(time.Second))
		if err != nil {
			return err
		}
		defer client.Close()
		_, err = client.Version(ctx)
		return err
	})
	if err != nil {
		e.stop()
		return nil, err
	}
	return e, nil
}

// load brings the image into a containerd namespace and unpacks it.
func (e *engine) load(ctx context.Context, config *Config, namespace string) error {
	client, err := containerd.New(e.address)
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	defer client.Close()
	file, err := os.Open(config.Archive)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	defer file.Close()
	ctx = namespaces.WithNamespace(ctx, namespace)
	imported, err := client.Import(ctx, file)
	if err != nil {
		return fmt.Errorf("import image: %w", err)
	}
	for _, found := range imported {
		if err := containerd.NewImage(client, found).Unpack(ctx, ""); err != nil {
			return fmt.Errorf("unpack image %s: %w", found.Name, err)
		}
	}
	return nil
}

func (e *engine) stop() {
	if e == nil {
		return
	}
	if e.daemon != nil {
		e.daemon.Stop()
	}
	e.host.Close()
}

// versions names containerd and runc.
func (c *Config) versions(ctx context.Context) []string {
	return []string{c.version(ctx, "containerd"), c.version(ctx, "runc")}
}
