package runtime_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

const nameLabel = "remotegpu.dev/name"

func TestRename(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	before, _ := d.create(full("desk"))
	own := plain("own")
	own.Spec.Hostname = "own"
	d.create(own)
	env, err := d.Rename(t.Context(), runtime.RenameRequest{Environment: "desk", Name: "lab", Etag: runtime.Etag(before.Revision)})
	if err != nil {
		t.Fatal(err)
	}
	container, _ := h.engine.Container(env.ID)
	if env.Name != "lab" || env.ID != before.ID || env.State != runtime.Running || env.Spec.Hostname != "lab" || container.Hostname != "desk" ||
		container.Labels[nameLabel] != "lab" || !slices.Equal(env.RestartNeeded(), []string{"spec.hostname"}) {
		t.Errorf("renamed: %+v, needs %v, container %+v", env, env.RestartNeeded(), container)
	}
	if _, err := d.Get(t.Context(), "", "desk"); reasonOf(err) != problem.EnvNotFound {
		t.Errorf("it is found by its old name: %v", err)
	}
	if again, err := d.Rename(t.Context(), runtime.RenameRequest{Environment: env.ID, Name: "lab"}); err != nil || again.Revision != env.Revision {
		t.Errorf("renaming it to the name it has: %+v %v", again, err)
	}
	d.act(d.Restart, "lab")
	if container, _ = h.engine.Container(env.ID); container.Hostname != "lab" || !slices.Contains(container.Env, "REMOTEGPU_NAME=lab") || len(d.get("lab").RestartNeeded()) != 0 {
		t.Errorf("restarted: %+v", container)
	}
	if env, err := d.Rename(t.Context(), runtime.RenameRequest{Environment: "own", Name: "mine"}); err != nil || env.Spec.Hostname != "own" || len(env.RestartNeeded()) != 0 {
		t.Errorf("with a host name of its own: %+v %v", env, err)
	}
	for _, test := range []struct {
		req    runtime.RenameRequest
		reason problem.Reason
		field  string
	}{
		{runtime.RenameRequest{Environment: "lab", Name: "mine"}, problem.EnvNameExists, "name"},
		{runtime.RenameRequest{Environment: "lab", Name: "Lab"}, problem.EnvNameInvalid, "name"},
		{runtime.RenameRequest{Environment: "lab", Name: ""}, problem.EnvNameInvalid, "name"},
		{runtime.RenameRequest{Environment: "lab", Name: "x", Etag: "1"}, problem.EtagMismatch, "etag"},
		{runtime.RenameRequest{Environment: "desk", Name: "x"}, problem.EnvNotFound, "environment"},
	} {
		_, err := d.Rename(t.Context(), test.req)
		if p := problem.Of(err); err == nil || p.Reason != test.reason || p.Field != test.field || p.Hint == "" {
			t.Errorf("%+v: %v at %q, want %s at %q with a hint", test.req, err, problem.Of(err).Field, test.reason, test.field)
		}
	}
	kinds, entries := d.history("lab")
	if kinds[2] != "renamed" || !strings.Contains(entries[len(entries)-3].Message, `"desk"`) {
		t.Errorf("history: %v, %+v", kinds, entries)
	}
	// The old name is free, and a rename and a deleted name too.
	d.create(plain("desk"))
	d.act(d.Delete, "mine")
	if _, err := d.Rename(t.Context(), runtime.RenameRequest{Environment: "desk", Name: "mine"}); err != nil {
		t.Errorf("to the name of a deleted one: %v", err)
	}
}

// A container that could not be labelled is by the next pass.
func TestRenameReachesTheContainer(t *testing.T) {
	for _, when := range []runtimetest.When{runtimetest.Before, runtimetest.After} {
		h := newHost(t)
		d := start(t, h)
		env, _ := d.create(plain("desk"))
		h.faults.Fail("Engine.Relabel", 1, when, errors.New("broken on purpose"))
		if _, err := d.Rename(t.Context(), runtime.RenameRequest{Environment: "desk", Name: "lab"}); err != nil {
			t.Fatalf("rename: %v", err)
		}
		if err := d.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		if container, _ := h.engine.Container(env.ID); container.Labels[nameLabel] != "lab" {
			t.Errorf("after the pass: %v", container.Labels)
		}
	}
	// The daemon died between the two: the next one does it.
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(plain("desk"))
	if _, _, err := d.store.UpdateEnvironment(t.Context(), env.ID, nil, func(env *runtime.Environment) error { env.Name = "lab"; return nil }); err != nil {
		t.Fatal(err)
	}
	d.stop()
	start(t, h)
	if container, _ := h.engine.Container(env.ID); container.Labels[nameLabel] != "lab" {
		t.Errorf("after the daemon's death: %v", container.Labels)
	}
}
