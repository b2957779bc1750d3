package runtime_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

const reasonOfFake = "memory has no quotas"

func limited(bytes int64, bestEffort bool) runtime.CreateRequest {
	req := plain("desk")
	req.Spec.Resources.DiskBytes, req.Spec.Resources.DiskBestEffort = bytes, bestEffort
	return req
}

// A limit of the writable layer that nobody would enforce is refused, with the
// cause, unless that is good enough.
func TestDiskLimitThatCannotBe(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	_, _, err := d.Create(t.Context(), limited(1<<30, false))
	p := problem.Of(err)
	if p.Reason != problem.DiskQuotaUnsupported || p.Field != "spec.resources.disk_bytes" || !strings.Contains(p.Message, reasonOfFake) ||
		!strings.Contains(p.Hint, "use a disk") || !strings.Contains(p.Hint, "--disk-best-effort") {
		t.Fatalf("create: %+v", p)
	}
	d.holdsNothing()
	env, op := d.create(limited(1<<30, true))
	if op.State != operation.Succeeded || env.Disk.Bytes != 0 || env.Disk.NotEnforced != reasonOfFake ||
		len(env.Warnings) != 1 || !strings.Contains(env.Warnings[0], reasonOfFake) || env.Spec.Resources.DiskBytes != 1<<30 {
		t.Errorf("best effort: %+v %+v", env, op.Problem)
	}
	if c, _ := h.engine.Container(env.ID); c.Resources.DiskBytes != 0 {
		t.Errorf("the engine was asked for %d bytes", c.Resources.DiskBytes)
	}
	// The filesystem is mounted with quotas from now on.
	h.engine.SetDiskQuota(true)
	d.act(d.Restart, "desk")
	if env, err = d.Get(t.Context(), "", "desk"); err != nil || env.Disk.Bytes != 1<<30 || env.Disk.NotEnforced != "" {
		t.Errorf("after a restart with quotas: %+v %v", env, err)
	}
}

// A limit that is enforced is said to be so as long as it is.
func TestDiskLimit(t *testing.T) {
	h := newHost(t)
	h.engine.SetDiskQuota(true)
	d := start(t, h)
	env, op := d.create(limited(1<<30, false))
	if op.State != operation.Succeeded || env.Disk != (runtime.DiskLimit{Bytes: 1 << 30}) || len(env.Warnings) != 0 {
		t.Fatalf("create: %+v %+v", env, op.Problem)
	}
	if c, _ := h.engine.Container(env.ID); c.Resources.DiskBytes != 1<<30 {
		t.Errorf("the engine was asked for %d bytes", c.Resources.DiskBytes)
	}
	none, _ := d.create(plain("none"))
	if none.Disk != (runtime.DiskLimit{}) {
		t.Errorf("without a limit: %+v", none.Disk)
	}
	// It is not any more: the environment does not run without its limit.
	h.engine.SetDiskQuota(false)
	op = d.act(d.Restart, "desk")
	if op.State != operation.Failed || op.Problem.Reason != string(problem.DiskQuotaUnsupported) {
		t.Errorf("restart without quotas: %+v", op)
	}
	if env, err := d.Get(t.Context(), "", "desk"); err != nil || env.State != runtime.Failed || env.Problem.Reason != string(problem.DiskQuotaUnsupported) {
		t.Errorf("after it: %+v %v", env, err)
	}
	h.engine.SetDiskQuota(true)
	if op = d.act(d.Start, "desk"); op.State != operation.Succeeded {
		t.Errorf("start with quotas: %+v", op.Problem)
	}
	d.act(d.Delete, "desk")
	d.act(d.Delete, "none")
	d.holdsNothing()
}

func TestDiskLimitIsChecked(t *testing.T) {
	h := newHost(t)
	h.engine.SetDiskQuota(true)
	d := start(t, h)
	for field, req := range map[string]runtime.CreateRequest{
		"spec.resources.disk_bytes": limited(runtime.MinDisk-1, false), "spec.resources.disk_best_effort": limited(0, true),
	} {
		if _, _, err := d.Create(t.Context(), req); problem.Of(err).Reason != problem.FieldInvalid || problem.Of(err).Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	h.engine.SetDown(true)
	if _, _, err := d.Create(t.Context(), limited(1<<30, true)); problem.Of(err).Reason != problem.ContainerdDown {
		t.Errorf("while nobody can tell: %v", err)
	}
	h.engine.SetDown(false)
	d.holdsNothing()
}

// A limit can be changed; it is in force when the process starts, and refused
// at once where it could not be.
func TestDiskLimitChanged(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(plain("desk"))
	wider := runtime.Spec{Resources: runtime.Resources{DiskBytes: 2 << 30}}
	group := runtime.UpdateRequest{Environment: "desk", Fields: []string{"spec.resources"}, Spec: wider}
	if _, err := d.Update(t.Context(), group); problem.Of(err).Reason != problem.DiskQuotaUnsupported {
		t.Fatalf("update without quotas: %v", err)
	}
	h.engine.SetDiskQuota(true)
	group.Fields = []string{"spec.resources.disk_bytes"}
	updated, op := d.update(group)
	if op.State != operation.Succeeded || len(updated.RestartNeeded) != 1 || updated.RestartNeeded[0] != group.Fields[0] {
		t.Fatalf("update: %v %+v", updated.RestartNeeded, op)
	}
	d.act(d.Restart, "desk")
	if env := d.get("desk"); env.Disk.Bytes != 2<<30 || len(env.RestartNeeded()) != 0 {
		t.Errorf("after a restart: %+v", env)
	}
	group.Fields, group.Spec = []string{"spec.resources"}, runtime.Spec{}
	d.update(group)
	d.act(d.Restart, "desk")
	if env := d.get("desk"); env.Disk != (runtime.DiskLimit{}) || env.Spec.Resources.DiskBytes != 0 {
		t.Errorf("without a limit again: %+v", env)
	}
}

// While the disk of the database is full nothing is begun that would write more
// to it; what ends or removes is, and a request that was repeated is answered.
func TestNothingNewOnAFullDisk(t *testing.T) {
	h := asking(t)
	d := start(t, h)
	d.create(plain("desk"))
	first, err := d.Pull(t.Context(), pullPrivate())
	if err != nil {
		t.Fatal(err)
	}
	d.done(first)
	h.full = problem.New(problem.DiskFull, "full")
	for what, ask := range map[string]func() error{
		"create": func() error { _, _, err := d.Create(t.Context(), plain("more")); return err },
		"port": func() error {
			_, _, err := d.CreatePort(t.Context(), runtime.PortCreateRequest{Environment: "desk", Port: web(8080)})
			return err
		},
		"pull": func() error { _, err := d.Pull(t.Context(), runtime.PullRequest{Reference: private}); return err },
		"push": func() error { _, err := d.Push(t.Context(), runtime.PushRequest{Reference: image}); return err },
	} {
		if p := problem.Of(ask()); p == nil || p.Reason != problem.DiskFull {
			t.Errorf("%s: %+v", what, p)
		}
	}
	if again, err := d.Pull(t.Context(), pullPrivate()); err != nil || again.ID != first.ID {
		t.Errorf("the pull of before: %+v, %v", again, err)
	}
	for _, do := range []func(context.Context, runtime.ActionRequest) (*runtime.Environment, *operation.Operation, error){d.Stop, d.Start, d.Delete} {
		if op := d.act(do, "desk"); op.State != operation.Succeeded {
			t.Errorf("%s: %+v", op.Kind, op.Problem)
		}
	}
	entries, err := os.ReadDir(filepath.Join(h.dir, "credentials"))
	if err != nil || len(entries) > 0 {
		t.Errorf("credentials %v, %v", entries, err)
	}
}
