package containerd

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/remotegpu/remotegpu/runtime"
)

// extensionImage is the image's configuration in the container record, so that
// a container can be started when its image's name means another one by then,
// or none.
const extensionImage = "remotegpu.dev/image-config"

// extension is what is kept there.
type extension struct {
	Parent   string              `json:"parent"`             // the snapshot of the image's layers
	Manifest string              `json:"manifest,omitempty"` // digest of the one for this platform
	Digest   string              `json:"digest,omitempty"`   // of what the reference named
	Config   ocispec.ImageConfig `json:"config"`
}

// Create prepares the writable layer and the container record.
func (e *Engine) Create(ctx context.Context, c runtime.Container) error {
	from, err := e.origin(ctx, &c)
	if err != nil {
		return fmt.Errorf("create container %s: %w", c.ID, err)
	}
	name := userName(&c, &from.image.Config)
	user, known := e.cachedUser(userKey{from.parent, name})
	spec, err := e.render(ctx, &c, &from.image.Config, user)
	if err != nil {
		return fmt.Errorf("create container %s: %w", c.ID, err)
	}
	own, err := e.newRecord(&c, from, spec)
	if err != nil {
		return fmt.Errorf("create container %s: %w", c.ID, err)
	}
	whole, done := uninterrupted(ctx)
	defer done()
	if _, err := e.store.Create(whole, own); err != nil {
		err = e.explain(ctx, err)
		if !errdefs.IsAlreadyExists(err) {
			err = errors.Join(err, e.forgetOwn(ctx, &own)) // the answer was lost, perhaps not the record
		}
		return fmt.Errorf("create container %s: %w", c.ID, err)
	}
	mounts, err := e.fill(ctx, &c, &own, from, known)
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		undo, cancel := afterwards(ctx)
		defer cancel()
		return fmt.Errorf("create container %s: %w", c.ID, errors.Join(err, e.Delete(undo, c.ID)))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c.Snapshot, c.Base, c.Digest = "", nil, "" // of no concern to a start
	e.fresh[c.ID] = freshSnapshot{container: c, mounts: mounts}
	return nil
}

// origin is what a container is made from.
type origin struct {
	parent string        // name of the snapshot below its writable layer
	record *images.Image // nil: the parent is a snapshot of ours
	image  extension
}

// origin finds the image or the snapshot that a container is made from.
func (e *Engine) origin(ctx context.Context, c *runtime.Container) (origin, error) {
	if c.Snapshot != "" {
		from := origin{parent: snapshotKey(c.Snapshot)}
		if err := json.Unmarshal(c.Base, &from.image); err != nil {
			return origin{}, fmt.Errorf("read image configuration of snapshot %s: %w", c.Snapshot, err)
		}
		return from, nil
	}
	record, img, err := e.lookUp(ctx, c.Image)
	if err != nil {
		return origin{}, err
	}
	if c.Digest != "" && c.Digest != record.Target.Digest.String() {
		return origin{}, runtime.ImageChanged(record.Name)
	}
	return origin{parent: img.parent, record: &record, image: extension{
		Parent: img.parent, Manifest: img.manifest, Digest: record.Target.Digest.String(), Config: img.config,
	}}, nil
}

// fill makes what a record stands for: snapshot, user, log file.
func (e *Engine) fill(ctx context.Context, c *runtime.Container, own *containers.Container, from origin, known bool) ([]mount.Mount, error) {
	mounts, err := e.prepare(ctx, c, from)
	if err == nil && c.Resources.DiskBytes > 0 {
		err = e.limitDisk(ctx, mounts, c.Resources.DiskBytes) // before anything is mounted or written
	}
	if err != nil {
		return nil, err
	}
	if !known {
		name := userName(c, &from.image.Config)
		user, err := userOfSnapshot(mounts, name)
		if err != nil {
			return nil, err
		}
		e.cacheUser(userKey{from.parent, name}, user)
		spec, err := e.render(ctx, c, &from.image.Config, user)
		if err != nil {
			return nil, err
		}
		if own.Spec, err = typeurl.MarshalAny(spec); err != nil {
			return nil, fmt.Errorf("encode spec: %w", err)
		}
		whole, done := uninterrupted(ctx)
		defer done()
		if _, err := e.store.Update(whole, *own, "spec"); err != nil {
			return nil, fmt.Errorf("update record: %w", e.explain(ctx, err))
		}
	}
	return mounts, makeLog(c.LogPath)
}

// prepare makes the writable layer on the image's, or on a snapshot.
func (e *Engine) prepare(ctx context.Context, c *runtime.Container, from origin) ([]mount.Mount, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if from.record == nil {
		return e.prepareClone(ctx, c, from)
	}
	whole, done := uninterrupted(ctx)
	defer done()
	id := c.ID
	mounts, err := e.snapshots.Prepare(whole, id, from.parent)
	if errdefs.IsAlreadyExists(err) {
		// We have the record, so this is what a crash has left of a container
		// whose record went first.
		if err := e.snapshots.Remove(whole, id); err != nil {
			return nil, fmt.Errorf("remove stale snapshot: %w", e.explain(ctx, err))
		}
		mounts, err = e.snapshots.Prepare(whole, id, from.parent)
	}
	if errdefs.IsNotFound(err) {
		if err := e.unpack(ctx, *from.record); err != nil {
			return nil, err
		}
		mounts, err = e.snapshots.Prepare(whole, id, from.parent)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot: %w", e.explain(ctx, err))
	}
	return mounts, nil
}

// prepareClone makes the writable layer of a container on a snapshot.
func (e *Engine) prepareClone(ctx context.Context, c *runtime.Container, from origin) ([]mount.Mount, error) {
	unlock, err := e.building.both(ctx, c.Snapshot, c.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	ctx, done := uninterrupted(ctx)
	defer done()
	if err := e.snapshots.Remove(ctx, c.ID); err != nil && !errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("remove stale snapshot: %w", e.explain(ctx, err))
	}
	mounts, err := e.prepareOn(ctx, &containers.Container{ID: c.ID}, from.parent)
	if errdefs.IsNotFound(err) {
		return nil, snapshotNotFound(c.Snapshot).WithCause(err)
	} else if err != nil {
		return nil, fmt.Errorf("prepare snapshot: %w", e.explain(ctx, err))
	}
	return mounts, nil
}

func (e *Engine) newRecord(c *runtime.Container, from origin, spec *specs.Spec) (containers.Container, error) {
	encoded, err := typeurl.MarshalAny(spec)
	if err != nil {
		return containers.Container{}, fmt.Errorf("encode spec: %w", err)
	}
	config, err := json.Marshal(from.image)
	if err != nil {
		return containers.Container{}, fmt.Errorf("encode image configuration: %w", err)
	}
	record := containers.Container{
		ID: c.ID, Labels: labels(c), Image: c.Image, Spec: encoded, SnapshotKey: c.ID, Snapshotter: e.cfg.Snapshotter,
		Runtime:    containers.RuntimeInfo{Name: runtimeName},
		Extensions: map[string]typeurl.Any{extensionImage: &anypb.Any{TypeUrl: extensionImage, Value: config}},
	}
	record.Labels[labelMade] = rand.Text()
	if from.image.Manifest != "" {
		record.Labels[labelContent] = from.image.Manifest
	}
	if from.record == nil {
		record.Labels[labelLayer] = from.parent
	}
	if e.cfg.RuntimeBinary != "" {
		if record.Runtime.Options, err = typeurl.MarshalAny(&options.Options{BinaryName: e.cfg.RuntimeBinary}); err != nil {
			return containers.Container{}, fmt.Errorf("encode runtime options: %w", err)
		}
	}
	return record, nil
}

func labels(c *runtime.Container) map[string]string {
	all := maps.Clone(c.Labels)
	if all == nil {
		all = make(map[string]string)
	}
	all[LabelEnvironment] = c.ID
	if c.LogPath != "" {
		all[labelLog] = c.LogPath
	}
	if c.Resources.DiskBytes > 0 {
		all[labelDisk] = strconv.FormatInt(c.Resources.DiskBytes, 10)
	}
	if len(c.GPUMemory) > 0 {
		all[labelGPUMemory] = limitedGPUs(c)
	}
	return all
}

func userName(c *runtime.Container, config *ocispec.ImageConfig) string {
	if c.User != "" {
		return c.User
	}
	return config.User
}

// forgetOwn removes a record if it is the very one that was to be written.
func (e *Engine) forgetOwn(ctx context.Context, own *containers.Container) error {
	undo, cancel := afterwards(ctx)
	defer cancel()
	found, err := e.store.Get(undo, own.ID)
	if err != nil || found.Labels[labelMade] != own.Labels[labelMade] {
		return nil // absent, another's, or containerd is away: Delete is the caller's next step
	}
	return e.Delete(undo, own.ID)
}
