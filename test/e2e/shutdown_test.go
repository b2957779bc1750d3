package e2e_test

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// Before the host goes down processes are told to end, and what should run
// does so again at the next start.
func TestStopEnvironments(t *testing.T) {
	n := Start(t, usual, "")
	for _, name := range []string{"polite", "paused", "deaf"} {
		command := []string{"sleep", ";", "write", "/farewell", "by " + name, ";", "sleep"}
		if name == "deaf" {
			command = []string{"ignore-term"}
		}
		n.Must(t, append([]string{"env", "create", name, "--image", n.Image, "--restart", "always", "--"}, command...)...)
	}
	n.Must(t, "env", "create", "ended", "--image", n.Image, "--restart", "always")
	n.Must(t, "env", "stop", "ended")
	n.Must(t, "env", "pause", "paused")
	stop := func() (string, error) {
		out, err := n.command(t, testutil.Program("remotegpud"), "--config", n.config, "stop-environments", "--timeout", "2s").CombinedOutput()
		return string(out), err
	}
	if out, err := stop(); err == nil || !strings.Contains(out, "another remotegpud") {
		t.Errorf("while the daemon runs: %v\n%s", err, out)
	}
	n.Stop(t, syscall.SIGTERM)
	for range 2 { // the second finds nothing to do
		if out, err := stop(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if tasks := n.Containerd.Ctr(t, "tasks", "ls", "-q"); tasks != "" {
			t.Errorf("still there: %s", tasks)
		}
	}
	n.Run(t)
	for _, name := range []string{"polite", "deaf"} {
		Eventually(t, name+" to run again", func() bool { return n.care(t, name).State == running })
	}
	if out := n.Must(t, "env", "exec", "--stdin=false", "polite", "--", "cat", "/farewell"); out != "by polite" {
		t.Errorf("what it did when it was told to end: %q", out)
	}
	for _, name := range []string{"ended", "paused"} {
		if state := n.care(t, name).State; state == running {
			t.Errorf("what was %s: %s", name, state)
		}
	}
}

// Calls at work when the daemon is told to end are told so. A command line that
// waits goes on when it is back.
func TestCallsAtShutdown(t *testing.T) {
	n := Start(t, usual, "")
	for _, name := range []string{"called", "waited"} {
		n.Must(t, "env", "create", name, "--image", n.Image, "--", "ignore-term")
	}
	n.Must(t, "env", "create", "used", "--image", n.Image)
	answers, waited := make(chan Answer, 2), make(chan string, 1)
	for method, body := range map[string]string{
		"EnvironmentService/RunCommand":      `{"environment":"used","argv":["testprog","write","/begun","yes",";","sleep"],"timeout":"60s"}`,
		"EnvironmentService/StopEnvironment": `{"environment":"called","timeout":"10s","wait":"60s"}`,
	} {
		go func() { answers <- n.curl(t, method, body) }()
	}
	go func() {
		_, errs, code := n.CLI(t, "env", "stop", "--grace", "10s", "waited")
		waited <- fmt.Sprintf("%d\n%s", code, errs)
	}()
	Eventually(t, "both stops to be at work", func() bool { return strings.Count(n.Must(t, "op", "ls"), "running") == 2 })
	Eventually(t, "the command to run", func() bool {
		out, _, _ := n.CLI(t, "env", "exec", "--stdin=false", "used", "--", "cat", "/begun")
		return out == "yes"
	})
	n.Stop(t, syscall.SIGTERM)
	n.Run(t)
	for range cap(answers) {
		if a := <-answers; a.Status != http.StatusServiceUnavailable || a.Reason != "NODE_STOPPING" {
			t.Errorf("%d %s", a.Status, a.Body)
		}
	}
	if told := <-waited; !strings.HasPrefix(told, "0\n") {
		t.Errorf("the command line that waited: %s", told)
	}
	for _, name := range []string{"called", "waited"} {
		Eventually(t, name+" to be stopped", func() bool { return n.care(t, name).State == stateStopped })
	}
}
