package cli_test

import (
	"context"
	"strings"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
)

// ExecCommand takes standard input to its end and answers f.result; the
// command "hang" never ends, nor does "yes", which writes all the time, nor
// "sleep", which says so once and tells f.left when its caller has gone.
func (f *fake) ExecCommand(ctx context.Context, stream remotegpuv1connect.EnvironmentServiceExecCommandServerStream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if err := f.got(start); err != nil {
		return err
	}
	if err := stream.Send(&remotegpuv1.ExecCommandResponse{Message: &remotegpuv1.ExecCommandResponse_Started{}}); err != nil {
		return err
	}
	for start.GetArgv()[0] == "yes" {
		if err := stream.Send(&remotegpuv1.ExecCommandResponse{Message: &remotegpuv1.ExecCommandResponse_Stdout{Stdout: []byte("y\n")}}); err != nil {
			return err
		}
	}
	if start.GetArgv()[0] == "sleep" {
		if err := stream.Send(&remotegpuv1.ExecCommandResponse{Message: &remotegpuv1.ExecCommandResponse_Stdout{Stdout: []byte("asleep")}}); err != nil {
			return err
		}
		if f.dies {
			f.die()
		}
		<-ctx.Done()
		f.left <- struct{}{}
		return ctx.Err()
	}
	var input []byte
	for {
		message, err := stream.Receive()
		if err != nil {
			return err
		}
		if message.GetEof() != nil {
			break
		}
		input = append(input, message.GetStdin()...)
	}
	if start.GetArgv()[0] == "hang" {
		<-ctx.Done()
		return ctx.Err()
	}
	for _, answer := range []*remotegpuv1.ExecCommandResponse{
		{Message: &remotegpuv1.ExecCommandResponse_Stdout{Stdout: append([]byte("got "), input...)}},
		{Message: &remotegpuv1.ExecCommandResponse_Stderr{Stderr: []byte("err")}},
		{Message: &remotegpuv1.ExecCommandResponse_Exit{Exit: &remotegpuv1.ExecExit{Code: f.result.GetExitCode()}}},
	} {
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
	return nil
}

// The -- before the command may be left out. Flags before the command are ours,
// those after it are its own.
func TestExecWithoutDashes(t *testing.T) {
	f := newFake(t)
	f.result = &remotegpuv1.RunCommandResponse{}
	for _, test := range []struct {
		args string
		want *remotegpuv1.ExecStart
	}{
		{"env exec demo ls -la", &remotegpuv1.ExecStart{Environment: "demo", Argv: []string{"ls", "-la"}}},
		{"env exec demo ls -o json --user x", &remotegpuv1.ExecStart{Environment: "demo", Argv: []string{"ls", "-o", "json", "--user", "x"}}},
		{"--project p env exec -u root demo -iw /tmp --env=A=1 ls --help", &remotegpuv1.ExecStart{
			Environment: "demo", Project: "p", User: "root", Workdir: "/tmp", Env: map[string]string{"A": "1"}, Argv: []string{"ls", "--help"},
		}},
		{"env --project p exec -uroot demo env exec -x", &remotegpuv1.ExecStart{
			Environment: "demo", Project: "p", User: "root", Argv: []string{"env", "exec", "-x"},
		}},
		{"env exec demo -- git checkout -- x", &remotegpuv1.ExecStart{Environment: "demo", Argv: []string{"git", "checkout", "--", "x"}}},
	} {
		f.last = nil
		code, _, stderr := f.run(t, strings.Fields(test.args)...)
		if diff := cmp.Diff(test.want, f.last, protocmp.Transform()); code != 0 || diff != "" {
			t.Errorf("%s: code %d, %s%s", test.args, code, stderr, diff)
		}
	}
	for _, args := range []string{"env exec demo -la", "env exec demo -la ls", "env exec demo git checkout -- x", "env exec demo"} {
		f.last = nil
		code, _, stderr := f.run(t, strings.Fields(args)...)
		if code != 125 || f.last != nil || !strings.Contains(stderr, "Try: remotegpu env exec NAME -- COMMAND") {
			t.Errorf("%s: code %d, sent %v, %s", args, code, f.last, stderr)
		}
	}
}

func TestExecStream(t *testing.T) {
	f := newFake(t)
	f.result = &remotegpuv1.RunCommandResponse{ExitCode: 42}
	code, stdout, stderr := f.runWith(t.Context(), "input", map[string]string{"TERM": "vt100"},
		"env", "exec", "demo", "-e", "A=1", "-u", "root", "-w", "/tmp", "--", "ls", "-o", "--json")
	if code != 42 || stdout != "got input" || stderr != "err" {
		t.Errorf("code %d, %q, %q", code, stdout, stderr)
	}
	want := &remotegpuv1.ExecStart{
		Environment: "demo", Argv: []string{"ls", "-o", "--json"}, Env: map[string]string{"A": "1"}, User: "root", Workdir: "/tmp",
	}
	if diff := cmp.Diff(want, f.last, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	_, stdout, _ = f.runWith(t.Context(), "input", map[string]string{"TERM": "vt100"}, "env", "exec", "--stdin=false", "demo", "--", "ls")
	if stdout != "got " {
		t.Errorf("input was read though it was not to be: %q", stdout)
	}
	_, stdout, _ = f.runWith(t.Context(), "typed", map[string]string{"TERM": "vt100"}, "env", "exec", "-it", "demo", "--", "ls")
	want = &remotegpuv1.ExecStart{
		Environment: "demo", Argv: []string{"ls"}, Env: map[string]string{"TERM": "vt100"},
		Terminal: &remotegpuv1.TerminalSize{Columns: 80, Rows: 24},
	}
	if diff := cmp.Diff(want, f.last, protocmp.Transform()); diff != "" || stdout != "got typed" {
		t.Errorf("%q, %s", stdout, diff)
	}
	big := strings.Repeat("x", 3<<20)
	if _, stdout, _ := f.runWith(t.Context(), big, map[string]string{}, "env", "exec", "demo", "--", "cat"); stdout != "got "+big {
		t.Errorf("%d bytes came back", len(stdout))
	}
	if code, _, stderr := f.run(t, "env", "exec", "--timeout", "300ms", "demo", "--", "hang"); code != 124 || !strings.Contains(stderr, "300ms") {
		t.Errorf("over time: %d, %s", code, stderr)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if code, _, _ := f.runWith(ctx, "", map[string]string{}, "env", "exec", "demo", "--", "hang"); code != 130 {
		t.Errorf("interrupted: %d", code)
	}
	for reason, want := range map[string]int{"COMMAND_NOT_FOUND": 127, "COMMAND_NOT_EXECUTABLE": 126, "COMMAND_TIMEOUT": 124, "ENV_NOT_RUNNING": 125} {
		f.err = apiError(t, connect.CodeInvalidArgument, reason, "no", "", "")
		if code, _, _ := f.run(t, "env", "exec", "demo", "--", "x"); code != want {
			t.Errorf("%s: %d, want %d", reason, code, want)
		}
	}
	if code, _, _ := f.run(t, "env", "exec", "--unary", "-t", "demo", "--", "x"); code != 125 {
		t.Errorf("--unary with a terminal: %d", code)
	}
	for _, args := range [][]string{
		{"exec", "-e"},
		{"exec", "--nosuch", "demo", "--", "x"},
		{"exec", "--timeout", "x", "demo", "--", "x"},
		{"shell", "--nosuch", "demo"},
		{"exec", "--timeout", "-5s", "demo", "--", "x"},
		{"exec", "--unary", "--timeout", "-5s", "demo", "--", "x"},
	} {
		f.last = nil
		if code, _, stderr := f.run(t, append([]string{"env"}, args...)...); code != 125 || f.last != nil {
			t.Errorf("%q: %d, sent %v, %s", args, code, f.last, stderr)
		}
	}
	f.err, f.dies = nil, true
	if code, _, stderr := f.run(t, "env", "exec", "demo", "--", "sleep"); code != 125 || !strings.Contains(stderr, "went away") || strings.Contains(stderr, "envelope") {
		t.Errorf("the node dies: %d, %s", code, stderr)
	}
	// Who is told that the node cannot be reached runs the command once more.
	for _, plain := range []string{"--unary", "--output=json"} {
		code, _, stderr := f.run(t, "env", "exec", plain, "demo", "--", "sleep")
		if code != 125 || !strings.Contains(stderr, "how it ended is not known") || strings.Contains(stderr, "cannot reach") {
			t.Errorf("the node dies, %s: %d, %s", plain, code, stderr)
		}
		code, _, stderr = f.run(t, "env", "exec", plain, "--addr", "unix:///nonexistent/node.sock", "demo", "--", "sleep")
		if code != 125 || !strings.Contains(stderr, "cannot reach") {
			t.Errorf("there is no node, %s: %d, %s", plain, code, stderr)
		}
	}
	if _, stdout, _ := f.run(t, "env", "exec", "--help"); strings.Contains(stdout, "(default 1m0s)") || !strings.Contains(stdout, "default: never") {
		t.Errorf("the default of --timeout is not clear:\n%s", stdout)
	}
}

// Linux takes any bytes as arguments and values; the API does not.
func TestStringsThatAreNotUTF8(t *testing.T) {
	f := newFake(t)
	for _, test := range []struct {
		args     []string
		code     int
		contains []string
	}{
		{[]string{"env", "exec", "demo", "--", "rm", "caf\xe9"}, 125, []string{`the argument "caf\xe9" is not UTF-8`, "field start.argv[1]", "printf"}},
		{[]string{"env", "exec", "--unary", "demo", "--", "rm", "caf\xe9"}, 125, []string{`the argument "caf\xe9" is not UTF-8`, "field argv[1]", "printf"}},
		{[]string{"env", "create", "x", "--image", "img", "--", "rm", "caf\xe9"}, 2, []string{`the argument "caf\xe9" is not UTF-8`, "field spec.command[1]", "printf"}},
		{[]string{"env", "exec", "demo", "-e", "KEY=caf\xe9", "--", "rm"}, 125, []string{`start.env["KEY"] is not UTF-8`, "write it in UTF-8"}},
	} {
		f.last = nil
		code, _, stderr := f.run(t, test.args...)
		if code != test.code || f.last != nil || strings.Contains(stderr, "marshal") {
			t.Errorf("%q: %d, sent %v, %s", test.args, code, f.last, stderr)
		}
		for _, text := range test.contains {
			if !strings.Contains(stderr, text) {
				t.Errorf("%q: no %s in %s", test.args, text, stderr)
			}
		}
	}
}
