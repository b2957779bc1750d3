package e2e_test

import (
	"encoding/json"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// snapshot is what the tests read of one.
type snapshot struct {
	ID      string `json:"id"`
	EnvID   string `json:"environment"`
	Name    string `json:"name"`
	State   string `json:"state"`
	Parent  string `json:"parent"`
	Running bool   `json:"takenRunning"`
	Size    int64  `json:"sizeBytes,string"`
}

func (n *Node) snapshots(tb testing.TB, args ...string) []snapshot {
	tb.Helper()
	var list struct {
		Snapshots []snapshot `json:"snapshots"`
	}
	if err := json.Unmarshal([]byte(n.Must(tb, append([]string{"env", "snapshot", "ls", "-o", "json"}, args...)...)), &list); err != nil {
		tb.Fatal(err)
	}
	return list.Snapshots
}

func (n *Node) run(tb testing.TB, env string, args ...string) string {
	tb.Helper()
	return strings.TrimSpace(n.Must(tb, append([]string{"env", "exec", "--stdin=false", env, "--", "testprog"}, args...)...))
}

// task is pid and state of an environment's first process, as containerd has them.
func (n *Node) task(tb testing.TB, id string) (pid, state string) {
	tb.Helper()
	for line := range strings.Lines(n.Containerd.Ctr(tb, "tasks", "ls")) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == id {
			return fields[1], fields[2]
		}
	}
	return "", ""
}

// What somebody installs is kept: by a snapshot while it runs and while it does
// not, through a roll back, in clones, and in an image.
func TestSnapshots(t *testing.T) {
	for _, kind := range either(t) {
		t.Run(string(kind), func(t *testing.T) {
			n := Start(t, kind, "")
			installed := func(env, want string) {
				t.Helper()
				if got := n.run(t, env, "cat", "/usr/installed"); got != want {
					t.Errorf("%s has %q, want %q", env, got, want)
				}
			}
			fails := func(code int, text string, args ...string) {
				t.Helper()
				if _, errs, got := n.CLI(t, args...); got != code || !strings.Contains(errs, text) {
					t.Errorf("%s: exit %d, want %d and %s\n%s", strings.Join(args, " "), got, code, text, errs)
				}
			}
			n.Must(t, "env", "create", "desk", "--image", n.Image, "-p", "ssh", "-e", "COLOUR=blue", "-v", "data:/data", "--", "sleep")
			pid, _ := n.task(t, n.Get(t, "desk").ID)
			if err := os.Mkdir("/proc/"+pid+"/root/usr", 0o755); err != nil {
				t.Fatal(err)
			}
			n.run(t, "desk", "write", "/usr/installed", "one", ";", "write", "/data/file", "of the volume")
			n.Must(t, "env", "snapshot", "create", "desk", "--name", "first", "-l", "why=test")
			if env := n.Get(t, "desk"); env.State != "ENVIRONMENT_STATE_RUNNING" {
				t.Errorf("after a snapshot: %+v", env)
			}
			n.run(t, "desk", "write", "/usr/installed", "two")
			n.Must(t, "env", "stop", "desk")
			n.Must(t, "env", "snapshot", "create", "desk", "--name", "second")
			n.Must(t, "env", "start", "desk")
			installed("desk", "two")
			all := n.snapshots(t, "desk")
			if len(all) != 2 || !all[0].Running || all[1].Running || all[0].State != "SNAPSHOT_STATE_READY" || all[0].Size <= 0 || all[1].Parent != "" {
				t.Fatalf("snapshots: %+v", all)
			}
			if labelled := n.snapshots(t, "-l", "why=test"); len(labelled) != 1 || labelled[0].ID != all[0].ID {
				t.Errorf("by label: %+v", labelled)
			}
			fails(4, "exists", "env", "create", "desk", "--from-snapshot", "desk/first")
			fails(4, "runs", "env", "snapshot", "rollback", "desk", "first")
			fails(3, "there is no snapshot", "env", "snapshot", "get", "desk/third")
			fails(2, "is not a name for a snapshot", "env", "snapshot", "create", "desk", "--name", "No Name")
			fails(2, "both given", "env", "create", "x", "--image", "y", "--from-snapshot", "desk/first")

			n.run(t, "desk", "rm", "/usr/installed")
			n.Must(t, "env", "snapshot", "rollback", "desk", "second", "--force", "--grace", "0s")
			installed("desk", "two")
			n.Must(t, "env", "snapshot", "rollback", "desk", "first", "--force", "--grace", "0s")
			installed("desk", "one")
			if got := n.run(t, "desk", "cat", "/data/file"); got != "of the volume" {
				t.Errorf("the volume was rolled back: %q", got)
			}

			n.Must(t, "env", "create", "made", "--from-snapshot", "desk/second", "--", "sleep")
			installed("made", "two")
			n.Must(t, "env", "clone", "desk", "clone")
			installed("clone", "one")
			clone, desk := n.Get(t, "clone"), n.Get(t, "desk")
			if clone.Address == desk.Address || len(clone.Ports) != 1 || clone.Ports[0].External == desk.Ports[0].External {
				t.Errorf("clone %+v of %+v", clone, desk)
			}
			if env := n.run(t, "clone", "env"); !strings.Contains(env, "COLOUR=blue") {
				t.Errorf("variables of the clone: %s", env)
			}
			n.Must(t, "env", "clone", "desk/second", "older")
			installed("older", "two")
			if left := n.snapshots(t); len(left) != 2 {
				t.Errorf("a clone leaves snapshots: %+v", left)
			}

			if out := n.Must(t, "env", "snapshot", "export", "desk/second"); strings.TrimSpace(out) != "docker.io/remotegpu/snapshot/desk:second" {
				t.Errorf("exported as %s", out)
			}
			n.Must(t, "env", "rm", "--force", "--grace", "0s", "desk", "made", "clone", "older")
			n.Must(t, "env", "create", "exported", "--image", "remotegpu/snapshot/desk:second")
			installed("exported", "two")
			// They outlive their environment, and go when they are deleted.
			n.Must(t, "env", "create", "late", "--from-snapshot", all[0].ID)
			installed("late", "one")
			second := desk.ID + "/second"
			if out := n.Must(t, "env", "snapshot", "rm", all[0].ID, second, "-o", "json"); !strings.Contains(out, all[0].ID+"\"}\n") || !strings.Contains(out, second+"\"}\n") {
				t.Errorf("rm: %s", out)
			}
			installed("late", "one")
			if left := n.snapshots(t); len(left) != 0 {
				t.Errorf("snapshots: %+v", left)
			}
			if out := n.Containerd.Ctr(t, "snapshots", "ls"); strings.Contains(out, all[1].ID) {
				t.Errorf("a deleted snapshot that nothing builds on is there:\n%s", out)
			}
		})
	}
}

// The daemon is killed while an environment is paused for a snapshot: the next
// one lets it go on, and finishes the snapshot.
func TestKillDuringSnapshot(t *testing.T) {
	n := Start(t, usual, "")
	n.Must(t, "env", "create", "desk", "--image", n.Image, "--", "tick")
	id := n.Get(t, "desk").ID
	pid, _ := n.task(t, id)
	if err := os.WriteFile("/proc/"+pid+"/root/large", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate("/proc/"+pid+"/root/large", 384<<20); err != nil {
		t.Fatal(err)
	}
	n.Must(t, "env", "snapshot", "create", "desk", "--name", "first", "--no-wait")
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); {
		if _, state := n.task(t, id); state == "PAUSED" || n.snapshots(t)[0].State == "SNAPSHOT_STATE_READY" {
			break
		}
	}
	n.Stop(t, syscall.SIGKILL)
	_, state := n.task(t, id)
	t.Logf("killed while the environment is %s", state)
	n.Run(t)
	Eventually(t, "the snapshot", func() bool {
		all := n.snapshots(t)
		return len(all) == 1 && all[0].State == "SNAPSHOT_STATE_READY"
	})
	if _, state := n.task(t, id); state != "RUNNING" {
		t.Errorf("the environment is %s", state)
	}
	n.Must(t, "env", "create", "copy", "--from-snapshot", "desk/first", "--", "sleep")
	pid, _ = n.task(t, n.Get(t, "copy").ID)
	if info, err := os.Stat("/proc/" + pid + "/root/large"); err != nil || info.Size() != 384<<20 {
		t.Errorf("the copy: %v, %v", info, err)
	}
	n.Must(t, "env", "snapshot", "rm", "desk/first")
}
