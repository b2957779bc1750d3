package e2e_test

import (
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// both are the distribution's containerd and containerd 2.x.
//
// usual is the containerd of the tests that run on one: 2.x, or what
// REMOTEGPU_CONTAINERD says. Then it is the only one of those that run on both.
var usual, both = func() (testutil.Need, []testutil.Need) {
	if kind := testutil.Need(os.Getenv("REMOTEGPU_CONTAINERD")); kind != "" && kind != bothKinds {
		return kind, []testutil.Need{kind}
	}
	return testutil.Containerd2, []testutil.Need{testutil.Containerd, testutil.Containerd2}
}()

// bothKinds is the value of REMOTEGPU_CONTAINERD that runs each main story on
// both.
const bothKinds = "both"

// either is both with that value, and else one of them, which follows from the
// test's name: the engine's own tests run on both, so the CI tier gives each
// containerd half of the stories.
func either(t *testing.T) []testutil.Need {
	t.Helper()
	if os.Getenv("REMOTEGPU_CONTAINERD") == bothKinds || len(both) == 1 {
		return both
	}
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(t.Name()))
	i := hash.Sum32() % 2
	return both[i : i+1]
}

func TestLifeOfAnEnvironment(t *testing.T) {
	for _, kind := range both {
		t.Run(string(kind), func(t *testing.T) {
			n := Start(t, kind, "")
			if err := os.WriteFile(filepath.Join(n.Shared, "hello"), []byte("from the host"), 0o644); err != nil {
				t.Fatal(err)
			}
			n.Must(t, "env", "create", "web", "--image", n.Image, "-p", "custom:8080", "-p", "ssh", "-e", "COLOUR=blue", "--memory", "128MiB",
				"--cpus", "1.5", "--pids", "100", "-v", n.Shared+":/shared:ro", "-v", "data:/data", "--tmpfs", "/scratch", "--hostname", "host1",
				"-l", "team=vision", "--", "banner", ":8080", "hello from web")
			env := n.Get(t, "web")
			if env.State != "ENVIRONMENT_STATE_RUNNING" || len(env.Ports) != 2 {
				t.Fatalf("created: %+v", env)
			}
			port := 0
			for _, mapping := range env.Ports {
				if mapping.Service == "SERVICE_TYPE_CUSTOM" {
					port = mapping.External
				}
			}
			if answer, err := n.Ask(t, port); err != nil || !strings.HasPrefix(answer, "hello from web") {
				t.Errorf("the published port answers %q %v", answer, err)
			}
			for _, test := range []struct {
				name string
				argv []string
				want string
			}{
				{"variables", []string{"testprog", "env"}, "COLOUR=blue"},
				{"the image's variables", []string{"testprog", "env"}, "IMAGE_VARIABLE=from image"},
				{"its host name", []string{"testprog", "hostname"}, "host1"},
				{"the name in hosts", []string{"cat", "/etc/hosts"}, env.Address + " host1"},
				{"its name servers", []string{"cat", "/etc/resolv.conf"}, "nameserver 10.88.0.1"},
				{"the bound directory", []string{"cat", "/shared/hello"}, "from the host"},
			} {
				if out := n.Must(t, append([]string{"env", "exec", "--stdin=false", "web", "--"}, test.argv...)...); !strings.Contains(out, test.want) {
					t.Errorf("%s: got %q, want %q", test.name, out, test.want)
				}
			}
			if _, errs, code := n.CLI(t, "env", "exec", "--stdin=false", "web", "--", "testprog", "write", "/shared/new", "x"); code == 0 {
				t.Error("a read-only mount was written to")
			} else if !strings.Contains(errs, "read-only") {
				t.Errorf("writing to a read-only mount: %s", errs)
			}
			n.Must(t, "env", "exec", "--stdin=false", "web", "--", "testprog", "write", "/kept", "in the writable layer")
			n.Must(t, "env", "exec", "--stdin=false", "web", "--", "testprog", "write", "/data/kept", "in the volume")

			n.Must(t, "env", "stop", "web")
			if stopped := n.Get(t, "web"); stopped.State != "ENVIRONMENT_STATE_STOPPED" || len(stopped.Ports) != 2 || stopped.Address != env.Address {
				t.Errorf("stopped: %+v", stopped)
			}
			if _, err := n.Ask(t, port); err == nil {
				t.Error("the port of a stopped environment answers")
			}
			n.Must(t, "env", "start", "web")
			n.Must(t, "env", "restart", "web")
			if out := n.Must(t, "env", "exec", "--stdin=false", "web", "--", "cat", "/kept", "/data/kept"); out != "in the writable layerin the volume" {
				t.Errorf("after a restart: %q", out)
			}
			Eventually(t, "the port to answer again", func() bool { answer, err := n.Ask(t, port); return err == nil && strings.HasPrefix(answer, "hello") })
			if out := n.Must(t, "env", "ls", "-l", "team=vision"); !strings.Contains(out, "web") {
				t.Errorf("ls: %s", out)
			}
			n.operationsByKind(t, env.ID)
			n.Must(t, "env", "rm", "--force", "web")
			if _, _, code := n.CLI(t, "env", "get", "web"); code != 3 {
				t.Errorf("getting a deleted environment: exit %d, want 3", code)
			}
			n.NothingLeft(t)
			// The volume keeps its content for the next environment.
			n.Must(t, "env", "create", "next", "--image", n.Image, "-v", "data:/data")
			if out := n.Must(t, "env", "exec", "--stdin=false", "next", "--", "cat", "/data/kept"); out != "in the volume" {
				t.Errorf("the volume: %q", out)
			}
		})
	}
}

// operationsByKind lists what was done to an environment that was created,
// stopped, started and restarted, by kind, with what was asked for.
func (n *Node) operationsByKind(tb testing.TB, id string) {
	tb.Helper()
	var list struct {
		Operations []struct {
			Kind      string            `json:"kind"`
			Arguments map[string]string `json:"arguments"`
		} `json:"operations"`
	}
	n.call(tb, "OperationService/ListOperations",
		fmt.Sprintf(`{"target": %q, "kinds": ["environment.create", "environment.stop"]}`, id), &list)
	if len(list.Operations) != 2 || list.Operations[0].Kind != "environment.stop" || list.Operations[1].Kind != "environment.create" {
		tb.Fatalf("creates and stops: %+v", list)
	}
	if got := list.Operations[0].Arguments; !maps.Equal(got, map[string]string{"timeout": "10s"}) {
		tb.Errorf("arguments of the stop: %v", got)
	}
	if got := list.Operations[1].Arguments; !maps.Equal(got, map[string]string{"name": "web", "image": "docker.io/remotegpu/test:latest"}) {
		tb.Errorf("arguments of the create: %v", got)
	}
	if out := n.Must(tb, "op", "ls", "--kind", "environment.restart"); !strings.Contains(out, "environment.restart") || strings.Contains(out, "environment.stop") {
		tb.Errorf("op ls: %s", out)
	}
}

// Environments outlive the daemon, whatever ends it (proof 3).
func TestEnvironmentsSurviveTheDaemon(t *testing.T) {
	for _, kind := range both {
		t.Run(string(kind), func(t *testing.T) {
			n := Start(t, kind, "")
			const count = 10
			ports := make([]int, count)
			for i := range count {
				name := fmt.Sprintf("env-%d", i)
				n.Must(t, "env", "create", name, "--image", n.Image, "-p", "custom:8080", "--", "banner", ":8080", name)
				ports[i] = n.Get(t, name).Ports[0].External
			}
			answers := func(when string) {
				t.Helper()
				for i, port := range ports {
					if answer, err := n.Ask(t, port); err != nil || !strings.HasPrefix(answer, fmt.Sprintf("env-%d ", i)) {
						t.Errorf("%s, port %d of env-%d answers %q %v", when, port, i, answer, err)
					}
				}
			}
			answers("before")
			n.Stop(t, syscall.SIGKILL)
			answers("while the daemon is dead")
			n.Run(t)
			answers("after the daemon came back")
			for _, env := range n.List(t) {
				if env.State != "ENVIRONMENT_STATE_RUNNING" {
					t.Errorf("%s is %s", env.Name, env.State)
				}
			}
			// It notices when one ends, of itself or by the hands of others.
			n.Containerd.Ctr(t, "task", "kill", "--signal", "SIGKILL", n.Get(t, "env-3").ID)
			Eventually(t, "the exit to be noticed", func() bool { return n.Get(t, "env-3").State == "ENVIRONMENT_STATE_ERROR" })
			if env := n.Get(t, "env-3"); env.Exit == nil || env.Exit.Signal != 9 || env.Problem == nil || env.Problem.Reason != "PROCESS_EXITED" {
				t.Errorf("env-3: %+v", env)
			}
			// One that ends while the daemon is away is found at its return.
			fourth := n.Get(t, "env-4").ID
			n.Stop(t, syscall.SIGTERM)
			n.Containerd.Ctr(t, "task", "kill", "--signal", "SIGKILL", fourth)
			n.Run(t)
			Eventually(t, "the exit to be found", func() bool { return n.Get(t, "env-4").State == "ENVIRONMENT_STATE_ERROR" })
			n.Must(t, "env", "start", "env-3")
			n.Must(t, "env", "start", "env-4")
			Eventually(t, "all ports to answer", func() bool {
				for i, port := range ports {
					if answer, err := n.Ask(t, port); err != nil || !strings.HasPrefix(answer, fmt.Sprintf("env-%d ", i)) {
						return false
					}
				}
				return true
			})
		})
	}
}
