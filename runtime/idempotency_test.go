package runtime_test

import (
	"sync"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

func TestRequestIDMakesARetrySafe(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	req := full("desk")
	req.RequestID = "r1"
	first, op, err := d.Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	d.done(op)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			env, again, err := d.Create(t.Context(), req)
			if err != nil || env.ID != first.ID || again.ID != op.ID {
				t.Errorf("a retry made another environment: %v %v %v", env, again, err)
			}
		})
	}
	group.Wait()
	other := full("other")
	other.RequestID = "r1"
	if _, _, err := d.Create(t.Context(), other); reasonOf(err) != problem.RequestIDReused {
		t.Errorf("another request with the same id: %v", err)
	}
	remove := runtime.ActionRequest{Environment: "desk", Force: true, RequestID: "r2"}
	_, deletion, err := d.Delete(t.Context(), remove)
	if err != nil {
		t.Fatal(err)
	}
	d.done(deletion)
	if _, again, err := d.Delete(t.Context(), remove); err != nil || again.ID != deletion.ID {
		t.Errorf("repeating a delete: %v %v", again, err)
	}
}

func TestRacingRetriesMakeOneEnvironment(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	req := full("desk")
	req.RequestID = "r1"
	ids := make([]string, 16)
	var group sync.WaitGroup
	for i := range ids {
		group.Go(func() {
			env, op, err := d.Create(t.Context(), req)
			if err != nil {
				if reasonOf(err) != problem.EnvNameExists { // it lost between the two checks
					t.Errorf("create: %v", err)
				}
				return
			}
			d.done(op)
			ids[i] = env.ID
		})
	}
	group.Wait()
	envs, _, err := d.List(t.Context(), runtime.Filter{})
	if err != nil || len(envs) != 1 || len(envs[0].Ports) != 2 {
		t.Fatalf("environments: %v %v", envs, err)
	}
	for _, id := range ids {
		if id != "" && id != envs[0].ID {
			t.Errorf("a retry was told of %s, there is %s", id, envs[0].ID)
		}
	}
}
