package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// endPoll is the time between two looks at whether a group is empty.
const endPoll = 20 * time.Millisecond

// hierarchies are where a group has directories: the unified hierarchy, or
// those of v1 by which processes are found (pids) and service managers know
// what is whose.
func hierarchies() []string {
	const root = "/sys/fs/cgroup"
	if Version() == "v2" {
		return []string{root}
	}
	return slices.DeleteFunc([]string{root + "/pids", root + "/systemd", root + "/unified"}, func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, "cgroup.procs"))
		return err != nil
	})
}

// Make makes the group with the path and returns the files that take the pids
// of processes which are to be in it: whoever writes its own to all of them is
// in no group of its parent's any more, and a service manager that ends that
// one's does not end it.
func Make(path string) (procs []string, err error) {
	if !validPath(path) {
		return nil, fmt.Errorf("cgroup path %q: %w", path, errdefs.ErrInvalidArgument)
	}
	for _, root := range hierarchies() {
		dir := filepath.Join(root, path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make cgroup: %w", err)
		}
		procs = append(procs, filepath.Join(dir, "cgroup.procs"))
	}
	if len(procs) == 0 {
		return nil, fmt.Errorf("make cgroup %s: no hierarchy is mounted at /sys/fs/cgroup: %w", path, errdefs.ErrUnavailable)
	}
	return procs, nil
}

// Exists says whether there is a group with the path, in any hierarchy.
func Exists(path string) bool {
	return validPath(path) && slices.ContainsFunc(hierarchies(), func(root string) bool {
		_, err := os.Stat(filepath.Join(root, path, "cgroup.procs"))
		return err == nil
	})
}

// Processes returns the pids that are in the group with the path; none when
// there is no such group. Groups below it do not count.
func Processes(path string) (pids []int, err error) {
	if !validPath(path) {
		return nil, fmt.Errorf("cgroup path %q: %w", path, errdefs.ErrInvalidArgument)
	}
	for _, root := range hierarchies() {
		text, err := os.ReadFile(filepath.Join(root, path, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) { // ENODEV: removed after it was opened
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list processes of cgroup: %w", err)
		}
		for field := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil && !slices.Contains(pids, pid) {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// End waits a while for the processes of the group with the path to end, kills
// those that do not, and removes the group. Its error is ctx's when one cannot
// be killed. It is no error when there is no such group.
func End(ctx context.Context, path string, wait time.Duration) error {
	for deadline := time.Now().Add(wait); ; {
		pids, err := Processes(path)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			// The kernel may still be busy with what has just ended there.
			if err := remove(path); !errors.Is(err, unix.EBUSY) {
				return err
			}
		}
		if !time.Now().Before(deadline) {
			for _, pid := range pids {
				if err := kill(pid, path); err != nil {
					return err
				}
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes %d of cgroup %s do not end: %w", pids, path, context.Cause(ctx))
		case <-time.After(endPoll):
		}
	}
}

// kill kills a process if it still is in the group.
func kill(pid int, path string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	within, err := Contains(pid, path)
	if errdefs.IsNotFound(err) || err == nil && !within {
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return nil
}

// remove removes the directories of an empty group.
func remove(path string) error {
	for _, root := range hierarchies() {
		dir := filepath.Join(root, path)
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return nil
}
