package containerd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// Start brings the spec up to c and starts the first process.
func (e *Engine) Start(ctx context.Context, c runtime.Container) (int, error) {
	copied, err := e.roots.Change(ctx, c.ID)
	if err != nil {
		return 0, fmt.Errorf("start container %s: end copies: %w", c.ID, err)
	}
	defer copied()
	e.mu.Lock()
	fresh, found := e.fresh[c.ID]
	delete(e.fresh, c.ID)
	e.mu.Unlock()
	mounts := fresh.mounts
	if !found || !reflect.DeepEqual(fresh.container, c) {
		var err error
		if mounts, err = e.refresh(ctx, &c); err != nil {
			return 0, fmt.Errorf("start container %s: %w", c.ID, err)
		}
	}
	if c.GPU != nil {
		if err := clearLoader(mounts); err != nil {
			return 0, fmt.Errorf("start container %s: %w", c.ID, err)
		}
	}
	pid, err := e.run(ctx, &c, mounts)
	if err != nil {
		return 0, fmt.Errorf("start container %s: %w", c.ID, err)
	}
	return pid, nil
}

// refresh clears a dead task away, renders the spec again and returns the
// mounts of the writable layer.
func (e *Engine) refresh(ctx context.Context, c *runtime.Container) ([]mount.Mount, error) {
	record, err := e.store.Get(ctx, c.ID)
	if errdefs.IsNotFound(err) {
		return nil, runtime.ContainerGone(runtime.GoneContainer, err)
	}
	if err != nil {
		return nil, fmt.Errorf("get record: %w", e.explain(ctx, err))
	}
	if err := e.clearTask(ctx, c.ID); err != nil {
		return nil, err
	}
	mounts, err := e.layerOf(ctx, &record)
	if errdefs.IsNotFound(err) {
		return nil, runtime.ContainerGone(runtime.GoneLayer, err)
	}
	if err != nil {
		return nil, err
	}
	if c.Resources.DiskBytes > 0 || record.Labels[labelDisk] != "" {
		if err := e.limitDisk(ctx, mounts, c.Resources.DiskBytes); err != nil {
			return nil, err
		}
	}
	ext, err := e.imageOf(ctx, &record)
	if err != nil {
		return nil, err
	}
	// The tenant may have changed its own accounts since.
	user, err := userOfSnapshot(mounts, userName(c, &ext.Config))
	if err != nil {
		return nil, err
	}
	spec, err := e.render(ctx, c, &ext.Config, user)
	if err != nil {
		return nil, err
	}
	encoded, err := typeurl.MarshalAny(spec)
	if err != nil {
		return nil, fmt.Errorf("encode spec: %w", err)
	}
	wanted := labels(c)
	for _, kept := range []string{labelMade, labelLayer, labelContent} {
		if value, found := record.Labels[kept]; found {
			wanted[kept] = value
		}
	}
	if !bytes.Equal(encoded.GetValue(), record.Spec.GetValue()) || !maps.Equal(wanted, record.Labels) {
		record.Spec, record.Labels = encoded, wanted
		if _, err := e.store.Update(ctx, record, "spec", "labels"); err != nil {
			return nil, fmt.Errorf("update record: %w", e.explain(ctx, err))
		}
	}
	return mounts, makeLog(c.LogPath)
}

func (e *Engine) imageOf(ctx context.Context, record *containers.Container) (extension, error) {
	var ext extension
	if kept, found := record.Extensions[extensionImage]; found {
		if err := json.Unmarshal(kept.GetValue(), &ext); err != nil {
			return ext, fmt.Errorf("read image configuration: %w", err)
		}
		return ext, nil
	}
	found, img, err := e.lookUp(ctx, record.Image)
	if err != nil {
		return ext, err
	}
	return extension{Parent: img.parent, Manifest: img.manifest, Digest: found.Target.Digest.String(), Config: img.config}, nil
}

// clearTask deletes a task that has ended or was never started. One that runs
// is AlreadyExists.
func (e *Engine) clearTask(ctx context.Context, id string) error {
	process, err := e.task(ctx, id)
	if errdefs.IsNotFound(err) {
		return e.endOrphans(ctx, id)
	} else if err != nil {
		return err
	}
	if running(process) {
		return fmt.Errorf("it runs: %w", errdefs.ErrAlreadyExists)
	}
	e.liftGPULimitsOf(ctx, id)
	return e.removeTask(ctx, id)
}

// task asks for the task of a container, NotFound. CONTAINERD_TIMEOUT when its shim does
// not say in time how it is: nothing may be concluded then, neither that it runs nor that
// it is not paused.
func (e *Engine) task(ctx context.Context, id string) (*task.Process, error) {
	process, err := e.taskOrUnknown(ctx, id)
	if err == nil && process.Status == task.Status_UNKNOWN {
		err = fmt.Errorf("get task: %w", e.explain(ctx, fmt.Errorf("its status is unknown: %w", context.DeadlineExceeded)))
	}
	if err != nil {
		return nil, err
	}
	return process, nil
}

// taskOrUnknown does as task, but that the status of a task whose shim is slow may be
// unknown: containerd says so up to 2.4.1, and fails from then on.
func (e *Engine) taskOrUnknown(ctx context.Context, id string) (*task.Process, error) {
	response, err := e.tasks.Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err != nil {
		return nil, fmt.Errorf("get task: %w", e.explain(ctx, err))
	}
	return response.Process, nil
}

// running says whether a first process is alive, as far as one can tell.
func running(process *task.Process) bool {
	switch process.Status {
	case task.Status_CREATED, task.Status_STOPPED:
		return false
	default: // what cannot be inspected is held, not freed
		return true
	}
}

// run makes the task and starts it, or leaves none.
func (e *Engine) run(ctx context.Context, c *runtime.Container, mounts []mount.Mount) (int, error) {
	request := &tasks.CreateTaskRequest{ContainerID: c.ID}
	for _, m := range mounts {
		request.Rootfs = append(request.Rootfs, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	if c.LogPath != "" {
		request.Stdout = e.logAddress(c.LogPath)
		request.Stderr = request.Stdout
	}
	if err := e.clearState(ctx, c.ID); err != nil {
		return 0, fmt.Errorf("clear up after an earlier run: %w", err)
	}
	if err := e.apart(c.ID); err != nil {
		return 0, err
	}
	whole, done := uninterrupted(ctx)
	defer done()
	created, err := e.createTask(ctx, whole, request)
	if err != nil && errdefs.IsAlreadyExists(native(err)) {
		if err := e.clearTask(ctx, c.ID); err != nil {
			return 0, err
		}
		if err := e.deleteTask(ctx, c.ID); err != nil { // a shim without a task
			return 0, err
		}
		created, err = e.createTask(ctx, whole, request)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = e.settleDisk(ctx, mounts, c.Resources.DiskBytes) // it is mounted now
	}
	var limited error // of another than containerd
	if err == nil {
		limited = e.limitGPUs(ctx, c)
		err = limited
	}
	if err == nil {
		_, err = e.tasks.Start(whole, &tasks.StartRequest{ContainerID: c.ID})
	}
	if err != nil {
		if limited == nil {
			err = e.startProblem(ctx, err)
		}
		undo, cancel := afterwards(ctx)
		defer cancel()
		if len(c.GPUMemory) > 0 {
			e.liftGPULimitsOf(undo, c.ID)
		}
		return 0, errors.Join(err, e.removeTask(undo, c.ID))
	}
	return int(created.Pid), nil
}

// bundleTime is for how long containerd may clear up after an earlier shim: it
// gives a task and a shim that do not answer 5 s each to end.
const bundleTime = 15 * time.Second

// createTask makes a task, as soon as containerd has cleared up after an earlier
// one of the container, which it does after it has said that there is none.
func (e *Engine) createTask(ctx, whole context.Context, request *tasks.CreateTaskRequest) (*tasks.CreateTaskResponse, error) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for begun := time.Now(); ; {
		created, err := e.tasks.Create(whole, request)
		if err == nil || !bundleThere(err, request.ContainerID) {
			return created, err
		}
		if time.Since(begun) > bundleTime {
			return nil, problem.New(problem.Unavailable, "containerd has not cleared up after an earlier shim of the container").WithCause(err).
				WithHint("it is tried again; if it stays so, see containerd's log")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// bundleThere says whether the directory of a container's task stood in the way.
// containerd passes on what the system said, of an unknown kind.
func bundleThere(err error, id string) bool {
	text := err.Error()
	return strings.Contains(text, "mkdir ") && strings.Contains(text, "/"+id+": file exists") && !fromRuntime(err)
}

// startProblem tells what a runtime said of a process that did not start.
func (e *Engine) startProblem(ctx context.Context, err error) error {
	explained := e.explain(ctx, err)
	_, told := errors.AsType[*problem.Problem](explained)
	if ctx.Err() != nil || told || errdefs.IsNotFound(explained) && !fromRuntime(err) {
		return explained
	}
	if hookFailed.MatchString(err.Error()) { // there are none but those of GPUs
		return notInjected("a hook that brings the GPUs into the container failed: %s", said(err)).WithTold(err)
	}
	return problem.New(problem.ProcessStartFailed, "the first process could not be started: %s", said(err)).
		WithHint("check entrypoint, command, working directory and mounts against the image").WithTold(err)
}

// The runtime's errors arrive as text alone, of an unknown kind, so text is
// all there is to tell them by. These marks have been runc's since 1.0.
func fromRuntime(err error) bool {
	text := err.Error()
	return strings.Contains(text, "OCI runtime") || strings.Contains(text, "runc ")
}

// hookFailed marks what runc says of a hook, with and without its stage.
var hookFailed = regexp.MustCompile(`error running (\w+ )?hook`)

// said is the part of a runtime's error that people can use.
func said(err error) string {
	text := native(err).Error()
	for _, mark := range []string{"unable to start container process: ", "OCI runtime exec failed: ", "OCI runtime create failed: "} {
		if i := strings.LastIndex(text, mark); i >= 0 {
			text = text[i+len(mark):]
		}
	}
	for _, tail := range []string{": unknown", ": not found"} {
		text = strings.TrimSuffix(text, tail)
	}
	return text
}
