package cli_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (f *fake) ListVolumes(_ context.Context, r *remotegpuv1.ListVolumesRequest) (*remotegpuv1.ListVolumesResponse, error) {
	return &remotegpuv1.ListVolumesResponse{Volumes: []*remotegpuv1.Volume{{Name: "data"}, {Name: "home\x1b[31m"}}, NextPageToken: "home"}, f.got(r)
}

// Lists print identifiers alone, page by page, and not together with JSON.
func TestQuietLists(t *testing.T) {
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(running, "", 0, 0)}
	f.env.PortMappings[0].Id = "01PORT"
	user := remotegpuv1.DNSRecordSource_DNS_RECORD_SOURCE_USER
	for _, test := range []struct {
		args, want string
		request    proto.Message
	}{
		{"env ls -q", "01ENV\n01TWO\n", &remotegpuv1.ListEnvironmentsRequest{PageSize: 500, PageToken: "2"}},
		{"env ls --quiet --limit 1", "01ENV\n", &remotegpuv1.ListEnvironmentsRequest{PageSize: 1}},
		{"env ls -q --page-token 2", "01TWO\n", &remotegpuv1.ListEnvironmentsRequest{PageToken: "2"}},
		{"image ls -q", "docker.io/remotegpu/desktop-base:latest\n", &remotegpuv1.ListImagesRequest{PageSize: 500}},
		{"volume ls -q --page-size 2", "data\nhome [31m\n", &remotegpuv1.ListVolumesRequest{PageSize: 2}},
		{"env snapshot ls -q demo", "01SNAP\n", &remotegpuv1.ListSnapshotsRequest{Environment: "demo", PageSize: 500}},
		{"op ls -q", "01OP\n", &remotegpuv1.ListOperationsRequest{PageSize: 50}},
		{"port ls -q", "01PORT\n", &remotegpuv1.ListPortMappingsRequest{PageSize: 500}},
		{"dns ls -q", "01REC\n", &remotegpuv1.ListDNSRecordsRequest{Source: user, PageSize: 500}},
		{"gpu ls -q", "GPU-1\nGPU-2\n", &remotegpuv1.ListGPUsRequest{}},
	} {
		code, stdout, stderr := f.run(t, strings.Fields(test.args)...)
		if code != 0 || stdout != test.want {
			t.Errorf("%s: code %d\n%s%s", test.args, code, stdout, stderr)
		}
		if diff := cmp.Diff(test.request, f.last, protocmp.Transform()); diff != "" {
			t.Errorf("%s: request: %s", test.args, diff)
		}
		f.last = nil
		command, _, _ := strings.Cut(test.args, " ls ")
		code, stdout, stderr = f.run(t, append(strings.Fields(command), "ls", "-q", "-o", "json")...)
		if code != 2 || stdout != "" || f.last != nil || !strings.Contains(stderr, "two ways to print") {
			t.Errorf("%s ls -q -o json: code %d\n%s%s", command, code, stdout, stderr)
		}
	}
	f.ops = nil
	if code, stdout, stderr := f.run(t, "op", "ls", "-q"); code != 0 || stdout != "" {
		t.Errorf("nothing to list: code %d\n%s%s", code, stdout, stderr)
	}
	f.last = nil
	if code, stdout, stderr := f.run(t, "dns", "ls", "-q", "--source", "AUTO"); code != 2 || stdout != "" || f.last != nil || !strings.Contains(stderr, "have no ids") {
		t.Errorf("records without ids: code %d\n%s%s", code, stdout, stderr)
	}
}
