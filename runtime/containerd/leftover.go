package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"

	"github.com/remotegpu/remotegpu/internal/hostexec"
	"github.com/remotegpu/remotegpu/internal/problem"
)

const (
	// runtimeRoot is where the shim of runc has its runtimes keep what they know of
	// containers, by namespace and id, whatever containerd's own directories are
	// (RuncRoot of containerd's cmd/containerd-shim-runc-v2/process).
	runtimeRoot = "/run/containerd/runc"
	// runtimeTime is how long a runtime may take to delete a container.
	runtimeTime  = 30 * time.Second
	runtimeTries = 3
)

// clearState has the runtime forget a container that has no task, as containerd's
// clearing up after a shim does (shim delete): a shim, a runtime or that clearing
// up may have been killed before it was done, and the runtime makes no container of
// an id that it knows. What is left of its processes is killed. None is fine.
//
// FailedPrecondition when a task, or a shim of another containerd, has it: all of a
// host's share one directory.
func (e *Engine) clearState(ctx context.Context, id string) error {
	dir := filepath.Join(runtimeRoot, e.cfg.Namespace, id)
	if filepath.Base(dir) != id || !there(dir) {
		return nil
	}
	if _, err := e.task(ctx, id); !errdefs.IsNotFound(err) {
		return errors.Join(fmt.Errorf("it has a task: %w", errdefs.ErrFailedPrecondition), err)
	}
	if err := e.endOrphans(ctx, id); err != nil {
		return err
	}
	other, err := e.inState(id)
	if err != nil {
		return err
	}
	if other != nil {
		return problem.New(problem.ProcessStartFailed, "%s runs container %s", other, id).
			WithHint("two containerds of one host share what their runtimes know: give them namespaces of their own, or end the other")
	}
	program, err := e.runtimeProgram(ctx, id)
	if err != nil {
		return err
	}
	e.cfg.Log.WarnContext(ctx, "what a runtime or a shim that was killed has left is removed", "container", id, "path", dir)
	ctx, cancel := context.WithTimeout(ctx, runtimeTime)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for try := 1; ; try++ { // containerd may be about to do the same
		_, err := hostexec.Run(ctx, nil, program, "--root", filepath.Dir(dir), "delete", "--force", id)
		if !there(dir) {
			return nil
		}
		if try == runtimeTries {
			return problem.New(problem.Unavailable, "what an earlier run has left in %s cannot be removed", dir).WithCause(err).
				WithHint("see what keeps its processes: %s --root %s list", program, filepath.Dir(dir))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

func there(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// runtimeProgram is the path of the runtime that a container was made with, or of
// that of new ones: where containerd would find it.
func (e *Engine) runtimeProgram(ctx context.Context, id string) (string, error) {
	name := e.cfg.RuntimeBinary
	record, err := e.store.Get(ctx, id)
	if err != nil && !errdefs.IsNotFound(err) {
		return "", fmt.Errorf("get record: %w", e.explain(ctx, err))
	}
	if err == nil && record.Runtime.Options != nil && record.Runtime.Options.GetTypeUrl() != "" {
		var opts options.Options
		if err := typeurl.UnmarshalTo(record.Runtime.Options, &opts); err != nil {
			return "", fmt.Errorf("read runtime options: %w", err)
		}
		name = opts.BinaryName
	}
	if name == "" {
		name = "runc" // as containerd's shim takes it
	}
	if filepath.IsAbs(name) {
		return name, nil
	}
	if pid, err := e.daemon(ctx); err == nil {
		environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)) // else ours will do
		for variable := range strings.SplitSeq(string(environ), "\x00") {
			path, is := strings.CutPrefix(variable, "PATH=")
			if !is {
				continue
			}
			for _, dir := range filepath.SplitList(path) {
				if found, err := exec.LookPath(filepath.Join(dir, name)); err == nil && filepath.IsAbs(found) {
					return found, nil
				}
			}
		}
	}
	found, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find the runtime %s: %w", name, errors.Join(err, errdefs.ErrNotFound))
	}
	return found, nil
}
