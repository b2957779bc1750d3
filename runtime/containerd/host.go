package containerd

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// host is what the host can do; it does not change while it runs.
type host struct {
	unified   bool // cgroup v2 alone
	swapLimit bool // the kernel accounts swap
}

func (e *Engine) inspectHost() host {
	var h host
	var fs unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &fs); err == nil {
		h.unified = fs.Type == unix.CGROUP2_SUPER_MAGIC
	}
	if h.unified {
		// The root cgroup has no such file; any other has.
		found, err := filepath.Glob(filepath.Join(cgroupRoot, "*", "memory.swap.max"))
		h.swapLimit = err == nil && len(found) > 0
	} else {
		_, err := os.Stat(filepath.Join(cgroupRoot, "memory", "memory.memsw.limit_in_bytes"))
		h.swapLimit = err == nil
	}
	return h
}

// maxFiles is the largest RLIMIT_NOFILE that containerd's children can be
// given: fs.nr_open, or containerd's own limit where it may not raise limits,
// as inside a container.
func (e *Engine) maxFiles(ctx context.Context) uint64 {
	if n := e.files.Load(); n > 0 {
		return n
	}
	most := uint64(defaultFiles)
	if text, err := os.ReadFile("/proc/sys/fs/nr_open"); err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil {
			most = n
		}
	}
	pid, err := e.daemon(ctx)
	if err != nil {
		e.cfg.Log.DebugContext(ctx, "limits of containerd are not known", "error", err)
		return most
	}
	if hard, bound := limitOf(pid); bound {
		most = min(most, hard)
	}
	e.files.Store(most)
	return most
}

// oomScore is the oom_score_adj of containers: 0, as for any process. Without
// saying so they would inherit containerd's, which its unit lowers to -999, and
// a host that runs out of memory would kill everything else first. A
// containerd without CAP_SYS_RESOURCE cannot lower its own, so that is the least.
func (e *Engine) oomScore(ctx context.Context) int {
	pid, err := e.daemon(ctx)
	if err != nil {
		return 0 // it does not answer, so nothing is started either
	}
	if _, bound := limitOf(pid); !bound {
		return 0
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
	if err != nil {
		return 0
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	return max(score, 0)
}

// daemon is containerd's pid.
func (e *Engine) daemon(ctx context.Context) (int, error) {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", e.cfg.Address)
	if err != nil {
		return 0, err
	}
	defer conn.Close() //nolint:errcheck // nothing was written
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, errdefs.ErrNotImplemented
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *unix.Ucred
	var failure error
	if err := raw.Control(func(fd uintptr) { peer, failure = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if failure != nil {
		return 0, failure
	}
	return int(peer.Pid), nil
}

// limitOf is a process's hard limit of open files, and whether it is bound by
// it: CAP_SYS_RESOURCE lifts that.
func limitOf(pid int) (hard uint64, bound bool) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(status)) {
		if text, found := strings.CutPrefix(line, "CapEff:"); found {
			set, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
			bound = err == nil && set&(1<<unix.CAP_SYS_RESOURCE) == 0
		}
	}
	var limit unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		return 0, false
	}
	return limit.Max, bound
}

func (e *Engine) cgroup(id string) string { return filepath.Join(e.cfg.CgroupParent, id) }

// oomKills is how many processes of the container the kernel has killed for
// memory since it was started, and whether that is known. The counter lives in
// the container's cgroup, which is there until its task is deleted, so it is
// known even when nobody listened at that moment.
func (e *Engine) oomKills(id string) (count int, known bool) {
	file := filepath.Join(cgroupRoot, "memory", e.cgroup(id), "memory.oom_control")
	if e.host().unified {
		file = filepath.Join(cgroupRoot, e.cgroup(id), "memory.events")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(text)) {
		if word, found := strings.CutPrefix(line, "oom_kill "); found {
			count, err = strconv.Atoi(strings.TrimSpace(word))
			return count, err == nil
		}
	}
	return 0, false
}

// awaitCgroupGone waits until a container's cgroup is no more: containerd
// clears up after a shim that died by itself, in its own time, and has no call
// that tells when it is done. A cgroup that nobody removes is removed, and the
// processes that are left in it are killed: its container has no task. An empty
// one that is abandoned, whose container has no record either, is removed at
// once. That of another containerd is not waited for, nor touched.
func (e *Engine) awaitCgroupGone(ctx context.Context, id string, abandoned bool) error {
	return patiently(ctx, func() error { return e.pollCgroupGone(ctx, id, abandoned) })
}

func (e *Engine) pollCgroupGone(ctx context.Context, id string, abandoned bool) error {
	if left := e.cgroupDirs(id); abandoned && len(left) > 0 {
		if others, err := e.leftAlone(ctx, id); others || err != nil {
			return err
		}
		for _, dir := range left {
			clearCgroup(dir, func(int) {})
		}
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(killTimeout)
	defer limit.Stop()
	for polls := 0; ; polls++ {
		left := e.cgroupDirs(id)
		if len(left) == 0 {
			return nil
		}
		if polls == 50 { // a second: whoever would remove it is gone itself
			if others, err := e.leftAlone(ctx, id); others || err != nil {
				return err
			}
		}
		if polls > 50 {
			e.thawCgroup(id)
			for _, dir := range left {
				clearCgroup(dir, func(pid int) { _ = unix.Kill(pid, unix.SIGKILL) })
			}
		}
		select {
		case <-tick.C:
		case <-limit.C:
			return fmt.Errorf("cgroup %s has processes: %w", left[0], errdefs.ErrFailedPrecondition)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// clearCgroup ends the processes in a cgroup and in those that the container has
// made below it, and removes those that are empty.
func clearCgroup(dir string, end func(pid int)) {
	var below []string
	_ = filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil //nolint:nilerr // what has gone meanwhile is as wanted
		}
		text, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return nil //nolint:nilerr // as above
		}
		for line := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(line); err == nil && pid > 1 {
				end(pid)
			}
		}
		below = append(below, path)
		return nil
	})
	for _, path := range slices.Backward(below) {
		_ = unix.Rmdir(path) // busy while a process is in it
	}
}

// cgroupDirs are the directories of a container's cgroup in all hierarchies.
func (e *Engine) cgroupDirs(id string) []string {
	pattern := filepath.Join(cgroupRoot, "*", e.cgroup(id))
	if e.host().unified {
		pattern = filepath.Join(cgroupRoot, e.cgroup(id))
	}
	dirs, err := filepath.Glob(pattern)
	if err != nil {
		return nil // an id that is no file name has no cgroup
	}
	return dirs
}
