package firewall

import (
	"fmt"
	"net/netip"
	"strings"
)

// Rules that are about addresses of environments are found through a tree of
// chains over fixed, aligned blocks of addresses, 16 to a block: a packet
// passes at most 16 rules of each level and those of the last, whatever the
// number of environments. Blocks without a rule have no chain. Those of IPv6 are
// the blocks of the twins, and called alike.

// leafBits is the length of a block of the last level: 32 networks of
// environments.
const leafBits = 24

// levels are the lengths of the blocks below the subnet, widest first.
func (l *layout) levels() (lengths []int) {
	for bits := 8; bits <= leafBits; bits += 4 {
		if bits > l.subnet.Bits() {
			lengths = append(lengths, bits)
		}
	}
	return lengths
}

// tree hangs rules about addresses under a chain. Flag says which address of a
// packet decides, "-s" or "-d"; name is what the chain of a block is called.
// Leaves are added in the order of their addresses, which is what keeps the
// rules of a chain in order.
type tree struct {
	layout *layout
	all    chains
	root   string
	flag   string
	name   func(block netip.Prefix) string
}

// add appends rules, without their "-A CHAIN", to the leaf of an address.
func (t *tree) add(address netip.Addr, rules ...string) {
	chain := t.root
	for _, bits := range t.layout.levels() {
		block := netip.PrefixFrom(address, bits).Masked()
		next := t.name(block)
		if _, there := t.all[next]; !there {
			t.all[next] = nil
			t.all[chain] = append(t.all[chain], fmt.Sprintf("-A %s %s %s -j %s", chain, t.flag, t.layout.block(block), next))
		}
		chain = next
	}
	for _, rule := range rules {
		t.all[chain] = append(t.all[chain], fmt.Sprintf("-A %s %s %s %s", chain, t.flag, t.layout.host(address), rule))
	}
}

// blockName is a name for the chain of a block, such as RGPU-OUT-10.88.16-20:
// of at most 28 characters, since the last byte of a block is 0.
func blockName(chain string, block netip.Prefix) string {
	text := block.Addr().String()
	return fmt.Sprintf("%s-%s-%d", chain, text[:strings.LastIndexByte(text, '.')], block.Bits())
}
