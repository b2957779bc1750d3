package containerd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
)

// Pause freezes all processes of a container.
func (e *Engine) Pause(ctx context.Context, id string) error {
	paused, err := e.starts.Change(ctx, id)
	if err != nil {
		return fmt.Errorf("pause container %s: wait for commands that are being started: %w", id, err)
	}
	defer paused()
	return e.freeze(ctx, id, true, func(ctx context.Context) error {
		_, err := e.tasks.Pause(ctx, &tasks.PauseTaskRequest{ContainerID: id})
		return err
	})
}

// Resume lets them go on.
func (e *Engine) Resume(ctx context.Context, id string) error {
	return e.freeze(ctx, id, false, func(ctx context.Context) error {
		_, err := e.tasks.Resume(ctx, &tasks.ResumeTaskRequest{ContainerID: id})
		return err
	})
}

// freeze brings a container to be paused, or not to be. What a call's error
// means is asked of the task: an answer may be lost, and a process may end.
func (e *Engine) freeze(ctx context.Context, id string, paused bool, do func(context.Context) error) error {
	verb := "resume"
	if paused {
		verb = "pause"
	}
	is, err := e.paused(ctx, id)
	if err == nil && is != paused {
		whole, done := uninterrupted(ctx)
		defer done()
		// On a busy host a runtime may give a cgroup that does not freeze up.
		for range freezeTries {
			if err = e.tryFreeze(whole, id, paused, do); err == nil || !fromRuntime(err) || ctx.Err() != nil {
				break
			}
		}
	}
	if err != nil {
		return fmt.Errorf("%s container %s: %w", verb, id, err)
	}
	return nil
}

// freezeTries is how often a runtime is asked before its refusal counts.
const freezeTries = 3

func (e *Engine) tryFreeze(ctx context.Context, id string, paused bool, do func(context.Context) error) error {
	err := e.explain(ctx, do(ctx))
	if err == nil {
		return nil
	}
	now, lookErr := e.paused(ctx, id)
	switch {
	case errdefs.IsNotFound(lookErr):
		return lookErr
	case lookErr == nil && now == paused:
		return nil
	case fromRuntime(err) && e.endsSoon(ctx, id): // which takes a moment to find out
		return fmt.Errorf("its process has ended: %w", errdefs.ErrNotFound)
	}
	return err
}

// endsSoon says whether the process of a container is ending: the runtime knows
// before the shim has noticed.
func (e *Engine) endsSoon(ctx context.Context, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, noticeTimeout)
	defer cancel()
	last := <-e.wait(ctx, id, "")
	return last.err == nil || errdefs.IsNotFound(last.err)
}

// paused says whether the process of a container is paused, NotFound when it
// has none. Errors as of task.
func (e *Engine) paused(ctx context.Context, id string) (bool, error) {
	process, err := e.task(ctx, id)
	if err != nil {
		return false, err
	}
	if !running(process) {
		return false, fmt.Errorf("its process does not run: %w", errdefs.ErrNotFound)
	}
	return isPaused(process), nil
}

func isPaused(process *task.Process) bool {
	return process.Status == task.Status_PAUSED || process.Status == task.Status_PAUSING
}

// thaw lets the processes of a container go on that have been sent a signal: a
// frozen one does not notice, and with cgroup v1 not even SIGKILL. A container
// that is not paused, or that ends meanwhile, is fine.
func (e *Engine) thaw(ctx context.Context, id string) error {
	if err := e.Resume(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// thawCgroup does the same where the shim is gone that would. Where it cannot,
// the caller finds that processes are left.
func (e *Engine) thawCgroup(id string) {
	file, state := filepath.Join(cgroupRoot, "freezer", e.cgroup(id), "freezer.state"), "THAWED"
	if e.host().unified {
		file, state = filepath.Join(cgroupRoot, e.cgroup(id), "cgroup.freeze"), "0"
	}
	_ = os.WriteFile(file, []byte(state), 0o600)
}
