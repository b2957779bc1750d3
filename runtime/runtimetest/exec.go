//nolint:thelper // these are tests, and a failure should name their lines
package runtimetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

func execTests() []engineTest {
	return []engineTest{
		{"ExecStreams", testExecStreams},
		{"ExecTerminal", testExecTerminal},
		{"ExecSignals", testExecSignals},
		{"ExecRefuses", testExecRefuses},
		{"ExecHangUp", testExecHangUp},
		{"ExecStopped", testExecStopped},
		{"ExecStale", testExecStale},
		{"ExecSlowReader", testExecSlowReader},
	}
}

// Output collects what a command writes; safe for concurrent use.
type Output struct {
	mu   sync.Mutex
	data bytes.Buffer
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.data.Write(p)
}

// String is all of it so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.data.String()
}

// exec is a command with streams on its way.
type exec struct {
	stdout, stderr Output
	control        chan runtime.Control
	cancel         context.CancelCauseFunc
	done           chan struct{}
	exit           runtime.Exit
	err            error
}

func (s *suite) executor(t *testing.T) runtime.Executor {
	t.Helper()
	executor, is := s.Engine.(runtime.Executor)
	if !is {
		t.Fatalf("%T is no runtime.Executor", s.Engine)
	}
	return executor
}

func (s *suite) exec(t *testing.T, id string, stdin io.Reader, terminal *runtime.TerminalSize, argv ...string) *exec {
	t.Helper()
	x := &exec{control: make(chan runtime.Control), done: make(chan struct{})}
	ctx, cancel := context.WithCancelCause(t.Context())
	x.cancel = cancel
	executor, begun := s.executor(t), make(chan struct{})
	go func() {
		defer close(x.done)
		x.exit, x.err = executor.Exec(ctx, id, runtime.Process{Argv: argv, Terminal: terminal}, runtime.Streams{
			Stdin: stdin, Stdout: &x.stdout, Stderr: &x.stderr, Control: x.control,
			Started: func() error { close(begun); return nil },
		})
	}()
	select {
	case <-begun:
	case <-x.done:
	case <-time.After(time.Minute):
		t.Fatal("the command did not start")
	}
	return x
}

func (x *exec) wait(t *testing.T) {
	t.Helper()
	select {
	case <-x.done:
	case <-time.After(time.Minute):
		t.Fatalf("the command did not end; it wrote %q", x.stdout.String())
	}
}

func (x *exec) wrote(t *testing.T, text string) {
	t.Helper()
	Eventually(t, "the command writes "+text, func() bool { return strings.Contains(x.stdout.String(), text) })
}

func testExecStreams(t *testing.T, s *suite) {
	c := s.start(t, s.container())
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for name, test := range map[string]struct {
		stdin          io.Reader
		argv           []string
		code           int
		stdout, stderr string
	}{
		"apart":    {nil, []string{"testprog", "echo", "a", ";", "stderr", "b"}, 0, "a\n", "b\n"},
		"code":     {nil, []string{"testprog", "exit", "17"}, 17, "", ""},
		"input":    {bytes.NewReader(big), []string{"cat"}, 0, string(big), ""},
		"empty":    {bytes.NewReader(nil), []string{"cat"}, 0, "", ""},
		"no input": {nil, []string{"cat"}, 0, "", ""},
	} {
		x := s.exec(t, c.ID, test.stdin, nil, test.argv...)
		x.wait(t)
		if x.err != nil || x.exit.Code != test.code || x.stdout.String() != test.stdout || x.stderr.String() != test.stderr {
			t.Errorf("%s: %+v %v, %d and %d bytes", name, x.exit, x.err, len(x.stdout.String()), len(x.stderr.String()))
		}
	}
	var out Output
	exit, err := s.executor(t).Exec(t.Context(), c.ID, runtime.Process{
		Argv: []string{"testprog", "env", ";", "pwd", ";", "id"}, Env: []string{"NEW=1"}, Workdir: "/bin", User: "app",
	}, runtime.Streams{Stdout: &out, Stderr: &out})
	for _, want := range []string{"NEW=1\n", "IMAGE_VARIABLE=from image\n", "/bin\n", "uid=1000 gid=1000 groups=[1000 2000]"} {
		if err != nil || exit.Code != 0 || !strings.Contains(out.String(), want) {
			t.Errorf("%+v %v: %q lacks %q", exit, err, out.String(), want)
		}
	}
}

func testExecTerminal(t *testing.T, s *suite) {
	c := s.start(t, s.container())
	x := s.exec(t, c.ID, nil, &runtime.TerminalSize{Columns: 101, Rows: 37}, "testprog", "winsize", "9")
	x.wrote(t, "101x37\r\n")
	x.control <- runtime.Control{Resize: &runtime.TerminalSize{Columns: 80, Rows: 25}}
	x.wrote(t, "80x25\r\n")
	x.control <- runtime.Control{Signal: "SIGKILL"}
	x.wait(t)
	if x.err != nil || x.exit.Signal != 9 || x.exit.Code != 137 {
		t.Errorf("exit %+v, %v", x.exit, x.err)
	}
	// The end of input is the key, and the terminal stays.
	x = s.exec(t, c.ID, strings.NewReader("typed\n"), &runtime.TerminalSize{Columns: 80, Rows: 24}, "testprog", "cat", ";", "echo", "after", ";", "stderr", "both")
	x.wait(t)
	if out := x.stdout.String(); x.err != nil || x.exit.Code != 0 || !strings.Contains(out, "typed") || !strings.Contains(out, "after") ||
		!strings.Contains(out, "both") || x.stderr.String() != "" {
		t.Errorf("exit %+v, %v, %q", x.exit, x.err, out)
	}
	// Also where the last line has no end; what comes after keeps its own input.
	for _, text := range []string{"", "unfinished", "finished\nunfinished", "entered\r", strings.Repeat("x", 4000)} {
		x = s.exec(t, c.ID, strings.NewReader(text), &runtime.TerminalSize{Columns: 80, Rows: 24}, "testprog", "cat", ";", "echo", "after")
		x.wait(t)
		if out := x.stdout.String(); x.err != nil || x.exit.Code != 0 || !strings.Contains(out, strings.TrimRight(text[max(0, len(text)-10):], "\r")) || !strings.Contains(out, "after") {
			t.Errorf("input %.20q: exit %+v, %v, %q", text, x.exit, x.err, out)
		}
	}
}

func testExecSignals(t *testing.T, s *suite) {
	c := s.start(t, s.container())
	for _, signal := range []string{"SIGTERM", "int", "15"} {
		x := s.exec(t, c.ID, nil, nil, "testprog", "echo", "up", ";", "sleep")
		x.wrote(t, "up")
		time.Sleep(200 * time.Millisecond) // the handler is set right after
		x.control <- runtime.Control{Signal: signal}
		x.wait(t)
		if x.err != nil || x.exit.Code != 0 || !strings.Contains(x.stdout.String(), "stopped by") {
			t.Errorf("%s: %+v, %v, %q", signal, x.exit, x.err, x.stdout.String())
		}
	}
	x := s.exec(t, c.ID, nil, nil, "testprog", "sleep")
	x.control <- runtime.Control{Signal: "NONSENSE"}
	x.wait(t)
	wantReason(t, "signal of no name", x.err, problem.FieldInvalid)
}

func testExecRefuses(t *testing.T, s *suite) {
	c := s.start(t, s.container())
	streams := func() runtime.Streams { // a refused command may still be reading its input
		return runtime.Streams{Stdin: strings.NewReader("input"), Stdout: io.Discard, Stderr: io.Discard}
	}
	for _, terminal := range []*runtime.TerminalSize{nil, {Columns: 80, Rows: 24}} {
		_, err := s.executor(t).Exec(t.Context(), c.ID, runtime.Process{Argv: []string{"/bin/absent"}, Terminal: terminal}, streams())
		wantReason(t, "absent program", err, problem.CommandNotFound)
		_, err = s.executor(t).Exec(t.Context(), c.ID, runtime.Process{Argv: []string{"/bin"}, Terminal: terminal}, streams())
		wantReason(t, "a directory", err, problem.CommandNotExecutable)
	}
	_, err := s.executor(t).Exec(t.Context(), c.ID, runtime.Process{Argv: []string{"true", strings.Repeat("x", 128<<10)}}, streams())
	wantReason(t, "too long an argument", err, problem.FieldInvalid)
	_, err = s.executor(t).Exec(t.Context(), c.ID, runtime.Process{Argv: []string{"true"}, User: "nobody-here"}, streams())
	wantReason(t, "unknown user", err, problem.UserNotFound)
	if _, err := s.Engine.Stop(t.Context(), c.ID, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := s.executor(t).Exec(t.Context(), c.ID, runtime.Process{Argv: []string{"true"}}, streams()); !errdefs.IsNotFound(err) {
		t.Errorf("in a stopped container: %v, want NotFound", err)
	}
}

// holding says whether a process of "testprog hold" is alive.
func (s *suite) holding(t *testing.T, id string) bool {
	t.Helper()
	return strings.Contains(s.run(t, id, "ps"), "hold")
}

func testExecHangUp(t *testing.T, s *suite) {
	c := s.start(t, s.container())
	left := errors.New("the caller left")
	type caller struct {
		*exec
		typing *io.PipeWriter
		what   string
	}
	var callers []caller // beside one another: what ignores SIGHUP has seconds before it is killed
	for _, terminal := range []*runtime.TerminalSize{nil, {Columns: 80, Rows: 24}} {
		// One that ends at SIGHUP, and one that does not, nor do its children.
		for _, command := range []string{"sleep", "hold"} {
			input, typing := io.Pipe()
			x := s.exec(t, c.ID, input, terminal, "testprog", command)
			if command == "hold" {
				x.wrote(t, "holding")
			}
			callers = append(callers, caller{x, typing, fmt.Sprintf("%s, terminal %v", command, terminal)})
		}
	}
	for _, x := range callers {
		x.cancel(left)
		_ = x.typing.CloseWithError(left) // as the transport does
	}
	for _, x := range callers {
		x.wait(t)
		if !errors.Is(x.err, left) {
			t.Errorf("%s: %v, want the context's cause", x.what, x.err)
		}
	}
	if s.holding(t, c.ID) {
		t.Errorf("left behind: %s", s.run(t, c.ID, "ps"))
	}
	if !s.status(t, c.ID).Running {
		t.Error("the container ended with its command")
	}
}

func testExecStopped(t *testing.T, s *suite) {
	for _, remove := range []bool{false, true} {
		c := s.start(t, s.container())
		x := s.exec(t, c.ID, nil, &runtime.TerminalSize{Columns: 80, Rows: 24}, "testprog", "hold")
		x.wrote(t, "holding")
		if remove {
			if err := s.Engine.Delete(t.Context(), c.ID); err != nil {
				t.Errorf("delete: %v", err)
			}
		} else if _, err := s.Engine.Stop(t.Context(), c.ID, 30*time.Second); err != nil {
			t.Errorf("stop: %v", err)
		}
		x.wait(t)
		if x.err != nil || x.exit.Code != 137 || x.exit.Signal != 9 {
			t.Errorf("deleted %t: %+v, %v, want SIGKILL", remove, x.exit, x.err)
		}
	}
}

func testExecStale(t *testing.T, s *suite) {
	c := s.start(t, s.container())
	x := s.exec(t, c.ID, nil, nil, "testprog", "hold")
	x.wrote(t, "holding")
	next, is := s.Reopen().(runtime.Executor)
	if !is {
		t.Fatal("no runtime.Executor")
	}
	if err := next.RemoveStale(t.Context()); err != nil {
		t.Errorf("remove stale: %v", err)
	}
	if s.holding(t, c.ID) {
		t.Errorf("left behind: %s", s.run(t, c.ID, "ps"))
	}
	x.wait(t)
	if err := next.RemoveStale(t.Context()); err != nil {
		t.Errorf("remove stale again: %v", err)
	}
}

// slow is a reader that takes nothing until it is let go.
type slow struct {
	let   <-chan struct{}
	total int
}

// Write implements io.Writer.
func (w *slow) Write(p []byte) (int, error) {
	<-w.let
	w.total += len(p)
	return len(p), nil
}

func testExecSlowReader(t *testing.T, s *suite) {
	c := s.start(t, s.container())
	let, done := make(chan struct{}), make(chan struct{})
	out := &slow{let: let}
	go func() {
		defer close(done)
		exit, err := s.executor(t).Exec(t.Context(), c.ID, runtime.Process{Argv: []string{"testprog", "flood", "3000000"}},
			runtime.Streams{Stdout: out, Stderr: io.Discard})
		if err != nil || exit.Code != 0 {
			t.Errorf("exit %+v, %v", exit, err)
		}
	}()
	select {
	case <-done:
		t.Error("the command ended though nobody read")
	case <-time.After(3 * time.Second): // longer than a drain lasts
	}
	close(let)
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("the command did not end")
	}
	if out.total != 3000000 {
		t.Errorf("%d bytes came", out.total)
	}
}
