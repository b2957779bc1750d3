package network_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

// destinations reads them as a configuration writes them.
func destinations(t *testing.T, texts ...string) (all []policy.Destination) {
	t.Helper()
	for _, text := range texts {
		d, err := policy.ParseDestination(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, d)
	}
	return all
}

// members are three environments of a project, each with a published port, and
// what is around them.
type members struct {
	*lab
	ids   []string
	slots []int
	in    []*testutil.Namespace
}

func newMembers(t *testing.T, backend string) *members {
	t.Helper()
	m := &members{lab: newLab(t, backend), ids: []string{"01ENVA", "01ENVB", "01ENVC"}, slots: []int{0, 31, 600}}
	for i, envID := range m.ids {
		env := m.attach(t, envID, m.slots[i])
		env.Answer(t, "tcp", "0.0.0.0:80", envID[5:])
		env.Answer(t, "udp", "0.0.0.0:53", envID[5:])
		m.in = append(m.in, env)
	}
	m.publishAll(t, m.networks)
	for _, network := range []string{"tcp", "udp"} {
		m.host.Answer(t, network, "0.0.0.0:7001", "service")
		m.lan.Answer(t, network, lanIP+":53", "resolver")
		m.lan.Answer(t, network, lanIP+":8080", "lan")
		m.lan.Answer(t, network, internetIP+":8080", "internet")
		m.lan.Answer(t, network, privateIP+":8080", "private")
	}
	m.lan.Sh(t, "ip addr add 169.254.169.254/32 dev lan")
	m.lan.Answer(t, "tcp", "169.254.169.254:80", "metadata")
	return m
}

func (m *members) address(i int) netip.Addr { return m.networks.Address(m.slots[i]) }

func (m *members) published(i int) []port.Mapping {
	return []port.Mapping{published(port.TCP, uint16(10000+i), 80), published(port.UDP, uint16(10000+i), 53)}
}

func (m *members) publishAll(t *testing.T, n *network.Networks) {
	t.Helper()
	for i, envID := range m.ids {
		if err := n.Publish(t.Context(), envID, m.address(i), m.published(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func (m *members) declared(i int, project string, p policy.Policy) policy.Declared {
	return policy.Declared{EnvID: m.ids[i], Project: project, Address: m.address(i), Policy: p}
}

func (m *members) set(t *testing.T, i int, p policy.Policy) {
	t.Helper()
	if err := m.networks.SetPolicy(t.Context(), m.declared(i, "default", p)); err != nil {
		t.Fatal(err)
	}
}

// reach checks whom one reaches: targets are names of places, those with "!"
// in front must be closed.
func (m *members) reach(t *testing.T, when string, from int, targets string) {
	t.Helper()
	places := map[string]string{
		"internet": internetIP + ":8080", "private": privateIP + ":8080", "lan": lanIP + ":8080", "resolver": lanIP + ":53",
		"published": hostIP + ":10001", "named": m.networks.NodeAddress().String() + ":10001", "host": m.networks.NodeAddress().String() + ":7001", "service": hostIP + ":7001", "own": hostIP + fmt.Sprint(":", 10000+from),
		"a": m.address(0).String() + ":PORT", "b": m.address(1).String() + ":PORT", "c": m.address(2).String() + ":PORT",
	}
	var all sync.WaitGroup // what is closed takes its time
	defer all.Wait()
	for word := range strings.FieldsSeq(targets) {
		name, closed := strings.CutPrefix(word, "!")
		name, only, _ := strings.Cut(name, "/")
		for _, network := range []string{"tcp", "udp"} {
			if only != "" && only != network {
				continue
			}
			address := strings.Replace(places[name], "PORT", map[string]string{"tcp": "80", "udp": "53"}[network], 1)
			all.Go(func() {
				if got, err := ask(t, m.in[from], network, address, closed); (err != nil) != closed {
					t.Errorf("%s: %s to %s, %s: %q, %v, want it closed: %v", when, m.ids[from], name, network, got, err, closed)
				}
			})
		}
	}
}

// TestPolicies: whom an environment reaches with each policy, over real
// connections; what it answers is not limited by one.
func TestPolicies(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			m := newMembers(t, backend)
			for _, state := range []struct {
				name    string
				policy  policy.Policy
				targets string
			}{
				{"default", policy.Policy{}, "internet resolver published own !private !lan !service"},
				{
					"open, with a private destination",
					policy.Policy{Allow: destinations(t, privateIP+":8080/tcp")},
					"internet published private/tcp !private/udp !lan",
				},
				{
					"allow-list",
					policy.Policy{Egress: policy.AllowList, Allow: destinations(t, internetIP+":8080")},
					"internet resolver !private !lan !published !own",
				},
				{
					"allow-list of a published port",
					policy.Policy{Egress: policy.AllowList, Allow: destinations(t, hostIP+":10001/tcp")},
					"published/tcp !published/udp !internet !own/tcp",
				},
				{
					"allow-list of a port that a name leads to",
					policy.Policy{Egress: policy.AllowList, Allow: destinations(t, "10.88.0.1:10001/tcp", "10.88.0.1:7001")},
					"named/tcp !named/udp !host !published !b/tcp !internet",
				},
				{
					"allow-list of everything",
					policy.Policy{Egress: policy.AllowList, Allow: destinations(t, "0.0.0.0/0")},
					"internet private lan published !b/tcp !service/tcp",
				},
				{"none", policy.Policy{Egress: policy.None}, "!internet !resolver !private !lan !published !own"},
				{"default again", policy.Policy{}, "internet resolver published !private"},
			} {
				m.set(t, 0, state.policy)
				m.reach(t, state.name, 0, state.targets)
				m.reach(t, state.name+", another", 1, "internet/tcp !private/tcp")
				if got, err := ask(t, m.lan, "tcp", hostIP+":10000", false); err != nil || got != "A "+lanIP {
					t.Errorf("%s: LAN to its published port: %q, %v", state.name, got, err)
				}
			}
			grouped(t, m)
			surrounded(t, m)
			cleanUp(t, m.lab)
		})
	}
}

// grouped: members of a group reach each other and nobody else does, whatever
// else their policies say; a group is a project's.
func grouped(t *testing.T, m *members) {
	t.Helper()
	m.set(t, 0, policy.Policy{Egress: policy.None, Groups: []string{"web"}})
	m.set(t, 1, policy.Policy{Groups: []string{"db", "web"}})
	m.reach(t, "in a group", 0, "b !internet !c/tcp")
	m.reach(t, "in a group", 1, "a internet !c/tcp")
	if got, err := ask(t, m.in[0], "tcp", m.address(1).String()+":80", false); err != nil || got != "B "+m.address(0).String() {
		t.Errorf("in a group one sees the other's address: %q, %v", got, err)
	}
	m.set(t, 2, policy.Policy{Groups: []string{"db"}})
	m.reach(t, "in two groups", 1, "a/tcp c/tcp")
	m.reach(t, "in another group", 2, "b/tcp !a/tcp")
	if err := m.networks.SetPolicy(t.Context(), m.declared(2, "other", policy.Policy{Groups: []string{"db", "web"}})); err != nil {
		t.Fatal(err)
	}
	m.reach(t, "in a group of another project", 2, "!a/tcp !b/tcp")
	for i := range m.ids {
		m.set(t, i, policy.Policy{})
	}
	m.reach(t, "in no group any more", 0, "!b/tcp")
}

// surrounded: what the node's configuration opens, and a network that the host
// gets an address in.
func surrounded(t *testing.T, m *members) {
	t.Helper()
	opened := m.open(t, func(cfg *network.Config) {
		cfg.Allow = destinations(t, privateIP+":8080/tcp", "169.254.169.254:80/tcp")
	})
	if err := opened.Restore(t.Context(), m.all(), nil); err != nil {
		t.Fatal(err)
	}
	m.reach(t, "allowed by the node", 0, "private/tcp !private/udp !lan/tcp")
	metadata := func(want bool) {
		t.Helper()
		if got, err := ask(t, m.in[0], "tcp", "169.254.169.254:80", !want); (err == nil) != want {
			t.Errorf("metadata: %q, %v, want it open: %v", got, err, want)
		}
	}
	metadata(true)
	testutil.Sh(t, "ip addr add 198.51.100.1/24 dev uplink")
	if err := m.networks.Restore(t.Context(), m.all(), []policy.Declared{
		m.declared(1, "default", policy.Policy{Egress: policy.AllowList, Allow: destinations(t, "0.0.0.0/0")}),
	}); err != nil {
		t.Fatal(err)
	}
	m.reach(t, "the host is in that network now", 0, "!internet !private/tcp published/tcp")
	metadata(false)
	if got, err := ask(t, m.in[1], "tcp", "169.254.169.254:80", true); err == nil {
		t.Errorf("a policy opens metadata: %q", got)
	}
	testutil.Sh(t, "ip addr del 198.51.100.1/24 dev uplink")
	// A daemon that runs notices such a network at once, and that it has gone.
	ctx, stop := context.WithCancel(t.Context())
	running := make(chan error)
	go func() { running <- m.networks.Run(ctx) }()
	for _, step := range []struct {
		do     string
		closed bool
	}{
		{"true", false},
		{"ip addr add 198.51.100.1/24 dev uplink", true},
		{"ip addr del 198.51.100.1/24 dev uplink", false},
		{"ip route add 198.51.100.0/24 dev uplink", true},
		{"ip route del 198.51.100.0/24 dev uplink", false},
	} {
		testutil.Sh(t, step.do)
		for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
			_, err := m.in[0].Ask(t, "tcp", internetIP+":8080", quiet)
			if (err != nil) == step.closed {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("after %s: %v, want it closed: %v", step.do, err, step.closed)
				break
			}
		}
	}
	stop()
	if err := <-running; err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"169.254.169.254", "100.100.100.200/32:80/tcp", "192.0.0.192", "10.88.3.0/24", "10.88.0.9", "127.0.0.1", "224.0.0.1", "0.0.0.0", "255.255.255.255"} {
		err := m.networks.CheckPolicy(policy.Policy{Allow: destinations(t, "198.51.100.7", bad)}, "spec.network")
		if err == nil || !strings.Contains(err.Error(), strings.Split(bad, "/")[0]) {
			t.Errorf("destination %s: %v", bad, err)
		}
	}
	if err := errors.Join(m.networks.CheckPolicy(policy.Policy{Allow: destinations(t, "0.0.0.0/0", "10.0.0.0/8", "10.88.0.1:10001/tcp")}, "x"),
		opened.CheckPolicy(policy.Policy{Allow: destinations(t, "169.254.169.254:80/tcp")}, "x")); err != nil {
		t.Errorf("what may be named is refused: %v", err)
	}
}

func (m *members) all() (all []port.Published) {
	for i, envID := range m.ids {
		all = append(all, port.Published{EnvID: envID, Address: m.address(i), Mappings: m.published(i)})
	}
	return all
}

// TestPolicyStays: what is closed stays closed while daemons end and start,
// rules are changed and environments come and go; not one packet gets out.
func TestPolicyStays(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			m := newMembers(t, backend)
			closed := policy.Policy{Egress: policy.AllowList, Allow: destinations(t, internetIP+":8080/tcp", lanIP+":1-2"), Groups: []string{"web"}}
			m.set(t, 0, closed)
			m.set(t, 1, policy.Policy{Groups: []string{"web"}})
			got, stop := leak(t, m)
			for round := range 3 {
				// It changes others before it knows of any policy.
				n := m.open(t, nil)
				if err := n.Publish(t.Context(), m.ids[2], m.address(2), m.published(2)[:round%2]); err != nil {
					t.Fatal(err)
				}
				if err := n.SetPolicy(t.Context(), m.declared(2, "default", policy.Policy{Egress: policy.None})); err != nil {
					t.Fatal(err)
				}
				m.reach(t, "a daemon that knows of no policy", 0, "internet/tcp !internet/udp b/tcp !c/tcp")
				policies := []policy.Declared{m.declared(0, "default", closed), m.declared(1, "default", policy.Policy{Groups: []string{"web"}})}
				if drift, err := n.Drift(t.Context(), m.all(), policies); err != nil || !strings.Contains(fmt.Sprint(drift), "01ENVC network policy") || strings.Contains(fmt.Sprint(drift), "01ENVA") {
					t.Errorf("drift %v, %v", drift, err)
				}
				if err := n.Restore(t.Context(), m.all(), policies); err != nil {
					t.Fatal(err)
				}
				if drift, err := n.Drift(t.Context(), m.all(), policies); err != nil || len(drift) > 0 {
					t.Errorf("drift after Restore: %v, %v", drift, err)
				}
				m.reach(t, "restored", 0, "internet/tcp !internet/udp b/tcp")
				m.reach(t, "restored", 2, "internet/tcp")
			}
			if m.networks = m.open(t, nil); stop() > 0 {
				t.Errorf("%d datagrams got out", got())
			}
			// A daemon without its database knows neither of them.
			if err := m.networks.Restore(t.Context(), nil, nil); err != nil {
				t.Fatal(err)
			}
			m.reach(t, "the database was lost", 0, "internet/tcp !internet/udp b/tcp")
			if drift, err := m.networks.Drift(t.Context(), nil, nil); err != nil || len(drift) > 0 {
				t.Errorf("drift after the database was lost: %v, %v", drift, err)
			}
			// Detach takes it back when nothing can be sent any more, and the
			// next one with the address has its own.
			if err := m.networks.Detach(t.Context(), m.ids[0]); err != nil {
				t.Fatal(err)
			}
			if rules := testutil.Sh(t, m.iptables+"-save"); strings.Contains(rules, m.ids[0]) {
				t.Errorf("rules of a detached environment are left:\n%s", rules)
			}
			m.ids[0] = "01ENVD"
			m.in[0] = m.attach(t, "01ENVD", m.slots[0])
			m.set(t, 0, policy.Policy{})
			m.reach(t, "the next one", 0, "internet !b/tcp")
			cleanUp(t, m.lab)
		})
	}
}

// leak has the first environment send datagrams to where it may not, without
// pause, and counts those that come out.
func leak(t *testing.T, m *members) (got, stop func() int64) {
	t.Helper()
	var sink net.PacketConn
	var conn net.Conn
	var err error
	m.lan.Do(t, func() { sink, err = net.ListenPacket("udp4", internetIP+":9999") })
	if err != nil {
		t.Fatal(err)
	}
	m.in[0].Do(t, func() { conn, err = net.Dial("udp4", internetIP+":9999") })
	if err != nil {
		t.Fatal(err)
	}
	var count, sent atomic.Int64
	done := make(chan struct{})
	go func() {
		for buffer := make([]byte, 16); ; count.Add(1) {
			if _, _, err := sink.ReadFrom(buffer); err != nil {
				return
			}
		}
	}()
	go func() {
		defer close(done)
		for {
			if _, err := conn.Write([]byte("out")); errors.Is(err, net.ErrClosed) {
				return
			}
			sent.Add(1)
			time.Sleep(200 * time.Microsecond) // some thousand per second
		}
	}()
	return count.Load, func() int64 {
		conn.Close()
		<-done
		sink.Close()
		if sent.Load() < 100 {
			t.Errorf("%d datagrams prove nothing", sent.Load())
		}
		return count.Load()
	}
}

// TestPolicyEndsConnections: connections that are not allowed any more end, and
// those that are go on.
func TestPolicyEndsConnections(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	m := newMembers(t, "nft")
	reflectLines(t, m.lan, internetIP+":9001")
	reflectLines(t, m.lan, internetIP+":9002")
	reflectLines(t, m.in[1], "0.0.0.0:9003")
	dial := func(address string) (conn net.Conn) {
		t.Helper()
		var err error
		m.in[0].Do(t, func() { conn, err = net.DialTimeout("tcp4", address, patience) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	goesOn := func(name string, conn net.Conn) {
		t.Helper()
		conn.SetDeadline(time.Now().Add(patience))
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	ends := func(name string, conn net.Conn) {
		t.Helper()
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			conn.SetDeadline(time.Now().Add(100 * time.Millisecond))
			_, err := conn.Write([]byte("x"))
			if err == nil {
				_, err = conn.Read(make([]byte, 1))
			}
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
					t.Errorf("%s ends with %v", name, err)
				}
				return
			}
		}
		t.Errorf("%s goes on", name)
	}
	m.set(t, 0, policy.Policy{Groups: []string{"web"}})
	m.set(t, 1, policy.Policy{Groups: []string{"web"}})
	first, second, friend := dial(internetIP+":9001"), dial(internetIP+":9002"), dial(m.address(1).String()+":9003")
	for range 2 {
		goesOn("before", first)
		goesOn("before", second)
		goesOn("before", friend)
	}
	m.set(t, 0, policy.Policy{Egress: policy.AllowList, Allow: destinations(t, internetIP+":9001/tcp"), Groups: []string{"web"}})
	ends("a connection that is not in the list", second)
	goesOn("a connection in the list", first)
	goesOn("a connection within the group", friend)
	m.set(t, 1, policy.Policy{})
	// Another environment's address is silent instead.
	if err := m.networks.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	friend.SetDeadline(time.Now().Add(quiet))
	friend.Write([]byte("x"))
	if _, err := friend.Read(make([]byte, 1)); err == nil {
		t.Error("a connection to a former member of the group goes on")
	}
	// The next daemon ends what this one closed and did not come to end.
	if err := m.open(t, nil).Restore(t.Context(), nil, []policy.Declared{m.declared(0, "default", policy.Policy{Egress: policy.None})}); err != nil {
		t.Fatal(err)
	}
	ends("a connection when a daemon starts", first)
	cleanUp(t, m.lab)
}

// reflectLines sends back what comes, until the test ends.
func reflectLines(t *testing.T, in *testutil.Namespace, address string) {
	t.Helper()
	var listener net.Listener
	var err error
	in.Do(t, func() { listener, err = net.Listen("tcp4", address) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
}
