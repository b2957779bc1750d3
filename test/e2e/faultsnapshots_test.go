package e2e_test

import (
	"net/http"
	"strings"
	"testing"
)

// then does one thing after another.
func then(steps ...func(testing.TB, *faultNode)) func(testing.TB, *faultNode) {
	return func(tb testing.TB, f *faultNode) {
		tb.Helper()
		for _, step := range steps {
			step(tb, f)
		}
	}
}

// kept reads the snapshots that there are.
func (f *faultNode) kept(tb testing.TB) []snapshot {
	tb.Helper()
	var list struct {
		Snapshots []snapshot `json:"snapshots"`
	}
	if status, text, err := f.ask("SnapshotService/ListSnapshots", "{}", &list); err != nil || status != http.StatusOK {
		tb.Fatalf("list snapshots: %d %s %v", status, text, err)
	}
	return list.Snapshots
}

func noSnapshots(tb testing.TB, f *faultNode) {
	tb.Helper()
	for _, s := range f.kept(tb) {
		f.must(tb, "SnapshotService/DeleteSnapshot", `{"snapshot":"`+s.ID+`"}`)
	}
}

// keptSnapshot makes one snapshot, "kept".
func keptSnapshot(tb testing.TB, f *faultNode) {
	tb.Helper()
	if f.hasKept(tb) {
		return
	}
	noSnapshots(tb, f)
	f.must(tb, "SnapshotService/CreateSnapshot", `{"environment":"one","name":"kept","wait":"60s"}`)
}

func (f *faultNode) hasKept(tb testing.TB) bool {
	tb.Helper()
	all, env := f.kept(tb), f.environment(tb)
	return len(all) == 1 && all[0].Name == "kept" && env != nil && all[0].EnvID == env.ID
}

// keptRunning makes a snapshot of an environment that runs, unless there is one:
// its layer is not on the snapshot then, as that of one that is stopped would be.
func keptRunning(running func(testing.TB, *faultNode)) func(testing.TB, *faultNode) {
	return func(tb testing.TB, f *faultNode) {
		tb.Helper()
		if !f.hasKept(tb) {
			running(tb, f)
			keptSnapshot(tb, f)
		}
	}
}

// oneSnapshot checks that there is one whole snapshot and nothing half made,
// and that the environment is as before it was taken, with its files.
func oneSnapshot(state string) func(testing.TB, *faultNode) {
	return func(tb testing.TB, f *faultNode) {
		tb.Helper()
		if all := f.kept(tb); len(all) != 1 || all[0].State != "SNAPSHOT_STATE_READY" {
			tb.Errorf("snapshots: %+v", all)
		}
		if n := f.count(tb, "SELECT count(*) FROM snapshots WHERE operation != ''"); n > 0 {
			tb.Errorf("%d snapshots are owned by an operation that has ended", n)
		}
		env := f.environment(tb)
		if env == nil || env.State != state {
			tb.Errorf("the environment is %+v, want %s", env, state)
			return
		}
		if _, task := f.task(tb, env.ID); state == stateRunning && task != "RUNNING" {
			tb.Errorf("its process is %s", task)
		}
		whole := 0
		for line := range strings.Lines(f.Containerd.Ctr(tb, "snapshots", "ls")) {
			fields := strings.Fields(line)
			switch {
			case len(fields) == 0 || !strings.HasPrefix(fields[0], "remotegpu-snapshot-"):
			case fields[len(fields)-1] == "Committed":
				whole++
			default:
				tb.Errorf("left behind: %s", line)
			}
		}
		held := func() bool {
			return strings.Contains(f.Containerd.Ctr(tb, "leases", "ls", "-q"), "remotegpu-snapshot-")
		}
		if held() { // one that could not be ended, which the next pass does
			f.must(tb, "NodeService/Reconcile", "{}")
		}
		if held() {
			tb.Error("leases are left")
		}
		if whole < 1 { // those that were deleted stay while the environment builds on them
			tb.Error("containerd has no snapshot")
		}
	}
}
