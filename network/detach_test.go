package network_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/policy"
)

// stubborn is a firewall that can be told to take back no policy. What a Detach
// does before, which may find the declaration before it at work, it does.
type stubborn struct {
	network.Firewall
	fails bool
}

func (s *stubborn) Set(ctx context.Context, desired firewall.Desired) error {
	if s.fails && len(desired.Policies) == 0 {
		return problem.New(problem.FirewallFailed, "the lock is held")
	}
	return s.Firewall.Set(ctx, desired)
}

// TestDetachAgain: a Detach that failed after it took the address is repeated,
// also by another process, and forgets the connections of the address.
func TestDetachAgain(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	l := newLab(t, "nft")
	rules := &stubborn{}
	l.networks = l.open(t, func(cfg *network.Config) { rules.Firewall, cfg.Firewall = cfg.Firewall, rules })
	const envID = "01AGAIN"
	l.attach(t, envID, 0).Answer(t, "tcp", "0.0.0.0:80", "env")
	address := l.networks.Address(0)
	if err := l.networks.SetPolicy(t.Context(), policy.Declared{EnvID: envID, Project: "p", Address: address, Policy: policy.Policy{Groups: []string{"g"}}}); err != nil {
		t.Fatal(err)
	}
	if got, err := l.host.Ask(t, "tcp", address.String()+":80", patience); err != nil || !strings.HasPrefix(got, "env") {
		t.Fatalf("the environment answers %q, %v", got, err)
	}
	tracked := func() (count int) {
		all, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		if err != nil {
			t.Fatal(err)
		}
		for _, flow := range all {
			if flow.Forward.DstIP.Equal(address.AsSlice()) {
				count++
			}
		}
		return count
	}
	rules.fails = true
	if err := l.networks.Detach(t.Context(), envID); problem.Of(err).Reason != problem.FirewallFailed {
		t.Fatalf("Detach without a firewall: %v", err)
	}
	if links := testutil.Sh(t, "ip -o -4 addr"); strings.Contains(links, "rgpu-") || tracked() == 0 {
		t.Fatalf("the address is not taken, or %d connections are tracked:\n%s", tracked(), links)
	}
	again := l.open(t, nil)
	if err := errors.Join(again.Detach(t.Context(), envID), again.Wait(t.Context())); err != nil {
		t.Fatal(err)
	}
	if left := tracked(); left > 0 {
		t.Errorf("%d connections of the address are tracked", left)
	}
	cleanUp(t, l)
}
