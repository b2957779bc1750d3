package runtime_test

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/runtime"
)

// A calm node spares passes until somebody works on an environment, something
// fails, or what an environment lives by has gone, though nobody tells.
func TestCalmNodeSparesPasses(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(plain("desk"))
	calmed := func(after string) {
		t.Helper()
		if d.Spare(t.Context()) {
			t.Errorf("%s: no pass though there should be", after)
		}
		if d.reconcile(false); d.Spare(t.Context()) {
			t.Errorf("%s: one pass is enough", after)
		}
		d.reconcile(false)
		for range 10 {
			if !d.Spare(t.Context()) {
				t.Errorf("%s: all is well, and there is another pass", after)
			}
		}
	}
	calmed("a create")
	for _, row := range []struct {
		what       string
		do, mended func()
	}{
		{"the writer of a log died", func() { h.engine.LoseLog(env.ID) }, func() { d.act(d.Restart, "desk") }},
		{"a network was unpinned", func() { h.networks.Unpin(env.ID) }, func() { d.act(d.Restart, "desk") }},
		{"whether a network is pinned is not known", func() { h.faults.FailCall("Networks.Pinned", 1, errors.New("broken")) }, func() { d.act(d.Restart, "desk") }},
		{"the engine does not answer", func() { h.faults.FailCall("Engine.Info", 1, errors.New("broken")) }, func() { d.act(d.Restart, "desk") }},
		{"a dry run has looked", func() { d.reconcile(true) }, func() {}},
		{"a pass failed", func() {
			h.faults.FailCall("Networks.Drift", 1, errors.New("broken"))
			if _, err := d.ReconcileNow(t.Context(), false); err == nil {
				t.Error("it did not")
			}
		}, func() {}},
		{"a pull broke off, and may have left what came", func() {
			h.faults.FailCall("Images.Pull", 1, errdefs.ErrUnavailable)
			op, err := d.Pull(t.Context(), runtime.PullRequest{Reference: "test/absent"})
			if err != nil {
				t.Error(err)
				return
			}
			d.done(op)
		}, func() {}},
		{"the end of a process could not be recorded", func() {
			h.faults.FailCall("Store.UpdateEnvironment", 1, errors.New("broken"))
			if err := h.engine.Exit(env.ID, runtime.Exit{Code: 1}); err != nil {
				t.Error(err)
			}
			d.reconcile(false) // until then the event may not have come
		}, func() { d.act(d.Start, "desk") }},
	} {
		row.do()
		if d.Spare(t.Context()) {
			t.Errorf("%s: no pass", row.what)
		}
		row.mended()
		calmed(row.what)
	}
	d.act(d.Stop, "desk")
	calmed("a stop")
	d.act(d.Delete, "desk")
	calmed("a delete")
}
