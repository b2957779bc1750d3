package runtimetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

var _ runtime.Executor = (*FakeEngine)(nil)

// Exec runs a pretended command with streams.
func (e *FakeEngine) Exec(ctx context.Context, id string, p runtime.Process, streams runtime.Streams) (runtime.Exit, error) {
	var x *execution
	var args []string
	var c *fakeContainer
	var stale chan struct{}
	var first *fakeProcess
	err := e.call("Exec", func() (err error) {
		c = e.containers[id]
		if c == nil || !c.running() {
			return fmt.Errorf("run in container %s: it does not run: %w", id, errdefs.ErrNotFound)
		}
		if c.process.paused {
			return fmt.Errorf("run in container %s: %w", id, runtime.ErrPaused)
		}
		user := c.user
		if p.User != "" {
			if user, err = lookUpUser(p.User); err != nil {
				return err
			}
		}
		if args, err = c.program(p.Argv); err != nil {
			return fmt.Errorf("run in container %s: %w", id, err)
		}
		if tooLong(p.Argv) {
			return fmt.Errorf("run in container %s: %w", id, runtime.TooLong())
		}
		x = &execution{user: user, env: c.environment(p.Env), workdir: c.Workdir}
		if p.Workdir != "" {
			x.workdir = p.Workdir
		}
		if e.execs == nil {
			e.execs = make(map[*execution]fakeExec)
		}
		stale = make(chan struct{})
		e.execs[x] = fakeExec{c.process, stale}
		first = c.process
		return nil
	})
	if err != nil {
		return runtime.Exit{}, err
	}
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.execs, x)
	}()
	if streams.Started != nil {
		if err := streams.Started(); err != nil {
			return runtime.Exit{}, err
		}
	}
	code := 0
	for command := range commands(args) {
		exit, err := e.execOne(ctx, c, command, x, &p, streams, fakeExec{first, stale})
		if err != nil || exit.Signal != 0 {
			return exit, err
		}
		if code = exit.Code; code != 0 {
			break
		}
	}
	return runtime.Exit{Code: code}, nil
}

type fakeExec struct {
	first *fakeProcess
	stale chan struct{} // closed by RemoveStale
}

// execOne runs one of the commands.
func (e *FakeEngine) execOne(ctx context.Context, c *fakeContainer, command []string, x *execution, p *runtime.Process,
	streams runtime.Streams, own fakeExec,
) (runtime.Exit, error) {
	switch {
	case command[0] == "cat" && len(command) == 1 && streams.Stdin != nil:
		_, err := io.Copy(streams.Stdout, streams.Stdin)
		return runtime.Exit{}, err
	case command[0] == "sleep", command[0] == "ignore-term", command[0] == "hold", command[0] == "winsize":
		return e.execLong(ctx, command, p, streams, own)
	case command[0] == "ps":
		return runtime.Exit{}, nil
	}
	e.mu.Lock()
	code := c.exec(command, x)
	out, errs := bytes.Clone(x.stdout.Bytes()), bytes.Clone(x.stderr.Bytes())
	x.stdout.Reset()
	x.stderr.Reset()
	e.mu.Unlock()
	_, err := streams.Stdout.Write(out)
	if len(errs) > 0 {
		to := streams.Stderr
		if p.Terminal != nil {
			to = streams.Stdout
		}
		_, again := to.Write(errs)
		err = errors.Join(err, again)
	}
	return runtime.Exit{Code: code}, err
}

// execLong is a command that lasts.
func (e *FakeEngine) execLong(ctx context.Context, command []string, p *runtime.Process,
	streams runtime.Streams, own fakeExec,
) (runtime.Exit, error) {
	switch command[0] {
	case "hold":
		fmt.Fprintln(streams.Stdout, "holding")
	case "winsize":
		if p.Terminal == nil {
			return runtime.Exit{Code: 1}, nil
		}
		fmt.Fprintf(streams.Stdout, "%dx%d\r\n", p.Terminal.Columns, p.Terminal.Rows)
		if len(command) == 1 {
			return runtime.Exit{}, nil
		}
	}
	for {
		select {
		case control := <-streams.Control:
			switch {
			case control.Resize != nil:
				fmt.Fprintf(streams.Stdout, "%dx%d\r\n", control.Resize.Columns, control.Resize.Rows)
			case control.Signal == "SIGKILL" || control.Signal == "9":
				return runtime.Exit{Code: 137, Signal: 9}, nil
			case control.Signal == "NONSENSE":
				return runtime.Exit{}, problem.New(problem.FieldInvalid, "no signal").WithField("signal")
			case command[0] == "sleep":
				fmt.Fprintln(streams.Stdout, "stopped by", control.Signal)
				return runtime.Exit{}, nil
			}
		case <-own.stale:
			return runtime.Exit{Code: 137, Signal: 9}, nil
		case <-own.first.done:
			return runtime.Exit{Code: 137, Signal: 9}, nil
		case <-ctx.Done():
			return runtime.Exit{}, context.Cause(ctx)
		}
	}
}

// RemoveStale ends every command, as if another engine had started it; those
// of paused containers wait for the next call.
func (e *FakeEngine) RemoveStale(context.Context) error {
	return e.call("RemoveStale", func() error {
		for x, exec := range e.execs {
			if exec.first.paused {
				continue
			}
			close(exec.stale)
			delete(e.execs, x)
		}
		return nil
	})
}
