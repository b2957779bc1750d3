package cgroup_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/testutil"
)

const (
	v2     = "0::/remotegpu/01ABC\n"
	v1     = "9:name=systemd:/\n8:pids:/remotegpu/01ABC\n4:memory:/remotegpu/01ABC\n3:cpu,cpuacct:/remotegpu/01ABC\n"
	hybrid = "5:memory:/remotegpu/01ABC/init\n1:name=systemd:/user.slice\n0::/user.slice/session.scope\n"
)

func TestContains(t *testing.T) {
	for _, test := range []struct {
		table, path string
		want        bool
	}{
		{v2, "/remotegpu/01ABC", true},
		{v1, "/remotegpu/01ABC", true},
		{hybrid, "/remotegpu/01ABC", true},
		{v2, "/remotegpu", true},
		{"0::/remotegpu/01ABC/nested/deep\n", "/remotegpu/01ABC", true},
		{"0::/remotegpu/01ABC", "/remotegpu/01ABC", true},
		{"0::/remotegpu/a:b\n", "/remotegpu/a:b", true},
		{v2, "/remotegpu/01AB", false},
		{v2, "/remotegpu/01ABCD", false},
		{"0::/remotegpu/01ABC2/x\n", "/remotegpu/01ABC", false},
		{"0::/other/remotegpu/01ABC\n", "/remotegpu/01ABC", false},
		{"0::/../remotegpu/01ABC\n", "/remotegpu/01ABC", false},
		{"0::/\n", "/remotegpu/01ABC", false},
		{"0::/remotegpu/01ABC (deleted)\n", "/remotegpu/01ABC", false},
		{"0::/remotegpu/01ABC/x (deleted)\n", "/remotegpu/01ABC", false},
		{"1:name=/remotegpu/01ABC:/\n", "/remotegpu/01ABC", false},
		{"", "/remotegpu/01ABC", false},
		{"garbage /remotegpu/01ABC\n", "/remotegpu/01ABC", false},
	} {
		if got := cgroup.ContainsIn(test.table, test.path); got != test.want {
			t.Errorf("%q in %q: %v", test.path, test.table, got)
		}
	}
}

func TestContainsRefuses(t *testing.T) {
	for _, path := range []string{"", "/", "relative", "/a/", "/a//b", "/a/../b", "/./a", "/a\nb"} {
		if _, err := cgroup.Contains(os.Getpid(), path); !errdefs.IsInvalidArgument(err) {
			t.Errorf("path %q: %v", path, err)
		}
	}
	if _, err := cgroup.Contains(0, "/a"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("pid 0: %v", err)
	}
	// Beyond the largest pid a kernel gives (2^22).
	if _, err := cgroup.Contains(1<<22+1, "/a"); !errdefs.IsNotFound(err) {
		t.Errorf("no process: %v", err)
	}
}

// TestContainsReal puts a process into a group of its own, in the unified
// hierarchy or v1's pids one.
func TestContainsReal(t *testing.T) {
	testutil.Require(t, testutil.Root)
	base := "/sys/fs/cgroup"
	if cgroup.Version() == "v1" {
		base += "/pids"
	}
	name := fmt.Sprintf("/remotegpu-test-%d", os.Getpid())
	group := filepath.Join(base, name, "inner")
	if err := os.MkdirAll(group, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for _, dir := range []string{group, filepath.Dir(group)} {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		}
	})
	pid := cmd.Process.Pid
	for _, step := range []bool{false, true} {
		if step {
			if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		own, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]bool{name: step, name + "/inner": step, name + "/inn": false, name + "x": false} {
			if got, err := cgroup.Contains(pid, path); err != nil || got != want {
				t.Errorf("%s after move %v: %v, %v", path, step, got, err)
			}
		}
		if strings.Contains(string(own), name) {
			t.Error("the test itself moved")
		}
	}
}
