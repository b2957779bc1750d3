package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/claim"
	"github.com/remotegpu/remotegpu/internal/config"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/firewall"
)

// CleanUp removes everything of ours from the host's network: namespaces,
// links and rules, and the control group of environments when nothing is in it.
// It needs no database; the daemon must have ended, and containers must be gone.
// STATE_DIR_LOCKED while its daemon runs, CONFIG_INVALID while another node's works
// with any of it; unless force, also while what another node has left is in use, and
// ENV_RUNNING while environments have processes, which lose their network.
func CleanUp(ctx context.Context, cfg config.Config, force bool, log *slog.Logger) (err error) {
	held, err := holdAll(ctx, cfg, force)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, held.close()) }()
	if !force {
		if err := nothingRuns(cfg); err != nil {
			return err
		}
	}
	prefix := defaultRange()
	rules, err := firewall.New(firewall.Config{Subnet: prefix, Path: cfg.Network.IPTables, Log: log})
	if err != nil {
		return err
	}
	networks, err := network.New(network.Config{
		Range: prefix, NetNSDir: filepath.Join(cfg.Node.RunDir, "netns"), ReservedFile: filepath.Join(cfg.Node.RunDir, reservedFile),
		ForwardFile: filepath.Join(cfg.Node.RunDir, forwardFile), ForwardFile6: filepath.Join(cfg.Node.RunDir, forwardFile6), RouteBetween: cfg.Network.Route, Firewall: rules, Log: log,
	})
	if err != nil {
		return err
	}
	if err := networks.CleanUp(ctx); err != nil {
		return fmt.Errorf("clean up network: %w", err)
	}
	if err := endSharing(ctx, cfg, log); err != nil {
		return fmt.Errorf("end what GPUs are shared by: %w", err)
	}
	if err := cgroup.RemoveEmpty(cfg.Containerd.Cgroup); err != nil {
		return err
	}
	if groups, err := cgroup.Inhabited(cfg.Containerd.Cgroup); err != nil || len(groups) > 0 {
		return err // it stays ours
	}
	return held.claims.Remove()
}

// hold is what keeps daemons from working while something is cleaned up.
type hold struct {
	lock   *os.File // of the state directory; nil: there is none
	claims *claim.Held
}

// holdAll makes sure that no daemon works with what is to be removed, and that it is
// not another node's; force takes what one that does not run has left.
func holdAll(ctx context.Context, cfg config.Config, force bool) (h hold, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	_, err = os.Stat(cfg.Node.StateDir)
	if err == nil {
		h.lock, err = lockDirectory(cfg.Node.StateDir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return h, err
	}
	node, err := owner(cfg, h.lock)
	if err != nil {
		return h, err
	}
	things, err := claimed(cfg)
	if err != nil {
		return h, err
	}
	if force {
		for i := range things {
			things[i].InUse = nil
		}
	}
	h.claims, err = claim.Take(ctx, claim.Dir, node, things...)
	return h, err
}

func (h *hold) close() error {
	var errs []error
	if h.claims != nil {
		errs = append(errs, h.claims.Close())
	}
	if h.lock != nil {
		errs = append(errs, h.lock.Close())
	}
	return errors.Join(errs...)
}

// nothingRuns refuses to go on while an environment has processes.
func nothingRuns(cfg config.Config) error {
	groups, err := cgroup.Inhabited(cfg.Containerd.Cgroup)
	if err != nil {
		return err
	}
	// Daemons of MPS are no environments, and are ended.
	groups = slices.DeleteFunc(groups, func(name string) bool { return strings.HasPrefix(name, "mps-") })
	if len(groups) == 0 {
		return nil
	}
	return problem.New(problem.EnvRunning, "environments run and would lose their network: %s", strings.Join(groups, ", ")).
		WithHint("start the daemon and delete them (remotegpu env rm --force ID); with --force they lose it")
}
