package runtime

import (
	"context"
	"fmt"
	"io"
)

// ImportImages stores the images of a tar archive. reference, when not "",
// names the one image of it. IMAGE_ARCHIVE_INVALID, IMAGE_PLATFORM_MISMATCH.
func (m *Manager) ImportImages(ctx context.Context, archive io.Reader, reference string) ([]ImageUse, error) {
	if reference != "" {
		name, err := normalize(reference, "reference")
		if err != nil {
			return nil, err
		}
		reference = name
	}
	images, err := m.cfg.Images.ImportImages(ctx, archive, reference)
	if err != nil {
		return nil, fmt.Errorf("import images: %w", ofReference(err))
	}
	return m.imagesWithUsers(ctx, images)
}

// ExportImages writes images as a tar archive. IMAGE_NOT_FOUND,
// IMAGE_INCOMPLETE; then nothing was written.
func (m *Manager) ExportImages(ctx context.Context, references []string, archive io.Writer) error {
	names := make([]string, 0, len(references))
	for i, reference := range references {
		name, err := normalize(reference, fmt.Sprintf("references[%d]", i))
		if err != nil {
			return err
		}
		names = append(names, name)
	}
	if err := m.cfg.Images.ExportImages(ctx, names, archive); err != nil {
		return fmt.Errorf("export images: %w", ofReference(err))
	}
	return nil
}

// TagImage gives an image another name. IMAGE_NOT_FOUND.
func (m *Manager) TagImage(ctx context.Context, reference, tag string) (ImageUse, error) {
	name, err := normalize(reference, "reference")
	if err != nil {
		return ImageUse{}, err
	}
	other, err := normalize(tag, "tag")
	if err != nil {
		return ImageUse{}, err
	}
	image, err := m.cfg.Images.Tag(ctx, name, other)
	if err != nil {
		return ImageUse{}, fmt.Errorf("tag image %s: %w", name, ofReference(err))
	}
	return m.imageWithUser(ctx, image)
}

// PinImage keeps an image from being removed, or ends that. IMAGE_NOT_FOUND.
func (m *Manager) PinImage(ctx context.Context, reference string, pinned bool) (ImageUse, error) {
	name, err := normalize(reference, "reference")
	if err != nil {
		return ImageUse{}, err
	}
	// Not while it is looked at and removed.
	release, err := m.claims.use(ctx, name)
	if err != nil {
		return ImageUse{}, err
	}
	defer release()
	image, err := m.cfg.Images.SetPinned(ctx, name, pinned)
	if err != nil {
		return ImageUse{}, fmt.Errorf("pin image %s: %w", name, ofReference(err))
	}
	return m.imageWithUser(ctx, image)
}

func (m *Manager) imageWithUser(ctx context.Context, image Image) (ImageUse, error) {
	uses, err := m.imagesWithUsers(ctx, []Image{image})
	if err != nil {
		return ImageUse{}, err
	}
	return uses[0], nil
}

// imagesWithUsers adds the environments that were made from them.
func (m *Manager) imagesWithUsers(ctx context.Context, images []Image) ([]ImageUse, error) {
	used, err := m.imageUsers(ctx)
	if err != nil {
		return nil, err
	}
	uses := make([]ImageUse, 0, len(images))
	for _, image := range images {
		uses = append(uses, ImageUse{Image: image, UsedBy: idsOf(used.of(image))})
	}
	return uses, nil
}
