package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// What keeps the node from changing the host's rules, a kernel without a match
// that they need, or another program that holds the lock, is told by the API
// with what to do about it. No mapping is lost for it, and it ends by itself.
func TestFirewallThatCannotBeChanged(t *testing.T) {
	dir := t.TempDir()
	lock, broken := filepath.Join(dir, "lock"), filepath.Join(dir, "broken")
	for _, twin := range []string{"", "-save", "-restore"} {
		script := "#!/bin/sh\nexport XTABLES_LOCKFILE=" + lock + "\n"
		if twin == "-restore" {
			script += "if [ -e " + broken + " ]; then cat >/dev/null; echo \"iptables-restore: Couldn't load match \\`rpfilter':No such file or directory\" >&2; exit 2; fi\n"
		}
		script += "exec /usr/sbin/iptables-legacy" + twin + " \"$@\"\n"
		if err := os.WriteFile(filepath.Join(dir, "iptables"+twin), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	n := StartWith(t, usual, func(config string) string {
		return strings.Replace(config, "[network]\n", fmt.Sprintf("[network]\niptables = %q\nfirewall_poll = 1\n", dir+"/iptables"), 1)
	})
	n.Must(t, "env", "create", "one", "--image", n.Image, "-p", "15000:8080", "--", "banner", ":8080", "one")
	answers := func() bool {
		answer, err := n.Ask(t, 15000)
		return err == nil && strings.HasPrefix(answer, "one ")
	}
	Eventually(t, "the port to answer", answers)
	hint := func() string {
		var node struct {
			Conditions []struct{ Reason, Hint string }
		}
		if err := json.Unmarshal([]byte(n.Must(t, "node", "info", "-o", "json")), &node); err != nil {
			t.Fatal(err)
		}
		for _, condition := range node.Conditions {
			if condition.Reason == "FIREWALL_FAILED" {
				return condition.Hint
			}
		}
		return ""
	}
	// Somebody deletes rules, which the node cannot put back.
	told := func(what string) {
		t.Helper()
		n.Sh(t, "XTABLES_LOCKFILE="+filepath.Join(dir, "other")+" iptables-legacy -t nat -F")
		Eventually(t, what+" to be told", func() bool { return strings.Contains(hint(), what) })
	}
	mended := func(after string) {
		t.Helper()
		Eventually(t, "the condition to be gone after "+after, func() bool { return hint() == "" })
		Eventually(t, "the port to answer after "+after, answers)
		if diff := n.Must(t, "node", "firewall", "diff"); diff != "all is as declared\n" {
			t.Errorf("after %s: %s", after, diff)
		}
		if held := n.Must(t, "port", "ls"); strings.Count(held, " active ") != 1 {
			t.Errorf("after %s the mappings are\n%s", after, held)
		}
	}

	if err := os.WriteFile(broken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	told("modprobe")
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	mended("the module is there")

	if !long() {
		return // a lock that is held for a while takes a while; see TestLocked of network/firewall
	}
	began := time.Now()
	release := testutil.HoldLock(t, lock)
	told("xtables.lock")
	time.Sleep(time.Until(began.Add(30 * time.Second)))
	release()
	mended("the lock is free")
}
