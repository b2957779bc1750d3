package port

import "math/bits"

// bitmap is a set of ports.
type bitmap [1 << 16 / 64]uint64

func (b *bitmap) has(p uint16) bool { return b[p/64]&(1<<(p%64)) != 0 }
func (b *bitmap) add(p uint16)      { b[p/64] |= 1 << (p % 64) }
func (b *bitmap) remove(p uint16)   { b[p/64] &^= 1 << (p % 64) }

// addAll adds the ports of a span.
func (b *bitmap) addAll(s Span) {
	for p := int(s.First); p <= int(s.Last); p++ {
		b.add(uint16(p))
	}
}

// inNone finds the first port from first to last, both included, that is in
// none of the sets. It looks at 64 ports at a time.
func inNone(first, last int, sets []*bitmap) (uint16, bool) {
	for word := first / 64; word <= last/64; word++ {
		var taken uint64
		for _, set := range sets {
			taken |= set[word]
		}
		if word == first/64 {
			taken |= 1<<(first%64) - 1 // those before first
		}
		if free := ^taken; free != 0 {
			found := word*64 + bits.TrailingZeros64(free)
			return uint16(found), found <= last
		}
	}
	return 0, false
}
