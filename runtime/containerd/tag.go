package containerd

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/imageref"
	"github.com/remotegpu/remotegpu/runtime"
)

// The label of an image that is not to be removed, as containerd's CRI and the
// kubelet know it.
const (
	labelPinned = "io.cri-containerd.pinned"
	pinned      = "pinned"
)

// Tag makes tag name the image that ref names.
func (e *Engine) Tag(ctx context.Context, ref, tag string) (_ runtime.Image, err error) {
	record, err := e.record(ctx, ref)
	if err != nil {
		return runtime.Image{}, err
	}
	name, err := imageref.Normalize(tag)
	if err != nil {
		return runtime.Image{}, err
	}
	if err := imageref.CheckDigest(name, record.Target.Digest.String(), "tag"); err != nil {
		return runtime.Image{}, err
	}
	img, err := e.read(ctx, record)
	if err != nil {
		return runtime.Image{}, err
	}
	// ref may be removed at this moment.
	ctx, release, err := e.holdContent(ctx, record.Target.Digest.String())
	if err != nil {
		return runtime.Image{}, fmt.Errorf("tag image %s: %w", record.Name, err)
	}
	defer release(&err)
	tagged, err := e.nameImage(ctx, images.Image{Name: name, Target: record.Target})
	if err != nil {
		return runtime.Image{}, fmt.Errorf("tag image %s as %s: %w", record.Name, name, e.explain(ctx, err))
	}
	return describe(tagged, img), nil
}

// record is the record of a local image. One that is named by its digest may be
// here under a tag of the same repository.
func (e *Engine) record(ctx context.Context, ref string) (images.Image, error) {
	name, err := imageref.Normalize(ref)
	if err != nil {
		return images.Image{}, err
	}
	record, err := e.client.ImageService().Get(ctx, name)
	if errdefs.IsNotFound(err) {
		tagged, listErr := e.byDigest(ctx, name)
		if listErr != nil || tagged == nil {
			return images.Image{}, errors.Join(imageNotFound(name).WithCause(err), listErr)
		}
		return *tagged, nil
	} else if err != nil {
		return images.Image{}, fmt.Errorf("get image %s: %w", name, e.explain(ctx, err))
	}
	return record, nil
}

// byDigest finds an image that a full reference names by its digest under any tag
// of its repository, nil when there is none.
func (e *Engine) byDigest(ctx context.Context, name string) (*images.Image, error) {
	repository, digest, ok := imageref.Digested(name)
	if !ok {
		return nil, nil //nolint:nilnil // absence is an answer here
	}
	records, err := e.client.ImageService().List(ctx, fmt.Sprintf("target.digest==%q", digest))
	if err != nil {
		return nil, fmt.Errorf("list images: %w", e.explain(ctx, err))
	}
	for i := range records {
		if imageref.Repository(records[i].Name) == repository {
			return &records[i], nil
		}
	}
	return nil, nil //nolint:nilnil // absence is an answer here
}

// nameImage makes a reference name a target, whatever it named before, and
// leaves its labels. Nobody removes it at this moment for what it was. The end of
// ctx ends the wait for that, and does not break off what is then done.
func (e *Engine) nameImage(ctx context.Context, record images.Image) (images.Image, error) {
	unlock, err := e.naming.Lock(ctx, record.Name)
	if err != nil {
		return images.Image{}, err
	}
	defer unlock()
	naming, done := uninterrupted(ctx)
	defer done()
	for {
		made, err := e.client.ImageService().Create(naming, record)
		if !errdefs.IsAlreadyExists(err) {
			return made, err
		}
		made, err = e.client.ImageService().Update(naming, record, "target")
		if !errdefs.IsNotFound(err) { // it was removed in between
			return made, err
		}
		if ctx.Err() != nil {
			return images.Image{}, context.Cause(ctx)
		}
	}
}

// setImage is nameImage for a target that was just made: content that it
// reaches gets its garbage collection labels.
func (e *Engine) setImage(ctx context.Context, record images.Image) (images.Image, error) {
	handler := images.SetChildrenMappedLabels(e.client.ContentStore(), images.ChildrenHandler(e.client.ContentStore()), nil)
	if err := images.Dispatch(ctx, handler, nil, record.Target); err != nil {
		return images.Image{}, err
	}
	return e.nameImage(ctx, record)
}

// SetPinned sets or removes the label of what is not to be removed.
func (e *Engine) SetPinned(ctx context.Context, ref string, pin bool) (runtime.Image, error) {
	name, err := imageref.Normalize(ref)
	if err != nil {
		return runtime.Image{}, err
	}
	record, err := e.client.ImageService().Get(ctx, name)
	if errdefs.IsNotFound(err) {
		return runtime.Image{}, imageNotFound(name).WithCause(err)
	} else if err != nil {
		return runtime.Image{}, fmt.Errorf("get image %s: %w", name, e.explain(ctx, err))
	}
	img, err := e.read(ctx, record)
	switch {
	case err != nil && pin:
		return runtime.Image{}, err
	case err != nil: // what cannot be read can be let go
		img = new(image)
	}
	change := images.Image{Name: name, Labels: map[string]string{}}
	if pin {
		change.Labels[labelPinned] = pinned
	}
	record, err = e.client.ImageService().Update(ctx, change, "labels."+labelPinned)
	if errdefs.IsNotFound(err) {
		return runtime.Image{}, imageNotFound(name).WithCause(err)
	} else if err != nil {
		return runtime.Image{}, fmt.Errorf("pin image %s: %w", name, e.explain(ctx, err))
	}
	return describe(record, img), nil
}

func isPinned(record images.Image) bool { return record.Labels[labelPinned] == pinned }
