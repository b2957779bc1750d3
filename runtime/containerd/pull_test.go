//nolint:thelper // what both runs are tests, and a failure should name their lines
package containerd_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
)

// changed is an image whose manifest was changed.
func changed(t *testing.T, image *testutil.OCIImage, change func(*ocispec.Manifest, map[digest.Digest][]byte)) *testutil.OCIImage {
	t.Helper()
	out := &testutil.OCIImage{Name: image.Name, Manifest: image.Manifest, Blobs: maps.Clone(image.Blobs)}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(image.Blobs[image.Manifest.Digest], &manifest); err != nil {
		t.Fatal(err)
	}
	delete(out.Blobs, image.Manifest.Digest)
	change(&manifest, out.Blobs)
	text, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	out.Manifest.Digest, out.Manifest.Size = digest.FromBytes(text), int64(len(text))
	out.Blobs[out.Manifest.Digest] = text
	return out
}

// configured is an image with another configuration.
func configured(t *testing.T, image *testutil.OCIImage, mediaType string, edit func(string) string) *testutil.OCIImage {
	t.Helper()
	return changed(t, image, func(manifest *ocispec.Manifest, blobs map[digest.Digest][]byte) {
		text := []byte(edit(string(blobs[manifest.Config.Digest])))
		delete(blobs, manifest.Config.Digest)
		manifest.Config = ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(text), Size: int64(len(text))}
		blobs[manifest.Config.Digest] = text
	})
}

// A pull that fails leaves its name what it was, pin included, or nothing; and
// what cannot be read is no reason to tell nothing of the other images.
func TestUselessImages(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine, registry := open(t, d), testutil.Registry(t)
		good := testutil.TestImage(t, testutil.ImageOptions{})
		odd := testutil.TestImage(t, testutil.ImageOptions{Upper: []string{"odd"}})
		undated := configured(t, odd, ocispec.MediaTypeImageConfig, func(config string) string {
			return `{"created":"x",` + config[1:]
		})
		whole := registry.Push("team/app", "v1", good)
		if _, err := engine.Pull(t.Context(), whole, nil, nil); err != nil {
			t.Fatal(err)
		}
		pinned, err := engine.SetPinned(t.Context(), whole, true)
		if err != nil {
			t.Fatal(err)
		}
		before := stored(t, d)
		var lost digest.Digest
		for name, test := range map[string]struct {
			image   *testutil.OCIImage
			reason  problem.Reason
			archive problem.Reason // "": as reason
		}{
			"date": {image: undated, reason: problem.ImageInvalid},
			"variables": {image: configured(t, odd, ocispec.MediaTypeImageConfig, func(config string) string {
				return `{"config":{"Env":"A=b"},` + strings.Replace(config[1:], `"config"`, `"other"`, 1)
			}), reason: problem.ImageInvalid},
			"no json": {image: configured(t, odd, ocispec.MediaTypeImageConfig, func(string) string { return "no json" }), reason: problem.ImageInvalid},
			"artifact": {image: configured(t, odd, "application/vnd.oci.empty.v1+json", func(string) string {
				return "{}"
			}), reason: problem.ImageInvalid},
			"layers": {image: changed(t, odd, func(manifest *ocispec.Manifest, _ map[digest.Digest][]byte) {
				manifest.Layers = manifest.Layers[:1]
			}), reason: problem.ImageInvalid},
			"platform": {image: testutil.TestImage(t, testutil.ImageOptions{Architecture: "s390x"}), reason: problem.ImagePlatform},
			"blob": {image: changed(t, odd, func(manifest *ocispec.Manifest, _ map[digest.Digest][]byte) {
				manifest.Annotations = map[string]string{"a": "blob"}
				lost = digest.FromString("nobody has it")
				manifest.Layers[1].Digest = lost
			}), reason: problem.ImageIncomplete, archive: problem.ImageArchiveInvalid},
		} {
			t.Run(name, func(t *testing.T) {
				_, err := engine.Pull(t.Context(), registry.Push("team/app", "v1", test.image), nil, nil)
				wantReason(t, "pull", err, test.reason)
				if name == "blob" && !strings.Contains(problem.Of(err).Message, lost.String()) {
					t.Errorf("it is not said what is lacking: %v", err)
				}
				if image, err := engine.Image(t.Context(), whole); err != nil || image.Digest != pinned.Digest || !image.Pinned {
					t.Errorf("the name stands for %+v, %v, want still %+v", image, err, pinned)
				}
				other := registry.Push("team/other", "v1", test.image)
				_, err = engine.Pull(t.Context(), other, nil, nil)
				wantReason(t, "pull by a new name", err, test.reason)
				if test.archive == "" {
					test.archive = test.reason
				}
				_, err = engine.ImportImages(t.Context(), bytes.NewReader(test.image.Tar(t)), whole)
				wantReason(t, "import", err, test.archive)
				kept(t, d, name, before)
			})
		}

		// Somebody else brought one.
		undated.Name = "docker.io/remotegpu/undated:latest"
		path := filepath.Join(t.TempDir(), "undated.tar")
		if err := os.WriteFile(path, undated.Tar(t), 0o600); err != nil {
			t.Fatal(err)
		}
		d.Ctr(t, "images", "import", "--all-platforms", "--no-unpack", path)
		if all, err := engine.Images(t.Context()); err != nil || len(all) != 2 {
			t.Errorf("Images() = %+v, %v, want the two that are good", all, err)
		}
		if _, err := engine.Contents(t.Context()); err != nil {
			t.Errorf("Contents(): %v", err)
		}
		_, err = engine.Image(t.Context(), undated.Name)
		wantReason(t, "image", err, problem.ImageInvalid)
		wantReason(t, "create", engine.Create(t.Context(), runtime.Container{ID: "undated", Image: undated.Name}), problem.ImageInvalid)
		if err := engine.DeleteImage(t.Context(), undated.Name); err != nil {
			t.Errorf("delete: %v", err)
		}
		kept(t, d, "somebody else's", before)
	})
}
