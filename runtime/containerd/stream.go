package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// defaultTerm is the terminal that programs are told of where nobody says.
const defaultTerm = "TERM=xterm"

var _ runtime.Executor = (*Engine)(nil)

// Exec runs a process with streams.
func (e *Engine) Exec(ctx context.Context, id string, p runtime.Process, streams runtime.Streams) (runtime.Exit, error) {
	if len(p.Argv) == 0 {
		return runtime.Exit{}, problem.New(problem.FieldInvalid, "the command is empty").WithField("argv")
	}
	exit, err := e.stream(ctx, id, &p, streams)
	if err != nil {
		return runtime.Exit{}, fmt.Errorf("run command in container %s: %w", id, err)
	}
	return exit, nil
}

func (e *Engine) stream(parent context.Context, id string, p *runtime.Process, streams runtime.Streams) (exit runtime.Exit, err error) {
	cmd := &runtime.Command{Argv: p.Argv, Env: p.Env, Workdir: p.Workdir, User: p.User}
	process, err := e.processSpec(parent, id, cmd)
	if err != nil {
		return exit, err
	}
	if err := e.fits(parent, id, process); err != nil {
		return exit, err
	}
	if p.Terminal != nil {
		process.Terminal = true
		process.ConsoleSize = &specs.Box{Width: uint(p.Terminal.Columns), Height: uint(p.Terminal.Rows)}
		process.Env = environment([]string{defaultTerm}, process.Env)
	}
	ctx, fail := context.WithCancelCause(parent)
	defer fail(nil)
	x := newSession(e, id, p.Terminal != nil, streams, fail)
	if err := x.start(parent, process); err != nil {
		return exit, e.execProblem(parent, id, cmd, err)
	}
	known := false
	defer func() { err = e.forgotten(parent, id, known, err, x.remove(parent)) }()
	if p.Terminal != nil { // a runtime may not have heeded the size
		if err := x.resize(ctx, *p.Terminal); err != nil {
			fail(err)
		}
	}
	x.begin(parent, fail)
	last, err := x.attend(ctx)
	if err != nil {
		return exit, err
	}
	x.held = !x.drain(ctx)
	if ctx.Err() != nil {
		return exit, context.Cause(ctx) // output was lost
	}
	known = true
	return exitOf(last.status, last.at), nil
}

// session is one process with streams on its way.
type session struct {
	engine   *Engine
	id, exec string
	pid      int
	terminal bool
	streams  runtime.Streams
	input    *input // nil: none
	out, err *relay
	io       cio.IO
	begun    chan struct{} // closed once the caller knows that it runs
	over     chan struct{} // closed when it hangs up or is no more
	through  func()        // closes begun
	end      func()        // closes over
	closing  sync.WaitGroup
	held     bool // it has ended, and something that lives on has its output open
}

func newSession(e *Engine, id string, terminal bool, streams runtime.Streams, fail context.CancelCauseFunc) *session {
	x := &session{
		engine: e, id: id, exec: e.execID("exec", id), terminal: terminal, streams: streams,
		begun: make(chan struct{}), over: make(chan struct{}),
	}
	x.through = sync.OnceFunc(func() { close(x.begun) })
	x.end = sync.OnceFunc(func() { close(x.over) })
	x.out = &relay{to: streams.Stdout, begun: x.begun, fail: fail}
	x.err = &relay{to: streams.Stderr, begun: x.begun, fail: fail}
	if streams.Stdin != nil {
		x.input = &input{from: streams.Stdin, terminal: terminal, ended: make(chan struct{}), over: x.over}
	}
	return x
}

// start makes the pipes and starts the process, or leaves nothing.
func (x *session) start(ctx context.Context, process *specs.Process) error {
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
	if x.input != nil {
		stdin = x.input
	}
	opts := []cio.Opt{cio.WithStreams(stdin, x.out, x.err), cio.WithFIFODir(e.ownFIFODir())}
	if x.terminal {
		opts = append(opts, cio.WithTerminal)
	}
	if x.io, err = cio.NewCreator(opts...)(x.exec); err != nil {
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
		ContainerID: x.id, ExecID: x.exec, Terminal: x.terminal,
		Stdin: paths.Stdin, Stdout: paths.Stdout, Stderr: paths.Stderr, Spec: encoded,
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
	return nil
}

// begin tells the caller that the process runs and lets its output through.
func (x *session) begin(ctx context.Context, fail context.CancelCauseFunc) {
	if x.streams.Started != nil {
		if err := x.streams.Started(); err != nil {
			fail(fmt.Errorf("tell that the command has started: %w", err))
		}
	}
	x.through()
	if x.input == nil || x.terminal {
		return
	}
	x.closing.Go(func() {
		select {
		case <-x.input.ended:
			x.closeStdin(context.WithoutCancel(ctx))
		case <-x.over:
		}
	})
}

// closeStdin has the shim close its own end of the pipe, or of the terminal,
// which hangs that up.
func (x *session) closeStdin(ctx context.Context) {
	_, err := x.engine.tasks.CloseIO(ctx, &tasks.CloseIORequest{ContainerID: x.id, ExecID: x.exec, Stdin: true})
	if err = x.engine.explain(ctx, err); err != nil && !errdefs.IsNotFound(err) {
		x.engine.cfg.Log.DebugContext(ctx, "standard input of a command stays open", "container", x.id, "error", err)
	}
}

// attend waits for the end of the process and does what its caller wants; when
// ctx ends it hangs up.
func (x *session) attend(ctx context.Context) (waited, error) {
	later, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	ended := x.engine.wait(later, x.id, x.exec)
	control := x.streams.Control
	for {
		select {
		case last := <-ended:
			if last.err != nil {
				return x.engine.explainEnd(ctx, x.id, x.pid, last.err)
			}
			return last, nil
		case c, open := <-control:
			if !open {
				control = nil
				continue
			}
			if err := x.do(ctx, c); err != nil {
				return waited{}, errors.Join(err, x.hangUp(ctx, ended))
			}
		case <-ctx.Done():
			return waited{}, errors.Join(context.Cause(ctx), x.hangUp(ctx, ended))
		}
	}
}

// explainEnd is how a process ended that nobody can be asked about any more.
// With the first process the kernel kills all others of a container, so where
// the container has ended that is known. A containerd that is away for a
// moment has no bearing on the process, but nobody knows how it goes on.
func (e *Engine) explainEnd(ctx context.Context, id string, pid int, err error) (waited, error) {
	later, cancel := afterwards(ctx)
	defer cancel()
	if e.over(later, id) {
		return waited{status: 128 + uint32(unix.SIGKILL)}, nil
	}
	return waited{}, errors.Join(err, e.endGroup(later, id, pid))
}

// forgotten is err with the failure to forget a process, unless its end is
// known: a caller who is told of that failure runs it again, and RemoveStale
// forgets it later.
func (e *Engine) forgotten(ctx context.Context, id string, known bool, err, failure error) error {
	if known && failure != nil {
		e.cfg.Log.DebugContext(ctx, "a command that has ended is forgotten later", "container", id, "error", failure)
		return err
	}
	return errors.Join(err, failure)
}

// do resizes or signals. What reaches a process that has just ended is lost.
func (x *session) do(ctx context.Context, c runtime.Control) error {
	if c.Resize != nil && x.terminal {
		if err := x.resize(ctx, *c.Resize); err != nil {
			return err
		}
	}
	if c.Signal == "" {
		return nil
	}
	signal, err := parseSignal(c.Signal)
	if err != nil {
		return problem.New(problem.FieldInvalid, "there is no signal %q", c.Signal).WithField("signal").
			WithHint("name one as kill -l does, for example INT, or give its number").WithCause(err)
	}
	err = x.engine.kill(ctx, x.id, x.exec, signal, false)
	if err == nil || errdefs.IsNotFound(err) || ended(err) {
		return nil
	}
	return err
}

func (x *session) resize(ctx context.Context, size runtime.TerminalSize) error {
	_, err := x.engine.tasks.ResizePty(ctx, &tasks.ResizePtyRequest{
		ContainerID: x.id, ExecID: x.exec, Width: uint32(size.Columns), Height: uint32(size.Rows),
	})
	if err = x.engine.explain(ctx, err); err == nil || errdefs.IsNotFound(err) || ended(err) {
		return nil
	}
	return fmt.Errorf("resize terminal: %w", err)
}

// ended tells that a call came too late for a process, which shims say in
// several ways.
func ended(err error) bool {
	text := err.Error()
	return strings.Contains(text, "already finished") ||
		strings.Contains(text, "cannot ") && (strings.Contains(text, " a stopped ") || strings.Contains(text, " a deleted "))
}

// drain waits for the rest of the output: to the end of the pipes, which what
// runs on in the background may hold open, until nothing has come for a while, or
// not much longer where that writes and writes. A caller that is slow is waited for.
func (x *session) drain(ctx context.Context) (ended bool) {
	done := make(chan struct{})
	x.closing.Go(func() { x.io.Wait(); close(done) })
	return quiet(ctx, done, func() (int64, bool) { return x.out.moved() + x.err.moved(), x.out.busy() || x.err.busy() })
}

// remove forgets the process, whatever state it is in, and its pipes. No
// output is written once it has returned.
func (x *session) remove(ctx context.Context) error {
	x.end()
	x.out.stop() // may wait for a caller that is slow
	x.err.stop()
	x.through()
	undo, cancel := afterwards(ctx)
	defer cancel()
	// Pipes first: the shim waits for its copies into them to end.
	x.closeIO()
	if x.held {
		x.engine.forgetLater(ctx, x.id, x.exec, x.pid)
		x.closing.Wait()
		return nil
	}
	err := x.engine.removeExec(undo, x.id, x.exec, x.pid)
	x.closing.Wait()
	return err
}

func (x *session) closeIO() {
	x.io.Cancel()
	if err := x.io.Close(); err != nil {
		x.engine.cfg.Log.Debug("pipes of a command closed with an error", "container", x.id, "error", err)
	}
}

// relay is an output on its way to the caller. It holds everything back until
// the caller knows of the start, and drops everything once the caller does not
// take it any more, so that the process and the shim are never stuck.
type relay struct {
	to      io.Writer
	begun   <-chan struct{}
	fail    context.CancelCauseFunc
	count   atomic.Int64 // of bytes
	writing atomic.Bool

	mu      sync.Mutex
	dropped bool
}

// Write implements io.Writer. It never fails.
func (r *relay) Write(p []byte) (int, error) {
	<-r.begun
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dropped || r.to == nil {
		return len(p), nil
	}
	r.writing.Store(true)
	defer r.writing.Store(false)
	if _, err := r.to.Write(p); err != nil {
		r.dropped = true
		r.fail(fmt.Errorf("write output of the command: %w", err))
	}
	r.count.Add(int64(len(p)))
	return len(p), nil
}

func (r *relay) moved() int64 { return r.count.Load() }
func (r *relay) busy() bool   { return r.writing.Load() }

// stop waits for a write at work; none follows.
func (r *relay) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropped = true
}
