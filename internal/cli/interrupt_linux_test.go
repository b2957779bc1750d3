package cli_test

import (
	"context"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/cli"
)

// Nothing comes from the command and nothing is sent to it when the program is
// told to end: both ends know of it at once.
func TestExecEndsWhileTheCommandIsQuiet(t *testing.T) {
	const address, arguments = "REMOTEGPU_TEST_QUIET", "REMOTEGPU_TEST_QUIET_ARGS"
	if addr := os.Getenv(address); addr != "" { // the program, in a process of its own
		t.Setenv("REMOTEGPU_ADDR", addr)
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
		defer stop()
		os.Exit(cli.Run(ctx, strings.Fields(os.Getenv(arguments)), os.Stdin, os.Stdout, os.Stderr, os.Getenv))
	}
	keyboard, terminal := openTerminal(t)
	open, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	nothing, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []*os.File{keyboard, terminal, open, writer, nothing} {
		t.Cleanup(func() { _ = file.Close() })
	}
	f := newFake(t)
	for _, test := range []struct {
		name, flags string
		stdin       *os.File
		end         func(*os.Process) error
	}{
		{"Ctrl-C without a terminal", "", nothing, func(p *os.Process) error { return p.Signal(os.Interrupt) }},
		{"Ctrl-C with -t", "-t", terminal, func(p *os.Process) error { return p.Signal(os.Interrupt) }},
		{"SIGTERM with an open pipe", "", open, func(p *os.Process) error { return p.Signal(syscall.SIGTERM) }},
		{"SIGTERM with -it", "-it", terminal, func(p *os.Process) error { return p.Signal(syscall.SIGTERM) }},
		{"SIGHUP", "", nothing, func(p *os.Process) error { return p.Signal(syscall.SIGHUP) }},
		{"SIGINT to a plain call that reads", "--unary", open, func(p *os.Process) error { return p.Signal(os.Interrupt) }},
		// It is not the controlling terminal, so that no signal comes with it.
		{"the terminal is closed", "-it", terminal, func(*os.Process) error { return keyboard.Close() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestExecEndsWhileTheCommandIsQuiet$")
			cmd.Env = append(os.Environ(), address+"="+f.addr, arguments+"=env exec "+test.flags+" demo -- sleep")
			var errs strings.Builder
			cmd.Stdin, cmd.Stderr = test.stdin, &errs
			output, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			streams := test.flags != "--unary"
			if streams {
				if _, err := io.ReadFull(output, make([]byte, len("asleep"))); err != nil {
					t.Fatalf("the command did not start: %v", err)
				}
			} else if _, err := writer.WriteString("x"); err != nil {
				t.Fatal(err)
			} else {
				emptied(t, open)
			}
			if err := test.end(cmd.Process); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.Contains(errs.String(), "interrupted") {
				t.Errorf("ended with %v: %s", cmd.ProcessState, &errs)
			}
			if !streams {
				return
			}
			select {
			case <-f.left:
			case <-ctx.Done():
				t.Error("the node does not know that its caller has left")
			}
		})
	}
}

// emptied waits until somebody has read what was written into a pipe.
func emptied(t *testing.T, pipe *os.File) {
	t.Helper()
	for begun := time.Now(); time.Since(begun) < time.Minute; time.Sleep(10 * time.Millisecond) {
		if left, err := unix.IoctlGetInt(int(pipe.Fd()), unix.TIOCINQ); err != nil {
			t.Fatal(err)
		} else if left == 0 {
			return
		}
	}
	t.Fatal("the program does not read its input")
}
