package runtimetest

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// ImagesSetup is an image store under test, empty but for Local.
type ImagesSetup struct {
	Images runtime.Images
	// Local is the full reference of the one local image, which has Label
	// with the value "yes".
	Local string
	Label string
	// Config is what the local image says.
	Config runtime.ImageConfig
	// Remote is an image that a registry has, Absent one that it has not, Push
	// one that it takes.
	Remote, Absent, Push string
}

// Images is the conformance suite of runtime.Images.
func Images(t *testing.T, s ImagesSetup) {
	t.Helper()
	t.Run("Local", func(t *testing.T) {
		image, err := s.Images.Image(t.Context(), s.Local)
		if err != nil || image.Name != s.Local || image.Labels[s.Label] != "yes" || image.Size <= 0 ||
			!strings.HasPrefix(image.Digest, "sha256:") || !strings.HasPrefix(image.Platform, "linux/") {
			t.Errorf("Image(%s) = %+v, %v", s.Local, image, err)
		}
		short := strings.TrimSuffix(strings.TrimPrefix(s.Local, "docker.io/"), ":latest")
		if same, err := s.Images.Image(t.Context(), short); err != nil || same.Digest != image.Digest {
			t.Errorf("Image(%s) = %+v, %v, want the same image", short, same, err)
		}
		repository := s.Local[:strings.LastIndex(s.Local, ":")]
		if same, err := s.Images.Image(t.Context(), repository+"@"+image.Digest); err != nil || same.Digest != image.Digest {
			t.Errorf("by its digest: %+v, %v, want the same image", same, err)
		}
		for _, other := range []string{"docker.io/remotegpu/absent@" + image.Digest, repository + "@sha256:" + strings.Repeat("0", 64)} {
			_, err := s.Images.Image(t.Context(), other)
			wantReason(t, other, err, problem.ImageNotFound)
		}
		all, err := s.Images.Images(t.Context())
		if err != nil || len(all) != 1 || all[0].Name != s.Local || all[0].Digest != image.Digest {
			t.Errorf("Images() = %+v, %v", all, err)
		}
	})
	t.Run("Refused", func(t *testing.T) {
		_, err := s.Images.Image(t.Context(), "Not A Reference")
		wantReason(t, "image", err, problem.ImageReferenceBad)
		_, err = s.Images.Image(t.Context(), "remotegpu/absent")
		wantReason(t, "image", err, problem.ImageNotFound)
		wantReason(t, "delete", s.Images.DeleteImage(t.Context(), "remotegpu/absent"), problem.ImageNotFound)
		wantReason(t, "resolve", s.Images.Resolve(t.Context(), s.Absent), problem.ImageNotFound)
		_, err = s.Images.Pull(t.Context(), s.Absent, nil, nil)
		wantReason(t, "pull", err, problem.ImageNotFound)
	})
	t.Run("PullAndDelete", func(t *testing.T) {
		if err := s.Images.Resolve(t.Context(), s.Remote); err != nil {
			t.Errorf("resolve: %v", err)
		}
		if _, err := s.Images.Image(t.Context(), s.Remote); !errdefs.IsNotFound(err) {
			t.Errorf("resolve made it local: %v", err)
		}
		for range 2 { // a second pull finds everything here
			var last operation.Progress
			image, err := s.Images.Pull(t.Context(), s.Remote, nil, func(p operation.Progress) { last = p })
			if err != nil || image.Name != s.Remote {
				t.Fatalf("Pull(%s) = %+v, %v", s.Remote, image, err)
			}
			if last.Done <= 0 || last.Done != last.Total || len(last.Layers) == 0 {
				t.Errorf("last progress: %+v", last)
			}
			if local, err := s.Images.Image(t.Context(), s.Remote); err != nil || local.Digest != image.Digest || local.Size != image.Size {
				t.Errorf("Image(%s) = %+v, %v, want %+v", s.Remote, local, err, image)
			}
		}
		if err := s.Images.DeleteImage(t.Context(), s.Remote); err != nil {
			t.Errorf("delete: %v", err)
		}
		if _, err := s.Images.Image(t.Context(), s.Remote); !errdefs.IsNotFound(err) {
			t.Errorf("image once deleted: %v, want NotFound", err)
		}
		if all, err := s.Images.Images(t.Context()); err != nil || len(all) != 1 {
			t.Errorf("Images() = %+v, %v", all, err)
		}
	})
	for name, test := range map[string]func(*testing.T, ImagesSetup){
		"Details": testDetails, "Names": testNames, "Digests": testDigests, "PullKeepsPin": testPullKeepsPin, "Archives": testArchives, "Push": testPush, "Contents": testContents,
	} {
		t.Run(name, func(t *testing.T) { test(t, s) })
	}
}
