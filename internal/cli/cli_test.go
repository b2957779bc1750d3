package cli_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// TestTables compares what people see, word for word.
func TestTables(t *testing.T) {
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(running, "pulling layers", 1, 4)}
	f.ops[0].CreatedAt = ago(time.Minute)
	f.desktops = []*remotegpuv1.GetDesktopResponse{{
		Environment: "01ENV", Readiness: remotegpuv1.DesktopReadiness_DESKTOP_READINESS_DRAWN,
		Url: "https://gpu1:7443/d/01ENV", Width: 1920, Height: 1080, Colours: 4096,
	}}
	for _, test := range []struct{ args, want string }{
		{"env ls", `
NAME   STATE     IMAGE                                     ADDRESS     PORTS           DESKTOP   AGE
demo   running   docker.io/remotegpu/desktop-base:latest   10.88.0.2   22000->22/tcp   ready     3h
two    stopped   app [31m                                  -           -               -         30s
`},
		{"env ls --limit 1", `
NAME   STATE     IMAGE                                     ADDRESS     PORTS           DESKTOP   AGE
demo   running   docker.io/remotegpu/desktop-base:latest   10.88.0.2   22000->22/tcp   ready     3h
`},
		{"image ls", `
NAME                                      DIGEST                SIZE      PLATFORM      USED   PINNED   AGE
docker.io/remotegpu/desktop-base:latest   sha256:0123456789ab   1.5 GiB   linux/amd64   1      -        3d
`},
		{"port ls", `
HOST    INSIDE   PROTOCOL   SERVICE   STATUS   PROJECT   ENVIRONMENT   AGE   EXPIRES   ALLOWED   DESCRIPTION
22000   22       tcp        ssh       active   default   demo          60s   -         -
`},
		{"port pool", `
SERVICE   RANGE         INSIDE   IN USE   RESTING   FREE   OUTSIDE
ssh       22000-22999   22       1        0         999    0
`},
		{"op ls", `
ID     KIND                 TARGET   STATE     AGE   NOTE
01OP   environment.create   demo     running   60s   pulling layers
`},
		{"desktop url demo --wait", "\nhttps://gpu1:7443/d/01ENV#t=abc\n"},
		{"desktop get demo", `
Environment:   01ENV
Readiness:     drawn
Screen:        1920x1080, 4096 colours
URL:           https://gpu1:7443/d/01ENV
`},
		{"image rm x/y", "\ndocker.io/x/y: deleted\n"},
		{"env start demo", "\ndemo: running\n"},
		{"node info", `
Name:           gpu1
Id:             01NODE
Version:        v0.1.0
System:         Debian GNU/Linux 12 (bookworm), Linux 6.1.0, amd64
CPUs:           8
Memory:         32 GiB
containerd:     1.6.20 at /run/containerd/containerd.sock, namespace remotegpu, snapshotter overlayfs
cgroup:         v2
Addresses:      10.88.0.0/16
Environments:   1 error, 2 running
Problem:        BuildKit does not answer (BUILDKIT_UNAVAILABLE)
Try:            start buildkitd
`},
	} {
		code, stdout, stderr := f.run(t, strings.Fields(test.args)...)
		if code != 0 || stderr != "" {
			t.Errorf("%s: code %d, %s", test.args, code, stderr)
		}
		if diff := cmp.Diff(strings.TrimPrefix(test.want, "\n"), stdout); diff != "" {
			t.Errorf("%s:\n%s", test.args, diff)
		}
	}
}

func TestJSON(t *testing.T) {
	f := newFake(t)
	code, stdout, _ := f.run(t, "env", "ls", "-o", "json")
	var list struct {
		Environments []struct {
			Name         string
			DesktopReady *bool
		}
		NextPageToken string
	}
	if err := json.Unmarshal([]byte(stdout), &list); err != nil || code != 0 || len(list.Environments) != 2 ||
		list.Environments[1].DesktopReady == nil {
		t.Errorf("code %d, %v: %s", code, err, stdout)
	}
	_, again, _ := f.run(t, "-o", "json", "env", "ls")
	if strings.Count(again, "\n") != strings.Count(stdout, "\n") || !strings.HasPrefix(stdout, "{\n  \"environments\": [\n") {
		t.Errorf("unstable or unexpected layout: %s", stdout)
	}
	code, stdout, _ = f.run(t, "env", "watch", "-o", "json", "--reconnect-for", "0")
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	if code != 6 || len(lines) != 2 || !strings.Contains(lines[1], `"synced":true`) || !json.Valid([]byte(lines[0])) {
		t.Errorf("watch: code %d, %s", code, stdout)
	}
	f.err = apiError(t, connect.CodeNotFound, "ENV_NOT_FOUND", "no environment demo", "environment", "list them")
	code, stdout, stderr := f.run(t, "env", "get", "demo", "-o", "json")
	want := `{"error":{"code":"not_found","reason":"ENV_NOT_FOUND","message":"no environment demo",` +
		`"fields":[{"field":"environment","description":"no environment demo","reason":"ENV_NOT_FOUND"}],"hints":["list them"]}}` + "\n"
	if code != 3 || stdout != "" || stderr != want {
		t.Errorf("code %d, %q, %s", code, stdout, cmp.Diff(want, stderr))
	}
}

func TestExitCodes(t *testing.T) {
	f := newFake(t)
	for code, want := range map[connect.Code]int{
		connect.CodeInvalidArgument: 2, connect.CodeOutOfRange: 2, connect.CodeNotFound: 3,
		connect.CodeAlreadyExists: 4, connect.CodeFailedPrecondition: 4, connect.CodeAborted: 4,
		connect.CodeResourceExhausted: 5, connect.CodeUnavailable: 6, connect.CodePermissionDenied: 7,
		connect.CodeUnauthenticated: 7, connect.CodeDeadlineExceeded: 8, connect.CodeInternal: 1,
		connect.CodeUnknown: 1, connect.CodeUnimplemented: 1,
	} {
		f.err = apiError(t, code, "A_REASON", "it went wrong", "spec.image", "do it better")
		got, stdout, stderr := f.run(t, "env", "get", "demo")
		if got != want || stdout != "" || stderr != "Error: it went wrong\n  field spec.image\nTry: do it better\n" {
			t.Errorf("%s: code %d, want %d, said %q", code, got, want, stderr)
		}
	}
}

func TestUsage(t *testing.T) {
	f := newFake(t)
	for _, args := range [][]string{
		{"nonsense"},
		{"env", "nonsense"},
		{"env", "get"},
		{"env", "get"},
		{"env", "ls", "--nonsense"},
		{"env", "ls", "-o", "yaml"},
		{"env", "ls", "--state", "asleep"},
		{"env", "create"},
		{"env", "create", "x"},
		{"env", "create", "x", "y", "--image", "i"},
		{"env", "create", "x", "--image", "i", "-p", "nope"},
		{"env", "create", "x", "--image", "i", "-p", "ssh,from=10.0.0.0/8"},
		{"env", "create", "x", "--image", "i", "-p", "ssh,allow="},
		{"env", "create", "x", "--image", "i", "-p", "ssh,expires=-1h"},
		{"env", "create", "x", "--image", "i", "-p", "ssh,expires=soon"},
		{"env", "create", "x", "--image", "i", "-p", "ssh,expires="},
		{"env", "create", "x", "--image", "i", "-p", "15000:"},
		{"env", "create", "x", "--image", "i", "-p", ":8080"},
		{"env", "create", "x", "--image", "i", "-p", "ssh/udp"},
		{"env", "create", "x", "--image", "i", "-v", "./here:/there"},
		{"env", "create", "x", "--image", "i", "-m", "much"},
		{"env", "create", "x", "--image", "i", "--cpus", "NaN"},
		{"env", "create", "x", "--image", "i", "--desktop=big"},
		{"env", "create", "x", "--image", "i", "--pull", "maybe"},
		{"env", "create", "x", "--image", "i", "--ulimit", "nofile"},
		{"env", "create", "x", "--image", "i", "--mount", "type=nfs,target=/x"},
		{"port", "pool", "set", "ssh", "1"},
		{"port", "pool", "set", "telnet", "1-2"},
		{"--addr", "ftp://x", "env", "ls"},
		{"--addr", "x", "env", "ls"},
		{"--cacert", "/nonexistent", "--addr", "https://localhost:1", "env", "ls"},
		{"env", "rm", "a", "b", "--request-id", "1"},
	} {
		code, stdout, stderr := f.run(t, args...)
		if code != 2 || stdout != "" || !strings.HasPrefix(stderr, "Error: ") && !strings.Contains(stderr, "yaml") ||
			!strings.Contains(stderr, "Try: ") && !strings.Contains(stderr, "hints") {
			t.Errorf("%q: code %d, %q %q", args, code, stdout, stderr)
		}
		if f.last != nil {
			t.Errorf("%q reached the node: %v", args, f.last)
			f.last = nil
		}
	}
}

func TestCreateRequest(t *testing.T) {
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(succeeded, "", 0, 0)}
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte("# comment\nA=file\nB=two words \nHERE\nABSENT\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := f.runWith(t.Context(), "", map[string]string{"HERE": "yes", "REMOTEGPU_PROJECT": "team"},
		"env", "create", "demo", "--image", "app", "--request-id", "r1", "--cpus", "1.5", "--memory", "8GiB", "--swap", "0",
		"--pids", "100", "--shm-size", "1g", "--disk", "20GiB", "--disk-best-effort", "--ulimit", "nofile=1024:2048", "--ulimit", "core=unlimited",
		"-e", "A=flag", "--env-file", file, "-l", "team=ml", "-p", "ssh", "-p", "8080=web", "-p", "15000:5353/udp",
		"-p", "jupyter:9999", "-p", "22007:ssh:2222",
		"-p", "9000/udp,allow=203.0.113.0/24,allow=198.51.100.7,expires=2030-01-02T03:04:05Z,description=a=b", "-v", "/data:/data:ro", "-v", "vol:/vol", "--tmpfs", "/x:size=64MiB,ro",
		"--mount", `type=bind,"source=/a,b",target=/c,readonly`, "--workdir", "/w", "--user", "1000:1000", "--hostname", "h",
		"--entrypoint", "/bin/sh", "--desktop=1280x720x16", "--pull", "always", "--allow-new-privileges", "--", "-c", "true")
	if code != 0 {
		t.Fatalf("code %d: %s", code, stderr)
	}
	swap := int64(0)
	want := &remotegpuv1.CreateEnvironmentRequest{
		RequestId: "r1", Name: "demo", Project: "team", Labels: map[string]string{"team": "ml"},
		Spec: &remotegpuv1.EnvironmentSpec{
			Image: "app", PullPolicy: remotegpuv1.PullPolicy_PULL_POLICY_ALWAYS, Entrypoint: []string{"/bin/sh"},
			Command: []string{"-c", "true"}, Workdir: "/w", User: "1000:1000", Hostname: "h", AllowNewPrivileges: true,
			Env: map[string]string{"A": "flag", "B": "two words ", "HERE": "yes"},
			Resources: &remotegpuv1.Resources{
				CpuMillis: 1500, MemoryBytes: 8 << 30, SwapBytes: &swap, Pids: 100, ShmBytes: 1 << 30, DiskBytes: 20 << 30, DiskBestEffort: true,
				Ulimits: []*remotegpuv1.Ulimit{{Name: "nofile", Soft: 1024, Hard: 2048}, {Name: "core", Soft: -1, Hard: -1}},
			},
			Desktop: &remotegpuv1.Desktop{Width: 1280, Height: 720, Depth: 16},
			Ports: []*remotegpuv1.PortRequest{
				{ServiceType: remotegpuv1.ServiceType_SERVICE_TYPE_SSH},
				{ServiceType: remotegpuv1.ServiceType_SERVICE_TYPE_CUSTOM, InternalPort: 8080, Description: "web"},
				{
					ServiceType: remotegpuv1.ServiceType_SERVICE_TYPE_CUSTOM, InternalPort: 5353, ExternalPort: 15000,
					Protocol: remotegpuv1.Protocol_PROTOCOL_UDP,
				},
				{ServiceType: remotegpuv1.ServiceType_SERVICE_TYPE_JUPYTER, InternalPort: 9999},
				{ServiceType: remotegpuv1.ServiceType_SERVICE_TYPE_SSH, InternalPort: 2222, ExternalPort: 22007},
				{
					ServiceType: remotegpuv1.ServiceType_SERVICE_TYPE_CUSTOM, InternalPort: 9000, Protocol: remotegpuv1.Protocol_PROTOCOL_UDP,
					AllowedSources: []string{"203.0.113.0/24", "198.51.100.7"}, Description: "a=b",
					ExpiresAt: timestamppb.New(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)),
				},
			},
			Mounts: []*remotegpuv1.Mount{
				{Type: remotegpuv1.MountType_MOUNT_TYPE_BIND, Source: "/data", Target: "/data", ReadOnly: true},
				{Type: remotegpuv1.MountType_MOUNT_TYPE_VOLUME, Source: "vol", Target: "/vol"},
				{Type: remotegpuv1.MountType_MOUNT_TYPE_BIND, Source: "/a,b", Target: "/c", ReadOnly: true},
				{Type: remotegpuv1.MountType_MOUNT_TYPE_TMPFS, Target: "/x", SizeBytes: 64 << 20, ReadOnly: true},
			},
		},
	}
	if diff := cmp.Diff(want, f.last, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestCreateShowsProgress(t *testing.T) {
	f := newFake(t)
	f.drop = 1 // the connection breaks once
	building := operation(running, "building", 1, 3)
	building.Progress.Log = []string{"line 1", "line 2"}
	f.ops = []*remotegpuv1.Operation{
		operation(running, "pulling layers", 0, 4<<20), operation(running, "pulling layers", 1<<10, 4<<20),
		operation(running, "pulling layers", 3<<20, 4<<20), building, operation(succeeded, "done", 3, 3),
	}
	f.env.Warnings = []string{"swap is not limited here"}
	code, stdout, stderr := f.run(t, "env", "create", "demo", "--image", "app")
	want := "pulling layers\nconnection lost, trying again\npulling layers 75% of 4 MiB\n" +
		"line 1\nline 2\nbuilding\ndone\nWarning: swap is not limited here\n"
	if code != 0 || stderr != want {
		t.Errorf("code %d\n%s", code, cmp.Diff(want, stderr))
	}
	if !strings.Contains(stdout, "ssh 22000->22/tcp") || !strings.Contains(stdout, "1.5 CPUs, 8 GiB memory") {
		t.Error(stdout)
	}
}

func TestFailures(t *testing.T) {
	problem := &remotegpuv1.Problem{Code: "not_found", Reason: "IMAGE_NOT_FOUND", Message: "image app is not there", Field: "spec.image", Hint: "check the name"}
	lost := operation(failed, "", 0, 0)
	lost.Problem = problem
	broke := operation(failed, "", 0, 0)
	broke.Problem = &remotegpuv1.Problem{Code: "unknown", Reason: "BUILD_FAILED", Message: "step 3 failed"}
	stopped := operation(cancelled, "", 0, 0)
	for want, op := range map[int]*remotegpuv1.Operation{3: lost, 8: broke} {
		f := newFake(t)
		f.ops = []*remotegpuv1.Operation{op}
		code, stdout, stderr := f.run(t, "env", "create", "demo", "--image", "app")
		if code != want || stdout != "" || !strings.Contains(stderr, "Error: environment.create failed: "+op.GetProblem().GetMessage()) ||
			op.GetProblem().GetHint() != "" && !strings.Contains(stderr, "Try: check the name") {
			t.Errorf("code %d, want %d: %s", code, want, stderr)
		}
	}
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{stopped}
	if code, _, stderr := f.run(t, "env", "rm", "demo"); code != 8 || !strings.Contains(stderr, "was cancelled") {
		t.Errorf("cancelled: code %d: %s", code, stderr)
	}
	// Done, and in error right after.
	f.ops = []*remotegpuv1.Operation{operation(succeeded, "", 0, 0)}
	f.env.State, f.env.Problem = remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_ERROR, problem
	f.env.Exit = &remotegpuv1.ExitStatus{Code: 137, Signal: 9, OomKilled: true}
	f.env.OomKills = 2
	if code, stdout, _ := f.run(t, "env", "get", "demo"); code != 0 || !strings.Contains(stdout, "2 processes were killed") {
		t.Errorf("get: code %d: %s", code, stdout)
	}
	code, _, stderr := f.run(t, "env", "create", "demo", "--image", "app")
	if code != 8 || !strings.Contains(stderr, "code 137, signal 9, out of memory") || !strings.Contains(stderr, "Try: check the name") {
		t.Errorf("code %d: %s", code, stderr)
	}
}

func TestOperationsByKind(t *testing.T) {
	f := newFake(t)
	op := operation(succeeded, "", 0, 0)
	op.Target, op.Arguments = "docker.io/a:1", map[string]string{"timeout": "10s", "force": "true"}
	f.ops = []*remotegpuv1.Operation{op}
	if code, stdout, stderr := f.run(t, "op", "ls", "--kind", "image.pull,image.push"); code != 0 || !strings.Contains(stdout, "01OP") {
		t.Errorf("code %d: %s%s", code, stdout, stderr)
	}
	if list, ok := f.last.(*remotegpuv1.ListOperationsRequest); !ok || !slices.Equal(list.GetKinds(), []string{"image.pull", "image.push"}) {
		t.Errorf("request %v", f.last)
	}
	if code, stdout, stderr := f.run(t, "op", "get", "01OP"); code != 0 || !strings.Contains(stdout, "force=true,timeout=10s") {
		t.Errorf("code %d: %s%s", code, stdout, stderr)
	}
}

func TestInterruptedWait(t *testing.T) {
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(running, "pulling", 0, 0)}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-f.pending; cancel() }()
	code, _, stderr := f.runWith(ctx, "", map[string]string{}, "env", "create", "demo", "--image", "app")
	if code != 130 || !strings.Contains(stderr, "operation 01OP goes on") || !strings.Contains(stderr, "remotegpu op cancel 01OP") {
		t.Errorf("code %d: %s", code, stderr)
	}
	f = newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(running, "pulling", 0, 0)}
	code, _, stderr = f.run(t, "env", "stop", "demo", "--timeout", "200ms", "--grace", "0s")
	if code != 8 || !strings.Contains(stderr, "still not done") {
		t.Errorf("code %d: %s", code, stderr)
	}
	if stop, ok := f.last.(*remotegpuv1.StopEnvironmentRequest); !ok || stop.GetTimeout() == nil || stop.GetTimeout().AsDuration() != 0 || stop.GetRequestId() == "" {
		t.Errorf("request %v", f.last)
	}
	code, stdout, stderr := f.run(t, "env", "stop", "demo", "--no-wait")
	if code != 0 || stdout != "demo: operation 01OP\n" || !strings.Contains(stderr, "op watch 01OP") {
		t.Errorf("code %d: %s%s", code, stdout, stderr)
	}
	if stop, _ := f.last.(*remotegpuv1.StopEnvironmentRequest); stop.GetTimeout() != nil {
		t.Error("a grace time was sent though none was given")
	}
}

func TestExec(t *testing.T) {
	f := newFake(t)
	f.result = &remotegpuv1.RunCommandResponse{ExitCode: 42, Stdout: []byte("out"), Stderr: []byte("err"), StdoutTruncated: true}
	code, stdout, stderr := f.runWith(t.Context(), "input", map[string]string{},
		"env", "exec", "--unary", "demo", "-e", "A=1", "-u", "root", "--timeout", "5s", "--", "ls", "-o", "--json")
	if code != 42 || stdout != "out" || stderr != "errWarning: the command's output beyond 1 MiB were dropped\n" {
		t.Errorf("code %d, %q, %q", code, stdout, stderr)
	}
	want := &remotegpuv1.RunCommandRequest{
		Environment: "demo", Argv: []string{"ls", "-o", "--json"}, Stdin: []byte("input"),
		Env: map[string]string{"A": "1"}, User: "root", Timeout: durationpb.New(5 * time.Second),
	}
	if diff := cmp.Diff(want, f.last, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	f.runWith(t.Context(), "input", map[string]string{}, "env", "exec", "--unary", "--stdin=false", "demo", "--", "ls")
	if request, ok := f.last.(*remotegpuv1.RunCommandRequest); !ok || len(request.GetStdin()) != 0 {
		t.Errorf("stdin was read though it was not to be: %v", f.last)
	}
	if code, _, _ := f.run(t, "env", "exec", "--unary", "demo"); code != 125 {
		t.Errorf("wrong usage: %d", code)
	}
	if code, _, _ := f.runWith(t.Context(), strings.Repeat("x", 1<<20+1), map[string]string{}, "env", "exec", "--unary", "demo", "--", "cat"); code != 125 {
		t.Errorf("too much input: %d", code)
	}
	for reason, want := range map[string]int{"COMMAND_NOT_FOUND": 127, "COMMAND_NOT_EXECUTABLE": 126, "COMMAND_TIMEOUT": 124, "ENV_NOT_RUNNING": 125} {
		f.err = apiError(t, connect.CodeInvalidArgument, reason, "no", "", "")
		if code, _, _ := f.run(t, "env", "exec", "--unary", "demo", "--", "x"); code != want {
			t.Errorf("%s: %d", reason, code)
		}
	}
	detail, err := connectproto.NewErrorDetail(&remotegpuv1.RunCommandResponse{ExitCode: 137, Stdout: []byte("important"), Stderr: []byte("why\n")})
	if err != nil {
		t.Fatal(err)
	}
	f.err = connect.NewError(connect.CodeDeadlineExceeded, "too late").WithDetail(detail)
	code, stdout, stderr = f.run(t, "env", "exec", "--unary", "demo", "--", "x")
	if code != 125 || stdout != "important" || stderr != "why\nError: too late\n" {
		t.Errorf("killed at its timeout: %d, %q, %q", code, stdout, stderr)
	}
}

func TestDesktop(t *testing.T) {
	f := newFake(t)
	at := func(r remotegpuv1.DesktopReadiness) *remotegpuv1.GetDesktopResponse {
		return &remotegpuv1.GetDesktopResponse{Readiness: r, Detail: "the socket is not there"}
	}
	f.desktops = []*remotegpuv1.GetDesktopResponse{
		at(remotegpuv1.DesktopReadiness_DESKTOP_READINESS_STARTING), at(remotegpuv1.DesktopReadiness_DESKTOP_READINESS_DRAWN),
	}
	if code, _, stderr := f.run(t, "desktop", "url", "demo", "--wait", "--view", "--ttl", "1h"); code != 0 {
		t.Errorf("code %d: %s", code, stderr)
	}
	if r, ok := f.last.(*remotegpuv1.CreateDesktopSessionRequest); !ok || r.GetAccess() != remotegpuv1.DesktopAccess_DESKTOP_ACCESS_VIEW || r.GetTtl().AsDuration() != time.Hour {
		t.Errorf("request %v", f.last)
	}
	paused := at(remotegpuv1.DesktopReadiness_DESKTOP_READINESS_STOPPED)
	paused.Detail = "the environment is paused"
	f.desktops = []*remotegpuv1.GetDesktopResponse{paused}
	if code, _, stderr := f.run(t, "desktop", "wait", "demo"); code != 4 || !strings.Contains(stderr, "is paused") || !strings.Contains(stderr, "env start demo") {
		t.Errorf("a paused desktop: exit %d, %s", code, stderr)
	}
	// Without its token the page of a desktop opens nothing.
	f.env.Access = []*remotegpuv1.AccessURL{
		{ServiceType: remotegpuv1.ServiceType_SERVICE_TYPE_NOVNC, Url: "https://gpu1:7443/desktop/01ENV"},
		{ServiceType: remotegpuv1.ServiceType_SERVICE_TYPE_NOVNC, Url: "http://gpu1:6080/vnc.html"},
	}
	if _, stdout, _ := f.run(t, "env", "get", "demo"); strings.Contains(stdout, "/desktop/01ENV") ||
		!strings.Contains(stdout, "gpu1:6080/vnc.html") || !strings.Contains(stdout, "remotegpu desktop url demo") {
		t.Errorf("how to reach the desktop:\n%s", stdout)
	}
	f.desktops = f.desktops[:0]
	f.desktops = append(f.desktops, at(remotegpuv1.DesktopReadiness_DESKTOP_READINESS_CONNECTABLE))
	if code, _, stderr := f.run(t, "desktop", "wait", "demo", "--timeout", "50ms"); code != 8 || !strings.Contains(stderr, "the socket is not there") {
		t.Errorf("code %d: %s", code, stderr)
	}
	file := filepath.Join(t.TempDir(), "shot.png")
	code, stdout, stderr := f.run(t, "desktop", "screenshot", "demo", "-o", file)
	if info, err := os.Stat(file); code != 0 || err != nil || info.Size() != 6<<20 || stdout != file+": 1920x1080\n" {
		t.Errorf("code %d, %v, %s%s", code, err, stdout, stderr)
	}
	if code, stdout, _ := f.run(t, "desktop", "screenshot", "demo", "-o", "-"); code != 0 || len(stdout) != 6<<20 {
		t.Errorf("code %d, %d bytes", code, len(stdout))
	}
}
