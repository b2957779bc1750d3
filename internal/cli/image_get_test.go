package cli_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (f *fake) GetImage(_ context.Context, r *remotegpuv1.GetImageRequest) (*remotegpuv1.GetImageResponse, error) {
	name := "docker.io/" + r.GetReference()
	if r.GetReference() == "x/y" {
		name += ":latest"
	}
	image := &remotegpuv1.Image{Name: name, Digest: "sha256:1", Platform: "linux/amd64", Details: &remotegpuv1.ImageDetails{}}
	if r.GetReference() != "x/y:1" {
		return &remotegpuv1.GetImageResponse{Image: image}, f.got(r)
	}
	built := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	image.Labels, image.Pinned, image.UsedBy, image.SizeBytes = map[string]string{"b": "2", "a": "1\x1b[31m"}, true, []string{"01ENV", "01GONE"}, 3<<20
	image.Node, image.UpdatedAt = "gpu1", timestamppb.New(built.AddDate(0, 1, 0))
	image.Details = &remotegpuv1.ImageDetails{
		OtherNames: []string{"docker.io/x/z:latest"}, CreatedAt: timestamppb.New(built), Author: "ann",
		Config: &remotegpuv1.ImageConfig{
			Entrypoint: []string{"/bin/sh", "-c"}, Command: []string{"serve all"}, Workdir: "/srv", User: "app", StopSignal: "SIGINT",
			Env: map[string]string{"PATH": "/bin", "A": "b=c"}, ExposedPorts: []string{"53/udp", "80/tcp"}, Volumes: []string{"/data"},
		},
		Layers: []*remotegpuv1.ImageLayer{
			{Digest: "sha256:0123456789abcdef", SizeBytes: 2 << 20, CreatedBy: "RUN one \\\n\ttwo " + strings.Repeat("ü", 80)}, {Digest: "sha256:2", SizeBytes: 1 << 20},
		},
		Platforms: []*remotegpuv1.ImagePlatform{{Platform: "linux/amd64", Digest: "sha256:3", Present: true}, {Platform: "linux/arm64/v8", Digest: "sha256:4"}},
		Usage:     &remotegpuv1.ImageUsage{ContentBytes: 3 << 20, ContentUniqueBytes: 1 << 20, SnapshotBytes: 8 << 20, SnapshotUniqueBytes: 2 << 20},
	}
	return &remotegpuv1.GetImageResponse{Image: image}, f.got(r)
}

func TestImageGet(t *testing.T) {
	f := newFake(t)
	f.free = "01GONE"
	code, stdout, stderr := f.run(t, "image", "get", "x/y:1")
	built := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	want := `Name:            docker.io/x/y:1
Other names:     docker.io/x/z:latest
Digest:          sha256:1
Node:            gpu1
Platforms:       linux/amd64, linux/arm64/v8 (not here)
Size:            3 MiB
Content:         3 MiB, of which 1 MiB would go with it
Unpacked:        8 MiB, of which 2 MiB would go with it
Used by:         demo, 01GONE
Pinned:          yes
Named:           ` + built.AddDate(0, 1, 0).Format(time.RFC3339) + `
Built:           ` + built.Format(time.RFC3339) + `
Author:          ann
Entrypoint:      /bin/sh -c
Command:         serve all
Directory:       /srv
User:            app
Stop signal:     SIGINT
Listens on:      53/udp, 80/tcp
Keeps data in:   /data
Variable:        A=b=c
Variable:        PATH=/bin
Label:           a=1 [31m
Label:           b=2
Layer:           sha256:0123456789ab 2 MiB RUN one \ two ` + strings.Repeat("ü", 65) + `…
Layer:           sha256:2 1 MiB
`
	if diff := cmp.Diff(want, stdout); code != 0 || stderr != "" || diff != "" {
		t.Errorf("image get: code %d, %s\n%s", code, stderr, diff)
	}
	if diff := cmp.Diff(proto.Message(&remotegpuv1.GetImageRequest{Reference: "x/y:1", Usage: true}), f.last, protocmp.Transform()); diff != "" {
		t.Errorf("request: %s", diff)
	}
	var one struct {
		Name    string
		Details struct {
			Config struct{ Command []string }
			Layers []struct{ SizeBytes string }
		}
	}
	code, stdout, _ = f.run(t, "image", "inspect", "x/y:1", "-o", "json")
	if err := json.Unmarshal([]byte(stdout), &one); err != nil || code != 0 || one.Name != "docker.io/x/y:1" || one.Details.Config.Command[0] != "serve all" ||
		one.Details.Layers[0].SizeBytes != "2097152" {
		t.Errorf("json: code %d, %v: %s", code, err, stdout)
	}
	code, stdout, _ = f.run(t, "image", "get", "x/a", "x/b", "-o", "json")
	if lines := strings.Split(strings.TrimSpace(stdout), "\n"); code != 0 || len(lines) != 2 || !json.Valid([]byte(lines[1])) {
		t.Errorf("json of two: code %d: %s", code, stdout)
	}
	// What they take is measured once for all.
	if last, ok := f.last.(*remotegpuv1.GetImageRequest); !ok || last.GetUsage() {
		t.Errorf("request %v", f.last)
	}
	if code, stdout, _ = f.run(t, "image", "get", "x/y", "x/b"); code != 0 || !strings.Contains(stdout, "8 MiB, of which 1 MiB would go with it") {
		t.Errorf("usage: code %d: %s", code, stdout)
	}
	if code, stdout, _ = f.run(t, "image", "get", "x/a", "x/b"); code != 0 || strings.Count(stdout, "Name: ") != 2 || !strings.Contains(stdout, "\n\nName: ") {
		t.Errorf("two: code %d: %s", code, stdout)
	}
	if code, stdout, _ = f.run(t, "__complete", "image", "get", "remote"); code != 0 || !strings.HasPrefix(stdout, "remotegpu/desktop-base\n") {
		t.Errorf("completion: code %d: %s", code, stdout)
	}
	if code, _, _ = f.run(t, "image", "get"); code != 2 {
		t.Errorf("without an image: code %d", code)
	}
	f.err = apiError(t, connect.CodeNotFound, "IMAGE_NOT_FOUND", "image x/y is not on this node", "reference", "list the images")
	if code, stdout, stderr = f.run(t, "image", "get", "x/y"); code != 3 || stdout != "" || !strings.Contains(stderr, "Try: list the images") {
		t.Errorf("absent: code %d: %s%s", code, stdout, stderr)
	}
}
