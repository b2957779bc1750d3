package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remotegpu/remotegpu/internal/imageref"
	"github.com/remotegpu/remotegpu/runtime"
)

// Import reads a tar archive of one image (an OCI image layout, or what "docker
// save" writes), makes ref name it in place of what ref named before, and
// unpacks it. An archive of several images is InvalidArgument and names none.
func (e *Engine) Import(ctx context.Context, layout io.Reader, ref string) (_ runtime.Image, err error) {
	name, err := imageref.Normalize(ref)
	if err != nil {
		return runtime.Image{}, err
	}
	ctx = e.namespaced(ctx)
	// The content is held by a lease until the image record names it.
	ctx, release, err := e.lease(ctx)
	if err != nil {
		return runtime.Image{}, fmt.Errorf("import image %s: %w", name, e.explain(ctx, err))
	}
	defer func() {
		undo, cancel := afterwards(ctx)
		defer cancel()
		err = errors.Join(err, release(undo))
	}()
	index, err := archive.ImportIndex(ctx, e.client.ContentStore(), layout)
	if err != nil {
		return runtime.Image{}, fmt.Errorf("import image %s: %w", name, e.explain(ctx, err))
	}
	blob, err := content.ReadBlob(ctx, e.client.ContentStore(), index)
	if err != nil {
		return runtime.Image{}, fmt.Errorf("import image %s: %w", name, e.explain(ctx, err))
	}
	var layoutIndex ocispec.Index
	if err := json.Unmarshal(blob, &layoutIndex); err != nil {
		return runtime.Image{}, fmt.Errorf("import image %s: %w", name, err)
	}
	if len(layoutIndex.Manifests) != 1 {
		return runtime.Image{}, fmt.Errorf("import image %s: %w", name, errManyImages)
	}
	record, err := e.setImage(ctx, images.Image{Name: name, Target: layoutIndex.Manifests[0], UpdatedAt: time.Now()})
	if err != nil {
		return runtime.Image{}, fmt.Errorf("import image %s: %w", name, e.explain(ctx, err))
	}
	img, err := e.read(ctx, record)
	if err != nil {
		return runtime.Image{}, err
	}
	if err := client.NewImageWithPlatform(e.client, record, platforms.Default()).Unpack(ctx, e.cfg.Snapshotter); err != nil {
		return runtime.Image{}, fmt.Errorf("unpack image %s: %w", name, e.explain(ctx, err))
	}
	return describe(record, img), nil
}

// errManyImages refuses an archive that does not hold exactly one image.
var errManyImages = fmt.Errorf("the archive does not hold exactly one image: %w", errdefs.ErrInvalidArgument)

// setImage makes a reference name a target, whatever it named before. Content
// that the target reaches gets its garbage collection labels.
func (e *Engine) setImage(ctx context.Context, record images.Image) (images.Image, error) {
	handler := images.SetChildrenMappedLabels(e.client.ContentStore(), images.ChildrenHandler(e.client.ContentStore()), nil)
	if err := images.Dispatch(ctx, handler, nil, record.Target); err != nil {
		return images.Image{}, err
	}
	made, err := e.client.ImageService().Create(ctx, record)
	if errdefs.IsAlreadyExists(err) {
		return e.client.ImageService().Update(ctx, record, "target")
	}
	return made, err
}
