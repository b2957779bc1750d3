package cli_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
)

func (f *fake) PullImage(_ context.Context, r *remotegpuv1.PullImageRequest) (*remotegpuv1.PullImageResponse, error) {
	return &remotegpuv1.PullImageResponse{Operation: operation(running, "", 0, 0)}, f.got(r)
}

func (f *fake) PushImage(_ context.Context, r *remotegpuv1.PushImageRequest) (*remotegpuv1.PushImageResponse, error) {
	return &remotegpuv1.PushImageResponse{Operation: operation(running, "", 0, 0)}, f.got(r)
}

func (f *fake) TagImage(_ context.Context, r *remotegpuv1.TagImageRequest) (*remotegpuv1.TagImageResponse, error) {
	return &remotegpuv1.TagImageResponse{Image: &remotegpuv1.Image{Name: "docker.io/" + r.GetTag()}}, f.got(r)
}

func (f *fake) PinImage(_ context.Context, r *remotegpuv1.PinImageRequest) (*remotegpuv1.PinImageResponse, error) {
	if err := f.none(r.GetReference()); err != nil {
		return nil, err
	}
	return &remotegpuv1.PinImageResponse{Image: &remotegpuv1.Image{Name: "docker.io/" + r.GetReference(), Pinned: true}}, f.got(r)
}

func (f *fake) UnpinImage(_ context.Context, r *remotegpuv1.UnpinImageRequest) (*remotegpuv1.UnpinImageResponse, error) {
	if err := f.none(r.GetReference()); err != nil {
		return nil, err
	}
	return &remotegpuv1.UnpinImageResponse{Image: &remotegpuv1.Image{Name: "docker.io/" + r.GetReference()}}, f.got(r)
}

func (f *fake) PruneImages(_ context.Context, r *remotegpuv1.PruneImagesRequest) (*remotegpuv1.PruneImagesResponse, error) {
	return &remotegpuv1.PruneImagesResponse{Images: []*remotegpuv1.Image{{Name: "a"}, {Name: "b"}}, FreedBytes: 3 << 20}, f.got(r)
}

func (f *fake) GetImageUsage(_ context.Context, r *remotegpuv1.GetImageUsageRequest) (*remotegpuv1.GetImageUsageResponse, error) {
	return &remotegpuv1.GetImageUsageResponse{
		Images: []*remotegpuv1.ImageUsage{{
			Name: "docker.io/x/y:latest", ContentBytes: 3 << 20, ContentUniqueBytes: 1 << 20, SnapshotBytes: 8 << 20, SnapshotUniqueBytes: 1 << 20,
			UsedBy: []string{"01ENV"}, Pinned: true,
		}},
		ContentBytes: 4 << 20, SnapshotBytes: 9 << 20, ReclaimableBytes: 2 << 10,
		UnlistedContentBytes: 1 << 20, UnlistedSnapshotBytes: 512 << 10,
	}, f.got(r)
}

func (f *fake) ImportImage(_ context.Context, stream remotegpuv1connect.ImageServiceImportImageServerStream) (*remotegpuv1.ImportImageResponse, error) {
	first, err := stream.Receive()
	if err != nil {
		return nil, err
	}
	if err := f.got(first); err != nil {
		return nil, err
	}
	var archive []byte
	for {
		message, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		archive = append(archive, message.GetChunk()...)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.archive = archive
	return &remotegpuv1.ImportImageResponse{Images: []*remotegpuv1.Image{{Name: "docker.io/x/y:latest"}}}, nil
}

func (f *fake) ExportImage(_ context.Context, r *remotegpuv1.ExportImageRequest, stream remotegpuv1connect.ImageServiceExportImageServerStream) error {
	if err := f.got(r); err != nil {
		return err
	}
	for part := range slices.Chunk(f.archive, 256<<10) {
		if err := stream.Send(&remotegpuv1.ExportImageResponse{Chunk: part}); err != nil {
			return err
		}
		if f.cut {
			return connect.NewError(connect.CodeUnavailable, "containerd is gone")
		}
	}
	return nil
}

func TestImageCommands(t *testing.T) {
	for _, test := range []struct {
		args, stdin, want string
		request           proto.Message
	}{
		{"image tag x/y x/z:2", "", "docker.io/x/z:2\n", &remotegpuv1.TagImageRequest{Reference: "x/y", Tag: "x/z:2"}},
		{"image pin x/y", "", "docker.io/x/y: pinned\n", &remotegpuv1.PinImageRequest{Reference: "x/y"}},
		{"image unpin x/y", "", "docker.io/x/y: unpinned\n", &remotegpuv1.UnpinImageRequest{Reference: "x/y"}},
		{"image rm -f x/y", "", "docker.io/x/y: deleted\n", &remotegpuv1.DeleteImageRequest{Reference: "x/y", Force: true}},
		{"image prune", "", "a\nb\n3 MiB freed\n", &remotegpuv1.PruneImagesRequest{MinAge: &durationpb.Duration{}}},
		{
			"image prune --dry-run --min-age 24h", "", "a\nb\n3 MiB would be freed\n",
			&remotegpuv1.PruneImagesRequest{DryRun: true, MinAge: durationpb.New(24 * time.Hour)},
		},
		{"image df", "", `NAME                   CONTENT   UNPACKED   UNIQUE   USED   PINNED
docker.io/x/y:latest   3 MiB     8 MiB      2 MiB    1      yes
(no image)             1 MiB     512 KiB    -        -      -
4 MiB of content and 9 MiB unpacked in all, 2 KiB can be pruned
`, &remotegpuv1.GetImageUsageRequest{}},
		{
			"image pull x/y --no-wait --request-id r -u ann --password-stdin", "pass word\n", "01OP\n",
			&remotegpuv1.PullImageRequest{
				RequestId: "r", Reference: "x/y", Credentials: &remotegpuv1.RegistryCredentials{Username: "ann", Password: "pass word"},
			},
		},
		{"image pull x/y --no-wait --request-id r", "", "01OP\n", &remotegpuv1.PullImageRequest{RequestId: "r", Reference: "x/y"}},
		{
			"image push x/y --as r.example/z --no-wait --request-id r --username ann --password-stdin", "secret", "01OP\n",
			&remotegpuv1.PushImageRequest{
				RequestId: "r", Reference: "x/y", Destination: "r.example/z",
				Credentials: &remotegpuv1.RegistryCredentials{Username: "ann", Password: "secret"},
			},
		},
	} {
		f := newFake(t)
		code, stdout, stderr := f.runWith(t.Context(), test.stdin, map[string]string{}, strings.Fields(test.args)...)
		if code != 0 || stdout != test.want {
			t.Errorf("%s: exit %d\n%s%s", test.args, code, stdout, stderr)
		}
		if diff := cmp.Diff(test.request, f.last, protocmp.Transform()); diff != "" {
			t.Errorf("%s: request: %s", test.args, diff)
		}
		if strings.Contains(stdout+stderr, "pass word") {
			t.Errorf("%s shows the password", test.args)
		}
	}
	for _, args := range []string{
		"image pull x/y --password-stdin", "image pull x/y -u ann", "image pull x/y -u ann --password-stdin", "image import /absent/file",
		"image export x/y -f /absent/dir/file", "image tag x/y", "image prune x", "image pin",
	} {
		if code, _, stderr := newFake(t).run(t, strings.Fields(args)...); code != 2 || !strings.Contains(stderr, "Try: ") {
			t.Errorf("%s: exit %d\n%s", args, code, stderr)
		}
	}
}

// Layers are shown as they come to their end.
func TestLayersAreShown(t *testing.T) {
	f := newFake(t)
	layer := func(state remotegpuv1.LayerState, done int64) *remotegpuv1.LayerProgress {
		return &remotegpuv1.LayerProgress{Digest: "sha256:0123456789abcdef", State: state, Done: done, Total: 1 << 20}
	}
	half, full := operation(running, "pull", 1<<20, 2<<20), operation(succeeded, "pull", 2<<20, 2<<20)
	half.Progress.Layers = []*remotegpuv1.LayerProgress{
		layer(remotegpuv1.LayerState_LAYER_STATE_PRESENT, 1<<20), layer(remotegpuv1.LayerState_LAYER_STATE_TRANSFERRING, 512),
	}
	full.Progress.Layers = []*remotegpuv1.LayerProgress{
		layer(remotegpuv1.LayerState_LAYER_STATE_PRESENT, 1<<20), layer(remotegpuv1.LayerState_LAYER_STATE_UNPACKED, 1<<20),
	}
	full.Result = map[string]string{"image": "docker.io/x/y:latest", "digest": "sha256:1"}
	f.ops = []*remotegpuv1.Operation{half, full}
	code, stdout, stderr := f.run(t, "image", "pull", "x/y")
	if code != 0 || stderr != "pull, 1 of 2 layers 50% of 2 MiB\npull, 2 of 2 layers 100% of 2 MiB\n" ||
		stdout != "Image:    docker.io/x/y:latest\nDigest:   sha256:1\n" {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
	if _, stdout, _ = f.run(t, "op", "get", "01OP"); !strings.Contains(stdout, "sha256:0123456789ab transferring 0% of 1 MiB") {
		t.Errorf("op get: %s", stdout)
	}
}

func TestImageArchives(t *testing.T) {
	f := newFake(t)
	dir := t.TempDir()
	archive := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), 20000) // more than one message
	path := filepath.Join(dir, "archive.tar")
	if err := os.WriteFile(path, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	start := &remotegpuv1.ImportImageRequest{Message: &remotegpuv1.ImportImageRequest_Start{Start: &remotegpuv1.ImportImageStart{Reference: "x/y"}}}
	code, stdout, stderr := f.run(t, "image", "import", path, "-t", "x/y")
	if code != 0 || stdout != "docker.io/x/y:latest\n" || !bytes.Equal(f.archive, archive) {
		t.Errorf("import: exit %d\n%s%s%d bytes came", code, stdout, stderr, len(f.archive))
	}
	if diff := cmp.Diff(proto.Message(start), f.last, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if code, _, stderr := f.runWith(t.Context(), string(archive[:300]), map[string]string{}, "image", "import", "-"); code != 0 || !bytes.Equal(f.archive, archive[:300]) {
		t.Errorf("import from standard input: exit %d\n%s", code, stderr)
	}

	f.archive = archive
	out := filepath.Join(dir, "out.tar")
	if code, _, stderr := f.run(t, "image", "export", "x/y", "x/z", "-f", out); code != 0 {
		t.Errorf("export: exit %d\n%s", code, stderr)
	}
	if written, err := os.ReadFile(out); err != nil || !bytes.Equal(written, archive) {
		t.Errorf("export wrote %d bytes, %v", len(written), err)
	}
	if diff := cmp.Diff(proto.Message(&remotegpuv1.ExportImageRequest{References: []string{"x/y", "x/z"}}), f.last, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if code, stdout, stderr := f.run(t, "image", "export", "x/y"); code != 0 || stdout != string(archive) {
		t.Errorf("export to standard output: exit %d, %d bytes\n%s", code, len(stdout), stderr)
	}
	// What is not whole leaves what was there.
	f.cut = true
	if code, _, stderr := f.run(t, "image", "export", "x/y", "-f", out); code != 6 || !strings.Contains(stderr, "containerd is gone") {
		t.Errorf("export that breaks: exit %d\n%s", code, stderr)
	}
	if written, err := os.ReadFile(out); err != nil || !bytes.Equal(written, archive) {
		t.Errorf("a broken export left %d bytes, %v", len(written), err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("files %v, %v", entries, err)
	}
	f.err = apiError(t, connect.CodeInvalidArgument, "IMAGE_ARCHIVE_INVALID", "the archive is not one of images", "", "give one")
	if code, _, stderr := f.run(t, "image", "import", path); code != 2 || !strings.Contains(stderr, "not one of images") {
		t.Errorf("import that is refused: exit %d\n%s", code, stderr)
	}
}
