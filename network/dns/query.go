package dns

import (
	"encoding/binary"

	miekg "github.com/miekg/dns"
)

const (
	headerSize = 12
	maxName    = 255 // bytes on the wire, RFC 1035 section 2.3.4
	maxLabel   = 63
	// minUDP is what a client without EDNS0 can take, maxUDP what crosses
	// every path without fragments (DNS flag day 2020).
	minUDP = 512
	maxUDP = 1232
	maxTCP = 65535
)

// query is a question as it came. It is reused: nothing of it outlives the
// answer.
type query struct {
	id       uint16
	flags    uint16
	question []byte // as received: name, type, class; nil when unreadable
	lower    [maxName]byte
	offsets  [maxName / 2]uint8 // of each label in lower
	labels   int
	length   int // bytes of the name, the root's zero included
	qtype    uint16
	class    uint16
	edns     bool
	do       bool
	version  uint8
	size     int // bytes of the largest UDP answer that the client takes
}

// Bits of the second word of the header.
const (
	flagQR = 1 << 15
	flagAA = 1 << 10
	flagTC = 1 << 9
	flagRD = 1 << 8
	flagRA = 1 << 7
	flagCD = 1 << 4
)

// noError means that there is something to look up.
const noError = miekg.RcodeSuccess

// parse reads a message. answer is false for what nobody may answer: an answer
// to that could be answered for ever. Any other rcode than noError is the
// whole answer.
func (q *query) parse(message []byte) (rcode int, answer bool) {
	q.question, q.edns, q.do, q.version, q.size, q.labels, q.length = nil, false, false, 0, minUDP, 0, 0
	if len(message) < headerSize {
		return 0, false
	}
	q.id, q.flags = binary.BigEndian.Uint16(message), binary.BigEndian.Uint16(message[2:])
	if q.flags&flagQR != 0 {
		return 0, false
	}
	if q.opcode() != miekg.OpcodeQuery {
		q.findEDNS(message)
		return miekg.RcodeNotImplemented, true
	}
	answers, authorities, additionals := count(message, 6), count(message, 8), count(message, 10)
	// An IXFR has a SOA in its authority section, a signed question with EDNS0
	// two additional records.
	if count(message, 4) != 1 || answers > 1 || authorities > 1 || additionals > 2 {
		q.findEDNS(message)
		return miekg.RcodeFormatError, true
	}
	at, ok := q.parseName(message)
	if !ok || len(message) < at+4 {
		return miekg.RcodeFormatError, true
	}
	q.qtype, q.class = binary.BigEndian.Uint16(message[at:]), binary.BigEndian.Uint16(message[at+2:])
	at += 4
	question := message[headerSize:at]
	for i := range answers + authorities + additionals {
		if at, ok = q.parseRecord(message, at, i >= answers+authorities); !ok {
			q.edns = false // what was read of it means nothing
			return miekg.RcodeFormatError, true
		}
	}
	q.question = question
	if q.edns && q.version != 0 {
		return miekg.RcodeBadVers, true
	}
	return q.refused(), true
}

// findEDNS reads EDNS0 of a message of which nothing else is read: the answer
// has it when the message has it (RFC 6891 section 7). What cannot be read as
// far as that has none.
func (q *query) findEDNS(message []byte) {
	var ok bool
	at := headerSize
	for range count(message, 4) {
		if at, ok = skipName(message, at); !ok || len(message) < at+4 {
			return
		}
		at += 4
	}
	others := count(message, 6) + count(message, 8)
	for i := range others + count(message, 10) {
		if at, ok = q.parseRecord(message, at, i >= others); !ok {
			q.edns = false
			return
		}
	}
}

func (q *query) opcode() int { return int(q.flags>>11) & 0xf }

func count(message []byte, at int) int { return int(binary.BigEndian.Uint16(message[at:])) }

// refused is noError unless nobody gets an answer to such a question.
func (q *query) refused() int {
	switch {
	case q.class != miekg.ClassINET:
		return miekg.RcodeRefused
	case q.qtype == miekg.TypeAXFR, q.qtype == miekg.TypeIXFR, q.qtype == miekg.TypeMAILA, q.qtype == miekg.TypeMAILB:
		return miekg.RcodeRefused
	case q.qtype == 0, q.qtype == miekg.TypeOPT, q.qtype == miekg.TypeTSIG, q.qtype == miekg.TypeTKEY:
		return miekg.RcodeFormatError
	}
	return noError
}

// parseName reads the name of the question, in which nothing can be a pointer,
// and keeps it in lower case.
func (q *query) parseName(message []byte) (next int, ok bool) {
	at, end := headerSize, 0
	for {
		if at >= len(message) {
			return 0, false
		}
		size := int(message[at])
		if size > maxLabel || at+1+size > len(message) || end+1+size > maxName {
			return 0, false
		}
		if size == 0 {
			q.lower[end] = 0
			q.length = end + 1
			return at + 1, true
		}
		if end+1+size >= maxName { // no room for the root
			return 0, false
		}
		q.offsets[q.labels] = uint8(end)
		q.labels++
		q.lower[end] = byte(size)
		for i := 1; i <= size; i++ {
			q.lower[end+i] = lowerByte(message[at+i])
		}
		at, end = at+1+size, end+1+size
	}
}

func lowerByte(b byte) byte {
	if b >= 'A' && b <= 'Z' {
		return b + ('a' - 'A')
	}
	return b
}

// parseRecord passes over a record and reads EDNS0 when it is that.
func (q *query) parseRecord(message []byte, at int, additional bool) (next int, ok bool) {
	name := at
	if at, ok = skipName(message, at); !ok || len(message) < at+10 {
		return 0, false
	}
	kind, class := binary.BigEndian.Uint16(message[at:]), binary.BigEndian.Uint16(message[at+2:])
	ttl, size := binary.BigEndian.Uint32(message[at+4:]), count(message, at+8)
	data := at + 10
	if len(message) < data+size {
		return 0, false
	}
	if kind == miekg.TypeOPT {
		if !additional || q.edns || message[name] != 0 || !wellFormed(message[data:data+size]) {
			return 0, false
		}
		q.edns, q.version, q.do = true, uint8(ttl>>16), ttl&(1<<15) != 0
		q.size = max(minUDP, min(int(class), maxUDP))
	}
	return data + size, true
}

// wellFormed says whether the options of EDNS0 can be read.
func wellFormed(options []byte) bool {
	for len(options) > 0 {
		if len(options) < 4 {
			return false
		}
		size := count(options, 2)
		if len(options) < 4+size {
			return false
		}
		options = options[4+size:]
	}
	return true
}

// skipName passes over a name, which may end in a pointer.
func skipName(message []byte, at int) (next int, ok bool) {
	for at < len(message) {
		size := int(message[at])
		switch {
		case size == 0:
			return at + 1, true
		case size >= 0xC0:
			return at + 2, at+2 <= len(message)
		case size > maxLabel:
			return 0, false
		}
		at += 1 + size
	}
	return 0, false
}

// label is the i-th label of the name, in lower case.
func (q *query) label(i int) []byte {
	at := int(q.offsets[i])
	return q.lower[at+1 : at+1+int(q.lower[at])]
}

// suffix is the name from its i-th label on, in lower case, as on the wire.
func (q *query) suffix(i int) []byte {
	if i >= q.labels {
		return q.lower[q.length-1 : q.length]
	}
	return q.lower[q.offsets[i]:q.length]
}

// name is the name as it was asked for, as text.
func (q *query) name() string {
	name, _, err := miekg.UnpackDomainName(q.question, 0)
	if err != nil {
		return "." // parseName has read it
	}
	return name
}
