package port

// bitmap is a set of ports.
type bitmap [1 << 16 / 64]uint64

func (b *bitmap) has(p uint16) bool { return b[p/64]&(1<<(p%64)) != 0 }
func (b *bitmap) add(p uint16)      { b[p/64] |= 1 << (p % 64) }
func (b *bitmap) remove(p uint16)   { b[p/64] &^= 1 << (p % 64) }
