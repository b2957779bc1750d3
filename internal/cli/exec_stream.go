package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect/v2"
	"golang.org/x/term"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
)

// stdinChunk is the largest message of standard input that a node takes.
const stdinChunk = 64 << 10

// execStream is one command with streams.
type execStream struct {
	*app
	stdin, terminal bool
	timeout         time.Duration // 0: none

	keys   bool                    // they are passed on as they are pressed
	hangUp context.CancelCauseFunc // ends the call
	mu     sync.Mutex              // of sending
	stream remotegpuv1connect.EnvironmentServiceExecCommandClientStream
}

// onTerminal says whether somebody types, or reads, at the other end.
func onTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// run runs the command. The terminal here is as it was when it returns.
func (s *execStream) run(ctx context.Context, start *remotegpuv1.ExecStart) (err error) {
	c, err := s.dial()
	if err != nil {
		return err
	}
	limited, hangUp := context.WithCancelCause(ctx)
	defer hangUp(nil)
	s.hangUp = hangUp
	if s.timeout > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(limited, s.timeout)
		defer cancel()
	}
	if s.stream, err = c.environments.ExecCommand(limited); err != nil {
		return err
	}
	defer s.stream.Close() //nolint:errcheck // the command's end was told, or its failure
	if s.terminal {
		start.Terminal = s.size()
		if _, said := start.Env["TERM"]; !said && s.getenv("TERM") != "" {
			if start.Env == nil {
				start.Env = make(map[string]string)
			}
			start.Env["TERM"] = s.getenv("TERM")
		}
	}
	if err := s.send(&remotegpuv1.ExecCommandRequest{Message: &remotegpuv1.ExecCommandRequest_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	restore, err := s.raw()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, restore()) }()
	return s.why(ctx, limited, s.follow(limited))
}

// why tells of a call that ended before the command what ended it; limited is
// the context of the call within that of the caller.
func (s *execStream) why(ctx, limited context.Context, err error) error {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*failure](context.Cause(limited)); ok {
		return f
	}
	if cutOff(err) && limited.Err() == nil {
		return wentAway()
	}
	// The node knows the deadline, too, and may be the first to say so.
	if s.timeout > 0 && ctx.Err() == nil &&
		(errors.Is(limited.Err(), context.DeadlineExceeded) || connect.CodeOf(err) == connect.CodeDeadlineExceeded) {
		return &failure{
			Code: "deadline_exceeded", Reason: "COMMAND_TIMEOUT", Message: fmt.Sprintf("the command did not end within %s and was killed", s.timeout),
			Hints: []string{"allow it more time, or start it in the background"}, exit: exitFailed,
		}
	}
	return err
}

// wentAway says that nobody knows how a command ended.
func wentAway() *failure {
	return &failure{
		Code: "unavailable", Message: "the node went away while the command ran; how it ended is not known",
		Hints: []string{"a command without its caller is ended, by a node that was restarted as soon as it is back: see that it answers (remotegpu node info), then run it again"},
		exit:  exitUnavailable,
	}
}

// raw hands the keys of a terminal here to the one there. Until it is restored,
// a broken output is an error of its write: the signal that comes with it would
// end the program and leave the terminal as it is.
func (s *execStream) raw() (restore func() error, err error) {
	file, ok := s.app.stdin.(*os.File)
	if !s.terminal || !s.stdin || !ok || !term.IsTerminal(int(file.Fd())) {
		return func() error { return nil }, nil
	}
	before, err := term.MakeRaw(int(file.Fd()))
	if err != nil {
		return nil, fmt.Errorf("prepare the terminal: %w", err)
	}
	s.keys = true
	signal.Ignore(syscall.SIGPIPE)
	return func() error {
		defer signal.Reset(syscall.SIGPIPE)
		if err := term.Restore(int(file.Fd()), before); err != nil {
			return fmt.Errorf("restore the terminal: %w", err)
		}
		return nil
	}, nil
}

// follow shows what the command writes until it has ended.
func (s *execStream) follow(ctx context.Context) error {
	var sending sync.Once
	for {
		message, err := s.stream.Receive()
		if errors.Is(err, io.EOF) {
			return errors.New("the node ended the call without the command's exit code")
		} else if err != nil {
			return err
		}
		switch m := message.GetMessage().(type) {
		case *remotegpuv1.ExecCommandResponse_Started:
			// Before, a command that is not there would cost what was typed.
			sending.Do(func() {
				go s.passInput()
				if s.terminal {
					s.passSizes(ctx)
				}
			})
		case *remotegpuv1.ExecCommandResponse_Stdout:
			_, err = s.stdout.Write(m.Stdout)
		case *remotegpuv1.ExecCommandResponse_Stderr:
			_, err = s.stderr.Write(m.Stderr)
		case *remotegpuv1.ExecCommandResponse_Exit:
			if code := m.Exit.GetCode(); code != 0 {
				return commandExit(code)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("write output: %w", err)
		}
	}
}

// send sends one message at a time.
func (s *execStream) send(message *remotegpuv1.ExecCommandRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stream.Send(message)
}

// passInput sends standard input and its end. It may outlive the command,
// waiting for somebody to type; it goes with the program. What cannot be sent
// is told by follow.
func (s *execStream) passInput() {
	buffer := make([]byte, stdinChunk)
	for s.stdin {
		n, err := s.app.stdin.Read(buffer)
		if n > 0 && s.send(&remotegpuv1.ExecCommandRequest{Message: &remotegpuv1.ExecCommandRequest_Stdin{Stdin: buffer[:n]}}) != nil {
			return
		}
		if err != nil && s.keys {
			// No key ends the input of a raw terminal. One that was closed does,
			// and not everybody gets a signal then.
			s.hangUp(&failure{Code: "canceled", Message: "interrupted: the terminal was closed", exit: exitInterrupted})
			return
		}
		if err != nil {
			break
		}
	}
	if s.terminal && !s.stdin {
		return // nothing is typed, and nothing ends
	}
	_ = s.send(&remotegpuv1.ExecCommandRequest{Message: &remotegpuv1.ExecCommandRequest_Eof{Eof: &remotegpuv1.ExecEOF{}}})
}

// passSizes sends the size of the terminal here whenever it changes.
func (s *execStream) passSizes(ctx context.Context) {
	changes := sizeChanges(ctx)
	last := s.size()
	go func() {
		for {
			select {
			case <-changes:
			case <-ctx.Done():
				return
			}
			now := s.size()
			if now.GetColumns() == last.GetColumns() && now.GetRows() == last.GetRows() {
				continue
			}
			last = now
			if s.send(&remotegpuv1.ExecCommandRequest{Message: &remotegpuv1.ExecCommandRequest_Resize{Resize: now}}) != nil {
				return
			}
		}
	}()
}

// size is that of the terminal here, or what terminals were born with.
func (s *execStream) size() *remotegpuv1.TerminalSize {
	for _, stream := range []any{s.stdout, s.app.stdin} {
		file, ok := stream.(*os.File)
		if !ok {
			continue
		}
		if columns, rows, err := term.GetSize(int(file.Fd())); err == nil && columns > 0 && rows > 0 {
			return &remotegpuv1.TerminalSize{Columns: int32(columns), Rows: int32(rows)}
		}
	}
	return &remotegpuv1.TerminalSize{Columns: 80, Rows: 24}
}
