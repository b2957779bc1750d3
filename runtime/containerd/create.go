package containerd

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

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
	Parent string              `json:"parent"`
	Config ocispec.ImageConfig `json:"config"`
}

// Create prepares the writable layer and the container record.
func (e *Engine) Create(ctx context.Context, c runtime.Container) error {
	record, img, err := e.lookUp(ctx, c.Image)
	if err != nil {
		return fmt.Errorf("create container %s: %w", c.ID, err)
	}
	name := userName(&c, &img.config)
	user, known := e.cachedUser(userKey{img.parent, name})
	spec, err := e.render(ctx, &c, &img.config, user)
	if err != nil {
		return fmt.Errorf("create container %s: %w", c.ID, err)
	}
	own, err := e.newRecord(&c, img, spec)
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
	mounts, err := e.fill(ctx, &c, &own, record, img, spec, known)
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
	e.fresh[c.ID] = freshSnapshot{container: c, mounts: mounts}
	return nil
}

// fill makes what a record stands for: snapshot, user, log file.
func (e *Engine) fill(ctx context.Context, c *runtime.Container, own *containers.Container, record images.Image, img *image,
	spec *specs.Spec, known bool,
) ([]mount.Mount, error) {
	mounts, err := e.prepare(ctx, c.ID, record, img)
	if err != nil {
		return nil, err
	}
	if !known {
		name := userName(c, &img.config)
		user, err := userOfSnapshot(mounts, name)
		if err != nil {
			return nil, err
		}
		e.cacheUser(userKey{img.parent, name}, user)
		spec.Process.User = user
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

// prepare makes the writable layer on the image's.
func (e *Engine) prepare(ctx context.Context, id string, record images.Image, img *image) ([]mount.Mount, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	whole, done := uninterrupted(ctx)
	defer done()
	mounts, err := e.snapshots.Prepare(whole, id, img.parent)
	if errdefs.IsAlreadyExists(err) {
		// We have the record, so this is what a crash has left of a container
		// whose record went first.
		if err := e.snapshots.Remove(whole, id); err != nil {
			return nil, fmt.Errorf("remove stale snapshot: %w", e.explain(ctx, err))
		}
		mounts, err = e.snapshots.Prepare(whole, id, img.parent)
	}
	if errdefs.IsNotFound(err) {
		if err := e.unpack(ctx, record); err != nil {
			return nil, err
		}
		mounts, err = e.snapshots.Prepare(whole, id, img.parent)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot: %w", e.explain(ctx, err))
	}
	return mounts, nil
}

func (e *Engine) newRecord(c *runtime.Container, img *image, spec *specs.Spec) (containers.Container, error) {
	encoded, err := typeurl.MarshalAny(spec)
	if err != nil {
		return containers.Container{}, fmt.Errorf("encode spec: %w", err)
	}
	config, err := json.Marshal(extension{Parent: img.parent, Config: img.config})
	if err != nil {
		return containers.Container{}, fmt.Errorf("encode image configuration: %w", err)
	}
	record := containers.Container{
		ID: c.ID, Labels: labels(c), Image: c.Image, Spec: encoded, SnapshotKey: c.ID, Snapshotter: e.cfg.Snapshotter,
		Runtime:    containers.RuntimeInfo{Name: runtimeName},
		Extensions: map[string]typeurl.Any{extensionImage: &anypb.Any{TypeUrl: extensionImage, Value: config}},
	}
	record.Labels[labelMade] = rand.Text()
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
