package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Usage is what the processes of a control group use. What the host's kernel
// or hierarchy does not count is 0.
type Usage struct {
	CPU             time.Duration // used since the group was made
	MemoryBytes     int64         // caches included
	WorkingSetBytes int64         // MemoryBytes less the file cache that nobody has used for a while
	Pids            int64         // processes and threads
	BlockReadBytes  int64         // from block devices since the group was made
	BlockWriteBytes int64
}

// Reader reads the usage of control groups. It is safe for concurrent use.
type Reader struct {
	controllers map[string]hierarchy // v1, by controller
	unified     *hierarchy           // v2; nil without one
}

// hierarchy is where a hierarchy of control groups is mounted.
type hierarchy struct {
	point string // of the mount
	root  string // the group that the mount shows there, "/" for all
}

// NewReader finds out where the host's control groups are mounted. Unavailable
// when they are not.
func NewReader() (*Reader, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	r := newReader(string(table))
	if r.unified == nil && len(r.controllers) == 0 {
		return nil, fmt.Errorf("find cgroup mounts: none: %w", errdefs.ErrUnavailable)
	}
	return r, nil
}

// newReader reads a mount table (proc_pid_mountinfo(5)). The first mount of a
// hierarchy is taken; on hybrid hosts the unified one serves for controllers
// that no v1 mount has.
func newReader(table string) *Reader {
	r := &Reader{controllers: make(map[string]hierarchy)}
	for line := range strings.Lines(table) {
		before, after, found := strings.Cut(line, " - ")
		mount, super := strings.Fields(before), strings.Fields(after)
		if !found || len(mount) < 6 || len(super) < 3 {
			continue
		}
		h := hierarchy{root: unescape(mount[3]), point: unescape(mount[4])}
		switch super[0] {
		case "cgroup2":
			if r.unified == nil {
				r.unified = &h
			}
		case "cgroup":
			for option := range strings.SplitSeq(super[2], ",") {
				if _, taken := r.controllers[option]; !taken {
					r.controllers[option] = h
				}
			}
		}
	}
	return r
}

// unescape undoes the octal escapes of a mount table.
func unescape(field string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(field)
}

// dir is the directory of a group, false where the mount does not show it.
func (h hierarchy) dir(group string) (string, bool) {
	if h.root != "/" {
		rest, below := strings.CutPrefix(group, h.root)
		if !below || (rest != "" && rest[0] != '/') {
			return "", false
		}
		group = rest
	}
	return filepath.Join(h.point, group), true
}

// Usage reads what the group with the path uses, groups below it included.
// NotFound when there is no such group, also when it goes meanwhile.
func (r *Reader) Usage(group string) (Usage, error) {
	if !validPath(group) {
		return Usage{}, fmt.Errorf("cgroup path %q: %w", group, errdefs.ErrInvalidArgument)
	}
	var usage Usage
	for _, part := range []struct {
		controller string
		required   bool // it is there in each group
		v1, v2     func(dir string, usage *Usage) error
	}{
		{"cpuacct", true, cpuV1, cpuV2},
		{"memory", false, memoryV1, memoryV2},
		{"pids", false, pids, pids},
		{"blkio", false, blockV1, blockV2},
	} {
		read := part.v1
		from, ok := r.controllers[part.controller]
		if !ok {
			if r.unified == nil {
				continue // not counted on this host
			}
			read, from = part.v2, *r.unified
		}
		dir, shown := from.dir(group)
		err := fs.ErrNotExist
		if shown {
			err = read(dir, &usage)
		}
		// ENODEV: the group went after its file was opened.
		gone := errors.Is(err, unix.ENODEV)
		if errors.Is(err, fs.ErrNotExist) {
			// Without the controller the group has not got the file.
			_, statErr := os.Stat(dir)
			gone = part.required || !shown || errors.Is(statErr, fs.ErrNotExist)
			err = nil
		}
		if gone {
			return Usage{}, fmt.Errorf("read usage of cgroup %s: %w", group, errdefs.ErrNotFound)
		}
		if err != nil {
			return Usage{}, fmt.Errorf("read usage of cgroup %s: %w", group, err)
		}
	}
	return usage, nil
}

func cpuV1(dir string, usage *Usage) error {
	nanos, err := number(filepath.Join(dir, "cpuacct.usage"))
	usage.CPU = time.Duration(nanos)
	return err
}

func cpuV2(dir string, usage *Usage) error {
	micros, err := field(filepath.Join(dir, "cpu.stat"), "usage_usec")
	usage.CPU = time.Duration(micros) * time.Microsecond
	return err
}

func memoryV1(dir string, usage *Usage) error {
	return memory(dir, "memory.usage_in_bytes", "total_inactive_file", usage)
}

func memoryV2(dir string, usage *Usage) error {
	return memory(dir, "memory.current", "inactive_file", usage)
}

func memory(dir, file, cache string, usage *Usage) error {
	total, err := number(filepath.Join(dir, file))
	if err != nil {
		return err
	}
	inactive, err := field(filepath.Join(dir, "memory.stat"), cache)
	if err != nil {
		return err
	}
	// The two are counted apart, so the part can be more than the whole.
	usage.MemoryBytes, usage.WorkingSetBytes = total, max(total-inactive, 0)
	return nil
}

func pids(dir string, usage *Usage) (err error) {
	usage.Pids, err = number(filepath.Join(dir, "pids.current"))
	return err
}

// blockV1 sums lines "8:0 Read 4096". Kernels before 3.5 lack the recursive
// file; a container has no groups below it that they could miss.
func blockV1(dir string, usage *Usage) error {
	text, err := os.ReadFile(filepath.Join(dir, "blkio.throttle.io_service_bytes_recursive"))
	if errors.Is(err, fs.ErrNotExist) {
		text, err = os.ReadFile(filepath.Join(dir, "blkio.throttle.io_service_bytes"))
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) != 3 {
			continue // the last line, "Total 4096"
		}
		switch words[1] {
		case "Read":
			err = add(&usage.BlockReadBytes, words[2])
		case "Write":
			err = add(&usage.BlockWriteBytes, words[2])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// blockV2 sums lines "8:0 rbytes=4096 wbytes=0 rios=1 …".
func blockV2(dir string, usage *Usage) error {
	text, err := os.ReadFile(filepath.Join(dir, "io.stat"))
	if err != nil {
		return err
	}
	for word := range strings.FieldsSeq(string(text)) {
		if value, found := strings.CutPrefix(word, "rbytes="); found {
			err = add(&usage.BlockReadBytes, value)
		} else if value, found := strings.CutPrefix(word, "wbytes="); found {
			err = add(&usage.BlockWriteBytes, value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func add(sum *int64, text string) error {
	n, err := parse(text)
	*sum += n
	return err
}

// number reads a file that holds one number.
func number(path string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return parse(strings.TrimSpace(string(text)))
}

// field reads the number after a name at the beginning of a line, 0 without
// such a line.
func field(path, name string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, name+" "); found {
			return parse(strings.TrimSpace(value))
		}
	}
	return 0, nil
}

// parse reads a counter; the kernel's are unsigned.
func parse(text string) (int64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read counter: %w", err)
	}
	return int64(min(n, math.MaxInt64)), nil
}
