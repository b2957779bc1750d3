package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/claim"
	"github.com/remotegpu/remotegpu/internal/config"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/runtime/containerd"
)

// owner is who claims things for a node. lock is that of its state directory; nil:
// there is none.
func owner(cfg config.Config, lock *os.File) (claim.Node, error) {
	node := claim.Node{StateDir: resolved(cfg.Node.StateDir)}
	if lock == nil {
		return node, nil
	}
	var err error
	node.ID, err = ownerID(lock)
	return node, err
}

// resolved is a path without symbolic links, where there is something at it.
func resolved(name string) string {
	if followed, err := filepath.EvalSymlinks(name); err == nil {
		return followed
	}
	return filepath.Clean(name)
}

// claimed are the things of a host that a node has for itself: two nodes with one
// of them would take each other's environments for leftovers.
func claimed(cfg config.Config) ([]claim.Thing, error) {
	var stat unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &stat); err != nil {
		return nil, fmt.Errorf("look up the network namespace: %w", err)
	}
	return []claim.Thing{
		claimedRunDir(cfg), claimedContainerd(cfg), claimedCgroup(cfg),
		{Kind: "network namespace", Name: fmt.Sprint(stat.Ino), InUse: func() (string, error) {
			links, err := network.Links()
			return some("interfaces", links), err
		}},
	}, nil
}

func claimedRunDir(cfg config.Config) claim.Thing {
	dir := resolved(cfg.Node.RunDir)
	return claim.Thing{Kind: "run directory", Name: dir, Field: "node.run_dir", InUse: func() (string, error) {
		var found []string
		for _, kind := range []string{"netns", "mounts", "desktop"} {
			entries, err := os.ReadDir(filepath.Join(dir, kind))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", fmt.Errorf("look into the run directory: %w", err)
			}
			for _, entry := range entries {
				found = append(found, path.Join(kind, entry.Name()))
			}
		}
		return some("files of environments", found), nil
	}}
}

func claimedContainerd(cfg config.Config) claim.Thing {
	address, namespace := resolved(strings.TrimPrefix(cfg.Containerd.Address, "unix://")), cfg.Containerd.Namespace
	return claim.Thing{
		Kind: "containerd namespace", Name: namespace + " of " + address, Field: "containerd.namespace", InUse: func() (string, error) {
			shims, err := containerd.Shims(cfg.Containerd.Address, namespace)
			pids := make([]string, 0, len(shims))
			for _, pid := range shims {
				pids = append(pids, fmt.Sprint(pid))
			}
			return some("shims", pids), err
		},
	}
}

func claimedCgroup(cfg config.Config) claim.Thing {
	return claim.Thing{Kind: "cgroup", Name: path.Clean(cfg.Containerd.Cgroup), Field: "containerd.cgroup", InUse: func() (string, error) {
		groups, err := cgroup.Inhabited(cfg.Containerd.Cgroup)
		return some("processes in", groups), err
	}}
}

// some names what there is, the first few of many; "" when there is nothing.
func some(what string, names []string) string {
	const shown = 5
	switch {
	case len(names) == 0:
		return ""
	case len(names) > shown:
		return fmt.Sprintf("%s %s and %d more", what, strings.Join(names[:shown], ", "), len(names)-shown)
	}
	return what + " " + strings.Join(names, ", ")
}

// takeClaims claims what the node has for itself.
func (n *Node) takeClaims(ctx context.Context) error {
	node, err := owner(n.cfg, n.lock)
	if err != nil {
		return err
	}
	things, err := claimed(n.cfg)
	if err != nil {
		return err
	}
	n.claims, err = claim.Take(ctx, claim.Dir, node, things...)
	return err
}
