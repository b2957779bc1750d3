package volume_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

func unused(context.Context) ([]string, error) { return nil, nil }

func wantReason(t *testing.T, what string, err error, want problem.Reason) {
	t.Helper()
	if err == nil || problem.Of(err).Reason != want {
		t.Errorf("%s: %v, want %s", what, err, want)
	}
}

func TestCatalog(t *testing.T) {
	m, config := newManager(t)
	ctx := t.Context()
	if all, err := m.List(ctx); err != nil || len(all) != 0 {
		t.Errorf("before the first: %v, %v", all, err)
	}
	if err := m.RemoveDeleted(ctx); err != nil {
		t.Error(err)
	}
	start := time.Now().Add(-time.Minute)
	for _, name := range []string{"models", "data", "trash"} {
		if info, err := m.Create(ctx, name); err != nil || info.Name != name || info.CreatedAt.Before(start) {
			t.Fatalf("Create(%s) = %+v, %v", name, info, err)
		}
	}
	_, err := m.Create(ctx, "data")
	wantReason(t, "twice", err, problem.VolumeExists)
	for _, bad := range []string{"", ".", "..", "../x", "A", "a/b", ".data", "..deleted-x", strings.Repeat("a", 64)} {
		_, err := m.Create(ctx, bad)
		wantReason(t, "create "+bad, err, problem.VolumeNameInvalid)
		_, err = m.Get(ctx, bad)
		wantReason(t, "get "+bad, err, problem.VolumeNotFound)
		_, _, err = m.Size(ctx, bad)
		wantReason(t, "size of "+bad, err, problem.VolumeNotFound)
		wantReason(t, "delete "+bad, m.Delete(ctx, bad, unused), problem.VolumeNotFound)
	}
	all, err := m.List(ctx)
	if err != nil || len(all) != 3 || all[0].Name != "data" || all[1].Name != "models" || all[2].Name != "trash" {
		t.Errorf("List() = %+v, %v", all, err)
	}
	data := filepath.Join(config.StateDir, "volumes", "data", "data")
	if err := os.WriteFile(filepath.Join(data, "file"), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(data, "file"), filepath.Join(data, "again")); err != nil {
		t.Fatal(err)
	}
	// A link out of it counts as a link.
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, make([]byte, 4<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(big), filepath.Join(data, "out")); err != nil {
		t.Fatal(err)
	}
	if size, measured, err := m.Size(ctx, "data"); err != nil || !measured || size < 1<<20 || size > 1<<20+64<<10 {
		t.Errorf("Size() = %d, %v, %v, want 1 MiB", size, measured, err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, measured, err := m.Size(ended, "data"); err != nil || measured {
		t.Errorf("without time: %v, %v", measured, err)
	}
	used := func(context.Context) ([]string, error) { return []string{"env1"}, nil }
	wantReason(t, "in use", m.Delete(ctx, "data", used), problem.VolumeInUse)
	broken := errors.New("no store")
	if err := m.Delete(ctx, "data", func(context.Context) ([]string, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("users unknown: %v", err)
	}
	if _, err := os.Stat(filepath.Join(data, "file")); err != nil {
		t.Errorf("a refused delete: %v", err)
	}
	if err := m.Delete(ctx, "data", unused); err != nil {
		t.Error(err)
	}
	wantReason(t, "again", m.Delete(ctx, "data", unused), problem.VolumeNotFound)
	if _, err := os.Stat(big); err != nil {
		t.Errorf("delete followed a link: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(config.StateDir, "volumes")); len(left) != 2 {
		t.Errorf("left: %v", left)
	}
}

// TestDeleteInterrupted plays a crash after the rename: the volume has gone,
// and its files go later.
func TestDeleteInterrupted(t *testing.T) {
	m, config := newManager(t)
	if _, err := m.Create(t.Context(), "data"); err != nil {
		t.Fatal(err)
	}
	volumes := filepath.Join(config.StateDir, "volumes")
	trash := filepath.Join(volumes, "..deleted-X")
	if err := os.Rename(filepath.Join(volumes, "data"), trash); err != nil {
		t.Fatal(err)
	}
	if all, err := m.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("List() = %v, %v", all, err)
	}
	if _, err := m.Create(t.Context(), "data"); err != nil {
		t.Errorf("the name is free again: %v", err)
	}
	if err := m.RemoveDeleted(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(trash); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the files: %v", err)
	}
	if _, err := m.Get(t.Context(), "data"); err != nil {
		t.Errorf("the new one: %v", err)
	}
}

// What an error leaves of a deleted volume is told of, and removed when somebody
// asks; what somebody removes at the moment is not.
func TestDeleteThatFails(t *testing.T) {
	m, config := newManager(t)
	broken := errors.New("broken on purpose")
	volume.RemoveWith(m, func(string, func() error) error {
		if left, err := m.Deleted(t.Context()); err != nil || len(left) > 0 {
			t.Errorf("while its files are removed: %v, %v", left, err)
		}
		if err := m.RemoveDeleted(t.Context()); err != nil { // it is left to who does it
			t.Errorf("beside that: %v", err)
		}
		return broken
	})
	if _, err := m.Create(t.Context(), "data"); err != nil {
		t.Fatal(err)
	}
	err := m.Delete(t.Context(), "data", unused)
	if p := problem.Of(err); !errors.Is(err, broken) || p.Hint == "" || strings.Count(p.Said(), broken.Error()) != 1 {
		t.Errorf("Delete() = %v, %+v", err, p)
	}
	_, err = m.Get(t.Context(), "data")
	wantReason(t, "afterwards", err, problem.VolumeNotFound)
	left, err := m.Deleted(t.Context())
	if err != nil || len(left) != 1 || filepath.Dir(left[0]) != filepath.Join(config.StateDir, "volumes") {
		t.Fatalf("Deleted() = %v, %v", left, err)
	}
	if err := m.RemoveDeleted(t.Context()); !errors.Is(err, broken) {
		t.Errorf("RemoveDeleted() = %v", err)
	}
	volume.RemoveWith(m, func(_ string, do func() error) error { return do() })
	if err := m.RemoveDeleted(t.Context()); err != nil {
		t.Error(err)
	}
	if left, err := m.Deleted(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("in the end: %v, %v", left, err)
	}
}

// TestDeleteAgainstStage: an environment writes down that it uses a volume and
// then stages it, while the volume is deleted. Either the delete sees it, or
// the environment has a new volume that stays.
func TestDeleteAgainstStage(t *testing.T) {
	testutil.Require(t, testutil.Root)
	m, config := stageManager(t)
	for range 50 {
		var mu sync.Mutex
		var users []string
		if _, err := m.Create(t.Context(), "data"); err != nil && problem.Of(err).Reason != problem.VolumeExists {
			t.Fatal(err)
		}
		var both sync.WaitGroup
		both.Go(func() {
			mu.Lock()
			users = append(users, "env1")
			mu.Unlock()
			if _, err := m.Stage(t.Context(), "env1", []volume.Mount{{Type: volume.Volume, Source: "data", Target: "/data"}}); err != nil {
				t.Error(err)
			}
		})
		both.Go(func() {
			err := m.Delete(t.Context(), "data", func(context.Context) ([]string, error) {
				mu.Lock()
				defer mu.Unlock()
				return users, nil
			})
			if err != nil {
				wantReason(t, "delete", err, problem.VolumeInUse)
			}
		})
		both.Wait()
		// What is staged is the volume that has the name.
		if err := os.WriteFile(filepath.Join(config.StageDir, "env1", "0", "mark"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(config.StateDir, "volumes", "data", "data", "mark")); err != nil {
			t.Fatalf("the environment's volume was deleted: %v", err)
		}
		if err := m.Unstage(t.Context(), "env1"); err != nil {
			t.Fatal(err)
		}
	}
}
