package e2e_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// finding is what the tests read of one.
type finding struct {
	Kind        string `json:"kind"`
	Name        string `json:"name"`
	Environment string `json:"environment"`
	Action      string `json:"action"`
	Ours        bool   `json:"ours"`
	Done        bool   `json:"done"`
}

func (n *Node) reconcile(tb testing.TB, args ...string) []finding {
	tb.Helper()
	var answer struct {
		Findings []finding `json:"findings"`
	}
	if err := json.Unmarshal([]byte(n.Must(tb, append([]string{"node", "reconcile", "-o", "json"}, args...)...)), &answer); err != nil {
		tb.Fatal(err)
	}
	return answer.Findings
}

// What belongs to nobody is shown by a dry run and removed by the real one,
// what is somebody's own stays.
func TestNodeReconcile(t *testing.T) {
	// Without the watch, which would mend rules before they are looked at.
	n := StartWith(t, usual, func(config string) string {
		return strings.Replace(config, "[network]", "[network]\nfirewall_poll = 0", 1)
	})
	n.Must(t, "env", "create", "one", "--image", n.Image, "-p", "8000")
	if found := n.reconcile(t, "--dry-run"); len(found) > 0 {
		t.Errorf("of a node in order: %+v", found)
	}
	const nobody = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
	logs, files := filepath.Join(n.Dir, "state/logs"), filepath.Join(n.Dir, "state/environments")
	notes, old, etc := filepath.Join(logs, "notes.txt"), filepath.Join(logs, nobody+".log.00000003"), filepath.Join(files, nobody)
	desktop, mounts := filepath.Join(n.Dir, "run/desktop", nobody), filepath.Join(n.Dir, "run/mounts", nobody)
	want := []string{
		"desktop " + nobody, "files " + nobody, "interface rgpu-aaaaaaaa", "log " + notes + " not ours", "log " + old, "mounts " + nobody, "rule nat OUTPUT hook",
	}
	slices.Sort(want)
	said := func(found []finding) (all []string) {
		for _, f := range found {
			line := f.Kind + " " + f.Name
			if !f.Ours {
				line += " not ours"
			}
			all = append(all, line)
		}
		slices.Sort(all)
		return all
	}
	for try := range 3 { // the node's own pass, once a minute, may come in between
		for _, dir := range []string{etc, desktop, mounts} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		for _, file := range []string{notes, old} {
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		n.Sh(t, "ip link show rgpu-aaaaaaaa || ip link add rgpu-aaaaaaaa type bridge; iptables -t nat -D OUTPUT 1")
		if differs := n.Must(t, "node", "firewall", "diff"); try == 0 && !strings.Contains(differs, "- nat -A OUTPUT") {
			t.Errorf("the difference in rules: %s", differs)
		}
		dry := said(n.reconcile(t, "--dry-run"))
		pass := n.reconcile(t)
		if slices.Equal(dry, want) && slices.Equal(said(pass), want) {
			for _, f := range pass {
				if f.Done != f.Ours {
					t.Errorf("how it went: %+v", f)
				}
			}
			break
		}
		if try == 2 {
			t.Fatalf("dry run %q\nreal %q\nwant %q", dry, said(pass), want)
		}
	}
	for _, gone := range []string{old, etc, desktop, mounts} {
		if _, err := os.Stat(gone); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", gone, err)
		}
	}
	if found := said(n.reconcile(t)); len(found) != 1 || found[0] != "log "+notes+" not ours" {
		t.Errorf("afterwards: %q", found)
	}
	if links := n.Sh(t, "ip -o link"); strings.Contains(links, "rgpu-aaaaaaaa") {
		t.Errorf("the interface is still there:\n%s", links)
	}
	// What cannot be read hides nothing of the rest.
	credentials := filepath.Join(n.Dir, "state/credentials")
	if err := errors.Join(os.RemoveAll(credentials), os.WriteFile(credentials, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	out, told, code := n.CLI(t, "node", "reconcile", "-o", "json")
	if code != 8 || !strings.Contains(out, notes) || !strings.Contains(out, `"message": "list credentials`) ||
		!strings.Contains(told, "list credentials") {
		t.Errorf("with a directory that cannot be read: exit %d\n%s%s", code, out, told)
	}
	if err := errors.Join(os.Remove(credentials), os.Remove(notes)); err != nil {
		t.Error(err)
	}
	if env := n.Get(t, "one"); env.State != running {
		t.Errorf("got %+v", env)
	}
}

// Without its database a node keeps its hands off what it does not know, and
// gives nobody the addresses of it, nor takes its volumes; with the database back all is as it was.
func TestLostDatabase(t *testing.T) {
	n := Start(t, usual, "")
	n.Must(t, "env", "create", "one", "--image", n.Image, "-p", "8000", "-v", "data:/data")
	n.Must(t, "env", "exec", "--stdin=false", "one", "--", "testprog", "write", "/data/file", "kept")
	one := n.Get(t, "one")
	n.Stop(t, syscall.SIGTERM)
	if pipes, err := os.ReadDir(filepath.Join(n.Dir, "run/fifo")); err != nil || len(pipes) > 0 {
		t.Errorf("a daemon that ended in order left pipes: %v %v", pipes, err)
	}
	database, backup := filepath.Join(n.Dir, "state/node.db"), filepath.Join(n.Dir, "backup.db")
	if err := os.Rename(database, backup); err != nil {
		t.Fatal(err)
	}
	n.Run(t)
	for _, args := range [][]string{{"--dry-run"}, nil} {
		kinds := map[string]bool{}
		for _, f := range n.reconcile(t, args...) {
			if f.Ours || f.Environment != one.ID {
				t.Errorf("finding %+v", f)
			}
			kinds[f.Kind] = true
		}
		if !kinds["container"] || !kinds["network"] || !kinds["files"] {
			t.Errorf("found %v", kinds)
		}
	}
	n.fails(t, 4, "which the database does not know", "volume", "rm", "data")
	if facts := n.Must(t, "volume", "get", "data"); !strings.Contains(facts, one.ID) {
		t.Errorf("whose the volume is: %s", facts)
	}
	n.Must(t, "env", "create", "two", "--image", n.Image)
	if two := n.Get(t, "two"); two.Address == one.Address || two.Address == "" {
		t.Errorf("both have address %q", two.Address)
	}
	n.Must(t, "env", "rm", "--force", "two")
	n.Stop(t, syscall.SIGTERM)
	if err := os.Rename(backup, database); err != nil {
		t.Fatal(err)
	}
	n.Run(t)
	if again := n.Get(t, "one"); again.State != running || again.Address != one.Address {
		t.Errorf("with the database back: %+v", again)
	}
	if found := n.reconcile(t); len(found) > 0 {
		t.Errorf("with the database back: %+v", found)
	}
	if text := n.Must(t, "env", "exec", "--stdin=false", "one", "--", "testprog", "cat", "/data/file"); strings.TrimSpace(text) != "kept" {
		t.Errorf("in its volume: %q", text)
	}
	n.Must(t, "env", "rm", "--force", "one")
	n.Must(t, "volume", "rm", "data")
}

// A container, or a writable layer, that somebody removes behind the node's back
// is final: the environment says so, and so does each start.
func TestMissingContainer(t *testing.T) {
	n := Start(t, usual, "")
	n.Must(t, "env", "create", "container", "--image", n.Image) // a policy would start it before its container is removed
	n.Must(t, "env", "create", "layer", "--image", n.Image, "--restart", "always")
	container, layer := n.Get(t, "container").ID, n.Get(t, "layer").ID
	n.Must(t, "env", "stop", "layer", "-t", "1s")
	for _, args := range [][]string{{"tasks", "rm", "-f", container}, {"containers", "rm", container}, {"snapshots", "rm", layer}} {
		n.Containerd.Ctr(t, args...)
	}
	n.reconcile(t)
	if facts := n.Must(t, "env", "get", "container"); !strings.Contains(facts, "its container is missing") {
		t.Errorf("after a pass: %s", facts)
	}
	for name, missing := range map[string]string{"container": "its container is missing", "layer": "its writable layer is missing"} {
		for range 2 {
			_, errs, code := n.CLI(t, "env", "start", name)
			if code == 0 || !strings.Contains(errs, missing) || !strings.Contains(errs, "delete it") {
				t.Errorf("start of what has no %s: exit %d\n%s", name, code, errs)
			}
		}
		facts := n.Must(t, "env", "get", name)
		if !strings.Contains(facts, missing) || !strings.Contains(facts, "ENV_NOT_STARTABLE") {
			t.Errorf("what has no %s: %s", name, facts)
		}
		n.Must(t, "env", "rm", name)
	}
}
