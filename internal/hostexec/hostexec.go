// Package hostexec runs programs of the host, with a deadline, a clean
// environment and errors that carry what the program said.
package hostexec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/internal/fault"
)

// Error is a program that ended with a failure.
type Error struct {
	Program string
	Code    int    // exit code, -1 when it never ran or a signal ended it
	Stderr  string // what it said, trimmed
	Err     error
}

// Error names the program and what it said.
func (e *Error) Error() string {
	if e.Stderr != "" {
		return fmt.Sprintf("%s: %v: %s", e.Program, e.Err, e.Stderr)
	}
	return fmt.Sprintf("%s: %v", e.Program, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Run runs a program with stdin and returns its standard output. The program
// is killed when ctx ends. A failure is an *Error.
func Run(ctx context.Context, stdin io.Reader, program string, args ...string) ([]byte, error) {
	if err := fault.Before(ctx, program); err != nil {
		return nil, &Error{Program: filepath.Base(program), Code: -1, Err: err}
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		failure := &Error{Program: filepath.Base(program), Code: -1, Stderr: strings.TrimSpace(stderr.String()), Err: err}
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			failure.Code = exit.ExitCode()
		}
		if ctx.Err() != nil {
			failure.Err = errors.Join(ctx.Err(), err)
		}
		return stdout.Bytes(), failure
	}
	if err := fault.After(ctx, program); err != nil {
		return nil, &Error{Program: filepath.Base(program), Code: -1, Err: err}
	}
	return stdout.Bytes(), nil
}
