package testutil

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"maps"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Index makes an image for several platforms of images for one each.
func Index(tb testing.TB, images ...*OCIImage) *OCIImage {
	tb.Helper()
	all := &OCIImage{Name: images[0].Name, Blobs: make(map[digest.Digest][]byte)}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, image := range images {
		maps.Copy(all.Blobs, image.Blobs)
		index.Manifests = append(index.Manifests, image.Manifest)
	}
	all.Manifest = all.add(ocispec.MediaTypeImageIndex, encode(tb, index))
	return all
}

// Layout is an OCI image layout as a tar archive, of images as they are named
// here ("" leaves one without a name). Blobs for which keep is false are left
// out; nil keeps all.
func Layout(tb testing.TB, images map[string]*OCIImage, keep func(digest.Digest) bool) []byte {
	tb.Helper()
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	files := map[string][]byte{ocispec.ImageLayoutFile: encode(tb, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})}
	for name, image := range images {
		target := image.Manifest
		if name != "" {
			target.Annotations = map[string]string{"io.containerd.image.name": name, ocispec.AnnotationRefName: "latest"}
		}
		index.Manifests = append(index.Manifests, target)
		for d, data := range image.Blobs {
			if keep == nil || keep(d) {
				files["blobs/sha256/"+d.Encoded()] = data
			}
		}
	}
	files[ocispec.ImageIndexFile] = encode(tb, index)
	return archive(tb, files)
}

// DockerArchive is what "docker save" wrote before it knew OCI layouts.
func (i *OCIImage) DockerArchive(tb testing.TB, tags ...string) []byte {
	tb.Helper()
	var manifest ocispec.Manifest
	if err := json.Unmarshal(i.Blobs[i.Manifest.Digest], &manifest); err != nil {
		tb.Fatalf("read manifest: %v", err)
	}
	files := map[string][]byte{"config.json": i.Blobs[manifest.Config.Digest]}
	var layers []string
	for _, layer := range manifest.Layers {
		name := layer.Digest.Encoded() + "/layer.tar"
		files[name] = i.Blobs[layer.Digest]
		layers = append(layers, name)
	}
	files["manifest.json"] = encode(tb, []map[string]any{{"Config": "config.json", "RepoTags": tags, "Layers": layers}})
	return archive(tb, files)
}

// Compressed is data compressed with gzip.
func Compressed(tb testing.TB, data []byte) []byte { tb.Helper(); return compress(tb, data) }

func archive(tb testing.TB, files map[string][]byte) []byte {
	tb.Helper()
	var buffer bytes.Buffer
	writer := tar.NewWriter(&buffer)
	for name, data := range files {
		writeTar(tb, writer, &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, data)
	}
	must(tb, "close archive", writer.Close)
	return buffer.Bytes()
}
