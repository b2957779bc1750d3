package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remotegpu/remotegpu/internal/cleanup"
	"github.com/remotegpu/remotegpu/internal/imageref"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// Import is ImportImages of an archive of one image that shall be called ref.
func (e *Engine) Import(ctx context.Context, layout io.Reader, ref string) (runtime.Image, error) {
	if ref == "" {
		return runtime.Image{}, fmt.Errorf("import image: no name: %w", errdefs.ErrInvalidArgument)
	}
	imported, err := e.ImportImages(ctx, layout, ref)
	if err != nil {
		return runtime.Image{}, err
	}
	return imported[0], nil
}

// ImportImages reads a tar archive (an OCI image layout, or what "docker save"
// writes; compressed or not), stores and unpacks its images and names them. Of
// an image for several platforms it takes the node's.
func (e *Engine) ImportImages(ctx context.Context, layout io.Reader, ref string) (_ []runtime.Image, err error) {
	if ref != "" {
		if ref, err = imageref.Normalize(ref); err != nil {
			return nil, err
		}
	}
	lease := newLease()
	ctx, release, err := e.takeLease(ctx, lease, "")
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	defer release(&err)
	manifests, err := e.storeArchive(ctx, layout, lease)
	if err != nil {
		return nil, err
	}
	targets, err := namedTargets(manifests, ref)
	if err != nil {
		return nil, err
	}
	var records []images.Image
	accepted := make(map[string]*image)
	for _, name := range slices.Sorted(maps.Keys(targets)) {
		record := images.Image{Name: name, Target: targets[name]}
		if err := imageref.CheckDigest(name, record.Target.Digest.String(), "reference"); err != nil {
			return nil, err
		}
		if accepted[name], err = e.accept(ctx, record); err != nil {
			return nil, err
		}
		records = append(records, record)
	}
	if records, err = e.nameAll(ctx, records, lease); err != nil {
		return nil, err
	}
	imported := make([]runtime.Image, 0, len(records))
	for _, record := range records {
		imported = append(imported, describe(record, accepted[record.Name]))
	}
	return imported, nil
}

// storeArchive puts the content of an archive into the store and returns what
// its index names.
func (e *Engine) storeArchive(ctx context.Context, layout io.Reader, unique string) (_ []ocispec.Descriptor, err error) {
	source := &archiveSource{Reader: layout}
	store := ownIngests{e.client.ContentStore(), unique + "-"}
	defer func() {
		if err != nil {
			undo, cancel := afterwards(ctx)
			defer cancel()
			err = errors.Join(err, store.abort(undo))
		}
	}()
	fail := func(err error) error {
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("import images: %w: %w", context.Cause(ctx), err)
		case source.err != nil:
			return fmt.Errorf("read archive: %w", source.err)
		case errdefs.IsUnavailable(err), errdefs.IsUnknown(err), errdefs.IsInternal(err), errdefs.IsDeadlineExceeded(err): // of containerd
			return fmt.Errorf("store archive: %w", e.explain(ctx, err))
		default:
			return invalidArchive("the archive is not one of images").WithCause(err)
		}
	}
	plain, err := compression.DecompressStream(source)
	if err != nil {
		return nil, fail(err)
	}
	defer plain.Close() //nolint:errcheck // it only reads
	target, err := archive.ImportIndex(ctx, store, plain)
	if err != nil {
		return nil, fail(err)
	}
	// What follows the archive belongs to it, and whoever sends it waits.
	if _, err := io.Copy(io.Discard, source); err != nil {
		return nil, fail(err)
	}
	text, err := content.ReadBlob(ctx, store, target)
	if err != nil {
		return nil, fail(err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(text, &index); err != nil {
		return nil, fail(err)
	}
	return index.Manifests, nil
}

func invalidArchive(format string, args ...any) *problem.Problem {
	return problem.New(problem.ImageArchiveInvalid, format, args...).
		WithHint("give an OCI image layout as a tar archive, or what docker save writes, whole")
}

// archiveSource remembers why an archive could not be read.
type archiveSource struct {
	io.Reader
	err error
}

// Read implements io.Reader.
func (s *archiveSource) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// ownIngests gives the ingests of one import names of its own: those of
// archives are file names, which another import has too.
type ownIngests struct {
	content.Store
	prefix string
}

// Writer implements content.Ingester.
func (s ownIngests) Writer(ctx context.Context, options ...content.WriterOpt) (content.Writer, error) {
	var wanted content.WriterOpts
	for _, option := range options {
		if err := option(&wanted); err != nil {
			return nil, err
		}
	}
	return s.Store.Writer(ctx, append(options, content.WithRef(s.prefix+wanted.Ref))...)
}

// abort removes what was not written to its end.
func (s ownIngests) abort(ctx context.Context) error {
	statuses, err := s.ListStatuses(ctx, fmt.Sprintf("ref~=%q", "^"+s.prefix))
	errs := []error{err}
	for _, status := range statuses {
		if err := s.Abort(ctx, status.Ref); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// namedTargets are the images of an archive by full reference.
func namedTargets(manifests []ocispec.Descriptor, ref string) (map[string]ocispec.Descriptor, error) {
	targets := make(map[string]ocispec.Descriptor)
	digests := make(map[string]bool)
	for _, desc := range manifests {
		if !images.IsManifestType(desc.MediaType) && !images.IsIndexType(desc.MediaType) || desc.Annotations[images.AnnotationManifestSubject] != "" {
			continue // signatures and the like
		}
		name := ref
		if name == "" {
			var err error
			if name, err = archivedName(desc.Annotations); err != nil {
				return nil, err
			}
		}
		desc.Annotations = nil // they are of the archive
		digests[desc.Digest.String()] = true
		if other, named := targets[name]; named && other.Digest != desc.Digest && ref == "" {
			return nil, invalidArchive("the archive has two images called %s", name)
		}
		targets[name] = desc
	}
	switch {
	case len(targets) == 0:
		return nil, invalidArchive("the archive has no image")
	case ref != "" && len(digests) > 1:
		return nil, invalidArchive("the archive has %d images, not exactly one", len(digests)).WithField("reference").
			WithHint("leave the name out to import all by the names they have")
	}
	return targets, nil
}

// archivedName is the full reference that an archive gives an image. An OCI
// layout may have only a tag, which names nothing.
func archivedName(annotations map[string]string) (string, error) {
	name := annotations[images.AnnotationImageName]
	if ref := annotations[ocispec.AnnotationRefName]; name == "" && isReference(ref) {
		name = ref
	}
	if name == "" {
		return "", invalidArchive("the archive does not name its image").WithField("reference").WithHint("name it yourself")
	}
	full, err := imageref.Normalize(name)
	if err != nil {
		return "", invalidArchive("the archive calls its image %q", name).WithField("reference").WithHint("name it yourself").WithCause(err)
	}
	return full, nil
}

// accept checks an image whose content is in the store, has it kept as long as
// something names it, and unpacks it.
func (e *Engine) accept(ctx context.Context, record images.Image) (*image, error) {
	store := e.client.ContentStore()
	ours, err := e.ours(ctx, record.Target)
	if errdefs.IsNotFound(err) {
		return nil, invalidArchive("the archive lacks %s of image %s", record.Target.Digest, record.Name).WithCause(err)
	} else if unreadable(err) {
		return nil, invalidImage(record.Name, "its index cannot be read").WithCause(err)
	} else if err != nil {
		return nil, fmt.Errorf("read imported image %s: %w", record.Name, e.explain(ctx, err))
	}
	if ours == nil {
		return nil, mismatch(record.Name, nil)
	}
	missing, err := e.keep(ctx, *ours)
	if unreadable(err) {
		return nil, invalidImage(record.Name, "its manifest cannot be read").WithCause(err)
	} else if err != nil {
		return nil, fmt.Errorf("read imported image %s: %w", record.Name, e.explain(ctx, err))
	}
	if len(missing) > 0 {
		return nil, invalidArchive("the archive lacks %s of image %s", missing[0].Digest, record.Name)
	}
	img, err := e.read(ctx, record)
	if err != nil {
		return nil, err
	}
	if err := checkUsable(record.Name, img); err != nil {
		return nil, err
	}
	children := images.FilterPlatforms(images.ChildrenHandler(store), platforms.Default())
	if err := images.Dispatch(ctx, images.SetChildrenMappedLabels(store, children, nil), nil, record.Target); err != nil {
		return nil, fmt.Errorf("label imported image %s: %w", record.Name, e.explain(ctx, err))
	}
	if err := client.NewImageWithPlatform(e.client, record, platforms.Default()).Unpack(ctx, e.cfg.Snapshotter); err != nil {
		return nil, fmt.Errorf("unpack image %s: %w", record.Name, e.explain(ctx, err))
	}
	return img, nil
}

// keep puts what a target consists of under the lease of ctx and returns what is
// missing. containerd does so by itself only with what was not there before: the
// rest goes when the image that has it is removed.
func (e *Engine) keep(ctx context.Context, target ocispec.Descriptor) (missing []ocispec.Descriptor, err error) {
	here, _, err := e.blobs(ctx, target)
	if err != nil {
		return nil, err
	}
	lease, _ := leases.FromContext(ctx)
	for _, desc := range here {
		resource := leases.Resource{ID: desc.Digest.String(), Type: "content"}
		if err := e.client.LeasesService().AddResource(ctx, leases.Lease{ID: lease}, resource); err != nil {
			return nil, err
		}
	}
	_, missing, err = e.blobs(ctx, target)
	return missing, err
}

// nameAll sets image records, all or none. What they named before is kept under
// the lease until it is known which.
func (e *Engine) nameAll(ctx context.Context, records []images.Image, lease string) (set []images.Image, err error) {
	var undo cleanup.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.Unwind(ctx))
		}
	}()
	service := e.client.ImageService()
	for _, record := range records {
		before, err := service.Get(ctx, record.Name)
		switch {
		case errdefs.IsNotFound(err):
			undo.Add("image "+record.Name, func(ctx context.Context) error { return ignoreAbsent(service.Delete(ctx, record.Name)) })
		case err != nil:
			return nil, fmt.Errorf("get image %s: %w", record.Name, e.explain(ctx, err))
		default:
			old := leases.Resource{ID: before.Target.Digest.String(), Type: "content"}
			if err := e.client.LeasesService().AddResource(ctx, leases.Lease{ID: lease}, old); err != nil {
				return nil, fmt.Errorf("hold image %s: %w", record.Name, e.explain(ctx, err))
			}
			undo.Add("image "+record.Name, func(ctx context.Context) error {
				_, err := service.Update(ctx, before, "target")
				return ignoreAbsent(err)
			})
		}
		made, err := e.nameImage(ctx, record)
		if err != nil {
			return nil, fmt.Errorf("name imported image %s: %w", record.Name, e.explain(ctx, err))
		}
		set = append(set, made)
	}
	return set, nil
}

func ignoreAbsent(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// isReference tells a reference from a mere tag, as "latest".
func isReference(name string) bool { return strings.ContainsAny(name, "/:") }
