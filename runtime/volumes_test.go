package runtime_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

// realVolumes gives the host volumes that are directories.
func (h *host) realVolumes(t *testing.T) *volume.Manager {
	t.Helper()
	volumes, err := volume.New(volume.Config{
		StateDir: filepath.Join(h.dir, "state"), StageDir: filepath.Join(h.dir, "mounts"), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	h.named = volumes
	return volumes
}

// After the database was lost, or an older one restored, a container that it
// does not know still has its volumes: they are not deleted under it.
func TestVolumeOfAnUnknownContainerStays(t *testing.T) {
	testutil.Require(t, testutil.Root)
	h := newHost(t)
	volumes := h.realVolumes(t)
	d := start(t, h)
	mounts := []volume.Mount{
		{Type: volume.Volume, Source: "data", Target: "/data"}, {Type: volume.Volume, Source: "more", Target: "/more", ReadOnly: true},
	}
	t.Cleanup(func() {
		if err := volumes.Unstage(context.WithoutCancel(t.Context()), stranger); err != nil {
			t.Error(err)
		}
	})
	if _, err := volumes.Stage(t.Context(), stranger, mounts); err != nil {
		t.Fatal(err)
	}
	if _, err := d.CreateVolume(t.Context(), "free"); err != nil {
		t.Fatal(err)
	}
	env, _ := d.create(full("desk")) // mounts data
	all, err := d.Volumes(t.Context())
	if err != nil || len(all) != 3 || !slices.Equal(all[0].UsedBy, []string{env.ID, stranger}) || len(all[1].UsedBy) != 0 || !slices.Equal(all[2].UsedBy, []string{stranger}) {
		t.Errorf("the volumes: %+v, %v", all, err)
	}
	d.act(d.Delete, "desk")
	for _, name := range []string{"data", "more"} {
		p := problem.Of(d.DeleteVolume(t.Context(), name))
		if p == nil || p.Reason != problem.VolumeInUse || p.Field != "name" || !strings.Contains(p.Message, stranger) || !strings.Contains(p.Hint, "reconcile") {
			t.Errorf("deleting %s: %+v", name, p)
		}
	}
	if err := d.DeleteVolume(t.Context(), "free"); err != nil {
		t.Error(err)
	}
	if err := volumes.Unstage(t.Context(), stranger); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"data", "more"} {
		if err := d.DeleteVolume(t.Context(), name); err != nil {
			t.Errorf("deleting %s when nobody has it: %v", name, err)
		}
	}
}

// An older database may know a container with fewer mounts than it was started
// with.
func TestVolumeThatOnlyTheProcessHasStays(t *testing.T) {
	testutil.Require(t, testutil.Root)
	h := newHost(t)
	volumes := h.realVolumes(t)
	d := start(t, h)
	env, _ := d.create(full("desk"))
	t.Cleanup(func() {
		if err := volumes.Unstage(context.WithoutCancel(t.Context()), env.ID); err != nil {
			t.Error(err)
		}
	})
	if _, err := volumes.Stage(t.Context(), env.ID, []volume.Mount{{Type: volume.Volume, Source: "other", Target: "/other"}}); err != nil {
		t.Fatal(err)
	}
	if p := problem.Of(d.DeleteVolume(t.Context(), "other")); p == nil || p.Reason != problem.VolumeInUse || !strings.Contains(p.Message, "desk") {
		t.Errorf("while it runs: %+v", p)
	}
	d.act(d.Stop, "desk")
	if err := d.DeleteVolume(t.Context(), "other"); err != nil {
		t.Errorf("when it has ended: %v", err)
	}
}

// vanishing deletes a volume just before it is measured.
type vanishing struct {
	runtime.NamedVolumes
	dir, name string
}

func (v vanishing) Size(ctx context.Context, name string) (int64, bool, error) {
	if name == v.name {
		if err := os.RemoveAll(filepath.Join(v.dir, name)); err != nil {
			return 0, false, err
		}
	}
	return v.NamedVolumes.Size(ctx, name)
}

// One of many volumes may go while they are measured; who asks for that one is
// told.
func TestVolumesAreMeasuredWhileOneGoes(t *testing.T) {
	h := newHost(t)
	h.named = vanishing{h.realVolumes(t), filepath.Join(h.dir, "state", "volumes"), "b"}
	d := start(t, h)
	for _, name := range []string{"a", "b", "c"} {
		if _, err := d.CreateVolume(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	all, err := d.Volumes(t.Context())
	if err == nil {
		all, err = d.MeasureVolumes(t.Context(), all)
	}
	if err != nil || len(all) != 2 || all[0].Name != "a" || all[1].Name != "c" || all[0].Size < 0 || all[1].Size < 0 {
		t.Errorf("measured: %+v, %v", all, err)
	}
	if _, err := d.CreateVolume(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Volume(t.Context(), "b"); err == nil || problem.Of(err).Reason != problem.VolumeNotFound {
		t.Errorf("the one that goes: %v", err)
	}
}

// Files of a deleted volume that an error left are found and removed by a pass.
func TestFilesOfDeletedVolumesGo(t *testing.T) {
	h := newHost(t)
	h.realVolumes(t)
	d := start(t, h)
	trash := filepath.Join(h.dir, "state", "volumes", "..deleted-X")
	if err := os.MkdirAll(filepath.Join(trash, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(trash, "data", "file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	found := func(dryRun bool) runtime.Finding {
		t.Helper()
		findings, err := d.ReconcileNow(t.Context(), dryRun)
		if err != nil || len(findings) != 1 || findings[0].Kind != runtime.FoundVolume || findings[0].Name != trash || !findings[0].Ours {
			t.Fatalf("found %+v, %v", findings, err)
		}
		return findings[0]
	}
	if found(true).Done {
		t.Error("a dry run says that it has removed something")
	}
	if f := found(false); !f.Done || f.Problem != nil {
		t.Errorf("the pass: %+v", f)
	}
	if _, err := os.Stat(trash); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the files: %v", err)
	}
	if findings, err := d.ReconcileNow(t.Context(), false); err != nil || len(findings) > 0 {
		t.Errorf("the pass after it: %+v, %v", findings, err)
	}
}
