package firewall

import (
	"encoding/binary"
	"net/netip"
)

// Twins gives each address of environments in Subnet a twin in Subnet6, so that
// an environment's place in the one decides its place in the other, and nothing
// is to be kept of it. The network that holds the twins of an environment's
// network is a /64 when Subnet6 has that many, else a /112: both leave the
// number of the environment to be read in the address, fd88:0:0:3::2 for slot 3.
type Twins struct {
	Subnet  netip.Prefix // IPv4, masked
	Subnet6 netip.Prefix // IPv6, masked; invalid: there are no twins
}

// Lengths of the network of one environment.
const (
	wideBits   = 64
	narrowBits = 112
)

// Near is the link-local address of every environment, each of which is alone on
// its link with its gateway.
func Near() netip.Addr { return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 15: HostNumber}) }

// slotBits is how long the number of an environment is.
func (t Twins) slotBits() int { return NetworkBits - t.Subnet.Bits() }

// Fits tells whether Subnet6 has a network for each one in Subnet.
func (t Twins) Fits() bool {
	return t.Subnet6.IsValid() && t.Subnet6.Addr().Is6() && !t.Subnet6.Addr().Is4In6() && t.Subnet6.Bits()+t.slotBits() <= narrowBits
}

// Bits is the length of the network of one environment.
func (t Twins) Bits() int {
	if t.Subnet6.Bits()+t.slotBits() <= wideBits {
		return wideBits
	}
	return narrowBits
}

// Of is the twin of an address in Subnet.
func (t Twins) Of(address netip.Addr) netip.Addr {
	base, own := t.Subnet.Addr().As4(), address.As4()
	offset := binary.BigEndian.Uint32(own[:]) - binary.BigEndian.Uint32(base[:])
	number, slot := uint64(offset)%(1<<(32-NetworkBits)), uint64(offset)>>(32-NetworkBits)
	twin := t.Subnet6.Addr().As16()
	high, low := binary.BigEndian.Uint64(twin[:8]), binary.BigEndian.Uint64(twin[8:])
	if t.Bits() == wideBits {
		high += slot
	} else {
		low += slot << (128 - narrowBits)
	}
	binary.BigEndian.PutUint64(twin[:8], high)
	binary.BigEndian.PutUint64(twin[8:], low+number)
	return netip.AddrFrom16(twin)
}

// Back is the address in Subnet whose twin an address is. Of an environment's
// network only its gateway and its own have one; the others have a spare one of
// it.
func (t Twins) Back(twin netip.Addr) (address netip.Addr, ok bool) {
	if !t.Subnet6.IsValid() || !t.Subnet6.Contains(twin) {
		return netip.Addr{}, false
	}
	base, own := t.Subnet6.Addr().As16(), twin.As16()
	slot := binary.BigEndian.Uint64(own[:8]) - binary.BigEndian.Uint64(base[:8])
	number := binary.BigEndian.Uint64(own[8:])
	if t.Bits() == narrowBits {
		if slot != 0 {
			return netip.Addr{}, false
		}
		rest := number - binary.BigEndian.Uint64(base[8:])
		slot, number = rest>>(128-narrowBits), rest%(1<<(128-narrowBits))
	}
	if slot>>t.slotBits() != 0 {
		return netip.Addr{}, false
	}
	if number > HostNumber {
		number = HostNumber + 1
	}
	start := t.Subnet.Addr().As4()
	var found [4]byte
	binary.BigEndian.PutUint32(found[:], binary.BigEndian.Uint32(start[:])+uint32(slot)<<(32-NetworkBits)+uint32(number))
	return netip.AddrFrom4(found), true
}

// block is the network that holds the twins of a block in Subnet which is not
// smaller than an environment's network.
func (t Twins) block(block netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(t.Of(block.Addr()), t.Bits()-(NetworkBits-block.Bits()))
}
