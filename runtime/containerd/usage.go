package containerd

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/runtime"
)

// Contents tells what images, and all else in the content store and among the
// unpacked layers, take of the disk.
func (e *Engine) Contents(ctx context.Context) (runtime.Contents, error) {
	all := runtime.Contents{Blobs: make(map[string]int64), Snapshots: make(map[string]runtime.UnpackedLayer)}
	records, err := e.client.ImageService().List(ctx)
	if err != nil {
		return all, fmt.Errorf("list images: %w", e.explain(ctx, err))
	}
	for _, record := range records {
		here, _, err := e.blobs(ctx, record.Target)
		if unreadable(err) { // what it names is not known; it keeps nothing else
			e.cfg.Log.DebugContext(ctx, "image cannot be read", "image", record.Name, "error", err)
		} else if err != nil {
			return all, fmt.Errorf("read image %s: %w", record.Name, e.explain(ctx, err))
		}
		one := runtime.ImageContents{Name: record.Name}
		for _, desc := range here {
			one.Blobs = append(one.Blobs, desc.Digest.String())
		}
		if img, err := e.read(ctx, record); err == nil {
			one.Snapshots = img.chain
		} else if !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) { // not all here, not for us or not valid: not unpacked
			return all, err
		}
		all.Images = append(all.Images, one)
	}
	if err := e.client.ContentStore().Walk(ctx, func(info content.Info) error {
		all.Blobs[info.Digest.String()] = info.Size
		return nil
	}); err != nil {
		return all, fmt.Errorf("list content: %w", e.explain(ctx, err))
	}
	return all, e.measureSnapshots(ctx, &all)
}

// measureSnapshots measures the committed snapshots. Their sizes were taken when
// they were committed; those of writable ones are not asked for, since that
// would walk their files.
func (e *Engine) measureSnapshots(ctx context.Context, all *runtime.Contents) error {
	parents, writable := make(map[string]string), make(map[string]bool)
	if err := e.snapshots.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		parents[info.Name] = info.Parent
		writable[info.Name] = info.Kind != snapshots.KindCommitted
		return nil
	}); err != nil {
		return fmt.Errorf("list snapshots: %w", e.explain(ctx, err))
	}
	ofImages := make(map[string]bool)
	for _, image := range all.Images {
		for _, name := range image.Snapshots {
			ofImages[name] = true
		}
	}
	// What is of no image keeps what it is made on.
	held := make(map[string]bool)
	for name := range parents {
		if ofImages[name] {
			continue
		}
		for held[name] = true; parents[name] != "" && !held[parents[name]]; name = parents[name] {
			held[parents[name]] = true
		}
	}
	for name := range parents {
		if writable[name] {
			continue
		}
		usage, err := e.snapshots.Usage(ctx, name)
		if errdefs.IsNotFound(err) {
			continue // it was removed since
		} else if err != nil {
			return fmt.Errorf("measure snapshot %s: %w", name, e.explain(ctx, err))
		}
		all.Snapshots[name] = runtime.UnpackedLayer{Bytes: usage.Size, Held: held[name]}
	}
	return nil
}
