package cgroup_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/testutil"
)

// tree writes files below a directory.
func tree(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// mounts writes a mount table as the kernel does: spaces escaped.
func mounts(dir string, lines ...string) string {
	dir = strings.ReplaceAll(dir, " ", `\040`)
	table := "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\nnonsense\n"
	for i, line := range lines {
		table += strconv.Itoa(30+i) + " 22 0:30 " + strings.ReplaceAll(line, "DIR", dir) + "\n"
	}
	return table
}

var want = cgroup.Usage{
	CPU: 2500 * time.Millisecond, MemoryBytes: 1000, WorkingSetBytes: 700, Pids: 7, BlockReadBytes: 4196, BlockWriteBytes: 8292,
}

var filesV1 = map[string]string{
	"cpu,cpuacct/remotegpu/a/cpuacct.usage":                       "2500000000\n",
	"memory/remotegpu/a/memory.usage_in_bytes":                    "1000\n",
	"memory/remotegpu/a/memory.stat":                              "inactive_file 1\ntotal_inactive_anon 5\ntotal_inactive_file 300\ntotal_active_file 2\n",
	"pids/remotegpu/a/pids.current":                               "7\n",
	"blkio/remotegpu/a/blkio.throttle.io_service_bytes":           "8:0 Read 1\n8:0 Write 1\nTotal 2\n",
	"blkio/remotegpu/a/blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 1\n8:0 Total 12288\n8:16 Read 100\n8:16 Write 100\nTotal 12488\n",
	"unified/remotegpu/a/cpu.stat":                                "usage_usec 1\n",
	"cpu,cpuacct/remotegpu/idle/cpuacct.usage":                    "0\n",
	"memory/remotegpu/idle/memory.usage_in_bytes":                 "10\n",
	"memory/remotegpu/idle/memory.stat":                           "total_inactive_file 30\n",
	"pids/remotegpu/idle/pids.current":                            "0\n",
	"blkio/remotegpu/idle/blkio.throttle.io_service_bytes":        "8:0 Read 5\nTotal 5\n",
	"cpu,cpuacct/remotegpu/half/cpuacct.usage":                    "5\n",
	"cpu,cpuacct/remotegpu/broken/cpuacct.usage":                  "much\n",
}

func v1Reader(dir string) *cgroup.Reader {
	return cgroup.NewReaderOf(mounts(dir,
		"/ DIR/cpu,cpuacct rw shared:1 - cgroup cgroup rw,cpu,cpuacct", "/ DIR/memory rw - cgroup cgroup rw,memory",
		"/ DIR/pids rw - cgroup cgroup rw,pids", "/ DIR/blkio rw - cgroup cgroup rw,blkio",
		"/ DIR/unified rw - cgroup2 cgroup2 rw", "/ DIR/again rw - cgroup cgroup rw,memory"))
}

func TestUsageV1(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "with space")
	tree(t, dir, filesV1)
	r := v1Reader(dir)
	if got, err := r.Usage("/remotegpu/a"); err != nil || got != want {
		t.Errorf("Usage() = %+v, %v, want %+v", got, err, want)
	}
	// The cache is not more than the whole, and old kernels have one file only.
	if got, err := r.Usage("/remotegpu/idle"); err != nil || got != (cgroup.Usage{MemoryBytes: 10, BlockReadBytes: 5}) {
		t.Errorf("idle: %+v, %v", got, err)
	}
	// It goes hierarchy by hierarchy.
	if _, err := r.Usage("/remotegpu/half"); !errdefs.IsNotFound(err) {
		t.Errorf("a group that is going: %v", err)
	}
	if _, err := r.Usage("/remotegpu/none"); !errdefs.IsNotFound(err) {
		t.Errorf("no group: %v", err)
	}
	if _, err := r.Usage("/remotegpu/broken"); err == nil || errdefs.IsNotFound(err) {
		t.Errorf("nonsense: %v", err)
	}
}

func TestUsageV2(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, map[string]string{
		"remotegpu/a/cpu.stat":       "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n",
		"remotegpu/a/memory.current": "1000\n",
		"remotegpu/a/memory.stat":    "anon 400\nfile 600\ninactive_anon 9\ninactive_file 300\n",
		"remotegpu/a/pids.current":   "7\n",
		"remotegpu/a/io.stat":        "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=100 wbytes=100 rios=1 wios=1\n",
		"remotegpu/bare/cpu.stat":    "usage_usec 5\n", // no controllers enabled
	})
	r := cgroup.NewReaderOf(mounts(dir, "/ DIR rw - cgroup2 cgroup2 rw,nsdelegate"))
	if got, err := r.Usage("/remotegpu/a"); err != nil || got != want {
		t.Errorf("Usage() = %+v, %v, want %+v", got, err, want)
	}
	if got, err := r.Usage("/remotegpu/bare"); err != nil || got != (cgroup.Usage{CPU: 5 * time.Microsecond}) {
		t.Errorf("without controllers: %+v, %v", got, err)
	}
	if _, err := r.Usage("/remotegpu/none"); !errdefs.IsNotFound(err) {
		t.Errorf("no group: %v", err)
	}
	// A mount that shows one group only.
	r = cgroup.NewReaderOf(mounts(dir, "/outer DIR rw - cgroup2 cgroup2 rw"))
	if got, err := r.Usage("/outer/remotegpu/a"); err != nil || got != want {
		t.Errorf("below a mounted group: %+v, %v", got, err)
	}
	for _, hidden := range []string{"/remotegpu/a", "/outerx/remotegpu/a"} {
		if _, err := r.Usage(hidden); !errdefs.IsNotFound(err) {
			t.Errorf("group %s is not shown: %v", hidden, err)
		}
	}
}

func TestUsageRefuses(t *testing.T) {
	r := cgroup.NewReaderOf("")
	for _, path := range []string{"", "/", "relative", "/a/../b", "/a\nb"} {
		if _, err := r.Usage(path); !errdefs.IsInvalidArgument(err) {
			t.Errorf("path %q: %v", path, err)
		}
	}
}

// TestUsageReal burns CPU and holds memory in a group of the host's own kind.
func TestUsageReal(t *testing.T) {
	testutil.Require(t, testutil.Root)
	bases := []string{"/sys/fs/cgroup"}
	if cgroup.Version() == "v1" {
		bases = []string{"/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/blkio"}
	}
	name := fmt.Sprintf("/remotegpu-usage-%d", os.Getpid())
	r, err := cgroup.NewReader()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Usage(name); !errdefs.IsNotFound(err) {
		t.Errorf("before it is made: %v", err)
	}
	// It waits until it is in the group, then works for ever.
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `read go; x=$(head -c 4000000 /dev/zero | tr '\0' a); while :; do :; done`)
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for _, base := range bases {
			// What the shell had started is killed with it, and ends in its own time.
			_ = os.WriteFile(base+name+"/cgroup.kill", []byte("1"), 0)
			err := os.Remove(base + name)
			for deadline := time.Now().Add(time.Minute); errors.Is(err, unix.EBUSY) && time.Now().Before(deadline); err = os.Remove(base + name) {
				time.Sleep(20 * time.Millisecond)
			}
			if err != nil {
				t.Error(err)
			}
		}
		if _, err := r.Usage(name); !errdefs.IsNotFound(err) {
			t.Errorf("after it has gone: %v", err)
		}
	})
	for _, base := range bases {
		if err := os.Mkdir(base+name, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(base+name+"/cgroup.procs", []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := input.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	var usage cgroup.Usage
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if usage, err = r.Usage(name); err != nil {
			t.Fatal(err)
		}
		if usage.CPU > 100*time.Millisecond && usage.WorkingSetBytes > 3<<20 {
			break
		}
	}
	if usage.CPU < 100*time.Millisecond || usage.WorkingSetBytes < 3<<20 || usage.MemoryBytes < usage.WorkingSetBytes || usage.Pids < 1 {
		t.Errorf("a busy group: %+v", usage)
	}
}
