//nolint:thelper // what both runs are tests, and a failure should name their lines
package containerd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/containerd"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// Containers live on when containerd is killed; an engine says that it is
// away, and finds everything when it is back.
func TestContainerdKilled(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine := open(t, d)
		log := filepath.Join(logs(d), "one.log")
		c := runtime.Container{ID: "one", Image: testutil.ImageName, Command: []string{"tick"}, NetNS: netNS(t, d)(), LogPath: log}
		pid := start(t, engine, c)
		gone := runtime.Container{ID: "two", Image: testutil.ImageName, NetNS: c.NetNS}
		gonePID := start(t, engine, gone)
		events, errs := engine.Events(t.Context())

		d.Kill(t)
		for range events {
		}
		if err := <-errs; !errdefs.IsUnavailable(err) {
			t.Errorf("events ended with %v, want Unavailable", err)
		}
		_, err := engine.List(t.Context())
		if p := problem.Of(err); p == nil || p.Reason != problem.ContainerdDown || p.Hint == "" {
			t.Errorf("list: %v, want CONTAINERD_UNAVAILABLE with a hint", err)
		}
		if err := engine.Delete(t.Context(), "one"); !errdefs.IsUnavailable(err) {
			t.Errorf("delete: %v, want Unavailable", err)
		}
		size := fileSize(t, log)
		runtimetest.Eventually(t, "the log grows without containerd", func() bool { return fileSize(t, log) > size })
		if err := syscall.Kill(gonePID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		d.Start(t)

		runtimetest.Eventually(t, "the engine has reconnected", func() bool { _, err := engine.Info(t.Context()); return err == nil })
		for _, e := range []*containerd.Engine{engine, open(t, d)} {
			if status, err := e.Status(t.Context(), "one"); err != nil || !status.Running || status.PID != pid {
				t.Errorf("status: %+v, %v, want pid %d", status, err, pid)
			}
			if got := run(t, e, "echo", "hello"); got != "hello" {
				t.Errorf("run: %q", got)
			}
			if status, err := e.Status(t.Context(), "two"); err != nil || status.Running {
				t.Errorf("status of what ended meanwhile: %+v, %v", status, err)
			}
		}
		if exit := stop(t, engine, "one"); exit.Code != 0 {
			t.Errorf("exit %+v", exit)
		}
		if _, err := engine.Start(t.Context(), c); err != nil {
			t.Errorf("start: %v", err)
		}
		if _, err := engine.Start(t.Context(), gone); err != nil {
			t.Errorf("start of what ended meanwhile: %v", err)
		}
		for _, id := range []string{"one", "two"} {
			if err := engine.Delete(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}

// A shim that is killed takes its container with it, and leaves nothing that
// Delete cannot remove, whether containerd saw it or was away.
func TestShimKilled(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine, ns := open(t, d), netNS(t, d)()
		for i, away := range []bool{false, true} {
			id := fmt.Sprintf("shim-%d", i)
			c := runtime.Container{ID: id, Image: testutil.ImageName, NetNS: ns, LogPath: filepath.Join(logs(d), id+".log")}
			pid := start(t, engine, c)
			shim := parent(t, pid)
			if away {
				d.Kill(t)
			}
			if err := syscall.Kill(shim, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if away {
				d.Start(t)
			}
			runtimetest.Eventually(t, "the container is seen to have ended", func() bool {
				status, err := engine.Status(t.Context(), id)
				return err == nil && !status.Running
			})
			if err := engine.Delete(t.Context(), id); err != nil {
				t.Error(err)
			}
			if left := leftovers(t, d); len(left) > 0 {
				t.Errorf("containerd away: %t: left behind: %q", away, left)
			}
		}
	})
}

// What crashed halfway through Create or Delete does not stand in the way.
func TestHalfMade(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine := open(t, d)
		c := runtime.Container{ID: "one", Image: testutil.ImageName, NetNS: netNS(t, d)(), LogPath: filepath.Join(logs(d), "one.log")}
		create := func() {
			t.Helper()
			if err := engine.Create(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		remove := func(what string) {
			t.Helper()
			if err := engine.Delete(t.Context(), "one"); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if left := leftovers(t, d); len(left) > 0 {
				t.Errorf("%s: left behind: %q", what, left)
			}
		}
		create()
		d.Ctr(t, "snapshots", "rm", "one")
		remove("record without snapshot")
		d.Ctr(t, "snapshots", "prepare", "one")
		remove("snapshot without record")
		d.Ctr(t, "snapshots", "prepare", "one")
		start(t, engine, c)
		if got := run(t, engine, "echo", "made on the image"); got != "made on the image" {
			t.Errorf("over a stale snapshot: %q", got)
		}
		remove("whole one")
		if err := os.MkdirAll(logs(d), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(c.LogPath, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		remove("log alone")
	})
}

// Many at once, ended in the middle by their callers, leave nothing.
func TestConcurrentAndCancelled(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine, ns := open(t, d), netNS(t, d)()
		var working sync.WaitGroup
		for i := range 12 {
			working.Go(func() {
				c := runtime.Container{
					ID: fmt.Sprintf("c%d", i), Image: testutil.ImageName, NetNS: ns, LogPath: filepath.Join(logs(d), fmt.Sprintf("c%d.log", i)),
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i*i)*2*time.Millisecond)
				defer cancel()
				if i == 11 {
					ctx = t.Context()
				}
				err := engine.Create(ctx, c)
				if err == nil {
					_, err = engine.Start(ctx, c)
				}
				if err != nil && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s: %v", c.ID, err)
				}
				if err := engine.Delete(t.Context(), c.ID); err != nil {
					t.Error(err)
				}
			})
		}
		working.Wait()
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}

func fileSize(tb testing.TB, path string) int64 {
	tb.Helper()
	info, err := os.Stat(path)
	if err != nil {
		tb.Fatal(err)
	}
	return info.Size()
}

// parent is the pid of a process's parent.
func parent(tb testing.TB, pid int) int {
	tb.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		tb.Fatal(err)
	}
	var state string
	var ppid int
	if _, err := fmt.Sscanf(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), "%s %d", &state, &ppid); err != nil {
		tb.Fatal(err)
	}
	return ppid
}

func TestNewNeedsNoContainerd(t *testing.T) {
	engine, err := containerd.New(containerd.Config{Address: filepath.Join(t.TempDir(), "absent.sock")})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	_, err = engine.Info(t.Context())
	if p := problem.Of(err); p.Reason != problem.ContainerdDown || p.Hint == "" {
		t.Errorf("info: %v, want CONTAINERD_UNAVAILABLE with a hint", err)
	}
	if _, err := containerd.New(containerd.Config{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no address: %v, want InvalidArgument", err)
	}
}
