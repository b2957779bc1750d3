package e2e_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/store"
)

// care is what the tests read of how an environment is kept alive.
type care struct {
	State        string    `json:"state"`
	Address      string    `json:"address"`
	Health       string    `json:"health"`
	HealthDetail string    `json:"healthDetail"`
	RestartCount int       `json:"restartCount"`
	RestartAt    time.Time `json:"restartAt"`
	StartedAt    time.Time `json:"startedAt"`
	Operation    string    `json:"operation"`
}

func (n *Node) care(tb testing.TB, name string) care {
	tb.Helper()
	var c care
	if err := json.Unmarshal([]byte(n.Must(tb, "env", "get", name, "-o", "json")), &c); err != nil {
		tb.Fatal(err)
	}
	return c
}

// events are the kinds of what happened, oldest first.
func (n *Node) events(tb testing.TB, name string) (kinds []string) {
	tb.Helper()
	var list struct {
		Events []struct {
			Kind string `json:"kind"`
		} `json:"events"`
	}
	if err := json.Unmarshal([]byte(n.Must(tb, "env", "events", name, "-o", "json")), &list); err != nil {
		tb.Fatal(err)
	}
	for _, event := range slices.Backward(list.Events) {
		kinds = append(kinds, event.Kind)
	}
	return kinds
}

const running = "ENVIRONMENT_STATE_RUNNING"

// A process that ends at once is started again and again, and given up.
func TestCrashLoop(t *testing.T) {
	n := Start(t, usual, "")
	n.CLI(t, "env", "create", "loop", "--image", n.Image, "--restart", "on-failure:3", "--", "exit", "3")
	Eventually(t, "it to give up", func() bool {
		c := n.care(t, "loop")
		return c.State == "ENVIRONMENT_STATE_ERROR" && c.RestartCount == 3 && c.RestartAt.IsZero() && c.Operation == ""
	})
	kinds := n.events(t, "loop")
	if count := strings.Count(strings.Join(kinds, " "), "restarting"); count != 3 || kinds[0] != "created" || kinds[len(kinds)-1] != "exited" {
		t.Errorf("events: %v", kinds)
	}
	if env := n.Get(t, "loop"); env.Exit == nil || env.Exit.Code != 3 {
		t.Errorf("after giving up: %+v", env)
	}
	// It ends well: always starts it again, on-failure does not.
	n.CLI(t, "env", "create", "well", "--image", n.Image, "--restart", "on-failure", "--", "exit", "0")
	Eventually(t, "it to end", func() bool { return n.care(t, "well").State == "ENVIRONMENT_STATE_STOPPED" })
	n.CLI(t, "env", "create", "always", "--image", n.Image, "--restart", "always", "--", "exit", "0")
	Eventually(t, "three restarts", func() bool { return n.care(t, "always").RestartCount >= 3 })
	Eventually(t, "the stop", func() bool { _, _, code := n.CLI(t, "env", "stop", "always"); return code == 0 })
	stopped := n.care(t, "always")
	if stopped.State != "ENVIRONMENT_STATE_STOPPED" || !stopped.RestartAt.IsZero() {
		t.Errorf("stopped: %+v", stopped)
	}
}

func TestOutOfMemoryIsRestarted(t *testing.T) {
	n := Start(t, usual, "")
	n.CLI(t, "env", "create", "hungry", "--image", n.Image, "--memory", "40MiB", "--restart", "on-failure:1", "--", "eat-memory", "209715200")
	Eventually(t, "it to give up", func() bool {
		c := n.care(t, "hungry")
		return c.State == "ENVIRONMENT_STATE_ERROR" && c.RestartCount == 1 && c.RestartAt.IsZero() && c.Operation == ""
	})
	if env := n.Get(t, "hungry"); env.Exit == nil || !env.Exit.OOM {
		t.Errorf("exit: %+v", env.Exit)
	}
	if kinds := n.events(t, "hungry"); !slices.Contains(kinds, "oom") {
		t.Errorf("events: %v", kinds)
	}
}

// A child that the kernel kills is seen while the first process lives on: by
// watchers, in the environment, and in how the run ended.
func TestOutOfMemoryOfAChild(t *testing.T) {
	for _, kind := range either(t) {
		t.Run(string(kind), func(t *testing.T) {
			n := Start(t, kind, "")
			n.Must(t, "env", "create", "parent", "--image", n.Image, "--memory", "64MiB")
			id := n.Get(t, "parent").ID
			next := n.watch(t)
			for !next().Synced {
			}
			eat := []string{"testprog", "eat-memory", "268435456"}
			if _, errs, code := n.CLI(t, append([]string{"env", "exec", "--stdin=false", "parent", "--"}, eat...)...); code != 137 {
				t.Fatalf("eating memory: exit %d: %s", code, errs)
			}
			if m := next(); m.Environment == nil || m.Environment.OOMs != 1 || m.Environment.State != running {
				t.Errorf("told %+v, want one kill", m.Environment)
			}
			if out := n.Must(t, "env", "get", "parent"); !strings.Contains(out, "a process was killed") {
				t.Errorf("get: %s", out)
			}
			// Nobody hears of the next one.
			n.Stop(t, syscall.SIGKILL)
			n.Containerd.Ctr(t, append([]string{"task", "exec", "--detach", "--exec-id", "eater", id}, eat...)...)
			n.killsInCgroup(t, id, 2)
			n.Run(t)
			Eventually(t, "the second kill to be found", func() bool { return n.Get(t, "parent").OOMKills == 2 })
			n.Must(t, "env", "stop", "--grace", "0s", "parent")
			if env := n.Get(t, "parent"); env.OOMKills != 2 || env.Exit == nil || !env.Exit.OOM {
				t.Errorf("stopped: %+v %+v", env, env.Exit)
			}
			if kinds := n.events(t, "parent"); !slices.Equal(kinds, []string{"created", "started", "oom", "oom", "stopped"}) {
				t.Errorf("events: %v", kinds)
			}
			n.Must(t, "env", "start", "parent")
			if env := n.Get(t, "parent"); env.OOMKills != 0 || env.Exit != nil {
				t.Errorf("the next run: %+v", env)
			}
		})
	}
}

// killsInCgroup waits until the kernel has counted so many kills.
func (n *Node) killsInCgroup(tb testing.TB, id string, kills int) {
	tb.Helper()
	paths := []string{
		filepath.Join("/sys/fs/cgroup/memory", n.Containerd.Cgroup, id, "memory.oom_control"),
		filepath.Join("/sys/fs/cgroup", n.Containerd.Cgroup, id, "memory.events"),
	}
	Eventually(tb, "the kernel to kill", func() bool {
		for _, path := range paths {
			if text, err := os.ReadFile(path); err == nil && strings.Contains(string(text), fmt.Sprintf("oom_kill %d\n", kills)) {
				return true
			}
		}
		return false
	})
}

func TestHealth(t *testing.T) {
	n := Start(t, usual, "")
	quick := []string{"--health-interval", "200ms", "--health-timeout", "5s", "--health-retries", "2"}
	create := func(name string, args ...string) {
		t.Helper()
		n.Must(t, slices.Concat([]string{"env", "create", name, "--image", n.Image}, quick, args)...)
	}
	create("cmd", "--restart", "always", "--restart-unhealthy", "--health-cmd", "cat", "--health-cmd", "/ok", "--", "write", "/ok", "fine", ";", "sleep")
	create("tcp", "--health-tcp", "8080", "--", "banner", ":8080", "hello")
	create("shut", "--health-tcp", "8081", "--", "banner", ":8080", "hello")
	create("inside", "--health-tcp", "8080", "--", "banner", "127.0.0.1:8080", "hello")
	create("http", "--health-http", "8080/", "--", "serve", ":8080")
	for name, want := range map[string]string{
		"cmd": "HEALTH_HEALTHY", "tcp": "HEALTH_HEALTHY", "shut": "HEALTH_UNHEALTHY", "inside": "HEALTH_UNHEALTHY", "http": "HEALTH_HEALTHY",
	} {
		Eventually(t, name+" to be "+want, func() bool { return n.care(t, name).Health == want })
	}
	if out := n.Must(t, "env", "ls"); !strings.Contains(out, "running (healthy)") || !strings.Contains(out, "running (unhealthy)") {
		t.Errorf("ls: %s", out)
	}
	if c := n.care(t, "cmd"); c.HealthDetail != "fine" {
		t.Errorf("what the command said: %q", c.HealthDetail)
	}
	// Unhealthy, restarted, healthy.
	before := n.care(t, "cmd")
	n.Must(t, "env", "exec", "--stdin=false", "cmd", "--", "testprog", "rm", "/ok")
	Eventually(t, "the restart", func() bool {
		c := n.care(t, "cmd")
		return c.RestartCount == 1 && c.Health == "HEALTH_HEALTHY" && c.StartedAt.After(before.StartedAt)
	})
	if kinds := n.events(t, "cmd"); !slices.Equal(kinds, []string{"created", "started", "healthy", "unhealthy", "restarting", "stopped", "started", "healthy"}) {
		t.Errorf("events: %v", kinds)
	}
	// The next daemon checks anew.
	n.Stop(t, syscall.SIGKILL)
	n.Run(t)
	Eventually(t, "health after the daemon's death", func() bool {
		return n.care(t, "tcp").Health == "HEALTH_HEALTHY" && n.care(t, "shut").Health == "HEALTH_UNHEALTHY"
	})
}

// A containerd that hangs says nothing of the health of environments: none is
// restarted for it.
func TestHealthWhileContainerdHangs(t *testing.T) {
	n := Start(t, usual, "")
	// Two failures: a command that was being started when containerd stopped may be one.
	n.Must(t, "env", "create", "desk", "--image", n.Image, "--restart", "always", "--restart-unhealthy", "--health-cmd", "true",
		"--health-interval", "100ms", "--health-timeout", "1s", "--health-retries", "2")
	Eventually(t, "health", func() bool { return n.care(t, "desk").Health == "HEALTH_HEALTHY" })
	goOn := n.Containerd.Hang(t)
	time.Sleep(5 * time.Second) // for several checks
	if c := n.care(t, "desk"); c.Health != "HEALTH_HEALTHY" || !c.RestartAt.IsZero() {
		t.Errorf("while containerd hangs: %+v", c)
	}
	goOn()
	n.Must(t, "env", "exec", "--stdin=false", "desk", "--", "true")
	time.Sleep(2 * time.Second) // for what was found meanwhile
	if c := n.care(t, "desk"); c.Health != "HEALTH_HEALTHY" || c.RestartCount != 0 {
		t.Errorf("when containerd goes on: %+v", c)
	}
	if kinds := n.events(t, "desk"); !slices.Equal(kinds, []string{"created", "started", "healthy"}) {
		t.Errorf("events: %v", kinds)
	}
}

// The daemon is killed between an exit and the restart, at several moments.
func TestKillBeforeRestart(t *testing.T) {
	n := Start(t, usual, "")
	n.Must(t, "env", "create", "web", "--image", n.Image, "--restart", "always", "-p", "custom:8080", "--", "banner", ":8080", "hello")
	env := n.Get(t, "web")
	for i := range 5 {
		n.Containerd.Ctr(t, "task", "kill", "--signal", "SIGKILL", env.ID)
		time.Sleep(time.Duration(i) * 60 * time.Millisecond)
		n.Stop(t, syscall.SIGKILL)
		n.Run(t)
		Eventually(t, "it to run again", func() bool {
			c := n.care(t, "web")
			answer, err := n.Ask(t, env.Ports[0].External)
			return c.State == running && c.RestartCount == i+1 && c.Operation == "" && err == nil && strings.HasPrefix(answer, "hello")
		})
	}
}

// All tasks, namespaces, mounts and rules are gone, and /run is empty: what
// ran comes back with its address, ports and files.
func TestReboot(t *testing.T) {
	for _, kind := range either(t) {
		t.Run(string(kind), func(t *testing.T) {
			n := Start(t, kind, "")
			policies := []string{"no", "on-failure", "always", "unless-stopped", "stopped"}
			envs := map[string]Environment{}
			for _, name := range policies {
				policy := strings.Replace(name, "stopped", "always", 1)
				if name == "unless-stopped" {
					policy = name
				}
				n.Must(t, "env", "create", name, "--image", n.Image, "--restart", policy, "-p", "custom:8080", "-v", "data:/data", "--tmpfs", "/scratch",
					"--", "banner", ":8080", name)
				n.Must(t, "env", "exec", "--stdin=false", name, "--", "testprog", "write", "/kept", "by "+name)
				envs[name] = n.Get(t, name)
			}
			n.Must(t, "env", "stop", "stopped")
			n.Stop(t, syscall.SIGKILL)
			n.Containerd.Reboot(t, func() { n.wipe(t) })
			n.Run(t)
			for _, name := range policies[1:4] {
				before := envs[name]
				Eventually(t, name+" to come back", func() bool {
					answer, err := n.Ask(t, before.Ports[0].External)
					return err == nil && strings.HasPrefix(answer, name) && n.care(t, name).State == running
				})
				after := n.Get(t, name)
				if after.Address != before.Address || after.Ports[0].External != before.Ports[0].External {
					t.Errorf("%s was %+v and came back as %+v", name, before, after)
				}
				if out := n.Must(t, "env", "exec", "--stdin=false", name, "--", "cat", "/kept"); out != "by "+name {
					t.Errorf("files of %s: %q", name, out)
				}
			}
			if env := n.Get(t, "no"); env.State != "ENVIRONMENT_STATE_ERROR" || env.Problem == nil || env.Problem.Reason != "HOST_REBOOTED" {
				t.Errorf("without a policy: %+v %+v", env, env.Problem)
			}
			if env := n.Get(t, "stopped"); env.State != "ENVIRONMENT_STATE_STOPPED" {
				t.Errorf("what somebody stopped: %+v", env)
			}
			for _, name := range []string{"no", "stopped"} {
				n.Must(t, "env", "start", name)
				if out := n.Must(t, "env", "exec", "--stdin=false", name, "--", "cat", "/kept"); out != "by "+name {
					t.Errorf("files of %s: %q", name, out)
				}
			}
		})
	}
}

// wipe does to the node's part of the host what a reboot does.
func (n *Node) wipe(tb testing.TB) {
	tb.Helper()
	n.Sh(tb, "for link in $(ip -o link | grep -o 'rgpu-[^:@ ]*' | sort -u); do ip link del $link 2>/dev/null || true; done; iptables-save | grep -o '^\\*.*' | tr -d '*' | while read table; do iptables -t $table -F; iptables -t $table -X; done")
	entries, err := os.ReadDir(filepath.Join(n.Dir, "run"))
	if err != nil {
		tb.Fatal(err)
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(n.Dir, "run", entry.Name())); err != nil {
			tb.Error(err)
		}
	}
	db, err := store.Open(tb.Context(), filepath.Join(n.Dir, "state", "node.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	// The kernel of this test goes on: the node is told of another boot before.
	if err := db.SetMeta(tb.Context(), "boot.id", "the boot before"); err != nil {
		tb.Error(err)
	}
	if err := db.Close(); err != nil {
		tb.Error(err)
	}
}
