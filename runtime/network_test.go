package runtime_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

func destination(text string) policy.Destination {
	d, err := policy.ParseDestination(text)
	if err != nil {
		panic(err)
	}
	return d
}

// TestNetworkPolicy: a policy is in force before a process runs, changes while
// it runs, all or nothing, and is there again after every start of process and
// daemon.
func TestNetworkPolicy(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	none := &policy.Policy{Egress: policy.None, Groups: []string{"web"}, IngressBits: 1e6}
	var early []string
	h.faults.Hook(func(method string) {
		if method == "Engine.Start" && len(h.networks.Policies()) == 0 {
			early = append(early, method)
		}
	})
	req := plain("desk")
	req.Project, req.Spec.Network = "default", none
	before, op := d.create(req)
	if op.State != operation.Succeeded {
		t.Fatalf("create: %+v", op.Problem)
	}
	inForce := func(when string, want *policy.Policy) {
		t.Helper()
		got, declared := h.networks.Policies()[before.ID]
		if want == nil {
			if declared {
				t.Errorf("%s: %+v is in force", when, got)
			}
			return
		}
		wanted := policy.Declared{EnvID: before.ID, Project: "default", Address: before.Address, Policy: *want}
		if diff := cmp.Diff(wanted, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +in force):\n%s", when, diff)
		}
		if stored := d.get("desk").Spec.Network; stored == nil || cmp.Diff(*want, *stored, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })) != "" {
			t.Errorf("%s: the store has %+v", when, stored)
		}
	}
	inForce("created", none)
	list := &policy.Policy{Egress: policy.AllowList, Allow: []policy.Destination{destination("198.51.100.0/24:443/tcp")}}
	set := func(p *policy.Policy) (runtime.Updated, *operation.Operation) {
		return d.update(runtime.UpdateRequest{Fields: []string{"spec.network"}, Spec: runtime.Spec{Network: p}})
	}
	updated, op := set(list)
	if op.State != operation.Succeeded || len(updated.RestartNeeded) > 0 || !d.get("desk").StartedAt.Equal(before.StartedAt) {
		t.Errorf("update: %+v, %+v", updated, op)
	}
	inForce("updated", list)
	if _, op := set(list); op != nil {
		t.Errorf("an update that changes nothing: %+v", op)
	}
	h.faults.FailCall("Networks.SetPolicy", 1, problem.New(problem.FirewallFailed, "no"))
	h.faults.FailCall("Networks.SetPolicy", 2, problem.New(problem.FirewallFailed, "still no"))
	if _, op := set(none); op.State != operation.Failed {
		t.Errorf("an update that failed: %+v", op)
	}
	inForce("after a failure", list)
	d.act(d.Stop, "desk")
	inForce("stopped", list)
	set(none)
	inForce("updated while stopped", none)
	d.stop()
	if err := h.networks.Restore(t.Context(), nil, nil); err != nil { // as after a reboot
		t.Fatal(err)
	}
	d = start(t, h)
	inForce("the next daemon", none)
	if err := h.networks.Restore(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	d.act(d.Start, "desk")
	inForce("started", none)
	if len(early) > 0 {
		t.Errorf("%v without a policy", early)
	}
	set(nil)
	inForce("default", nil)
	set(list)
	d.act(d.Delete, "desk")
	d.holdsNothing()
}

// TestNetworkPolicyIsDeclaredFirst: a daemon that starts declares policies also
// when the engine does not answer.
func TestNetworkPolicyIsDeclaredFirst(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	req := plain("desk")
	req.Spec.Network = &policy.Policy{Egress: policy.None}
	env, _ := d.create(req)
	d.stop()
	if err := h.networks.Restore(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	h.faults.FailCall("Engine.List", 0, problem.New(problem.ContainerdDown, "down"))
	start(t, h)
	if _, declared := h.networks.Policies()[env.ID]; !declared {
		t.Error("the policy is not in force")
	}
}

func TestNetworkPolicyIsChecked(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	many := make([]policy.Destination, policy.MaxAllow+1)
	for i := range many {
		many[i] = policy.Destination{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, byte(i), 0}), 24)}
	}
	for _, c := range []struct {
		name   string
		policy policy.Policy
		fields string
	}{
		{"none with destinations", policy.Policy{Egress: policy.None, Allow: []policy.Destination{destination("198.51.100.1")}}, "spec.network.allow"},
		{"empty allow list", policy.Policy{Egress: policy.AllowList}, "spec.network.allow"},
		{"no network", policy.Policy{Allow: []policy.Destination{destination("198.51.100.1"), {}}}, "spec.network.allow[1].cidr"},
		{"host bits", policy.Policy{Allow: []policy.Destination{{Prefix: netip.MustParsePrefix("192.0.2.5/24")}}}, "spec.network.allow[0].cidr"},
		{"ports", policy.Policy{Allow: []policy.Destination{{Prefix: netip.MustParsePrefix("192.0.2.0/24"), First: 9, Last: 8}}}, "spec.network.allow[0].last_port"},
		{"twice", policy.Policy{Allow: []policy.Destination{destination("198.51.100.1"), destination("198.51.100.1")}}, "spec.network.allow[1]"},
		{"too many", policy.Policy{Allow: many}, "spec.network.allow"},
		{"metadata", policy.Policy{Allow: []policy.Destination{destination("169.254.169.254:80/tcp")}}, "spec.network.allow[0]"},
		{"group", policy.Policy{Groups: []string{"web", "We b", "web"}}, "spec.network.groups[1] spec.network.groups[2]"},
		{"groups", policy.Policy{Groups: strings.Fields("a b c d e f g h i")}, "spec.network.groups"},
		{"speeds", policy.Policy{IngressBits: 1000, EgressBits: 1e12}, "spec.network.ingress_bits_per_second spec.network.egress_bits_per_second"},
	} {
		req := plain("desk")
		req.Spec.Network = &c.policy
		_, _, err := d.Create(t.Context(), req)
		var fields []string
		for _, p := range problem.All(err) {
			fields = append(fields, p.Field)
			if p.Hint == "" && c.name != "metadata" {
				t.Errorf("%s: no hint: %v", c.name, p)
			}
		}
		if !slices.Equal(fields, strings.Fields(c.fields)) {
			t.Errorf("%s: fields %q of %v, want %s", c.name, fields, err, c.fields)
		}
	}
	d.holdsNothing()
}
