package cli_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/cli"
)

// "env exec -it web -- yes | head -1": the terminal is as it was when the
// output breaks, which a signal tells a program of.
func TestTerminalIsRestoredWhenTheOutputBreaks(t *testing.T) {
	const address = "REMOTEGPU_TEST_RAW"
	if addr := os.Getenv(address); addr != "" { // the program, in a process of its own
		t.Setenv("REMOTEGPU_ADDR", addr)
		os.Exit(cli.Run(t.Context(), []string{"env", "exec", "-it", "demo", "--", "yes"}, os.Stdin, os.Stdout, os.Stderr, os.Getenv))
	}
	f := newFake(t)
	keyboard, terminal := openTerminal(t)
	defer keyboard.Close()
	defer terminal.Close()
	settings := func() *unix.Termios {
		now, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	before := settings()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), address+"="+f.addr)
	var errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, write, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	if n, err := read.Read(make([]byte, 2)); n == 0 {
		t.Errorf("nothing was written: %v", err)
	}
	if cmp.Equal(before, settings()) {
		t.Error("the terminal is not raw while the command runs")
	}
	read.Close()
	_ = cmd.Wait()
	if cmd.ProcessState.ExitCode() <= 0 {
		t.Errorf("ended with %v\n%s", cmd.ProcessState, &errs)
	}
	if diff := cmp.Diff(before, settings()); diff != "" {
		t.Errorf("the terminal is not as it was: %s", diff)
	}
}

// openTerminal makes a terminal, and what its keys are pressed on.
func openTerminal(t *testing.T) (keyboard, terminal *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(filepath.Join("/dev/pts", strconv.Itoa(number)), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return keyboard, terminal
}
