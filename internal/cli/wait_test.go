package cli_test

import (
	"strings"
	"testing"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

const (
	envRunning = remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_RUNNING
	envStopped = remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_STOPPED
	envError   = remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_ERROR
	envDeleted = remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_DELETED
)

// inState is the fake's environment in a state, with the exit code of its last
// run, -1: none.
func inState(state remotegpuv1.EnvironmentState, code int32) *remotegpuv1.Environment {
	e := environment()
	if e.State = state; code >= 0 {
		e.Exit = &remotegpuv1.ExitStatus{Code: code}
	}
	return e
}

// change is an environment as a watch sends it.
func change(e *remotegpuv1.Environment, token string) *remotegpuv1.WatchEnvironmentsResponse {
	return &remotegpuv1.WatchEnvironmentsResponse{Environment: e, ResumeToken: token}
}

// A wait ends with the run that nothing follows, and prints its exit code.
func TestWait(t *testing.T) {
	hangs := func(f *fake) error { <-f.t.Context().Done(); return nil }
	stops := func(*fake) error { return connect.NewError(connect.CodeUnavailable, "the node is stopping") }
	tooOld := func(f *fake) error {
		return apiError(f.t, connect.CodeOutOfRange, "RESUME_TOKEN_TOO_OLD", "too old", "resume_after", "watch anew")
	}
	synced := &remotegpuv1.WatchEnvironmentsResponse{Synced: true, ResumeToken: "1"}
	planned, starting, paused := inState(envError, 1), inState(envError, 1), inState(envStopped, -1)
	planned.RestartAt, starting.Operation, paused.Paused = timestamppb.Now(), "01OP", true
	never := inState(envError, -1)
	never.Problem = &remotegpuv1.Problem{Reason: "IMAGE_NOT_FOUND", Code: "not_found", Message: "no such image"}
	other := inState(envStopped, 9)
	other.Id = "01OTHER"
	runs := change(inState(envRunning, -1), "")
	type sends = []*remotegpuv1.WatchEnvironmentsResponse
	for _, test := range []struct {
		name, args string
		now        *remotegpuv1.Environment
		calls      []watchCall
		code       int
		stdout     string
		says       string
	}{
		{"has ended", "demo", inState(envStopped, 7), nil, 0, "7\n", ""},
		{"never ran", "demo", inState(envStopped, -1), nil, 0, "-\n", ""},
		{"was never made", "demo", never, nil, 8, "-\n", "no such image"},
		{"one is missing", "nosuch demo nosuch", inState(envError, 7), nil, 3, "7\n", "there is none"},
		{"ends", "demo", runs.GetEnvironment(), []watchCall{{sends: sends{runs, synced, change(other, "2"), change(inState(envError, 137), "3")}, end: hangs}}, 0, "137\n", ""},
		{
			"is restarted by its policy", "demo", planned,
			[]watchCall{{sends: sends{change(planned, ""), synced, change(starting, "2"), change(runs.GetEnvironment(), "3"), change(paused, "4"), change(inState(envStopped, 0), "5")}, end: hangs}},
			0, "0\n", "",
		},
		{"twice", "demo demo", runs.GetEnvironment(), []watchCall{{sends: sends{runs, synced, change(inState(envStopped, 3), "2")}, end: hangs}}, 0, "3\n3\n", ""},
		{"is deleted", "demo", runs.GetEnvironment(), []watchCall{{sends: sends{runs, synced, change(inState(envDeleted, -1), "2")}, end: hangs}}, 0, "-\n", ""},
		{"was deleted before the watch", "demo", runs.GetEnvironment(), []watchCall{{sends: sends{synced}, end: hangs}}, 0, "-\n", ""},
		{"through a lost connection", "demo", runs.GetEnvironment(), []watchCall{{sends: sends{runs, synced}, end: stops}, {sends: sends{change(inState(envStopped, 4), "2")}, end: hangs}}, 0, "4\n", "connection lost"},
		{"was deleted meanwhile", "demo", runs.GetEnvironment(), []watchCall{{sends: sends{runs, synced}, end: stops}, {end: tooOld}, {sends: sends{synced}, end: hangs}}, 0, "-\n", "connection lost"},
		{"takes too long", "--timeout 300ms demo", planned, []watchCall{{sends: sends{change(planned, ""), synced}, end: hangs}}, 8, "", "still not ended: demo"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t)
			f.free, f.env = "nosuch", proto.CloneOf(test.now)
			for i := range test.calls {
				test.calls[i].f = f
			}
			f.watched = &watched{calls: test.calls}
			code, stdout, stderr := f.run(t, append([]string{"env", "wait"}, strings.Fields(test.args)...)...)
			if code != test.code || stdout != test.stdout || !strings.Contains(stderr, test.says) || test.says == "" && stderr != "" {
				t.Errorf("code %d, %q, %s", code, stdout, stderr)
			}
		})
	}
}

// Programs get the environment as it ended.
func TestWaitInJSON(t *testing.T) {
	f := newFake(t)
	f.env = inState(envStopped, 7)
	if code, stdout, stderr := f.run(t, "-o", "json", "env", "wait", "demo"); code != 0 || !strings.Contains(strings.ReplaceAll(stdout, " ", ""), `"code":7`) {
		t.Errorf("code %d, %s%s", code, stdout, stderr)
	}
	if code, stdout, stderr := f.run(t, "-o", "json", "env", "wait", "demo", "demo"); code != 0 || strings.Count(stdout, "\n") != 2 {
		t.Errorf("code %d, %s%s", code, stdout, stderr)
	}
}
