package network

import (
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
)

// White-box: what is forgotten together is seen from outside by its cost only.
func TestForgetsInFewWalks(t *testing.T) {
	t.Parallel()
	var f forgetter
	var mu sync.Mutex
	walks, selections := 0, 0
	forget := func(which ...flows) {
		mu.Lock()
		defer mu.Unlock()
		walks++
		selections += len(which)
	}
	const callers = 50
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			f.later(func(*netlink.ConntrackFlow) bool { return false }, forget)
			mu.Lock()
			defer mu.Unlock()
			if walks == 0 {
				t.Error("it returned before the walk")
			}
		})
	}
	group.Wait()
	if selections != callers || walks >= callers {
		t.Errorf("%d selections in %d walks, want all %d in fewer", selections, walks, callers)
	}
	f.later(func(*netlink.ConntrackFlow) bool { return false }, forget)
	if selections != callers+1 {
		t.Errorf("what came after a walk is not forgotten: %d selections", selections)
	}
}
