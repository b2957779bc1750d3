// Package cgroup answers questions about control groups: which hierarchy the
// host uses, whether a process is in a given group, and what a group uses.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Version returns the hierarchy that container runtimes use on this host:
// "v2" where /sys/fs/cgroup is the unified one, "v1" otherwise, hybrid hosts
// included (their controllers are v1's).
func Version() string {
	var stat unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &stat); err == nil && stat.Type == unix.CGROUP2_SUPER_MAGIC {
		return "v2"
	}
	return "v1"
}

// Contains says whether a process is in the group with the path (for example
// "/remotegpu/<id>") or below it, seen from the caller's cgroup namespace.
// NotFound when there is no such process.
//
// A process has one path per hierarchy. A v1 runtime leaves hierarchies out
// that have no controller of interest (and, on hybrid hosts, the unified one),
// so one that matches is enough: only root can place a process in any of them,
// and a container's own view of cgroups is read-only.
//
// A pid says nothing once its process has ended: hold a pidfd, or a connection
// whose peer it is, to be sure that it is still the process meant.
func Contains(pid int, cgroupPath string) (bool, error) {
	if pid <= 0 {
		return false, fmt.Errorf("read cgroup of process %d: %w", pid, errdefs.ErrInvalidArgument)
	}
	if !validPath(cgroupPath) {
		return false, fmt.Errorf("cgroup path %q: %w", cgroupPath, errdefs.ErrInvalidArgument)
	}
	table, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	// ESRCH: the process ended after its directory was opened.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false, fmt.Errorf("read cgroup of process %d: %w", pid, errdefs.ErrNotFound)
	}
	if err != nil {
		return false, fmt.Errorf("read cgroup of process %d: %w", pid, err)
	}
	return contains(string(table), cgroupPath), nil
}

// validPath wants an absolute path with real components. The root group is
// refused: every process is in it, so asking about it is a mistake.
func validPath(path string) bool {
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return false
	}
	for component := range strings.SplitSeq(rest, "/") {
		if component == "" || component == "." || component == ".." || strings.ContainsAny(component, "\n\x00") {
			return false
		}
	}
	return true
}

// contains looks through the lines of proc_pid_cgroup(5),
// "hierarchy:controllers:path". The path is last and may have colons in it,
// also when a named hierarchy is called "name=x".
func contains(table, path string) bool {
	for line := range strings.Lines(table) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		// The kernel marks a removed group; only a zombie can be in one.
		if strings.HasSuffix(parts[2], " (deleted)") {
			continue
		}
		if parts[2] == path || strings.HasPrefix(parts[2], path+"/") {
			return true
		}
	}
	return false
}
