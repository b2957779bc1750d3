package containerd

import (
	"context"
	"time"

	"github.com/remotegpu/remotegpu/runtime/operation"
)

const (
	// stateTimeout bounds a look at a task: containerd gives its shim 2 s.
	stateTimeout = 10 * time.Second
	// shimTimeout bounds what a shim does in a moment, with a runtime that is
	// started for it. One that takes longer hangs.
	shimTimeout = 30 * time.Second
	// workerTime is for how long a shim may keep the worker of the operation
	// that waits for it. No shim needs as long while the host is well.
	workerTime = 5 * time.Second
)

const taskCalls = "/containerd.services.tasks.v1.Tasks/"

// limits are those of calls that have a shorter one than others, see bound. Tasks are created and started by
// hooks of GPUs, which may load a driver, and deleted by unmounting a layer, which
// writes what is not on the disk yet: they have the longer one.
var limits = map[string]time.Duration{
	taskCalls + "Get":       stateTimeout,
	taskCalls + "Kill":      shimTimeout,
	taskCalls + "Pause":     shimTimeout,
	taskCalls + "Resume":    shimTimeout,
	taskCalls + "Update":    shimTimeout,
	taskCalls + "Exec":      shimTimeout,
	taskCalls + "ResizePty": shimTimeout,
	taskCalls + "CloseIO":   shimTimeout,
	taskCalls + "ListPids":  shimTimeout,
}

// patiently waits for what a shim does, or a process that it runs. What takes
// long takes no worker of operations: as many shims that hang as there are
// workers would hold up all others. wait ends with ctx, and by itself.
func patiently(ctx context.Context, wait func() error) error {
	done := make(chan error, 1)
	go func() { done <- wait() }()
	timer := time.NewTimer(workerTime)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return operation.Idle(ctx, func() error { return <-done })
	}
}
