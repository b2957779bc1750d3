package cli_test

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

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

func (f *fake) RenameEnvironment(_ context.Context, r *remotegpuv1.RenameEnvironmentRequest) (*remotegpuv1.RenameEnvironmentResponse, error) {
	renamed := proto.CloneOf(f.env)
	renamed.Name, renamed.RestartNeeded = r.GetName(), []string{"spec.hostname"}
	return &remotegpuv1.RenameEnvironmentResponse{Environment: renamed}, f.got(r)
}

func (f *fake) UpdateEnvironment(_ context.Context, r *remotegpuv1.UpdateEnvironmentRequest) (*remotegpuv1.UpdateEnvironmentResponse, error) {
	if f.overtaken != nil {
		f.overtaken()
	}
	if r.GetEtag() != "" && r.GetEtag() != f.env.GetEtag() {
		_ = f.got(r)
		return nil, apiError(f.t, connect.CodeAborted, "ETAG_MISMATCH", "the environment has changed", "etag", "read it again")
	}
	return &remotegpuv1.UpdateEnvironmentResponse{
		Environment: f.env, Operation: operation(running, "", 0, 0), RestartNeeded: []string{"spec.env"},
	}, f.got(r)
}

// Every flag that update offers changes something, is refused, or is of the
// request itself: none is taken and ignored.
func TestUpdateIgnoresNoFlag(t *testing.T) {
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(succeeded, "", 0, 0)}
	f.env.Labels, f.env.Spec.Env = map[string]string{"x": "y"}, map[string]string{"x": "y"}
	f.env.Spec.Mounts = []*remotegpuv1.Mount{{Type: remotegpuv1.MountType_MOUNT_TYPE_TMPFS, Target: "x"}}
	ofRequest := []string{"no-wait", "timeout", "request-id", "etag", "now", "help", "time"}
	_, help, _ := f.run(t, "env", "update", "--help")
	flags := regexp.MustCompile(`(?m)^ +(?:-\w, )?--([a-z0-9-]+)`).FindAllStringSubmatch(strings.Split(help, "Global Flags:")[0], -1)
	if len(flags) < 50 {
		t.Fatalf("%d flags in\n%s", len(flags), help)
	}
	for _, flag := range flags {
		if slices.Contains(ofRequest, flag[1]) {
			continue
		}
		for _, arg := range []string{"--" + flag[1] + "=x", "--" + flag[1] + "=1", "--" + flag[1]} {
			f.last = nil
			code, _, stderr := f.run(t, "env", "update", "demo", arg)
			request, sent := f.last.(*remotegpuv1.UpdateEnvironmentRequest)
			if code != 2 && (!sent || len(request.GetUpdateMask().GetPaths()) == 0) {
				t.Errorf("%s is ignored: code %d, %s", arg, code, stderr)
			}
		}
	}
}

func TestRename(t *testing.T) {
	f := newFake(t)
	code, stdout, stderr := f.run(t, "env", "rename", "demo", "lab", "--etag", "3")
	if code != 0 || stdout != "demo: renamed to lab\n" || !strings.Contains(stderr, "remotegpu env restart lab): spec.hostname") {
		t.Errorf("code %d, %q %q", code, stdout, stderr)
	}
	want := &remotegpuv1.RenameEnvironmentRequest{Environment: "demo", Name: "lab", Etag: "3"}
	if diff := cmp.Diff(want, f.last, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestUpdateRequest(t *testing.T) {
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(succeeded, "", 0, 0)}
	f.env.Labels = map[string]string{"team": "vision", "old": "1"}
	f.env.Spec.Env = map[string]string{"A": "1", "B": "2"}
	f.env.Spec.Ports = []*remotegpuv1.PortRequest{{ServiceType: remotegpuv1.ServiceType_SERVICE_TYPE_SSH}}
	f.env.Spec.Mounts = []*remotegpuv1.Mount{
		{Type: remotegpuv1.MountType_MOUNT_TYPE_VOLUME, Source: "one", Target: "/one"},
		{Type: remotegpuv1.MountType_MOUNT_TYPE_VOLUME, Source: "two", Target: "/two"},
	}
	f.env.RestartNeeded = []string{"spec.env"}
	web := &remotegpuv1.PortRequest{ServiceType: remotegpuv1.ServiceType_SERVICE_TYPE_CUSTOM, InternalPort: 8080}
	for _, test := range []struct {
		args  string
		paths []string
		want  *remotegpuv1.UpdateEnvironmentRequest
	}{
		{
			"--cpus 1.5 --memory 2G --pids 10 --shm-size 1M",
			[]string{"spec.resources.cpu_millis", "spec.resources.memory_bytes", "spec.resources.pids", "spec.resources.shm_bytes"},
			&remotegpuv1.UpdateEnvironmentRequest{Spec: &remotegpuv1.EnvironmentSpec{Resources: &remotegpuv1.Resources{CpuMillis: 1500, MemoryBytes: 2 << 30, Pids: 10, ShmBytes: 1 << 20}}},
		},
		{
			"--disk 20G --disk-best-effort",
			[]string{"spec.resources.disk_bytes", "spec.resources.disk_best_effort"},
			&remotegpuv1.UpdateEnvironmentRequest{Spec: &remotegpuv1.EnvironmentSpec{Resources: &remotegpuv1.Resources{DiskBytes: 20 << 30, DiskBestEffort: true}}},
		},
		{
			"--cpus 0 --memory 0",
			[]string{"spec.resources.cpu_millis", "spec.resources.memory_bytes", "spec.resources.swap_bytes"},
			&remotegpuv1.UpdateEnvironmentRequest{},
		},
		{
			"-l new=yes --unlabel old --etag 3",
			[]string{"labels"},
			&remotegpuv1.UpdateEnvironmentRequest{Etag: "3", Labels: map[string]string{"team": "vision", "new": "yes"}},
		},
		{
			"-e C=3 --unset-env A --now -t 5s",
			[]string{"spec.env"},
			&remotegpuv1.UpdateEnvironmentRequest{
				Etag: "3", Restart: true, Timeout: durationpb.New(5e9), Spec: &remotegpuv1.EnvironmentSpec{Env: map[string]string{"B": "2", "C": "3"}},
			},
		},
		{
			"-v other:/two --unmount /one --tmpfs /x",
			[]string{"spec.mounts"},
			&remotegpuv1.UpdateEnvironmentRequest{Etag: "3", Spec: &remotegpuv1.EnvironmentSpec{Mounts: []*remotegpuv1.Mount{
				{Type: remotegpuv1.MountType_MOUNT_TYPE_VOLUME, Source: "other", Target: "/two"}, {Type: remotegpuv1.MountType_MOUNT_TYPE_TMPFS, Target: "/x"},
			}}},
		},
		{
			"-p 8080",
			[]string{"spec.ports"},
			&remotegpuv1.UpdateEnvironmentRequest{Etag: "3", Spec: &remotegpuv1.EnvironmentSpec{Ports: []*remotegpuv1.PortRequest{f.env.GetSpec().GetPorts()[0], web}}},
		},
		{
			"-p 8080 --unpublish 22000",
			[]string{"spec.ports"},
			&remotegpuv1.UpdateEnvironmentRequest{Etag: "3", Spec: &remotegpuv1.EnvironmentSpec{Ports: []*remotegpuv1.PortRequest{web}}},
		},
		{"--unpublish ssh", []string{"spec.ports"}, &remotegpuv1.UpdateEnvironmentRequest{Etag: "3"}},
		{
			"--restart always --health-tcp 22 --user app --workdir /w --hostname h --entrypoint sh --desktop=640x480 --allow-new-privileges -- -c true",
			[]string{
				"spec.restart", "spec.health_check", "spec.desktop", "spec.workdir", "spec.user", "spec.hostname", "spec.entrypoint", "spec.command",
				"spec.allow_new_privileges",
			},
			&remotegpuv1.UpdateEnvironmentRequest{Etag: "3", Spec: &remotegpuv1.EnvironmentSpec{
				Restart:     &remotegpuv1.RestartPolicy{Mode: remotegpuv1.RestartMode_RESTART_MODE_ALWAYS},
				HealthCheck: &remotegpuv1.HealthCheck{Check: &remotegpuv1.HealthCheck_Tcp{Tcp: &remotegpuv1.HealthTCP{Port: 22}}},
				User:        "app", Workdir: "/w", Hostname: "h", Entrypoint: []string{"sh"}, Command: []string{"-c", "true"}, AllowNewPrivileges: true,
				Desktop: &remotegpuv1.Desktop{Width: 640, Height: 480, Depth: 24},
			}},
		},
		{"--no-desktop --no-health --no-ulimits", []string{"spec.resources.ulimits", "spec.health_check", "spec.desktop"}, &remotegpuv1.UpdateEnvironmentRequest{}},
	} {
		code, stdout, stderr := f.run(t, append([]string{"env", "update", "demo", "--request-id", "r1"}, strings.Fields(test.args)...)...)
		if code != 0 || stdout != "demo: updated\n" || !strings.Contains(stderr, "remotegpu env restart demo): spec.env") {
			t.Errorf("%s: code %d, %q %q", test.args, code, stdout, stderr)
			continue
		}
		want := test.want
		want.RequestId, want.Environment, want.UpdateMask = "r1", "01ENV", &fieldmaskpb.FieldMask{Paths: test.paths}
		if want.GetSpec() == nil {
			want.Spec = &remotegpuv1.EnvironmentSpec{}
		}
		if want.GetSpec().GetResources() == nil {
			want.Spec.Resources = &remotegpuv1.Resources{}
		}
		if diff := cmp.Diff(want, f.last, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", test.args, diff)
		}
	}
	for _, args := range []string{
		"", "--image app", "--from-snapshot demo/first", "--pull never", "--unlabel absent", "--unset-env C", "--unmount /x", "--unpublish 1", "--no-health --health-tcp 1", "--no-desktop --desktop", "--cpus x", "extra",
	} {
		if code, _, stderr := f.run(t, append([]string{"env", "update", "demo"}, strings.Fields(args)...)...); code != 2 || !strings.Contains(stderr, "Try:") {
			t.Errorf("%s: code %d, %s", args, code, stderr)
		}
	}
	f.env.State = remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_ERROR
	if code, _, stderr := f.run(t, "env", "update", "demo", "--user", "root"); code != 0 || !strings.Contains(stderr, "start it: remotegpu env start demo") {
		t.Errorf("in error: code %d, %s", code, stderr)
	}
	if _, stdout, _ := f.run(t, "env", "get", "demo"); !strings.Contains(stdout, "Needs restart:   spec.env") {
		t.Error(stdout)
	}
}
