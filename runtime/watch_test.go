package runtime_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

func TestWatchSeesEveryState(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(full("old"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes := make(chan runtime.Change, 100)
	var watching sync.WaitGroup
	watching.Go(func() {
		_ = d.Watch(ctx, runtime.Filter{}, "", func(c runtime.Change) error { changes <- c; return nil })
	})
	if c := <-changes; c.Environment == nil || c.Environment.Name != "old" {
		t.Fatalf("first message: %+v", c)
	}
	if c := <-changes; !c.Synced {
		t.Fatalf("second message: %+v", c)
	}
	d.create(full("new"))
	d.act(d.Delete, "new")
	var states []runtime.State
	for len(states) == 0 || states[len(states)-1] != runtime.Deleted {
		select {
		case c := <-changes:
			if c.Environment.Name == "new" && !slices.Contains(states, c.Environment.State) {
				states = append(states, c.Environment.State)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("states so far: %v", states)
		}
	}
	if want := []runtime.State{runtime.Creating, runtime.Running, runtime.Deleted}; !slices.Equal(states, want) {
		t.Errorf("states %v, want %v", states, want)
	}
	cancel()
	watching.Wait()
}

// A watch by labels tells that one leaves its selection, and comes back, also
// when it is resumed in between; of others it tells nothing.
func TestWatchTellsWhatLeavesItsSelection(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	selector, err := runtime.ParseSelector("team=vision", "label_selector")
	if err != nil {
		t.Fatal(err)
	}
	label := func(name, team string) {
		t.Helper()
		if _, op := d.update(runtime.UpdateRequest{Environment: name, Fields: []string{"labels"}, Labels: map[string]string{"team": team}}); op != nil && op.State != operation.Succeeded {
			t.Fatalf("label %s: %+v", name, op)
		}
	}
	for name, team := range map[string]string{"desk": "vision", "other": "speech"} {
		req := full(name)
		req.Labels = map[string]string{"team": team}
		d.create(req)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watch := func(after string) (until func(what string, is func(runtime.Change) bool) runtime.Change) {
		changes := make(chan runtime.Change, 100)
		watching.Go(func() {
			_ = d.Watch(ctx, runtime.Filter{Labels: selector}, after, func(c runtime.Change) error { changes <- c; return nil })
		})
		return func(what string, is func(runtime.Change) bool) runtime.Change {
			t.Helper()
			for {
				select {
				case c := <-changes:
					if env := c.Environment; env != nil && (env.Name != "desk" || c.Left == (env.Labels["team"] == "vision")) {
						t.Errorf("told of %s with %v, left: %t", env.Name, env.Labels, c.Left)
					}
					if is(c) {
						return c
					}
				case <-time.After(20 * time.Second):
					t.Fatal("it is not told that it " + what)
				}
			}
		}
	}
	synced := func(c runtime.Change) bool { return c.Synced }
	left := func(c runtime.Change) bool { return c.Left }
	until := watch("")
	begin := until("has begun", synced)
	label("other", "sound")
	label("desk", "speech")
	out := until("left", left)
	label("desk", "sound") // nobody's business
	label("desk", "vision")
	back := func(c runtime.Change) bool { return c.Environment.Revision > out.Environment.Revision && !c.Left }
	until("came back", back)
	before, after := watch(begin.Token), watch(out.Token)
	before("left, resumed", left)
	before("came back, resumed", back)
	after("came back, resumed after it left", back)
	d.act(d.Delete, "other")
	label("desk", "speech")
	until("left again", left)
}
