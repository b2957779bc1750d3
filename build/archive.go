package build

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	goruntime "runtime"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// blob is one file of an OCI image layout.
type blob struct {
	descriptor ocispec.Descriptor
	content    []byte
}

// writeArchive writes an OCI image layout as a tar archive that holds one
// image named name, with the tar archive rootfs as its only layer.
func writeArchive(w io.Writer, rootfs *os.File, name string, created time.Time, labels map[string]string) error {
	hash := sha256.New()
	size, err := io.Copy(hash, rootfs)
	if err != nil {
		return fmt.Errorf("read root file system: %w", err)
	}
	if _, err := rootfs.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read root file system: %w", err)
	}
	layer := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayer, Digest: digest.NewDigest(digest.SHA256, hash), Size: size,
	}
	config, err := newBlob(ocispec.MediaTypeImageConfig, ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{Architecture: goruntime.GOARCH, OS: "linux"},
		Config: ocispec.ImageConfig{
			Env:    []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cmd:    []string{"bash"},
			Labels: labels,
		},
		RootFS:  ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
		History: []ocispec.History{{Created: &created, CreatedBy: "mmdebstrap"}},
	})
	if err != nil {
		return err
	}
	manifest, err := newBlob(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config.descriptor, Layers: []ocispec.Descriptor{layer},
	})
	if err != nil {
		return err
	}
	entry := manifest.descriptor
	entry.Platform = &ocispec.Platform{Architecture: goruntime.GOARCH, OS: "linux"}
	entry.Annotations = map[string]string{"io.containerd.image.name": name, ocispec.AnnotationRefName: name}
	index, err := newBlob(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{entry},
	})
	if err != nil {
		return err
	}

	archive := tar.NewWriter(w)
	add := func(path string, size int64) error {
		return archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path, Size: size, Mode: 0o644, ModTime: created})
	}
	files := []struct {
		path    string
		content []byte
	}{
		{ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)},
		{ocispec.ImageIndexFile, index.content},
		{blobPath(config.descriptor), config.content},
		{blobPath(manifest.descriptor), manifest.content},
	}
	for _, file := range files {
		if err := add(file.path, int64(len(file.content))); err != nil {
			return fmt.Errorf("write image archive: %w", err)
		}
		if _, err := archive.Write(file.content); err != nil {
			return fmt.Errorf("write image archive: %w", err)
		}
	}
	if err := add(blobPath(layer), size); err != nil {
		return fmt.Errorf("write image archive: %w", err)
	}
	if _, err := io.Copy(archive, rootfs); err != nil {
		return fmt.Errorf("write image archive: %w", err)
	}
	return archive.Close()
}

func newBlob(mediaType string, value any) (blob, error) {
	content, err := json.Marshal(value)
	if err != nil {
		return blob{}, fmt.Errorf("encode %s: %w", mediaType, err)
	}
	return blob{
		descriptor: ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))},
		content:    content,
	}, nil
}

func blobPath(d ocispec.Descriptor) string {
	return ocispec.ImageBlobsDir + "/" + d.Digest.Algorithm().String() + "/" + d.Digest.Encoded()
}
