package runtime_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// Who runs without the writer of its log is told of until it is restarted.
func TestLostLogsAreTold(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(plain("desk"))
	d.create(plain("other"))
	told := func() (message, hint string) {
		d.reconcile(false)
		all := d.Conditions()
		i := slices.IndexFunc(all, func(c runtime.Condition) bool { return c.Reason == problem.LogWriterDied })
		if i < 0 {
			return "", ""
		}
		return all[i].Message, all[i].Hint
	}
	if message, _ := told(); message != "" {
		t.Fatalf("at first: %s", message)
	}
	h.engine.LoseLog(env.ID)
	if message, hint := told(); !strings.HasSuffix(message, ": desk") || !strings.Contains(hint, "env restart desk") {
		t.Errorf("told: %q, %q", message, hint)
	}
	d.act(d.Restart, "desk")
	if message, _ := told(); message != "" {
		t.Errorf("restarted: %s", message)
	}
}
