package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is what a process uses.
type Process struct {
	Name string        // of its program
	PSS  int64         // proportional set size, bytes
	CPU  time.Duration // that its threads, and children that it has waited for, have used
}

// Processes are those of the sandbox by process id, but not its first process,
// this one, and what runs inside containers.
func Processes() (map[int]Process, error) {
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nil, fmt.Errorf("read own namespace: %w", err)
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	found := make(map[int]Process)
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		space, err := os.Readlink(filepath.Join(dir, "ns/pid"))
		if err != nil || space != own {
			continue // it has gone, or is in a container
		}
		process, err := inspect(dir)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found[pid] = process
	}
	return found, nil
}

func inspect(dir string) (Process, error) {
	var process Process
	program, err := os.Readlink(filepath.Join(dir, "exe"))
	if err != nil {
		return process, err
	}
	process.Name = filepath.Base(program)
	rollup, err := os.ReadFile(filepath.Join(dir, "smaps_rollup"))
	if err != nil {
		return process, err
	}
	for line := range bytes.Lines(rollup) {
		if fields := bytes.Fields(line); len(fields) == 3 && string(fields[0]) == "Pss:" {
			kibibytes, err := strconv.ParseInt(string(fields[1]), 10, 64)
			if err != nil {
				return process, fmt.Errorf("read memory of %s: %w", process.Name, err)
			}
			process.PSS = kibibytes << 10
		}
	}
	if process.CPU, err = threads(dir); err != nil {
		return process, err
	}
	children, err := waitedFor(dir)
	process.CPU += children
	return process, err
}

// threads sums up what the threads of a process have used; the scheduler
// counts in nanoseconds, /proc/<pid>/stat in hundredths of a second.
func threads(dir string) (time.Duration, error) {
	files, err := filepath.Glob(filepath.Join(dir, "task/[0-9]*/schedstat"))
	if err != nil {
		return 0, fmt.Errorf("list threads: %w", err)
	}
	var used time.Duration
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		first, _, _ := strings.Cut(string(text), " ")
		nanoseconds, err := strconv.ParseInt(strings.TrimSpace(first), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", file, err)
		}
		used += time.Duration(nanoseconds)
	}
	return used, nil
}

// waitedFor is what the children that a process has waited for have used.
func waitedFor(dir string) (time.Duration, error) {
	text, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return 0, err
	}
	// Behind the name, which may have spaces, in parentheses: state is field 3,
	// cutime and cstime are 16 and 17.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var ticks int64
	for _, at := range []int{16 - 3, 17 - 3} {
		if at >= len(fields) {
			return 0, fmt.Errorf("read %s/stat: it has %d fields", dir, len(fields)+2)
		}
		n, err := strconv.ParseInt(fields[at], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read %s/stat: %w", dir, err)
		}
		ticks += n
	}
	const perSecond = 100 // USER_HZ, the same on all architectures that Go runs on
	return time.Duration(ticks) * time.Second / perSecond, nil
}
