package containerd

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/runtime"
)

// Status tells about one container.
func (e *Engine) Status(ctx context.Context, id string) (runtime.ContainerStatus, error) {
	record, err := e.store.Get(ctx, id)
	if err == nil && record.Labels[LabelEnvironment] == "" {
		err = fmt.Errorf("not ours: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return runtime.ContainerStatus{}, fmt.Errorf("inspect container %s: %w", id, e.explain(ctx, err))
	}
	process, err := e.task(ctx, id)
	if err != nil && !errdefs.IsNotFound(err) {
		return runtime.ContainerStatus{}, fmt.Errorf("inspect container %s: %w", id, err)
	}
	return e.status(&record, process), nil
}

// List tells about all containers of ours, in two calls whatever their number.
func (e *Engine) List(ctx context.Context) ([]runtime.ContainerStatus, error) {
	seen, err := e.look(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]runtime.ContainerStatus, 0, len(seen.records))
	for i := range seen.records {
		if record := &seen.records[i]; record.Labels[LabelEnvironment] != "" {
			all = append(all, e.status(record, seen.processes[record.ID]))
		}
	}
	e.lookForWriters(ctx, all, seen)
	e.listed.Store(seen)
	if served := seen.serving(all); seen.incomplete == nil {
		e.served.Store(&served)
	} else {
		e.served.Store(nil)
	}
	return all, nil
}

// status puts record and task together; process is nil without a task.
func (e *Engine) status(record *containers.Container, process *task.Process) runtime.ContainerStatus {
	status := runtime.ContainerStatus{ID: record.ID, Image: record.Image, Labels: record.Labels}
	switch {
	case process == nil || process.Status == task.Status_CREATED:
	case running(process):
		status.Running, status.PID, status.Paused = true, int(process.Pid), isPaused(process)
		status.OOMKills, _ = e.oomKills(record.ID)
	default:
		exit := exitOf(process.ExitStatus, process.ExitedAt)
		status.OOMKills, _ = e.oomKills(record.ID)
		exit.OOMKilled = status.OOMKills > 0
		status.Exit = &exit
	}
	return status
}
