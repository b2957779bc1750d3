package network_test

import (
	"errors"
	"net"
	"syscall"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network/port"
)

// TestPortsOfAbsentNetworksLeadNowhere: what is published for an environment
// whose bridge is not there, as of one that a restart of the host has stopped,
// does not leave the host by its default route, and whoever asks learns it.
func TestPortsOfAbsentNetworksLeadNowhere(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	l := newLab(t, "nft")
	testutil.Sh(t, "sysctl -qw net.ipv4.ip_forward=1") // else nothing is forwarded anyway
	testutil.Sh(t, "ip route add unreachable 10.99.0.0/16 proto 171")
	mappings := []port.Mapping{published(port.TCP, 10000, 80), published(port.UDP, 10000, 53)}
	all := []port.Published{{EnvID: "01ENVA", Address: l.networks.Address(0), Mappings: mappings}}
	if err := l.networks.Restore(t.Context(), all, nil); err != nil {
		t.Fatal(err)
	}
	l.lan.Sh(t, l.iptables+" -t raw -A PREROUTING -d "+subnet.String()+" -j DROP")
	strayed := func() string {
		t.Helper()
		return l.lan.Sh(t, l.iptables+" -t raw -nvxL PREROUTING | awk '/DROP/ {print $1}'")
	}
	address := net.JoinHostPort(hostIP, "10000")
	if _, err := l.lan.Ask(t, "tcp", address, patience); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("the LAN to the port: %v, want that it is told at once", err)
	}
	if _, err := l.lan.Ask(t, "udp", address, quiet); err == nil {
		t.Error("the LAN to the port, UDP: somebody answers")
	}
	if got := strayed(); got != "0" {
		t.Errorf("%s packets for the environment left the host", got)
	}
	if routes := testutil.Sh(t, "ip route show type unreachable proto 171"); routes != "unreachable "+subnet.String()+" metric 4294967294" {
		t.Errorf("unreachable are %q, want the range and no former one", routes)
	}
	testutil.Sh(t, "ip route del unreachable "+subnet.String()+" proto 171")
	if _, err := l.lan.Ask(t, "tcp", address, quiet); err == nil || strayed() == "0" {
		t.Errorf("without the route: %v, %s packets: this test shows nothing", err, strayed())
	}
	cleanUp(t, l)
}
