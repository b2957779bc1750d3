package runtimetest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// testNames: tags and pins are of names.
func testNames(t *testing.T, s ImagesSetup) {
	t.Helper()
	const other = "docker.io/remotegpu/other:v2"
	local, err := s.Images.Image(t.Context(), s.Local)
	if err != nil || local.Pinned {
		t.Fatalf("Image(%s) = %+v, %v", s.Local, local, err)
	}
	for range 2 { // it may be repeated
		tagged, err := s.Images.Tag(t.Context(), s.Local, "remotegpu/other:v2")
		if err != nil || tagged.Name != other || tagged.Digest != local.Digest || tagged.Size != local.Size {
			t.Fatalf("Tag(%s) = %+v, %v, want %+v by another name", s.Local, tagged, err, local)
		}
	}
	for range 2 {
		pinned, err := s.Images.SetPinned(t.Context(), other, true)
		if err != nil || !pinned.Pinned || pinned.Name != other || pinned.Digest != local.Digest {
			t.Errorf("SetPinned(%s) = %+v, %v", other, pinned, err)
		}
	}
	if image, err := s.Images.Image(t.Context(), s.Local); err != nil || image.Pinned {
		t.Errorf("Image(%s) = %+v, %v: the other name is pinned", s.Local, image, err)
	}
	if _, err := s.Images.Tag(t.Context(), s.Local, other); err != nil {
		t.Errorf("tag: %v", err)
	}
	if image, err := s.Images.Image(t.Context(), other); err != nil || !image.Pinned {
		t.Errorf("Image(%s) = %+v, %v: a tag took the pin away", other, image, err)
	}
	if image, err := s.Images.SetPinned(t.Context(), other, false); err != nil || image.Pinned {
		t.Errorf("SetPinned(%s, false) = %+v, %v", other, image, err)
	}
	testRemove(t, s, other)
	if err := s.Images.DeleteImage(t.Context(), other); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, err := s.Images.Image(t.Context(), s.Local); err != nil {
		t.Errorf("the image went with its other name: %v", err)
	}
	_, err = s.Images.Tag(t.Context(), "remotegpu/absent", other)
	wantReason(t, "tag", err, problem.ImageNotFound)
	_, err = s.Images.Tag(t.Context(), s.Local, "Not A Reference")
	wantReason(t, "tag", err, problem.ImageReferenceBad)
	_, err = s.Images.SetPinned(t.Context(), "remotegpu/absent", true)
	wantReason(t, "pin", err, problem.ImageNotFound)
}

// testDigests: a name with a digest is of the image that has it, and of no other.
func testDigests(t *testing.T, s ImagesSetup) {
	t.Helper()
	local, err := s.Images.Image(t.Context(), s.Local)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := s.Images.ExportImages(t.Context(), []string{s.Local}, &archive); err != nil {
		t.Fatalf("export: %v", err)
	}
	wrong, right := "docker.io/team/app@sha256:"+strings.Repeat("0", 64), "docker.io/team/app@"+local.Digest
	refused := func(what, field string, err error) {
		t.Helper()
		wantReason(t, what, err, problem.ImageReferenceBad)
		if p := problem.Of(err); p.Field != field || p.Hint == "" {
			t.Errorf("%s: %#v, want field %s and a hint", what, p, field)
		}
	}
	_, err = s.Images.Tag(t.Context(), s.Local, wrong)
	refused("tag", "tag", err)
	_, err = s.Images.ImportImages(t.Context(), bytes.NewReader(archive.Bytes()), wrong)
	refused("import", "reference", err)
	if _, err := s.Images.Image(t.Context(), wrong); !errdefs.IsNotFound(err) {
		t.Errorf("Image(%s): %v, want NotFound", wrong, err)
	}
	if image, err := s.Images.Tag(t.Context(), s.Local, right); err != nil || image.Name != right {
		t.Errorf("Tag(%s) = %+v, %v", right, image, err)
	}
	if images, err := s.Images.ImportImages(t.Context(), bytes.NewReader(archive.Bytes()), right); err != nil || images[0].Name != right {
		t.Errorf("ImportImages(%s) = %+v, %v", right, images, err)
	}
	if err := s.Images.DeleteImage(t.Context(), right); err != nil {
		t.Error(err)
	}
}

// testPullKeepsPin: a pull sets a name anew and leaves its pin.
func testPullKeepsPin(t *testing.T, s ImagesSetup) {
	t.Helper()
	for _, pin := range []bool{false, true, false} {
		if _, err := s.Images.Pull(t.Context(), s.Remote, nil, nil); err != nil {
			t.Fatalf("pull: %v", err)
		}
		if _, err := s.Images.SetPinned(t.Context(), s.Remote, pin); err != nil {
			t.Fatalf("pin: %v", err)
		}
		image, err := s.Images.Pull(t.Context(), s.Remote, nil, nil)
		if err != nil || image.Pinned != pin {
			t.Errorf("pulled %+v, %v, want pinned: %v", image, err, pin)
		}
	}
	if err := s.Images.DeleteImage(t.Context(), s.Remote); err != nil {
		t.Errorf("delete: %v", err)
	}
}

// testArchives: what was exported can be imported, by its name or another.
func testArchives(t *testing.T, s ImagesSetup) {
	t.Helper()
	const renamed = "docker.io/remotegpu/renamed:latest"
	local, err := s.Images.Image(t.Context(), s.Local)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := s.Images.ExportImages(t.Context(), []string{s.Local}, &archive); err != nil {
		t.Fatalf("export: %v", err)
	}
	if err := s.Images.DeleteImage(t.Context(), s.Local); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"": s.Local, "remotegpu/renamed": renamed} {
		imported, err := s.Images.ImportImages(t.Context(), bytes.NewReader(archive.Bytes()), name)
		if err != nil || len(imported) != 1 || imported[0].Name != want || imported[0].Digest != local.Digest {
			t.Errorf("ImportImages(%q) = %+v, %v, want %s", name, imported, err, want)
		}
		if image, err := s.Images.Image(t.Context(), want); err != nil || image.Labels[s.Label] != "yes" || image.Size != local.Size {
			t.Errorf("Image(%s) = %+v, %v, want %+v", want, image, err, local)
		}
	}
	// Two names in one archive.
	archive.Reset()
	if err := s.Images.ExportImages(t.Context(), []string{renamed, s.Local}, &archive); err != nil {
		t.Fatalf("export of two: %v", err)
	}
	if err := s.Images.DeleteImage(t.Context(), renamed); err != nil {
		t.Error(err)
	}
	imported, err := s.Images.ImportImages(t.Context(), bytes.NewReader(archive.Bytes()), "")
	var names []string
	for _, image := range imported {
		names = append(names, image.Name)
	}
	slices.Sort(names)
	if err != nil || !slices.Equal(names, []string{renamed, s.Local}) {
		t.Errorf("imported %q, %v", names, err)
	}
	if err := s.Images.DeleteImage(t.Context(), renamed); err != nil {
		t.Error(err)
	}

	var none bytes.Buffer
	err = s.Images.ExportImages(t.Context(), []string{s.Local, "remotegpu/absent"}, &none)
	wantReason(t, "export", err, problem.ImageNotFound)
	if none.Len() > 0 {
		t.Errorf("%d bytes were written before the refusal", none.Len())
	}
	_, err = s.Images.ImportImages(t.Context(), strings.NewReader("no archive, but more than the 512 bytes of a header"+strings.Repeat(".", 600)), "")
	wantReason(t, "import", err, problem.ImageArchiveInvalid)
	_, err = s.Images.ImportImages(t.Context(), bytes.NewReader(archive.Bytes()), "Not A Reference")
	wantReason(t, "import", err, problem.ImageReferenceBad)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Images.ImportImages(ctx, bytes.NewReader(archive.Bytes()), ""); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled import: %v", err)
	}
	if all, err := s.Images.Images(t.Context()); err != nil || len(all) != 1 || all[0].Name != s.Local {
		t.Errorf("Images() = %+v, %v, want only %s", all, err, s.Local)
	}
}

// testPush: what was pushed can be pulled.
func testPush(t *testing.T, s ImagesSetup) {
	t.Helper()
	local, err := s.Images.Image(t.Context(), s.Local)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds all there
		var last operation.Progress
		digest, err := s.Images.Push(t.Context(), s.Local, s.Push, nil, func(p operation.Progress) { last = p })
		if err != nil || digest != local.Digest {
			t.Fatalf("Push(%s) = %s, %v, want %s", s.Push, digest, err, local.Digest)
		}
		if last.Done <= 0 || last.Done != last.Total || len(last.Layers) == 0 {
			t.Errorf("last progress: %+v", last)
		}
	}
	pulled, err := s.Images.Pull(t.Context(), s.Push, nil, nil)
	if err != nil || pulled.Digest != local.Digest {
		t.Errorf("pulled %+v, %v, want %s", pulled, err, local.Digest)
	}
	if err := s.Images.DeleteImage(t.Context(), s.Push); err != nil {
		t.Error(err)
	}
	_, err = s.Images.Push(t.Context(), "remotegpu/absent", s.Push, nil, nil)
	wantReason(t, "push", err, problem.ImageNotFound)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Images.Push(ctx, s.Local, s.Push, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled push: %v", err)
	}
}

// testContents: all that an image has is in the sums.
func testContents(t *testing.T, s ImagesSetup) {
	t.Helper()
	contents, err := s.Images.Contents(t.Context())
	if err != nil || len(contents.Images) != 1 || contents.Images[0].Name != s.Local {
		t.Fatalf("Contents() = %+v, %v", contents, err)
	}
	one := contents.Images[0]
	if len(one.Blobs) == 0 || len(one.Snapshots) == 0 {
		t.Errorf("the image consists of %+v", one)
	}
	for _, digest := range one.Blobs {
		if contents.Blobs[digest] <= 0 {
			t.Errorf("blob %s has %d bytes", digest, contents.Blobs[digest])
		}
	}
	for _, name := range one.Snapshots {
		if snapshot := contents.Snapshots[name]; snapshot.Bytes <= 0 || snapshot.Held {
			t.Errorf("snapshot %s: %+v", name, snapshot)
		}
	}
}

// testRemove: an image is removed as it was looked at, or not at all.
func testRemove(t *testing.T, s ImagesSetup, name string) {
	t.Helper()
	const once = "docker.io/remotegpu/once:v1"
	before, err := s.Images.Tag(t.Context(), name, once)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Millisecond) // what is kept of times are milliseconds
	now, err := s.Images.Tag(t.Context(), name, once)
	if err != nil {
		t.Fatal(err)
	}
	wantReason(t, "removal of one that was named again", s.Images.RemoveImage(t.Context(), before), problem.ImageChanged)
	other := now
	other.Digest = "sha256:" + strings.Repeat("0", 64)
	wantReason(t, "removal of another one", s.Images.RemoveImage(t.Context(), other), problem.ImageChanged)
	if err := s.Images.RemoveImage(t.Context(), now); err != nil {
		t.Errorf("removal: %v", err)
	}
	wantReason(t, "removal once more", s.Images.RemoveImage(t.Context(), now), problem.ImageNotFound)
}
