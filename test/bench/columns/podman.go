package columns

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

// podman is the distribution's podman as a service, with the same runc as the
// others, on a host of its own.
type podman struct {
	dockerAPI
}

func newPodman(config *Config) *podman {
	return &podman{dockerAPI: dockerAPI{config: config, cgroupParent: "/" + config.Name + "/" + Podman}}
}

func (p *podman) Name() string { return Podman }

func (p *podman) Missing() string {
	return p.config.missing(
		[2]string{"podman", "Debian package podman"},
		[2]string{"conmon", "Debian package conmon"},
		[2]string{"runc", "Debian package runc"},
		[2]string{"iptables", "Debian package iptables"},
	)
}

func (p *podman) Versions(ctx context.Context) []string {
	return []string{p.config.version(ctx, "podman"), p.config.version(ctx, "runc")}
}

// podmanSettings are the settings that have no flag: nothing of podman's is
// kept outside the run's directory and nothing asks for systemd.
const podmanSettings = `[containers]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_config_dir = %q
`

const podmanStorage = `[storage]
driver = "overlay"
graphroot = %q
runroot = %q
`

const podmanPolicy = `{"default": [{"type": "insecureAcceptAnything"}]}`

func (p *podman) Start(ctx context.Context) error {
	dir, err := p.config.subdir(Podman)
	if err != nil {
		return err
	}
	// podman reads its trust policy from the home directory before /etc.
	policies, err := p.config.subdir(".config", "containers")
	if err != nil {
		return err
	}
	settings, storage := filepath.Join(dir, "containers.conf"), filepath.Join(dir, "storage.conf")
	for path, content := range map[string]string{
		settings:                               fmt.Sprintf(podmanSettings, filepath.Join(dir, "networks")),
		storage:                                fmt.Sprintf(podmanStorage, filepath.Join(dir, "root"), filepath.Join(dir, "run")),
		filepath.Join(policies, "policy.json"): podmanPolicy,
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return fmt.Errorf("write configuration of podman: %w", err)
		}
	}
	if p.host, err = sandbox.NewHost(); err != nil {
		return err
	}
	api, err := socket(Podman)
	if err != nil {
		return err
	}
	p.daemon, err = sandbox.StartDaemon(p.host.NS, filepath.Join(dir, "log"),
		p.config.environ("CONTAINERS_CONF="+settings, "CONTAINERS_STORAGE_CONF="+storage),
		p.config.program("podman"),
		"--tmpdir", filepath.Join(dir, "tmp"),
		"--volumepath", filepath.Join(dir, "volumes"),
		"--log-level", "warn",
		"system", "service", "--time", "0", "unix://"+api,
	)
	if err != nil {
		return err
	}
	return p.serve(ctx, api)
}
