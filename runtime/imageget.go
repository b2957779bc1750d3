package runtime

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// ImageInfo is an image with all there is to tell about it.
type ImageInfo struct {
	ImageUse
	Details    ImageDetails
	OtherNames []string    // of the same digest, sorted
	Usage      *ImageUsage // nil: it was not asked for
}

// GetImage tells all about one local image. reference is one, or a digest, or
// the beginning of a digest that no other has. Of several names of a digest it
// is the first one. usage asks for what it takes of the disk, which looks at all
// images. IMAGE_NOT_FOUND, IMAGE_REFERENCE_INVALID, IMAGE_PLATFORM_MISMATCH,
// FIELD_INVALID for the beginning of several digests.
func (m *Manager) GetImage(ctx context.Context, reference string, usage bool) (ImageInfo, error) {
	local, err := m.cfg.Images.Images(ctx)
	if err != nil {
		return ImageInfo{}, err
	}
	name, digest, err := findImage(local, reference)
	if err != nil {
		return ImageInfo{}, err
	}
	details, err := m.cfg.Images.Details(ctx, name)
	if errdefs.IsNotFound(err) || err == nil && digest != "" && details.Digest != digest { // what has that name now is another
		return ImageInfo{}, imageNotHere(name, err)
	} else if err != nil {
		return ImageInfo{}, fmt.Errorf("get image %s: %w", name, ofReference(err))
	}
	info := ImageInfo{Details: details}
	if info.ImageUse, err = m.imageWithUser(ctx, details.Image); err != nil {
		return ImageInfo{}, err
	}
	for _, other := range local {
		if other.Digest == details.Digest && other.Name != details.Name {
			info.OtherNames = append(info.OtherNames, other.Name)
		}
	}
	slices.Sort(info.OtherNames)
	if usage {
		contents, err := m.cfg.Images.Contents(ctx)
		if err != nil {
			return ImageInfo{}, err
		}
		info.Usage = &usageOf(contents, []ImageUse{info.ImageUse})[0]
	}
	return info, nil
}

// digestText is a digest or the beginning of one. It has as few digits as people
// can tell images apart by, and may be a name too unless it begins with the
// algorithm.
var digestText = regexp.MustCompile(`^(sha256:|sha512:)?[0-9a-f]{4,128}$`)

// findImage returns the name of the image that is meant, and its digest when it
// was found by that. The name need not be one of local: those leave out what is
// not whole.
func findImage(local []Image, reference string) (name, digest string, err error) {
	name, err = normalize(reference, "reference")
	match := digestText.FindStringSubmatch(reference)
	if match == nil {
		return name, "", err
	}
	algorithm := match[1]
	var found []Image
	for _, image := range local {
		if algorithm == "" && err == nil && image.Name == name {
			return name, "", nil
		}
		_, bare, _ := strings.Cut(image.Digest, ":")
		if strings.HasPrefix(image.Digest, reference) || algorithm == "" && strings.HasPrefix(bare, reference) {
			found = append(found, image)
		}
	}
	digests := make(map[string]bool)
	for _, image := range found {
		digests[image.Digest] = true
	}
	switch {
	case len(digests) > 1:
		return "", "", problem.New(problem.FieldInvalid, "the digests of %d images begin with %s", len(digests), reference).
			WithField("reference").WithHint("write more of the digest")
	case len(digests) == 1:
		first := slices.MinFunc(found, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
		return first.Name, first.Digest, nil
	case algorithm == "" && err == nil:
		return name, "", nil
	default:
		return "", "", imageNotHere(reference, nil)
	}
}
