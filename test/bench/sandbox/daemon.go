package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Daemon is a program that runs until it is stopped.
type Daemon struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
}

// StartDaemon starts a program in a network namespace, with its output in a
// file. env is its whole environment.
func StartDaemon(ns *NetNS, log string, env []string, program string, args ...string) (*Daemon, error) {
	output, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", program, err)
	}
	defer output.Close()
	daemon := &Daemon{name: filepath.Base(program), log: log, cmd: exec.Command(program, args...), done: make(chan struct{})}
	daemon.cmd.Env, daemon.cmd.Stdout, daemon.cmd.Stderr = env, output, output
	if err := ns.Do(daemon.cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", daemon.name, err)
	}
	go func() {
		daemon.cmd.Wait()
		close(daemon.done)
	}()
	return daemon, nil
}

// CPU is how much of it the daemon's process has used.
func (d *Daemon) CPU() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("look at %s: %w", d.name, err)
	}
	// The name, in brackets, may have anything in it; utime and stime are the
	// 14th and 15th field, in hundredths of a second (proc(5)).
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("look at %s: %w", d.name, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// Await calls ready until it succeeds. It gives up when the daemon has ended
// or the limit has passed, and then tells the end of the daemon's log.
func (d *Daemon) Await(ctx context.Context, limit time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-d.done:
			return fmt.Errorf("await %s: it ended: %s\n%s", d.name, d.cmd.ProcessState, d.Tail())
		case <-ctx.Done():
			return fmt.Errorf("await %s: %w\n%s", d.name, errors.Join(ctx.Err(), err), d.Tail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop sends SIGTERM, and SIGKILL after ten seconds.
func (d *Daemon) Stop() {
	d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(10 * time.Second):
		d.cmd.Process.Kill()
		<-d.done
	}
}

// Tail is the end of its log.
func (d *Daemon) Tail() string {
	content, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(content), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-20):], []byte("\n")))
}
