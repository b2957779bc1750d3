package columns

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// WarmArg is the first argument with which the program calls itself to keep
// the kernel's lock of process migrations warm.
const WarmArg = "sandbox-warm"

// KeepWarm keeps others from waiting for the lock that a write to any
// cgroup.procs takes. It is one lock of the whole machine, and when nobody has
// held it for a while the writer waits for an RCU grace period, 10 ms and more;
// a start of a container has to. The process moves to the cgroup dir, where it
// is already, again and again: from a "+" to a "-" that it reads from in.
func KeepWarm(dir string, in io.Reader) error {
	file := filepath.Join(dir, "cgroup.procs")
	orders := make(chan byte)
	go func() {
		defer close(orders)
		one := make([]byte, 1)
		for {
			if _, err := in.Read(one); err != nil {
				return
			}
			orders <- one[0]
		}
	}()
	warm := false
	for {
		if warm {
			if err := os.WriteFile(file, []byte("0"), 0); err != nil {
				return fmt.Errorf("move: %w", err)
			}
		}
		var again <-chan time.Time
		if warm {
			again = time.After(2 * time.Millisecond)
		}
		select {
		case order, ok := <-orders:
			if !ok {
				return nil
			}
			warm = order == '+'
		case <-again:
		}
	}
}

// warmer is the process that does it.
type warmer struct {
	cmd    *exec.Cmd
	orders io.WriteCloser
}

// newWarmer starts one in a cgroup of its own.
func newWarmer(config *Config) (*warmer, error) {
	var dir string
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/pids"} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err == nil {
			dir = filepath.Join(root, config.Name, "warm")
		}
	}
	if dir == "" {
		return nil, errors.New("no cgroup hierarchy is found")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	w := &warmer{cmd: exec.Command("/proc/self/exe", WarmArg, dir)}
	w.cmd.Stderr = os.Stderr
	var err error
	if w.orders, err = w.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start warmer: %w", err)
	}
	if err := w.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start warmer: %w", err)
	}
	return w, nil
}

// during keeps the lock warm until the function it returns is called.
func (w *warmer) during() func() {
	if w == nil {
		return func() {}
	}
	_, _ = io.WriteString(w.orders, "+")
	return func() { _, _ = io.WriteString(w.orders, "-") }
}

func (w *warmer) close() {
	if w != nil {
		w.orders.Close()
		_ = w.cmd.Wait()
	}
}
