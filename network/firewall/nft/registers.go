package nft

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"golang.org/x/sys/unix"
)

// field is what a register of nftables holds of a packet, as far as it matters
// here.
type field struct {
	kind fieldKind
	size int // bytes
	bits int // of an address, those that count
	six  bool
}

type fieldKind uint8

const (
	otherField fieldKind = iota
	protocolField
	portField
	addressField
)

// Offsets in the headers of IPv4 (RFC 791), IPv6 (RFC 8200), and TCP and UDP,
// bytes.
const (
	protocolOffset  = 9
	addressOffset   = 16
	protocolOffset6 = 6
	addressOffset6  = 24
	portOffset      = 2
)

// registers are the data registers of the kernel's machine, in words of four
// bytes.
type registers [16]field

// word is the first word of a register: there are four of 16 bytes, which are
// the same as sixteen of 4.
func word(register uint32) int {
	switch {
	case register >= unix.NFT_REG_1 && register <= unix.NFT_REG_4:
		return int(register-unix.NFT_REG_1) * 4
	case register >= unix.NFT_REG32_00 && register <= unix.NFT_REG32_15:
		return int(register - unix.NFT_REG32_00)
	}
	return -1
}

func (r *registers) put(at int, f field) {
	if at < 0 || at >= len(r) {
		return
	}
	r[at] = f
	for next := at + 1; next < min(at+(f.size+3)/4, len(r)); next++ { // it takes these, too
		r[next] = field{}
	}
}

func (r *registers) at(at int) field {
	if at < 0 || at >= len(r) {
		return field{}
	}
	return r[at]
}

// forget says that something else is in a register.
func (r *registers) forget(at int) { r.put(at, field{}) }

// step reads an expression that loads something or compares it, and returns
// which packets get past it.
func (r *registers) step(name string, data []byte, family uint8, scopes []scope) []scope {
	switch name {
	case "meta":
		if to := attribute(data, unix.NFTA_META_DREG); to != nil {
			f := field{}
			if number(attribute(data, unix.NFTA_META_KEY)) == unix.NFT_META_L4PROTO {
				f = field{kind: protocolField, size: 1}
			}
			r.put(word(number(to)), f)
		}
	case "payload":
		if to := attribute(data, unix.NFTA_PAYLOAD_DREG); to != nil {
			r.put(word(number(to)), loaded(data, family))
		}
	case "bitwise":
		f := r.at(word(number(attribute(data, unix.NFTA_BITWISE_SREG))))
		mask := attribute(attribute(data, unix.NFTA_BITWISE_MASK), unix.NFTA_DATA_VALUE)
		if f.kind == addressField && len(mask) == f.size {
			f.bits = ones(mask)
		} else {
			f = field{}
		}
		r.put(word(number(attribute(data, unix.NFTA_BITWISE_DREG))), f)
	case "cmp":
		return r.compare(data, scopes)
	case "range":
		if number(attribute(data, unix.NFTA_RANGE_OP)) != unix.NFT_RANGE_EQ {
			return scopes
		}
		f := r.at(word(number(attribute(data, unix.NFTA_RANGE_SREG))))
		return f.between(scopes, attribute(attribute(data, unix.NFTA_RANGE_FROM_DATA), unix.NFTA_DATA_VALUE),
			attribute(attribute(data, unix.NFTA_RANGE_TO_DATA), unix.NFTA_DATA_VALUE))
	case "counter", "log", "limit", "quota", "connlimit", "last", "match", "masq", "notrack":
	default:
		*r = registers{} // it may have loaded something, somewhere
	}
	return scopes
}

// ones is how many bits a mask begins with.
func ones(mask []byte) (count int) {
	for _, b := range mask {
		count += bits.LeadingZeros8(^b)
		if b != 0xff {
			break
		}
	}
	return count
}

// loaded is what a payload expression loads.
func loaded(data []byte, family uint8) field {
	offset, size := int(number(attribute(data, unix.NFTA_PAYLOAD_OFFSET))), int(number(attribute(data, unix.NFTA_PAYLOAD_LEN)))
	switch number(attribute(data, unix.NFTA_PAYLOAD_BASE)) {
	case unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		if offset == portOffset && size == 2 {
			return field{kind: portField, size: size}
		}
	case unix.NFT_PAYLOAD_NETWORK_HEADER:
		f := field{size: size}
		// In the family inet it may be the header of either, unless that is asked.
		if family != unix.NFPROTO_IPV6 {
			f = ofHeader(offset, size, protocolOffset, addressOffset, 4)
		}
		if family != unix.NFPROTO_IPV4 && f.kind == otherField {
			f = ofHeader(offset, size, protocolOffset6, addressOffset6, 16)
			f.six = true
		}
		if f.kind == protocolField && family == unix.NFPROTO_INET {
			return field{size: size}
		}
		return f
	}
	return field{size: size}
}

// ofHeader is what is at an offset of a header with the protocol and the
// destination, of so many bytes, where it has them.
func ofHeader(offset, size, protocol, address, whole int) field {
	switch {
	case offset == address && size >= 1 && size <= whole:
		return field{kind: addressField, size: size, bits: 8 * size}
	case offset == protocol && size == 1:
		return field{kind: protocolField, size: size}
	}
	return field{size: size}
}

func (r *registers) compare(data []byte, scopes []scope) []scope {
	f := r.at(word(number(attribute(data, unix.NFTA_CMP_SREG))))
	value := attribute(attribute(data, unix.NFTA_CMP_DATA), unix.NFTA_DATA_VALUE)
	operation := number(attribute(data, unix.NFTA_CMP_OP))
	if operation == unix.NFT_CMP_EQ {
		return f.between(scopes, value, value)
	}
	if f.kind != portField || len(value) != 2 {
		return scopes
	}
	limit := binary.BigEndian.Uint16(value)
	low, high := uint16(0), ^uint16(0)
	switch operation {
	case unix.NFT_CMP_LT:
		high = limit - 1 // nothing is below 0, and nobody says so
	case unix.NFT_CMP_LTE:
		high = limit
	case unix.NFT_CMP_GT:
		low = limit + 1
	case unix.NFT_CMP_GTE:
		low = limit
	}
	return f.between(scopes, binary.BigEndian.AppendUint16(nil, low), binary.BigEndian.AppendUint16(nil, high))
}

// between returns which packets have a value from low to high, both included.
func (f field) between(scopes []scope, low, high []byte) (kept []scope) {
	if f.kind == otherField || len(low) < f.size || len(high) < f.size {
		return scopes
	}
	for _, s := range scopes {
		if f.narrow(&s, low[:f.size], high[:f.size]) {
			kept = append(kept, s)
		}
	}
	return kept
}

// narrow is between for one scope; false: nothing is left.
func (f field) narrow(s *scope, low, high []byte) bool {
	switch f.kind {
	case protocolField:
		s.tcp = s.tcp && low[0] <= unix.IPPROTO_TCP && unix.IPPROTO_TCP <= high[0]
		s.udp = s.udp && low[0] <= unix.IPPROTO_UDP && unix.IPPROTO_UDP <= high[0]
		return s.tcp || s.udp
	case portField:
		s.first, s.last = max(s.first, binary.BigEndian.Uint16(low)), min(s.last, binary.BigEndian.Uint16(high))
		return s.first <= s.last
	case addressField:
		if string(low) != string(high) {
			return true // not followed
		}
		address := make([]byte, 4)
		if f.six {
			address = make([]byte, 16)
		}
		copy(address, low)
		whole, _ := netip.AddrFromSlice(address)
		to := netip.PrefixFrom(whole, f.bits).Masked()
		if s.to.IsValid() && !s.to.Overlaps(to) {
			return false
		}
		if !s.to.IsValid() || to.Bits() > s.to.Bits() {
			s.to = to
		}
	case otherField: // not followed
	}
	return true
}

// among returns which packets are in a set, whose keys are what is in the
// registers from one on.
func (r *registers) among(from int, elements []element, scopes []scope) (kept []scope) {
	if !r.matters(from, elements) {
		return scopes
	}
	for i := range elements {
		left := scopes
		for at := 0; at < len(elements[i].low) && len(left) > 0; at += 4 {
			left = r.at(from+at/4).between(left, elements[i].low[at:], elements[i].high[at:])
		}
		kept = append(kept, left...)
	}
	return kept
}

// matters tells whether keys are about something that is followed.
func (r *registers) matters(from int, elements []element) bool {
	for i := range elements {
		for at := 0; at < len(elements[i].low); at += 4 {
			if r.at(from+at/4).kind != otherField {
				return true
			}
		}
	}
	return false
}
