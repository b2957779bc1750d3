package nft

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// keyEnd is NFTA_SET_ELEM_KEY_END (linux/netfilter/nf_tables.h): the last key of
// an interval of several fields.
const keyEnd = 10

// element is one of a set or map.
type element struct {
	low, high []byte // keys, both included, of the same length
	chain     string // of a map of verdicts: where it leads
	accepts   bool   // of such a map
	ends      bool   // only that an interval has ended before
}

// elementsOf lists the elements of a set.
func elementsOf(set base) ([]element, error) {
	answers, err := request(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, set.family,
		nl.NewRtAttr(unix.NFTA_SET_ELEM_LIST_TABLE, nl.ZeroTerminated(set.table)),
		nl.NewRtAttr(unix.NFTA_SET_ELEM_LIST_SET, nl.ZeroTerminated(set.name)))
	if err != nil {
		return nil, err
	}
	var found []element
	for _, answer := range answers {
		if len(answer) < genmsgSize {
			continue
		}
		for _, one := range attributes(attribute(answer[genmsgSize:], unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
			low := attribute(attribute(one, unix.NFTA_SET_ELEM_KEY), unix.NFTA_DATA_VALUE)
			if low == nil {
				continue // what holds for all others
			}
			e := element{low: low, high: low, ends: number(attribute(one, unix.NFTA_SET_ELEM_FLAGS))&unix.NFT_SET_ELEM_INTERVAL_END != 0}
			if high := attribute(attribute(one, keyEnd), unix.NFTA_DATA_VALUE); len(high) == len(low) {
				e.high = high
			}
			data := attribute(one, unix.NFTA_SET_ELEM_DATA)
			e.chain, e.accepts = jump(data), verdictCode(data) == nfAccept
			found = append(found, e)
		}
	}
	return intervals(found), nil
}

// intervals gives the elements of a set of intervals of one field their ends,
// which the kernel has as elements of their own.
func intervals(all []element) []element {
	if !slices.ContainsFunc(all, func(e element) bool { return e.ends }) {
		return all
	}
	slices.SortFunc(all, func(a, b element) int {
		// One that ends where the next begins comes first.
		return cmp.Or(bytes.Compare(a.low, b.low), map[bool]int{true: -1, false: 1}[a.ends]-map[bool]int{true: -1, false: 1}[b.ends])
	})
	var found []element
	for i, e := range all {
		if e.ends {
			continue
		}
		e.high = bytes.Repeat([]byte{0xff}, len(e.low))
		if i+1 < len(all) {
			e.high = before(all[i+1].low)
		}
		found = append(found, e)
	}
	return found
}

// before is the key below one, which is not the lowest.
func before(key []byte) []byte {
	key = slices.Clone(key)
	for i := len(key) - 1; i >= 0; i-- {
		key[i]--
		if key[i] != 0xff {
			break
		}
	}
	return key
}

// jump is where a verdict leads, "" when nowhere.
func jump(data []byte) (chain string) {
	verdict := attribute(data, unix.NFTA_DATA_VERDICT)
	code := attribute(verdict, unix.NFTA_VERDICT_CODE)
	if len(code) != 4 {
		return ""
	}
	switch int32(binary.BigEndian.Uint32(code)) {
	case unix.NFT_JUMP, unix.NFT_GOTO:
		return text(attribute(verdict, unix.NFTA_VERDICT_CHAIN))
	}
	return ""
}
