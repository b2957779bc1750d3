package containerd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// Run runs a command in a running container.
func (e *Engine) Run(ctx context.Context, id string, cmd runtime.Command) (runtime.CommandResult, error) {
	result, err := e.exec(ctx, id, cmd)
	if err != nil {
		return result, fmt.Errorf("run command in container %s: %w", id, err)
	}
	return result, nil
}

func (e *Engine) exec(parent context.Context, id string, cmd runtime.Command) (result runtime.CommandResult, err error) {
	if len(cmd.Argv) == 0 {
		return result, problem.New(problem.FieldInvalid, "the command is empty").WithField("argv")
	}
	ctx := parent
	if cmd.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(parent, cmd.Timeout)
		defer cancel()
	}
	process, err := e.processSpec(ctx, id, &cmd)
	if err != nil {
		return result, e.notStarted(ctx, err)
	}
	if err := e.fits(ctx, id, process); err != nil {
		return result, e.notStarted(ctx, err)
	}
	x := execution{engine: e, id: id, exec: e.execID("run", id), stdin: newSource(cmd.Stdin)}
	x.stdout.limit, x.stderr.limit = max(cmd.OutputLimit, 0), max(cmd.OutputLimit, 0)
	if err := x.start(ctx, process, len(cmd.Stdin) > 0); err != nil {
		return result, e.notStarted(ctx, e.execProblem(parent, id, &cmd, err))
	}
	known := false
	defer func() { err = e.forgotten(parent, id, known, err, x.remove(parent)) }()
	last, err := x.end(ctx)
	if err != nil {
		x.drain(parent, killedDrainTime)
		result.Stdout, result.StdoutTruncated = x.stdout.take()
		result.Stderr, result.StderrTruncated = x.stderr.take()
		return result, commandEnd(parent, ctx, &cmd, err)
	}
	known = true
	x.drain(ctx, writeTime)
	result.ExitCode = int(last.status)
	result.Stdout, result.StdoutTruncated = x.stdout.take()
	result.Stderr, result.StderrTruncated = x.stderr.take()
	return result, nil
}

// notStarted tells a time that ran out before a command was started: that was
// containerd's, whoever set it. Another reason stays, and so does the end of a
// caller that left.
func (e *Engine) notStarted(ctx context.Context, err error) error {
	_, known := errors.AsType[*problem.Problem](err)
	if known || !errors.Is(ctx.Err(), context.DeadlineExceeded) || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return problem.New(problem.ContainerdTimeout, "containerd at %s did not answer in time, and the command was not started", e.cfg.Address).
		WithHint("%s", busyHint).WithCause(err)
}

// commandEnd tells a command that took too long from a caller that left. It is
// for those that were started.
func commandEnd(parent, ctx context.Context, cmd *runtime.Command, err error) error {
	if parent.Err() == nil && ctx.Err() != nil {
		return problem.New(problem.CommandTimeout, "the command did not end within %s and was killed", cmd.Timeout).
			WithField("timeout").WithHint("allow it more time, or start it in the background").WithTold(err)
	}
	return err
}

// processSpec is the container's own process with what the command changes:
// same capabilities, seccomp profile and no-new-privileges.
func (e *Engine) processSpec(ctx context.Context, id string, cmd *runtime.Command) (*specs.Process, error) {
	record, err := e.store.Get(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("get record: %w", e.explain(ctx, err))
	}
	var spec specs.Spec
	if err := json.Unmarshal(record.Spec.GetValue(), &spec); err != nil {
		return nil, fmt.Errorf("read spec: %w", err)
	}
	if spec.Process == nil {
		return nil, fmt.Errorf("read spec: no process: %w", errdefs.ErrInvalidArgument)
	}
	process := spec.Process
	process.Terminal, process.Args = false, cmd.Argv
	process.Env = environment(process.Env, cmd.Env)
	if cmd.Workdir != "" {
		process.Cwd = cmd.Workdir
	}
	if cmd.User != "" {
		first, err := e.task(ctx, id)
		if err != nil {
			return nil, err
		}
		if !running(first) {
			return nil, fmt.Errorf("it does not run: %w", errdefs.ErrNotFound)
		}
		if process.User, err = userOfProcess(ctx, int(first.Pid), cmd.User); err != nil {
			return nil, err
		}
	}
	return process, nil
}

// execProblem finds out why a command did not start.
func (e *Engine) execProblem(ctx context.Context, id string, cmd *runtime.Command, err error) error {
	text := err.Error()
	if tooLong(err) {
		return runtime.TooLong().WithTold(err)
	}
	if strings.Contains(text, "exec: ") && !strings.Contains(text, `exec: "runc"`) || strings.Contains(text, "executable file not found") ||
		strings.Contains(text, "exec "+cmd.Argv[0]+":") {
		return notRunnable(err)
	}
	// The shim's own word counts: the environment may run again by now, or go on.
	if strings.Contains(text, "cannot exec in a paused ") {
		return fmt.Errorf("it is paused: %w", runtime.ErrPaused)
	}
	if errdefs.IsFailedPrecondition(native(err)) || ended(err) || strings.Contains(text, "cannot exec in a ") {
		return fmt.Errorf("it did not run: %w", errdefs.ErrNotFound)
	}
	switch first, gone := e.task(ctx, id); {
	case errdefs.IsNotFound(gone), gone == nil && !running(first):
		return fmt.Errorf("it does not run: %w", errdefs.ErrNotFound)
	case gone == nil && isPaused(first):
		return fmt.Errorf("it is paused: %w", runtime.ErrPaused)
	}
	if fromRuntime(err) {
		p := problem.New(problem.ProcessStartFailed, "the command could not be started: %s", said(err)).WithField("argv").
			WithHint("see whether the program can be run in the environment").WithTold(err)
		if strings.Contains(text, "chdir to cwd") {
			p = p.WithField("workdir").WithHint("name a directory that the environment has, and that the user may enter")
		}
		return p
	}
	return err
}

// notRunnable tells a program that is absent from one that is there, as shells do:
// only ENOENT is the first.
func notRunnable(err error) *problem.Problem {
	p := problem.New(problem.CommandNotExecutable, "the command cannot be run: %s", said(err)).
		WithHint("name a program that the user may execute: a plain file, with its permission to be executed")
	if strings.Contains(err.Error(), "executable file not found") || strings.Contains(err.Error(), unix.ENOENT.Error()) {
		p = problem.New(problem.CommandNotFound, "the command cannot be run: %s", said(err)).
			WithHint("name a program that the environment has, in its PATH or by its whole path")
	}
	return p.WithField("argv").WithTold(err)
}

// tooLong says whether a shim cannot be told of a command: it takes 4 MiB in a
// message, which JSON may exceed where the kernel would not refuse the command.
func tooLong(err error) bool {
	return strings.Contains(err.Error(), "exceed maximum message size")
}

// fits refuses what the kernel would. runc learns of that when the command has
// been started as far as anybody can see, and leaves a line on the command's
// standard error and the exit code 1, which may be a command's own.
func (e *Engine) fits(ctx context.Context, id string, process *specs.Process) error {
	const least = 128 << 10 // ARG_MAX, which all limits allow
	all := uint64(0)
	for _, list := range [][]string{process.Args, process.Env} {
		for _, text := range list {
			if len(text) >= 32*os.Getpagesize() { // MAX_ARG_STRLEN, with the NUL
				return runtime.TooLong()
			}
			all += uint64(len(text)) + 1 + 8 // the pointer to it
		}
	}
	if all <= least {
		return nil
	}
	// The command gets the limits of the first process, which may be any.
	first, err := e.task(ctx, id)
	if err != nil {
		return err
	}
	var stack unix.Rlimit
	known := unix.Prlimit(int(first.Pid), unix.RLIMIT_STACK, nil, &stack) == nil // otherwise it has ended, and the start says so
	if known && all > max(least, min(stack.Cur/4, 6<<20)) {
		return runtime.TooLong()
	}
	return nil
}

// starting holds up who pauses a container until started is called: a runtime that
// puts a command into a cgroup that freezes waits for it, and with it the shim, which
// could not be asked to let the container go on. ErrPaused while it is paused.
func (e *Engine) starting(ctx context.Context, id string) (started func(), err error) {
	_, use, err := e.starts.Enter(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("it is being paused: %w", runtime.ErrPaused)
	}
	return use.Leave, nil
}

// execution is one command on its way.
type execution struct {
	engine         *Engine
	id, exec       string
	pid            int
	stdin          *source
	stdout, stderr sink
	io             cio.IO
	over           chan struct{} // closed when the command is no more
	ended          bool          // all that it led is gone, too
	held           bool          // something that lives on has its output open
	closing        sync.WaitGroup
}

func (x *execution) start(ctx context.Context, process *specs.Process, withStdin bool) error {
	e := x.engine
	e.tidy()
	encoded, err := typeurl.MarshalAnyToProto(process)
	if err != nil {
		return fmt.Errorf("encode process: %w", err)
	}
	if err := e.makeFIFODir(); err != nil {
		return err
	}
	var stdin io.Reader
	if withStdin {
		stdin = x.stdin
	}
	x.io, err = cio.NewCreator(cio.WithStreams(stdin, &x.stdout, &x.stderr), cio.WithFIFODir(e.ownFIFODir()))(x.exec)
	if err != nil {
		return fmt.Errorf("make pipes: %w", err)
	}
	started, err := e.starting(ctx, x.id)
	if err != nil {
		x.closeIO()
		return err
	}
	defer started()
	// A caller that leaves here must not leave a process that is half started.
	whole, done := uninterrupted(ctx)
	defer done()
	paths := x.io.Config()
	_, err = e.tasks.Exec(whole, &tasks.ExecProcessRequest{
		ContainerID: x.id, ExecID: x.exec, Stdin: paths.Stdin, Stdout: paths.Stdout, Stderr: paths.Stderr, Spec: encoded,
	})
	if err != nil {
		x.closeIO()
		return e.explain(whole, err)
	}
	first, err := e.tasks.Start(whole, &tasks.StartRequest{ContainerID: x.id, ExecID: x.exec})
	if err != nil {
		return errors.Join(e.explain(whole, err), x.remove(ctx))
	}
	x.pid = int(first.Pid)
	if withStdin {
		x.closeStdin(ctx)
	}
	return nil
}

// closeStdin has the shim close its own end once everything is written; it
// must not be asked before the process is started.
func (x *execution) closeStdin(ctx context.Context) {
	x.over = make(chan struct{})
	x.closing.Go(func() {
		select {
		case <-x.stdin.read:
		case <-x.over:
			return
		}
		_, err := x.engine.tasks.CloseIO(ctx, &tasks.CloseIORequest{ContainerID: x.id, ExecID: x.exec, Stdin: true})
		if err = x.engine.explain(ctx, err); err != nil && !errdefs.IsNotFound(err) && ctx.Err() == nil {
			x.engine.cfg.Log.WarnContext(ctx, "standard input of a command stays open", "container", x.id, "error", err)
		}
	})
}

// end waits for the command, and kills it when ctx ends.
func (x *execution) end(ctx context.Context) (waited, error) {
	later, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	ended := x.engine.wait(later, x.id, x.exec)
	select {
	case last := <-ended:
		if last.err != nil {
			return x.engine.explainEnd(ctx, x.id, x.pid, last.err)
		}
		x.ended = true
		return last, nil
	case <-ctx.Done():
	}
	group := x.engine.group(x.id, x.pid, nil)
	whole, done := uninterrupted(ctx) // with its own limit, whose end says that nobody has answered
	err := x.engine.kill(whole, x.id, x.exec, syscall.SIGKILL, false)
	done()
	undo, cancelUndo := afterwards(ctx)
	defer cancelUndo()
	if errdefs.IsNotFound(err) {
		err = nil
	}
	if err == nil {
		_, err = await(undo, ended)
	}
	err = errors.Join(err, x.engine.killGroup(undo, x.id, x.pid, group))
	x.ended = err == nil
	return waited{}, errors.Join(context.Cause(ctx), err)
}

// drain waits for the rest of the output, as quiet does, for limit at most.
func (x *execution) drain(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make(chan struct{})
	go func() { x.io.Wait(); close(done) }()
	x.held = !quiet(ctx, done, func() (int64, bool) { return x.stdout.moved() + x.stderr.moved(), false })
}

// remove forgets the process, whatever state it is in, and its pipes.
func (x *execution) remove(ctx context.Context) error {
	undo, cancel := afterwards(ctx)
	defer cancel()
	if x.over != nil {
		close(x.over)
	}
	// Pipes first: the shim waits for its copies into them to end.
	x.closeIO()
	if x.ended && x.held {
		x.engine.forgetLater(ctx, x.id, x.exec, x.pid)
		x.closing.Wait()
		return nil
	}
	err := x.engine.removeExec(undo, x.id, x.exec, x.pid)
	x.closing.Wait()
	return err
}

func (x *execution) closeIO() {
	x.io.Cancel()
	if err := x.io.Close(); err != nil {
		x.engine.cfg.Log.Debug("pipes of a command closed with an error", "container", x.id, "error", err)
	}
}

// source is standard input that tells when all of it was read.
type source struct {
	data *bytes.Reader
	read chan struct{}
	once sync.Once
}

func newSource(data []byte) *source {
	return &source{data: bytes.NewReader(data), read: make(chan struct{})}
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	n, err := s.data.Read(p)
	if errors.Is(err, io.EOF) {
		s.once.Do(func() { close(s.read) })
	}
	return n, err
}
