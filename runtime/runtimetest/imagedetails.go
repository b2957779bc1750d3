package runtimetest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// testDetails: an image says what it is configured to do, and consists of layers
// that make up its size.
func testDetails(t *testing.T, s ImagesSetup) {
	t.Helper()
	image, err := s.Images.Image(t.Context(), s.Local)
	if err != nil {
		t.Fatal(err)
	}
	details, err := s.Images.Details(t.Context(), strings.TrimPrefix(s.Local, "docker.io/"))
	if err != nil {
		t.Fatalf("Details(%s): %v", s.Local, err)
	}
	if diff := cmp.Diff(image, details.Image); diff != "" {
		t.Errorf("the image, and with its details: %s", diff)
	}
	if diff := cmp.Diff(s.Config, details.Config, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("configuration: %s", diff)
	}
	var size int64
	for _, layer := range details.Layers {
		if size += layer.Size; !strings.HasPrefix(layer.Digest, "sha256:") {
			t.Errorf("layer %+v", layer)
		}
	}
	if len(details.Layers) == 0 || size != image.Size {
		t.Errorf("%d layers have %d bytes, want %d", len(details.Layers), size, image.Size)
	}
	if p := details.Platforms; len(p) != 1 || p[0].Platform != image.Platform || p[0].Digest != image.Digest || !p[0].Present {
		t.Errorf("platforms %+v", p)
	}
	_, err = s.Images.Details(t.Context(), "remotegpu/absent")
	wantReason(t, "details", err, problem.ImageNotFound)
	_, err = s.Images.Details(t.Context(), "Not A Reference")
	wantReason(t, "details", err, problem.ImageReferenceBad)
}
