package network_test

import (
	"context"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// TestLooksAreSparedAtRest: without an environment nobody looks until something
// has happened, and then soon; with one looks come by themselves.
func TestLooksAreSparedAtRest(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	l := newLab(t, "nft")
	const every = time.Millisecond
	looks := l.networks.Looks()
	rests := func(after string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 100*every)
		defer cancel()
		for range 5 { // what happened during the look before, or is told late
			if !looks.Wait(ctx, every) {
				return
			}
		}
		t.Errorf("somebody looks again and again while there is nothing, %s", after)
	}
	look := func(why string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if !looks.Wait(ctx, every) {
			t.Fatalf("nobody looks %s", why)
		}
	}
	rests("at first")
	if err := l.networks.Restore(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	look("after the host was brought in order")
	rests("after that")
	stop := run(t, l.networks)
	look("when the kernel is listened to") // until then it could not tell
	rests("after that")
	testutil.Sh(t, "ip addr add 192.0.2.99/32 dev uplink")
	look("after the host has got an address")
	rests("after that")
	l.attach(t, "01ENVA", 0)
	for range 10 {
		look("while there is an environment")
	}
	told := l.networks.Looks()
	waits := func(bound time.Duration) bool {
		ctx, cancel := context.WithTimeout(t.Context(), bound)
		defer cancel()
		return told.WaitStirred(ctx, every)
	}
	for spared := 0; waits(100 * every); spared++ {
		if spared == 5 {
			t.Fatal("what the kernel tells of is looked at though it has told nothing")
		}
	}
	testutil.Sh(t, "ip addr del 192.0.2.99/32 dev uplink")
	if !waits(time.Minute) {
		t.Error("nobody looks after the host has lost an address")
	}
	stop()
	cleanUp(t, l)
}
