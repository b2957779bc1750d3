package containerd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remotegpu/remotegpu/internal/imageref"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// image is what a digest stands for. Content is addressed by its hash, so this
// never changes and is kept.
type image struct {
	config   ocispec.ImageConfig
	platform ocispec.Platform
	chain    []string // chain ids of its layers, lowest first: the names of their snapshots
	parent   string   // the last of them: the snapshot that containers are made on
	manifest string   // digest of the one for this platform
	size     int64    // of its layers as stored
	flaw     string   // why nothing can be made from it, ""
}

// imageCache bounds the number of images that are kept in memory.
const imageCache = 256

// lookUp finds a local image by reference, for containers to be made from.
func (e *Engine) lookUp(ctx context.Context, ref string) (images.Image, *image, error) {
	record, err := e.record(ctx, ref)
	if err != nil {
		return images.Image{}, nil, err
	}
	img, err := e.read(ctx, record)
	if err == nil {
		err = checkUsable(record.Name, img)
	}
	return record, img, err
}

func imageNotFound(name string) *problem.Problem {
	return problem.New(problem.ImageNotFound, "image %s is not on this node", name).WithField("spec.image").
		WithHint("pull or build it, or see what is there with: remotegpu image ls")
}

func (e *Engine) read(ctx context.Context, record images.Image) (*image, error) {
	key := record.Target.Digest.String()
	e.mu.Lock()
	img := e.images[key]
	e.mu.Unlock()
	if img != nil {
		return img, nil
	}
	manifest, manifestDigest, config, err := e.load(ctx, record)
	if err != nil {
		return nil, err
	}
	img = newImage(&manifest, manifestDigest, &config)
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.images) >= imageCache {
		clear(e.images)
	}
	e.images[key] = img
	return img, nil
}

// load reads the manifest of an image for this platform, its digest as
// manifestOf says it, and its configuration. IMAGE_PLATFORM_MISMATCH,
// IMAGE_INVALID.
func (e *Engine) load(ctx context.Context, record images.Image) (manifest ocispec.Manifest, digest string, config ocispec.Image, err error) {
	store := e.client.ContentStore()
	manifest, digest, err = manifestOf(ctx, store, record.Target)
	if errdefs.IsNotFound(err) {
		return manifest, "", config, problem.New(problem.ImagePlatform, "image %s is not for %s", record.Name, platforms.DefaultString()).
			WithField("spec.image").WithHint("pull or build it for this platform").WithTold(err)
	} else if unreadable(err) {
		return manifest, "", config, invalidImage(record.Name, "its manifest cannot be read").WithCause(err)
	} else if err != nil {
		return manifest, "", config, fmt.Errorf("read manifest of image %s: %w", record.Name, e.explain(ctx, err))
	}
	blob, err := content.ReadBlob(ctx, store, manifest.Config)
	if err != nil {
		return manifest, "", config, fmt.Errorf("read configuration of image %s: %w", record.Name, e.explain(ctx, err))
	}
	if err := json.Unmarshal(blob, &config); err != nil {
		return manifest, "", config, invalidImage(record.Name, "its configuration cannot be read").WithCause(err)
	}
	return manifest, digest, config, nil
}

// unreadable says whether an error is of what content says, and not of getting
// at it: the kinds of errors are containerd's, and those of decoding have none.
func unreadable(err error) bool {
	return err != nil && !errdefs.IsUnknown(err) && errors.Is(errdefs.Resolve(err), errdefs.ErrUnknown)
}

func invalidImage(name, why string) *problem.Problem {
	return problem.New(problem.ImageInvalid, "image %s is not valid: %s", name, why).WithField("spec.image").
		WithHint("use another image, or have it built and pushed anew")
}

func newImage(manifest *ocispec.Manifest, manifestDigest string, config *ocispec.Image) *image {
	img := &image{
		config: config.Config, platform: config.Platform, parent: identity.ChainID(config.RootFS.DiffIDs).String(), manifest: manifestDigest,
		flaw: flawOf(manifest, config),
	}
	for _, id := range identity.ChainIDs(slices.Clone(config.RootFS.DiffIDs)) {
		img.chain = append(img.chain, id.String())
	}
	for _, layer := range manifest.Layers {
		img.size += layer.Size
	}
	return img
}

// flawOf says why an image that can be read is of no use, as an artifact is that
// is no image of a root filesystem; "" when it is.
func flawOf(manifest *ocispec.Manifest, config *ocispec.Image) string {
	if kind := manifest.Config.MediaType; !images.IsConfigType(kind) && kind != docker.LegacyConfigMediaType {
		return fmt.Sprintf("it is no image of a root filesystem but of type %q", kind)
	}
	layers := 0
	for _, layer := range manifest.Layers {
		if images.IsLayerType(layer.MediaType) {
			layers++
		}
	}
	if names := len(config.RootFS.DiffIDs); names != layers {
		return fmt.Sprintf("its manifest has %d layers and its configuration %d", layers, names)
	}
	return ""
}

// manifestOf finds the manifest for this platform, and its digest; "" where it
// is in an index of indexes.
func manifestOf(ctx context.Context, store content.Store, target ocispec.Descriptor) (ocispec.Manifest, string, error) {
	manifest, err := images.Manifest(ctx, store, target, platforms.Default())
	if err != nil || images.IsManifestType(target.MediaType) {
		return manifest, target.Digest.String(), err
	}
	children, err := images.Children(ctx, store, target)
	if err != nil {
		return manifest, "", err
	}
	for _, child := range children {
		if !images.IsManifestType(child.MediaType) {
			continue
		}
		blob, err := content.ReadBlob(ctx, store, child)
		if err != nil {
			continue // of another platform, and not here
		}
		var other ocispec.Manifest
		if json.Unmarshal(blob, &other) == nil && other.Config.Digest == manifest.Config.Digest {
			return manifest, child.Digest.String(), nil
		}
	}
	return manifest, "", nil
}

// unpack makes the snapshots of an image's layers, where they are missing. The
// lease is one of ours: containerd's client would take one that a call which is
// cut off leaves for a day, and of which nobody knows whose it is.
func (e *Engine) unpack(ctx context.Context, record images.Image) (err error) {
	ctx, release, err := e.holdContent(ctx, record.Target.Digest.String())
	if err != nil {
		return fmt.Errorf("unpack image %s: %w", record.Name, err)
	}
	defer release(&err)
	if err := client.NewImage(e.client, record).Unpack(ctx, e.cfg.Snapshotter); err != nil {
		return fmt.Errorf("unpack image %s: %w", record.Name, e.explain(ctx, err))
	}
	return nil
}

// Image tells about a local image.
func (e *Engine) Image(ctx context.Context, ref string) (runtime.Image, error) {
	record, img, err := e.lookUp(ctx, ref)
	if err != nil {
		return runtime.Image{}, err
	}
	return describe(record, img), nil
}

// Images tells about all local images, by name. Names that only say a digest,
// as containerd's CRI keeps them, are left out; so is an image that somebody
// else brought whose content is not all here or cannot be read.
func (e *Engine) Images(ctx context.Context) ([]runtime.Image, error) {
	records, err := e.client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", e.explain(ctx, err))
	}
	var all []runtime.Image
	for _, record := range records {
		if _, err := digest.Parse(record.Name); err == nil {
			continue
		}
		img, err := e.read(ctx, record)
		if errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
			e.cfg.Log.DebugContext(ctx, "image left out of list", "image", record.Name, "error", err)
			continue
		} else if err != nil {
			return nil, err
		}
		all = append(all, describe(record, img))
	}
	return all, nil
}

func describe(record images.Image, img *image) runtime.Image {
	return runtime.Image{
		Name: record.Name, Digest: record.Target.Digest.String(), Labels: img.config.Labels, Size: img.size,
		Platform: platforms.Format(img.platform), Pinned: isPinned(record), UpdatedAt: updatedAt(record),
	}
}

func updatedAt(record images.Image) time.Time {
	return record.UpdatedAt.UTC().Truncate(time.Millisecond)
}

// DeleteImage removes a reference and waits until layers that nothing else
// needs are collected. NotFound (IMAGE_NOT_FOUND).
func (e *Engine) DeleteImage(ctx context.Context, ref string) error {
	name, err := imageref.Normalize(ref)
	if err != nil {
		return err
	}
	return e.deleteImage(ctx, name)
}

func (e *Engine) deleteImage(ctx context.Context, name string, more ...images.DeleteOpt) error {
	err := e.client.ImageService().Delete(ctx, name, append(more, images.SynchronousDelete())...)
	if errdefs.IsNotFound(err) {
		return imageNotFound(name).WithCause(err)
	} else if err != nil {
		return fmt.Errorf("delete image %s: %w", name, e.explain(ctx, err))
	}
	return nil
}

// RemoveImage is DeleteImage of an image as it was looked at. Nobody here names
// one meanwhile, and of others containerd heeds what the name means when it is
// removed; containerd 1.6 does not.
func (e *Engine) RemoveImage(ctx context.Context, image runtime.Image) error {
	unlock, err := e.naming.Lock(ctx, image.Name)
	if err != nil {
		return fmt.Errorf("delete image %s: %w", image.Name, err)
	}
	defer unlock()
	changed := func() (images.Image, error) {
		record, err := e.client.ImageService().Get(ctx, image.Name)
		switch {
		case errdefs.IsNotFound(err):
			return record, imageNotFound(image.Name).WithCause(err)
		case err != nil:
			return record, fmt.Errorf("get image %s: %w", image.Name, e.explain(ctx, err))
		case record.Target.Digest.String() != image.Digest || !updatedAt(record).Equal(image.UpdatedAt):
			return record, runtime.ImageChanged(image.Name)
		}
		return record, nil
	}
	record, err := changed()
	if err != nil {
		return err
	}
	err = e.deleteImage(ctx, image.Name, images.DeleteTarget(&record.Target))
	if errdefs.IsNotFound(err) { // also when the name means another image
		_, since := changed()
		return cmp.Or(since, err)
	}
	return err
}
