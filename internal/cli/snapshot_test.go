package cli_test

import (
	"context"
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

// snapshots is the service of a fake.
type snapshots struct {
	remotegpuv1connect.UnimplementedSnapshotServiceHandler
	fake *fake
	all  []proto.Message         // requests, in order
	list []*remotegpuv1.Snapshot // nil: one
	gone bool                    // one that is asked for was deleted meanwhile
}

func aSnapshot() *remotegpuv1.Snapshot {
	spec := proto.CloneOf(environment().GetSpec())
	spec.Hostname = "demo"
	spec.Ports = []*remotegpuv1.PortRequest{{ServiceType: remotegpuv1.ServiceType_SERVICE_TYPE_SSH, ExternalPort: 22007}}
	return &remotegpuv1.Snapshot{
		Id: "01SNAP", Name: "first", Project: "default", Node: "gpu1", Environment: "01ENV", EnvironmentName: "demo",
		State: remotegpuv1.SnapshotState_SNAPSHOT_STATE_READY, SizeBytes: 3 << 20, Image: "docker.io/team/app:1", Spec: spec,
		TakenRunning: true, CreatedAt: ago(2 * time.Hour), Labels: map[string]string{"a": "b"},
	}
}

func (s *snapshots) got(request proto.Message) error {
	s.fake.mu.Lock()
	s.all = append(s.all, request)
	s.fake.mu.Unlock()
	return s.fake.got(request)
}

func (s *snapshots) CreateSnapshot(_ context.Context, r *remotegpuv1.CreateSnapshotRequest) (*remotegpuv1.CreateSnapshotResponse, error) {
	response := &remotegpuv1.CreateSnapshotResponse{Snapshot: aSnapshot(), Operation: operation(running, "", 0, 0)}
	if s.gone {
		response.Snapshot = nil
	}
	return response, s.got(r)
}

func (s *snapshots) GetSnapshot(context.Context, *remotegpuv1.GetSnapshotRequest) (*remotegpuv1.GetSnapshotResponse, error) {
	return &remotegpuv1.GetSnapshotResponse{Snapshot: aSnapshot()}, nil
}

func (s *snapshots) ListSnapshots(_ context.Context, r *remotegpuv1.ListSnapshotsRequest) (*remotegpuv1.ListSnapshotsResponse, error) {
	if s.list == nil {
		return &remotegpuv1.ListSnapshotsResponse{Snapshots: []*remotegpuv1.Snapshot{aSnapshot()}}, s.got(r)
	}
	return &remotegpuv1.ListSnapshotsResponse{Snapshots: s.list}, s.got(r)
}

func (s *snapshots) DeleteSnapshot(_ context.Context, r *remotegpuv1.DeleteSnapshotRequest) (*remotegpuv1.DeleteSnapshotResponse, error) {
	if err := s.fake.none(r.GetSnapshot()); err != nil {
		return nil, err
	}
	return &remotegpuv1.DeleteSnapshotResponse{Snapshot: r.GetSnapshot()}, s.got(r)
}

func (s *snapshots) RollBackEnvironment(_ context.Context, r *remotegpuv1.RollBackEnvironmentRequest) (*remotegpuv1.RollBackEnvironmentResponse, error) {
	return &remotegpuv1.RollBackEnvironmentResponse{Environment: s.fake.env, Operation: operation(running, "", 0, 0)}, s.got(r)
}

func (s *snapshots) ExportSnapshot(_ context.Context, r *remotegpuv1.ExportSnapshotRequest) (*remotegpuv1.ExportSnapshotResponse, error) {
	return &remotegpuv1.ExportSnapshotResponse{Reference: "docker.io/" + r.GetReference(), Operation: operation(running, "", 0, 0)}, s.got(r)
}

func TestSnapshotCommands(t *testing.T) {
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(succeeded, "", 0, 0)}
	for _, test := range []struct {
		args, want string
		request    proto.Message
	}{
		{"env snapshot ls demo -l a=b", `
SNAPSHOT     ID       ENVIRONMENT   STATE   SIZE    IMAGE                  AGE
demo/first   01SNAP   demo          ready   3 MiB   docker.io/team/app:1   2h
`, &remotegpuv1.ListSnapshotsRequest{Environment: "demo", LabelSelector: "a=b"}},
		{
			"env snapshot create demo --name first -l a=b --etag 3 --request-id r", "Snapshot:      demo/first",
			&remotegpuv1.CreateSnapshotRequest{RequestId: "r", Environment: "demo", Name: "first", Labels: map[string]string{"a": "b"}, Etag: "3"},
		},
		{"env snapshot create demo --request-id r --no-wait", "Taken:         while it ran", &remotegpuv1.CreateSnapshotRequest{RequestId: "r", Environment: "demo"}},
		{"env snapshot get demo/first", "Size:          3 MiB", nil},
		{"env snapshot rm demo/first", "demo/first: deleted", &remotegpuv1.DeleteSnapshotRequest{Snapshot: "demo/first"}},
		{"env snapshot rm -o json demo/first --etag 1", `{"snapshot":"demo/first"}`, &remotegpuv1.DeleteSnapshotRequest{Snapshot: "demo/first", Etag: "1"}},
		{
			"env snapshot rollback demo first -f -t 3s --request-id r", "demo: rolled back to first",
			&remotegpuv1.RollBackEnvironmentRequest{RequestId: "r", Environment: "demo", Snapshot: "first", Force: true, Timeout: durationpb.New(3 * time.Second)},
		},
		{
			"env snapshot export demo/first team/app:2 --request-id r", "docker.io/team/app:2",
			&remotegpuv1.ExportSnapshotRequest{RequestId: "r", Snapshot: "demo/first", Reference: "team/app:2"},
		},
		{
			"env create new --from-snapshot demo/first --request-id r", "Name:      demo",
			&remotegpuv1.CreateEnvironmentRequest{RequestId: "r", Name: "new", Spec: &remotegpuv1.EnvironmentSpec{
				Snapshot: "demo/first", PullPolicy: remotegpuv1.PullPolicy_PULL_POLICY_IF_NOT_PRESENT, Resources: &remotegpuv1.Resources{},
			}},
		},
	} {
		f.last = nil
		code, stdout, stderr := f.run(t, strings.Fields(test.args)...)
		if code != 0 || !strings.Contains(stdout, strings.TrimPrefix(test.want, "\n")) {
			t.Errorf("%s: code %d %s\n%s\nwant\n%s", test.args, code, stderr, stdout, test.want)
		}
		if list, ok := f.last.(*remotegpuv1.ListSnapshotsRequest); ok {
			list.PageSize = 0
		}
		if diff := cmp.Diff(test.request, f.last, protocmp.Transform()); diff != "" {
			t.Errorf("%s:\n%s", test.args, diff)
		}
	}
	for _, args := range []string{
		"env create x --image y --from-snapshot z", "env create x", "env snapshot rollback demo", "env snapshot create", "env clone demo",
	} {
		if code, _, stderr := f.run(t, strings.Fields(args)...); code != 2 {
			t.Errorf("%s: code %d, %s", args, code, stderr)
		}
	}
}

// TestSnapshotsOfDeletedEnvironments: a list tells whose environment is gone, and
// what is offered is what it seems.
func TestSnapshotsOfDeletedEnvironments(t *testing.T) {
	f := newFake(t)
	alone, shadowed, now := aSnapshot(), aSnapshot(), aSnapshot()
	alone.Id, alone.Name, alone.EnvironmentDeleted = "01ALONE", "other", true
	shadowed.Id, shadowed.EnvironmentDeleted = "01OLD", true
	f.snapshots.list = []*remotegpuv1.Snapshot{alone, shadowed, now}
	want := `SNAPSHOT     ID        ENVIRONMENT      STATE   SIZE    IMAGE                  AGE
demo/other   01ALONE   demo (deleted)   ready   3 MiB   docker.io/team/app:1   2h
demo/first   01OLD     demo (deleted)   ready   3 MiB   docker.io/team/app:1   2h
demo/first   01SNAP    demo             ready   3 MiB   docker.io/team/app:1   2h
`
	if code, stdout, stderr := f.run(t, "env", "snapshot", "ls"); code != 0 || stdout != want {
		t.Errorf("ls: code %d %s\n%s\nwant\n%s", code, stderr, stdout, want)
	}
	if code, stdout, stderr := f.run(t, "env", "snapshot", "ls", "-q"); code != 0 || stdout != "01ALONE\n01OLD\n01SNAP\n" {
		t.Errorf("ls -q: code %d %s\n%s", code, stderr, stdout)
	}
	want = "demo/other\tdocker.io/team/app:1\n01OLD\tdemo/first of a deleted environment\ndemo/first\tdocker.io/team/app:1\n:4\n"
	for _, args := range []string{"env snapshot rm", "env snapshot export", "env create x --from-snapshot"} {
		if code, stdout, stderr := f.run(t, append(strings.Fields("__complete "+args), "")...); code != 0 || stdout != want {
			t.Errorf("completion of %s: code %d %s\n%s\nwant\n%s", args, code, stderr, stdout, want)
		}
	}
}

// A clone takes a snapshot unless one is named, asks for what the other has
// without its ports of the host, and deletes the snapshot that it took.
func TestClone(t *testing.T) {
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(succeeded, "", 0, 0)}
	f.free = "two"
	spec := aSnapshot().GetSpec()
	spec.Image, spec.Hostname, spec.Snapshot, spec.Ports[0].ExternalPort = "", "", "01SNAP", 0
	want := &remotegpuv1.CreateEnvironmentRequest{RequestId: "r", Name: "two", Spec: spec}
	kinds := func() []string {
		var names []string
		for _, request := range f.snapshots.all {
			names = append(names, string(request.ProtoReflect().Descriptor().Name()))
		}
		f.snapshots.all = nil
		return names
	}
	for _, test := range []struct {
		args  string
		calls []string
	}{
		{"env clone demo two --request-id r", []string{"CreateSnapshotRequest", "DeleteSnapshotRequest"}},
		{"env clone demo two --request-id r --no-wait", []string{"CreateSnapshotRequest"}},
		{"env clone demo/first two --request-id r", nil},
	} {
		f.created = nil
		code, stdout, stderr := f.run(t, strings.Fields(test.args)...)
		if code != 0 || !strings.Contains(stdout, "Name:") {
			t.Errorf("%s: code %d, %s%s", test.args, code, stdout, stderr)
		}
		if strings.Contains(test.args, "no-wait") != strings.Contains(stderr, "remotegpu env snapshot rm demo/first") {
			t.Errorf("%s: %s", test.args, stderr)
		}
		if diff := cmp.Diff(want, f.created, protocmp.Transform()); diff != "" {
			t.Errorf("%s:\n%s", test.args, diff)
		}
		if got := kinds(); !slices.Equal(got, test.calls) {
			t.Errorf("%s: calls %q, want %q", test.args, got, test.calls)
		}
	}
	// Nothing is frozen for a name that cannot be, and nothing stays of a create
	// that is refused.
	for args, exit := range map[string]int{"env clone demo demo": 4, "env clone demo Two_": 2} {
		if code, _, stderr := f.run(t, strings.Fields(args)...); code != exit || kinds() != nil || !strings.Contains(stderr, "Try:") {
			t.Errorf("%s: code %d, %s", args, code, stderr)
		}
	}
	f.refused = apiError(t, connect.CodeAlreadyExists, "ENV_NAME_EXISTS", "somebody was faster", "name", "take another")
	for _, args := range []string{"env clone demo two", "env clone demo two --no-wait"} {
		if code, _, stderr := f.run(t, strings.Fields(args)...); code != 4 || !slices.Equal(kinds(), []string{"CreateSnapshotRequest", "DeleteSnapshotRequest"}) {
			t.Errorf("%s: code %d, %s", args, code, stderr)
		}
	}
	f.err = apiError(t, connect.CodeFailedPrecondition, "SNAPSHOT_BUSY", "an operation works on it", "snapshot", "wait for it")
	if code, _, stderr := f.run(t, "env", "snapshot", "rm", "demo/first"); code != 4 || !strings.Contains(stderr, "wait for it") {
		t.Errorf("code %d, %s", code, stderr)
	}
}

// Who does not wait for the snapshot of a clone leaves none behind, unless to go
// on with it.
func TestCloneThatIsNotWaitedFor(t *testing.T) {
	for _, test := range []struct {
		args      string
		cancelled remotegpuv1.OperationState
		calls     []string // of services of snapshots
		says      string
	}{
		{"env clone demo two --timeout 100ms", cancelled, []string{"CreateSnapshotRequest"}, "is given up"},
		{"env clone demo two --timeout 100ms", succeeded, []string{"CreateSnapshotRequest", "DeleteSnapshotRequest"}, "is given up"},
		{"env clone demo two --timeout 100ms --request-id r", 0, []string{"CreateSnapshotRequest"}, "repeat the command with its --request-id"},
	} {
		f := newFake(t)
		f.free = "two"
		f.ops = []*remotegpuv1.Operation{operation(running, "", 0, 0)}
		f.cancelled = []*remotegpuv1.Operation{operation(test.cancelled, "", 0, 0)}
		code, _, stderr := f.run(t, strings.Fields(test.args)...)
		if code != 8 || !strings.Contains(stderr, test.says) || f.created != nil {
			t.Errorf("%s: code %d, %s, created %v", test.args, code, stderr, f.created)
		}
		if repeatable := test.cancelled == 0; strings.Contains(stderr, "operation 01OP goes on") != repeatable || slices.Contains(f.order, "CancelOperationRequest") == repeatable {
			t.Errorf("%s, operation then %s: %q, %s", test.args, test.cancelled, f.order, stderr)
		}
		var calls []string
		for _, request := range f.snapshots.all {
			calls = append(calls, string(request.ProtoReflect().Descriptor().Name()))
		}
		if !slices.Equal(calls, test.calls) {
			t.Errorf("%s, operation then %s: calls %q, want %q", test.args, test.cancelled, calls, test.calls)
		}
	}
}

// Who leaves while the snapshot of a clone is taken leaves none behind either.
func TestCloneThatIsInterrupted(t *testing.T) {
	f := newFake(t)
	f.free = "two"
	f.ops, f.cancelled = []*remotegpuv1.Operation{operation(running, "", 0, 0)}, []*remotegpuv1.Operation{operation(cancelled, "", 0, 0)}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { <-f.pending; cancel() }()
	code, _, stderr := f.runWith(ctx, "", map[string]string{}, "env", "clone", "demo", "two")
	if code != 130 || !strings.Contains(stderr, "given up") || !slices.Contains(f.order, "CancelOperationRequest") || f.created != nil {
		t.Errorf("code %d, %s, calls %q, created %v", code, stderr, f.order, f.created)
	}
}

// A clone that is asked for again asks for the same snapshot, and finds the clone
// when it is there and that snapshot is not any more.
func TestCloneIsRepeatable(t *testing.T) {
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(succeeded, "", 0, 0)}
	ask := func(args ...string) (request *remotegpuv1.CreateSnapshotRequest) {
		t.Helper()
		f.snapshots.all = nil
		if code, stdout, stderr := f.run(t, append([]string{"env", "clone", "demo"}, args...)...); code != 0 || !strings.Contains(stdout, "Name:") {
			t.Fatalf("code %d, %s%s", code, stdout, stderr)
		}
		request, _ = f.snapshots.all[0].(*remotegpuv1.CreateSnapshotRequest)
		return request
	}
	first := ask("demo", "--request-id", "r") // its name is taken by then
	if again := ask("demo", "--request-id", "r"); first.GetName() == "" || first.GetRequestId() == "" || !proto.Equal(first, again) {
		t.Errorf("first %v, then %v", first, again)
	}
	if other := ask("demo", "--request-id", strings.Repeat("r", 128)); other.GetName() == first.GetName() || other.GetRequestId() == first.GetRequestId() || len(other.GetRequestId()) > 128 {
		t.Errorf("another: %v, want not %v", other, first)
	}
	f.snapshots.gone = true
	f.ops[0].Result = map[string]string{"snapshot": "01SNAP"}
	f.env.Spec.Snapshot, f.created = "01SNAP", nil
	ask("demo", "--request-id", "r")
	f.env.Spec.Snapshot = "01OTHER"
	if code, _, stderr := f.run(t, "env", "clone", "demo", "demo", "--request-id", "r"); code != 4 || !strings.Contains(stderr, "new request id") {
		t.Errorf("another environment of that name: code %d, %s", code, stderr)
	}
	f.free = "two"
	if code, _, stderr := f.run(t, "env", "clone", "demo", "two", "--request-id", "r"); code != 4 || !strings.Contains(stderr, "new request id") {
		t.Errorf("none of that name: code %d, %s", code, stderr)
	}
	if f.created != nil {
		t.Errorf("created once more: %v", f.created)
	}
}
