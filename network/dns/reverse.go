package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// reverseZones are the zones below in-addr.arpa and ip6.arpa that hold a
// network: one, or several where it does not end at a label. What is smaller
// than the zone of the last label gets that: private addresses beside it are
// nobody else's to tell about (RFC 6303).
func reverseZones(network netip.Prefix) []wireName {
	network = network.Masked()
	step, last := 8, 24
	if network.Addr().Is6() {
		step, last = 4, 124
	}
	bits := min((network.Bits()+step-1)/step*step, last)
	var zones []wireName
	address := network.Addr()
	for range 1 << max(0, bits-network.Bits()) {
		zones = append(zones, reverseName(netip.PrefixFrom(address, bits)))
		address = following(address, bits)
	}
	return zones
}

// reverseName is the name of a network that ends at a label.
func reverseName(network netip.Prefix) wireName {
	var name strings.Builder
	if network.Addr().Is4() {
		octets := network.Addr().As4()
		for i := network.Bits()/8 - 1; i >= 0; i-- {
			fmt.Fprintf(&name, "%d.", octets[i])
		}
		return toWire(name.String() + "in-addr.arpa")
	}
	nibbles := network.Addr().As16()
	for i := network.Bits()/4 - 1; i >= 0; i-- {
		fmt.Fprintf(&name, "%x.", nibbles[i/2]>>(4*(1-i%2))&0xf)
	}
	return toWire(name.String() + "ip6.arpa")
}

// following is the first address after the network of that length.
func following(address netip.Addr, bits int) netip.Addr {
	bytes := address.AsSlice()
	for i, carry := (bits-1)/8, 1<<(7-(bits-1)%8); i >= 0 && carry > 0; i, carry = i-1, carry>>8 {
		carry += int(bytes[i])
		bytes[i] = byte(carry)
	}
	next, _ := netip.AddrFromSlice(bytes)
	return next
}

// reversed reads the question's name as that of an address, or of a network
// that ends at a label; ok is false for what is neither.
func (q *query) reversed() (network netip.Prefix, ok bool) {
	if q.labels < 2 {
		return netip.Prefix{}, false
	}
	digits := q.labels - 2
	if string(q.label(q.labels-2)) == "ip6" {
		var nibbles [16]byte
		if digits > 32 {
			return netip.Prefix{}, false
		}
		for i := range digits {
			label := q.label(digits - 1 - i)
			value, err := strconv.ParseUint(string(label), 16, 4)
			if err != nil || len(label) != 1 {
				return netip.Prefix{}, false
			}
			nibbles[i/2] |= byte(value) << (4 * (1 - i%2))
		}
		return netip.PrefixFrom(netip.AddrFrom16(nibbles), 4*digits), true
	}
	var octets [4]byte
	if digits > 4 {
		return netip.Prefix{}, false
	}
	for i := range digits {
		label := q.label(digits - 1 - i)
		value, err := strconv.ParseUint(string(label), 10, 8)
		if err != nil || len(label) > 1 && label[0] == '0' {
			return netip.Prefix{}, false
		}
		octets[i] = byte(value)
	}
	return netip.PrefixFrom(netip.AddrFrom4(octets), 8*digits), true
}

// leadsWithin says whether there is an address in a network of which the client
// may know who has it: the network's name exists then (RFC 8020).
func (s *snapshot) leadsWithin(c *client, network netip.Prefix) bool {
	view := everybody
	if c != nil {
		view = c.project
	}
	leading := s.leading()[view]
	at, _ := slices.BinarySearchFunc(leading, network.Addr(), netip.Addr.Compare)
	return network.Contains(s.node) || at < len(leading) && network.Contains(leading[at])
}

// sortLeading are the addresses that lead to names, in order: by project for its
// environments, and for who is none.
func (s *snapshot) sortLeading() map[string][]netip.Addr {
	leading := make(map[string][]netip.Addr)
	for address, owner := range s.clients {
		if owner.outside != nil {
			leading[everybody] = append(leading[everybody], address)
		}
		if owner.inside != nil {
			leading[owner.project] = append(leading[owner.project], address)
		}
	}
	for _, addresses := range leading {
		slices.SortFunc(addresses, netip.Addr.Compare)
	}
	return leading
}
