package containerd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// ownEnd is how long a shim whose task is gone, and the writer of its log, may
	// take to end by themselves.
	ownEnd = 2 * time.Second
	// servantPoll is how often it is looked whether they have.
	servantPoll = 100 * time.Millisecond
)

// duty is what a process does for a container.
type duty int

const (
	shim    duty = iota // it runs the container
	clearer             // it clears up after a shim that died: the shim's program, run by containerd
	writer              // it writes the container's log
)

// servant is a process that serves a container.
type servant struct {
	pid  int
	id   string // of the container
	duty duty
}

// servants are the shims of our namespace and the writers of our logs.
func (e *Engine) servants() ([]servant, error) {
	var found []servant
	err := eachProcess(func(pid int, args []string) {
		if s, is := e.servant(pid, args); is {
			found = append(found, s)
		}
	})
	return found, err
}

// eachProcess tells of the processes in our PID namespace with their arguments,
// except those without any.
func eachProcess(visit func(pid int, args []string)) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	ours, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return fmt.Errorf("look up the namespace of processes: %w", err)
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if args := commandLine(pid, ours); len(args) > 0 {
			visit(pid, args)
		}
	}
	return nil
}

// commandLine is the arguments of a process in our PID namespace, as no process in a
// container is, whatever that calls itself: theirs are not looked at, since who
// reads arguments may wait for the memory of their process. None of others, and of
// one that has ended.
func commandLine(pid int, ours string) []string {
	if namespace, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "ns/pid")); err != nil || namespace != ours {
		return nil
	}
	line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return nil
	}
	var args []string
	for arg := range bytes.SplitSeq(bytes.TrimRight(line, "\x00"), []byte{0}) {
		args = append(args, string(arg))
	}
	return args
}

// isShim says whether a program that was given args is a shim, of whatever
// containerd.
func isShim(args []string) bool {
	return len(args) > 0 && strings.HasPrefix(filepath.Base(args[0]), "containerd-shim-runc")
}

// servant says what a process with arguments serves: a shim that our containerd
// started, or the writer of a log of ours.
func (e *Engine) servant(pid int, args []string) (servant, bool) {
	s := servant{pid: pid}
	program := filepath.Base(args[0])
	switch {
	case isShim(args) && e.isOurShim(args):
		s.id = after(args, "-id")
		if args[len(args)-1] == "delete" {
			s.duty = clearer
		}
	case e.cfg.LogDir != "" && e.cfg.LogWriter.Path != "" && program == filepath.Base(e.cfg.LogWriter.Path):
		if log := after(args, "path"); filepath.Dir(log) == filepath.Clean(e.cfg.LogDir) {
			s.id, s.duty = strings.TrimSuffix(filepath.Base(log), logExtension), writer
		}
	}
	return s, s.id != ""
}

// after is the argument that follows a word.
func after(args []string, word string) string {
	if i := slices.Index(args, word); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

// endOrphans ends shims of a container that containerd has no task of. When the
// caller of Tasks.Create dies, containerd kills the program that starts a shim,
// and not the shim, which may run by then and perhaps never serve. The next one
// would find its socket taken, and leave the container to it. Whoever still
// clears up after a shim is waited for: it would take the next one's container.
func (e *Engine) endOrphans(ctx context.Context, id string) error {
	return e.endServants(ctx, id, shim, clearer)
}

// endServants ends what serves a container that has no task: it has a while to
// end by itself.
func (e *Engine) endServants(ctx context.Context, id string, duties ...duty) error {
	return patiently(ctx, func() error { return e.pollServants(ctx, id, duties) })
}

func (e *Engine) pollServants(ctx context.Context, id string, duties []duty) error {
	tick := time.NewTicker(servantPoll)
	defer tick.Stop()
	begun := time.Now()
	for ; ; <-tick.C {
		all, err := e.servants()
		if err != nil {
			return err
		}
		left := slices.DeleteFunc(all, func(s servant) bool { return s.id != id || !slices.Contains(duties, s.duty) })
		if len(left) == 0 {
			return nil
		}
		for _, s := range left {
			patience := ownEnd
			if s.duty == clearer {
				patience = killTimeout // containerd gives it less
			}
			if time.Since(begun) > patience {
				e.end(ctx, s)
			}
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case time.Since(begun) > ownEnd+killTimeout:
			return fmt.Errorf("%d processes that serve it do not end: %w", len(left), errdefs.ErrFailedPrecondition)
		}
	}
}

// endShims kills the shims of a container at once. containerd clears up after
// them, and ends what they ran.
func (e *Engine) endShims(ctx context.Context, id string) error {
	all, err := e.servants()
	for _, s := range all {
		if s.id == id && s.duty == shim {
			e.end(ctx, s)
		}
	}
	return err
}

// end kills a servant, and nobody who has been given its number since.
func (e *Engine) end(ctx context.Context, s servant) {
	process, err := unix.PidfdOpen(s.pid, 0)
	if err != nil {
		return // it has ended
	}
	defer unix.Close(process) //nolint:errcheck // nothing was written to it
	all, err := e.servants()
	if err != nil || !slices.Contains(all, s) {
		return
	}
	e.cfg.Log.WarnContext(ctx, "a process of containerd that serves no task any more, or does not answer, is ended", "container", s.id, "pid", s.pid)
	if err := unix.PidfdSendSignal(process, unix.SIGKILL, nil, 0); err != nil {
		e.cfg.Log.WarnContext(ctx, "it cannot be ended", "pid", s.pid, "error", err)
	}
}
