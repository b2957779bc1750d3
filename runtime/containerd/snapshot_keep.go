package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/runtime"
)

// RemoveSnapshot removes a snapshot, or lets go of it where something builds on
// it: containerd collects it with the last of those.
func (e *Engine) RemoveSnapshot(ctx context.Context, snapshot string) error {
	if err := e.removeSnapshot(ctx, snapshot); err != nil {
		return fmt.Errorf("remove snapshot %s: %w", snapshot, err)
	}
	return nil
}

func (e *Engine) removeSnapshot(ctx context.Context, snapshot string) error {
	unlock, err := e.building.snapshot(ctx, snapshot)
	if err != nil {
		return err
	}
	defer unlock()
	key := snapshotKey(snapshot)
	if err := e.TidySnapshot(ctx, snapshot); err != nil {
		return err
	}
	// A container between two layers has its files in the snapshot alone.
	records, err := e.store.List(ctx, fmt.Sprintf("labels.%q==%q", labelLayer, key))
	if err != nil {
		return fmt.Errorf("list containers: %w", e.explain(ctx, err))
	}
	for i := range records {
		if _, err := e.layerOf(ctx, &records[i]); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("finish layer of container %s: %w", records[i].ID, err)
		}
	}
	err = e.snapshots.Remove(ctx, key)
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case errdefs.IsFailedPrecondition(err): // something builds on it
	case err != nil:
		return fmt.Errorf("remove: %w", e.explain(ctx, err))
	default:
		return nil
	}
	info, err := e.snapshots.Stat(ctx, key)
	if errdefs.IsNotFound(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("get: %w", e.explain(ctx, err))
	}
	delete(info.Labels, labelRoot)
	if _, err := e.snapshots.Update(ctx, info, "labels"); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("let go: %w", e.explain(ctx, err))
	}
	return nil
}

// Snapshots lists the snapshots that are held, and what is left of others.
func (e *Engine) Snapshots(ctx context.Context) ([]runtime.SnapshotPart, error) {
	parts := make(map[string]runtime.SnapshotPart)
	note := func(id string, whole bool) {
		part := parts[id]
		parts[id] = runtime.SnapshotPart{ID: id, Whole: part.Whole || whole, Begun: part.Begun || !whole}
	}
	err := e.snapshots.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		id, whole := info.Labels[labelSnapshot], info.Kind == snapshots.KindCommitted
		if !whole || info.Labels[labelRoot] != "" {
			note(id, whole)
		}
		return nil
	}, fmt.Sprintf("labels.%q", labelSnapshot))
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", e.explain(ctx, err))
	}
	held, err := e.client.LeasesService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", e.explain(ctx, err))
	}
	for _, lease := range held {
		if id, ours := strings.CutPrefix(lease.ID, snapshotPrefix); ours {
			note(strings.TrimSuffix(id, exportSuffix), false)
		}
	}
	all := make([]runtime.SnapshotPart, 0, len(parts))
	for _, part := range parts {
		all = append(all, part)
	}
	slices.SortFunc(all, func(a, b runtime.SnapshotPart) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}

// snapshotLabels are the labels of a whole snapshot.
func snapshotLabels(snapshot string, ext extension) map[string]string {
	labels := map[string]string{labelSnapshot: snapshot, labelRoot: time.Now().UTC().Format(time.RFC3339)}
	if ext.Manifest != "" {
		labels[labelContent] = ext.Manifest
	}
	return labels
}

func (e *Engine) describeLayer(ctx context.Context, key, image string, ext extension) (runtime.Layer, error) {
	info, err := e.snapshots.Stat(ctx, key)
	if err != nil {
		return runtime.Layer{}, fmt.Errorf("get snapshot: %w", e.explain(ctx, err))
	}
	usage, err := e.snapshots.Usage(ctx, key)
	if err != nil {
		return runtime.Layer{}, fmt.Errorf("measure snapshot: %w", e.explain(ctx, err))
	}
	base, err := json.Marshal(ext)
	if err != nil {
		return runtime.Layer{}, fmt.Errorf("encode image configuration: %w", err)
	}
	parent, ours := strings.CutPrefix(info.Parent, snapshotPrefix)
	if !ours {
		parent = ""
	}
	return runtime.Layer{
		Parent: parent, Size: usage.Size, Image: image, ImageDigest: ext.Digest, ImageLabels: ext.Config.Labels, Base: base,
	}, nil
}
