package network_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/port"
)

// TestFirstRestore: the first Restore of a daemon on a host that has just
// started tells of no repair, since nobody has changed anything, and who sent
// datagrams to a published port before it gets through. A daemon without a poll
// mends bridges all the same.
func TestFirstRestore(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	l := newLab(t, "nft")
	// Another program's rule: connections are tracked before the node has any.
	testutil.Sh(t, l.iptables+" -A INPUT -m conntrack --ctstate INVALID -j DROP; sysctl -qw net.ipv4.ip_forward=0")
	var sender net.Conn
	var err error
	l.lan.Do(t, func() { sender, err = net.Dial("udp4", hostIP+":10000") })
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	send := func() bool {
		buffer := make([]byte, 64)
		sender.Write([]byte("?"))
		sender.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		size, err := sender.Read(buffer)
		return err == nil && strings.HasPrefix(string(buffer[:size]), "A")
	}
	if send() {
		t.Fatal("the port answers before it is published")
	}
	if testutil.Sh(t, "conntrack -L -p udp 2>/dev/null | grep -c dport=10000") != "1" {
		t.Fatal("the datagram is not tracked: this test shows nothing")
	}
	fresh := l.open(t, func(cfg *network.Config) { cfg.Poll, cfg.ForwardFile = -1, l.dir+".forward4" })
	l.networks = fresh
	all := []port.Published{{EnvID: "01ENVA", Address: fresh.Address(0), Mappings: []port.Mapping{published(port.UDP, 10000, 53)}}}
	if err := fresh.Restore(t.Context(), all, nil); err != nil {
		t.Fatal(err)
	}
	if repairs := fresh.Repairs(); repairs.Count != 0 {
		t.Errorf("the first restore tells of repairs: %+v", repairs.Latest)
	}
	l.attach(t, "01ENVA", 0).Answer(t, "udp", "0.0.0.0:53", "A")
	answered := func(after string) {
		t.Helper()
		for deadline := time.Now().Add(patience); !send(); {
			if time.Now().After(deadline) {
				t.Fatalf("%s: who sent before gets no answer", after)
			}
		}
	}
	answered("the first restore")
	stop := run(t, fresh)
	bridge := testutil.Sh(t, "ip -o link show type bridge | grep -o 'rgpu-[a-z0-9]*'")
	// Who listens by now notices: until then the bridge is taken once more.
	for deadline := time.Now().Add(patience); fresh.Repairs().Count == 0; time.Sleep(300 * time.Millisecond) {
		testutil.Sh(t, "ip link set "+bridge+" down")
		if time.Now().After(deadline) {
			t.Fatal("without a poll no bridge is mended")
		}
	}
	answered("a repair")
	stop()
	cleanUp(t, l)
}
