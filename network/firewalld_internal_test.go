package network

import (
	"testing"
	"time"
)

// TestMayBeFirewalld: a firewalld that does not answer holds no repair up that
// is not for what it did, and those not for long. White-box: nothing outside can
// make a firewalld hang.
func TestMayBeFirewalld(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		by    []string
		waits bool
	}{
		{nil, true},
		{[]string{"nft[7]", "firewalld[12]"}, true},
		{[]string{"iptables-restor[7]"}, true},
		{[]string{"nft[7]", "dockerd[12]"}, false},
	} {
		if got := mayBeFirewalld(test.by); got != test.waits {
			t.Errorf("by %q: %v", test.by, got)
		}
	}
	if firewalldPatience > 2*time.Second {
		t.Errorf("repairs wait for %v", firewalldPatience)
	}
}
