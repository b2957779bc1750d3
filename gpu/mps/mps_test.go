package mps_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/mps"
	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
)

const uuid = "GPU-11111111-1111-1111-1111-111111111111"

// control stands for nvidia-cuda-mps-control: with -d it leaves a daemon behind
// that has its pid in the pipe directory and a mark in its /dev/shm; without, it
// answers while that lives. It writes down how it was called.
const control = `#!/bin/sh
log=%[1]s/calls
if [ "$1" = -d ]; then
	test -e %[1]s/broken && { echo no GPU >&2; exit 1; }
	test -e %[1]s/old && test "$2" && { echo unknown option >&2; exit 1; }
	echo "$2" > %[1]s/flag
	echo "start $CUDA_VISIBLE_DEVICES $CUDA_MPS_LOG_DIRECTORY ${SECRET-none}" >> $log
	touch /dev/shm/mark
	setsid sleep 1000 > /dev/null 2>&1 < /dev/null &
	echo $! > $CUDA_MPS_PIPE_DIRECTORY/pid
	exit 0
fi
read command
test -e %[1]s/hangs && exec sleep 1000
pid=$(cat $CUDA_MPS_PIPE_DIRECTORY/pid 2> /dev/null) && test -e /proc/$pid && ! grep -q ') Z ' /proc/$pid/stat || { echo "Cannot find MPS control daemon process" >&2; exit 1; }
case $command in
get_default_active_thread_percentage) echo 100.0 ;;
get_server_list) cat %[1]s/servers 2> /dev/null || true ;;
set_*) echo "$command" >> %[1]s/limits ;;
quit) echo quit >> $log; test -e %[1]s/stubborn || kill $pid ;;
esac
`

func share(gib uint64) gpu.Share {
	return gpu.Share{Enforcement: gpu.ByMPS, MemoryBytes: gib << 30, ComputePercent: int(gib * 10)}
}

func nobody(context.Context, string) (bool, error) { return false, nil }

func somebody(_ context.Context, asked string) (bool, error) { return asked == uuid, nil }

type setup struct {
	dir     string
	daemons *mps.Daemons
	modes   []string
}

func newSetup(t *testing.T) *setup {
	t.Helper()
	testutil.Require(t, testutil.Root)
	t.Setenv("SECRET", "1")
	s := &setup{dir: t.TempDir()}
	program := filepath.Join(s.dir, "control")
	if err := os.WriteFile(program, fmt.Appendf(nil, control, s.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	s.daemons = mps.New(mps.Config{
		Control: program, Dir: filepath.Join(s.dir, "mps"), Cgroup: s.cgroup(), ShmBytes: 1 << 20,
		SetExclusive: func(_ context.Context, uuid string, on bool) error {
			s.modes = append(s.modes, fmt.Sprint(uuid, " ", on))
			return nil
		},
	})
	t.Cleanup(func() {
		if err := s.daemons.Keep(context.WithoutCancel(t.Context()), nobody); err != nil {
			t.Errorf("end daemons: %v", err)
		}
		if pids, err := cgroup.Processes(filepath.Join(s.cgroup(), "mps-"+uuid)); err != nil || len(pids) > 0 {
			t.Errorf("processes %d are left, %v", pids, err)
		}
		if err := cgroup.End(context.WithoutCancel(t.Context()), s.cgroup(), 0); err != nil {
			t.Errorf("cgroups are left: %v", err)
		}
	})
	return s
}

// cgroup is above those of daemons; tests of several packages run at a time.
func (s *setup) cgroup() string {
	return "/" + strings.ReplaceAll(strings.TrimPrefix(s.dir, "/"), "/", "-")
}

// file makes a file that changes what the program does.
func (s *setup) file(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *setup) calls(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, "calls"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

func (s *setup) pid(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, "mps", uuid, "pipe", "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestDaemonIsStartedOnceAndEndedWithItsLastHolder(t *testing.T) {
	s := newSetup(t)
	client, err := s.daemons.Prepare(t.Context(), uuid, share(2))
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.daemons.Prepare(t.Context(), uuid, share(2))
	if err != nil || again != client {
		t.Errorf("the second time: %+v, %v", again, err)
	}
	// Another node's daemon, as after a restart of it, finds it.
	if err := mps.New(mps.Config{Control: filepath.Join(s.dir, "control"), Dir: filepath.Join(s.dir, "mps"), Cgroup: s.cgroup()}).Keep(t.Context(), somebody); err != nil {
		t.Error(err)
	}
	home := filepath.Join(s.dir, "mps", uuid)
	if want := []string{"start " + uuid + " " + filepath.Join(home, "log") + " none"}; !slices.Equal(s.calls(t), want) {
		t.Errorf("calls %q, want %q", s.calls(t), want)
	}
	if _, err := os.Stat(filepath.Join(client.Shm, "mark")); err != nil {
		t.Errorf("daemon and clients do not share memory: %v", err)
	}
	if _, err := os.Stat("/dev/shm/mark"); err == nil {
		t.Error("the daemon uses the host's /dev/shm")
	}
	if err := s.daemons.Keep(t.Context(), somebody); err != nil {
		t.Error(err)
	}
	if err := s.daemons.Keep(t.Context(), nobody); err != nil {
		t.Error(err)
	}
	if want := []string{uuid + " true", uuid + " false"}; !slices.Equal(s.modes, want) {
		t.Errorf("modes %q, want %q", s.modes, want)
	}
	if calls := s.calls(t); calls[len(calls)-1] != "quit" {
		t.Errorf("calls %q, want quit at the end", calls)
	}
	if _, err := os.Stat(home); !os.IsNotExist(err) {
		t.Errorf("left: %v", err)
	}
}

// Containers have the directories of a daemon that dies: the next one is there.
func TestDaemonThatDiedComesBackWhereItsClientsLook(t *testing.T) {
	s := newSetup(t)
	client, err := s.daemons.Prepare(t.Context(), uuid, share(2))
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(client.Pipe)
	if err != nil {
		t.Fatal(err)
	}
	pid := s.pid(t)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); alive(pid) && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	if err := s.daemons.Keep(t.Context(), somebody); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(client.Pipe)
	if err != nil || !os.SameFile(before, after) || s.pid(t) == pid {
		t.Errorf("the new daemon is elsewhere, or the old one: %v", err)
	}
}

// A server has one limit for all: that of the largest share, which nobody who
// comes later makes smaller.
func TestLimitsAreThoseOfTheLargestShare(t *testing.T) {
	s := newSetup(t)
	set := func() string {
		text, err := os.ReadFile(filepath.Join(s.dir, "limits"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		_ = os.Remove(filepath.Join(s.dir, "limits"))
		return strings.Join(strings.Split(strings.TrimSpace(string(text)), "\n"), "; ")
	}
	for _, step := range []struct {
		share gpu.Share
		want  string
	}{
		{share(2), "set_default_active_thread_percentage 20; set_default_device_pinned_mem_limit 0 2048M"},
		{share(2), ""},
		{share(1), ""},
		{share(4), "set_default_active_thread_percentage 40; set_default_device_pinned_mem_limit 0 4096M; " +
			"set_active_thread_percentage 4711 40; set_device_pinned_mem_limit 4711 0 4096M"},
		{gpu.Share{Enforcement: gpu.ByMPS, MemoryBytes: 1 << 30}, "set_default_active_thread_percentage 100; set_default_device_pinned_mem_limit 0 4096M; " +
			"set_active_thread_percentage 4711 100; set_device_pinned_mem_limit 4711 0 4096M"},
	} {
		if _, err := s.daemons.Prepare(t.Context(), uuid, step.share); err != nil {
			t.Fatal(err)
		}
		if got := set(); got != step.want {
			t.Errorf("for %+v: %q, want %q", step.share, got, step.want)
		}
		if err := os.WriteFile(filepath.Join(s.dir, "servers"), []byte("4711\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Kill(s.pid(t), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(filepath.Join(s.dir, "servers"))
	for deadline := time.Now().Add(10 * time.Second); alive(s.pid(t)) && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	if err := s.daemons.Keep(t.Context(), somebody); err != nil {
		t.Fatal(err)
	}
	if got, want := set(), "set_default_active_thread_percentage 100; set_default_device_pinned_mem_limit 0 4096M"; got != want {
		t.Errorf("after it died: %q, want %q", got, want)
	}
}

func TestDaemonThatDoesNotStartLeavesNothing(t *testing.T) {
	s := newSetup(t)
	if err := os.WriteFile(filepath.Join(s.dir, "broken"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.daemons.Prepare(t.Context(), uuid, share(2))
	if p := problem.Of(err); p == nil || p.Reason != problem.GPUUnavailable || p.Hint == "" || !strings.Contains(err.Error(), "no GPU") {
		t.Errorf("got %v, want GPU_UNAVAILABLE with what it said", err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "mps", uuid)); !os.IsNotExist(err) {
		t.Errorf("left: %v", err)
	}
	if want := []string{uuid + " true", uuid + " false"}; !slices.Equal(s.modes, want) {
		t.Errorf("modes %q, want %q", s.modes, want)
	}
	for _, bad := range []string{"", "..", "GPU-../x", "MIG-1"} {
		if _, err := s.daemons.Prepare(t.Context(), bad, share(2)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	_, err = mps.New(mps.Config{Control: "/nowhere/control", Dir: s.dir}).Prepare(t.Context(), uuid, share(2))
	if p := problem.Of(err); p == nil || p.Reason != problem.GPUToolkitMissing || p.Hint == "" {
		t.Errorf("without the program: %v", err)
	}
}

// A daemon outlives the node's service: it is in no cgroup of that one's. It
// serves users of all environments at a time where its driver can.
func TestDaemonIsInACgroupOfItsOwn(t *testing.T) {
	for _, old := range []bool{false, true} {
		s := newSetup(t)
		if old {
			s.file(t, "old")
		}
		if _, err := s.daemons.Prepare(t.Context(), uuid, share(2)); err != nil {
			t.Fatal(err)
		}
		if within, err := cgroup.Contains(s.pid(t), filepath.Join(s.cgroup(), "mps-"+uuid)); err != nil || !within {
			t.Errorf("in its cgroup: %v, %v", within, err)
		}
		flag, err := os.ReadFile(filepath.Join(s.dir, "flag"))
		if want := map[bool]string{false: "-multiuser-server", true: ""}[old]; err != nil || strings.TrimSpace(string(flag)) != want {
			t.Errorf("of an old driver %v, it was started with %q, %v, want %q", old, flag, err, want)
		}
	}
}

// One that hangs is there all the same: nothing is taken from its clients, and
// with the last of them it is ended.
func TestDaemonThatHangsIsKilledWithItsLastHolder(t *testing.T) {
	for _, how := range []string{"hangs", "stubborn"} {
		s := newSetup(t)
		if _, err := s.daemons.Prepare(t.Context(), uuid, share(2)); err != nil {
			t.Fatal(err)
		}
		pid := s.pid(t)
		s.file(t, how)
		daemons := mps.New(mps.Config{Control: filepath.Join(s.dir, "control"), Dir: filepath.Join(s.dir, "mps"), Cgroup: s.cgroup(), Timeout: time.Second})
		if how == "hangs" {
			_, err := daemons.Prepare(t.Context(), uuid, share(1))
			if p := problem.Of(err); p == nil || p.Reason != problem.GPUUnavailable || p.Hint == "" {
				t.Errorf("a new client: %v, want GPU_UNAVAILABLE", err)
			}
			if err := daemons.Settle(t.Context(), uuid, somebody); err == nil || !alive(pid) || s.pid(t) != pid {
				t.Errorf("it was ended under its clients: %v", err)
			}
		}
		if err := daemons.Settle(t.Context(), uuid, nobody); err != nil || alive(pid) {
			t.Errorf("%s: %v, and it lives: %v", how, err, alive(pid))
		}
		if _, err := os.Stat(filepath.Join(s.dir, "mps", uuid)); !os.IsNotExist(err) {
			t.Errorf("left: %v", err)
		}
	}
}

// Where MPS was turned off, nothing of before stays, whoever has a process: the
// GPU would be closed to all others.
func TestDaemonsAreEndedWhereNoneIsConfigured(t *testing.T) {
	s := newSetup(t)
	if _, err := s.daemons.Prepare(t.Context(), uuid, share(2)); err != nil {
		t.Fatal(err)
	}
	pid := s.pid(t)
	opened := false
	off := mps.New(mps.Config{Dir: filepath.Join(s.dir, "mps"), Cgroup: s.cgroup(), SetExclusive: func(_ context.Context, _ string, on bool) error {
		opened = !on
		return nil
	}})
	if err := off.Keep(t.Context(), somebody); err != nil || alive(pid) || !opened {
		t.Errorf("%v; it lives: %v; the GPU is open to all: %v", err, alive(pid), opened)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "mps", uuid)); !os.IsNotExist(err) {
		t.Errorf("left: %v", err)
	}
	if err := off.Settle(t.Context(), uuid, somebody); err != nil {
		t.Error(err)
	}
}

// Clients have the directories of a daemon that died: one that does not start for
// a new client leaves them to the next one, whose clients have its limits.
func TestDaemonThatDoesNotStartAgainLeavesItsClientsTheirDirectories(t *testing.T) {
	s := newSetup(t)
	client, err := s.daemons.Prepare(t.Context(), uuid, share(2))
	if err != nil {
		t.Fatal(err)
	}
	since, there := s.daemons.Since(uuid)
	if mine, err := s.daemons.Runs(uuid, s.pid(t)); !there || time.Since(since) > time.Hour || !mine || err != nil {
		t.Errorf("since %v, %v; it runs: %v, %v", since, there, mine, err)
	}
	if mine, err := s.daemons.Runs(uuid, os.Getpid()); mine || err != nil {
		t.Errorf("who asks is of it: %v, %v", mine, err)
	}
	before, err := os.Stat(client.Pipe)
	if err != nil {
		t.Fatal(err)
	}
	pid := s.pid(t)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); alive(pid) && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	s.file(t, "broken")
	for range 2 {
		if _, err := s.daemons.Prepare(t.Context(), uuid, share(1)); err == nil {
			t.Error("it starts")
		}
		if err := s.daemons.Keep(t.Context(), somebody); err == nil {
			t.Error("it is said to run")
		}
	}
	if err := os.Remove(filepath.Join(s.dir, "broken")); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(filepath.Join(s.dir, "limits"))
	if err := s.daemons.Keep(t.Context(), somebody); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(client.Pipe); err != nil || !os.SameFile(before, after) {
		t.Errorf("its clients have lost it: %v", err)
	}
	if again, there := s.daemons.Since(uuid); !there || !again.After(since) {
		t.Errorf("the next one is there since %v, %v; the first since %v", again, there, since)
	}
	limits := func() string {
		text, err := os.ReadFile(filepath.Join(s.dir, "limits"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		_ = os.Remove(filepath.Join(s.dir, "limits"))
		return string(text)
	}
	want := limits()
	if !strings.Contains(want, "mem_limit 0 2048M") {
		t.Errorf("the next one has the limits %q", want)
	}
	// The node's daemon died when it had started another and not limited it.
	if err := s.daemons.Keep(t.Context(), somebody); err != nil || limits() != "" {
		t.Errorf("limits are set that are set: %v", err)
	}
	name := filepath.Join(s.dir, "mps", uuid, "since")
	if err := os.WriteFile(name, []byte(time.Now().Format(time.RFC3339Nano)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.daemons.Keep(t.Context(), somebody); err != nil {
		t.Fatal(err)
	}
	if got := limits(); got != want {
		t.Errorf("one that was not limited has %q, want %q", got, want)
	}
	if err := s.daemons.Keep(t.Context(), nobody); err != nil {
		t.Error(err)
	}
	if _, there := s.daemons.Since(uuid); there {
		t.Error("one that was ended is there")
	}
}

// alive says whether a process lives; nobody may reap orphans here.
func alive(pid int) bool {
	state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(state), ") Z ")
}

func TestControlOfOthersIsNotRun(t *testing.T) {
	s := newSetup(t)
	program := filepath.Join(s.dir, "control")
	if err := os.Chown(program, 1000, 0); err != nil {
		t.Fatal(err)
	}
	_, err := s.daemons.Prepare(t.Context(), uuid, share(1))
	if p := problem.Of(err); p == nil || p.Reason != problem.GPUInjectionFailed || p.Hint == "" {
		t.Errorf("got %v", err)
	}
	if len(s.modes) > 0 {
		t.Errorf("the GPU was changed: %v", s.modes)
	}
	if err := os.Chown(program, 0, 0); err != nil {
		t.Fatal(err)
	}
}
