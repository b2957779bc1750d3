package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/remotegpu/remotegpu/internal/claim"
	"github.com/remotegpu/remotegpu/internal/testutil"
)

// remotegpud runs the program with the node's configuration until it ends.
func (n *Node) remotegpud(tb testing.TB, args ...string) (said string, code int) {
	tb.Helper()
	cmd := n.command(tb, testutil.Program("remotegpud"), append([]string{"--config", n.config}, args...)...)
	out, _ := cmd.CombinedOutput()
	return string(out), cmd.ProcessState.ExitCode()
}

// unclaim has whoever asks next find nobody at a cgroup, as where there are two of
// /run.
func unclaim(t *testing.T, cgroup string) {
	t.Helper()
	claims, err := filepath.Glob(filepath.Join(claim.Dir, "cgroup-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range claims {
		if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), "cgroup "+cgroup+"\n") {
			if err := os.Remove(file); err != nil {
				t.Error(err)
			}
		}
	}
}

// Two nodes of one host, each with a containerd and directories of its own, have
// the same cgroup, as by default. The second is refused, also while the first one's
// daemon is down and its environments run on. Where that cannot be told, as in a
// container with a /run of its own, neither touches what the other has.
func TestNodesBesideEachOther(t *testing.T) {
	first := Start(t, testutil.Containerd2, "")
	first.Must(t, "env", "create", "one", "--image", first.Image, "-p", "15000:8080", "--", "banner", ":8080", "one")
	one := first.Get(t, "one")
	runs := func(when string, n *Node, env Environment) {
		t.Helper()
		now := n.Get(t, env.Name)
		if started := strings.Count(strings.Join(n.events(t, env.Name), " "), "started"); now.State != running || now.Problem != nil || started != 1 {
			t.Fatalf("%s: %s is %+v, and was started %d times", when, env.Name, now, started)
		}
	}

	containerd := testutil.StartContainerd(t, testutil.Containerd)
	containerd.Namespace, containerd.Cgroup = first.Containerd.Namespace, first.Containerd.Cgroup
	second := startOn(t, containerd, func(config string) string { return config }, func(second *Node) {
		const configured = 78 // to start it again does not help
		if said, code := second.remotegpud(t); code != configured || !strings.Contains(said, first.Dir+"/state runs and has cgroup "+containerd.Cgroup) {
			t.Errorf("beside the first: exit %d\n%s", code, said)
		}
		first.Stop(t, syscall.SIGKILL)
		if said, code := second.remotegpud(t); code != configured || !strings.Contains(said, first.Dir+"/state, which does not run and still has there: processes in "+one.ID) {
			t.Errorf("while the first is down: exit %d\n%s", code, said)
		}
		for _, n := range []*Node{first, second} {
			if said, code := n.remotegpud(t, "cleanup"); code == 0 || !strings.Contains(said, one.ID) || !strings.Contains(said, "Try: ") {
				t.Errorf("cleanup of %s while an environment runs: exit %d\n%s", n.Dir, code, said)
			}
		}
		first.Run(t)
		runs("refused", first, one)
		Eventually(t, "it to answer after a cleanup that was refused", func() bool {
			answer, err := first.Ask(t, 15000)
			return err == nil && strings.HasPrefix(answer, "one ")
		})
		if said, code := first.remotegpud(t, "cleanup", "--force"); code != 1 || !strings.Contains(said, "another remotegpud works in") {
			t.Errorf("cleanup beside the daemon: exit %d\n%s", code, said)
		}
		unclaim(t, containerd.Cgroup)
	})
	second.Must(t, "env", "create", "two", "--image", second.Image, "--", "sleep")
	two := second.Get(t, "two")
	sees := func(n *Node, env Environment) {
		t.Helper()
		for range 2 {
			found := n.reconcile(t)
			if len(found) != 1 || found[0].Kind != "cgroup" || found[0].Name != containerd.Cgroup+"/"+env.ID || found[0].Ours || found[0].Done {
				t.Errorf("%s finds %+v", n.Dir, found)
			}
		}
	}
	sees(second, one)
	sees(first, two)
	runs("both are there", first, one)
	runs("both are there", second, two)
	for _, each := range []struct {
		n, other *Node
		env, of  Environment
	}{{first, second, one, two}, {second, first, two, one}} {
		each.n.Stop(t, syscall.SIGKILL)
		sees(each.other, each.env)
		runs("the other is down", each.other, each.of)
		unclaim(t, containerd.Cgroup)
		each.n.Run(t)
		runs("back again", each.n, each.env)
	}
	second.Must(t, "env", "rm", "--force", "two")
	runs("the other is deleted", first, one)

	// Who insists takes the network of what runs, and the node brings it back: the
	// processes still have their namespace.
	unclaim(t, containerd.Cgroup)
	first.Stop(t, syscall.SIGTERM)
	if said, code := first.remotegpud(t, "cleanup", "--force"); code != 0 {
		t.Errorf("cleanup by force: exit %d\n%s", code, said)
	}
	if links := first.Sh(t, "ip -o link"); strings.Contains(links, "rgpu-") {
		t.Errorf("interfaces are left:\n%s", links)
	}
	unclaim(t, containerd.Cgroup)
	first.Run(t)
	Eventually(t, "it to answer again", func() bool {
		answer, err := first.Ask(t, 15000)
		return err == nil && strings.HasPrefix(answer, "one ")
	})
	first.Must(t, "env", "rm", "--force", "one")
	first.NothingLeft(t)
	unclaim(t, containerd.Cgroup) // for the cleanup of each
}
