//nolint:thelper // these are tests, and a failure should name their lines
package runtimetest

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/runtime"
)

func (setup EngineSetup) pauseTests() []engineTest {
	tests := []engineTest{
		{"Pause", testPause},
		{"PauseStopped", testPauseStopped},
		{"PauseDeleted", testPauseDeleted},
		{"PauseRefuses", testPauseRefuses},
		{"PauseReopen", testPauseReopen},
		{"PauseStale", testPauseStale},
	}
	if setup.Silence != nil {
		tests = append(tests, engineTest{"PauseSilent", testPauseSilent})
	}
	return tests
}

func (s *suite) pause(t *testing.T, c runtime.Container) {
	t.Helper()
	if err := s.Engine.Pause(t.Context(), c.ID); err != nil {
		t.Fatalf("pause: %v", err)
	}
	if status := s.status(t, c.ID); !status.Running || !status.Paused {
		t.Fatalf("status once paused: %+v", status)
	}
}

func (s *suite) resume(t *testing.T, c runtime.Container) {
	t.Helper()
	if err := s.Engine.Resume(t.Context(), c.ID); err != nil {
		t.Fatalf("resume: %v", err)
	}
	if status := s.status(t, c.ID); !status.Running || status.Paused {
		t.Fatalf("status once resumed: %+v", status)
	}
}

func logSize(t *testing.T, c runtime.Container) int64 {
	t.Helper()
	info, err := os.Stat(c.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func testPause(t *testing.T, s *suite) {
	events := s.events(t)
	c := s.start(t, s.container("tick"))
	pid := s.status(t, c.ID).PID
	for range 2 {
		s.pause(t, c)
	}
	await(t, events, c.ID, runtime.EventPaused)
	if s.Logs != "" { // what was written before may still be on its way
		Eventually(t, "it stands still", func() bool {
			before := logSize(t, c)
			time.Sleep(300 * time.Millisecond)
			return logSize(t, c) == before
		})
	}
	list, err := s.Engine.List(t.Context())
	if err != nil || len(list) != 1 || !list[0].Running || !list[0].Paused || list[0].PID != pid {
		t.Errorf("List() = %+v, %v, want it paused with pid %d", list, err, pid)
	}
	if _, err := s.Engine.Run(t.Context(), c.ID, runtime.Command{Argv: []string{"true"}}); !errors.Is(err, runtime.ErrPaused) {
		t.Errorf("run while paused: %v, want ErrPaused", err)
	}
	input := strings.NewReader("kept")
	x := s.exec(t, c.ID, input, nil, "cat")
	x.wait(t)
	if !errors.Is(x.err, runtime.ErrPaused) || input.Len() != len("kept") {
		t.Errorf("exec while paused: %v with %d bytes of its input left, want ErrPaused and all", x.err, input.Len())
	}
	if _, err := s.Engine.Start(t.Context(), c); !errdefs.IsAlreadyExists(err) {
		t.Errorf("start while paused: %v, want AlreadyExists", err)
	}
	for range 2 {
		s.resume(t, c)
	}
	await(t, events, c.ID, runtime.EventResumed)
	if s.Logs != "" {
		before := logSize(t, c)
		Eventually(t, "it goes on", func() bool { return logSize(t, c) > before })
	}
	if status := s.status(t, c.ID); status.PID != pid {
		t.Errorf("once resumed: %+v, want pid %d", status, pid)
	}
	s.run(t, c.ID, "true")
}

func testPauseStopped(t *testing.T, s *suite) {
	c := s.start(t, s.container("tick"))
	if s.Logs != "" {
		s.logged(t, c, "tick 1")
	}
	s.pause(t, c)
	if exit, err := s.Engine.Stop(t.Context(), c.ID, time.Minute); err != nil || exit.Code != 0 || exit.Signal != 0 {
		t.Errorf("Stop() = %+v, %v, want that it heard SIGTERM", exit, err)
	}
	stubborn := s.start(t, s.container("ignore-term"))
	if s.Logs != "" {
		s.logged(t, stubborn, "ignoring")
	}
	s.pause(t, stubborn)
	if exit, err := s.Engine.Stop(t.Context(), stubborn.ID, 200*time.Millisecond); err != nil || exit.Code != 137 || exit.Signal != 9 {
		t.Errorf("Stop() = %+v, %v, want SIGKILL", exit, err)
	}
	for _, again := range []runtime.Container{c, stubborn} {
		if _, err := s.Engine.Start(t.Context(), again); err != nil {
			t.Errorf("start again: %v", err)
		}
		if status := s.status(t, again.ID); !status.Running || status.Paused {
			t.Errorf("started again: %+v", status)
		}
	}
}

func testPauseDeleted(t *testing.T, s *suite) {
	for _, args := range [][]string{{"ignore-term"}, {"sleep"}} {
		c := s.start(t, s.container(args...))
		s.pause(t, c)
		if err := s.Engine.Delete(t.Context(), c.ID); err != nil {
			t.Errorf("%q: delete: %v", args, err)
		}
		if left := s.Leftovers(); len(left) > 0 {
			t.Errorf("%q: left behind: %q", args, left)
		}
	}
}

func testPauseRefuses(t *testing.T, s *suite) {
	absent, made := s.container(), s.create(t, s.container())
	ended := s.start(t, s.container("exit", "3"))
	s.ended(t, ended.ID)
	for _, c := range []runtime.Container{absent, made, ended} {
		if err := s.Engine.Pause(t.Context(), c.ID); !errdefs.IsNotFound(err) {
			t.Errorf("pause %s: %v, want NotFound", c.ID, err)
		}
		if err := s.Engine.Resume(t.Context(), c.ID); !errdefs.IsNotFound(err) {
			t.Errorf("resume %s: %v, want NotFound", c.ID, err)
		}
	}
}

func testPauseReopen(t *testing.T, s *suite) {
	c := s.start(t, s.container())
	s.pause(t, c)
	s.Engine = s.Reopen()
	if status := s.status(t, c.ID); !status.Running || !status.Paused {
		t.Errorf("status: %+v, want it paused", status)
	}
	s.resume(t, c)
	s.run(t, c.ID, "true")
}

// A command without a caller in a paused container waits until that goes on.
func testPauseStale(t *testing.T, s *suite) {
	c := s.start(t, s.container())
	x := s.exec(t, c.ID, nil, nil, "testprog", "hold")
	x.wrote(t, "holding")
	s.pause(t, c)
	next, is := s.Reopen().(runtime.Executor)
	if !is {
		t.Fatal("no runtime.Executor")
	}
	if err := next.RemoveStale(t.Context()); err != nil {
		t.Errorf("remove stale while paused: %v", err)
	}
	select {
	case <-x.done:
		t.Errorf("a paused command ended: %+v %v", x.exit, x.err)
	default:
	}
	s.resume(t, c)
	if err := next.RemoveStale(t.Context()); err != nil {
		t.Errorf("remove stale: %v", err)
	}
	x.wait(t)
	if s.holding(t, c.ID) {
		t.Errorf("left behind: %s", s.run(t, c.ID, "ps"))
	}
}

// While nobody can say whether a container is paused, none of it is taken for granted.
func testPauseSilent(t *testing.T, s *suite) {
	for _, paused := range []bool{false, true} {
		c := s.start(t, s.container("tick"))
		if paused {
			s.pause(t, c)
		}
		answer := s.Silence(t, c.ID)
		if status, err := s.Engine.Status(t.Context(), c.ID); !errdefs.IsUnavailable(err) {
			t.Errorf("paused %t: Status() = %+v, %v, want Unavailable", paused, status, err)
		}
		do := s.Engine.Resume // which would find nothing to do in one that is not paused
		if !paused {
			do = s.Engine.Pause
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		err := do(ctx, c.ID)
		cancel()
		if !errdefs.IsUnavailable(err) {
			t.Errorf("paused %t: to change that: %v, want Unavailable", paused, err)
		}
		if _, err := s.Engine.Start(t.Context(), c); !errdefs.IsUnavailable(err) {
			t.Errorf("paused %t: start: %v, want Unavailable", paused, err)
		}
		answer()
		if status := s.status(t, c.ID); !status.Running || status.Paused != paused {
			t.Errorf("paused %t: once it answers: %+v", paused, status)
		}
		s.resume(t, c)
	}
}
