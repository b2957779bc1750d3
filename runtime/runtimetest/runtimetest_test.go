package runtimetest_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

func TestFakeEngine(t *testing.T) {
	t.Parallel()
	runtimetest.Engine(t, func(t *testing.T) runtimetest.EngineSetup {
		t.Helper()
		engine := runtimetest.NewFakeEngine(nil)
		engine.Dir = t.TempDir()
		return runtimetest.EngineSetup{
			Engine: engine, Reopen: func() runtime.Engine { return engine },
			Image: "docker.io/remotegpu/test:latest", Digest: "sha256:" + strings.Repeat("f", 64), NetNS: func() string { return "" }, Leftovers: engine.Leftovers,
			Silence: func(_ *testing.T, id string) func() {
				engine.SetSilent(id, true)
				return func() { engine.SetSilent(id, false) }
			},
			Pause: func(t *testing.T, id string) {
				t.Helper()
				if err := engine.SetPaused(id, true); err != nil {
					t.Error(err)
				}
			},
		}
	})
}

func TestFakeImages(t *testing.T) {
	t.Parallel()
	images := &runtimetest.FakeImages{}
	images.Add(runtime.Image{Name: "remotegpu/test", Size: 1, Labels: map[string]string{"label": "yes"}})
	config := runtime.ImageConfig{Entrypoint: []string{"/bin/app"}, Env: map[string]string{"A": "b"}, ExposedPorts: []string{"80/tcp"}}
	images.Configure("sha256:"+strings.Repeat("f", 64), config)
	images.AddRemote(runtime.Image{Name: "remote.example/app:v1", Size: 2})
	runtimetest.Images(t, runtimetest.ImagesSetup{
		Images: images, Local: "docker.io/remotegpu/test:latest", Label: "label", Config: config,
		Remote: "remote.example/app:v1", Absent: "remote.example/app:v2", Push: "remote.example/pushed:v1",
	})
}

func TestFaults(t *testing.T) {
	t.Parallel()
	faults := &runtimetest.Faults{}
	engine := runtimetest.NewFakeEngine(faults)
	broken := errors.New("broken")
	c := runtime.Container{ID: "a", Image: "docker.io/remotegpu/test:latest"}

	faults.FailCall("Engine.Create", 1, broken)
	if err := engine.Create(t.Context(), c); !errors.Is(err, broken) || len(engine.Leftovers()) != 0 {
		t.Errorf("create: %v, left %q", err, engine.Leftovers())
	}
	faults.Fail("Engine.Create", 1, runtimetest.After, broken)
	if err := engine.Create(t.Context(), c); !errors.Is(err, broken) || len(engine.Leftovers()) != 1 {
		t.Errorf("create: %v, left %q", err, engine.Leftovers())
	}
	if err := engine.Create(t.Context(), c); !errdefs.IsAlreadyExists(err) {
		t.Errorf("create: %v, want AlreadyExists", err)
	}
	faults.FailCall("Engine.Delete", 0, broken)
	for range 2 {
		if err := engine.Delete(t.Context(), "a"); !errors.Is(err, broken) {
			t.Errorf("delete: %v", err)
		}
	}
	want := []string{"Engine.Create", "Engine.Create", "Engine.Create", "Engine.Delete", "Engine.Delete"}
	if got := faults.Calls(); !slices.Equal(got, want) || faults.Count("Engine.Delete") != 2 {
		t.Errorf("calls %q, want %q", got, want)
	}
	faults.Reset()
	if err := engine.Delete(t.Context(), "a"); err != nil || len(engine.Leftovers()) != 0 {
		t.Errorf("delete: %v, left %q", err, engine.Leftovers())
	}
	engine.SetDown(true)
	if _, err := engine.List(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("list: %v, want Unavailable", err)
	}
}
