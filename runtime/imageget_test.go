package runtime_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// An image is found by what people write, by its digest, and by the beginning of
// that when no other has it.
func TestGetImage(t *testing.T) {
	t.Parallel()
	h := alone(t)
	digest := func(start string) string { return "sha256:" + start + strings.Repeat("0", 64-len(start)) }
	for name, start := range map[string]string{
		"team/a": "abcd1", "team/b:2": "abcd1", "team/c": "abcd2", "cafe": "5", "team/d": "cafe", "sha256:beef": "6",
	} {
		h.images.Add(runtime.Image{Name: name, Digest: digest(start), Size: 10})
	}
	h.images.Configure(digest("abcd1"), runtime.ImageConfig{Command: []string{"serve"}})
	d := start(t, h)
	user := full("user")
	user.Spec.Image = "team/a"
	env, _ := d.create(user)
	if _, err := d.PinImage(t.Context(), "team/a", true); err != nil {
		t.Fatal(err)
	}
	for reference, want := range map[string]string{
		"team/b:2": "docker.io/team/b:2", digest("abcd2"): "docker.io/team/c:latest", "sha256:abcd2": "docker.io/team/c:latest",
		strings.TrimPrefix(digest("abcd2"), "sha256:"): "docker.io/team/c:latest", "abcd20000": "docker.io/team/c:latest",
		// A name comes first, unless it says that it is a digest.
		"cafe": "docker.io/library/cafe:latest", "cafe0": "docker.io/team/d:latest", "sha256:cafe": "docker.io/team/d:latest",
	} {
		info, err := d.GetImage(t.Context(), reference, false)
		if err != nil || info.Name != want || info.Details.Name != want || info.Usage != nil {
			t.Errorf("GetImage(%s) = %+v, %v, want %s", reference, info, err, want)
		}
	}
	info, err := d.GetImage(t.Context(), "abcd1", true) // the first of two names
	if err != nil || info.Name != "docker.io/team/a:latest" || !info.Pinned || len(info.UsedBy) != 1 || info.UsedBy[0] != env.ID {
		t.Fatalf("GetImage(abcd1) = %+v, %v", info, err)
	}
	if diff := cmp.Diff([]string{"docker.io/team/b:2"}, info.OtherNames); diff != "" || info.Details.Config.Command[0] != "serve" {
		t.Errorf("other names: %s, details %+v", diff, info.Details)
	}
	if info.Usage == nil || info.Usage.Content != 10 || info.Usage.ContentUnique != 0 || len(info.Usage.UsedBy) != 1 {
		t.Errorf("usage %+v", info.Usage)
	}

	for reference, reason := range map[string]problem.Reason{
		"team/absent": problem.ImageNotFound, "sha256:0123": problem.ImageNotFound, digest("7"): problem.ImageNotFound, "abcd3": problem.ImageNotFound,
		strings.Repeat("7", 64): problem.ImageNotFound, "abc": problem.ImageNotFound, "sha256:beef": problem.ImageNotFound,
		"Not A Reference": problem.ImageReferenceBad, "": problem.ImageReferenceBad, "sha256:": problem.ImageReferenceBad,
		"abcd": problem.FieldInvalid, "sha256:abcd": problem.FieldInvalid,
	} {
		_, err := d.GetImage(t.Context(), reference, true)
		wantProblem(t, reference, err, reason, "reference")
	}
	// Somebody sets its name to another image, or removes it, at that moment.
	h.faults.Hook(func(method string) {
		if method == "Images.Details" {
			h.images.Add(runtime.Image{Name: "team/c", Digest: digest("8")})
		}
	})
	_, err = d.GetImage(t.Context(), "sha256:abcd2", false)
	wantProblem(t, "of a digest that has gone", err, problem.ImageNotFound, "reference")
	h.faults.Hook(func(method string) {
		if method == "Images.Details" {
			if err := h.images.DeleteImage(t.Context(), "team/c"); err != nil {
				t.Error(err)
			}
		}
	})
	_, err = d.GetImage(t.Context(), "team/c", false)
	wantProblem(t, "of an image that has gone", err, problem.ImageNotFound, "reference")
	h.faults.Hook(nil)
	for _, call := range []string{"Images.Images", "Images.Details", "Images.Contents"} {
		h.faults.FailCall(call, 1, problem.New(problem.ContainerdDown, "containerd is gone"))
		if _, err := d.GetImage(t.Context(), "team/d", true); problem.Of(err).Reason != problem.ContainerdDown {
			t.Errorf("%s fails: %v", call, err)
		}
	}
}
