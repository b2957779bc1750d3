package claim_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/claim"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// A thing is one node's while that runs, and afterwards while it has something
// there.
func TestTake(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	node := func(name string) claim.Node {
		state := filepath.Join(t.TempDir(), name)
		if err := os.Mkdir(state, 0o700); err != nil {
			t.Fatal(err)
		}
		return claim.Node{ID: name, StateDir: state}
	}
	a, b := node("a"), node("b")
	var use string
	var look error
	things := []claim.Thing{
		{Kind: "cgroup", Name: "/one", Field: "containerd.cgroup", InUse: func() (string, error) { return use, look }},
		{Kind: "run directory", Name: "/run/one"},
	}
	take := func(node claim.Node, things ...claim.Thing) *claim.Held {
		t.Helper()
		held, err := claim.Take(t.Context(), dir, node, things...)
		if err != nil {
			t.Fatal(err)
		}
		return held
	}
	refused := func(node claim.Node, words ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond) // its patience
		defer cancel()
		held, err := claim.Take(ctx, dir, node, things...)
		if err == nil {
			t.Fatal("it was claimed", held.Close())
		}
		p := problem.Of(err)
		if p.Reason != problem.ConfigInvalid || p.Field != "containerd.cgroup" || p.Hint == "" {
			t.Errorf("%+v", p)
		}
		for _, word := range words {
			if !strings.Contains(err.Error()+p.Hint, word) {
				t.Errorf("%v (%s): no %q", err, p.Hint, word)
			}
		}
	}
	held := take(a, things...)
	refused(b, a.StateDir, "/one", "runs")
	if err := take(b, claim.Thing{Kind: "cgroup", Name: "/other"}).Close(); err != nil { // nobody has it
		t.Error(err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	use = "processes 12 and 34"
	refused(b, a.StateDir, use, "does not run", dir)
	for _, same := range []claim.Node{a, {ID: a.ID, StateDir: "/moved"}, a, {ID: "anew", StateDir: a.StateDir}, a} {
		if err := take(same, things...).Close(); err != nil {
			t.Fatal(err)
		}
	}
	look = errors.New("it cannot be looked at")
	if _, err := claim.Take(t.Context(), dir, b, things...); !errors.Is(err, look) {
		t.Errorf("what may be in use: %v", err)
	}
	use, look = "", nil
	held = take(b, things...) // there is nothing any more
	refused(a, b.StateDir)
	if err := held.Remove(); err != nil {
		t.Fatal(err)
	}
	use = "processes"
	if err := take(a, things...).Close(); err != nil { // given up, it is nobody's
		t.Fatal(err)
	}

	// What a crash has left half written is nobody's.
	files, err := filepath.Glob(filepath.Join(dir, "cgroup-*"))
	if err != nil || len(files) != 2 {
		t.Fatalf("claims: %q, %v", files, err)
	}
	for _, file := range files {
		if err := os.WriteFile(file, []byte("a\n/va"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := take(b, things[0]).Close(); err != nil {
		t.Fatal(err)
	}
	// The claims of who is gone go with the next.
	if err := os.RemoveAll(b.StateDir); err != nil {
		t.Fatal(err)
	}
	held = take(a, things[1])
	if files, err := filepath.Glob(filepath.Join(dir, "cgroup-*")); err != nil || len(files) != 1 { // the half one
		t.Errorf("claims: %q, %v", files, err)
	}
	if err := errors.Join(os.Remove(files[0]), os.Remove(files[1])); err == nil {
		t.Error("both were left")
	}
	if err := held.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory: %v", err)
	}
}
