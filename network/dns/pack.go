package dns

import (
	"encoding/binary"
	"net/netip"
	"strings"

	miekg "github.com/miekg/dns"
)

// wireName is a domain name as on the wire, in lower case, without pointers.
type wireName string

// toWire converts a domain name, "" when it is none.
func toWire(name string) wireName {
	buffer := make([]byte, maxName+1)
	end, err := miekg.PackDomainName(miekg.Fqdn(strings.ToLower(name)), buffer, 0, nil, false)
	if err != nil || end > maxName {
		return ""
	}
	return wireName(buffer[:end])
}

// below is the name of label in a domain.
func below(label string, domain wireName) wireName {
	if len(label) == 0 || len(label) > maxLabel || len(label)+1+len(domain) > maxName {
		return ""
	}
	return wireName(string([]byte{byte(len(label))})+label) + domain
}

// labels are the labels of a name, the root's not.
func (n wireName) labels() []string {
	var labels []string
	for len(n) > 1 {
		size := int(n[0])
		labels = append(labels, string(n[1:1+size]))
		n = n[1+size:]
	}
	return labels
}

// record is one record but for its owner.
type record struct {
	kind uint16
	ttl  uint32
	data []byte
	// target is the name at the end of data, "" when there is none.
	target wireName
}

func addressRecord(address netip.Addr, ttl uint32) record {
	kind := miekg.TypeAAAA
	if address.Is4() {
		kind = miekg.TypeA
	}
	return record{kind: kind, ttl: ttl, data: address.AsSlice()}
}

func nameRecord(kind uint16, target wireName, ttl uint32) record {
	return record{kind: kind, ttl: ttl, data: []byte(target), target: target}
}

func srvRecord(priority, weight, port uint16, target wireName, ttl uint32) record {
	data := binary.BigEndian.AppendUint16(nil, priority)
	data = binary.BigEndian.AppendUint16(data, weight)
	data = binary.BigEndian.AppendUint16(data, port)
	return record{kind: miekg.TypeSRV, ttl: ttl, data: append(data, target...), target: target}
}

// textRecord is a text, of which what is longer than 255 bytes becomes several
// strings, which readers join (RFC 7208 section 3.3).
func textRecord(text string, ttl uint32) record {
	var data []byte
	for {
		part := text[:min(len(text), 255)]
		data = append(append(data, byte(len(part))), part...)
		if text = text[len(part):]; text == "" {
			return record{kind: miekg.TypeTXT, ttl: ttl, data: data}
		}
	}
}

// body is what follows the question of an answer, ready to be sent. Pointers
// in it depend on the length of the question and are filled in then.
type body struct {
	bytes    []byte
	pointers []pointer
	ends     []int // of each record in bytes
	answers  int
	authority,
	additional int
}

// pointer is a compression pointer at a place in a body: to a place in the
// body, or to the zone's name at the end of the question.
type pointer struct {
	at, to int
	zone   bool
}

// packer puts a body together.
type packer struct {
	body
	seen map[wireName]int // names in the body
}

// The sections.
const (
	answerSection = iota
	authoritySection
	additionalSection
)

// add adds a record. owner "" is the name that was asked for.
func (p *packer) add(section int, owner wireName, r record) {
	p.owner(owner)
	p.bytes = binary.BigEndian.AppendUint16(p.bytes, r.kind)
	p.bytes = binary.BigEndian.AppendUint16(p.bytes, miekg.ClassINET)
	p.bytes = binary.BigEndian.AppendUint32(p.bytes, r.ttl)
	p.bytes = binary.BigEndian.AppendUint16(p.bytes, uint16(len(r.data)))
	if r.target != "" {
		p.remember(r.target, len(p.bytes)+len(r.data)-len(r.target))
	}
	p.bytes = append(p.bytes, r.data...)
	p.end(section)
}

func (p *packer) owner(owner wireName) {
	if owner == "" {
		p.bytes = append(p.bytes, 0xC0, headerSize)
		return
	}
	if at, ok := p.seen[owner]; ok {
		p.pointers = append(p.pointers, pointer{at: len(p.bytes), to: at})
		p.bytes = append(p.bytes, 0, 0)
		return
	}
	p.remember(owner, len(p.bytes))
	p.bytes = append(p.bytes, owner...)
}

func (p *packer) remember(name wireName, at int) {
	if p.seen == nil {
		p.seen = make(map[wireName]int)
	}
	// A pointer has 14 bits, and the question comes before the body.
	if _, ok := p.seen[name]; !ok && at < 1<<14-headerSize-maxName-4 {
		p.seen[name] = at
	}
}

func (p *packer) end(section int) {
	p.ends = append(p.ends, len(p.bytes))
	switch section {
	case answerSection:
		p.answers++
	case authoritySection:
		p.authority++
	default:
		p.additional++
	}
}

// soa are the fixed parts of a SOA record.
type soa struct {
	zone, server, mailbox wireName
	serial                uint32
}

// appendNumbers appends what follows the names. Nobody transfers the zone; the
// intervals are the usual ones.
func (s *soa) appendNumbers(data []byte) []byte {
	for _, number := range []uint32{s.serial, 3600, 600, 86400, negativeTTL} {
		data = binary.BigEndian.AppendUint32(data, number)
	}
	return data
}

// record is the SOA record for answers about names in other zones, too.
func (s *soa) record(ttl uint32) record {
	return record{kind: miekg.TypeSOA, ttl: ttl, data: s.appendNumbers([]byte(s.server + s.mailbox))}
}

// addSOA adds the record of the zone that the name asked for is in, with that
// zone's name as a pointer wherever it occurs.
func (p *packer) addSOA(section int, s *soa, ttl uint32) {
	p.inZone(s.zone, s.zone)
	p.bytes = binary.BigEndian.AppendUint16(p.bytes, miekg.TypeSOA)
	p.bytes = binary.BigEndian.AppendUint16(p.bytes, miekg.ClassINET)
	p.bytes = binary.BigEndian.AppendUint32(p.bytes, ttl)
	length := len(p.bytes)
	p.bytes = append(p.bytes, 0, 0)
	p.inZone(s.server, s.zone)
	p.inZone(s.mailbox, s.zone)
	p.bytes = s.appendNumbers(p.bytes)
	binary.BigEndian.PutUint16(p.bytes[length:], uint16(len(p.bytes)-length-2))
	p.end(section)
}

// inZone adds a name, as a pointer where it is in the zone.
func (p *packer) inZone(name, zone wireName) {
	prefix, inside := strings.CutSuffix(string(name), string(zone))
	if !inside || !wholeLabels(prefix) {
		p.bytes = append(p.bytes, name...)
		return
	}
	p.bytes = append(p.bytes, prefix...)
	p.pointers = append(p.pointers, pointer{at: len(p.bytes), zone: true})
	p.bytes = append(p.bytes, 0, 0)
}

func wholeLabels(prefix string) bool {
	for len(prefix) > 0 {
		size := int(prefix[0])
		if size == 0 || len(prefix) < 1+size {
			return false
		}
		prefix = prefix[1+size:]
	}
	return true
}
