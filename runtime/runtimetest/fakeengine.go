package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/rootfs"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// FakeEngine is a runtime.Engine in memory, on the images of a FakeImages. Its
// containers run a pretended testprog (internal/testutil/testprog), "sleep"
// unless told otherwise. Calls are named "Engine.…".
type FakeEngine struct {
	Faults *Faults
	Images *FakeImages
	// Dir keeps the files of containers, one directory each. "": they are in
	// memory, and WithRoot fails.
	Dir string

	roots rootfs.Uses

	mu          sync.Mutex
	containers  map[string]*fakeContainer
	subscribers map[*subscriber]struct{}
	lastPID     int
	down        bool
	execs       map[*execution]fakeExec
	parts       []runtime.Part
	snapshots   map[string]*fakeSnapshot
	exported    map[string]map[string]string // files by image
	exporting   map[string]bool              // by snapshot
	quota       runtime.DiskQuota
	netns       string // of SetNetNS
	silent      map[string]bool
	listed      []runtime.ContainerStatus
}

var _ runtime.Engine = (*FakeEngine)(nil)

type fakeContainer struct {
	runtime.Container
	files   fakeFiles // its writable layer, and what it is on top of
	base    string    // the snapshot that it is on top of
	user    fakeUser
	started int
	process *fakeProcess // nil without a task
}

type fakeProcess struct {
	pid        int
	ignoreTerm bool
	paused     bool
	oomKills   int
	logLost    bool
	exit       *runtime.Exit // nil while it runs
	done       chan struct{} // closed when it has ended
}

type subscriber struct {
	events chan runtime.Event
	broken chan error
}

// NewFakeEngine returns an engine that shares faults with its images, which
// hold one image, "remotegpu/test".
func NewFakeEngine(faults *Faults) *FakeEngine {
	images := &FakeImages{Faults: faults}
	images.Add(runtime.Image{Name: "remotegpu/test", Size: 4096})
	return &FakeEngine{Faults: faults, Images: images}
}

// call runs work under the lock, unless the engine is down.
func (e *FakeEngine) call(method string, work func() error) error {
	return e.Faults.Do("Engine."+method, func() error {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.down {
			return problem.New(problem.ContainerdDown, "containerd does not answer").WithHint("start it")
		}
		return work()
	})
}

// SetDown makes every call fail as if containerd did not answer, and breaks
// event streams; containers live on.
func (e *FakeEngine) SetDown(down bool) {
	e.mu.Lock()
	e.down = down
	e.mu.Unlock()
	if down {
		e.BreakEvents(problem.New(problem.ContainerdDown, "containerd does not answer"))
	}
}

// SetSilent makes whatever serves a container not answer, or answer again: how it is
// nobody can say, and it is neither paused nor resumed.
func (e *FakeEngine) SetSilent(id string, silent bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.silent == nil {
		e.silent = make(map[string]bool)
	}
	e.silent[id] = silent
}

// answers refuses what SetSilent says.
func (e *FakeEngine) answers(id string) error {
	if !e.silent[id] {
		return nil
	}
	return problem.New(problem.ContainerdTimeout, "what serves container %s does not answer", id).WithHint("wait").WithCause(context.DeadlineExceeded)
}

// BreakEvents ends every event stream with err.
func (e *FakeEngine) BreakEvents(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for s := range e.subscribers {
		s.broken <- err
		delete(e.subscribers, s)
	}
}

// Exit ends the first process of a running container.
func (e *FakeEngine) Exit(id string, exit runtime.Exit) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[id]
	if c == nil || !c.running() {
		return fmt.Errorf("end %s: %w", id, errdefs.ErrNotFound)
	}
	e.end(c, exit)
	return nil
}

// OOM kills a process of a running container for memory, not its first one.
func (e *FakeEngine) OOM(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.containers[id]; c != nil && c.running() {
		e.oom(c)
	}
}

func (e *FakeEngine) oom(c *fakeContainer) {
	c.process.oomKills++
	e.publish(runtime.Event{ID: c.ID, Kind: runtime.EventOOM, OOMKills: c.process.oomKills})
}

// LoseLog kills the writer of a running container's log.
func (e *FakeEngine) LoseLog(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.containers[id]; c != nil && c.running() {
		c.process.logLost = true
	}
}

// Forget drops all tasks, as a reboot of the host does, without an event.
func (e *FakeEngine) Forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		if c.running() {
			c.process.exit = &runtime.Exit{}
			close(c.process.done)
		}
		c.process = nil
	}
}

// Container returns what a container was made of or last started with.
func (e *FakeEngine) Container(id string) (runtime.Container, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[id]
	if c == nil {
		return runtime.Container{}, false
	}
	return c.Container, true
}

// Leftovers names every container, for tests.
func (e *FakeEngine) Leftovers() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var left []string
	for _, id := range slices.Sorted(maps.Keys(e.containers)) {
		left = append(left, "container "+id)
	}
	for _, part := range e.parts {
		left = append(left, fmt.Sprintf("%s %s of %s", part.Kind, part.Name, part.EnvID))
	}
	for _, id := range slices.Sorted(maps.Keys(e.snapshots)) {
		left = append(left, "snapshot "+id)
		if e.exporting[id] {
			left = append(left, "export of "+id)
		}
	}
	return left
}

// Info tells who it is.
func (e *FakeEngine) Info(context.Context) (info runtime.EngineInfo, err error) {
	err = e.call("Info", func() error {
		info = runtime.EngineInfo{Address: "/nonexistent/fake.sock", Version: "fake", Namespace: "fake", Snapshotter: "memory"}
		return nil
	})
	return info, err
}

// SetDiskQuota lets writable layers be limited, or not. Nothing is written.
func (e *FakeEngine) SetDiskQuota(supported bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.quota = runtime.DiskQuota{}
	if supported {
		e.quota = runtime.DiskQuota{Supported: true, Method: "pretended", Filesystem: "memory", Path: "/nonexistent"}
	}
}

// DiskQuota tells what SetDiskQuota made.
func (e *FakeEngine) DiskQuota(context.Context) (quota runtime.DiskQuota, err error) {
	err = e.call("DiskQuota", func() error { quota = e.diskQuota(); return nil })
	return quota, err
}

func (e *FakeEngine) diskQuota() runtime.DiskQuota {
	if !e.quota.Supported {
		return runtime.DiskQuota{Filesystem: "memory", Path: "/nonexistent", Reason: "memory has no quotas", Hint: "use a disk"}
	}
	return e.quota
}

// refuseDisk refuses a limit that cannot be enforced.
func (e *FakeEngine) refuseDisk(c *runtime.Container) error {
	if quota := e.diskQuota(); c.Resources.DiskBytes > 0 && !quota.Supported {
		return quota.Problem()
	}
	return nil
}

// Create notes the container.
func (e *FakeEngine) Create(ctx context.Context, c runtime.Container) error {
	return e.call("Create", func() error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if e.containers[c.ID] != nil {
			return fmt.Errorf("create container %s: %w", c.ID, errdefs.ErrAlreadyExists)
		}
		files, err := e.filesOf(&c)
		if err != nil {
			return err
		}
		user, err := lookUpUser(c.User)
		if err == nil {
			err = e.refuseDisk(&c)
		}
		if err != nil {
			return err
		}
		if e.containers == nil {
			e.containers = make(map[string]*fakeContainer)
		}
		c.Digest = "" // of no concern any more
		e.containers[c.ID] = &fakeContainer{Container: c, user: user, files: files, base: c.Snapshot}
		return nil
	})
}

// filesOf are the files of what a container is made from.
func (e *FakeEngine) filesOf(c *runtime.Container) (fakeFiles, error) {
	if c.Snapshot != "" {
		from := e.snapshots[c.Snapshot]
		if from == nil || !from.held {
			return fakeFiles{}, problem.New(problem.SnapshotNotFound, "snapshot %s is not here", c.Snapshot).WithHint("list them")
		}
		return e.newFiles(c.ID, from.files)
	}
	e.Images.mu.Lock()
	local, known := e.Images.local[c.Image]
	e.Images.mu.Unlock()
	if !known {
		return fakeFiles{}, imageNotFound(c.Image)
	}
	if c.Digest != "" && c.Digest != local.Digest {
		return fakeFiles{}, runtime.ImageChanged(c.Image)
	}
	return e.newFiles(c.ID, e.exported[c.Image])
}

// Start starts the pretended program.
func (e *FakeEngine) Start(ctx context.Context, c runtime.Container) (pid int, err error) {
	copied, err := e.roots.Change(ctx, c.ID)
	if err != nil {
		return 0, err
	}
	defer copied()
	err = e.call("Start", func() error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		own := e.containers[c.ID]
		if own == nil {
			return fmt.Errorf("start container %s: %w", c.ID, runtime.ContainerGone(runtime.GoneContainer, errdefs.ErrNotFound))
		}
		if err := e.answers(c.ID); err != nil {
			return fmt.Errorf("start container %s: %w", c.ID, err)
		}
		if own.running() {
			return fmt.Errorf("start container %s: %w", c.ID, errdefs.ErrAlreadyExists)
		}
		own.process = nil
		user, err := lookUpUser(c.User)
		if err == nil {
			err = e.refuseDisk(&c)
		}
		if err != nil {
			return err
		}
		args, err := program(argv(c))
		if err != nil {
			return problem.New(problem.ProcessStartFailed, "the first process cannot be started").WithCause(err)
		}
		own.Container, own.user = c, user
		own.started++
		e.lastPID++
		own.process = &fakeProcess{pid: 1000 + e.lastPID, done: make(chan struct{})}
		pid = own.process.pid
		e.runFirst(own, args)
		return nil
	})
	return pid, err
}

// runFirst runs the first process: commands up to one that waits, or the last.
func (e *FakeEngine) runFirst(c *fakeContainer, args []string) {
	code := 0
	for command := range commands(args) {
		switch command[0] {
		case "sleep", "tick", "serve", "banner":
			return
		case "ignore-term":
			c.process.ignoreTerm = true
			return
		case "crash":
			e.end(c, runtime.Exit{Code: 128 + int(syscall.SIGABRT), Signal: int(syscall.SIGABRT)})
			return
		case "eat-memory":
			if limit := c.Resources.MemoryBytes; limit > 0 && limit < c.eaten() {
				e.oom(c)
				e.end(c, runtime.Exit{Code: 137, Signal: 9})
			}
			return
		}
		if code = c.exec(command, &execution{user: c.user, env: c.environment(nil), workdir: c.Workdir}); code != 0 {
			break
		}
	}
	e.end(c, runtime.Exit{Code: code})
}

func (e *FakeEngine) end(c *fakeContainer, exit runtime.Exit) {
	if exit.At.IsZero() {
		exit.At = time.Now()
	}
	exit.OOMKilled = exit.OOMKilled || c.process.oomKills > 0
	c.process.exit = &exit
	close(c.process.done)
	e.publish(runtime.Event{ID: c.ID, Kind: runtime.EventExit, Exit: exit})
}

// Stop ends the process and removes the task.
func (e *FakeEngine) Stop(ctx context.Context, id string, timeout time.Duration) (exit runtime.Exit, err error) {
	var process *fakeProcess
	err = e.call("Stop", func() error {
		c := e.containers[id]
		if c == nil || c.process == nil {
			return fmt.Errorf("stop container %s: no task: %w", id, errdefs.ErrNotFound)
		}
		process = c.process
		if process.exit == nil && !process.ignoreTerm {
			e.end(c, runtime.Exit{Code: 0})
		}
		return nil
	})
	if process == nil {
		return exit, err
	}
	if timeout > 0 {
		if err := process.grace(ctx, timeout); err != nil {
			return exit, err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[id]
	if c == nil || c.process != process {
		return exit, errors.Join(err, fmt.Errorf("stop container %s: no task: %w", id, errdefs.ErrNotFound))
	}
	if process.exit == nil {
		e.end(c, runtime.Exit{Code: 137, Signal: 9})
	}
	c.process = nil
	return *process.exit, err
}

// grace waits until the process has ended or its time is over.
func (p *fakeProcess) grace(ctx context.Context, timeout time.Duration) error {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	return operation.Idle(ctx, func() error {
		select {
		case <-p.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
		}
		return nil
	})
}

// Delete forgets the container.
func (e *FakeEngine) Delete(ctx context.Context, id string) error {
	copied, err := e.roots.Change(ctx, id)
	if err != nil {
		return err
	}
	defer copied()
	return e.call("Delete", func() error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if c := e.containers[id]; c != nil && c.running() {
			e.end(c, runtime.Exit{Code: 137, Signal: 9})
		}
		delete(e.containers, id)
		e.parts = slices.DeleteFunc(e.parts, func(p runtime.Part) bool { return p.EnvID == id && p.Foreign == "" })
		return e.removeFiles(id)
	})
}

// Status tells about one.
func (e *FakeEngine) Status(_ context.Context, id string) (status runtime.ContainerStatus, err error) {
	err = e.call("Status", func() error {
		c := e.containers[id]
		if c == nil {
			return fmt.Errorf("inspect container %s: %w", id, errdefs.ErrNotFound)
		}
		if err := e.answers(id); err != nil {
			return fmt.Errorf("inspect container %s: %w", id, err)
		}
		status = c.status()
		return nil
	})
	return status, err
}

// NetNS opens what SetNetNS says; NotFound without that.
func (e *FakeEngine) NetNS(_ context.Context, id string) (namespace *os.File, err error) {
	err = e.call("NetNS", func() error {
		c := e.containers[id]
		if c == nil || !c.running() || e.netns == "" {
			return fmt.Errorf("open network namespace of container %s: %w", id, errdefs.ErrNotFound)
		}
		namespace, err = os.Open(e.netns)
		return err
	})
	return namespace, err
}

// SetNetNS says which file stands for the network namespace of any container
// that runs.
func (e *FakeEngine) SetNetNS(path string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.netns = path
}

// List tells about all, by id.
func (e *FakeEngine) List(context.Context) (all []runtime.ContainerStatus, err error) {
	err = e.call("List", func() error {
		all = make([]runtime.ContainerStatus, 0, len(e.containers))
		for _, id := range slices.Sorted(maps.Keys(e.containers)) {
			status := e.containers[id].status()
			status.LogLost = status.Running && e.containers[id].process.logLost
			status.Paused = status.Paused && !e.silent[id] // as containerd has it
			all = append(all, status)
		}
		e.listed = slices.Clone(all)
		return nil
	})
	return all, err
}

// Intact compares what runs with what List saw run.
func (e *FakeEngine) Intact() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.listed != nil && !slices.ContainsFunc(e.listed, func(before runtime.ContainerStatus) bool {
		c := e.containers[before.ID]
		return before.Running && (c == nil || !c.running() || c.status().PID != before.PID || c.process.logLost && !before.LogLost)
	})
}

// AddPart leaves something behind.
func (e *FakeEngine) AddPart(part runtime.Part) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.parts = append(e.parts, part)
}

// Parts lists what AddPart made and no container has.
func (e *FakeEngine) Parts(context.Context) (parts []runtime.Part, err error) {
	err = e.call("Parts", func() error {
		for _, part := range e.parts {
			if e.containers[part.EnvID] == nil {
				parts = append(parts, part)
			}
		}
		return nil
	})
	return parts, err
}

// RemovePart removes a part of nobody.
func (e *FakeEngine) RemovePart(_ context.Context, part runtime.Part) error {
	return e.call("RemovePart", func() error {
		if part.Kind != runtime.FoundLease && part.Kind != runtime.FoundPipes {
			return fmt.Errorf("remove %s %s: %w", part.Kind, part.Name, errdefs.ErrInvalidArgument)
		}
		e.parts = slices.DeleteFunc(e.parts, func(p runtime.Part) bool {
			return p.EnvID == "" && p.Kind == part.Kind && p.Name == part.Name && p.Foreign == ""
		})
		return nil
	})
}

// Events subscribes.
func (e *FakeEngine) Events(ctx context.Context) (<-chan runtime.Event, <-chan error) {
	s := &subscriber{events: make(chan runtime.Event, 4096), broken: make(chan error, 1)}
	out, errs := make(chan runtime.Event), make(chan error, 1)
	if err := e.call("Events", func() error {
		if e.subscribers == nil {
			e.subscribers = make(map[*subscriber]struct{})
		}
		e.subscribers[s] = struct{}{}
		return nil
	}); err != nil {
		close(out)
		errs <- err
		return out, errs
	}
	go func() {
		err := s.forward(ctx, out)
		e.mu.Lock()
		delete(e.subscribers, s)
		e.mu.Unlock()
		close(out)
		errs <- err
	}()
	return out, errs
}

func (s *subscriber) forward(ctx context.Context, out chan<- runtime.Event) error {
	for {
		select {
		case event := <-s.events:
			select {
			case out <- event:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		case err := <-s.broken:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (e *FakeEngine) publish(event runtime.Event) {
	for s := range e.subscribers {
		select {
		case s.events <- event:
		default: // nobody reads; containerd drops slow subscribers as well
			s.broken <- fmt.Errorf("read events: too slow: %w", errdefs.ErrUnavailable)
			delete(e.subscribers, s)
		}
	}
}
