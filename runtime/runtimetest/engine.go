//nolint:thelper // these are tests, and a failure should name their lines
package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// EngineSetup is an engine under test.
type EngineSetup struct {
	Engine runtime.Engine
	// Reopen returns a second engine on the same containers, as a daemon
	// that was killed and came back has it.
	Reopen func() runtime.Engine
	// Image is the full reference of the image of internal/testutil.
	Image string
	// Digest is the one that it has.
	Digest string
	// NetNS returns the path of a network namespace for a container.
	NetNS func() string
	// Logs is a directory for log files; Logs == "" when the engine keeps
	// none.
	Logs string
	// Pause pauses a container as another program would. nil: snapshots are
	// left out, which are tested where it is set.
	Pause func(t *testing.T, id string)
	// Silence keeps whatever serves a container from answering until answer is
	// called. nil: what needs it is left out, and tested where it is set.
	Silence func(t *testing.T, id string) (answer func())
	// Leftovers names everything that containers have left behind.
	Leftovers func() []string
}

// Engine is the conformance suite of runtime.Engine.
func Engine(t *testing.T, open func(t *testing.T) EngineSetup) {
	t.Helper()
	setup := open(t)
	for _, test := range []engineTest{
		{"Info", testInfo},
		{"Life", testLife},
		{"WritableLayerSurvivesRestart", testRestart},
		{"CreateRefuses", testCreateRefuses},
		{"AbsentIsNotFound", testAbsent},
		{"StartTwice", testStartTwice},
		{"StartBringsSpecUp", testStartUpdates},
		{"StartFailureLeavesNoTask", testStartFailure},
		{"ExitStatus", testExitStatus},
		{"StopOfIgnoringProcess", testStopIgnoring},
		{"StopCancelled", testStopCancelled},
		{"DeleteRunning", testDeleteRunning},
		{"Arguments", testArguments},
		{"Environment", testEnvironment},
		{"Users", testUsers},
		{"Run", testRun},
		{"RunLimits", testRunLimits},
		{"RunLeaves", testRunLeaves},
		{"RunRefuses", testRunRefuses},
		{"Events", testEvents},
		{"OutOfMemory", testOutOfMemory},
		{"OutOfMemoryOfAnother", testOutOfMemoryOfAnother},
		{"Reopen", testReopen},
		{"List", testList},
		{"Parts", testParts},
		{"DiskQuota", testDiskQuota},
	} {
		setup.run(t, test.name, test.run)
	}
	for _, test := range slices.Concat(execTests(), setup.pauseTests(), copyTests(), updateTests()) {
		setup.run(t, test.name, test.run)
	}
	if setup.Pause == nil {
		return
	}
	for _, test := range snapshotTests() {
		setup.run(t, test.name, test.run)
	}
}

type engineTest struct {
	name string
	run  func(t *testing.T, s *suite)
}

func (setup EngineSetup) run(t *testing.T, name string, test func(t *testing.T, s *suite)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		s := &suite{EngineSetup: setup, id: strings.ToLower(name)}
		defer s.cleanUp(t) // of a test that stops half way as well
		test(t, s)
	})
}

type suite struct {
	EngineSetup
	id   string
	made []string
}

func (s *suite) cleanUp(t *testing.T) {
	t.Helper()
	for _, id := range s.made {
		if err := s.Engine.Delete(t.Context(), id); err != nil {
			t.Errorf("delete %s: %v", id, err)
		}
	}
	if left := s.Leftovers(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// container is a container to make, running args of testprog.
func (s *suite) container(args ...string) runtime.Container {
	id := fmt.Sprintf("%s-%d", s.id, len(s.made))
	s.made = append(s.made, id)
	c := runtime.Container{
		ID: id, Image: s.Image, Command: args, Hostname: "host-" + id, NetNS: s.NetNS(),
		Resources: runtime.Resources{Pids: 128, ShmBytes: 8 << 20, MemoryBytes: 256 << 20},
		Labels:    map[string]string{"suite": s.id},
	}
	if s.Logs != "" {
		c.LogPath = filepath.Join(s.Logs, id+".log")
	}
	return c
}

func (s *suite) create(t *testing.T, c runtime.Container) runtime.Container {
	t.Helper()
	if err := s.Engine.Create(t.Context(), c); err != nil {
		t.Fatalf("create: %v", err)
	}
	return c
}

func (s *suite) start(t *testing.T, c runtime.Container) runtime.Container {
	t.Helper()
	s.create(t, c)
	pid, err := s.Engine.Start(t.Context(), c)
	if err != nil || pid <= 0 {
		t.Fatalf("start: pid %d, %v", pid, err)
	}
	return c
}

func (s *suite) status(t *testing.T, id string) runtime.ContainerStatus {
	t.Helper()
	status, err := s.Engine.Status(t.Context(), id)
	if err != nil {
		t.Fatalf("status of %s: %v", id, err)
	}
	return status
}

// ended waits until the first process has ended.
func (s *suite) ended(t *testing.T, id string) runtime.ContainerStatus {
	t.Helper()
	var status runtime.ContainerStatus
	Eventually(t, "the process of "+id+" ends", func() bool {
		status = s.status(t, id)
		return !status.Running
	})
	return status
}

// run runs testprog in a container and returns what it printed.
func (s *suite) run(t *testing.T, id string, args ...string) string {
	t.Helper()
	result, err := s.Engine.Run(t.Context(), id, runtime.Command{
		Argv: append([]string{"testprog"}, args...), Timeout: time.Minute, OutputLimit: 1 << 20,
	})
	if err != nil || result.ExitCode != 0 {
		t.Fatalf("run %q: exit %d, %v\n%s%s", args, result.ExitCode, err, result.Stdout, result.Stderr)
	}
	return strings.TrimSpace(string(result.Stdout))
}

// Eventually polls until holds is true, for a minute.
func Eventually(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("waited a minute in vain until %s", what)
		}
	}
}

func wantReason(t *testing.T, what string, err error, reason problem.Reason) {
	t.Helper()
	if p, ok := errors.AsType[*problem.Problem](err); !ok || p.Reason != reason {
		t.Errorf("%s: %v, want %s", what, err, reason)
	}
}

func testInfo(t *testing.T, s *suite) {
	info, err := s.Engine.Info(t.Context())
	if err != nil || info.Address == "" || info.Version == "" || info.Namespace == "" || info.Snapshotter == "" {
		t.Errorf("Info() = %+v, %v", info, err)
	}
}

func testLife(t *testing.T, s *suite) {
	c := s.create(t, s.container("echo", "hello from inside", ";", "stderr", "and from stderr", ";", "sleep"))
	if status := s.status(t, c.ID); status.Running || status.PID != 0 || status.Exit != nil || status.Image != s.Image || status.Labels["suite"] != s.id {
		t.Errorf("status once created: %+v", status)
	}
	if err := s.Engine.Create(t.Context(), c); !errdefs.IsAlreadyExists(err) {
		t.Errorf("create again: %v, want AlreadyExists", err)
	}
	pid, err := s.Engine.Start(t.Context(), c)
	if err != nil || pid <= 0 {
		t.Fatalf("start: pid %d, %v", pid, err)
	}
	if status := s.status(t, c.ID); !status.Running || status.PID != pid || status.Exit != nil {
		t.Errorf("status once started: %+v, want pid %d", status, pid)
	}
	if s.Logs != "" {
		Eventually(t, "the log is written", func() bool {
			return fileContains(c.LogPath, "hello from inside") && fileContains(c.LogPath, "and from stderr")
		})
		if info, err := os.Stat(c.LogPath); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("log file: %v, %v, want mode 0600", info.Mode(), err)
		}
	}
	before := time.Now().Add(-time.Second)
	exit, err := s.Engine.Stop(t.Context(), c.ID, 30*time.Second)
	if err != nil || exit.Code != 0 || exit.Signal != 0 || exit.OOMKilled || exit.At.Before(before) {
		t.Errorf("Stop() = %+v, %v, want a clean exit", exit, err)
	}
	if status := s.status(t, c.ID); status.Running || status.PID != 0 || status.Exit != nil {
		t.Errorf("status once stopped: %+v", status)
	}
	if err := s.Engine.Delete(t.Context(), c.ID); err != nil {
		t.Fatalf("delete: %v", err)
	}
	if err := s.Engine.Delete(t.Context(), c.ID); err != nil {
		t.Errorf("delete again: %v", err)
	}
	if _, err := s.Engine.Status(t.Context(), c.ID); !errdefs.IsNotFound(err) {
		t.Errorf("status once deleted: %v, want NotFound", err)
	}
	if s.Logs != "" {
		if _, err := os.Stat(c.LogPath); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the log is still there: %v", err)
		}
	}
}

func testRestart(t *testing.T, s *suite) {
	c := s.start(t, s.container("sleep"))
	for i := range 3 {
		if i == 0 {
			s.run(t, c.ID, "write", "/kept", "first run")
		}
		if got := s.run(t, c.ID, "cat", "/kept"); got != "first run" {
			t.Errorf("run %d: /kept is %q", i, got)
		}
		if _, err := s.Engine.Stop(t.Context(), c.ID, 30*time.Second); err != nil {
			t.Fatalf("stop: %v", err)
		}
		if _, err := s.Engine.Start(t.Context(), c); err != nil {
			t.Fatalf("start: %v", err)
		}
	}
}

func testCreateRefuses(t *testing.T, s *suite) {
	for name, test := range map[string]struct {
		change func(c *runtime.Container)
		reason problem.Reason
	}{
		"another image by now": {func(c *runtime.Container) { c.Digest = "sha256:" + strings.Repeat("0", 64) }, problem.ImageChanged},
		"no image":             {func(c *runtime.Container) { c.Image = "docker.io/remotegpu/absent:latest" }, problem.ImageNotFound},
		"no user":              {func(c *runtime.Container) { c.User = "nobody-here" }, problem.UserNotFound},
		"no group":             {func(c *runtime.Container) { c.User = "app:nobody-here" }, problem.UserNotFound},
	} {
		c := s.container()
		test.change(&c)
		err := s.Engine.Create(t.Context(), c)
		wantReason(t, name, err, test.reason)
		if _, err := s.Engine.Status(t.Context(), c.ID); !errdefs.IsNotFound(err) {
			t.Errorf("%s: status: %v, want NotFound", name, err)
		}
		if left := s.Leftovers(); len(left) > 0 {
			t.Errorf("%s: left behind: %q", name, left)
		}
	}
	same := s.container()
	same.Digest = s.Digest
	s.create(t, same)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Engine.Create(ctx, s.container()); err == nil {
		t.Error("create with a cancelled context worked")
	}
}

func testAbsent(t *testing.T, s *suite) {
	c := s.container()
	if _, err := s.Engine.Start(t.Context(), c); !errdefs.IsNotFound(err) {
		t.Errorf("start: %v, want NotFound", err)
	}
	if _, err := s.Engine.Stop(t.Context(), c.ID, time.Second); !errdefs.IsNotFound(err) {
		t.Errorf("stop: %v, want NotFound", err)
	}
	if _, err := s.Engine.Status(t.Context(), c.ID); !errdefs.IsNotFound(err) {
		t.Errorf("status: %v, want NotFound", err)
	}
	if _, err := s.Engine.Run(t.Context(), c.ID, runtime.Command{Argv: []string{"true"}}); !errdefs.IsNotFound(err) {
		t.Errorf("run: %v, want NotFound", err)
	}
	if err := s.Engine.Delete(t.Context(), c.ID); err != nil {
		t.Errorf("delete: %v", err)
	}
	s.create(t, c)
	if _, err := s.Engine.Stop(t.Context(), c.ID, time.Second); !errdefs.IsNotFound(err) {
		t.Errorf("stop without a task: %v, want NotFound", err)
	}
	if _, err := s.Engine.Run(t.Context(), c.ID, runtime.Command{Argv: []string{"true"}}); !errdefs.IsNotFound(err) {
		t.Errorf("run without a task: %v, want NotFound", err)
	}
}

func testStartTwice(t *testing.T, s *suite) {
	c := s.start(t, s.container())
	pid := s.status(t, c.ID).PID
	if _, err := s.Engine.Start(t.Context(), c); !errdefs.IsAlreadyExists(err) {
		t.Errorf("start again: %v, want AlreadyExists", err)
	}
	if status := s.status(t, c.ID); !status.Running || status.PID != pid {
		t.Errorf("status: %+v, want pid %d", status, pid)
	}
}

func testStartUpdates(t *testing.T, s *suite) {
	c := s.create(t, s.container())
	for _, value := range []string{"one", "two"} {
		c.Env = []string{"VALUE=" + value}
		c.Workdir = "/tmp"
		if _, err := s.Engine.Start(t.Context(), c); err != nil {
			t.Fatalf("start: %v", err)
		}
		if env := strings.Split(s.run(t, c.ID, "env"), "\n"); !slices.Contains(env, c.Env[0]) {
			t.Errorf("environment %q lacks %s", env, c.Env)
		}
		if dir := s.run(t, c.ID, "pwd"); dir != "/tmp" {
			t.Errorf("working directory %q", dir)
		}
		if _, err := s.Engine.Stop(t.Context(), c.ID, 30*time.Second); err != nil {
			t.Fatalf("stop: %v", err)
		}
	}
}

func testStartFailure(t *testing.T, s *suite) {
	c := s.container()
	c.Entrypoint = []string{"/bin/absent"}
	s.create(t, c)
	for range 2 {
		_, err := s.Engine.Start(t.Context(), c)
		wantReason(t, "start", err, problem.ProcessStartFailed)
		if !strings.Contains(fmt.Sprint(err), "/bin/absent") {
			t.Errorf("start: %v, want it to name the program", err)
		}
		if status := s.status(t, c.ID); status.Running || status.Exit != nil {
			t.Errorf("status: %+v", status)
		}
	}
	c.Entrypoint = nil
	if _, err := s.Engine.Start(t.Context(), c); err != nil {
		t.Errorf("start with a program that is there: %v", err)
	}
}

func fileContains(path, text string) bool {
	data, _ := os.ReadFile(path)
	return strings.Contains(string(data), text)
}
