package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/cgroup"
)

// changed is what the tests read of an environment that was changed.
type changed struct {
	Labels        map[string]string `json:"labels"`
	Etag          string            `json:"etag"`
	State         string            `json:"state"`
	Operation     string            `json:"operation"`
	RestartNeeded []string          `json:"restartNeeded"`
	Spec          struct {
		Env       map[string]string `json:"env"`
		Hostname  string            `json:"hostname"`
		Resources struct {
			Memory string `json:"memoryBytes"`
			Pids   string `json:"pids"`
		} `json:"resources"`
	} `json:"spec"`
}

func (n *Node) changed(tb testing.TB, name string) changed {
	tb.Helper()
	var c changed
	if err := json.Unmarshal([]byte(n.Must(tb, "env", "get", name, "-o", "json")), &c); err != nil {
		tb.Fatal(err)
	}
	return c
}

// memoryLimit is what the kernel holds an environment to.
func (n *Node) memoryLimit(tb testing.TB, id string) string {
	tb.Helper()
	file := filepath.Join("/sys/fs/cgroup/memory", n.Containerd.Cgroup, id, "memory.limit_in_bytes")
	if cgroup.Version() == "v2" {
		file = filepath.Join("/sys/fs/cgroup", n.Containerd.Cgroup, id, "memory.max")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text))
}

// at is the host port that leads to a port inside, 0 without one.
func (e *Environment) at(internal int) int {
	for _, m := range e.Ports {
		if m.Internal == internal {
			return m.External
		}
	}
	return 0
}

func TestUpdateAndRename(t *testing.T) {
	for _, kind := range either(t) {
		t.Run(string(kind), func(t *testing.T) {
			n := Start(t, kind, "")
			n.Must(t, "env", "create", "web", "--image", n.Image, "--memory", "256MiB", "-p", "custom:8080", "-e", "COLOUR=blue", "-l", "team=vision",
				"--", "banner", ":8080", "hello")
			env := n.Get(t, "web")
			Eventually(t, "it to answer", func() bool { return n.greets(t, env) })
			n.Must(t, "env", "exec", "--stdin=false", "web", "--", "testprog", "write", "/kept", "in the layer")
			started := n.care(t, "web").StartedAt

			// In place: limits, labels and ports.
			n.Must(t, "env", "update", "web", "--memory", "512MiB", "--cpus", "2", "-l", "size=large", "-p", "15000:8080", "-p", "8081=more")
			got := n.Get(t, "web")
			if c := n.changed(t, "web"); c.Labels["team"] != "vision" || c.Labels["size"] != "large" || c.Spec.Resources.Memory != "536870912" || len(c.RestartNeeded) != 0 {
				t.Errorf("updated: %+v", c)
			}
			if limit := n.memoryLimit(t, env.ID); limit != "536870912" {
				t.Errorf("the kernel has %s", limit)
			}
			if len(got.Ports) != 3 || !n.greets(t, env) {
				t.Errorf("ports %+v; those there were must answer still", got.Ports)
			}
			if answer, err := n.Ask(t, 15000); err != nil || !strings.HasPrefix(answer, "hello") {
				t.Errorf("the new port answers %q %v", answer, err)
			}
			n.Must(t, "env", "update", "web", "--unpublish", "15000")
			if _, err := n.Ask(t, 15000); err == nil || strings.Contains(n.Sh(t, "iptables-save"), "15000") {
				t.Errorf("the port that was given back answers: %v", err)
			}
			var answer struct {
				RestartNeeded []string `json:"restartNeeded"`
			}
			n.call(t, "EnvironmentService/UpdateEnvironment", `{"environment":"web","labels":{"only":"this"},"spec":{"resources":{"pids":"77"}},"wait":"60s"}`, &answer)
			if c := n.changed(t, "web"); len(c.Labels) != 1 || c.Labels["only"] != "this" || c.Spec.Resources.Pids != "77" || c.Spec.Resources.Memory != "536870912" || len(answer.RestartNeeded) != 0 {
				t.Errorf("by what is set: %+v", c)
			}
			if c := n.care(t, "web"); !c.StartedAt.Equal(started) {
				t.Errorf("it was started again: %+v", c)
			}

			// At the next start: variables, mounts; its files, ports and address stay.
			if _, errs, _ := n.CLI(t, "env", "update", "web", "-e", "COLOUR=red"); !strings.Contains(errs, "spec.env") {
				t.Errorf("what needs a restart is not said: %s", errs)
			}
			colour := func() string {
				out := n.Must(t, "env", "exec", "--stdin=false", "web", "--", "testprog", "env")
				_, rest, _ := strings.Cut(out, "COLOUR=")
				return strings.SplitN(rest, "\n", 2)[0]
			}
			if c := n.changed(t, "web"); !slices.Equal(c.RestartNeeded, []string{"spec.env"}) || colour() != "blue" {
				t.Errorf("it waits: %+v, %s", c, colour())
			}
			n.Must(t, "env", "restart", "web")
			if c := n.changed(t, "web"); len(c.RestartNeeded) != 0 || colour() != "red" {
				t.Errorf("restarted: %+v, %s", c, colour())
			}
			n.Must(t, "env", "update", "web", "-v", "data:/data", "--now", "-t", "5s")
			n.Must(t, "env", "exec", "--stdin=false", "web", "--", "testprog", "write", "/data/file", "in the volume")
			n.Must(t, "env", "update", "web", "--unmount", "/data", "--now")
			if out := n.Must(t, "env", "exec", "--stdin=false", "web", "--", "testprog", "cat", "/kept"); out != "in the layer" {
				t.Errorf("its layer: %q", out)
			}
			if _, errs, code := n.CLI(t, "env", "exec", "--stdin=false", "web", "--", "testprog", "cat", "/data/file"); code == 0 {
				t.Errorf("the volume is mounted still: %s", errs)
			}
			if mounts, _ := filepath.Glob(filepath.Join(n.Dir, "run/mounts/*")); len(mounts) != 0 {
				t.Errorf("staged mounts are left: %v", mounts)
			}
			n.Must(t, "volume", "rm", "data")
			after := n.Get(t, "web")
			if after.Address != env.Address || after.at(8080) != env.at(8080) {
				t.Errorf("it was %+v and is %+v", env, after)
			}

			// A rename is seen by the container, and inside after a restart.
			n.Must(t, "env", "rename", "web", "site")
			if out := n.Containerd.Ctr(t, "container", "info", env.ID); !strings.Contains(out, `"remotegpu.dev/name": "site"`) {
				t.Errorf("labels of the container: %s", out)
			}
			n.Must(t, "env", "restart", "site")
			if out := n.Must(t, "env", "exec", "--stdin=false", "site", "--", "testprog", "hostname"); strings.TrimSpace(out) != "site" {
				t.Errorf("host name %q", out)
			}
			Eventually(t, "it to answer", func() bool { return n.greets(t, env) })

			// What the kernel refuses changes nothing.
			n.Must(t, "env", "create", "eater", "--image", n.Image, "--memory", "256MiB", "--", "eat-memory", "104857600")
			eater := n.Get(t, "eater").ID
			Eventually(t, "it to have eaten", func() bool { return strings.Contains(n.Must(t, "env", "logs", "eater"), "ate") })
			if _, errs, code := n.CLI(t, "env", "update", "eater", "--memory", "48MiB", "-l", "small=yes"); code == 0 || !strings.Contains(errs, "LIMITS_REFUSED") && !strings.Contains(errs, "in use") {
				t.Errorf("less memory than is in use: exit %d, %s", code, errs)
			}
			if c := n.changed(t, "eater"); c.Labels["small"] != "" || c.Spec.Resources.Memory != "268435456" || n.memoryLimit(t, eater) != "268435456" || c.State != running || c.Operation != "" {
				t.Errorf("refused: %+v, the kernel has %s", c, n.memoryLimit(t, eater))
			}
		})
	}
}

// The daemon is killed while it updates: afterwards the update is done, and
// store, kernel and ports say the same.
func TestKillDuringUpdate(t *testing.T) {
	n := Start(t, usual, "")
	n.Must(t, "env", "create", "web", "--image", n.Image, "-p", "custom:8080", "--", "banner", ":8080", "hello")
	id := n.Get(t, "web").ID
	for i := range 6 {
		memory, port := (200+i)<<20, 15000+i
		args := []string{"env", "update", "web", "--no-wait", "--memory", fmt.Sprint(memory), "-p", fmt.Sprintf("%d:8080", port), "-e", fmt.Sprintf("N=%d", i)}
		if i > 0 {
			args = append(args, "--unpublish", fmt.Sprint(port-1))
		}
		if i%2 == 1 {
			args = append(args, "--now")
		}
		n.Must(t, args...)
		time.Sleep(time.Duration(i) * 15 * time.Millisecond)
		n.Stop(t, syscall.SIGKILL)
		n.Run(t)
		Eventually(t, "the update to be done", func() bool { return n.changed(t, "web").Operation == "" })
		c := n.changed(t, "web")
		if limit := n.memoryLimit(t, id); c.Spec.Resources.Memory != fmt.Sprint(memory) || limit != c.Spec.Resources.Memory || c.Spec.Env["N"] != fmt.Sprint(i) || c.State != running ||
			len(c.RestartNeeded) != 1-i%2 {
			t.Errorf("killed after %d ms: %+v, the kernel has %s\n%s", i*15, c, limit, n.Containerd.Ctr(t, "task", "ls"))
		}
		Eventually(t, "the new port to answer", func() bool {
			answer, err := n.Ask(t, port)
			return err == nil && strings.HasPrefix(answer, "hello")
		})
		if rules := n.Sh(t, "iptables-save"); i > 0 && strings.Contains(rules, fmt.Sprint(port-1)) {
			t.Errorf("the former port %d is published:\n%s", port-1, rules)
		}
	}
}
