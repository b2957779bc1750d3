package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// follower is a remotegpu env logs -f of an environment that counts.
type follower struct {
	*exec.Cmd
	ended        chan struct{}
	stdout, errs string // files
}

// Follow starts one. It outlasts any restart that a slow machine may need.
func (n *Node) Follow(t *testing.T, name string) *follower {
	t.Helper()
	dir := t.TempDir()
	f := &follower{
		Cmd:   n.command(t, testutil.Program("remotegpu"), "env", "logs", "-f", "--reconnect-for", "10m", name),
		ended: make(chan struct{}), stdout: filepath.Join(dir, "stdout"), errs: filepath.Join(dir, "stderr"),
	}
	out, err := os.Create(f.stdout)
	if err != nil {
		t.Fatal(err)
	}
	errs, err := os.Create(f.errs)
	if err != nil {
		t.Fatal(err)
	}
	f.Stdout, f.Stderr = out, errs
	if err := f.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = out.Close(), errs.Close() // the process has its own
	go func() { defer close(f.ended); _ = f.Wait() }()
	t.Cleanup(func() { _ = f.Process.Kill(); <-f.ended })
	return f
}

// Numbers are those that have come. Anything else on its standard output fails
// the test.
func (f *follower) Numbers(t *testing.T) []int {
	t.Helper()
	var numbers []int
	for line := range strings.Lines(f.read(t, f.stdout)) {
		if !strings.HasSuffix(line, "\n") {
			break // on its way
		}
		var number int
		if _, err := fmt.Sscanf(line, "count %d\n", &number); err != nil {
			t.Fatalf("line %d is %q", len(numbers), line)
		}
		numbers = append(numbers, number)
	}
	return numbers
}

// Last is the last number that has come, 0 before the first.
func (f *follower) Last(t *testing.T) int {
	t.Helper()
	select {
	case <-f.ended:
		t.Fatalf("the follower has ended: %v\n%s", f.ProcessState, f.Errors(t))
	default:
	}
	text := f.read(t, f.stdout)
	text = text[:strings.LastIndexByte(text, '\n')+1]
	last := 0
	_, _ = fmt.Sscanf(text[strings.LastIndexByte(strings.TrimSuffix(text, "\n"), '\n')+1:], "count %d\n", &last)
	return last
}

// Errors is what it has said besides.
func (f *follower) Errors(t *testing.T) string {
	t.Helper()
	return f.read(t, f.errs)
}

func (f *follower) read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// GoesOn waits until a number has come.
func (f *follower) GoesOn(t *testing.T, to int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); f.Last(t) < to; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for number %d, the last is %d\n%s", to, f.Last(t), f.Errors(t))
		}
	}
}

// One follower sees every line exactly once and in order, while the log is
// rotated under it and the daemon is killed and stopped. What is deleted under
// it is told, and what comes after it comes.
func TestFollowerResumes(t *testing.T) {
	testutil.Require(t, testutil.Programs)
	for _, kind := range either(t) {
		t.Run(string(kind), func(t *testing.T) {
			n := Start(t, kind, "[logs]\nmax_size = 65536\nmax_files = 1000\n")
			n.Must(t, "env", "create", "box", "--image", n.Image, "--", "count")
			log := filepath.Join(n.Dir, "state/logs", n.Get(t, "box").ID+".log")
			f := n.Follow(t, "box")
			f.GoesOn(t, 3000)
			for i, signal := range []os.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL} {
				n.Stop(t, signal)
				before := f.Last(t)
				n.Run(t)
				f.GoesOn(t, before+3000)
				if got := strings.Count(f.Errors(t), "connection lost, trying again\n"); got != i+1 {
					t.Errorf("%d notes after %d losses:\n%s", got, i+1, f.Errors(t))
				}
			}
			for i, number := range f.Numbers(t) {
				if number != i+1 {
					t.Fatalf("line %d is number %d", i+1, number)
				}
			}
			if rotated, err := filepath.Glob(log + ".*"); err != nil || len(rotated) < 3 {
				t.Errorf("rotated files: %q %v", rotated, err)
			}
			f.deletedUnder(t, n, log)

			if err := f.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			<-f.ended
			if code := f.ProcessState.ExitCode(); code != 130 {
				t.Errorf("interrupted: exit %d, want 130", code)
			}
			// Without -f a token is of no use: what there is comes, and it ends.
			if _, errs, code := n.CLI(t, "env", "logs", "--tail", "1", "box"); code != 0 {
				t.Errorf("exit %d: %s", code, errs)
			}
		})
	}
}

// deletedUnder deletes the log under its writer, once while it is followed and
// once while the follower is cut off.
func (f *follower) deletedUnder(t *testing.T, n *Node, log string) {
	t.Helper()
	const gap = "remotegpu: lines were lost here: "
	number := f.Last(t)
	remove(t, log)
	f.GoesOn(t, number+3000)
	told := strings.Count(f.Errors(t), gap) // it may have been about to open the file
	if lost := f.gaps(t); lost > told {
		t.Errorf("%d gaps and %d notices", lost, told)
	}

	n.Stop(t, syscall.SIGKILL)
	number = f.Last(t)
	remove(t, log)
	Eventually(t, "the writer to begin the log anew", func() bool {
		info, err := os.Stat(log)
		return err == nil && info.Size() > 4096
	})
	n.Run(t)
	f.GoesOn(t, number+3000)
	if again := strings.Count(f.Errors(t), gap); again != told+1 {
		t.Errorf("%d notices, want %d:\n%s", again, told+1, f.Errors(t))
	}
	if lost := f.gaps(t); lost > told+1 {
		t.Errorf("%d gaps and %d notices", lost, told+1)
	}
}

// remove deletes a log, which is absent for a moment while it is rotated.
func remove(t *testing.T, log string) {
	t.Helper()
	Eventually(t, "the log to be there and removed", func() bool { return os.Remove(log) == nil })
}

// gaps counts where numbers are missing. None may come twice or too late.
func (f *follower) gaps(t *testing.T) int {
	t.Helper()
	gaps, last := 0, 0
	for _, number := range f.Numbers(t) {
		if number <= last {
			t.Fatalf("number %d after %d", number, last)
		}
		if number > last+1 {
			gaps++
		}
		last = number
	}
	return gaps
}
