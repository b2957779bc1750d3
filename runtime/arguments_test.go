package runtime_test

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// Operations show what was asked for, and no secret.
func TestArguments(t *testing.T) {
	t.Parallel()
	h := asking(t)
	d := start(t, h)
	hidden := "hunter2-of-a-variable"
	shows := func(what string, op *operation.Operation, want map[string]string) {
		t.Helper()
		if op == nil {
			t.Fatalf("%s: no operation", what)
		}
		if done := d.done(op); done.State != operation.Succeeded {
			t.Fatalf("%s: %+v %+v", what, done, done.Problem)
		}
		kept, err := d.queue.Get(t.Context(), op.ID)
		if err != nil {
			t.Fatal(err)
		}
		got := runtime.Arguments(kept)
		if !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
		for key, value := range got {
			if strings.Contains(key+value, hidden) || strings.Contains(key+value, secret) || strings.Contains(key+value, "ann") {
				t.Errorf("%s has a secret: %v", what, got)
			}
		}
	}
	grace := 1500 * time.Millisecond
	create := full("desk")
	create.Spec.Env = map[string]string{"TOKEN": hidden}
	env, op := d.create(create)
	shows("create", op, map[string]string{"name": "desk", "image": env.Spec.Image})
	_, op, err := d.Restart(t.Context(), runtime.ActionRequest{Environment: "desk", Timeout: &grace})
	if err != nil {
		t.Fatal(err)
	}
	shows("restart", op, map[string]string{"timeout": "1.5s"})
	_, op = d.update(runtime.UpdateRequest{
		Fields: []string{"spec.env", "labels"}, Spec: runtime.Spec{Env: map[string]string{"TOKEN": hidden}}, Labels: map[string]string{"a": hidden}, Restart: true,
	})
	shows("update", op, map[string]string{"fields": "spec.env,labels", "restart": "true", "timeout": "10s"})
	snapshot, op := d.snapshot("desk", "first")
	shows("snapshot", op, map[string]string{"snapshot": snapshot.ID})
	reference, op, err := d.Export(t.Context(), runtime.ExportRequest{Snapshot: "desk/first"})
	if err != nil {
		t.Fatal(err)
	}
	shows("export", op, map[string]string{"snapshot": snapshot.ID, "reference": reference})
	_, op = d.rollBack(runtime.RollBackRequest{Environment: "desk", Snapshot: "first", Force: true, Timeout: &grace})
	shows("roll back", op, map[string]string{"snapshot": snapshot.ID, "force": "true", "timeout": "1.5s"})
	shows("pause", d.act(d.Pause, "desk"), nil)
	shows("resume", d.act(d.Resume, "desk"), nil)
	shows("stop", d.act(d.Stop, "desk"), map[string]string{"timeout": "10s"})
	shows("start", d.act(d.Start, "desk"), nil)
	shows("delete", d.act(d.Delete, "desk"), map[string]string{"timeout": "10s", "force": "true"})
	if op, err = d.Pull(t.Context(), pullPrivate()); err != nil {
		t.Fatal(err)
	}
	shows("pull", op, map[string]string{"credentials": "true"})
	if op, err = d.Push(t.Context(), runtime.PushRequest{Reference: private, Login: pullPrivate().Login}); err != nil {
		t.Fatal(err)
	}
	shows("push", op, map[string]string{"destination": private, "credentials": "true"})
	for args, want := range map[string]map[string]string{
		`{"source":"desktop-base","tag":"docker.io/remotegpu/desktop-base:latest","base":"ubuntu:22.04","no_cache":true}`: {
			"source": "desktop-base", "tag": "docker.io/remotegpu/desktop-base:latest", "base": "ubuntu:22.04", "no_cache": "true",
		},
		``: {}, `no json`: {}, // not ours
	} {
		if got := runtime.Arguments(&operation.Operation{Kind: runtime.KindBuild, Args: json.RawMessage(args)}); !maps.Equal(got, want) {
			t.Errorf("build with %q: %v, want %v", args, got, want)
		}
	}
}
