//nolint:thelper // these are tests, and a failure should name their lines
package runtimetest

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

func testExitStatus(t *testing.T, s *suite) {
	for _, test := range []struct {
		args         []string
		code, signal int
	}{
		{[]string{"exit", "0"}, 0, 0},
		{[]string{"exit", "42"}, 42, 0},
		{[]string{"crash"}, 134, 6},
	} {
		c := s.start(t, s.container(test.args...))
		status := s.ended(t, c.ID)
		if status.PID != 0 || status.Exit == nil || status.Exit.Code != test.code || status.Exit.Signal != test.signal ||
			status.Exit.OOMKilled || status.Exit.At.IsZero() {
			t.Errorf("%q: status %+v, exit %+v", test.args, status, status.Exit)
		}
		if _, err := s.Engine.Run(t.Context(), c.ID, runtime.Command{Argv: []string{"true"}}); !errdefs.IsNotFound(err) {
			t.Errorf("%q: run once ended: %v, want NotFound", test.args, err)
		}
		exit, err := s.Engine.Stop(t.Context(), c.ID, time.Second)
		if err != nil || exit.Code != test.code || exit.Signal != test.signal {
			t.Errorf("%q: stop: %+v, %v", test.args, exit, err)
		}
		if _, err := s.Engine.Start(t.Context(), c); err != nil {
			t.Errorf("%q: start after stop: %v", test.args, err)
		}
		s.ended(t, c.ID)
		if _, err := s.Engine.Start(t.Context(), c); err != nil {
			t.Errorf("%q: start over a dead task: %v", test.args, err)
		}
	}
}

func testStopIgnoring(t *testing.T, s *suite) {
	c := s.start(t, s.container("ignore-term"))
	if s.Logs != "" {
		s.logged(t, c, "ignoring")
	}
	exit, err := s.Engine.Stop(t.Context(), c.ID, 200*time.Millisecond)
	if err != nil || exit.Code != 137 || exit.Signal != 9 || exit.OOMKilled {
		t.Errorf("Stop() = %+v, %v, want SIGKILL", exit, err)
	}
	if status := s.status(t, c.ID); status.Running || status.Exit != nil {
		t.Errorf("status: %+v", status)
	}
}

func testStopCancelled(t *testing.T, s *suite) {
	c := s.start(t, s.container("ignore-term"))
	if s.Logs != "" {
		s.logged(t, c, "ignoring")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Engine.Stop(ctx, c.ID, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Stop(): %v, want the context's error", err)
	}
	if !s.status(t, c.ID).Running {
		t.Error("a cancelled stop killed it")
	}
}

func testDeleteRunning(t *testing.T, s *suite) {
	for _, args := range [][]string{{"ignore-term"}, {"sleep"}, {"exit", "3"}} {
		c := s.start(t, s.container(args...))
		if err := s.Engine.Delete(t.Context(), c.ID); err != nil {
			t.Errorf("%q: delete: %v", args, err)
		}
		if left := s.Leftovers(); len(left) > 0 {
			t.Errorf("%q: left behind: %q", args, left)
		}
		if err := s.Engine.Create(t.Context(), c); err != nil {
			t.Errorf("%q: create again: %v", args, err)
		}
		if err := s.Engine.Delete(t.Context(), c.ID); err != nil {
			t.Errorf("%q: delete what was only created: %v", args, err)
		}
	}
}

func testArguments(t *testing.T, s *suite) {
	for name, test := range map[string]struct {
		entrypoint, command []string
		code                int
	}{
		"command on the image's entrypoint":    {nil, []string{"exit", "7"}, 7},
		"entrypoint drops the image's command": {[]string{"/bin/testprog", "exit", "8"}, nil, 8},
		"both":                                 {[]string{"testprog", "exit"}, []string{"9"}, 9},
	} {
		c := s.container()
		c.Entrypoint, c.Command = test.entrypoint, test.command
		s.start(t, c)
		if exit := s.ended(t, c.ID).Exit; exit == nil || exit.Code != test.code {
			t.Errorf("%s: exit %+v, want code %d", name, exit, test.code)
		}
	}
}

func testEnvironment(t *testing.T, s *suite) {
	c := s.container()
	c.Env = []string{"IMAGE_VARIABLE=ours", "TWICE=1", "TWICE=2", "EMPTY="}
	c.Workdir = "/tmp"
	s.start(t, c)
	env := strings.Split(s.run(t, c.ID, "env"), "\n")
	for _, want := range []string{"IMAGE_VARIABLE=ours", "TWICE=2", "EMPTY=", "PATH=" + strings.TrimPrefix(imageEnv()[0], "PATH=")} {
		if !slices.Contains(env, want) {
			t.Errorf("environment %q lacks %s", env, want)
		}
	}
	if slices.Contains(env, "TWICE=1") || slices.Contains(env, "IMAGE_VARIABLE=from image") {
		t.Errorf("environment %q has overridden variables", env)
	}
	if got := s.run(t, c.ID, "hostname"); got != c.Hostname {
		t.Errorf("hostname %q, want %q", got, c.Hostname)
	}
	if got := s.run(t, c.ID, "pwd"); got != "/tmp" {
		t.Errorf("working directory %q", got)
	}
}

func testUsers(t *testing.T, s *suite) {
	for user, want := range map[string]string{
		"":          "uid=0 gid=0 groups=[0]",
		"root":      "uid=0 gid=0 groups=[0]",
		"app":       "uid=1000 gid=1000 groups=[1000 2000]",
		"1000":      "uid=1000 gid=1000 groups=[1000 2000]",
		"app:extra": "uid=1000 gid=2000 groups=[2000]",
		"1234:5678": "uid=1234 gid=5678 groups=[5678]",
		"4321":      "uid=4321 gid=0 groups=[0]",
	} {
		c := s.container()
		c.User = user
		s.start(t, c)
		if got := s.run(t, c.ID, "id"); got != want {
			t.Errorf("user %q: %s, want %s", user, got, want)
		}
		if err := s.Engine.Delete(t.Context(), c.ID); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	c := s.start(t, s.container())
	for user, want := range map[string]string{
		"app": "uid=1000 gid=1000 groups=[1000 2000]", "other:extra": "uid=1001 gid=2000 groups=[2000]",
	} {
		result, err := s.Engine.Run(t.Context(), c.ID, runtime.Command{Argv: []string{"testprog", "id"}, User: user, OutputLimit: 1000})
		if err != nil || strings.TrimSpace(string(result.Stdout)) != want {
			t.Errorf("run as %q: %q, %v, want %s", user, result.Stdout, err, want)
		}
	}
}

func testRun(t *testing.T, s *suite) {
	c := s.start(t, s.container())
	for name, test := range map[string]struct {
		cmd            runtime.Command
		code           int
		stdout, stderr string
	}{
		"output":   {runtime.Command{Argv: []string{"testprog", "echo", "a", "b", ";", "stderr", "c"}}, 0, "a b\n", "c\n"},
		"code":     {runtime.Command{Argv: []string{"/bin/testprog", "exit", "17"}}, 17, "", ""},
		"stdin":    {runtime.Command{Argv: []string{"cat"}, Stdin: []byte("from outside\n")}, 0, "from outside\n", ""},
		"no stdin": {runtime.Command{Argv: []string{"cat"}}, 0, "", ""},
		"workdir":  {runtime.Command{Argv: []string{"testprog", "pwd"}, Workdir: "/bin"}, 0, "/bin\n", ""},
	} {
		test.cmd.Timeout, test.cmd.OutputLimit = time.Minute, 1000
		result, err := s.Engine.Run(t.Context(), c.ID, test.cmd)
		if err != nil || result.ExitCode != test.code || string(result.Stdout) != test.stdout || string(result.Stderr) != test.stderr ||
			result.StdoutTruncated || result.StderrTruncated {
			t.Errorf("%s: %d %q %q %v", name, result.ExitCode, result.Stdout, result.Stderr, err)
		}
	}
	result, err := s.Engine.Run(t.Context(), c.ID, runtime.Command{
		Argv: []string{"testprog", "env"}, Env: []string{"IMAGE_VARIABLE=ours", "NEW=1"}, Timeout: time.Minute, OutputLimit: 10000,
	})
	env := strings.Split(string(result.Stdout), "\n")
	if err != nil || !slices.Contains(env, "IMAGE_VARIABLE=ours") || !slices.Contains(env, "NEW=1") || slices.Contains(env, "IMAGE_VARIABLE=from image") {
		t.Errorf("environment: %q, %v", env, err)
	}
}

func testRunLimits(t *testing.T, s *suite) {
	c := s.start(t, s.container())
	result, err := s.Engine.Run(t.Context(), c.ID, runtime.Command{
		Argv: []string{"testprog", "flood", "3000000"}, Timeout: time.Minute, OutputLimit: 5000,
	})
	if err != nil || result.ExitCode != 0 || len(result.Stdout) != 5000 || len(result.Stderr) != 5000 || !result.StdoutTruncated || !result.StderrTruncated {
		t.Errorf("flood: exit %d, %d and %d bytes, %v", result.ExitCode, len(result.Stdout), len(result.Stderr), err)
	}
	result, err = s.Engine.Run(t.Context(), c.ID, runtime.Command{
		Argv: []string{"testprog", "echo", "result", ";", "stderr", "why", ";", "ignore-term"}, Timeout: 2 * time.Second, OutputLimit: 5,
	})
	wantReason(t, "run over time", err, problem.CommandTimeout)
	if string(result.Stdout) != "resul" || !result.StdoutTruncated || string(result.Stderr) != "why\n" || result.StderrTruncated {
		t.Errorf("run over time: %+v", result)
	}
	if p := problem.Of(err); !strings.HasSuffix(p.Said(), "and was killed") {
		t.Errorf("run over time: %s", p.Said())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := s.Engine.Run(ctx, c.ID, runtime.Command{Argv: []string{"testprog", "ignore-term"}, Timeout: time.Hour}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("run of a caller that left: %v, want the context's error", err)
	}
	if !s.status(t, c.ID).Running {
		t.Error("the container died with its command")
	}
	ended := make(chan error, 1)
	go func() {
		_, err := s.Engine.Run(t.Context(), c.ID, runtime.Command{Argv: []string{"testprog", "ignore-term"}, Timeout: time.Hour})
		ended <- err
	}()
	time.Sleep(300 * time.Millisecond)
	if _, err := s.Engine.Stop(t.Context(), c.ID, 30*time.Second); err != nil {
		t.Errorf("stop: %v", err)
	}
	select {
	case <-ended: // killed with the container: an exit code or NotFound, both are true
	case <-time.After(time.Minute):
		t.Error("a command outlived its container")
	}
}

// crawling is a reader that takes its time over each piece, so that there is
// always one that it has not taken.
type crawling struct{ begin string }

// Write implements io.Writer.
func (w *crawling) Write(p []byte) (int, error) {
	time.Sleep(30 * time.Millisecond)
	if len(w.begin) < 100 {
		w.begin += string(p)
	}
	return len(p), nil
}

// What a command leaves running may hold its output open, and write and write. A
// shim waits ten seconds for that before it forgets the command; its caller does
// not.
func testRunLeaves(t *testing.T, s *suite) {
	c := s.start(t, s.container())
	ctx, cancel := context.WithTimeout(t.Context(), 9*time.Second) // not half of it is needed
	defer cancel()
	result, err := s.Engine.Run(ctx, c.ID, runtime.Command{
		Argv: []string{"testprog", "echo", "done", ";", "leave"}, Timeout: time.Second, OutputLimit: 100,
	})
	if err != nil || result.ExitCode != 0 || string(result.Stdout) != "done\n" || ctx.Err() != nil {
		t.Errorf("run: %+v, %v, %v", result, err, ctx.Err())
	}
	x := s.exec(t, c.ID, nil, nil, "testprog", "echo", "done", ";", "leave")
	x.wait(t)
	if x.err != nil || x.exit.Code != 0 || x.stdout.String() != "done\n" || ctx.Err() != nil {
		t.Errorf("exec: %+v, %v, %q, %v", x.exit, x.err, x.stdout.String(), ctx.Err())
	}
	var all sync.WaitGroup
	for _, writer := range []string{"tick", "babble"} {
		argv := []string{"testprog", "echo", "done", ";", "leave", writer}
		all.Go(func() {
			result, err := s.Engine.Run(t.Context(), c.ID, runtime.Command{Argv: argv, Timeout: time.Minute, OutputLimit: 5})
			if err != nil || result.ExitCode != 0 || string(result.Stdout) != "done\n" {
				t.Errorf("run that leaves %s: %+v, %v", writer, result, err)
			}
		})
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			out := &crawling{}
			exit, err := s.executor(t).Exec(ctx, c.ID, runtime.Process{Argv: argv}, runtime.Streams{Stdout: out, Stderr: io.Discard})
			if err != nil || exit.Code != 0 || !strings.HasPrefix(out.begin, "done\n") {
				t.Errorf("exec that leaves %s: %+v, %v, %q", writer, exit, err, out.begin)
			}
		})
	}
	all.Wait()
	if err := s.Engine.Delete(t.Context(), c.ID); err != nil {
		t.Error(err)
	}
}

func testRunRefuses(t *testing.T, s *suite) {
	c := s.start(t, s.container())
	for _, argv := range [][]string{{"absent"}, {"/bin/absent"}} {
		_, err := s.Engine.Run(t.Context(), c.ID, runtime.Command{Argv: argv, Timeout: time.Minute})
		wantReason(t, "run "+argv[0], err, problem.CommandNotFound)
	}
	s.run(t, c.ID, "write", "/plain", "no program")
	for _, path := range []string{"/plain", "/bin"} {
		_, err := s.Engine.Run(t.Context(), c.ID, runtime.Command{Argv: []string{path}, Timeout: time.Minute})
		wantReason(t, "run "+path, err, problem.CommandNotExecutable)
	}
	// Many arguments are no fault; what the kernel does not take is.
	many := slices.Repeat([]string{"x"}, 20_000)
	result, err := s.Engine.Run(t.Context(), c.ID, runtime.Command{Argv: append([]string{"testprog", "echo"}, many...), Timeout: time.Minute, OutputLimit: 1 << 20})
	if err != nil || len(result.Stdout) != 2*len(many) {
		t.Errorf("run with %d arguments: %d bytes, %v", len(many), len(result.Stdout), err)
	}
	for what, argv := range map[string][]string{
		"one argument": {"true", strings.Repeat("x", 128<<10)},
		"7 MiB":        append([]string{"true"}, slices.Repeat([]string{strings.Repeat("x", 100<<10)}, 70)...),
	} {
		_, err := s.Engine.Run(t.Context(), c.ID, runtime.Command{Argv: argv, Timeout: time.Minute})
		wantReason(t, "run with too long arguments, "+what, err, problem.FieldInvalid)
		if p := problem.Of(err); p != nil && (p.Field != "argv" || !strings.HasSuffix(p.Said(), "argument list too long")) {
			t.Errorf("run with too long arguments, %s: %q, %s", what, p.Field, p.Said())
		}
	}
	_, err = s.Engine.Run(t.Context(), c.ID, runtime.Command{Argv: []string{"true"}, User: "nobody-here"})
	wantReason(t, "run as nobody", err, problem.UserNotFound)
}

func (s *suite) events(t *testing.T) <-chan runtime.Event {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	events, errs := s.Engine.Events(ctx)
	t.Cleanup(func() {
		cancel()
		for range events {
		}
		<-errs
	})
	return events
}

// await returns the next event of a kind about a container.
func await(t *testing.T, events <-chan runtime.Event, id string, kind runtime.EventKind) runtime.Event {
	t.Helper()
	timeout := time.After(time.Minute)
	for {
		select {
		case event, open := <-events:
			if !open {
				t.Fatal("the events ended")
			}
			if event.ID == id && event.Kind == kind {
				return event
			}
		case <-timeout:
			t.Fatalf("no %s of %s within a minute", kind, id)
		}
	}
}

func testEvents(t *testing.T, s *suite) {
	events := s.events(t)
	c := s.start(t, s.container("exit", "5"))
	if event := await(t, events, c.ID, runtime.EventExit); event.Exit.Code != 5 || event.Exit.Signal != 0 || event.Exit.At.IsZero() {
		t.Errorf("event %+v", event)
	}
	c = s.start(t, s.container())
	s.run(t, c.ID, "exit", "0") // a command's end is no event
	if _, err := s.Engine.Stop(t.Context(), c.ID, 30*time.Second); err != nil {
		t.Fatalf("stop: %v", err)
	}
	// An engine may or may not tell its caller what the caller has just done.
	for quiet := time.After(300 * time.Millisecond); quiet != nil; {
		select {
		case event := <-events:
			if event.ID != c.ID || event.Kind != runtime.EventExit || event.Exit.Code != 0 {
				t.Errorf("one more event: %+v", event)
			}
		case <-quiet:
			quiet = nil
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	short, errs := s.Engine.Events(ctx)
	cancel()
	select {
	case err := <-errs:
		if err == nil {
			t.Error("the events ended without a reason")
		}
	case <-time.After(time.Minute):
		t.Fatal("the events did not end with their context")
	}
	if _, open := <-short; open {
		t.Error("events after the end")
	}
}

func testOutOfMemory(t *testing.T, s *suite) {
	events := s.events(t)
	c := s.container("eat-memory", "268435456")
	c.Resources.MemoryBytes = 32 << 20
	s.start(t, c)
	if event := await(t, events, c.ID, runtime.EventOOM); event.OOMKills < 1 {
		t.Errorf("event %+v", event)
	}
	status := s.ended(t, c.ID)
	if status.Exit == nil || !status.Exit.OOMKilled || status.Exit.Code != 137 || status.Exit.Signal != 9 {
		t.Errorf("exit %+v, want killed for memory", status.Exit)
	}
	if exit, err := s.Engine.Stop(t.Context(), c.ID, time.Second); err != nil || !exit.OOMKilled {
		t.Errorf("Stop() = %+v, %v, want killed for memory", exit, err)
	}
}

// What is killed is not the first process: it lives on, and how it ends says
// that memory ran out in the run.
func testOutOfMemoryOfAnother(t *testing.T, s *suite) {
	events := s.events(t)
	c := s.container("ignore-term")
	c.Resources.MemoryBytes = 64 << 20
	s.start(t, c)
	for kills := 1; kills <= 2; kills++ {
		result, err := s.Engine.Run(t.Context(), c.ID, runtime.Command{
			Argv: []string{"testprog", "eat-memory", "268435456"}, Timeout: time.Minute, OutputLimit: 1 << 10,
		})
		if err != nil || result.ExitCode != 137 {
			t.Fatalf("eating memory: %+v %v", result, err)
		}
		if event := await(t, events, c.ID, runtime.EventOOM); event.OOMKills != kills {
			t.Errorf("event %+v, want %d kills", event, kills)
		}
		if status := s.status(t, c.ID); !status.Running || status.OOMKills != kills {
			t.Errorf("status %+v, want %d kills", status, kills)
		}
	}
	if exit, err := s.Engine.Stop(t.Context(), c.ID, 0); err != nil || exit.Code != 137 || exit.Signal != 9 || !exit.OOMKilled {
		t.Errorf("Stop() = %+v, %v", exit, err)
	}
	if _, err := s.Engine.Start(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if status := s.status(t, c.ID); !status.Running || status.OOMKills != 0 {
		t.Errorf("status of the next run: %+v", status)
	}
}

func testReopen(t *testing.T, s *suite) {
	c := s.start(t, s.container())
	pid := s.status(t, c.ID).PID
	s.Engine = s.Reopen()
	if status := s.status(t, c.ID); !status.Running || status.PID != pid {
		t.Errorf("status: %+v, want pid %d", status, pid)
	}
	if got := s.run(t, c.ID, "hostname"); got != c.Hostname {
		t.Errorf("hostname %q", got)
	}
	events := s.events(t)
	if _, err := s.Engine.Stop(t.Context(), c.ID, 30*time.Second); err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := s.Engine.Start(t.Context(), c); err != nil {
		t.Errorf("start: %v", err)
	}
	ended := s.start(t, s.container("exit", "3"))
	await(t, events, ended.ID, runtime.EventExit)
}

// A limit of the writable layer is either in force or refused with its cause.
func testDiskQuota(t *testing.T, s *suite) {
	quota, err := s.Engine.DiskQuota(t.Context())
	if err != nil || quota.Supported != (quota.Reason == "") || quota.Supported != (quota.Method != "") {
		t.Fatalf("DiskQuota() = %+v, %v", quota, err)
	}
	c := s.container()
	c.Resources.DiskBytes = 32 << 20
	err = s.Engine.Create(t.Context(), c)
	if quota.Supported {
		if err != nil {
			t.Errorf("create: %v", err)
		}
		return
	}
	wantReason(t, "a limit that is not enforceable", err, problem.DiskQuotaUnsupported)
	if left := s.Leftovers(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	c.Resources.DiskBytes = 0
	s.create(t, c)
	c.Resources.DiskBytes = 32 << 20
	_, err = s.Engine.Start(t.Context(), c)
	wantReason(t, "a start with it", err, problem.DiskQuotaUnsupported)
}

// What belongs to a container is no part, whatever state the container is in.
func testParts(t *testing.T, s *suite) {
	running, made := s.start(t, s.container()), s.create(t, s.container())
	ended := s.start(t, s.container("exit", "3"))
	s.ended(t, ended.ID)
	for _, engine := range []runtime.Engine{s.Engine, s.Reopen()} {
		parts, err := engine.Parts(t.Context())
		if err != nil || len(parts) > 0 {
			t.Errorf("Parts() = %+v, %v", parts, err)
		}
	}
	list := func() {
		t.Helper()
		if _, err := s.Engine.List(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// A list may be what Parts goes by: none that came or went since is left over.
	list()
	later := s.start(t, s.container())
	if parts, err := s.Engine.Parts(t.Context()); err != nil || len(parts) > 0 {
		t.Errorf("Parts() after a list and a start = %+v, %v", parts, err)
	}
	list()
	for _, c := range []runtime.Container{running, made, ended, later} {
		if err := s.Engine.Delete(t.Context(), c.ID); err != nil {
			t.Error(err)
		}
	}
	if parts, err := s.Engine.Parts(t.Context()); err != nil || len(parts) > 0 {
		t.Errorf("Parts() after a list and the deletes = %+v, %v", parts, err)
	}
	if parts, err := s.Engine.Parts(t.Context()); err != nil || len(parts) > 0 {
		t.Errorf("Parts() after the deletes = %+v, %v", parts, err)
	}
	if err := s.Engine.RemovePart(t.Context(), runtime.Part{Kind: runtime.FoundLease, Name: "absent"}); err != nil {
		t.Errorf("RemovePart of an absent one: %v", err)
	}
	if err := s.Engine.RemovePart(t.Context(), runtime.Part{Kind: runtime.FoundSnapshot, Name: made.ID}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("RemovePart of what has an owner: %v, want InvalidArgument", err)
	}
}

func testList(t *testing.T, s *suite) {
	running, made := s.start(t, s.container()), s.create(t, s.container())
	ended := s.start(t, s.container("exit", "3"))
	s.ended(t, ended.ID)
	if s.Engine.Intact() {
		t.Error("Intact() before the first List()")
	}
	list, err := s.Engine.List(t.Context())
	if err != nil || len(list) != 3 {
		t.Fatalf("List() = %+v, %v", list, err)
	}
	for _, status := range list {
		if one := s.status(t, status.ID); one.Running != status.Running || one.PID != status.PID || (one.Exit == nil) != (status.Exit == nil) ||
			one.Image != status.Image || one.Labels["suite"] != status.Labels["suite"] {
			t.Errorf("List() says %+v, Status() %+v", status, one)
		}
		switch status.ID {
		case running.ID:
			if !status.Running {
				t.Errorf("running one: %+v", status)
			}
		case made.ID:
			if status.Running || status.Exit != nil {
				t.Errorf("created one: %+v", status)
			}
		case ended.ID:
			if status.Running || status.Exit == nil || status.Exit.Code != 3 {
				t.Errorf("ended one: %+v", status)
			}
		default:
			t.Errorf("unknown one: %+v", status)
		}
	}
	another := s.start(t, s.container()) // is none of those
	if !s.Engine.Intact() {
		t.Error("not Intact() after List()")
	}
	if _, err := s.Engine.Stop(t.Context(), running.ID, 0); err != nil {
		t.Fatal(err)
	}
	if s.Engine.Intact() {
		t.Error("Intact() though a process has ended that List() saw")
	}
	if _, err := s.Engine.List(t.Context()); err != nil || !s.Engine.Intact() || !s.status(t, another.ID).Running {
		t.Errorf("not Intact() after another List(): %v", err)
	}
}

func (s *suite) logged(t *testing.T, c runtime.Container, text string) {
	t.Helper()
	Eventually(t, "the log says "+text, func() bool { return fileContains(c.LogPath, text) })
}
