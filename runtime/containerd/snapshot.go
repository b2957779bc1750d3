package containerd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// MaxDepth is how many layers a snapshot may consist of, those of its image
// included. It is what Docker's overlay2 accepts, so that an exported image can
// be run anywhere. What overlayfs allows is more: containerd names the layers
// of a mount relative to their common directory, 7 to 11 bytes each, of which
// about 350 fit the page that mount(2) takes; the kernel's own limit is 500.
const MaxDepth = 125

// snapshotPrefix is what the names of snapshots in containerd begin with.
const snapshotPrefix = "remotegpu-snapshot-"

// Labels. A snapshot with the root label is kept by containerd's garbage
// collector until it is removed; without, as long as something builds on it.
const (
	labelSnapshot = "remotegpu.dev/snapshot" // on snapshots in containerd: the id
	labelLayer    = "remotegpu.dev/layer"    // on records: what the writable layer is, or is to be put, on top of
	labelRoot     = "containerd.io/gc.root"
	// labelContent makes the layers of the image, as they came, stay as long
	// as the container or snapshot: an export needs them.
	labelContent = "containerd.io/gc.ref.content.remotegpu"
)

var _ runtime.Snapshotter = (*Engine)(nil)

func snapshotKey(snapshot string) string { return snapshotPrefix + snapshot }

func snapshotNotFound(snapshot string) *problem.Problem {
	return problem.New(problem.SnapshotNotFound, "snapshot %s is not in containerd", snapshot).
		WithHint("list the snapshots there are: remotegpu env snapshot ls")
}

func (e *Engine) tooDeep(layers int) *problem.Problem {
	return problem.New(problem.SnapshotTooDeep, "the image has %d layers already, and a snapshot may have %d", layers, e.cfg.MaxDepth).
		WithHint("make the image with fewer layers, then the environment from that image")
}

// CommitLayer makes a writable layer a snapshot, with an empty one on top.
func (e *Engine) CommitLayer(ctx context.Context, id, snapshot string) (runtime.Layer, error) {
	copied, err := e.roots.Change(ctx, id)
	if err != nil {
		return runtime.Layer{}, fmt.Errorf("commit layer of container %s: end copies: %w", id, err)
	}
	defer copied()
	layer, err := e.commitLayer(ctx, id, snapshot)
	if err != nil {
		return runtime.Layer{}, fmt.Errorf("commit layer of container %s: %w", id, err)
	}
	return layer, nil
}

func (e *Engine) commitLayer(ctx context.Context, id, snapshot string) (runtime.Layer, error) {
	key := snapshotKey(snapshot)
	unlock, err := e.building.both(ctx, snapshot, id)
	if err != nil {
		return runtime.Layer{}, err
	}
	defer unlock()
	record, ext, err := e.idle(ctx, id)
	if err != nil {
		return runtime.Layer{}, err
	}
	whole, done := uninterrupted(ctx)
	defer done()
	if _, err := e.snapshots.Stat(whole, key); err == nil {
		// Begun before: the layer is in the snapshot, perhaps nothing is on top.
		if err := e.putOn(whole, record, key, false); err != nil {
			return runtime.Layer{}, err
		}
		return e.describeLayer(whole, key, record.Image, ext)
	} else if !errdefs.IsNotFound(err) {
		return runtime.Layer{}, fmt.Errorf("get snapshot: %w", e.explain(whole, err))
	}
	mounts, err := e.lockedLayerOf(whole, record)
	if err != nil {
		return runtime.Layer{}, err
	}
	dirs, err := layers(mounts)
	if err != nil {
		return runtime.Layer{}, err
	}
	if len(dirs) > e.cfg.MaxDepth { // the layers below, and this one
		if err := e.mergeLayers(ctx, id, snapshot, dirs, ext); err != nil {
			return runtime.Layer{}, err
		}
		if err := e.putOn(whole, record, key, true); err != nil {
			return runtime.Layer{}, err
		}
		return e.describeLayer(whole, key, record.Image, ext)
	}
	if err := e.noteLayer(whole, record, key); err != nil {
		return runtime.Layer{}, err
	}
	if err := e.snapshots.Commit(whole, key, id, snapshots.WithLabels(snapshotLabels(snapshot, ext))); err != nil {
		return runtime.Layer{}, fmt.Errorf("commit snapshot: %w", e.explain(whole, err))
	}
	if err := e.putOn(whole, record, key, false); err != nil {
		return runtime.Layer{}, err
	}
	return e.describeLayer(whole, key, record.Image, ext)
}

// mergeLayers makes a snapshot right on the image of all layers above that, for
// a container that has reached MaxDepth.
func (e *Engine) mergeLayers(ctx context.Context, id, snapshot string, dirs []string, ext extension) (err error) {
	own, err := e.ownLayers(ctx, id, ext.Parent)
	if err != nil {
		return err
	}
	if below := len(dirs) - len(own); below+1 > e.cfg.MaxDepth {
		return e.tooDeep(below)
	}
	leased, release, err := e.hold(ctx, snapshotKey(snapshot))
	if err != nil {
		return err
	}
	defer func() { err = release(err) }()
	blob, err := e.writeDiff(leased, snapshotKey(snapshot), dirs[:len(own)], dirs[len(own):], nil)
	if err != nil {
		return err
	}
	return e.unpackDiff(leased, snapshot, ext.Parent, dirs[0], blob, ext)
}

// ownLayers are the names of a snapshot and of those it builds on, uppermost
// first, down to the image's.
func (e *Engine) ownLayers(ctx context.Context, key, image string) ([]string, error) {
	var own []string
	for at := key; at != image; {
		info, err := e.snapshots.Stat(ctx, at)
		if err != nil {
			return nil, fmt.Errorf("get snapshot %s: %w", at, e.explain(ctx, err))
		}
		own = append(own, at)
		if at = info.Parent; at == "" && image != "" {
			return nil, fmt.Errorf("snapshot %s does not build on its image: %w", key, errdefs.ErrFailedPrecondition)
		}
	}
	return own, nil
}

// idle is the record of a container whose process does not run and whose
// writable layer nobody has mounted.
func (e *Engine) idle(ctx context.Context, id string) (*containers.Container, extension, error) {
	record, ext, err := e.recordOf(ctx, id)
	if err != nil {
		return nil, ext, err
	}
	if err := e.clearTask(ctx, id); errdefs.IsAlreadyExists(err) {
		return nil, ext, fmt.Errorf("its process runs: %w", errdefs.ErrFailedPrecondition)
	} else if err != nil {
		return nil, ext, err
	}
	mounts, err := e.snapshots.Mounts(ctx, id)
	if errdefs.IsNotFound(err) {
		return record, ext, nil // nothing is there to be mounted
	} else if err != nil {
		return nil, ext, fmt.Errorf("get snapshot: %w", e.explain(ctx, err))
	}
	return record, ext, e.awaitUnmounted(ctx, mounts)
}

// recordOf is the record of a container and what is known of its image.
func (e *Engine) recordOf(ctx context.Context, id string) (*containers.Container, extension, error) {
	record, err := e.store.Get(ctx, id)
	if err != nil {
		return nil, extension{}, fmt.Errorf("get record: %w", e.explain(ctx, err))
	}
	ext, err := e.imageOf(ctx, &record)
	if err == nil && ext.Manifest == "" { // made by a release that did not keep it
		if found, img, lookErr := e.lookUp(ctx, record.Image); lookErr == nil && img.parent == ext.Parent {
			ext.Manifest, ext.Digest = img.manifest, found.Target.Digest.String()
		}
	}
	return &record, ext, err
}

// awaitUnmounted waits until nobody has a writable layer mounted: containerd
// clears up after a shim that died in its own time. A layer that is written to
// must never become part of another one.
func (e *Engine) awaitUnmounted(ctx context.Context, mounts []mount.Mount) error {
	dirs, err := layers(mounts)
	if err != nil || len(dirs) == 0 {
		return err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(killTimeout)
	defer limit.Stop()
	for {
		mounted, err := e.isMounted(ctx, dirs[0])
		if err != nil || !mounted {
			return err
		}
		select {
		case <-tick.C:
		case <-limit.C:
			return fmt.Errorf("its layer %s is mounted: %w", dirs[0], errdefs.ErrFailedPrecondition)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// layerOf returns the mounts of a container's writable layer. One that is
// missing was being swapped when containerd or the daemon died: the record says
// what it goes on top of.
func (e *Engine) layerOf(ctx context.Context, record *containers.Container) ([]mount.Mount, error) {
	mounts, err := e.snapshots.Mounts(ctx, record.ID)
	if err == nil {
		return mounts, nil
	}
	if !errdefs.IsNotFound(err) || record.Labels[labelLayer] == "" {
		return nil, fmt.Errorf("get snapshot: %w", e.explain(ctx, err))
	}
	unlock, err := e.building.container(ctx, record.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	// It may be somebody else who is swapping it, and has put it on another
	// snapshot, or removed the container.
	current, err := e.store.Get(ctx, record.ID)
	if err != nil {
		return nil, fmt.Errorf("get record: %w", e.explain(ctx, err))
	}
	return e.lockedLayerOf(ctx, &current)
}

// lockedLayerOf is layerOf for who has the lock of the container, and a record
// that was read under it.
func (e *Engine) lockedLayerOf(ctx context.Context, record *containers.Container) ([]mount.Mount, error) {
	mounts, err := e.snapshots.Mounts(ctx, record.ID)
	if errdefs.IsNotFound(err) && record.Labels[labelLayer] != "" {
		mounts, err = e.prepareOn(ctx, record, record.Labels[labelLayer])
	}
	if err != nil {
		return nil, fmt.Errorf("get snapshot: %w", e.explain(ctx, err))
	}
	return mounts, nil
}

// noteLayer writes down what the writable layer of a container is to be on top
// of, before the one that it has goes.
func (e *Engine) noteLayer(ctx context.Context, record *containers.Container, key string) error {
	if record.Labels[labelLayer] == key {
		return nil
	}
	if record.Labels == nil {
		record.Labels = make(map[string]string)
	}
	record.Labels[labelLayer] = key
	updated := containers.Container{ID: record.ID, Labels: map[string]string{labelLayer: key}}
	if _, err := e.store.Update(ctx, updated, "labels."+labelLayer); err != nil {
		return fmt.Errorf("update record: %w", e.explain(ctx, err))
	}
	return nil
}

// putOn makes sure that a container has a writable layer on top of a snapshot;
// with fresh, an empty one in place of any that it has.
func (e *Engine) putOn(ctx context.Context, record *containers.Container, key string, fresh bool) error {
	e.mu.Lock()
	delete(e.fresh, record.ID)
	e.mu.Unlock()
	info, err := e.snapshots.Stat(ctx, record.ID)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("get snapshot: %w", e.explain(ctx, err))
	}
	if err == nil && info.Parent == key && !fresh {
		mounts, err := e.snapshots.Mounts(ctx, record.ID)
		if err != nil {
			return fmt.Errorf("get snapshot: %w", e.explain(ctx, err))
		}
		return e.limitNew(ctx, record, mounts) // a call before this one may have ended in between
	}
	if err := e.noteLayer(ctx, record, key); err != nil {
		return err
	}
	if info.Name != "" {
		project := e.projectOf(ctx, record)
		if err := e.snapshots.Remove(ctx, record.ID); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove layer: %w", e.explain(ctx, err))
		}
		if err := e.liftLimit(ctx, project); err != nil {
			e.cfg.Log.WarnContext(ctx, "a layer that was replaced has a limit still; the reconciler will find it", "container", record.ID, "error", err)
		}
	}
	if _, err := e.prepareOn(ctx, record, key); err != nil {
		return fmt.Errorf("prepare layer: %w", e.explain(ctx, err))
	}
	return nil
}

// prepareOn makes an empty writable layer on top of a snapshot, with the limit
// of the one that the container had: files are copied into it before the next
// start.
func (e *Engine) prepareOn(ctx context.Context, record *containers.Container, key string) ([]mount.Mount, error) {
	mounts, err := e.snapshots.Prepare(ctx, record.ID, key)
	if errdefs.IsAlreadyExists(err) {
		if mounts, err = e.snapshots.Mounts(ctx, record.ID); err != nil {
			return nil, err
		}
		return mounts, e.limitNew(ctx, record, mounts)
	}
	if err != nil {
		return nil, err
	}
	// The root directory is a file of the layer as any other: containerd gives
	// it to the owner of the one below, and not its mode.
	if dirs, err := layers(mounts); err == nil && len(dirs) > 1 {
		if err := copyMode(dirs[1], dirs[0]); err != nil {
			return nil, errors.Join(err, e.snapshots.Remove(ctx, record.ID))
		}
	}
	return mounts, e.limitNew(ctx, record, mounts)
}

func copyMode(from, to string) error {
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return fmt.Errorf("inspect %s: %w", from, err)
	}
	if err := unix.Chown(to, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("change owner of %s: %w", to, err)
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return fmt.Errorf("change mode of %s: %w", to, err)
	}
	return nil
}

// ResetLayer replaces a writable layer by an empty one on top of a snapshot.
func (e *Engine) ResetLayer(ctx context.Context, id, snapshot string) error {
	copied, err := e.roots.Change(ctx, id)
	if err != nil {
		return fmt.Errorf("reset layer of container %s: end copies: %w", id, err)
	}
	defer copied()
	if err := e.resetLayer(ctx, id, snapshot); err != nil {
		return fmt.Errorf("reset layer of container %s: %w", id, err)
	}
	return nil
}

func (e *Engine) resetLayer(ctx context.Context, id, snapshot string) error {
	unlock, err := e.building.both(ctx, snapshot, id)
	if err != nil {
		return err
	}
	defer unlock()
	key := snapshotKey(snapshot)
	info, err := e.snapshots.Stat(ctx, key)
	if errdefs.IsNotFound(err) {
		return snapshotNotFound(snapshot).WithCause(err)
	} else if err != nil {
		return fmt.Errorf("get snapshot: %w", e.explain(ctx, err))
	}
	// One that was removed stays as long as something builds on it: that may be
	// the layer that goes now.
	if info.Labels[labelRoot] == "" {
		return snapshotNotFound(snapshot)
	}
	record, _, err := e.idle(ctx, id)
	if err != nil {
		return err
	}
	whole, done := uninterrupted(ctx)
	defer done()
	return e.putOn(whole, record, key, true)
}
