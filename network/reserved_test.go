package network_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/port"
)

// TestReservedPorts: what of the pools is ephemeral is kept from outgoing
// connections, put there again when it was lost, and taken out when it is not
// wanted any more; what others have reserved stays throughout.
func TestReservedPorts(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	l := newLab(t, "nft")
	file := filepath.Join(t.TempDir(), "reserved-ports")
	open := func() *network.Networks {
		return l.open(t, func(cfg *network.Config) { cfg.ReservedFile = file })
	}
	set := func(value string) {
		t.Helper()
		testutil.Sh(t, "echo '"+value+"' > /proc/sys/net/ipv4/ip_local_reserved_ports")
	}
	reserved := func(when, want string) {
		t.Helper()
		if got := testutil.Sh(t, "cat /proc/sys/net/ipv4/ip_local_reserved_ports"); got != want {
			t.Errorf("%s: reserved %q, want %q", when, got, want)
		}
	}
	ours := func(when, want string) {
		t.Helper()
		text, err := os.ReadFile(file)
		if got := strings.TrimSpace(string(text)); got != want || want != "" && err != nil {
			t.Errorf("%s: ours are %q, %v, want %q", when, got, err, want)
		}
	}
	testutil.Sh(t, "echo '32768 60999' > /proc/sys/net/ipv4/ip_local_port_range")
	set("34000-34010,40000")
	networks := open()
	if err := networks.ReservePorts(t.Context(), port.DefaultRanges()); err != nil {
		t.Fatal(err)
	}
	reserved("at first", "33890-34889,40000")
	ours("at first", "33890-33999,34011-34889")
	set("40000") // as sysctl --system does
	if drift, err := networks.Drift(t.Context(), nil, nil); err != nil || !strings.Contains(fmt.Sprint(drift), "33890-34889") {
		t.Errorf("what is lost is not told: %v, %v", drift, err)
	}
	if err := networks.Restore(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	reserved("after a restore", "33890-34889,40000")
	ours("after a restore", "33890-34889")
	networks = open() // another daemon, with another range
	if err := networks.ReservePorts(t.Context(), []port.Range{{Service: port.RDP, First: 30000, Last: 33000}}); err != nil {
		t.Fatal(err)
	}
	reserved("another range", "32768-33000,40000")
	ours("another range", "32768-33000")
	if err := open().CleanUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	reserved("cleaned up", "40000")
	ours("cleaned up", "")
	set("")
	if err := open().ReservePorts(t.Context(), port.DefaultRanges()[:1]); err != nil {
		t.Fatal(err)
	}
	reserved("nothing ephemeral", "")
	if err := open().CleanUp(t.Context()); err != nil {
		t.Fatal(err)
	}
}
