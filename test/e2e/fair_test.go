package e2e_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// As many environments as there are workers wait for a process that does not
// end, and as many creates for a registry that does not answer: they hold up no
// other environment, and go by a forced delete or when they are cancelled.
func TestWaitingHoldsUpNobody(t *testing.T) {
	for _, kind := range either(t) {
		t.Run(string(kind), func(t *testing.T) {
			n := Start(t, kind, "[operations]\nworkers = 2\n")
			registry := testutil.Registry(t)
			gate := startRegistry(t, n, registry)
			slow := gate.host + "/slow/tool:1"
			registry.Push("slow/tool", "1", testutil.TestImage(t, testutil.ImageOptions{Name: slow, Files: map[string]string{"/etc/slow": "yes"}}))
			ops := make(map[string]string)
			begin := func(name string, args ...string) {
				t.Helper()
				var env struct{ Operation string }
				out := n.Must(t, append([]string{"--output", "json", "env"}, args...)...)
				if err := json.Unmarshal([]byte(out), &env); err != nil || env.Operation == "" {
					t.Fatalf("%q answers %v: %s", args, err, out)
				}
				ops[name] = env.Operation
			}
			for _, name := range []string{"deaf-1", "deaf-2"} {
				n.Must(t, "env", "create", name, "--image", n.Image, "--", "ignore-term")
				// Sent a signal before it ignores it, it would end.
				Eventually(t, name+" to ignore signals", func() bool { return strings.Contains(n.Must(t, "env", "logs", name), "ignoring") })
				begin(name, "stop", name, "--grace", "10m", "--no-wait")
			}
			for _, name := range []string{"slow-1", "slow-2"} {
				begin(name, "create", name, "--image", slow, "--no-wait")
			}
			atWork := func() bool {
				for _, id := range ops {
					if n.operation(t, id).State != "OPERATION_STATE_RUNNING" {
						return false
					}
				}
				return true
			}
			Eventually(t, "all to be at work", atWork)
			n.Must(t, "env", "create", "other", "--image", n.Image)
			n.Must(t, "env", "restart", "other")
			n.Must(t, "env", "rm", "--force", "other")
			if !atWork() {
				t.Error("somebody has not waited")
			}
			n.Must(t, "op", "cancel", ops["deaf-1"])
			if state := n.care(t, "deaf-1").State; state != running {
				t.Errorf("after its stop was cancelled: %s", state)
			}
			for name := range ops {
				n.Must(t, "env", "rm", "--force", "--grace", "0", name)
				Eventually(t, "the operation of "+name+" to end", func() bool { return n.operation(t, ops[name]).State == "OPERATION_STATE_CANCELLED" })
			}
			n.NothingLeft(t)
		})
	}
}
