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

func (f *fake) PauseEnvironment(_ context.Context, r *remotegpuv1.PauseEnvironmentRequest) (*remotegpuv1.PauseEnvironmentResponse, error) {
	return &remotegpuv1.PauseEnvironmentResponse{Environment: f.env, Operation: operation(running, "", 0, 0)}, f.got(r)
}

func (f *fake) ResumeEnvironment(_ context.Context, r *remotegpuv1.ResumeEnvironmentRequest) (*remotegpuv1.ResumeEnvironmentResponse, error) {
	return &remotegpuv1.ResumeEnvironmentResponse{Environment: f.env}, f.got(r)
}

func TestPauseAndResume(t *testing.T) {
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(succeeded, "", 0, 0)}
	for _, test := range []struct {
		args, says string
		want       proto.Message
	}{
		{
			"env pause demo --etag 3 --request-id r1", "demo: paused\n",
			&remotegpuv1.PauseEnvironmentRequest{Environment: "demo", RequestId: "r1", Etag: "3"},
		},
		{
			"env resume demo --project team --request-id r2", "demo: running\n",
			&remotegpuv1.ResumeEnvironmentRequest{Environment: "demo", Project: "team", RequestId: "r2"},
		},
	} {
		code, stdout, stderr := f.run(t, strings.Fields(test.args)...)
		if code != 0 || stdout != test.says {
			t.Errorf("%s: code %d, %q %s", test.args, code, stdout, stderr)
		}
		if diff := cmp.Diff(test.want, f.last, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", test.args, diff)
		}
	}
	f.env.State, f.env.Paused = remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_STOPPED, true
	if _, stdout, _ := f.run(t, "env", "ls", "--limit", "1"); !strings.Contains(stdout, "stopped (paused)") {
		t.Errorf("ls: %s", stdout)
	}
}
