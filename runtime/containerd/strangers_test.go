package containerd_test

import (
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/containerd"
)

// Nodes of one host may have been given one cgroup, and one id as after a copy of
// a database. Whether they have containerds of their own or namespaces of one, what
// the other runs lives on, also when its shim has died and its containerd is down.
func TestContainersOfOtherNodes(t *testing.T) {
	first, second := testutil.StartContainerd(t, testutil.Containerd), testutil.StartContainerd(t, testutil.Containerd2)
	second.Namespace, second.Cgroup = first.Namespace, first.Cgroup
	beside := *first
	beside.Namespace += "b"
	image := testutil.TestImage(t, testutil.ImageOptions{})
	engine, others := open(t, first), map[string]*containerd.Engine{}
	for name, d := range map[string]*testutil.ContainerdDaemon{"another containerd": second, "another namespace": &beside} {
		d.Import(t, image)
		others[name] = open(t, d)
	}
	first.Import(t, image)
	c := runtime.Container{ID: "one", Image: testutil.ImageName, NetNS: netNS(t, first)()}
	start(t, engine, c)
	status, err := engine.Status(t.Context(), c.ID)
	if err != nil || !status.Running {
		t.Fatalf("%+v, %v", status, err)
	}
	for name, other := range others {
		found, err := other.Parts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		found = slices.DeleteFunc(found, func(p runtime.Part) bool { return p.Kind == runtime.FoundLog })
		if len(found) != 1 || found[0].Kind != runtime.FoundCgroup || found[0].EnvID != c.ID || !found[0].Common {
			t.Errorf("%s finds %+v", name, found)
		}
		if err := other.Delete(t.Context(), c.ID); err != nil {
			t.Errorf("%s: delete: %v", name, err)
		}
		if err := other.Create(t.Context(), c); err != nil {
			t.Fatalf("%s: create: %v", name, err)
		}
		if _, err := other.Start(t.Context(), c); problem.Of(err).Reason != problem.ProcessStartFailed || !strings.Contains(err.Error(), first.Address) {
			t.Errorf("%s: start in the same cgroup: %v", name, err)
		}
		if err := other.Delete(t.Context(), c.ID); err != nil {
			t.Errorf("%s: delete what did not start: %v", name, err)
		}
		if now, err := engine.Status(t.Context(), c.ID); err != nil || !now.Running || now.PID != status.PID || !lives(status.PID) {
			t.Fatalf("after %s: %+v, %v", name, now, err)
		}
	}
	// In a cgroup of its own it is nobody else's.
	alone := *first
	alone.Namespace, alone.Cgroup = first.Namespace+"c", first.Cgroup+"/below"
	alone.Import(t, image)
	own := open(t, &alone)
	start(t, own, c)
	if err := own.Delete(t.Context(), c.ID); err != nil {
		t.Error(err)
	}
	if found := parts(t, own); slices.Contains(found, "cgroup one") {
		t.Errorf("its own cgroup is left: %q", found)
	}
	if err := cgroup.RemoveEmpty(alone.Cgroup); err != nil {
		t.Error(err)
	}
	shim := parent(t, status.PID)
	first.Kill(t)
	if err := syscall.Kill(shim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := others["another containerd"].Delete(t.Context(), c.ID); err != nil {
		t.Errorf("while the other is down: %v", err)
	}
	if !lives(status.PID) {
		t.Error("what ran without its shim has been killed")
	}
	first.Start(t)
	if err := engine.Delete(t.Context(), c.ID); err != nil {
		t.Error(err)
	}
	for _, d := range []*testutil.ContainerdDaemon{first, second, &beside, &alone} {
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}
