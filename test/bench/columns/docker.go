package columns

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

// docker is the distribution's dockerd with its own settings, on a private
// containerd, on a host of its own.
type docker struct {
	dockerAPI
	engine *engine
}

func newDocker(config *Config) *docker {
	return &docker{dockerAPI: dockerAPI{config: config, cgroupParent: "/" + config.Name + "/" + Docker}}
}

func (d *docker) Name() string { return Docker }

func (d *docker) Missing() string {
	return d.config.missing(append(d.config.engine(), [2]string{"dockerd", "Debian package docker.io"})...)
}

func (d *docker) Versions(ctx context.Context) []string {
	return append([]string{d.config.version(ctx, "dockerd")}, d.config.versions(ctx)...)
}

func (d *docker) Start(ctx context.Context) error {
	dir, err := d.config.subdir(Docker)
	if err != nil {
		return err
	}
	if d.engine, err = startEngine(ctx, d.config, Docker); err != nil {
		return err
	}
	settings := filepath.Join(dir, "daemon.json") // not /etc/docker/daemon.json
	if err := os.WriteFile(settings, []byte("{}"), 0o600); err != nil {
		return fmt.Errorf("write configuration of docker: %w", err)
	}
	api, err := socket(Docker)
	if err != nil {
		return err
	}
	d.daemon, err = sandbox.StartDaemon(d.engine.host.NS, filepath.Join(dir, "log"), d.config.environ(),
		d.config.program("dockerd"),
		"--config-file", settings,
		"--host", "unix://"+api,
		"--containerd", d.engine.address,
		"--data-root", filepath.Join(dir, "root"),
		"--exec-root", filepath.Join(filepath.Dir(api), "docker-exec"), // it has sockets in it
		"--pidfile", filepath.Join(dir, "pid"),
		"--storage-driver", "overlay2",
		"--exec-opt", "native.cgroupdriver=cgroupfs",
		"--log-level", "warn",
	)
	if err != nil {
		return err
	}
	d.host = d.engine.host
	return d.serve(ctx, api)
}

func (d *docker) Stop() {
	d.host = nil // the engine's
	d.dockerAPI.Stop()
	d.engine.stop()
}
