package dns_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	miekg "github.com/miekg/dns"

	"github.com/remotegpu/remotegpu/network/dns"
)

// exchange sends bytes over UDP and returns what comes back, nil for nothing
// before the answer to a question that is sent after them.
func exchange(t *testing.T, to netip.AddrPort, message []byte) []byte {
	t.Helper()
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	after := question("after.demo.gpu.internal.", miekg.TypeA)
	if binary.BigEndian.Uint16(append(message, 0, 0)) == after.Id {
		after.Id++
	}
	packed, err := after.Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range [][]byte{message, packed} {
		if _, err := conn.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	buffer := make([]byte, 65535)
	size, err := conn.Read(buffer)
	if err != nil {
		t.Fatal(err)
	}
	if binary.BigEndian.Uint16(buffer) == after.Id {
		return nil
	}
	return buffer[:size]
}

// TestMessages: what is not a plain question, byte for byte where that matters.
func TestMessages(t *testing.T) {
	t.Parallel()
	server := dns.NewServer(dns.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/16")}, Sockets: 1}) // one: answers in order
	if err := server.Set(world()); err != nil {
		t.Fatal(err)
	}
	address := listen(t, server)
	for _, test := range []struct {
		name   string
		change func(*miekg.Msg)
		bytes  func([]byte) []byte
		rcode  int // -1: no answer
		edns   bool
		bare   bool // the answer has no question
	}{
		{name: "plain", rcode: miekg.RcodeSuccess},
		{name: "NOTIFY", change: func(m *miekg.Msg) { m.Opcode = miekg.OpcodeNotify }, rcode: miekg.RcodeNotImplemented, bare: true},
		{name: "UPDATE", change: func(m *miekg.Msg) { m.Opcode = miekg.OpcodeUpdate }, rcode: miekg.RcodeNotImplemented, bare: true},
		{name: "NOTIFY with EDNS0", change: func(m *miekg.Msg) { m.Opcode = miekg.OpcodeNotify; m.SetEdns0(4096, false) }, rcode: miekg.RcodeNotImplemented, edns: true, bare: true},
		{name: "UPDATE that ends within EDNS0", change: func(m *miekg.Msg) { m.Opcode = miekg.OpcodeUpdate; m.SetEdns0(4096, false) }, bytes: func(b []byte) []byte {
			return b[:len(b)-1]
		}, rcode: miekg.RcodeNotImplemented, bare: true},
		{name: "two questions with EDNS0", change: func(m *miekg.Msg) {
			m.Question = append(m.Question, m.Question[0])
			m.SetEdns0(4096, false)
		}, rcode: miekg.RcodeFormatError, edns: true, bare: true},
		{name: "class CH", change: func(m *miekg.Msg) { m.Question[0].Qclass = miekg.ClassCHAOS }, rcode: miekg.RcodeRefused},
		{name: "class ANY", change: func(m *miekg.Msg) { m.Question[0].Qclass = miekg.ClassANY }, rcode: miekg.RcodeRefused},
		{name: "IXFR", change: func(m *miekg.Msg) { m.SetIxfr("gpu.internal.", 1, "a.", "b.") }, rcode: miekg.RcodeRefused},
		{name: "an answer", change: func(m *miekg.Msg) { m.Response = true }, rcode: -1},
		{name: "no question", change: func(m *miekg.Msg) { m.Question = nil }, rcode: miekg.RcodeFormatError, bare: true},
		{name: "two questions", change: func(m *miekg.Msg) { m.Question = append(m.Question, m.Question[0]) }, rcode: miekg.RcodeFormatError, bare: true},
		{name: "EDNS version 1", change: func(m *miekg.Msg) { m.SetEdns0(4096, false); m.IsEdns0().SetVersion(1) }, rcode: miekg.RcodeBadVers, edns: true},
		{name: "an unknown option", change: func(m *miekg.Msg) {
			m.SetEdns0(4096, false)
			m.IsEdns0().Option = []miekg.EDNS0{&miekg.EDNS0_LOCAL{Code: 65001, Data: []byte("x")}}
		}, rcode: miekg.RcodeSuccess, edns: true},
		{name: "two EDNS records", change: func(m *miekg.Msg) { m.SetEdns0(4096, false); m.Extra = append(m.Extra, m.Extra[0]) }, rcode: miekg.RcodeFormatError, bare: true},
		{name: "a broken option", change: func(m *miekg.Msg) {
			m.SetEdns0(4096, false)
			m.IsEdns0().Option = []miekg.EDNS0{&miekg.EDNS0_LOCAL{Code: 65001, Data: []byte("x")}}
		}, bytes: func(b []byte) []byte { b[len(b)-2] = 9; return b }, rcode: miekg.RcodeFormatError, bare: true},
		{name: "type OPT", change: func(m *miekg.Msg) { m.Question[0].Qtype = miekg.TypeOPT }, rcode: miekg.RcodeFormatError},
		{name: "a header alone", bytes: func(b []byte) []byte { return b[:12] }, rcode: miekg.RcodeFormatError, bare: true},
		{name: "less than a header", bytes: func(b []byte) []byte { return b[:11] }, rcode: -1},
		{name: "nothing", bytes: func([]byte) []byte { return nil }, rcode: -1},
		{name: "a name without an end", bytes: func(b []byte) []byte { return b[:20] }, rcode: miekg.RcodeFormatError, bare: true},
		{name: "a pointer as the name", bytes: func(b []byte) []byte { return append(b[:12:12], 0xC0, 12, 0, 1, 0, 1) }, rcode: miekg.RcodeFormatError, bare: true},
		{name: "a label of 64", bytes: func(b []byte) []byte {
			return append(append(append(b[:12:12], 64), strings.Repeat("a", 64)...), 0, 0, 1, 0, 1)
		}, rcode: miekg.RcodeFormatError, bare: true},
		{name: "a name of 256", bytes: func(b []byte) []byte {
			b = b[:12:12]
			for range 127 {
				b = append(b, 1, 'a')
			}
			return append(b, 0, 0, 1, 0, 1)
		}, rcode: miekg.RcodeRefused}, // 255: it is one, of others
		{name: "a name of 257", bytes: func(b []byte) []byte {
			b = b[:12:12]
			for range 128 {
				b = append(b, 1, 'a')
			}
			return append(b, 0, 0, 1, 0, 1)
		}, rcode: miekg.RcodeFormatError, bare: true},
		{name: "what follows the question", bytes: func(b []byte) []byte { return append(b, "tail"...) }, rcode: miekg.RcodeSuccess},
	} {
		message := question("demo.gpu.internal.", miekg.TypeA)
		if test.change != nil {
			test.change(message)
		}
		packed, err := message.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if test.bytes != nil {
			packed = test.bytes(packed)
		}
		answer := exchange(t, address, packed)
		if test.rcode < 0 {
			if answer != nil {
				t.Errorf("%s: answered %x", test.name, answer)
			}
			continue
		}
		var reply miekg.Msg
		if err := reply.Unpack(answer); err != nil {
			t.Errorf("%s: the answer cannot be read: %v %x", test.name, err, answer)
			continue
		}
		if reply.Rcode != test.rcode || reply.Id != message.Id || !reply.Response || reply.Opcode != message.Opcode || len(reply.Question) == 1 == test.bare || (reply.IsEdns0() != nil) != test.edns {
			t.Errorf("%s: %v", test.name, &reply)
		}
		if opt := reply.IsEdns0(); opt != nil && len(opt.Option) > 0 {
			t.Errorf("%s: options %v", test.name, opt.Option)
		}
	}
}

// listen serves on loopback until the test ends.
func listen(tb testing.TB, server *dns.Server) netip.AddrPort {
	tb.Helper()
	return listenAt(tb, server, "127.0.0.1:0", true)
}

// listenAt is listen at an address, where environments ask or not.
func listenAt(tb testing.TB, server *dns.Server, at string, ours bool) netip.AddrPort {
	tb.Helper()
	var listener *dns.Listener
	var err error
	for range 20 { // the port that was picked for UDP may be taken for TCP
		if listener, err = server.Listen(tb.Context(), netip.MustParseAddrPort(at), ours); err == nil {
			break
		}
	}
	if err != nil {
		tb.Fatal(err)
	}
	run(tb, listener.Serve)
	return listener.Address()
}

// TestTooLong: what does not fit is cut at whole records, additional ones first
// and silently, others with TC; over TCP all of it comes.
func TestTooLong(t *testing.T) {
	t.Parallel()
	desired := world()
	many := &dns.Host{ID: "9", Name: "many", Project: "default"}
	for i := range 30 {
		many.Records = append(many.Records, dns.Record{Name: "a", Type: dns.A, Data: fmt.Sprintf("192.0.2.%d", i)})
		many.Records = append(many.Records, dns.Record{Name: "t", Type: dns.TXT, Data: fmt.Sprintf("%1000d", i)})
	}
	for i := range 8 {
		many.Services = append(many.Services, dns.Service{Name: "x", Protocol: "tcp", Port: uint16(i + 1)})
	}
	desired.Hosts = append(desired.Hosts, many)
	for i := range 20 {
		desired.Advertised = append(desired.Advertised, netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}))
	}
	server := dns.NewServer(dns.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/16")}})
	if err := server.Set(desired); err != nil {
		t.Fatal(err)
	}
	address := listen(t, server)
	for _, test := range []struct {
		name, ask         string
		kind              uint16
		network           string
		edns              uint16
		limit             int
		truncated         bool
		least, additional int
	}{
		{"all of it fits", "a.many.gpu.internal.", miekg.TypeA, "udp", 1232, 1232, false, 30, 0},
		{"without EDNS0", "a.many.gpu.internal.", miekg.TypeA, "udp", 0, 512, true, 20, 0},
		{"no more than 1232", "t.many.gpu.internal.", miekg.TypeTXT, "udp", 4096, 1232, true, 1, 0},
		{"not even one", "t.many.gpu.internal.", miekg.TypeTXT, "udp", 512, 512, true, 0, 0},
		{"TCP", "t.many.gpu.internal.", miekg.TypeTXT, "tcp", 0, 65535, false, 30, 0},
		{"additional ones are left out silently", "_x._tcp.many.gpu.internal.", miekg.TypeSRV, "udp", 0, 512, false, 8, 3},
	} {
		message := question(test.ask, test.kind)
		if test.edns > 0 {
			message.SetEdns0(test.edns, false)
		}
		reply, err := ask(t, test.network, lanAddress, address, message)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		reply.Compress = true
		if reply.Truncated != test.truncated || len(reply.Answer) < test.least || reply.Len() > test.limit {
			t.Errorf("%s: %d answers, TC %v, %d bytes", test.name, len(reply.Answer), reply.Truncated, reply.Len())
		}
		if test.additional > 0 && (len(reply.Extra) < test.additional || len(reply.Extra) > 21) {
			t.Errorf("%s: %d additional records", test.name, len(reply.Extra))
		}
	}
}

// TestPipelining: thousands of questions over one connection, without waiting
// for answers, are answered in order and the connection stays.
func TestPipelining(t *testing.T) {
	t.Parallel()
	_, address := serve(t, dns.Config{})
	conn, err := net.Dial("tcp", address.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	const count = 5000
	go func() {
		var all []byte
		for i := range count {
			message := question("demo.gpu.internal.", miekg.TypeA)
			message.Id = uint16(i)
			packed, _ := message.Pack()
			all = append(binary.BigEndian.AppendUint16(all, uint16(len(packed))), packed...)
		}
		conn.Write(all)
	}()
	for i := range count {
		var prefix [2]byte
		if _, err := io.ReadFull(conn, prefix[:]); err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		answer := make([]byte, binary.BigEndian.Uint16(prefix[:]))
		if _, err := io.ReadFull(conn, answer); err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		var reply miekg.Msg
		if err := reply.Unpack(answer); err != nil || int(reply.Id) != i || len(reply.Answer) != 1 {
			t.Fatalf("answer %d: %v %v", i, &reply, err)
		}
	}
}

// TestAddressesProveNothingElsewhere: who is an environment is known where
// environments ask; at the host's other addresses the networks that may ask get
// what is for everybody, and the addresses of environments nothing.
func TestAddressesProveNothingElsewhere(t *testing.T) {
	t.Parallel()
	forwarder := dns.NewForwarder(dns.ForwarderConfig{Upstreams: func() ([]netip.AddrPort, []string) { return nil, nil }})
	server, own := serve(t, dns.Config{
		Forwarder: forwarder, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		Environments: []netip.Prefix{netip.MustParsePrefix("127.88.0.0/16")},
	})
	elsewhere := listenAt(t, server, "127.0.0.1:0", false)
	if reply := resolve(t, "udp", demoAddress, own, "mate.gpu.internal.", miekg.TypeA); len(reply.Answer) != 1 || !reply.RecursionAvailable {
		t.Errorf("where environments ask: %v", reply)
	}
	for _, from := range []string{demoAddress, "127.88.200.1"} {
		for _, name := range []string{"mate.gpu.internal.", "localhost."} {
			if reply := resolve(t, "udp", from, elsewhere, name, miekg.TypeA); reply.Rcode != miekg.RcodeRefused || reply.RecursionAvailable {
				t.Errorf("%s from %s elsewhere: %v", name, from, reply)
			}
		}
		if reply, err := ask(t, "tcp", from, elsewhere, question("mate.gpu.internal.", miekg.TypeA)); err == nil {
			t.Errorf("from %s elsewhere over TCP: %v", from, reply)
		}
	}
	reply := resolve(t, "tcp", aliensAddr, elsewhere, "mate.gpu.internal.", miekg.TypeA)
	if diff := cmp.Diff([]string{"mate.gpu.internal. 5 IN A 192.0.2.7"}, records(reply.Answer)); diff != "" {
		t.Errorf("the LAN (-want +got)\n%s", diff)
	}
}

// TestConnectionsAreBounded: one client has so many and no more; another one
// gets on, and so does the first at another address, and when it lets go of one.
// Who may not ask has none.
func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	server, address := serve(t, dns.Config{})
	second := listenAt(t, server, "127.0.0.1:0", false)
	var open []net.Conn
	defer func() {
		for _, conn := range open {
			conn.Close()
		}
	}()
	usable := func(conn net.Conn) bool {
		co := &miekg.Conn{Conn: conn}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		if co.WriteMsg(question("demo.gpu.internal.", miekg.TypeA)) != nil {
			return false
		}
		_, err := co.ReadMsg()
		return err == nil
	}
	refused := false
	for range 100 {
		conn, err := dialer("tcp", lanAddress).Dial("tcp", address.String())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
		if refused = !usable(conn); refused {
			break
		}
	}
	if !refused {
		t.Fatalf("%d connections of one client", len(open))
	}
	other, err := dialer("tcp", demoAddress).Dial("tcp", address.String())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if !usable(other) {
		t.Error("another client does not get on")
	}
	elsewhere, err := dialer("tcp", lanAddress).Dial("tcp", second.String())
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	if !usable(elsewhere) {
		t.Error("the client does not get on at another address")
	}
	stranger, err := dialer("tcp", aliensAddr).Dial("tcp", address.String())
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	stranger.SetDeadline(time.Now().Add(10 * time.Second)) // before that of a connection without a question
	if _, err := stranger.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("who may not ask stays connected: %v", err)
	}
	open[0].Close()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		conn, err := dialer("tcp", lanAddress).Dial("tcp", address.String())
		if err != nil {
			t.Fatal(err)
		}
		ok := usable(conn)
		conn.Close()
		if ok {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a place that was given back cannot be taken")
		}
	}
}
