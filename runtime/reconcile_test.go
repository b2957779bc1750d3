package runtime_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

const (
	nobody   = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
	stranger = "01ARZ3NDEKTSV4RRFFQ69G5FAW"
)

// said are findings in short, without how they went.
func said(findings []runtime.Finding) []string {
	lines := make([]string, 0, len(findings))
	for _, f := range findings {
		lines = append(lines, fmt.Sprintf("%s %s %s ours=%t", f.Kind, f.Name, f.Action, f.Ours))
	}
	return lines
}

func (d *daemon) reconcile(dryRun bool) []runtime.Finding {
	d.t.Helper()
	findings, err := d.ReconcileNow(d.t.Context(), dryRun)
	if err != nil {
		d.t.Fatalf("reconcile: %v", err)
	}
	return findings
}

// A dry run shows what a pass does, and does none of it.
func TestDryRunShowsWhatAPassDoes(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(plain("desk"))
	gone, _ := d.create(plain("gone"))
	d.act(d.Delete, "gone")
	h.engine.Forget() // the process ends and no event tells
	for _, part := range []runtime.Part{
		{Kind: runtime.FoundSnapshot, Name: gone.ID, EnvID: gone.ID},
		{Kind: runtime.FoundLog, Name: "/logs/" + nobody + ".log.3", EnvID: nobody},
		{Kind: runtime.FoundLease, Name: "lease-1"},
		{Kind: runtime.FoundLease, Name: "lease-2", Foreign: "somebody else's"},
	} {
		h.engine.AddPart(part)
	}
	h.networks.AddStray("rgpu-aaaaaaaa")
	if err := h.networks.Attach(t.Context(), nobody, 40); err != nil {
		t.Fatal(err)
	}
	if err := h.networks.Publish(t.Context(), env.ID, env.Address, nil); err != nil { // somebody flushed them
		t.Fatal(err)
	}
	want := []string{
		"interface rgpu-aaaaaaaa remove ours=true",
		"lease 1 of them none ours=false",
		"lease lease-1 remove ours=true",
		"log /logs/" + nobody + ".log.3 remove ours=true",
		"network " + nobody + " remove ours=true",
		"environment " + env.ID + " record ours=true",
		"rule ports mend ours=true",
		"snapshot " + gone.ID + " remove ours=true",
	}
	before := h.leftovers()
	h.faults.Reset()
	dry := d.reconcile(true)
	if diff := cmp.Diff(want, said(dry)); diff != "" {
		t.Errorf("dry run: %s", diff)
	}
	if diff := cmp.Diff(before, h.leftovers()); diff != "" {
		t.Errorf("the dry run changed the host: %s", diff)
	}
	for _, call := range h.faults.Calls() {
		_, name, _ := strings.Cut(call, ".")
		if !slices.Contains([]string{"List", "Status", "Parts", "Present", "Staged", "Prepared", "Drift", "Snapshots"}, name) {
			t.Errorf("the dry run called %s", call)
		}
	}
	if got, err := d.Get(t.Context(), "", "desk"); err != nil || got.State != runtime.Running {
		t.Errorf("the dry run changed the environment: %+v %v", got, err)
	}
	pass := d.reconcile(false)
	if diff := cmp.Diff(want, said(pass)); diff != "" {
		t.Errorf("pass: %s", diff)
	}
	for i := range pass {
		if f := &pass[i]; f.Done != (f.Action != runtime.ActionNone) || f.Problem != nil || dry[i].Done {
			t.Errorf("how it went: dry %+v, real %+v", dry[i], *f)
		}
		if f := &pass[i]; f.EnvID == env.ID && f.EnvName != "desk" {
			t.Errorf("without a name: %+v", f)
		}
	}
	if got, err := d.Get(t.Context(), "", "desk"); err != nil || got.State != runtime.Failed {
		t.Errorf("after the pass: %+v %v", got, err)
	}
	if again := said(d.reconcile(true)); len(again) != 1 || again[0] != "lease 1 of them none ours=false" {
		t.Errorf("afterwards: %v", again)
	}
	for _, piece := range h.leftovers() {
		if !strings.Contains(piece, env.ID) && !strings.Contains(piece, "lease-2") {
			t.Errorf("left behind: %s", piece)
		}
	}
}

// Of an environment whose shim does not answer no end is told, and the others
// are brought in order.
func TestNothingIsConcludedFromAShimThatDoesNotAnswer(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	slow, _ := d.create(plain("slow"))
	h.engine.Forget() // the list has no process of it
	h.networks.AddStray("rgpu-aaaaaaaa")
	broken := fmt.Errorf("the shim does not answer: %w", errdefs.ErrUnavailable)
	for _, dryRun := range []bool{true, false} {
		h.faults.FailCall("Engine.Status", 1, broken)
		found, err := d.ReconcileNow(t.Context(), dryRun)
		if got := said(found); !errors.Is(err, broken) || len(got) != 1 || !strings.HasPrefix(got[0], "interface ") || found[0].Done == dryRun {
			t.Errorf("dry run %t: %v, %v", dryRun, got, err)
		}
	}
	if got := said(d.reconcile(true)); len(got) != 1 || !strings.HasPrefix(got[0], "environment "+slow.ID) {
		t.Errorf("when it answers again: %v", got)
	}
}

// What fails is told with its finding, and the rest is done.
func TestFailedActionIsTold(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	broken := errors.New("broken")
	for slot, id := range []string{nobody, stranger} {
		if err := h.networks.Attach(t.Context(), id, slot+10); err != nil {
			t.Fatal(err)
		}
	}
	h.faults.FailCall("Networks.Detach", 1, broken)
	findings := d.reconcile(false)
	// Several are removed at the same time: either may be the one that fails.
	if len(findings) == 2 && findings[0].Done {
		slices.Reverse(findings)
	}
	if len(findings) != 2 || findings[0].Done || findings[0].Problem == nil || !strings.Contains(findings[0].Problem.Message, "broken") ||
		!findings[1].Done || findings[1].Problem != nil {
		t.Fatalf("got %+v", findings)
	}
	if left := h.networks.Leftovers(); len(left) != 1 || !strings.Contains(left[0], findings[0].EnvID) {
		t.Errorf("left: %v", left)
	}
	if findings = d.reconcile(false); len(findings) != 1 || !findings[0].Done {
		t.Errorf("the next pass: %+v", findings)
	}
}

// A list that fails takes nothing away from the others, and nothing is
// concluded from it.
func TestPassGoesOnWithoutAList(t *testing.T) {
	for _, call := range []string{"Engine.Parts", "Networks.Present", "Networks.Drift", "Volumes.Staged", "Desktops.Prepared"} {
		h := newHost(t)
		d := start(t, h)
		kept, _ := d.create(full("kept"))
		h.engine.AddPart(runtime.Part{Kind: runtime.FoundSnapshot, Name: nobody, EnvID: nobody})
		if _, err := h.volumes.Stage(t.Context(), nobody, []volume.Mount{{Type: volume.Tmpfs, Target: "/x"}}); err != nil {
			t.Fatal(err)
		}
		broken := errors.New("broken")
		h.faults.FailCall(call, 1, broken)
		if _, err := d.ReconcileNow(t.Context(), false); !errors.Is(err, broken) {
			t.Errorf("%s: %v", call, err)
		}
		for _, piece := range h.leftovers() {
			if !strings.Contains(piece, kept.ID) {
				t.Errorf("%s: left behind: %s", call, piece)
			}
		}
		if got, err := d.Get(t.Context(), "", "kept"); err != nil || got.State != runtime.Running {
			t.Errorf("%s: %+v %v", call, got, err)
		}
		d.stop()
	}
}

// Files in the node's directory that are not named like an environment are
// somebody's own.
func TestForeignFilesAreLeftAlone(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	keep := filepath.Join(h.dir, "environments", "lost+found")
	ours := filepath.Join(h.dir, "environments", nobody)
	for _, dir := range []string{keep, ours} {
		if err := os.MkdirAll(filepath.Join(dir, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"files lost+found none ours=false", "files " + nobody + " remove ours=true"}
	if diff := cmp.Diff(want, said(d.reconcile(false))); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Stat(filepath.Join(keep, "x")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(ours); !os.IsNotExist(err) {
		t.Errorf("the leftover: %v", err)
	}
}

// After the database was lost the addresses of containers that run on are not
// given to others, even while containerd does not answer.
func TestAddressOfAnUnknownContainerIsTaken(t *testing.T) {
	for _, down := range []bool{false, true} {
		t.Run(fmt.Sprintf("containerd down %t", down), func(t *testing.T) {
			h := newHost(t)
			h.networks.Range = 3
			for slot, id := range map[int]string{0: stranger, 2: "01ARZ3NDEKTSV4RRFFQ69G5FAX"} {
				if err := h.engine.Create(t.Context(), runtime.Container{ID: id, Image: image}); err != nil {
					t.Fatal(err)
				}
				if err := h.networks.Attach(t.Context(), id, slot); err != nil {
					t.Fatal(err)
				}
			}
			h.engine.SetDown(down)
			d := start(t, h)
			h.engine.SetDown(false)
			env, op := d.create(plain("desk"))
			if op.State != operation.Succeeded || env.Slot != 1 {
				t.Fatalf("slot %d, %+v", env.Slot, op.Problem)
			}
			if _, _, err := d.Create(t.Context(), plain("more")); problem.Of(err).Reason != problem.AddressPoolExhausted {
				t.Fatalf("all are in use: %v", err)
			}
			// It is removed by hand.
			if err := errors.Join(h.engine.Delete(t.Context(), stranger), h.networks.Detach(t.Context(), stranger)); err != nil {
				t.Fatal(err)
			}
			d.reconcile(false)
			if env, op := d.create(plain("more")); op.State != operation.Succeeded || env.Slot != 0 {
				t.Errorf("slot %d, %+v", env.Slot, op.Problem)
			}
		})
	}
}

// A second forced delete does not break the first one off amid its teardown.
func TestSecondForcedDeleteWaitsForTheFirst(t *testing.T) {
	for _, fails := range []bool{false, true} {
		t.Run(fmt.Sprintf("first fails %t", fails), func(t *testing.T) {
			h := newHost(t)
			d := start(t, h)
			env, _ := d.create(plain("desk"))
			if fails {
				h.faults.FailCall("Networks.Detach", 1, errors.New("broken"))
			}
			reached, release := blockCall(t, h, "Engine.Delete")
			req := runtime.ActionRequest{Environment: env.ID, Force: true}
			_, first, err := d.Delete(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			await(t, "teardown", reached)
			_, second, err := d.Delete(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			if op, err := d.queue.Get(t.Context(), first.ID); err != nil || op.CancelRequested {
				t.Errorf("the first is to be cancelled: %+v %v", op, err)
			}
			release()
			want := operation.Succeeded
			if fails {
				want = operation.Failed
			}
			if op := d.done(first); op.State != want {
				t.Errorf("the first: %+v", op)
			}
			if op := d.done(second); op.State != operation.Succeeded {
				t.Errorf("the second: %+v", op)
			}
			if _, err := d.Get(t.Context(), "", env.ID); problem.Of(err).Reason != problem.EnvNotFound {
				t.Errorf("it is still there: %v", err)
			}
			d.holdsNothing()
		})
	}
}

// An environment that is made while a pass looks around is no finding.
func TestPassBesideCreatesAndDeletes(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	over := make(chan struct{})
	go func() {
		defer close(over)
		for i := range 20 {
			name := fmt.Sprintf("desk-%d", i)
			d.create(plain(name))
			d.act(d.Delete, name)
		}
	}()
	for ctx.Err() == nil {
		findings, err := d.ReconcileNow(ctx, false)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range findings {
			if !f.Ours || f.Problem != nil {
				t.Errorf("finding %+v", f)
			}
		}
		select {
		case <-over:
			// The fake publishes what a list says that is older than a delete;
			// the network keeps what was declared lately.
			if err := d.Reconcile(ctx); err != nil {
				t.Fatal(err)
			}
			d.holdsNothing()
			return
		default:
		}
	}
	t.Error("it takes too long")
}

// The API is served before what was left behind is removed: a host may be full
// of that.
func TestAdoptRemovesNothing(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	h.engine.AddPart(runtime.Part{Kind: runtime.FoundLog, Name: "/logs/" + nobody + ".log.3", EnvID: nobody})
	h.engine.AddPart(runtime.Part{Kind: runtime.FoundLease, Name: "lease-1"})
	before := h.leftovers()
	d.Adopt(t.Context())
	if diff := cmp.Diff(before, h.leftovers()); diff != "" || len(before) == 0 {
		t.Errorf("adopting changed what was left behind: %s", diff)
	}
	if err := d.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := h.leftovers(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestMissingContainerIsFinal: what has no container any more is in error for
// that, whether it ran or not, and neither people nor its policy start it.
func TestMissingContainerIsFinal(t *testing.T) {
	for name, prepare := range map[string]func(*daemon){
		"ran": func(*daemon) {},
		"stopped": func(d *daemon) {
			d.act(d.Stop, "desk")
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			d := start(t, h)
			spec := plain("desk")
			spec.Spec.Restart = &runtime.RestartPolicy{Mode: runtime.RestartAlways}
			env, _ := d.create(spec)
			prepare(d)
			if err := h.engine.Delete(t.Context(), env.ID); err != nil {
				t.Fatal(err)
			}
			gone := func(when string) {
				t.Helper()
				got, err := d.Get(t.Context(), "", "desk")
				if err != nil || got.State != runtime.Failed || got.Problem == nil || got.Problem.Reason != string(problem.EnvNotStartable) ||
					!strings.Contains(got.Problem.Message, "container is missing") || !strings.Contains(got.Problem.Hint, "delete it") || !got.RestartAt.IsZero() {
					t.Errorf("%s: %+v, %+v, %v", when, got, got.Problem, err)
				}
			}
			d.reconcile(false)
			gone("after a pass")
			if done := d.act(d.Start, "desk"); done.Problem == nil || done.Problem.Reason != string(problem.EnvNotStartable) || !strings.Contains(done.Problem.Hint, "delete it") {
				t.Errorf("a start: %+v", done.Problem)
			}
			gone("after a start")
			if got := d.reconcile(false); len(got) != 1 || got[0].Kind != runtime.FoundContainer || got[0].Action != runtime.ActionNone {
				t.Errorf("the pass after: %+v", got)
			}
			d.act(d.Delete, "desk")
			d.holdsNothing()
		})
	}
}

// TestUnpinnedNetworkComesBack: what somebody removed of the network of who runs is
// made again from the process, by the pass that finds it; when that fails it is
// told, and tried again.
func TestUnpinnedNetworkComesBack(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(plain("desk"))
	h.engine.SetNetNS(os.DevNull)
	want := []string{"network " + env.ID + " mend ours=true"}
	for what, damage := range map[string]func(){
		"the pin": func() { h.networks.Unpin(env.ID) },
		"all of it": func() {
			if err := h.networks.Detach(t.Context(), env.ID); err != nil {
				t.Error(err)
			}
		},
	} {
		damage()
		if got := said(d.reconcile(true)); !slices.Equal(got, want) {
			t.Errorf("%s: a dry run found %q, want %q", what, got, want)
		}
		h.faults.FailCall("Networks.Pin", 1, errors.New("broken"))
		if got := d.reconcile(false); len(got) != 1 || got[0].Done || got[0].Problem == nil {
			t.Errorf("%s: when it fails: %+v", what, got)
		}
		if got := d.Conditions(); len(got) != 1 || got[0].Reason != problem.NetworkLost {
			t.Errorf("%s: conditions when it fails: %+v", what, got)
		}
		if got := d.reconcile(false); len(got) != 1 || !got[0].Done {
			t.Errorf("%s: the pass after: %+v", what, got)
		}
		if there, err := h.networks.Pinned(env.ID); err != nil || !there {
			t.Errorf("%s: it is not back, %v", what, err)
		}
		if got := said(d.reconcile(false)); len(got) > 0 || len(d.Conditions()) > 0 {
			t.Errorf("%s: then: %q, %+v", what, got, d.Conditions())
		}
	}
}

// TestRemovedNetworkIsReported: who runs without a network is named, by the
// node and by itself, until a restart has made another.
func TestRemovedNetworkIsReported(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(plain("desk"))
	d.create(plain("other"))
	if err := h.networks.Detach(t.Context(), env.ID); err != nil {
		t.Fatal(err)
	}
	want := "network " + env.ID + " none ours=true"
	wantTold := func(told bool) {
		t.Helper()
		if got := said(d.reconcile(false)); slices.Contains(got, want) != told {
			t.Errorf("found %q; told %t", got, told)
		}
		i := slices.IndexFunc(d.Conditions(), func(c runtime.Condition) bool {
			return c.Reason == problem.NetworkLost && strings.HasSuffix(c.Message, ": desk") && strings.Contains(c.Hint, "env restart desk")
		})
		if i >= 0 != told {
			t.Errorf("conditions %+v; told %t", d.Conditions(), told)
		}
		got, err := d.Get(t.Context(), "", "desk")
		if err != nil || len(got.NetworkWarnings()) > 0 != told {
			t.Errorf("warnings %q, %v; told %t", got.NetworkWarnings(), err, told)
		}
	}
	wantTold(true)
	// A pass that cannot see networks takes nothing back.
	h.faults.FailCall("Networks.Present", 1, errors.New("broken"))
	if _, err := d.ReconcileNow(t.Context(), false); err == nil || len(d.Conditions()) != 1 {
		t.Errorf("without the list: %v, %+v", err, d.Conditions())
	}
	wantTold(true)
	d.act(d.Restart, "desk")
	if got, err := d.Get(t.Context(), "", "desk"); err != nil || len(got.NetworkWarnings()) > 0 {
		t.Errorf("restarted: %q, %v", got.NetworkWarnings(), err)
	}
	wantTold(false)
}
