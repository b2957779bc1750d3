package containerd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// staleWorkers is how many stale processes are removed at a time.
const staleWorkers = 16

// execID names a process so that whoever finds it, in containerd or as a file
// name, knows whose it is: kind, engine, a number of its own, container.
func (e *Engine) execID(kind, id string) string {
	return strings.Join([]string{kind, e.token, rand.Text()[:16], id}, "-")
}

// parseExecID tells engine and container of a process; ok when it is ours.
func parseExecID(exec string) (token, id string, ok bool) {
	parts := strings.SplitN(exec, "-", 4)
	if len(parts) != 4 || parts[0] != "exec" && parts[0] != "run" || len(parts[1]) != 8 || len(parts[2]) != 16 {
		return "", "", false
	}
	return parts[1], parts[3], true
}

// RemoveStale removes what engines before this one have left.
//
// The pipes of a daemon that died do not end its processes: a shim keeps both
// ends of each open, so they would wait forever.
func (e *Engine) RemoveStale(ctx context.Context) error {
	e.mu.Lock()
	stale, swept := maps.Clone(e.lost), e.swept
	e.mu.Unlock()
	var errs []error
	if !swept {
		errs = append(errs, e.findStale(ctx, stale))
		swept = errs[0] == nil
	}
	errs = append(errs, e.setAsideFrozen(ctx, stale))
	var mu sync.Mutex
	var removing errgroup.Group
	removing.SetLimit(staleWorkers)
	for exec, pid := range stale {
		removing.Go(func() error {
			defer e.drainPipes(exec)()
			_, id, _ := parseExecID(exec)
			if err := e.removeExec(ctx, id, exec, pid); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("remove stale command of container %s: %w", id, err))
			}
			return nil
		})
	}
	_ = removing.Wait() // each has told errs
	e.removeStaleFIFOs()
	e.mu.Lock()
	e.swept = e.swept || swept // what failed is among the lost ones
	e.mu.Unlock()
	return errors.Join(errs...)
}

// setAsideFrozen keeps the processes of paused containers for later: with
// cgroup v1 they do not even die before they go on. Those of one that may be
// paused, for all that its shim says, too.
func (e *Engine) setAsideFrozen(ctx context.Context, stale map[string]int) error {
	if len(stale) == 0 {
		return nil
	}
	response, err := e.tasks.List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return fmt.Errorf("list tasks: %w", e.explain(ctx, err))
	}
	frozen := make(map[string]bool)
	for _, process := range response.Tasks {
		frozen[process.ID] = isPaused(process) || process.Status == task.Status_UNKNOWN
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for exec, pid := range stale {
		if _, id, _ := parseExecID(exec); frozen[id] {
			e.lost[exec] = pid
			delete(stale, exec)
		}
	}
	return nil
}

// drainPipes reads what a process has written for a caller that is gone until
// the function that it returns is called. A shim waits for a while for somebody
// to do so.
func (e *Engine) drainPipes(exec string) func() {
	pipes, err := filepath.Glob(filepath.Join(e.cfg.FIFODir, "*", "*", exec+"-std[eo]*"))
	if err != nil {
		return func() {}
	}
	var files []*os.File
	for _, pipe := range pipes {
		file, err := os.OpenFile(pipe, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			continue // the shim's patience is all that it costs
		}
		files = append(files, file)
		go func() { _, _ = io.Copy(io.Discard, file) }()
	}
	return func() {
		for _, file := range files {
			_ = file.Close()
		}
	}
}

// findStale looks for processes of other engines: those that run, among the
// processes of each container; those that have ended and that only their shim
// knows of, among the pipes that were left. An error says that a container
// could not be asked; what is known of it is kept for another time.
func (e *Engine) findStale(ctx context.Context, stale map[string]int) error {
	ids, err := e.withTasks(ctx)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var errs []error
	silent := make(map[string]bool) // another sweep asks these again
	var asking errgroup.Group
	asking.SetLimit(staleWorkers)
	for _, id := range ids {
		asking.Go(func() error {
			execs, err := e.execsOf(ctx, id)
			mu.Lock()
			defer mu.Unlock()
			maps.Copy(stale, execs)
			if err != nil {
				silent[id] = true
				errs = append(errs, fmt.Errorf("list processes of container %s: %w", id, err))
			}
			return nil
		})
	}
	_ = asking.Wait() // each has told errs
	pipes, err := filepath.Glob(filepath.Join(e.cfg.FIFODir, "*", "*", "*-stdout"))
	if err != nil {
		return fmt.Errorf("list pipes: %w", err)
	}
	for _, pipe := range pipes {
		exec := strings.TrimSuffix(filepath.Base(pipe), "-stdout")
		if token, _, ours := parseExecID(exec); ours && token != e.token && stale[exec] == 0 {
			stale[exec] = 0
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for exec, pid := range stale {
		if _, id, _ := parseExecID(exec); silent[id] {
			e.lost[exec] = pid
			delete(stale, exec)
		}
	}
	return errors.Join(errs...)
}

// withTasks are the containers that have a task or may have one: containerd
// leaves those out of its list whose shim is slow to answer, so each record
// that has none there is asked about. That is done until all have answered
// once.
func (e *Engine) withTasks(ctx context.Context) ([]string, error) {
	response, err := e.tasks.List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", e.explain(ctx, err))
	}
	records, err := e.store.List(ctx, fmt.Sprintf("labels.%q", LabelEnvironment))
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", e.explain(ctx, err))
	}
	ids := make(map[string]bool, len(records))
	for i := range records {
		ids[records[i].ID] = true
	}
	for _, first := range response.Tasks {
		ids[first.ID] = true
	}
	return slices.Sorted(maps.Keys(ids)), nil
}

// execsOf are the processes of a container, with their pids, that other
// engines have started in it. None when it does not run.
func (e *Engine) execsOf(ctx context.Context, id string) (map[string]int, error) {
	// A shim that hangs must leave time for the rest.
	ctx, cancel := context.WithTimeout(ctx, noticeTimeout)
	defer cancel()
	pids, err := e.tasks.ListPids(ctx, &tasks.ListPidsRequest{ContainerID: id})
	if err = e.explain(ctx, err); errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		now, gone := e.task(ctx, id)
		if errdefs.IsNotFound(gone) || gone == nil && !running(now) {
			return nil, nil // it ends, and all of its processes with it
		}
		return nil, err
	}
	execs := make(map[string]int)
	for _, process := range pids.Processes {
		if token, _, ours := parseExecID(execOf(process)); ours && token != e.token {
			execs[execOf(process)] = int(process.Pid)
		}
	}
	return execs, nil
}

// execOf is the exec id of a process, "" when it was not started as one.
func execOf(process *task.ProcessInfo) string {
	if process.Info == nil {
		return ""
	}
	decoded, err := typeurl.UnmarshalAny(process.Info)
	if err != nil {
		return ""
	}
	details, is := decoded.(*options.ProcessDetails)
	if !is {
		return ""
	}
	return details.ExecID
}

// removeExec kills a process and the group it leads, where pid is known, and
// has the shim forget it. What fails is tried again by RemoveStale.
func (e *Engine) removeExec(ctx context.Context, id, exec string, pid int) error {
	err := e.tryRemoveExec(ctx, id, exec, pid)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil {
		e.lost[exec] = pid
	} else {
		delete(e.lost, exec)
	}
	return err
}

// forgetLater is removeExec, for a process that has ended, without waiting: while
// something else holds its output open, a shim that is to forget it waits for
// that first, ten seconds long. Nobody depends on when that is over.
func (e *Engine) forgetLater(ctx context.Context, id, exec string, pid int) {
	go func() {
		undo, cancel := afterwards(ctx)
		defer cancel()
		if err := e.removeExec(undo, id, exec, pid); err != nil {
			e.cfg.Log.DebugContext(undo, "a command that has ended is forgotten later", "container", id, "error", err)
		}
	}()
}

func (e *Engine) tryRemoveExec(ctx context.Context, id, exec string, pid int) error {
	// A shim that hangs must leave time for the rest.
	ctx, over := context.WithTimeout(ctx, undoTimeout)
	defer over()
	short, cut := context.WithTimeout(ctx, undoTimeout/2)
	defer cut()
	_, err := e.tasks.DeleteProcess(short, &tasks.DeleteProcessRequest{ContainerID: id, ExecID: exec})
	if err = e.explain(ctx, err); err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	// It runs, or the shim cannot tell. Its group is looked up while it leads.
	group := e.group(id, pid, nil)
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	last := e.wait(waiting, id, exec)
	if err := e.kill(ctx, id, exec, unix.SIGKILL, false); err != nil && !errdefs.IsNotFound(err) && !ended(err) {
		return errors.Join(err, e.killGroup(context.WithoutCancel(ctx), id, pid, group)) // the kernel needs no shim
	}
	if last, err := await(ctx, last); err != nil {
		return errors.Join(err, e.killGroup(context.WithoutCancel(ctx), id, pid, group))
	} else if last.err != nil && !errdefs.IsNotFound(last.err) {
		return errors.Join(last.err, e.killGroup(context.WithoutCancel(ctx), id, pid, group))
	}
	if err := e.killGroup(ctx, id, pid, group); err != nil {
		return err
	}
	_, err = e.tasks.DeleteProcess(ctx, &tasks.DeleteProcessRequest{ContainerID: id, ExecID: exec})
	if err = e.explain(ctx, err); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete process: %w", err)
	}
	return nil
}
