package e2e_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// No line is lost or doubled across a kill of the daemon, and followers that
// come back find what was written meanwhile.
func TestLogsSurviveTheDaemon(t *testing.T) {
	testutil.Require(t, testutil.Programs)
	for _, kind := range either(t) {
		t.Run(string(kind), func(t *testing.T) {
			n := Start(t, kind, "[logs]\nmax_size = 65536\nmax_files = 100\n")
			n.Must(t, "env", "create", "web", "--image", n.Image, "--", "tick")
			id := n.Get(t, "web").ID
			check := func(when, out string, from int) int {
				t.Helper()
				next := from
				for line := range strings.Lines(out) {
					if want := fmt.Sprintf("tick %d\n", next); line != want {
						t.Fatalf("%s: got %q, want %q", when, line, want)
					}
					next++
				}
				return next
			}
			first := -1
			Eventually(t, "the first lines", func() bool {
				_, err := fmt.Sscanf(n.Must(t, "env", "logs", "web"), "tick %d", &first)
				return err == nil
			})
			// A follower that is connected when the daemon dies ends, unless it may wait for it.
			var wait sync.WaitGroup
			var followed string
			wait.Go(func() { followed, _, _ = n.CLI(t, "env", "logs", "-f", "--reconnect-for", "1ms", "web") })
			Eventually(t, "some lines", func() bool { return strings.Count(n.Must(t, "env", "logs", "web"), "\n") > 10 })
			n.Stop(t, syscall.SIGKILL)
			wait.Wait()
			seen := check("followed", followed, first)
			n.Run(t)
			Eventually(t, "lines of after the kill", func() bool { return strings.Count(n.Must(t, "env", "logs", "web"), "\n") > seen-first+10 })
			all := n.Must(t, "env", "logs", "web")
			check("after the daemon came back", all, first)
			if tail := n.Must(t, "env", "logs", "--tail", "3", "web"); strings.Count(tail, "\n") != 3 {
				t.Errorf("tail: %q", tail)
			}
			if out := n.Must(t, "env", "logs", "--stderr", "web"); out != "" {
				t.Errorf("stderr: %q", out)
			}
			if out := n.Must(t, "env", "logs", "--since", "1h", "--timestamps", "--tail", "1", "web"); !strings.HasPrefix(out, "20") || !strings.Contains(out, "Z tick ") {
				t.Errorf("timestamps: %q", out)
			}
			// What one instant divides is all there is.
			stamped := n.Must(t, "env", "logs", "--timestamps", "--tail", "5", "web")
			instant, _, _ := strings.Cut(stamped, " ")
			before := n.Must(t, "env", "logs", "--until", instant, "web")
			since := n.Must(t, "env", "logs", "--since", instant, "web")
			check("before and since an instant", before+since, first)
			if line := strings.SplitN(strings.SplitN(stamped, "\n", 2)[0], " ", 2)[1]; before == "" || !strings.HasPrefix(since, line+"\n") {
				t.Errorf("since %s begins with %.40q, want %q", instant, since, line)
			}
			n.Must(t, "env", "rm", "--force", "web")
			if left, err := filepath.Glob(filepath.Join(n.Dir, "*", "logs", id+"*")); err != nil || len(left) > 0 {
				t.Errorf("left %q %v", left, err)
			}
			if _, _, code := n.CLI(t, "env", "logs", "web"); code != 3 {
				t.Errorf("logs of a deleted environment: exit %d, want 3", code)
			}
		})
	}
}
