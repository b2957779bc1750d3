//nolint:thelper // these are tests, and a failure should name their lines
package runtimetest

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

func updateTests() []engineTest {
	return []engineTest{
		{"Update", testUpdate},
		{"UpdateRefuses", testUpdateRefuses},
		{"Relabel", testRelabel},
	}
}

func testUpdate(t *testing.T, s *suite) {
	c := s.container("eat-memory", "67108864")
	s.start(t, c)
	if s.Logs != "" {
		s.logged(t, c, "ate")
	}
	pid := s.status(t, c.ID).PID
	update := func(memory int64) error {
		return s.Engine.Update(t.Context(), c.ID, runtime.Resources{MemoryBytes: memory, CPUMillis: 500, Pids: 64})
	}
	for _, memory := range []int64{512 << 20, 128 << 20, 128 << 20, 0} {
		if err := update(memory); err != nil {
			t.Errorf("%d bytes of memory: %v", memory, err)
		}
	}
	wantReason(t, "less memory than is in use", update(24<<20), problem.LimitsRefused)
	s.pause(t, c)
	if err := update(256 << 20); err != nil {
		t.Errorf("while paused: %v", err)
	}
	s.resume(t, c)
	if status := s.status(t, c.ID); !status.Running || status.PID != pid {
		t.Errorf("status: %+v, want pid %d", status, pid)
	}
	if exit, err := s.Engine.Stop(t.Context(), c.ID, time.Minute); err != nil || exit.Code != 0 || exit.OOMKilled {
		t.Errorf("Stop() = %+v, %v", exit, err)
	}
	if _, err := s.Engine.Start(t.Context(), c); err != nil {
		t.Errorf("start with the limits it was made with: %v", err)
	}
}

func testUpdateRefuses(t *testing.T, s *suite) {
	absent, made := s.container(), s.create(t, s.container())
	ended := s.start(t, s.container("exit", "3"))
	s.ended(t, ended.ID)
	for _, c := range []runtime.Container{absent, made, ended} {
		if err := s.Engine.Update(t.Context(), c.ID, c.Resources); !errdefs.IsNotFound(err) {
			t.Errorf("update %s: %v, want NotFound", c.ID, err)
		}
	}
	if err := s.Engine.Relabel(t.Context(), absent.ID, nil); !errdefs.IsNotFound(err) {
		t.Errorf("relabel %s: %v, want NotFound", absent.ID, err)
	}
}

func testRelabel(t *testing.T, s *suite) {
	c := s.start(t, s.container())
	for range 2 {
		if err := s.Engine.Relabel(t.Context(), c.ID, map[string]string{"colour": "blue"}); err != nil {
			t.Fatalf("relabel: %v", err)
		}
		if labels := s.status(t, c.ID).Labels; labels["colour"] != "blue" || labels["suite"] != "" {
			t.Errorf("labels: %v", labels)
		}
	}
	if list, err := s.Engine.List(t.Context()); err != nil || len(list) != 1 || !list[0].Running {
		t.Errorf("List() = %+v, %v, want that it is ours still", list, err)
	}
	if err := s.Engine.Delete(t.Context(), c.ID); err != nil {
		t.Errorf("delete: %v", err)
	}
	if left := s.Leftovers(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
