package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// "make down" counts and deletes environments of all projects, two of one name in
// two projects as well. While something runs that nobody would be left to delete it
// removes nothing.
func TestMakeDown(t *testing.T) {
	n := Start(t, usual, "")
	for _, args := range [][]string{{"env", "create", "demo"}, {"--project", "other", "env", "create", "demo"}, {"--project", "other", "env", "create", "tt"}} {
		n.Must(t, append(args, "--image", n.Image, "--", "sleep")...)
	}
	run := filepath.Join(n.Dir, "run")
	down := func(variables ...string) (string, error) {
		// In the node's network, as its own: down.sh enters none without netns.name.
		cmd := n.command(t, "bash", filepath.Join(testutil.Repository(), "deploy/dev/down.sh"))
		cmd.Env = append(cmd.Env, "REMOTEGPU_STATE_DIR="+n.Dir+"/state", "REMOTEGPU_RUN_DIR="+run, "REMOTEGPU_PROJECT=default")
		cmd.Env = append(cmd.Env, variables...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	ours := func() {
		t.Helper()
		config, err := os.ReadFile(n.config)
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"remotegpud.toml": string(config), "remotegpud.pid": fmt.Sprint(n.daemon.Process.Pid)} {
			if err := os.WriteFile(filepath.Join(run, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		n.Sh(t, fmt.Sprintf("sed 's/.*) //' /proc/%d/stat | cut -d' ' -f20 >%s/remotegpud.start", n.daemon.Process.Pid, run))
	}
	ours()
	if out, err := down(); err == nil || !strings.Contains(out, "besides demo") || !strings.Contains(out, "other") {
		t.Errorf("with environments of another project: %v\n%s", err, out)
	}
	if left := n.List(t); len(left) != 3 {
		t.Fatalf("it was refused, and left are %+v", left)
	}
	// Who cannot ask the node leaves all of it.
	if err := os.Remove(filepath.Join(run, "remotegpud.pid")); err != nil {
		t.Fatal(err)
	}
	n.Stop(t, os.Kill)
	containerd := n.Containerd.Address
	if err := os.Rename(containerd, containerd+".away"); err != nil {
		t.Fatal(err)
	}
	if out, err := down("FORCE=1"); err == nil || !strings.Contains(out, n.Containerd.Cgroup) {
		t.Errorf("without node and containerd: %v\n%s", err, out)
	}
	if err := os.Rename(containerd+".away", containerd); err != nil {
		t.Fatal(err)
	}
	n.Run(t)
	ours()
	if out, err := down("FORCE=1"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	<-n.waited
	n.stopped = true
	if tasks := n.Containerd.Ctr(t, "tasks", "ls", "-q"); tasks != "" {
		t.Errorf("still there: %s", tasks)
	}
	if _, err := os.Stat(run); !os.IsNotExist(err) {
		t.Errorf("the run directory: %v", err)
	}
}
