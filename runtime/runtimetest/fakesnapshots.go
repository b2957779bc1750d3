package runtimetest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

var _ runtime.Snapshotter = (*FakeEngine)(nil)

type fakeSnapshot struct {
	files map[string]string
	layer runtime.Layer
	held  bool // it was not removed
}

// fakeBase is what Layer.Base holds.
type fakeBase struct {
	Image string `json:"image"`
}

func (e *FakeEngine) keep(c *fakeContainer, snapshot string) runtime.Layer {
	e.Images.mu.Lock()
	image := e.Images.local[c.Image]
	e.Images.mu.Unlock()
	base, _ := json.Marshal(fakeBase{c.Image}) //nolint:errchkjson // a string can be encoded
	files := c.files.all()
	layer := runtime.Layer{
		Parent: c.base, Size: int64(len(files)), Image: c.Image, ImageDigest: image.Digest, ImageLabels: image.Labels, Base: base,
	}
	if e.snapshots == nil {
		e.snapshots = make(map[string]*fakeSnapshot)
	}
	e.snapshots[snapshot] = &fakeSnapshot{files: files, layer: layer, held: true}
	return layer
}

// CommitLayer keeps the files of a container and puts it on top of them.
func (e *FakeEngine) CommitLayer(ctx context.Context, id, snapshot string) (layer runtime.Layer, err error) {
	copied, err := e.roots.Change(ctx, id)
	if err != nil {
		return layer, err
	}
	defer copied()
	err = e.call("CommitLayer", func() error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c, err := e.idle(id)
		if err != nil {
			return fmt.Errorf("commit layer: %w", err)
		}
		if done := e.snapshots[snapshot]; done != nil {
			layer = done.layer
			return nil
		}
		layer = e.keep(c, snapshot)
		c.base = snapshot
		return nil
	})
	return layer, err
}

// idle is a container whose process does not run.
func (e *FakeEngine) idle(id string) (*fakeContainer, error) {
	c := e.containers[id]
	switch {
	case c == nil:
		return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	case c.running():
		return nil, fmt.Errorf("container %s runs: %w", id, errdefs.ErrFailedPrecondition)
	}
	return c, nil
}

// CopyLayer keeps the files of a running container.
func (e *FakeEngine) CopyLayer(ctx context.Context, id, snapshot string, progress func(operation.Progress)) (layer runtime.Layer, err error) {
	copied, err := e.roots.Change(ctx, id)
	if err != nil {
		return layer, err
	}
	defer copied()
	err = e.call("CopyLayer", func() error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c := e.containers[id]
		if c == nil || !c.running() {
			return fmt.Errorf("copy layer: container %s does not run: %w", id, errdefs.ErrNotFound)
		}
		if err := e.answers(id); err != nil {
			return fmt.Errorf("copy layer of container %s: %w", id, err)
		}
		for file := range c.files.all() {
			if strings.HasPrefix(file, "/.wh.") {
				return problem.New(problem.SnapshotNotCopyable, "%s: layers cannot hold it", file).WithHint("rename it")
			}
		}
		layer = e.keep(c, snapshot)
		if progress != nil {
			progress(operation.Progress{Step: "copying", Done: layer.Size})
		}
		return nil
	})
	return layer, err
}

// IsPaused says whether a container is paused, without a call.
func (e *FakeEngine) IsPaused(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[id]
	return c != nil && c.running() && c.process.paused
}

// ResetLayer gives a container the files of a snapshot.
func (e *FakeEngine) ResetLayer(ctx context.Context, id, snapshot string) error {
	copied, err := e.roots.Change(ctx, id)
	if err != nil {
		return err
	}
	defer copied()
	return e.call("ResetLayer", func() error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		from := e.snapshots[snapshot]
		if from == nil || !from.held {
			return problem.New(problem.SnapshotNotFound, "snapshot %s is not here", snapshot).WithHint("list them")
		}
		c, err := e.idle(id)
		if err != nil {
			return fmt.Errorf("reset layer: %w", err)
		}
		files, err := e.newFiles(id, from.files)
		c.files, c.base = files, snapshot
		return err
	})
}

// RemoveSnapshot forgets a snapshot. Containers have copies of their files.
func (e *FakeEngine) RemoveSnapshot(_ context.Context, snapshot string) error {
	return e.call("RemoveSnapshot", func() error {
		delete(e.snapshots, snapshot)
		return nil
	})
}

// Snapshots lists them.
func (e *FakeEngine) Snapshots(context.Context) (all []runtime.SnapshotPart, err error) {
	err = e.call("Snapshots", func() error {
		for _, id := range slices.Sorted(maps.Keys(e.snapshots)) {
			held := e.snapshots[id].held
			all = append(all, runtime.SnapshotPart{ID: id, Whole: held, Begun: !held || e.exporting[id]})
		}
		return nil
	})
	return all, err
}

// Spoil makes a whole snapshot a leftover, or makes one up.
func (e *FakeEngine) Spoil(snapshot string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.snapshots == nil {
		e.snapshots = make(map[string]*fakeSnapshot)
	}
	e.snapshots[snapshot] = &fakeSnapshot{}
}

// ExportSnapshot makes an image that has the snapshot's files.
func (e *FakeEngine) ExportSnapshot(ctx context.Context, ex runtime.Export, progress func(operation.Progress)) (image runtime.Image, err error) {
	err = e.call("ExportSnapshot", func() error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		from := e.snapshots[ex.Snapshot]
		if from == nil || !from.held {
			return problem.New(problem.SnapshotNotFound, "snapshot %s is not here", ex.Snapshot).WithHint("list them")
		}
		if progress != nil {
			progress(operation.Progress{Step: "writing layers", Total: 1})
		}
		image = runtime.Image{
			Name: ex.Reference, Digest: "sha256:" + strings.Repeat("e", 64), Labels: from.layer.ImageLabels,
			Size: from.layer.Size + 1, Platform: "linux/amd64", UpdatedAt: time.Now(),
		}
		e.Images.Add(image)
		if e.exported == nil {
			e.exported = make(map[string]map[string]string)
		}
		e.exported[ex.Reference] = maps.Clone(from.files)
		return nil
	})
	return image, err
}

// LeaveExport leaves what an export of a daemon that died does.
func (e *FakeEngine) LeaveExport(snapshot string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.exporting = map[string]bool{snapshot: true}
}

// TidySnapshot undoes LeaveExport.
func (e *FakeEngine) TidySnapshot(_ context.Context, snapshot string) error {
	return e.call("TidySnapshot", func() error {
		delete(e.exporting, snapshot)
		return nil
	})
}
