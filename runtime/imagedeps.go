package runtime

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/remotegpu/remotegpu/runtime/operation"
)

// Images keeps images; runtime/containerd implements it. Errors are errdefs
// kinds or *problem.Problem. A method that ends early, whatever the reason,
// leaves nothing behind; where the daemon dies, and where it is said, leases that
// Engine.Parts names.
type Images interface {
	ImageTransfers
	ImageArchives

	// Image tells about a local image, NotFound (IMAGE_NOT_FOUND),
	// IMAGE_PLATFORM_MISMATCH. One that is named by its digest may be there under
	// a tag of its repository, whose name it has then.
	Image(ctx context.Context, ref string) (Image, error)
	// Details tells all about a local image, for whatever platform it is.
	// NotFound (IMAGE_NOT_FOUND), IMAGE_PLATFORM_MISMATCH where it has nothing
	// for the node's.
	Details(ctx context.Context, ref string) (ImageDetails, error)
	// Images tells about all local images, by name. What is not whole or not
	// valid is left out.
	Images(ctx context.Context) ([]Image, error)
	// Tag makes tag name the image that ref names, in place of what it named
	// before. A digest in tag is the image's. NotFound (IMAGE_NOT_FOUND),
	// IMAGE_REFERENCE_INVALID.
	Tag(ctx context.Context, ref, tag string) (Image, error)
	// SetPinned keeps in mind whether an image may be removed; it is for the
	// caller to heed. A reference that is set to another image stays pinned.
	// NotFound (IMAGE_NOT_FOUND).
	SetPinned(ctx context.Context, ref string, pinned bool) (Image, error)
	// DeleteImage removes a reference and lets its layers be collected.
	// NotFound (IMAGE_NOT_FOUND).
	DeleteImage(ctx context.Context, ref string) error
	// RemoveImage is DeleteImage of an image as it was looked at. NotFound
	// (IMAGE_NOT_FOUND), IMAGE_CHANGED: its name was set since.
	RemoveImage(ctx context.Context, image Image) error
	// Contents tells what images take of the disk.
	Contents(ctx context.Context) (Contents, error)
}

// ImageTransfers moves images between the node and registries. login, when not
// nil, is for the registry that the reference names; otherwise it is asked for
// as the node is configured. progress, when not nil, gets bytes and layers.
// Errors: IMAGE_NOT_FOUND, REGISTRY_UNAVAILABLE, REGISTRY_DENIED,
// REGISTRY_CREDENTIALS_UNUSABLE.
type ImageTransfers interface {
	// Pull fetches an image and unpacks it. Until that is done, ref names what
	// it named before. IMAGE_PLATFORM_MISMATCH, IMAGE_INVALID, IMAGE_INCOMPLETE.
	// When ctx ends with operation.ErrShutdown, or the error is Unavailable,
	// what came is kept for the next Pull.
	Pull(ctx context.Context, ref string, login *Login, progress func(operation.Progress)) (Image, error)
	// Resolve asks the registry whether ref exists, without pulling.
	Resolve(ctx context.Context, ref string) error
	// Push sends the local image ref to the registry as destination and
	// returns the digest it has there. IMAGE_INCOMPLETE.
	Push(ctx context.Context, ref, destination string, login *Login, progress func(operation.Progress)) (digest string, err error)
}

// ImageArchives reads and writes images as tar archives.
type ImageArchives interface {
	// ImportImages stores and unpacks the images of an archive: an OCI image
	// layout, or what "docker save" writes. ref, when not "", names the one
	// image of it. All of its images are named, or none. A digest in a name is
	// the image's. IMAGE_ARCHIVE_INVALID, IMAGE_REFERENCE_INVALID,
	// IMAGE_INVALID, IMAGE_PLATFORM_MISMATCH.
	ImportImages(ctx context.Context, archive io.Reader, ref string) ([]Image, error)
	// ExportImages writes an archive of images. Nothing is written when one is
	// not here: IMAGE_NOT_FOUND, IMAGE_INCOMPLETE.
	ExportImages(ctx context.Context, refs []string, archive io.Writer) error
}

// Image is a local image.
type Image struct {
	Name      string // full reference
	Digest    string
	Labels    map[string]string // of its configuration
	Size      int64             // bytes of its layers as stored
	Platform  string            // "linux/amd64"
	Pinned    bool
	UpdatedAt time.Time
}

// ImageDetails is an image with what it says of itself and consists of.
type ImageDetails struct {
	Image
	CreatedAt time.Time // when it was built; zero: it does not say
	Author    string
	Config    ImageConfig
	Layers    []ImageLayer    // lowest first
	Platforms []ImagePlatform // in the order of its index
}

// ImageConfig is the configuration of an image, with nothing of the node's.
type ImageConfig struct {
	Entrypoint   []string
	Command      []string
	Workdir      string
	User         string
	Env          map[string]string
	ExposedPorts []string // "8080/tcp", sorted
	Volumes      []string // directories, sorted
	StopSignal   string
}

// ImageLayer is one layer of an image, as stored.
type ImageLayer struct {
	Digest    string
	Size      int64  // bytes
	CreatedBy string // "": the image does not say
}

// ImagePlatform is one of those that an image can be had for.
type ImagePlatform struct {
	Platform string // "linux/arm64/v8"
	Digest   string // of its manifest
	Present  bool   // all of it is here
}

// Login is what a registry asks for. It prints as a placeholder.
type Login struct {
	Username string
	Password string
}

// String keeps the password out of logs and errors.
func (Login) String() string { return "(credentials)" }

// GoString does the same for %#v.
func (Login) GoString() string { return "(credentials)" }

// LogValue does the same for slog.
func (Login) LogValue() slog.Value { return slog.StringValue("(credentials)") }

// Contents is what images take of the disk.
type Contents struct {
	Images    []ImageContents
	Blobs     map[string]int64         // all in the content store: bytes by digest
	Snapshots map[string]UnpackedLayer // all that are committed, by name
}

// ImageContents is what one image consists of.
type ImageContents struct {
	Name      string
	Blobs     []string // digests
	Snapshots []string // of its layers
}

// UnpackedLayer is a committed snapshot of containerd.
type UnpackedLayer struct {
	Bytes int64 // on its own, without those below
	Held  bool  // something is made on it that is no image: an environment, its snapshot
}
