package dns_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	miekg "github.com/miekg/dns"

	"github.com/remotegpu/remotegpu/network/dns"
)

// upstream is a name server that does as its handler says.
func upstream(tb testing.TB, handler func(miekg.ResponseWriter, *miekg.Msg)) netip.AddrPort {
	tb.Helper()
	conn, listener := sockets(tb)
	for _, server := range []*miekg.Server{
		{PacketConn: conn, Handler: miekg.HandlerFunc(handler)}, {Listener: listener, Handler: miekg.HandlerFunc(handler)},
	} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go server.ActivateAndServe()
		<-started
		tb.Cleanup(func() { server.Shutdown() })
	}
	return netip.MustParseAddrPort(conn.LocalAddr().String())
}

// sockets are of UDP and TCP with the same port.
func sockets(tb testing.TB) (net.PacketConn, net.Listener) {
	tb.Helper()
	for range 20 {
		conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		listener, err := net.Listen("tcp4", conn.LocalAddr().String())
		if err == nil {
			return conn, listener
		}
		conn.Close()
	}
	tb.Fatal("no port is free for both UDP and TCP")
	return nil, nil
}

// answerWith answers every question with these records.
func answerWith(records ...string) func(miekg.ResponseWriter, *miekg.Msg) {
	return func(w miekg.ResponseWriter, request *miekg.Msg) {
		reply := new(miekg.Msg).SetReply(request)
		for _, text := range records {
			rr, err := miekg.NewRR(text)
			if err != nil {
				panic(err)
			}
			if rr.Header().Rrtype == miekg.TypeSOA {
				reply.Ns = append(reply.Ns, rr)
			} else {
				reply.Answer = append(reply.Answer, rr)
			}
		}
		w.WriteMsg(reply)
	}
}

// forwarding serves the world and asks these servers.
func forwarding(tb testing.TB, private []string, servers ...netip.AddrPort) (*dns.Forwarder, netip.AddrPort) {
	tb.Helper()
	forwarder := dns.NewForwarder(dns.ForwarderConfig{
		Upstreams: func() ([]netip.AddrPort, []string) { return servers, []string{"site.example"} }, Private: private,
	})
	_, address := serve(tb, dns.Config{Forwarder: forwarder})
	return forwarder, address
}

// nobody is an address where a packet is not answered and nothing is refused.
func nobody(tb testing.TB) netip.AddrPort {
	tb.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	return netip.MustParseAddrPort(conn.LocalAddr().String())
}

func resolve(tb testing.TB, network, from string, to netip.AddrPort, name string, kind uint16) *miekg.Msg {
	tb.Helper()
	reply, err := ask(tb, network, from, to, question(name, kind))
	if err != nil {
		tb.Fatalf("%s: %v", name, err)
	}
	return reply
}

// TestForwarding: names of others, for environments that may ask for them.
func TestForwarding(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	server := upstream(t, func(w miekg.ResponseWriter, request *miekg.Msg) {
		asked.Add(1)
		name := strings.ToLower(request.Question[0].Name)
		switch {
		case name == "long.example.org." && w.RemoteAddr().Network() == "udp":
			reply := new(miekg.Msg).SetReply(request)
			reply.Truncated = true
			w.WriteMsg(reply)
		case name == "long.example.org.":
			answerWith("long.example.org. 60 IN TXT "+strings.Repeat("x", 200))(w, request)
		case name == "absent.example.org.":
			reply := new(miekg.Msg).SetRcode(request, miekg.RcodeNameError)
			rr, _ := miekg.NewRR("example.org. 60 IN SOA a. b. 1 2 3 4 30")
			reply.Ns = append(reply.Ns, rr)
			w.WriteMsg(reply)
		case name == "failing.example.org.":
			w.WriteMsg(new(miekg.Msg).SetRcode(request, miekg.RcodeServerFailure))
		case name == "rebind.example.org." || name == "host.site.example.":
			answerWith(name+" 60 IN A 10.1.2.3", name+" 60 IN A 192.0.2.50", name+" 60 IN A 127.0.0.1")(w, request)
		case name == "inside.example.org.":
			answerWith(name+" 60 IN AAAA ::ffff:10.1.2.3", name+" 60 IN AAAA fd00::1", name+" 60 IN AAAA 64:ff9b::a01:203")(w, request)
		case name == "chain.example.org.":
			answerWith("chain.example.org. 60 IN CNAME end.example.net.", "end.example.net. 30 IN A 192.0.2.51",
				"unasked.example.net. 60 IN A 192.0.2.52")(w, request)
		default:
			answerWith("www.example.org. 60 IN A 192.0.2.53", "www.example.org. 60 IN A 192.0.2.54")(w, request)
		}
	})
	_, address := forwarding(t, []string{"corp.internal"}, server)
	for _, test := range []struct {
		name   string
		from   string
		ask    string
		kind   uint16
		rcode  int
		answer []string
		local  bool // nobody is asked
	}{
		{name: "a name", from: demoAddress, ask: "wWw.example.ORG.", answer: []string{"wWw.example.ORG. 60 IN A 192.0.2.53", "wWw.example.ORG. 60 IN A 192.0.2.54"}},
		{name: "from the cache, in another case", from: mateAddress, ask: "www.EXAMPLE.org.", answer: []string{"www.EXAMPLE.org. 60 IN A 192.0.2.53", "www.EXAMPLE.org. 60 IN A 192.0.2.54"}, local: true},
		{name: "cut short over UDP", from: demoAddress, ask: "long.example.org.", kind: miekg.TypeTXT, answer: []string{`long.example.org. 60 IN TXT "` + strings.Repeat("x", 200) + `"`}},
		{name: "missing", from: demoAddress, ask: "absent.example.org.", rcode: miekg.RcodeNameError},
		{name: "known to be missing", from: demoAddress, ask: "absent.example.org.", rcode: miekg.RcodeNameError, local: true},
		{name: "a failure", from: demoAddress, ask: "failing.example.org.", rcode: miekg.RcodeServerFailure},
		{name: "private addresses are left out", from: demoAddress, ask: "rebind.example.org.", answer: []string{"rebind.example.org. 60 IN A 192.0.2.50"}},
		{name: "in IPv6, too", from: demoAddress, ask: "inside.example.org.", kind: miekg.TypeAAAA},
		{name: "but not of the site", from: demoAddress, ask: "host.site.example.", answer: []string{
			"host.site.example. 60 IN A 10.1.2.3", "host.site.example. 60 IN A 127.0.0.1", "host.site.example. 60 IN A 192.0.2.50",
		}},
		{name: "what was asked, and what it leads to", from: demoAddress, ask: "chain.example.org.", answer: []string{
			"chain.example.org. 60 IN CNAME end.example.net.", "end.example.net. 30 IN A 192.0.2.51",
		}},
		{name: "an alias to a name of others", from: demoAddress, ask: "away.gpu.internal.", answer: []string{
			"away.gpu.internal. 5 IN CNAME www.example.org.", "www.example.org. 60 IN A 192.0.2.53", "www.example.org. 60 IN A 192.0.2.54",
		}, local: true},
		{name: "not for the LAN", from: lanAddress, ask: "www.example.org.", rcode: miekg.RcodeRefused, local: true},
		{name: "not for who may not", from: closeAddress, ask: "www.example.org.", rcode: miekg.RcodeRefused, local: true},
		{name: "our zone", from: demoAddress, ask: "absent.gpu.internal.", rcode: miekg.RcodeNameError, local: true},
		{name: "our reverse names", from: demoAddress, ask: "9.9.88.127.in-addr.arpa.", kind: miekg.TypePTR, rcode: miekg.RcodeNameError, local: true},
		{name: "private reverse names", from: demoAddress, ask: "1.2.168.192.in-addr.arpa.", kind: miekg.TypePTR, rcode: miekg.RcodeNameError, local: true},
		{name: "private reverse names in IPv6", from: demoAddress, ask: strings.Repeat("0.", 28) + "0.0.d.f.ip6.arpa.", kind: miekg.TypePTR, rcode: miekg.RcodeNameError, local: true},
		{name: "one label", from: demoAddress, ask: "printer.", rcode: miekg.RcodeNameError, local: true},
		{name: "internal", from: demoAddress, ask: "db.internal.", rcode: miekg.RcodeNameError, local: true},
		{name: "internal of the site", from: demoAddress, ask: "www.corp.internal."},
		{name: "onion", from: demoAddress, ask: "www.onion.", rcode: miekg.RcodeNameError, local: true},
		{name: "names of multicast DNS", from: demoAddress, ask: "printer.local.", rcode: miekg.RcodeNameError, local: true},
		{name: "names of a home", from: demoAddress, ask: "nas.home.arpa.", rcode: miekg.RcodeNameError, local: true},
		{name: "the domain of homes", from: demoAddress, ask: "home.arpa.", rcode: miekg.RcodeNameError, local: true},
		{name: "what validating resolvers ask of it", from: demoAddress, ask: "home.arpa.", kind: miekg.TypeDS},
		{name: "localhost", from: demoAddress, ask: "localhost.", answer: []string{"localhost. 60 IN A 127.0.0.1"}, local: true},
	} {
		if test.kind == 0 {
			test.kind = miekg.TypeA
		}
		before := asked.Load()
		for i, network := range []string{"udp", "tcp"} {
			reply := resolve(t, network, test.from, address, test.ask, test.kind)
			if reply.Rcode != test.rcode || reply.Question[0].Name != test.ask {
				t.Errorf("%s, %s: %v", test.name, network, reply)
			}
			if diff := cmp.Diff(append([]string{}, test.answer...), records(reply.Answer)); diff != "" && i == 0 {
				t.Errorf("%s (-want +got)\n%s", test.name, diff)
			}
			if ra := test.from == demoAddress || test.from == mateAddress; reply.RecursionAvailable != ra {
				t.Errorf("%s: RA %v", test.name, reply.RecursionAvailable)
			}
		}
		if was := asked.Load() != before; was == test.local {
			t.Errorf("%s: a server was asked: %v", test.name, was)
		}
	}
}

// TestSlowServer: one that takes all the time there is does not make those after
// it look dead.
func TestSlowServer(t *testing.T) {
	t.Parallel()
	forwarder, _ := forwarding(t, nil)
	slow, next := nobody(t), nobody(t)
	// It has two seconds for itself; a tenth of one is left.
	ctx, cancel := context.WithTimeout(t.Context(), 2100*time.Millisecond)
	defer cancel()
	if got := forwarder.AskServers(ctx, "www.example.org.", []netip.AddrPort{slow, next}); got[0] != next {
		t.Errorf("asked next are %v, want %v before %v", got, next, slow)
	}
}

// TestServersThatLie: what is not the answer is passed over, and the answer
// that comes after it counts; a server that does not answer does not stop the
// others from being asked.
func TestServersThatLie(t *testing.T) {
	t.Parallel()
	const truth = "www.example.org. 60 IN A 192.0.2.53"
	lie := func(change func(*miekg.Msg)) func(miekg.ResponseWriter, *miekg.Msg) {
		return func(w miekg.ResponseWriter, request *miekg.Msg) {
			rr, _ := miekg.NewRR("www.example.org. 60 IN A 198.51.100.66")
			reply := new(miekg.Msg).SetReply(request)
			reply.Answer = []miekg.RR{rr}
			change(reply)
			w.WriteMsg(reply)
			answerWith(truth)(w, request)
		}
	}
	closed := netip.MustParseAddrPort("127.0.0.1:1")
	honest := upstream(t, answerWith(truth))
	for name, servers := range map[string][]netip.AddrPort{
		"another id":       {upstream(t, lie(func(m *miekg.Msg) { m.Id++ }))},
		"another name":     {upstream(t, lie(func(m *miekg.Msg) { m.Question[0].Name = "www.example.net." }))},
		"another type":     {upstream(t, lie(func(m *miekg.Msg) { m.Question[0].Qtype = miekg.TypeAAAA }))},
		"no answer at all": {upstream(t, lie(func(m *miekg.Msg) { m.Response = false }))},
		"garbage": {upstream(t, func(w miekg.ResponseWriter, request *miekg.Msg) {
			w.Write([]byte("garbage"))
			w.Write(nil)
			answerWith(truth)(w, request)
		})},
		"no EDNS0": {upstream(t, func(w miekg.ResponseWriter, request *miekg.Msg) {
			if request.IsEdns0() != nil {
				w.WriteMsg(new(miekg.Msg).SetRcodeFormatError(request))
				return
			}
			answerWith(truth)(w, request)
		})},
		"no EDNS0, and cut short over UDP": {upstream(t, func(w miekg.ResponseWriter, request *miekg.Msg) {
			switch {
			case request.IsEdns0() != nil:
				w.WriteMsg(new(miekg.Msg).SetRcodeFormatError(request))
			case w.RemoteAddr().Network() == "udp":
				reply := new(miekg.Msg).SetReply(request)
				reply.Truncated = true
				w.WriteMsg(reply)
			default:
				answerWith(truth)(w, request)
			}
		})},
		"closed":     {closed, honest},
		"silent":     {nobody(t), honest},
		"it refuses": {upstream(t, func(w miekg.ResponseWriter, r *miekg.Msg) { w.WriteMsg(new(miekg.Msg).SetRcode(r, miekg.RcodeRefused)) }), honest},
		"TCP is no help": {upstream(t, func(w miekg.ResponseWriter, r *miekg.Msg) {
			m := new(miekg.Msg).SetReply(r)
			m.Truncated = true
			w.WriteMsg(m)
		}), honest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, address := forwarding(t, nil, servers...)
			reply := resolve(t, "udp", demoAddress, address, "www.example.org.", miekg.TypeA)
			if diff := cmp.Diff([]string{truth}, records(reply.Answer)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	t.Run("nobody answers", func(t *testing.T) {
		t.Parallel()
		for _, servers := range [][]netip.AddrPort{{closed}, nil} {
			_, address := forwarding(t, nil, servers...)
			if reply := resolve(t, "udp", demoAddress, address, "www.example.org.", miekg.TypeA); reply.Rcode != miekg.RcodeServerFailure {
				t.Errorf("%v", reply)
			}
		}
	})
}

// TestLoopsAreFound: a server that asks us is not asked.
func TestLoopsAreFound(t *testing.T) {
	t.Parallel()
	var back atomic.Pointer[netip.AddrPort]
	mirror := upstream(t, func(w miekg.ResponseWriter, request *miekg.Msg) {
		reply, err := ask(t, "udp", lanAddress, *back.Load(), request.Copy())
		if err == nil {
			reply.Id = request.Id
			w.WriteMsg(reply)
		}
	})
	honest := upstream(t, answerWith("www.example.org. 60 IN A 192.0.2.53"))
	forwarder, address := forwarding(t, nil, mirror, honest)
	back.Store(&address)
	run(t, forwarder.Run)
	for deadline := time.Now().Add(20 * time.Second); len(forwarder.Loops()) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the loop is not found")
		}
	}
	if diff := cmp.Diff([]string{mirror.String()}, []string{forwarder.Loops()[0].String()}); diff != "" || len(forwarder.Loops()) != 1 {
		t.Errorf("loops: %v", forwarder.Loops())
	}
	if reply := resolve(t, "udp", demoAddress, address, "www.example.org.", miekg.TypeA); len(reply.Answer) != 1 {
		t.Errorf("%v", reply)
	}
}

// TestStorm: one environment that asks for everything with name servers that
// are dead is refused at some point, the same question is asked once however
// many have it, what is known is answered, and another environment gets on
// meanwhile.
func TestStorm(t *testing.T) {
	t.Parallel()
	var same atomic.Int64
	var release sync.WaitGroup
	release.Add(1)
	free := sync.OnceFunc(release.Done)
	server := upstream(t, func(w miekg.ResponseWriter, request *miekg.Msg) {
		if strings.HasPrefix(request.Question[0].Name, "slow.same.") {
			same.Add(1)
		}
		if strings.HasPrefix(request.Question[0].Name, "slow") {
			release.Wait()
		}
		answerWith(request.Question[0].Name+" 60 IN A 192.0.2.53")(w, request)
	})
	t.Cleanup(free) // before the server is shut down, which waits for its handlers
	_, address := forwarding(t, nil, server)
	if reply := resolve(t, "udp", demoAddress, address, "kept.example.org.", miekg.TypeA); len(reply.Answer) != 1 {
		t.Fatalf("a name: %v", reply)
	}
	conn, err := dialer("udp", demoAddress).Dial("udp", address.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	co := &miekg.Conn{Conn: conn, UDPSize: 4096}
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	refused := false
	for i := 0; i < 2000 && !refused; i++ {
		if err := co.WriteMsg(question("slow"+strings.Repeat("x", i%50)+"."+strings.Repeat("y", 1+i/50)+".example.org.", miekg.TypeA)); err != nil {
			t.Fatal(err)
		}
		if i < 128 {
			continue // they wait
		}
		reply, err := co.ReadMsg()
		if err != nil {
			t.Fatalf("question %d: %v", i, err)
		}
		refused = reply.Rcode == miekg.RcodeRefused
	}
	if !refused {
		t.Error("there is no bound")
	}
	for _, name := range []string{"kept.example.org.", "localhost."} {
		if reply := resolve(t, "udp", demoAddress, address, name, miekg.TypeA); len(reply.Answer) != 1 {
			t.Errorf("what nobody has to be asked for: %v", reply)
		}
	}
	if reply := resolve(t, "udp", mateAddress, address, "www.example.org.", miekg.TypeA); len(reply.Answer) != 1 {
		t.Errorf("another environment: %v", reply)
	}
	if reply := resolve(t, "udp", demoAddress, address, "demo.gpu.internal.", miekg.TypeA); len(reply.Answer) != 1 {
		t.Errorf("a name of ours: %v", reply)
	}
	var together sync.WaitGroup
	for range 50 {
		together.Go(func() {
			reply, err := ask(t, "udp", looseAddress, address, question("slow.same.example.org.", miekg.TypeA))
			if err != nil && !errors.Is(err, context.Canceled) || reply != nil && len(reply.Answer) != 1 {
				t.Errorf("the same question: %v %v", reply, err)
			}
		})
	}
	for deadline := time.Now().Add(20 * time.Second); same.Load() == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
	}
	free()
	together.Wait()
	if n := same.Load(); n > 2 { // one may have come after the answer, before it was kept
		t.Errorf("the same question was asked %d times", n)
	}
}

// TestOtherServersAreProbed: those that the host has got since are looked at for
// loops as soon as there is a question.
func TestOtherServersAreProbed(t *testing.T) {
	t.Parallel()
	probed := make(chan string, 100)
	note := func(name string) netip.AddrPort {
		return upstream(t, func(w miekg.ResponseWriter, request *miekg.Msg) {
			if request.Question[0].Qtype == miekg.TypeHINFO {
				probed <- name
			}
			answerWith("www.example.org. 60 IN A 192.0.2.53")(w, request)
		})
	}
	var servers atomic.Pointer[[]netip.AddrPort]
	servers.Store(&[]netip.AddrPort{note("first")})
	forwarder := dns.NewForwarder(dns.ForwarderConfig{Upstreams: func() ([]netip.AddrPort, []string) { return *servers.Load(), nil }})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- forwarder.Run(ctx) }()
	for _, want := range []string{"first", "second"} {
		if want == "second" {
			servers.Store(&[]netip.AddrPort{note("second")})
			forwarder.Resolve(ctx, dns.Question{Name: "www.example.org.", Type: miekg.TypeA})
		}
		select {
		case got := <-probed:
			if got != want {
				t.Errorf("the %s server is probed and not the %s", got, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("the %s server is not probed", want)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
