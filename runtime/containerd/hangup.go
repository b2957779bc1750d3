package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	hangUpTime = 5 * time.Second       // from SIGHUP to SIGKILL
	groupPoll  = 50 * time.Millisecond // between looks at what is left
)

// hangUp ends a process whose caller has gone, as the end of a login session
// does: SIGHUP, with the terminal's hang-up where there is one, and SIGKILL to
// what is left after hangUpTime.
//
// A runtime starts every process as the leader of a session of its own, so the
// group is: the process, all of its session, and all that descend from these
// when the caller has gone or at the moment of SIGKILL. What has put itself
// under the container's first process in a session of its own before, as
// daemons do, is part of the environment and lives on.
func (x *session) hangUp(ctx context.Context, ended <-chan waited) error {
	undo, cancel := afterwards(ctx)
	defer cancel()
	e := x.engine
	group := e.group(x.id, x.pid, nil)
	for _, signal := range []unix.Signal{unix.SIGHUP, unix.SIGCONT} { // a stopped one must hear it
		group.signal(signal)
		if err := e.kill(undo, x.id, x.exec, signal, false); err != nil {
			break // over already, or SIGKILL meets the same error
		}
	}
	x.end()
	if x.input != nil {
		x.closeStdin(undo)
	}
	limit := time.NewTimer(hangUpTime)
	defer limit.Stop()
	tick := time.NewTicker(groupPoll)
	defer tick.Stop()
	for gone := false; !gone || len(e.group(x.id, x.pid, group)) > 0; {
		select {
		case last := <-ended:
			if last.err != nil && !errdefs.IsNotFound(last.err) {
				return errors.Join(last.err, e.endGroup(undo, x.id, x.pid))
			}
			gone, ended = true, nil
		case <-tick.C:
		case <-limit.C:
			return e.killGroup(undo, x.id, x.pid, group)
		}
	}
	return nil
}

// endGroup kills a process's session and descendants.
func (e *Engine) endGroup(ctx context.Context, id string, pid int) error {
	return e.killGroup(ctx, id, pid, nil)
}

// killGroup kills until nothing is left: what is there may start more
// meanwhile. known are members found before.
func (e *Engine) killGroup(ctx context.Context, id string, pid int, known group) error {
	if pid <= 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	tick := time.NewTicker(groupPoll)
	defer tick.Stop()
	for {
		left := e.group(id, pid, known)
		if len(left) == 0 {
			return nil
		}
		left.signal(unix.SIGKILL)
		known = left
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%d processes of a command live on after SIGKILL: %w", len(left), context.Cause(ctx))
		}
	}
}

// group is processes by pid, with the time each was started: a pid alone may be
// another process's by now.
type group map[int]uint64

// signal sends a signal to each, by a descriptor that is the process's own.
func (g group) signal(signal unix.Signal) {
	for pid, started := range g {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended
		}
		if p, err := readProcess(pid); err == nil && p.started == started {
			_ = unix.PidfdSendSignal(fd, signal, nil, 0) // it may end right now
		}
		_ = unix.Close(fd)
	}
}

// group finds the living processes of a container that are in the session of
// leader, that are known, or that descend from either.
func (e *Engine) group(id string, leader int, known group) group {
	all := make(map[int]process)
	for _, pid := range e.processes(id) {
		if p, err := readProcess(pid); err == nil && !p.dead {
			all[pid] = p
		}
	}
	found := make(group)
	if leader <= 0 {
		return found
	}
	for pid, p := range all {
		if started, is := known[pid]; pid == leader || p.session == leader || is && started == p.started {
			found[pid] = p.started
		}
	}
	for grown := true; grown; {
		before := len(found)
		more := maps.Clone(found)
		for pid, p := range all {
			if _, is := found[p.parent]; is {
				more[pid] = p.started
			}
		}
		found, grown = more, len(more) > before
	}
	return found
}

// processes are the pids in a container's cgroup.
func (e *Engine) processes(id string) []int {
	for _, dir := range e.cgroupDirs(id) {
		var pids []int
		_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.Name() != "cgroup.procs" {
				return nil //nolint:nilerr // a cgroup that has just gone has no processes
			}
			text, err := os.ReadFile(path) //nolint:gosec // a cgroup file system has no symlinks
			if err != nil {
				return nil //nolint:nilerr // as above
			}
			for word := range strings.FieldsSeq(string(text)) {
				if pid, err := strconv.Atoi(word); err == nil && pid > 0 {
					pids = append(pids, pid)
				}
			}
			return nil
		})
		if len(pids) > 0 {
			return pids
		}
	}
	return nil
}

type process struct {
	parent, session int
	started         uint64 // clock ticks since boot
	dead            bool
}

// readProcess reads /proc/PID/stat, see proc_pid_stat(5).
func readProcess(pid int) (process, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, fmt.Errorf("inspect process %d: %w", pid, err)
	}
	// The name may hold anything, parentheses included.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 20 {
		return process{}, fmt.Errorf("inspect process %d: %d fields: %w", pid, len(fields), errdefs.ErrInvalidArgument)
	}
	var p process
	p.dead = fields[0] == "Z" || fields[0] == "X"
	for i, to := range map[int]*int{1: &p.parent, 3: &p.session} {
		if *to, err = strconv.Atoi(fields[i]); err != nil {
			return process{}, fmt.Errorf("inspect process %d: %w", pid, err)
		}
	}
	if p.started, err = strconv.ParseUint(fields[19], 10, 64); err != nil {
		return process{}, fmt.Errorf("inspect process %d: %w", pid, err)
	}
	return p, nil
}
