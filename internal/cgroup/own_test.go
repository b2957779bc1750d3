package cgroup_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/testutil"
)

// What is put into a group of its own is found there, whoever its parent was,
// and ended with all that it started.
func TestGroupOfOnesOwn(t *testing.T) {
	testutil.Require(t, testutil.Root)
	path := fmt.Sprintf("/remotegpu-test-own-%d", os.Getpid())
	procs, err := cgroup.Make(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cgroup.End(context.WithoutCancel(t.Context()), path, 0) })
	if !cgroup.Exists(path) || cgroup.Exists(path+"-other") || cgroup.Exists("/") {
		t.Errorf("%s: %v, another %v, none %v", path, cgroup.Exists(path), cgroup.Exists(path+"-other"), cgroup.Exists("/"))
	}
	script := `for file; do echo $$ > "$file"; done; trap "" TERM; sleep 600 & sleep 600`
	cmd := exec.CommandContext(t.Context(), "sh", append([]string{"-ec", script, "sh"}, procs...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	var pids []int
	for deadline := time.Now().Add(10 * time.Second); len(pids) < 3 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if pids, err = cgroup.Processes(path); err != nil {
			t.Fatal(err)
		}
	}
	if len(pids) != 3 {
		t.Errorf("in the group: %d, want the shell and what it started", pids)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := cgroup.End(t.Context(), path, 0); err != nil {
		t.Fatal(err)
	}
	<-ended
	for _, file := range procs {
		if _, err := os.Stat(filepath.Dir(file)); !os.IsNotExist(err) {
			t.Errorf("left: %s, %v", file, err)
		}
	}
	if cgroup.Exists(path) {
		t.Error("it is said to be there when it is gone")
	}
	if err := cgroup.End(t.Context(), path, time.Minute); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if _, err := cgroup.Make("/a/../b"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a bad path: %v", err)
	}
}
