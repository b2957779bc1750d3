//nolint:thelper // what both runs are tests, and a failure should name their lines
package containerd_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/containerd"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// parts are what the engine finds, as "kind id" or "kind name foreign".
func parts(t *testing.T, engine *containerd.Engine) []string {
	t.Helper()
	found, err := engine.Parts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, part := range found {
		line := string(part.Kind) + " " + part.EnvID
		if part.EnvID == "" {
			line = string(part.Kind) + " " + filepath.Base(part.Name)
		}
		if part.Foreign != "" {
			line += " foreign"
		}
		all = append(all, line)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// loseRecord removes a container's record and nothing else.
func loseRecord(t *testing.T, d *testutil.ContainerdDaemon, id string) {
	t.Helper()
	c, err := client.New(d.Address, client.WithDefaultNamespace(d.Namespace))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.ContainerService().Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// Each kind of leftover is found, and removed by the id it belongs to.
func TestParts(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine, ns := openWithWriter(t, d), netNS(t, d)()
		const known, lost, orphan = "known", "lost", "orphan"
		for _, id := range []string{known, lost, orphan} {
			start(t, engine, runtime.Container{ID: id, Image: testutil.ImageName, Command: []string{"sleep"}, NetNS: ns, LogPath: filepath.Join(logs(d), id+".log")})
		}
		// A reboot of containerd that lost all it knew of one of them: the shim and
		// what it started run on, on their own.
		d.Stop(t)
		bundle := filepath.Join(d.Dir, "state", "io.containerd.runtime.v2.task", d.Namespace, orphan)
		if err := unix.Unmount(filepath.Join(bundle, "rootfs"), unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(bundle); err != nil {
			t.Fatal(err)
		}
		d.Start(t)
		runtimetest.Eventually(t, "the engine has reconnected", func() bool { _, err := engine.Info(t.Context()); return err == nil })
		if got := parts(t, engine); len(got) > 0 {
			t.Errorf("all have their records, and parts are %q", got)
		}
		loseRecord(t, d, lost)
		loseRecord(t, d, orphan)

		dead := exec.CommandContext(t.Context(), "true")
		if err := dead.Run(); err != nil {
			t.Fatal(err)
		}
		pid := strconv.Itoa(dead.Process.Pid)
		for _, dir := range []string{pid, strconv.Itoa(os.Getpid()), "1", "notes"} {
			if err := os.MkdirAll(filepath.Join(d.Dir, "fifo", dir), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"old.log", "old.log.00000007", "old.log.new", "notes.txt", "old.log.7"} {
			if err := os.WriteFile(filepath.Join(logs(d), name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		d.Ctr(t, "leases", "create", "--id", "dead", "remotegpu.dev/engine=another")
		d.Ctr(t, "leases", "create", "--id", "admin")
		d.Ctr(t, "containers", "create", testutil.ImageName, "stranger")
		d.Ctr(t, "snapshots", "prepare", "layer")

		// containerd may have collected the layers of the lost ones by itself.
		got := slices.DeleteFunc(parts(t, engine), func(part string) bool { return part == "snapshot lost" || part == "snapshot orphan" })
		want := []string{
			"cgroup lost", "cgroup orphan", "container stranger foreign", "lease admin foreign", "lease dead",
			"log lost", "log notes.txt foreign", "log old", "log old.log.7 foreign", "log orphan", "pipes " + pid, "pipes notes foreign",
			"process lost", "process orphan", "snapshot layer", "task lost",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
		for _, id := range []string{"lost", "orphan", "old", "layer"} {
			if err := engine.Delete(t.Context(), id); err != nil {
				t.Errorf("delete %s: %v", id, err)
			}
		}
		for _, part := range []runtime.Part{
			{Kind: runtime.FoundLease, Name: "dead"},
			{Kind: runtime.FoundPipes, Name: filepath.Join(d.Dir, "fifo", pid)},
			{Kind: runtime.FoundPipes, Name: filepath.Join(d.Dir, "fifo", "1")}, // that is alive
		} {
			if err := engine.RemovePart(t.Context(), part); err != nil {
				t.Errorf("remove %+v: %v", part, err)
			}
		}
		if err := engine.RemovePart(t.Context(), runtime.Part{Kind: runtime.FoundPipes, Name: d.Dir}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("pipes elsewhere: %v", err)
		}
		want = []string{
			"container stranger foreign", "lease admin foreign", "log notes.txt foreign", "log old.log.7 foreign", "pipes notes foreign",
		}
		if diff := cmp.Diff(want, parts(t, engine)); diff != "" {
			t.Errorf("afterwards: %s", diff)
		}
		if status, err := engine.Status(t.Context(), known); err != nil || !status.Running {
			t.Errorf("the one that is known: %+v, %v", status, err)
		}
		if _, err := os.Stat(filepath.Join(d.Dir, "fifo", "1")); err != nil {
			t.Errorf("the pipes of a process that lives: %v", err)
		}
		if err := engine.Delete(t.Context(), known); err != nil {
			t.Error(err)
		}
		d.Ctr(t, "containers", "delete", "stranger")
		d.Ctr(t, "leases", "rm", "admin")
		left := slices.DeleteFunc(leftovers(t, d), func(s string) bool { return strings.HasPrefix(s, logs(d)) })
		if len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}

// A process that only looks like a shim, or serves another containerd, is not
// ours.
func TestProcessesOfOthers(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine := open(t, d)
		var pids []int
		for _, args := range [][]string{
			{"containerd-shim-runc-v2", "-namespace", "k8s.io", "-id", "a", "-address", d.Address},
			{"containerd-shim-runc-v2", "-namespace", d.Namespace, "-id", "b", "-address", "/run/containerd/containerd.sock"},
			{"remotegpu-logwriter", "path", filepath.Join(logs(d), "c.log")}, // this engine has no log writer
		} {
			// A shell that keeps its name and arguments, as sleep would not take them.
			cmd := &exec.Cmd{Path: "/bin/sh", Args: append([]string{args[0], "-c", "sleep 300 & wait", "sh"}, args[1:]...)}
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); _ = cmd.Wait() })
			pids = append(pids, cmd.Process.Pid)
		}
		if got := parts(t, engine); len(got) > 0 {
			t.Errorf("found %q", got)
		}
		for _, id := range []string{"a", "b", "c"} {
			if err := engine.Delete(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, 0); err != nil {
				t.Error(fmt.Errorf("process %d: %w", pid, err))
			}
		}
	})
}
