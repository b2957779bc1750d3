package e2e_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// soakTime is how long the soak lasts: REMOTEGPU_SOAK, or a minute, or ten
// where the run takes its time.
func soakTime(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("REMOTEGPU_SOAK")
	if text == "" && long() {
		return 10 * time.Minute
	} else if text == "" {
		return time.Minute
	}
	duration, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("REMOTEGPU_SOAK: %v", err)
	}
	return duration
}

// soak counts what came of the calls.
type soak struct {
	*faultNode
	tb       testing.TB
	mu       sync.Mutex
	outcomes map[string]int // by action and reason
	bad      []string
}

// Environments are created, started, stopped, paused, used and deleted at
// random from several sides, while processes, the daemon and containerd are
// killed. The daemon runs under the race detector. In the end everything can
// be deleted and nothing is left.
func TestSoak(t *testing.T) {
	t.Parallel() // beside the table of faults
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("REMOTEGPU_SOAK_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("REMOTEGPU_SOAK_SEED=%d", seed)
	duration := soakTime(t)
	s := &soak{faultNode: startTestDaemon(t, usual, "[operations]\nworkers = 6\n"), tb: t, outcomes: make(map[string]int)}
	end := time.Now().Add(duration)
	var workers sync.WaitGroup
	for i := range 4 {
		chance := rand.New(rand.NewPCG(seed, uint64(i)))
		workers.Go(func() {
			for time.Now().Before(end) {
				s.act(chance, fmt.Sprintf("soak-%d", chance.IntN(6)))
			}
		})
	}
	s.disturb(t, rand.New(rand.NewPCG(seed, 99)), end)
	workers.Wait()
	for _, key := range slices.Sorted(maps.Keys(s.outcomes)) {
		t.Logf("%6d  %s", s.outcomes[key], key)
	}
	// An answer that is a bug fails the long run: by chance alone a minute would
	// find one in a change that has nothing to do with it.
	for _, bad := range s.bad {
		if long() {
			t.Errorf("unexpected answer: %s", bad)
		} else {
			t.Logf("unexpected answer: %s", bad)
		}
	}
	if s.outcomes["CreateEnvironment ok"] == 0 || s.outcomes["DeleteEnvironment ok"] == 0 || s.outcomes["RunCommand ok"] == 0 {
		t.Error("next to nothing succeeded")
	}
	s.end(t)
}

// act does one random thing to an environment.
func (s *soak) act(chance *rand.Rand, name string) {
	body := map[string]any{"environment": name, "wait": "20s"}
	method := []string{
		"CreateEnvironment", "CreateEnvironment", "StartEnvironment", "StopEnvironment", "RestartEnvironment", "DeleteEnvironment",
		"RunCommand", "RunCommand", "RunCommand", "GetStats", "PauseEnvironment", "ResumeEnvironment",
	}[chance.IntN(12)]
	switch method {
	case "CreateEnvironment":
		body = map[string]any{"name": name, "wait": "20s", "spec": map[string]any{
			"image": s.Image, "command": []string{"banner", ":8080", name}, "ports": []any{map[string]any{"service_type": "SERVICE_TYPE_CUSTOM", "internal_port": 8080}},
			"mounts":  []any{map[string]any{"type": "MOUNT_TYPE_VOLUME", "source": "soak", "target": "/data"}},
			"restart": map[string]any{"mode": []string{"RESTART_MODE_NO", "RESTART_MODE_ALWAYS"}[chance.IntN(2)]},
		}}
	case "StopEnvironment", "RestartEnvironment":
		body["timeout"] = []string{"0s", "1s"}[chance.IntN(2)]
	case "DeleteEnvironment":
		body["force"], body["timeout"] = chance.IntN(4) > 0, "0s"
	case "RunCommand":
		body = map[string]any{"environment": name, "argv": [][]string{{"true"}, {"testprog", "exit", "3"}, {"cat", "/etc/hosts"}}[chance.IntN(3)], "timeout": "10s"}
	case "GetStats":
		body = map[string]any{"environments": []string{name}, "disk": chance.IntN(2) == 0}
	}
	if chance.IntN(10) == 0 {
		delete(body, "wait") // leave it behind
	}
	text, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	status, answer, err := s.ask("EnvironmentService/"+method, string(text), nil)
	s.note(method, status, answer, err)
	if err != nil {
		time.Sleep(100 * time.Millisecond) // the daemon is away
	}
}

// note counts an answer. The daemon's end breaks connections; anything else
// must have a reason, and none may be a bug.
func (s *soak) note(method string, status int, answer string, err error) {
	outcome := "ok"
	switch {
	case err != nil:
		outcome = "connection lost"
	case status != http.StatusOK:
		a := Answer{Status: status, Body: answer}
		a.readError(s.tb)
		outcome = a.Reason
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outcomes[method+" "+outcome]++
	if (outcome == "INTERNAL" || outcome == "") && len(s.bad) < 20 {
		s.bad = append(s.bad, fmt.Sprintf("%s: %d %s", method, status, answer))
	}
}

// disturb kills processes, the daemon and containerd until the end.
func (s *soak) disturb(t *testing.T, chance *rand.Rand, end time.Time) {
	t.Helper()
	for time.Now().Before(end) {
		time.Sleep(time.Duration(500+chance.IntN(4000)) * time.Millisecond)
		switch chance.IntN(6) {
		case 0, 1:
			s.killOne(chance)
		case 2:
			s.Stop(t, syscall.SIGKILL)
			s.Run(t)
		case 3:
			s.Stop(t, syscall.SIGTERM)
			s.Run(t)
		case 4:
			s.Containerd.Kill(t)
			time.Sleep(time.Duration(chance.IntN(3000)) * time.Millisecond)
			s.Containerd.Start(t)
		default: // both at once
			s.Containerd.Kill(t)
			s.Stop(t, syscall.SIGKILL)
			s.Containerd.Start(t)
			s.Run(t)
		}
	}
}

// killOne kills the first process of some environment.
func (s *soak) killOne(chance *rand.Rand) {
	groups, _ := filepath.Glob("/sys/fs/cgroup/pids" + s.Containerd.Cgroup + "/*/cgroup.procs")
	if len(groups) == 0 {
		groups, _ = filepath.Glob("/sys/fs/cgroup" + s.Containerd.Cgroup + "/*/cgroup.procs")
	}
	if len(groups) == 0 {
		return
	}
	text, _ := os.ReadFile(groups[chance.IntN(len(groups))])
	if fields := strings.Fields(string(text)); len(fields) > 0 {
		if pid, err := strconv.Atoi(fields[0]); err == nil && pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// end deletes everything and looks for what is left. A delete that was left
// behind may be done with an environment before this one asks for it.
func (s *soak) end(t *testing.T) {
	t.Helper()
	for _, env := range s.List(t) {
		body := `{"environment":"` + env.ID + `","force":true,"timeout":"0s","wait":"120s"}`
		status, text, err := s.ask("EnvironmentService/DeleteEnvironment", body, nil)
		answer := Answer{Status: status, Body: text}
		if err == nil {
			answer.readError(t)
		}
		if err != nil || status != http.StatusOK && answer.Reason != "ENV_NOT_FOUND" {
			t.Fatalf("delete of %s: %d %s %v", env.ID, status, text, err)
		}
	}
	Eventually(t, "operations to end", func() bool {
		return s.count(t, "SELECT count(*) FROM operations WHERE state IN ('queued', 'running')") == 0
	})
	for what, query := range heldByNobody {
		if n := s.count(t, query); n > 0 {
			t.Errorf("%d %s are held by nobody", n, what)
		}
	}
	s.NothingLeft(t)
}
