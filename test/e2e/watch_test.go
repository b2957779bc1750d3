package e2e_test

import (
	"encoding/json"
	"strings"
	"syscall"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// watched is what the tests read of a message of a watch.
type watched struct {
	Environment *struct {
		Name  string `json:"name"`
		State string `json:"state"`
		OOMs  int    `json:"oomKills"`
	} `json:"environment"`
	Synced bool   `json:"synced"`
	Token  string `json:"resumeToken"`
}

// watch begins "env watch" and returns what waits for its next message. It
// ends with the test.
func (n *Node) watch(tb testing.TB, args ...string) (next func() watched) {
	tb.Helper()
	cmd := n.command(tb, testutil.Program("remotegpu"), append([]string{"env", "watch", "-o", "json"}, args...)...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := json.NewDecoder(out)
	return func() watched {
		tb.Helper()
		var message watched
		if err := lines.Decode(&message); err != nil {
			_ = cmd.Wait()
			tb.Fatalf("env watch %s: %v\n%s", strings.Join(args, " "), err, errs.String())
		}
		return message
	}
}

// A watch goes on where an earlier one ended, in the same life of the daemon.
func TestWatchResumes(t *testing.T) {
	n := Start(t, testutil.Containerd2, "")
	n.Must(t, "env", "create", "first", "--image", n.Image)
	n.Must(t, "env", "stop", "first")
	begin := n.watch(t)
	if m := begin(); m.Environment == nil || m.Environment.Name != "first" || m.Token != "" {
		t.Fatalf("what there is: %+v", m)
	}
	synced := begin()
	if !synced.Synced || synced.Token == "" {
		t.Fatalf("after it: %+v", synced)
	}
	// A rename is one change.
	n.Must(t, "env", "rename", "first", "second")
	told := begin()
	if told.Environment == nil || told.Environment.Name != "second" || told.Token == "" || told.Token == synced.Token {
		t.Fatalf("the change: %+v", told)
	}
	resumed := n.watch(t, "--resume-after", synced.Token)
	if m := resumed(); m.Synced || m.Environment == nil || m.Environment.Name != "second" || m.Token != told.Token {
		t.Errorf("resumed: %+v, want %+v", m, told)
	}
	// Nothing came in between: the next message is the next change, also of
	// a watch that knows the first.
	n.Must(t, "env", "rename", "second", "third")
	for what, next := range map[string]func() watched{
		"resumed before": resumed, "resumed after it": n.watch(t, "--resume-after", told.Token),
	} {
		if m := next(); m.Synced || m.Environment == nil || m.Environment.Name != "third" {
			t.Errorf("%s: %+v, want the next change", what, m)
		}
	}
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		last := n.watch(t)
		last()
		token := last().Token
		n.Stop(t, signal)
		n.Run(t)
		_, errs, code := n.CLI(t, "env", "watch", "-o", "json", "--resume-after", token)
		var failure struct {
			Error struct {
				Code   string `json:"code"`
				Reason string `json:"reason"`
			} `json:"error"`
		}
		if err := json.Unmarshal([]byte(errs), &failure); err != nil {
			t.Fatalf("exit %d, %v: %s", code, err, errs)
		}
		if code != 2 || failure.Error.Code != "out_of_range" || failure.Error.Reason != "RESUME_TOKEN_TOO_OLD" {
			t.Errorf("a token of the life before %s: exit %d, %+v", signal, code, failure.Error)
		}
	}
	if _, errs, code := n.CLI(t, "env", "watch", "--resume-after", "nonsense"); code != 2 || !strings.Contains(errs, "resume_after") {
		t.Errorf("no token: exit %d: %s", code, errs)
	}
}
