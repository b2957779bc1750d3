package imageref_test

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/imageref"
	"github.com/remotegpu/remotegpu/internal/problem"
)

func TestNormalize(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a1", 32)
	for _, test := range []struct{ ref, full, registry string }{
		{"remotegpu/desktop-base", "docker.io/remotegpu/desktop-base:latest", "docker.io"},
		{"ubuntu", "docker.io/library/ubuntu:latest", "docker.io"},
		{"ubuntu:22.04", "docker.io/library/ubuntu:22.04", "docker.io"},
		{"127.0.0.1:5000/app:v1", "127.0.0.1:5000/app:v1", "127.0.0.1:5000"},
		{"ghcr.io/x/y", "ghcr.io/x/y:latest", "ghcr.io"},
		{"app@" + digest, "docker.io/library/app@" + digest, "docker.io"},
		{"app:v1@" + digest, "docker.io/library/app@" + digest, "docker.io"},
		{"docker.io/remotegpu/desktop-base:latest", "docker.io/remotegpu/desktop-base:latest", "docker.io"},
	} {
		full, err := imageref.Normalize(test.ref)
		if err != nil || full != test.full {
			t.Errorf("Normalize(%q) = %q, %v, want %q", test.ref, full, err, test.full)
		}
		if again, err := imageref.Normalize(full); err != nil || again != full {
			t.Errorf("Normalize(%q) = %q, %v, want itself", full, again, err)
		}
		if registry, err := imageref.Registry(full); err != nil || registry != test.registry {
			t.Errorf("Registry(%q) = %q, %v, want %q", full, registry, err, test.registry)
		}
	}
}

func TestNormalizeRefuses(t *testing.T) {
	for _, ref := range []string{
		"", " ", "Ubuntu", "a b", "http://x/y", "x:", ":tag", "x@sha256:12", "../x", "x\n",
		strings.Repeat("a/", 200) + "a", strings.Repeat("a", 64),
	} {
		_, err := imageref.Normalize(ref)
		p := problem.Of(err)
		if !errdefs.IsInvalidArgument(err) || p.Reason != problem.ImageReferenceBad || p.Field != "spec.image" || p.Hint == "" {
			t.Errorf("Normalize(%q): %#v, want IMAGE_REFERENCE_INVALID with field and hint", ref, err)
		}
	}
}

func TestCheckDigest(t *testing.T) {
	one, two := "sha256:"+strings.Repeat("a1", 32), "sha256:"+strings.Repeat("b2", 32)
	for _, test := range []struct {
		full, digest string
		fine         bool
	}{
		{"docker.io/a/b:1", one, true},
		{"docker.io/a/b:1", "", true},
		{"docker.io/a/b@" + one, one, true},
		{"docker.io/a/b@" + one, two, false},
		{"docker.io/a/b@" + one, "", false},
	} {
		err := imageref.CheckDigest(test.full, test.digest, "tag")
		if test.fine != (err == nil) {
			t.Errorf("CheckDigest(%s, %q): %v", test.full, test.digest, err)
		}
		if p := problem.Of(err); err != nil && (p.Reason != problem.ImageReferenceBad || p.Field != "tag" || p.Hint == "") {
			t.Errorf("CheckDigest(%s, %q): %#v, want IMAGE_REFERENCE_INVALID with field and hint", test.full, test.digest, p)
		}
	}
}

func FuzzNormalize(f *testing.F) {
	f.Add("a/b:c@d")
	f.Fuzz(func(t *testing.T, ref string) {
		full, err := imageref.Normalize(ref)
		if err != nil {
			return
		}
		if again, err := imageref.Normalize(full); err != nil || again != full {
			t.Errorf("Normalize(%q) = %q, and that gives %q, %v", ref, full, again, err)
		}
	})
}
