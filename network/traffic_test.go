package network_test

import (
	"net"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// TestTraffic sends bytes each way and finds them where the environment would
// count them.
func TestTraffic(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	l := newLab(t, "nft")
	const envID, other = "01TRAFFIC", "01OTHER"
	env := l.attach(t, envID, 0)
	l.attach(t, other, 1)
	gateway := l.networks.Address(0).Prev().String()
	before, err := l.networks.Traffic([]string{envID, other, "01NONE"})
	if err != nil || len(before) != 2 {
		t.Fatalf("Traffic() = %v, %v", before, err)
	}
	const size = 200 << 10
	// Datagrams to a port that nobody listens on count where they go.
	send := func(from *testutil.Namespace, address string) {
		t.Helper()
		from.Do(t, func() {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "udp", address+":9")
			if err != nil {
				t.Errorf("dial %s: %v", address, err)
				return
			}
			for range size / 1024 {
				_, _ = conn.Write(make([]byte, 1024)) // refused by what answers
			}
			_ = conn.Close()
		})
	}
	send(l.host, l.networks.Address(0).String())
	received, err := l.networks.Traffic([]string{envID, other})
	if err != nil {
		t.Fatal(err)
	}
	if got := received[envID].Received - before[envID].Received; got < size/4 || got > 4*size {
		t.Errorf("received %d bytes, sent it %d", got, size)
	}
	if got := received[other].Received - before[other].Received; got > size/10 {
		t.Errorf("the other received %d bytes", got)
	}
	send(env, gateway)
	sent, err := l.networks.Traffic([]string{envID})
	if err != nil {
		t.Fatal(err)
	}
	if got := sent[envID].Sent - received[envID].Sent; got < size/4 || got > 4*size {
		t.Errorf("sent %d bytes of %d", got, size)
	}
	if err := l.networks.Detach(t.Context(), envID); err != nil {
		t.Fatal(err)
	}
	if err := l.networks.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if gone, err := l.networks.Traffic([]string{envID}); err != nil || len(gone) != 0 {
		t.Errorf("once detached: %v, %v", gone, err)
	}
	if empty, err := l.networks.Traffic(nil); err != nil || len(empty) != 0 {
		t.Errorf("of none: %v, %v", empty, err)
	}
	cleanUp(t, l)
}
