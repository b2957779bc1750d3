package dns

import (
	"encoding/binary"

	miekg "github.com/miekg/dns"
)

// optSize is the size of the EDNS0 record of an answer: it has no options.
const optSize = 11

// respond appends an answer to out, which is empty: header, question, body and
// EDNS0. What does not fit into limit bytes is left out, additional records
// first; without a part of the answer TC says so. zone is the length of the
// zone's name at the end of the question.
func (q *query) respond(out []byte, flags uint16, rcode int, b *body, zone, limit int) []byte {
	flags |= flagQR | q.flags&(0xf<<11|flagRD|flagCD) | uint16(rcode&0xf)
	out = binary.BigEndian.AppendUint16(out, q.id)
	out = binary.BigEndian.AppendUint16(out, flags)
	out = append(out, 0, 0, 0, 0, 0, 0, 0, 0)
	if q.question != nil {
		out[5] = 1
		out = append(out, q.question...)
	}
	room := limit - len(out)
	if q.edns {
		room -= optSize
	}
	additional := 0
	if b != nil {
		start := len(out)
		answers, authority, extra, size := b.fit(room)
		if answers < b.answers || authority < b.authority {
			out[2] |= flagTC >> 8
		}
		out = append(out, b.bytes[:size]...)
		for _, p := range b.pointers {
			if p.at+2 > size {
				break
			}
			to := start + p.to
			if p.zone {
				to = headerSize + len(q.question) - 4 - zone
			}
			binary.BigEndian.PutUint16(out[start+p.at:], 0xC000|uint16(to))
		}
		binary.BigEndian.PutUint16(out[6:], uint16(answers))
		binary.BigEndian.PutUint16(out[8:], uint16(authority))
		additional = extra
	}
	if q.edns {
		additional++
		out = q.appendOPT(out, rcode)
	}
	binary.BigEndian.PutUint16(out[10:], uint16(additional))
	return out
}

// appendOPT appends EDNS0 without options: unknown ones are never echoed.
func (q *query) appendOPT(out []byte, rcode int) []byte {
	out = append(out, 0)
	out = binary.BigEndian.AppendUint16(out, miekg.TypeOPT)
	out = binary.BigEndian.AppendUint16(out, maxUDP)
	ttl := uint32(rcode>>4) << 24
	if q.do {
		ttl |= 1 << 15 // RFC 3225 section 3
	}
	out = binary.BigEndian.AppendUint32(out, ttl)
	return append(out, 0, 0)
}

// fit tells how many whole records of each section fit, and their bytes.
func (b *body) fit(room int) (answers, authority, additional, size int) {
	if len(b.bytes) <= room {
		return b.answers, b.authority, b.additional, len(b.bytes)
	}
	for i, end := range b.ends {
		if end > room {
			break
		}
		size = end
		switch {
		case i < b.answers:
			answers++
		case i < b.answers+b.authority:
			authority++
		default:
			additional++
		}
	}
	return answers, authority, additional, size
}
