package rpc

import (
	"context"
	"errors"
	"io"
	"sync"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// stdinQueue is how many messages of standard input (64 KiB each at most) wait
// for a process that does not read. Signals and sizes that come after more than
// that wait with them.
const stdinQueue = 16

// ExecCommand implements the RPC.
func (s *environmentService) ExecCommand(ctx context.Context, stream remotegpuv1connect.EnvironmentServiceExecCommandServerStream) error {
	first, err := stream.Receive()
	if errors.Is(err, io.EOF) {
		return notStarted()
	} else if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return notStarted()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := &execOutput{stream: stream}
	in := &execInput{ctx: ctx, chunks: make(chan []byte, stdinQueue), control: make(chan runtime.Control)}
	// It ends with the stream, which ends when this returns.
	go func() {
		if err := in.receive(stream); err != nil {
			cancel(err)
		}
	}()
	req := runtime.ExecRequest{
		Project: start.GetProject(), Environment: start.GetEnvironment(), Argv: start.GetArgv(), Env: start.GetEnv(),
		Workdir: start.GetWorkdir(), User: start.GetUser(), Terminal: fromSize(start.GetTerminal()),
	}
	exit, err := s.cfg.Manager.Exec(ctx, req, runtime.Streams{
		Stdin: in, Control: in.control, Started: out.started,
		Stdout: out.writer(func(p []byte) *remotegpuv1.ExecCommandResponse {
			return &remotegpuv1.ExecCommandResponse{Message: &remotegpuv1.ExecCommandResponse_Stdout{Stdout: p}}
		}),
		Stderr: out.writer(func(p []byte) *remotegpuv1.ExecCommandResponse {
			return &remotegpuv1.ExecCommandResponse{Message: &remotegpuv1.ExecCommandResponse_Stderr{Stderr: p}}
		}),
	})
	if err != nil {
		return err
	}
	return out.send(&remotegpuv1.ExecCommandResponse{Message: &remotegpuv1.ExecCommandResponse_Exit{
		Exit: &remotegpuv1.ExecExit{Code: int32(exit.Code), Signal: int32(exit.Signal)},
	}})
}

func notStarted() error {
	return problem.New(problem.ExecNotStarted, "the first message does not start a command").WithField("start").
		WithHint("send start first, with environment and argv")
}

func fromSize(size *remotegpuv1.TerminalSize) *runtime.TerminalSize {
	if size == nil {
		return nil
	}
	return &runtime.TerminalSize{Columns: int(size.GetColumns()), Rows: int(size.GetRows())}
}

// execOutput sends one message at a time.
type execOutput struct {
	mu     sync.Mutex
	stream remotegpuv1connect.EnvironmentServiceExecCommandServerStream
}

func (o *execOutput) send(message *remotegpuv1.ExecCommandResponse) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.stream.Send(message)
}

func (o *execOutput) started() error {
	return o.send(&remotegpuv1.ExecCommandResponse{Message: &remotegpuv1.ExecCommandResponse_Started{Started: &remotegpuv1.ExecStarted{}}})
}

func (o *execOutput) writer(wrap func(p []byte) *remotegpuv1.ExecCommandResponse) io.Writer {
	return writerFunc(func(p []byte) (int, error) { return len(p), o.send(wrap(p)) })
}

type writerFunc func(p []byte) (int, error)

// Write implements io.Writer.
func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// execInput takes the caller's messages apart.
type execInput struct {
	ctx     context.Context //nolint:containedctx // of the call that it is a part of
	chunks  chan []byte     // closed at the end of input
	control chan runtime.Control
	rest    []byte
}

// Read implements io.Reader for standard input.
func (i *execInput) Read(p []byte) (int, error) {
	for len(i.rest) == 0 {
		select {
		case chunk, open := <-i.chunks:
			if !open {
				return 0, io.EOF
			}
			i.rest = chunk
		case <-i.ctx.Done():
			return 0, context.Cause(i.ctx)
		}
	}
	n := copy(p, i.rest)
	i.rest = i.rest[n:]
	return n, nil
}

// receive reads messages until the caller sends no more, which also ends
// standard input. An error is the end of the caller, or a message that should
// not be.
func (i *execInput) receive(stream remotegpuv1connect.EnvironmentServiceExecCommandServerStream) error {
	chunks := i.chunks
	end := func() {
		if chunks != nil {
			close(chunks)
			chunks = nil
		}
	}
	for {
		message, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			end()
			return nil
		} else if err != nil {
			return err
		}
		var control runtime.Control
		switch m := message.GetMessage().(type) {
		case *remotegpuv1.ExecCommandRequest_Stdin:
			if chunks == nil {
				continue // after the end: nobody reads it
			}
			select {
			case chunks <- m.Stdin:
			case <-i.ctx.Done():
				return context.Cause(i.ctx)
			}
			continue
		case *remotegpuv1.ExecCommandRequest_Eof:
			end()
			continue
		case *remotegpuv1.ExecCommandRequest_Resize:
			control.Resize = fromSize(m.Resize)
		case *remotegpuv1.ExecCommandRequest_Signal:
			control.Signal = m.Signal
		default:
			return problem.New(problem.FieldInvalid, "the command was started already").WithField("start").
				WithHint("start each command with a call of its own")
		}
		select {
		case i.control <- control:
		case <-i.ctx.Done():
			return context.Cause(i.ctx)
		}
	}
}
