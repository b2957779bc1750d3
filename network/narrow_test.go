package network_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// TestFailedNarrowing: what could not be narrowed stays wanted and is tried
// again without anybody who asks for it; what could not be opened is not.
func TestFailedNarrowing(t *testing.T) {
	rules := &recorder{}
	networks, err := network.New(network.Config{Range: subnet, Firewall: rules, Poll: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	run(t, networks)
	const envID = "01NARROW"
	publish := func(mappings ...port.Mapping) error {
		return networks.Publish(t.Context(), envID, networks.Address(0), mappings)
	}
	restrict := func(p policy.Policy) error {
		return networks.SetPolicy(t.Context(), policy.Declared{EnvID: envID, Project: "p", Address: networks.Address(0), Policy: p})
	}
	wide := []port.Mapping{published(port.TCP, 1000, 80), published(port.TCP, 1001, 81), limited(port.TCP, 1002, 82, "10.0.0.0/8", "192.0.2.0/25")}
	if err := errors.Join(publish(wide...), restrict(policy.Policy{Egress: policy.AllowList, Allow: destinations(t, "198.51.100.0/24:443/tcp", "10.1.0.0/16")})); err != nil {
		t.Fatal(err)
	}
	eventually := func(when, want string) {
		t.Helper()
		rules.set(nil)
		var got string
		defer func() {
			if t.Failed() {
				t.Errorf("%s: %s, want %s", when, got, want)
			}
		}()
		runtimetest.Eventually(t, when, func() bool {
			rules.mu.Lock()
			defer rules.mu.Unlock()
			last := rules.applied[len(rules.applied)-1]
			got = ""
			for _, m := range last.Mappings {
				got += fmt.Sprintln(m.HostPort, m.To.Port(), m.Sources, m.Inside)
			}
			for _, p := range last.Policies {
				got += fmt.Sprintln(p.Egress, p.Allow, p.Groups)
			}
			return got == want && rules.fail == nil
		})
	}
	const narrow = "1000 80 [192.0.2.0/24] false\n1002 82 [10.1.0.0/16 192.0.2.0/25] false\n"
	broken := problem.New(problem.FirewallFailed, "the lock is held")
	rules.set(broken)
	if publish(limited(port.TCP, 1000, 80, "192.0.2.0/24"), limited(port.TCP, 1002, 82, "10.1.0.0/16", "192.0.2.0/24"), published(port.TCP, 1003, 83)) == nil ||
		restrict(policy.Policy{Egress: policy.AllowList, Allow: destinations(t, "198.51.100.7:443/tcp", "203.0.113.0/24"), Groups: []string{"g"}}) == nil {
		t.Fatal("a failure is not reported")
	}
	eventually("narrowed", narrow+"allow-list [198.51.100.7:443/tcp] []\n")
	rules.set(broken)
	if publish(wide...) == nil || restrict(policy.Policy{}) == nil {
		t.Fatal("a failure is not reported")
	}
	eventually("not opened", narrow+"allow-list [198.51.100.7:443/tcp] []\n")
	rules.set(broken)
	if restrict(policy.Policy{Egress: policy.None}) == nil {
		t.Fatal("a failure is not reported")
	}
	eventually("closed", narrow+"none [] []\n")
}
