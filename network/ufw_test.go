package network_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// TestUFW: a ufw that really is in force beside the node: it is switched on, is
// given a rule, reloads and is switched off.
func TestUFW(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables, testutil.Peers)
	if !testutil.Isolated(t) {
		return
	}
	// Its settings are copies, and what it locks is its own.
	testutil.Sh(t, fmt.Sprintf(`mount -t tmpfs tmpfs /run; mkdir -p /run/lock; cd %s; cp -a /etc/ufw etc; sed s/^DEFAULT_INPUT_POLICY=.*/DEFAULT_INPUT_POLICY=REJECT/ /etc/default/ufw >default
		mount --bind etc /etc/ufw; mount --bind default /etc/default/ufw`, t.TempDir()))
	defer testutil.Sh(t, "umount /etc/ufw /etc/default/ufw")
	// It uses whatever iptables is on this host.
	backend := "nft"
	if strings.Contains(testutil.Sh(t, "iptables --version"), "legacy") {
		backend = "legacy"
	}
	l := peopled(t, backend, func(cfg *network.Config) { cfg.Poll = 20 * time.Millisecond })
	stopNode := run(t, l.networks)
	runtimetest.Eventually(t, "the rules are watched", func() bool { return l.networks.Repairs().Watch != "" })
	for _, step := range []string{"ufw --force enable", "ufw allow 22/tcp", "ufw reload", "ufw --force disable"} {
		testutil.Sh(t, step)
		if on := strings.Contains(testutil.Sh(t, l.iptables+" -S FORWARD"), "-P FORWARD DROP"); on != !strings.HasSuffix(step, "disable") {
			t.Errorf("%s: ufw is not as it is thought to be", step)
		}
		l.mended(t, step)
		l.inOrder(t, step)
		if conditions := l.networks.Conditions(); len(conditions) > 0 {
			t.Errorf("%s: conditions %v", step, conditions)
		}
	}
	stopNode()
	cleanUp(t, l)
}
