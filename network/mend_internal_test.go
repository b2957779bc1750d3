package network

import (
	"net/netip"
	"testing"

	"github.com/remotegpu/remotegpu/network/policy"
)

// White-box: a Detach that fails has taken the address, and maybe the policy;
// whoever mends bridges must not give the address back.
func TestWhoIsMended(t *testing.T) {
	t.Parallel()
	n := &Networks{
		cfg:   Config{Range: netip.MustParsePrefix("10.88.0.0/16")},
		slots: make(map[string]int), limits: make(map[string]speeds), silenced: make(map[string]bool), removing: make(map[string]bool),
	}
	listed := []policy.Declared{{EnvID: "A", Address: n.Address(3)}, {EnvID: "B", Address: n.Address(4)}, {EnvID: "C", Address: n.gateway(5)}}
	may := func(what, envID string, slot int, want bool) {
		t.Helper()
		if got := n.mayMend(envID, slot); got != want {
			t.Errorf("%s: %s in slot %d is mended: %v, want %v", what, envID, slot, got, want)
		}
	}
	n.heldBefore(nil, listed)
	may("listed", "A", 3, true)
	may("listed", "A", 4, false)
	may("what is no environment's address is not listed", "C", 9, true)
	n.holds("A", 7)
	n.heldBefore(nil, listed) // a list of before
	may("attached elsewhere", "A", 7, true)
	may("attached elsewhere", "A", 3, false)
	n.silences("A")
	n.heldBefore(nil, listed)
	may("detached", "A", 3, false)
	may("detached", "A", 7, false)
	n.forgetSlots(map[string]bridge{"A": {}, "B": {}}) // it is not removed yet
	may("not removed yet", "A", 7, false)
	n.holds("A", 3)
	may("attached again", "A", 3, true)
	n.silences("A")
	n.forgetSlots(map[string]bridge{"B": {}})
	if len(n.slots) != 1 || len(n.silenced) != 0 {
		t.Errorf("kept of what has gone: %v, %v", n.slots, n.silenced)
	}
}
