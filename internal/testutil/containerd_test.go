package testutil_test

import (
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

func TestStartContainerd(t *testing.T) {
	for _, need := range []testutil.Need{testutil.Containerd, testutil.Containerd2} {
		t.Run(string(need), func(t *testing.T) {
			d := testutil.StartContainerd(t, need)
			d.Import(t, testutil.TestImage(t, testutil.ImageOptions{}))
			if left := d.Leftovers(t); len(left) > 0 {
				t.Errorf("left before anything ran: %q", left)
			}
			d.Ctr(t, "run", "--detach", testutil.ImageName, "one")
			if left := strings.Join(d.Leftovers(t), ", "); !strings.Contains(left, "containers one") ||
				!strings.Contains(left, "snapshot one") || !strings.Contains(left, "shim ") || !strings.Contains(left, "mount ") {
				t.Errorf("a running container is seen as %q", left)
			}
			if out := d.Ctr(t, "tasks", "exec", "--exec-id", "x", "one", "testprog", "echo", "hello"); out != "hello" {
				t.Errorf("exec said %q", out)
			}
			d.Kill(t)
			d.Start(t)
			d.Ctr(t, "tasks", "kill", "--signal", "SIGKILL", "one")
			d.Ctr(t, "tasks", "delete", "--force", "one")
			d.Ctr(t, "containers", "delete", "one")
			if left := d.Leftovers(t); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}
