package helper

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// hanging is a process of which nobody learns that it has ended, as of one that
// a driver keeps in the kernel.
func hanging(t *testing.T) *process {
	t.Helper()
	in, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{in: in, answers: make(chan answer), ended: make(chan struct{}), left: make(chan struct{})}
	p.cmd = exec.CommandContext(t.Context(), "/bin/sleep", "600")
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	return p
}

// While a process that was killed has not ended, nobody starts others.
func TestStuckHelperIsTheOnlyOne(t *testing.T) {
	t.Parallel()
	client := New(Config{Program: "/nonexistent"})
	p := hanging(t)
	<-client.turn
	client.process = p
	client.end()
	client.release()
	refused := func(err error) bool {
		var found *problem.Problem
		return errors.As(err, &found) && found.Reason == problem.GPUUnavailable && found.Hint == hintHung
	}
	for range 2 {
		if _, err := client.Probe(t.Context()); !refused(err) {
			t.Errorf("a call: %v", err)
		}
	}
	if err := client.Watch(t.Context(), nil, func(gpu.Event) {}); !refused(err) {
		t.Errorf("a watch: %v", err)
	}
	close(p.ended)
	if _, err := client.Probe(t.Context()); err == nil || refused(err) {
		t.Errorf("a call after it has ended: %v", err)
	}
	if len(client.stuck.processes) > 0 {
		t.Error("it is kept")
	}
}

// A pause does not wait for a watch that is just being started, which has no GPU
// open yet.
func TestPauseWhileAWatchStarts(t *testing.T) {
	t.Parallel()
	w := watching{stuck: &stuck{}}
	resume := w.pause()
	if w.add(&process{}) {
		t.Error("a process may watch during a pause")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a wait during a pause: %v", err)
	}
	resume()
	if err := w.wait(t.Context()); err != nil {
		t.Error(err)
	}
}
