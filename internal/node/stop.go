package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/claim"
	"github.com/remotegpu/remotegpu/internal/config"
	"github.com/remotegpu/remotegpu/runtime/containerd"
)

// StopEnvironments ends the processes of all environments before the host goes
// down: each gets its stop signal, and SIGKILL after the timeout. The daemon
// must have ended. What should be stays as it is in the database, so the next
// daemon finds that the host was rebooted and does what restart policies say.
// CONFIG_INVALID when containerd's namespace is another node's.
func StopEnvironments(ctx context.Context, cfg config.Config, timeout time.Duration, log *slog.Logger) (err error) {
	lock, err := lockDirectory(cfg.Node.StateDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	node, err := owner(cfg, lock)
	if err != nil {
		return err
	}
	claims, err := claim.Take(ctx, claim.Dir, node, claimedContainerd(cfg)) // else they are another node's
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, claims.Close()) }()
	engine, err := containerd.New(containerd.Config{
		Address: cfg.Containerd.Address, Namespace: cfg.Containerd.Namespace, Snapshotter: cfg.Containerd.Snapshotter,
		CgroupParent: cfg.Containerd.Cgroup, FIFODir: filepath.Join(cfg.Node.RunDir, "fifo"),
		LogDir: filepath.Join(cfg.Node.StateDir, "logs"), Log: log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	statuses, err := engine.List(ctx)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	var waiting sync.WaitGroup
	failures := make([]error, len(statuses))
	for i, status := range statuses {
		waiting.Go(func() {
			// A list leaves out what a busy host does not tell of in time.
			if !status.Running {
				if now, err := engine.Status(ctx, status.ID); errdefs.IsNotFound(err) || err == nil && !now.Running {
					return
				}
			}
			if _, err := engine.Stop(ctx, status.ID, timeout); err != nil && !errdefs.IsNotFound(err) {
				failures[i] = err // the others are stopped all the same
				return
			}
			log.InfoContext(ctx, "the environment is stopped until the next start of the node", "environment", status.ID)
		})
	}
	waiting.Wait()
	return errors.Join(failures...)
}
