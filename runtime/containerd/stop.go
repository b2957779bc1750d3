package containerd

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// Stop ends the first process and removes the task.
func (e *Engine) Stop(ctx context.Context, id string, timeout time.Duration) (runtime.Exit, error) {
	exit, err := e.stop(ctx, id, timeout)
	if err != nil {
		return runtime.Exit{}, fmt.Errorf("stop container %s: %w", id, err)
	}
	return exit, nil
}

func (e *Engine) stop(ctx context.Context, id string, timeout time.Duration) (runtime.Exit, error) {
	record, err := e.store.Get(ctx, id)
	if err != nil {
		return runtime.Exit{}, fmt.Errorf("get record: %w", e.explain(ctx, err))
	}
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := e.wait(waiting, id, "")
	if err := e.tell(ctx, id, e.stopSignal(ctx, &record), false); err != nil {
		if hangs(ctx, err) {
			return e.takeAway(ctx, &record, waited{status: 128 + uint32(unix.SIGKILL)})
		}
		return runtime.Exit{}, err
	}
	if err := e.thaw(ctx, id); err != nil && !e.over(ctx, id) {
		return runtime.Exit{}, err
	}
	last, killed, err := grace(ctx, ended, timeout)
	if err != nil {
		return runtime.Exit{}, err
	}
	if killed {
		if err := e.tell(ctx, id, syscall.SIGKILL, true); err != nil {
			if hangs(ctx, err) {
				return e.takeAway(ctx, &record, waited{status: 128 + uint32(unix.SIGKILL)})
			}
			return runtime.Exit{}, err
		}
		if last, err = await(ctx, ended); err != nil {
			return runtime.Exit{}, err
		}
	}
	if errdefs.IsNotFound(last.err) || last.err != nil && !e.over(ctx, id) {
		return runtime.Exit{}, last.err
	} else if last.err != nil { // its shim died with it, as containerd puts it down then
		last = waited{status: 128 + uint32(unix.SIGKILL)}
	}
	return e.takeAway(ctx, &record, last)
}

// takeAway removes the task of a first process that has ended, and tells how.
func (e *Engine) takeAway(ctx context.Context, record *containers.Container, last waited) (runtime.Exit, error) {
	exit := exitOf(last.status, last.at)
	kills, _ := e.oomKills(record.ID)
	exit.OOMKilled = kills > 0
	if err := e.roots.EndLive(ctx, record.ID); err != nil {
		return runtime.Exit{}, err
	}
	e.liftGPULimits(ctx, record)
	return exit, e.removeTask(ctx, record.ID)
}

// tell sends a signal to a first process, or all, that may have ended by now.
func (e *Engine) tell(ctx context.Context, id string, signal syscall.Signal, all bool) error {
	err := e.kill(ctx, id, "", signal, all)
	if err == nil || errdefs.IsNotFound(err) || !hangs(ctx, err) && e.over(ctx, id) {
		return nil
	}
	return err
}

// hangs says that a call failed since a shim does not answer.
func hangs(ctx context.Context, err error) bool {
	return ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded)
}

// over says whether the first process of a container has ended. It is asked
// when a call failed: containerd needs a moment to notice that a shim is gone.
func (e *Engine) over(ctx context.Context, id string) bool {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for range 20 {
		first, err := e.task(ctx, id)
		if errdefs.IsNotFound(err) || err == nil && !running(first) {
			return true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return false
}

// grace waits for a process to end by itself, and says whether its time is
// over instead. Meanwhile others have the worker of the operation.
func grace(ctx context.Context, ended <-chan waited, timeout time.Duration) (last waited, over bool, err error) {
	if timeout <= 0 {
		return last, true, nil
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	err = operation.Idle(ctx, func() error {
		select {
		case last = <-ended:
		case <-timer.C:
			over = true
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		return nil
	})
	return last, over, err
}

type waited struct {
	status uint32
	at     *timestamppb.Timestamp
	err    error
}

// wait sends once when a process has ended. It knows of an end before the call
// as well, until the process is deleted.
func (e *Engine) wait(ctx context.Context, id, exec string) <-chan waited {
	ended := make(chan waited, 1)
	go func() {
		response, err := e.tasks.Wait(ctx, &tasks.WaitRequest{ContainerID: id, ExecID: exec})
		if err != nil {
			ended <- waited{err: fmt.Errorf("wait for the process: %w", e.explain(ctx, err))}
			return
		}
		ended <- waited{status: response.ExitStatus, at: response.ExitedAt}
	}()
	return ended
}

// await waits for what SIGKILL must bring about.
func await(ctx context.Context, ended <-chan waited) (waited, error) {
	var last waited
	err := patiently(ctx, func() error {
		timer := time.NewTimer(killTimeout)
		defer timer.Stop()
		select {
		case last = <-ended:
			return nil
		case <-timer.C:
			return fmt.Errorf("the process has not ended %s after SIGKILL: %w", killTimeout, context.DeadlineExceeded)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	return last, err
}

func (e *Engine) kill(ctx context.Context, id, exec string, signal syscall.Signal, all bool) error {
	_, err := e.tasks.Kill(ctx, &tasks.KillRequest{ContainerID: id, ExecID: exec, Signal: uint32(signal), All: all})
	if err != nil {
		return fmt.Errorf("send %s: %w", signal, e.explain(ctx, err))
	}
	return nil
}

// stopSignal is what the image wants to be stopped by.
func (e *Engine) stopSignal(ctx context.Context, record *containers.Container) syscall.Signal {
	ext, err := e.imageOf(ctx, record)
	if err != nil || ext.Config.StopSignal == "" {
		return syscall.SIGTERM
	}
	signal, err := parseSignal(ext.Config.StopSignal)
	if err != nil {
		e.cfg.Log.WarnContext(ctx, "image has an unknown stop signal, sending SIGTERM", "container", record.ID, "error", err)
		return syscall.SIGTERM
	}
	return signal
}

// exitOf reads a shim's exit status: 128 + n for signal n.
func exitOf(status uint32, at *timestamppb.Timestamp) runtime.Exit {
	exit := runtime.Exit{Code: int(status)}
	if status > 128 && status <= 128+64 {
		exit.Signal = int(status) - 128
	}
	if at.IsValid() && at.AsTime().Unix() > 0 {
		exit.At = at.AsTime()
	}
	return exit
}

// deleteTask removes an ended task; none is fine. A delete whose caller died in
// the middle of it leaves a shim that knows no task any more, and containerd a
// task that it does not tell of and that nothing can take the place of: another
// delete removes it.
func (e *Engine) deleteTask(ctx context.Context, id string) error {
	whole, done := uninterrupted(ctx)
	defer done()
	_, err := e.tasks.Delete(whole, &tasks.DeleteTaskRequest{ContainerID: id})
	if err = e.explain(whole, err); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete task: %w", err)
	}
	return nil
}

// shimPatience is for how long a shim that does not answer is asked again before
// it is killed.
const shimPatience = 6 * time.Second

// errSilent says that a shim does not answer.
var errSilent = errors.New("its shim does not answer")

// silence marks what containerd says of a shim that does not answer in time.
func silence(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errdefs.IsDeadlineExceeded(err) {
		return fmt.Errorf("%w: %w", errSilent, err)
	}
	return err
}

// removeTask kills and removes whatever task a container has. A shim that died
// makes calls fail in several ways until containerd has cleaned up after it,
// so it is asked again for a while; one that does not answer is killed.
func (e *Engine) removeTask(ctx context.Context, id string) error {
	return patiently(ctx, func() error { return e.removeTaskOrShim(ctx, id) })
}

func (e *Engine) removeTaskOrShim(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*killTimeout)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var silent time.Time // since when its shim does not answer
	var err error
	for range 100 { // ten seconds beside the waiting itself
		if err = e.tryRemoveTask(ctx, id); err == nil {
			return nil
		}
		switch {
		case !errors.Is(err, errSilent) || ctx.Err() != nil:
			silent = time.Time{}
		case silent.IsZero():
			silent = time.Now()
		case time.Since(silent) > shimPatience:
			if endErr := e.endShims(ctx, id); endErr != nil {
				return errors.Join(err, endErr)
			}
			silent = time.Time{}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		}
	}
	return err
}

func (e *Engine) tryRemoveTask(ctx context.Context, id string) error {
	process, err := e.taskOrUnknown(ctx, id)
	if errdefs.IsNotFound(err) {
		if err := e.deleteTask(ctx, id); err != nil {
			return err
		}
		return e.endOrphans(ctx, id)
	} else if err == nil && process.Status == task.Status_UNKNOWN { // its shim does not answer
		soon, cancel := context.WithTimeout(context.WithoutCancel(ctx), shimPatience)
		defer cancel()
		_, err := e.tasks.Delete(soon, &tasks.DeleteTaskRequest{ContainerID: id})
		if err = native(err); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("delete task: %w", silence(err))
		}
		return nil
	} else if err != nil {
		return silence(err)
	}
	if running(process) || process.Status == statusCreated {
		waiting, cancel := context.WithCancel(ctx)
		defer cancel()
		ended := e.wait(waiting, id, "")
		killing, cancelKill := context.WithTimeout(ctx, 2*shimPatience)
		defer cancelKill()
		if err := e.kill(killing, id, "", syscall.SIGKILL, true); err != nil && !errdefs.IsNotFound(err) {
			return silence(err)
		}
		if isPaused(process) {
			if err := e.thaw(ctx, id); err != nil {
				return silence(err)
			}
		}
		if last, err := await(ctx, ended); err != nil {
			return err
		} else if last.err != nil && !errdefs.IsNotFound(last.err) {
			return last.err
		}
	}
	return e.deleteTask(ctx, id)
}

// Delete kills and removes task, container, writable layer and log. The record
// goes before its snapshot, which containerd collects by itself should this
// process die in between.
func (e *Engine) Delete(ctx context.Context, id string) error {
	e.mu.Lock()
	delete(e.fresh, id)
	e.mu.Unlock()
	copied, err := e.roots.Change(ctx, id)
	if err != nil {
		return fmt.Errorf("delete container %s: end copies: %w", id, err)
	}
	defer copied()
	if err := e.remove(ctx, id); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	return nil
}

func (e *Engine) remove(ctx context.Context, id string) error {
	logs := make([]string, 0, 2)
	if e.cfg.LogDir != "" {
		logs = append(logs, filepath.Join(e.cfg.LogDir, id+".log"))
	}
	record, err := e.store.Get(ctx, id)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("get record: %w", e.explain(ctx, err))
	}
	unrecorded := err != nil
	if name := record.Labels[labelLog]; name != "" {
		logs = append(logs, name)
	}
	e.liftGPULimits(ctx, &record)
	if err := e.removeTask(ctx, id); err != nil {
		return err
	}
	if err := e.awaitCgroupGone(ctx, id, unrecorded); err != nil {
		return err
	}
	if unrecorded {
		// A leftover of a crash: its shim may be one that containerd has lost.
		if err := e.endServants(ctx, id, shim, clearer, writer); err != nil {
			return err
		}
	}
	if err := e.clearState(ctx, id); ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), err) // nothing has gone yet
	} else if err != nil { // in memory, under an id that nobody is given again
		e.cfg.Log.WarnContext(ctx, "what a runtime knows of a container stays behind", "container", id, "error", err)
	}
	// Against who finds the record and no layer, and makes one.
	unlock, err := e.building.container(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	project := e.projectOf(ctx, &record)
	if err := e.store.Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete record: %w", e.explain(ctx, err))
	}
	if err := e.snapshots.Remove(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove snapshot: %w", e.explain(ctx, err))
	}
	if err := e.liftLimit(ctx, project); err != nil {
		return err
	}
	return removeLogs(logs)
}
