package runtime_test

import (
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
)

// Who asks for an environment's ports by a name that there is not learns that,
// and the history knows names of environments that are gone.
func TestPortsOfANamedEnvironment(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(full("desk"))
	d.create(full("other"))
	list := func(name string, filter port.Filter) []port.Mapping {
		t.Helper()
		found, _, err := d.ListPorts(t.Context(), name, filter)
		if err != nil {
			t.Errorf("ports of %q: %v", name, err)
		}
		for _, m := range found {
			if m.EnvID != env.ID || m.EnvName != "desk" || (m.Reach == "") != !filter.At.IsZero() {
				t.Errorf("ports of %q: %+v", name, m)
			}
		}
		return found
	}
	unknown := func(name string, filter port.Filter) {
		t.Helper()
		if found, _, err := d.ListPorts(t.Context(), name, filter); problem.Of(err) == nil || problem.Of(err).Reason != problem.EnvNotFound {
			t.Errorf("ports of %q: %+v, %v", name, found, err)
		}
	}
	history := port.Filter{IncludeReleased: true}
	if got := list("desk", port.Filter{}); len(got) != 2 || got[0].Reach != port.FromEverywhere {
		t.Errorf("held: %+v", got)
	}
	unknown("nope", port.Filter{})
	unknown("nope", history)
	unknown("desk", port.Filter{Project: "elsewhere"})
	held := time.Now()
	if env, err := d.Rename(t.Context(), runtime.RenameRequest{Environment: "other", Name: "another"}); err != nil {
		t.Fatal(env, err)
	}
	d.remove("desk")
	unknown("desk", port.Filter{})
	unknown(env.ID, port.Filter{})
	unknown(ulid.Make().String(), history)
	for _, name := range []string{"desk", env.ID} {
		if got := list(name, history); len(got) != 2 || got[0].Status != port.Released || got[0].Reach != port.FromNowhere {
			t.Errorf("ports that %s had: %+v", name, got)
		}
		if got := list(name, port.Filter{At: held.Truncate(time.Millisecond)}); len(got) != 2 {
			t.Errorf("ports that %s had at %v: %+v", name, held, got)
		}
		if got := list(name, port.Filter{At: held.Add(-time.Hour)}); len(got) != 0 {
			t.Errorf("ports that %s had before it was: %+v", name, got)
		}
	}
	unknown("nope", port.Filter{At: held})
	// The name of one that is goes before that of one that was.
	second, _ := d.create(full("desk"))
	if got, _, err := d.ListPorts(t.Context(), "desk", history); err != nil || len(got) != 2 || got[0].EnvID != second.ID {
		t.Errorf("ports of the second: %+v, %v", got, err)
	}
	all, _, err := d.ListPorts(t.Context(), "", history)
	names := make(map[string]int)
	for _, m := range all {
		names[m.EnvName]++
	}
	if err != nil || names["desk"] != 4 || names["another"] != 2 {
		t.Errorf("all: %v, %v", names, err)
	}
}
