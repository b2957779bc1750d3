package e2e_test

import (
	"strings"
	"syscall"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// Before the host goes down processes are told to end, and what should run
// does so again at the next start.
func TestStopEnvironments(t *testing.T) {
	n := Start(t, testutil.Containerd2, "")
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
