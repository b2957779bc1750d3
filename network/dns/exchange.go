package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	miekg "github.com/miekg/dns"
)

// tryTimeout is how long one server has to answer.
const tryTimeout = 2 * time.Second

// exchange asks one server: over UDP from a port of its own, so that an answer
// that somebody made up has to guess port and id; over TCP when the answer is
// cut short.
func exchange(ctx context.Context, server netip.AddrPort, q Question) (*miekg.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	request := &miekg.Msg{
		MsgHdr:   miekg.MsgHdr{RecursionDesired: true, CheckingDisabled: q.CheckingDisabled},
		Question: []miekg.Question{{Name: q.Name, Qtype: q.Type, Qclass: miekg.ClassINET}},
	}
	var id [2]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, fmt.Errorf("pick id: %w", err)
	}
	request.Id = binary.BigEndian.Uint16(id[:])
	request.SetEdns0(maxUDP, q.DNSSEC)
	reply, err := whole(ctx, server, request)
	if err == nil && reply.Rcode == miekg.RcodeFormatError && len(reply.Answer) == 0 {
		request.Extra = nil // it does not know EDNS0
		reply, err = whole(ctx, server, request)
	}
	if err != nil {
		return nil, fmt.Errorf("ask name server %s: %w", server, err)
	}
	return reply, nil
}

// whole returns an answer that is not cut short, over TCP where it would be.
func whole(ctx context.Context, server netip.AddrPort, request *miekg.Msg) (*miekg.Msg, error) {
	reply, err := once(ctx, "udp", server, request)
	if err != nil || !reply.Truncated {
		return reply, err
	}
	reply, err = once(ctx, "tcp", server, request)
	if err == nil && reply.Truncated {
		err = errors.New("its answer is cut short over TCP, too")
	}
	return reply, err
}

// once sends a question and waits for its answer. What comes and is not that
// is passed over: it proves nothing but that somebody knows the port.
func once(ctx context.Context, network string, server netip.AddrPort, request *miekg.Msg) (*miekg.Msg, error) {
	packed, err := request.Pack()
	if err != nil {
		return nil, fmt.Errorf("pack question: %w", err)
	}
	// A connected socket takes nothing from another address.
	conn, err := new(net.Dialer).DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	stream := network == "tcp"
	if stream {
		packed = append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...)
	}
	if _, err := conn.Write(packed); err != nil {
		return nil, err
	}
	buffer := make([]byte, 4096)
	for {
		message, err := receive(conn, stream, buffer)
		if err != nil {
			return nil, err
		}
		reply := new(miekg.Msg)
		if reply.Unpack(message) == nil && answers(reply, request) {
			return reply, nil
		}
		if stream {
			return nil, errors.New("its answer is to another question")
		}
	}
}

func receive(conn net.Conn, stream bool, buffer []byte) ([]byte, error) {
	if !stream {
		size, err := conn.Read(buffer)
		return buffer[:size], err
	}
	var prefix [2]byte
	if _, err := io.ReadFull(conn, prefix[:]); err != nil {
		return nil, err
	}
	message := make([]byte, binary.BigEndian.Uint16(prefix[:]))
	_, err := io.ReadFull(conn, message)
	return message, err
}

// answers says whether a message is the answer to a question.
func answers(reply, request *miekg.Msg) bool {
	if reply.Id != request.Id || !reply.Response || reply.Opcode != miekg.OpcodeQuery {
		return false
	}
	if len(reply.Question) == 0 { // as some refuse what they do not understand
		return reply.Rcode != miekg.RcodeSuccess && reply.Rcode != miekg.RcodeNameError
	}
	got, want := reply.Question[0], request.Question[0]
	return len(reply.Question) == 1 && strings.EqualFold(got.Name, want.Name) && got.Qtype == want.Qtype && got.Qclass == want.Qclass
}
