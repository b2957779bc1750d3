package port_test

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/network/port/porttest"
)

func holdingPool(t *testing.T, s port.Store, holder port.Holder) *port.Pool {
	t.Helper()
	pool, err := port.New(t.Context(), port.Config{HostID: porttest.Host, Store: s, Holder: holder, Quarantine: -1})
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

// TestPortsAreHeld: while a port is given out no program can have it, nobody
// who comes by it is answered, and it is let go of when it is released.
func TestPortsAreHeld(t *testing.T) {
	testutil.Require(t, testutil.Root)
	testutil.NetNS(t)
	s := open(t)
	var sockets port.Sockets
	t.Cleanup(sockets.Close)
	pool := holdingPool(t, s, &sockets)
	both := []port.Request{
		{Service: port.Custom, Internal: 80, External: 12000}, {Service: port.Custom, Internal: 53, External: 12000, Protocol: port.UDP},
	}
	must(t, pool, s, "a", both...)
	grab := func() (got []string) {
		t.Helper()
		for _, address := range []string{"127.0.0.1:12000", "[::1]:12000", ":12000"} {
			if listener, err := net.Listen("tcp", address); err == nil {
				listener.Close()
				got = append(got, "tcp "+address)
			}
			if conn, err := net.ListenPacket("udp", address); err == nil {
				conn.Close()
				got = append(got, "udp "+address)
			}
		}
		return got
	}
	if got := grab(); len(got) > 0 || sockets.Count() != 2 {
		t.Errorf("another program had %q; %d are held", got, sockets.Count())
	}
	if conn, err := net.Dial("tcp", "127.0.0.1:12000"); err == nil {
		conn.Close()
		t.Error("somebody answers at a port that is held")
	}
	flood(t)
	if _, err := pool.Release(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if got := grab(); len(got) != 6 || sockets.Count() != 0 {
		t.Errorf("after the release another program had only %q; %d are held", got, sockets.Count())
	}
	// What comes to nothing is let go of, and what moves is held on.
	_, err := allocate(t, pool, s, "b", append(both, port.Request{Service: port.SSH, External: 12000})...)
	want(t, err, problem.PortOutsidePool, "spec.ports[2].external_port")
	if sockets.Count() != 0 {
		t.Errorf("%d are held for a refused request", sockets.Count())
	}
}

// flood sends datagrams to a held port: none stays in memory.
func flood(t *testing.T) {
	t.Helper()
	conn, err := net.Dial("udp", "127.0.0.1:12000")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 64 {
		if _, err := conn.Write(make([]byte, 1024)); err != nil {
			t.Fatal(err)
		}
	}
	for _, table := range []string{"udp", "udp6"} {
		for line := range strings.Lines(testutil.Sh(t, "cat /proc/thread-self/net/"+table)) {
			if fields := strings.Fields(line); strings.HasSuffix(fields[1], ":2EE0") && !strings.HasSuffix(fields[4], ":00000000") {
				t.Errorf("datagrams wait at a held port: %s", line)
			}
		}
	}
}

// TestPortTakenWhileTheDaemonWasDown: the mapping is not lost, and it is said
// who has the port, until they let go of it.
func TestPortTakenWhileTheDaemonWasDown(t *testing.T) {
	testutil.Require(t, testutil.Root)
	testutil.NetNS(t)
	s := open(t)
	var first port.Sockets
	held := must(t, holdingPool(t, s, &first), s, "a", port.Request{Service: port.SSH}, port.Request{Service: port.SSH})
	first.Close()
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", held[1]))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var second port.Sockets
	t.Cleanup(second.Close)
	pool := holdingPool(t, s, &second)
	conflicts, err := pool.Conflicts(t.Context())
	if err != nil || len(conflicts) != 1 || conflicts[0].Mapping.External != held[1] || !strings.Contains(conflicts[0].Owner, "port.test") || second.Count() != 1 {
		t.Fatalf("conflicts %v, error %v, %d held; want one with this program", conflicts, err, second.Count())
	}
	if found, _, err := s.PortMappings(t.Context(), porttest.Host, port.Filter{}); err != nil || len(found) != 2 {
		t.Errorf("held: %v, error %v", found, err)
	}
	_, err = allocate(t, pool, s, "b", port.Request{Service: port.SSH, External: held[1]})
	want(t, err, problem.PortTaken, "spec.ports[0].external_port")
	listener.Close()
	if conflicts, err := pool.Conflicts(t.Context()); err != nil || len(conflicts) != 0 || second.Count() != 2 {
		t.Errorf("after it has let go: %v, error %v, %d held", conflicts, err, second.Count())
	}
}

// brokenHolder can hold nothing.
type brokenHolder struct{}

func (brokenHolder) Hold(port.Protocol, uint16) (bool, error) { return false, syscall.EMFILE }
func (brokenHolder) Let(port.Protocol, uint16)                {}

// Ports that cannot be held for want of something are nobody's conflict, and
// what is wanting is said.
func TestPortsThatCannotBeHeld(t *testing.T) {
	t.Parallel()
	s := open(t)
	must(t, newPool(t, s, allFree), s, "a", port.Request{Service: port.SSH})
	pool := holdingPool(t, s, brokenHolder{})
	if conflicts, err := pool.Conflicts(t.Context()); len(conflicts) != 0 || !errors.Is(err, syscall.EMFILE) {
		t.Errorf("conflicts %v, error %v", conflicts, err)
	}
	_, err := allocate(t, pool, s, "b", port.Request{Service: port.SSH})
	want(t, err, problem.PortPoolExhausted, "spec.ports[0]")
	if !errors.Is(err, syscall.EMFILE) || !strings.Contains(problem.Of(err).Hint, "LimitNOFILE") {
		t.Errorf("%v, hint %q", err, problem.Of(err).Hint)
	}
	_, err = allocate(t, pool, s, "b", port.Request{Service: port.SSH, External: 22007})
	want(t, err, problem.PortTaken, "spec.ports[0].external_port")
	if !errors.Is(err, syscall.EMFILE) {
		t.Errorf("%v does not say why", err)
	}
}

// Ten thousand mappings are held, found and let go of; a port that another host
// of the same database has is none of ours.
func TestTenThousandAreHeld(t *testing.T) {
	testutil.Require(t, testutil.Root)
	testutil.NetNS(t)
	s := open(t)
	var sockets port.Sockets
	t.Cleanup(sockets.Close)
	pool := holdingPool(t, s, &sockets)
	if _, err := pool.SetRange(t.Context(), port.Custom, 20000, 29999, port.AnyRevision); err != nil {
		t.Fatal(err)
	}
	other := porttest.Mapping("other", port.TCP, 20000)
	other.HostID = "host-b"
	if err := s.InsertPortMappings(t.Context(), []port.Mapping{other}); err != nil {
		t.Fatal(err)
	}
	var batch []port.Request
	for range 100 {
		batch = append(batch, port.Request{Service: port.Custom, Internal: 80})
	}
	begin := time.Now()
	for i := range 100 {
		must(t, pool, s, fmt.Sprint("env-", i), batch...)
	}
	t.Logf("10 000 ports in %s", time.Since(begin))
	if sockets.Count() != 10000 {
		t.Errorf("%d are held", sockets.Count())
	}
	_, err := allocate(t, pool, s, "one more", port.Request{Service: port.Custom, Internal: 80})
	want(t, err, problem.PortPoolExhausted, "spec.ports[0]")
	sockets.Close()
	begin = time.Now()
	if pool = holdingPool(t, s, &sockets); sockets.Count() != 10000 {
		t.Errorf("%d are held after a restart", sockets.Count())
	}
	t.Logf("held again in %s", time.Since(begin))
	if conflicts, err := pool.Conflicts(t.Context()); err != nil || len(conflicts) != 0 {
		t.Errorf("conflicts %v, error %v", conflicts, err)
	}
}
