package containerd

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

const viewSuffix = "-view" // of the snapshot by which layers are read

// ExportSnapshot makes an image of a snapshot: that of its container, and one
// more layer for each snapshot that it builds on.
func (e *Engine) ExportSnapshot(ctx context.Context, ex runtime.Export, progress func(operation.Progress)) (runtime.Image, error) {
	image, err := e.exportSnapshot(ctx, ex, progress)
	if err != nil {
		return runtime.Image{}, fmt.Errorf("export snapshot %s: %w", ex.Snapshot, err)
	}
	return image, nil
}

// TidySnapshot removes what interrupted calls have left beside a snapshot.
func (e *Engine) TidySnapshot(ctx context.Context, snapshot string) error {
	key := snapshotKey(snapshot)
	if err := errors.Join(e.abort(ctx, key), e.abort(ctx, key+exportSuffix)); err != nil {
		return fmt.Errorf("tidy snapshot %s: %w", snapshot, err)
	}
	return nil
}

// exporting is an image in the making.
type exporting struct {
	engine   *Engine
	key      string // of lease, ingests and view
	manifest ocispec.Manifest
	config   map[string]json.RawMessage // whole, with what others have put into it
	rootFS   ocispec.RootFS
	history  []ocispec.History
}

func (e *Engine) exportSnapshot(ctx context.Context, ex runtime.Export, progress func(operation.Progress)) (_ runtime.Image, err error) {
	var ext extension
	if err := json.Unmarshal(ex.Base, &ext); err != nil {
		return runtime.Image{}, fmt.Errorf("read image configuration: %w", err)
	}
	key := snapshotKey(ex.Snapshot)
	if _, err := e.snapshots.Stat(ctx, key); errdefs.IsNotFound(err) {
		return runtime.Image{}, snapshotNotFound(ex.Snapshot).WithCause(err)
	}
	own, err := e.ownLayers(ctx, key, ext.Parent)
	if err != nil {
		return runtime.Image{}, err
	}
	x := &exporting{engine: e, key: key + exportSuffix}
	leased, release, err := e.hold(ctx, x.key)
	if err != nil {
		return runtime.Image{}, err
	}
	defer func() { err = release(err) }()
	if err := x.readBase(leased, ext); err != nil {
		return runtime.Image{}, err
	}
	dirs, err := x.view(leased, ex.Snapshot, len(own))
	if err != nil {
		return runtime.Image{}, err
	}
	for i, dir := range slices.Backward(dirs) {
		if progress != nil {
			progress(operation.Progress{Step: "writing layers", Done: int64(len(dirs) - 1 - i), Total: int64(len(dirs))})
		}
		if err := x.addLayer(leased, dir, ex); err != nil {
			return runtime.Image{}, err
		}
	}
	if err := e.removeView(leased, x.key); err != nil {
		return runtime.Image{}, err
	}
	return x.name(leased, ex)
}

// readBase reads manifest and configuration of the image below, and looks that
// all of its layers are here.
func (x *exporting) readBase(ctx context.Context, ext extension) error {
	store := x.engine.client.ContentStore()
	missing := problem.New(problem.SnapshotBaseMissing, "the image that the snapshot builds on, %s, is not whole on this node", ext.Digest).
		WithHint("pull it again by that digest, then repeat the export")
	read := func(dgst digest.Digest, into any) error {
		blob, err := content.ReadBlob(ctx, store, ocispec.Descriptor{Digest: dgst})
		if errdefs.IsNotFound(err) {
			return missing.WithCause(err)
		} else if err != nil {
			return fmt.Errorf("read content: %w", x.engine.explain(ctx, err))
		}
		return json.Unmarshal(blob, into)
	}
	if ext.Manifest == "" {
		return missing
	}
	if err := read(digest.Digest(ext.Manifest), &x.manifest); err != nil {
		return err
	}
	for _, layer := range x.manifest.Layers {
		if _, err := store.Info(ctx, layer.Digest); errdefs.IsNotFound(err) {
			return missing.WithCause(err)
		} else if err != nil {
			return fmt.Errorf("read content: %w", x.engine.explain(ctx, err))
		}
	}
	if err := read(x.manifest.Config.Digest, &x.config); err != nil {
		return err
	}
	if err := json.Unmarshal(x.config["rootfs"], &x.rootFS); err != nil {
		return fmt.Errorf("read layers of image configuration: %w", err)
	}
	if history := x.config["history"]; history != nil {
		if err := json.Unmarshal(history, &x.history); err != nil {
			return fmt.Errorf("read history of image configuration: %w", err)
		}
	}
	return nil
}

// view returns the directories of the uppermost layers of a snapshot.
func (x *exporting) view(ctx context.Context, snapshot string, count int) ([]string, error) {
	e := x.engine
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	whole, done := uninterrupted(ctx)
	defer done()
	mounts, err := e.snapshots.View(whole, x.key+viewSuffix, snapshotKey(snapshot),
		snapshots.WithLabels(map[string]string{labelSnapshot: snapshot}))
	if err != nil {
		return nil, fmt.Errorf("view layers: %w", e.explain(ctx, err))
	}
	dirs, err := e.overlayDirs(mounts)
	if err != nil {
		return nil, err
	}
	if len(dirs) < count {
		return nil, fmt.Errorf("view layers: %d directories for %d layers: %w", len(dirs), count, errdefs.ErrInternal)
	}
	return dirs[:count], nil
}

func (e *Engine) removeView(ctx context.Context, key string) error {
	if err := e.snapshots.Remove(ctx, key+viewSuffix); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove view: %w", e.explain(ctx, err))
	}
	return nil
}

// addLayer compresses a layer into the content store and puts it on top.
func (x *exporting) addLayer(ctx context.Context, dir string, ex runtime.Export) error {
	mediaType := ocispec.MediaTypeImageLayerGzip
	if x.manifest.MediaType == images.MediaTypeDockerSchema2Manifest {
		mediaType = images.MediaTypeDockerSchema2LayerGzip
	}
	var plain digest.Digester
	labels := func() map[string]string {
		return map[string]string{"containerd.io/uncompressed": plain.Digest().String()}
	}
	ref := x.key + "." + strconv.Itoa(len(x.manifest.Layers))
	desc, err := x.engine.writeBlob(ctx, ref, mediaType, labels, func(w io.Writer) error {
		plain = digest.Canonical.Digester()
		zipped, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
		if err != nil {
			return err
		}
		if err := writeLayer(ctx, io.MultiWriter(zipped, plain.Hash()), []string{dir}, nil); err != nil {
			return err
		}
		return zipped.Close()
	})
	if err != nil {
		return err
	}
	created := ex.Created.UTC()
	x.manifest.Layers = append(x.manifest.Layers, desc)
	x.rootFS.DiffIDs = append(x.rootFS.DiffIDs, plain.Digest())
	x.history = append(x.history, ocispec.History{Created: &created, CreatedBy: "remotegpu", Comment: ex.Comment})
	return nil
}

// name writes configuration and manifest and makes the reference name them.
func (x *exporting) name(ctx context.Context, ex runtime.Export) (runtime.Image, error) {
	e := x.engine
	for field, value := range map[string]any{
		"rootfs": x.rootFS, "history": x.history, "created": ex.Created.UTC().Format(time.RFC3339Nano),
	} {
		encoded, err := json.Marshal(value)
		if err != nil {
			return runtime.Image{}, fmt.Errorf("encode %s: %w", field, err)
		}
		x.config[field] = encoded
	}
	store := func(ref, mediaType string, value any) (ocispec.Descriptor, error) {
		blob, err := json.Marshal(value)
		if err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("encode: %w", err)
		}
		return e.writeBlob(ctx, x.key+"."+ref, mediaType, nil, func(w io.Writer) error {
			_, err := io.Copy(w, bytes.NewReader(blob))
			return err
		})
	}
	config, err := store("config", x.manifest.Config.MediaType, x.config)
	if err != nil {
		return runtime.Image{}, err
	}
	x.manifest.Config = config
	if x.manifest.MediaType == "" {
		x.manifest.MediaType = ocispec.MediaTypeImageManifest
	}
	target, err := store("manifest", x.manifest.MediaType, x.manifest)
	if err != nil {
		return runtime.Image{}, err
	}
	record, err := e.setImage(ctx, images.Image{Name: ex.Reference, Target: target, UpdatedAt: time.Now()})
	if err != nil {
		return runtime.Image{}, fmt.Errorf("name image %s: %w", ex.Reference, e.explain(ctx, err))
	}
	img, err := e.read(ctx, record)
	if err != nil {
		return runtime.Image{}, err
	}
	return describe(record, img), nil
}
