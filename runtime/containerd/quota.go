package containerd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/projectquota"
	"github.com/remotegpu/remotegpu/runtime"
)

// Projects of writable layers: "RG" and 16 bits. Other programs that give
// projects to directories count from small numbers on.
const (
	firstProject = 0x52470000
	lastProject  = 0x5247ffff
)

// labelDisk says on a record that its writable layer has a project, and its
// limit in bytes: only the end of one that has need look for it, and a layer
// that replaces another one gets the same.
const labelDisk = "remotegpu.dev/disk-quota"

// DiskQuota tells whether the sizes of writable layers can be limited.
func (e *Engine) DiskQuota(ctx context.Context) (runtime.DiskQuota, error) {
	root, err := e.snapshotRoot(ctx)
	if err != nil {
		return runtime.DiskQuota{}, fmt.Errorf("look for disk quotas: %w", err)
	}
	var cannot *projectquota.Unsupported
	switch {
	case e.cfg.Snapshotter == "native":
		cannot = &projectquota.Unsupported{
			Reason: "snapshotter native copies the whole image into every writable layer, so a limit would count it",
			Hint:   "use snapshotter overlayfs on XFS or ext4 with project quotas",
		}
	case e.cfg.Snapshotter == "blockfile":
		cannot = &projectquota.Unsupported{
			Reason: "snapshotter blockfile gives every writable layer the size of its scratch file",
			Hint:   "choose the size with scratch_file in containerd's configuration, or use snapshotter overlayfs on XFS or ext4 with project quotas",
		}
	case e.cfg.Snapshotter != "overlayfs":
		cannot = &projectquota.Unsupported{
			Reason: fmt.Sprintf("snapshotter %s has no directory that a project quota could limit", e.cfg.Snapshotter),
			Hint:   "use snapshotter overlayfs on XFS or ext4 with project quotas",
		}
	case root == "":
		cannot = &projectquota.Unsupported{
			Reason: "containerd does not tell where snapshotter overlayfs keeps its layers", Hint: "see in containerd's log whether the snapshotter was loaded",
		}
	default:
		kind, err := projectquota.Probe(root)
		if err == nil {
			return runtime.DiskQuota{Supported: true, Method: "project quota", Filesystem: kind, Path: root}, nil
		}
		if !errors.As(err, &cannot) {
			return runtime.DiskQuota{}, fmt.Errorf("look for disk quotas: %w", err)
		}
	}
	return runtime.DiskQuota{Filesystem: cannot.Filesystem, Path: root, Reason: cannot.Reason, Hint: cannot.Hint}, nil
}

// snapshotRoot is the directory of our snapshotter, as containerd tells, or
// "".
func (e *Engine) snapshotRoot(ctx context.Context) (string, error) {
	if root := e.root.Load(); root != nil {
		return *root, nil
	}
	response, err := e.client.IntrospectionService().Plugins(ctx, "type==io.containerd.snapshotter.v1,id=="+e.cfg.Snapshotter)
	if err != nil {
		return "", fmt.Errorf("ask containerd for snapshotter %s: %w", e.cfg.Snapshotter, e.explain(ctx, err))
	}
	for _, plugin := range response.Plugins {
		if root := plugin.Exports["root"]; plugin.ID == e.cfg.Snapshotter && root != "" {
			e.root.Store(&root)
			return root, nil
		}
	}
	return "", nil // some versions of some snapshotters do not tell
}

// layerDirs are the host directories that a writable layer's files are in, the
// layer itself first; none when it is of a kind that has none.
func layerDirs(mounts []mount.Mount) []string {
	if len(mounts) != 1 {
		return nil
	}
	if mounts[0].Type == "bind" {
		return []string{mounts[0].Source}
	}
	var upper, work string
	for _, option := range mounts[0].Options {
		if dir, found := strings.CutPrefix(option, "upperdir="); found {
			upper = dir
		}
		if dir, found := strings.CutPrefix(option, "workdir="); found {
			work = dir
		}
	}
	if mounts[0].Type != "overlay" || upper == "" || work == "" {
		return nil
	}
	// A file is made in the work directory and renamed into the layer, which
	// takes one project for both.
	return []string{upper, work}
}

// mountRoom is what a mount of overlayfs may take of a layer that is full
// already, in bytes: it makes a directory, and is read-only when it cannot.
const mountRoom = 1 << 20

// limitDisk holds a writable layer that no process uses to its limit, 0 for
// none. A layer that is full is left room to be mounted; settleDisk takes that
// back.
func (e *Engine) limitDisk(ctx context.Context, mounts []mount.Mount, limit int64) error {
	quota, err := e.DiskQuota(ctx)
	if err != nil {
		return err
	}
	if p := quota.Problem(); p != nil {
		if limit == 0 {
			return nil // what there was is not in force
		}
		return p
	}
	dirs := layerDirs(mounts)
	if len(dirs) == 0 {
		return fmt.Errorf("limit writable layer: it has no directory: %w", errdefs.ErrFailedPrecondition)
	}
	if err := e.projects.Limit(ctx, limit, dirs...); err != nil {
		return fmt.Errorf("limit writable layer: %w", err)
	}
	if limit == 0 {
		return nil
	}
	now, err := e.projects.Of(dirs[0])
	if err == nil && now.Used+mountRoom > limit {
		err = e.projects.Limit(ctx, now.Used+mountRoom, dirs...)
	}
	if err != nil {
		return fmt.Errorf("make room in writable layer: %w", err)
	}
	return nil
}

// limitNew holds a writable layer that replaces another one to the limit that
// the container was made, or last started, with. Where limits cannot be held any
// more nothing happens: the next start is refused, and says why.
func (e *Engine) limitNew(ctx context.Context, record *containers.Container, mounts []mount.Mount) error {
	limit, err := strconv.ParseInt(record.Labels[labelDisk], 10, 64)
	if err != nil || limit <= 0 {
		return nil //nolint:nilerr // releases before this kept another word there; a start limits the layer
	}
	quota, err := e.DiskQuota(ctx)
	if err != nil {
		return err
	}
	if !quota.Supported {
		return nil
	}
	return e.limitDisk(ctx, mounts, limit)
}

// settleDisk holds a writable layer that is mounted to its limit, before a
// process runs.
func (e *Engine) settleDisk(ctx context.Context, mounts []mount.Mount, limit int64) error {
	dirs := layerDirs(mounts)
	if limit == 0 || len(dirs) == 0 {
		return nil
	}
	if err := e.projects.Limit(ctx, limit, dirs...); err != nil {
		return fmt.Errorf("limit writable layer: %w", err)
	}
	return nil
}

// diskQuota is what a container uses of its limit; false when its layer has no
// project.
func (e *Engine) diskQuota(ctx context.Context, id string) (quota projectquota.Quota, has bool, err error) {
	mounts, err := e.snapshots.Mounts(ctx, id)
	if err != nil {
		return quota, false, fmt.Errorf("get snapshot: %w", e.explain(ctx, err))
	}
	dirs := layerDirs(mounts)
	if len(dirs) == 0 {
		return quota, false, nil
	}
	quota, err = e.projects.Of(dirs[0])
	return quota, quota.ID != 0, err
}

// projectOf is the project of a container's layer, 0 without one, so that its
// limit can be lifted when the layer is gone.
func (e *Engine) projectOf(ctx context.Context, record *containers.Container) uint32 {
	if record.Labels[labelDisk] == "" {
		return 0
	}
	quota, _, err := e.diskQuota(ctx, record.ID)
	if err != nil && !errdefs.IsNotFound(err) {
		e.cfg.Log.WarnContext(ctx, "the project of a writable layer is not known; the reconciler will find its limit", "container", record.ID, "error", err)
	}
	return quota.ID
}

// liftLimit lifts the limit of a project whose layer is gone, so that the
// number can be given to another one.
func (e *Engine) liftLimit(ctx context.Context, project uint32) error {
	if project == 0 {
		return nil
	}
	quota, err := e.DiskQuota(ctx)
	if err != nil || !quota.Supported {
		return err
	}
	return e.projects.Lift(quota.Path, project)
}

// quotaParts are limits of layers that are gone.
func (e *Engine) quotaParts(ctx context.Context) ([]runtime.Part, error) {
	quota, err := e.DiskQuota(ctx)
	if err != nil || !quota.Supported {
		return nil, err
	}
	stale, err := e.projects.Stale(quota.Path)
	if err != nil {
		return nil, fmt.Errorf("list disk quotas: %w", err)
	}
	parts := make([]runtime.Part, 0, len(stale))
	for _, id := range stale {
		parts = append(parts, runtime.Part{Kind: runtime.FoundQuota, Name: strconv.FormatUint(uint64(id), 10)})
	}
	return parts, nil
}
