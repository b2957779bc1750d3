package containerd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// patience is more than it takes to be done with a shim that does not answer, and
// less than a call of containerd may take.
const patience = 100 * time.Second

// silence stops the shim of a container until answer is called, which comes at the end of
// the test otherwise.
func silence(t *testing.T, d *testutil.ContainerdDaemon, id string) (answer func()) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(d.Dir, "state", "io.containerd.runtime.v2.task", d.Namespace, id, "init.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	shim := parent(t, pid)
	if err := syscall.Kill(shim, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	answer = sync.OnceFunc(func() {
		if err := syscall.Kill(shim, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(answer)
	runtimetest.Eventually(t, "all threads of the shim stand still", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", shim))
		return err == nil && len(threads) > 0 && !slices.ContainsFunc(threads, func(thread string) bool {
			stat, err := os.ReadFile(thread)
			return err == nil && !strings.Contains(string(stat), ") T ")
		})
	})
	return answer
}

// A shim that is slow when a copy of a layer is done does not leave the processes
// paused that were paused for it.
func TestCopyLayerWithSilentShim(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) { //nolint:thelper // it is the test
		engine := open(t, d)
		c := runtime.Container{ID: "slow", Image: testutil.ImageName, NetNS: netNS(t, d)(), LogPath: filepath.Join(logs(d), "slow.log")}
		start(t, engine, c)
		if _, err := engine.Run(t.Context(), c.ID, runtime.Command{Argv: []string{"testprog", "write", "/file", "kept"}}); err != nil {
			t.Fatal(err)
		}
		answers := make(chan struct{})
		var slow sync.Once
		_, err := engine.CopyLayer(t.Context(), c.ID, "copied", func(operation.Progress) {
			slow.Do(func() {
				answer := silence(t, d, c.ID)
				time.AfterFunc(5*time.Second, func() { answer(); close(answers) }) // more than containerd waits for it
			})
		})
		if err != nil {
			t.Errorf("copy: %v", err)
		}
		<-answers
		if status, err := engine.Status(t.Context(), c.ID); err != nil || !status.Running || status.Paused {
			t.Errorf("status afterwards: %+v, %v, want it running", status, err)
		}
		if err := errors.Join(engine.Delete(t.Context(), c.ID), engine.RemoveSnapshot(t.Context(), "copied")); err != nil {
			t.Error(err)
		}
	})
}

// A shim that does not answer keeps nobody from deleting its container.
func TestDeleteWithSilentShim(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) { //nolint:thelper // it is the test
		engine := open(t, d)
		c := runtime.Container{ID: "silent", Image: testutil.ImageName, NetNS: netNS(t, d)(), LogPath: filepath.Join(logs(d), "silent.log")}
		shim := parent(t, start(t, engine, c))
		if err := syscall.Kill(shim, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := engine.Delete(ctx, c.ID); err != nil {
			t.Errorf("delete: %v", err)
			if err := syscall.Kill(shim, syscall.SIGKILL); err != nil {
				t.Log(err)
			}
		}
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}

// A shim that containerd has lost, as that of a start whose caller was killed,
// and that does not serve, is not taken for the next start's.
func TestStartBesideOrphanedShim(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) { //nolint:thelper // it is the test
		engine := open(t, d)
		c := runtime.Container{ID: "again", Image: testutil.ImageName, NetNS: netNS(t, d)(), LogPath: filepath.Join(logs(d), "again.log")}
		shim := parent(t, start(t, engine, c))
		d.Kill(t)
		if err := syscall.Kill(shim, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		// Such a shim was never asked to make a container.
		if said, err := exec.CommandContext(t.Context(), "runc", "--root", filepath.Join("/run/containerd/runc", d.Namespace), "delete", "--force", c.ID).CombinedOutput(); err != nil {
			t.Fatalf("runc delete: %v: %s", err, said)
		}
		bundle := filepath.Join(d.Dir, "state", "io.containerd.runtime.v2.task", d.Namespace, c.ID)
		if err := unix.Unmount(filepath.Join(bundle, "rootfs"), unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(bundle); err != nil {
			t.Fatal(err)
		}
		d.Start(t)
		// What containerd still clears up after stands in the way for a moment.
		if err := os.MkdirAll(bundle, 0o700); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, func() {
			if err := os.Remove(bundle); err != nil {
				t.Error(err)
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if _, err := engine.Start(ctx, c); err != nil {
			t.Errorf("start: %v", err)
		}
		// Whoever is to collect it may take its time.
		if name, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(shim), "exe")); err == nil {
			t.Errorf("the shim without a task is still there: %s", name)
		}
		if err := engine.Delete(ctx, c.ID); err != nil {
			t.Errorf("delete: %v", err)
		}
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}

// A command that was not started since containerd or a shim hangs has not taken
// too long itself, and nobody is told that it was killed.
func TestRunWithSilentContainerd(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) { //nolint:thelper // it is the test
		engine := open(t, d)
		shim := parent(t, start(t, engine, runtime.Container{ID: "one", Image: testutil.ImageName, NetNS: netNS(t, d)()}))
		leaves := func(ctx context.Context, within time.Duration) error {
			_, err := engine.Run(ctx, "one", runtime.Command{Argv: []string{"testprog", "write", "/tmp/ran", "yes"}, Timeout: within})
			return err
		}
		silent := func(what string, err error) {
			t.Helper()
			if p := problem.Of(err); p == nil || p.Reason != problem.ContainerdTimeout || p.Hint == "" || errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v, want %s", what, err, problem.ContainerdTimeout)
			}
		}
		goOn := d.Hang(t)
		silent("run", leaves(t.Context(), time.Second))
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		silent("run for a caller with as little time", leaves(short, time.Second))
		cancel()
		left, cancel := context.WithCancel(t.Context())
		time.AfterFunc(500*time.Millisecond, cancel)
		if err := leaves(left, time.Hour); !errors.Is(err, context.Canceled) || problem.Of(err).Reason == problem.ContainerdTimeout {
			t.Errorf("run for a caller that left: %v, want the context's error", err)
		}
		goOn()
		if err := syscall.Kill(shim, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		silent("run with a shim that hangs", leaves(t.Context(), time.Second))
		if err := syscall.Kill(shim, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if result, err := engine.Run(t.Context(), "one", runtime.Command{Argv: []string{"cat", "/tmp/ran"}}); err != nil || result.ExitCode != 1 {
			t.Errorf("what was not started ran: %+v, %v", result, err)
		}
		// One that was started is killed; that it had not ended by itself nobody has said.
		begun := make(chan error, 1)
		go func() {
			_, err := engine.Run(t.Context(), "one", runtime.Command{Argv: []string{"testprog", "hold"}, Timeout: 5 * time.Second})
			begun <- err
		}()
		runtimetest.Eventually(t, "the command to run", func() bool { return strings.Contains(run(t, engine, "ps"), "hold") })
		goOn = d.Hang(t)
		p := problem.Of(<-begun)
		if p.Reason != problem.CommandTimeout || problem.Of(p.Err).Reason != problem.ContainerdTimeout {
			t.Errorf("run of what had started: %v, want %s by %s", p, problem.CommandTimeout, problem.ContainerdTimeout)
		}
		goOn()
		if text := run(t, engine, "ps"); strings.Contains(text, "hold") {
			t.Errorf("left behind: %s", text)
		}
		if err := engine.Delete(t.Context(), "one"); err != nil {
			t.Errorf("delete: %v", err)
		}
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}
