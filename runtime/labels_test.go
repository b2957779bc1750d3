package runtime_test

import (
	"maps"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// Every label that can be given is found by a selector that names it; what none
// could name is refused at create, update and snapshot, with its field.
func TestLabelsCanBeSelected(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	good := map[string]string{
		"a": "", "team": "vision", "example.com/app_2": "x y", "A:b@c": "https://x.test/?q=1!=2", "gpu-h100": "ä", "k": "!x", "e": "a=b==c",
	}
	req := plain("desk")
	req.Labels = good
	d.create(req)
	for key, value := range good {
		for text, want := range map[string]bool{key + "=" + value: true, key + "==" + value: true, key: true, key + "!=" + value: false, "!" + key: false} {
			if value == "" && text == key+"==" {
				continue
			}
			selector, err := runtime.ParseSelector(text, "label_selector")
			if err != nil || selector.Matches(good) != want {
				t.Errorf("%q: %+v, %v", text, selector, err)
			}
		}
	}
	bad := map[string]string{"a b": "c", "": "x", "a=b": "c", "!a": "b", "a,b": "c", "ä": "x", "-a": "x", "a-": "x", "x1": "a,b", "x2": "=a", "x3": " a", "x4": "a\n", "x5": "\xff"}
	for key, value := range bad {
		labels := maps.Clone(good)
		labels[key] = value
		req := plain("other")
		req.Labels = labels
		_, _, create := d.Create(t.Context(), req)
		_, update := d.Update(t.Context(), runtime.UpdateRequest{Environment: "desk", Fields: []string{"labels"}, Labels: labels})
		_, _, snapshot := d.CreateSnapshot(t.Context(), runtime.CreateSnapshotRequest{Environment: "desk", Labels: labels})
		for what, err := range map[string]error{"create": create, "update": update, "snapshot": snapshot} {
			if p := problem.Of(err); p == nil || p.Reason != problem.FieldInvalid || p.Hint == "" || p.Field[:7] != "labels[" {
				t.Errorf("%s with %q=%q: %v", what, key, value, err)
			}
		}
	}
	if env := d.get("desk"); !maps.Equal(env.Labels, good) {
		t.Errorf("labels %v", env.Labels)
	}
	// One from before there was a rule stays, and can be taken away.
	env := d.get("desk")
	if _, _, err := d.store.UpdateEnvironment(t.Context(), env.ID, nil, func(env *runtime.Environment) error {
		env.Labels = map[string]string{"a b": "c"}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, labels := range []map[string]string{{"a b": "c", "new": "x"}, {"new": "x"}} {
		d.update(runtime.UpdateRequest{Fields: []string{"labels"}, Labels: labels})
		if env := d.get("desk"); !maps.Equal(env.Labels, labels) {
			t.Errorf("labels %v, want %v", env.Labels, labels)
		}
	}
	if _, err := runtime.ParseSelector("a==", "label_selector"); problem.Of(err) == nil || problem.Of(err).Hint == "" {
		t.Errorf("a value that is not there: %v", err)
	}
}
