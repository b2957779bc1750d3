// Package nft looks at the kernel's nftables over netlink: it tells who changed
// which chains, and lists chains that hang in the path of packets. It changes
// nothing, and needs no nft program. Sockets belong to the network namespace of
// the thread that opens them.
package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// genmsgSize is the size of struct nfgenmsg, which is before the attributes.
const genmsgSize = 4

// attributes yields type and value of the attributes in b (struct nlattr: length
// and type in the host's order, padded to 4 bytes). It ends where b makes no
// sense.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			size := int(binary.NativeEndian.Uint16(b))
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if size < unix.SizeofNlAttr || size > len(b) {
				return
			}
			if !yield(kind, b[unix.SizeofNlAttr:size]) {
				return
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}

// attribute is the value of the first attribute of that type, nil without one.
func attribute(b []byte, kind uint16) []byte {
	for k, value := range attributes(b) {
		if k == kind {
			return value
		}
	}
	return nil
}

// text is a string attribute, which ends with a zero.
func text(b []byte) string { return unix.ByteSliceToString(b) }

// number is an attribute of nftables, 32 bits in network order; 0 without one.
func number(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// requestTries is how often a list is asked for that was changed while it was
// read (NLM_F_DUMP_INTR in netlink(7)).
const requestTries = 50

// request asks nftables for something and returns the answers, each behind its
// struct nfgenmsg.
func request(message int, flags int, family uint8, data ...*nl.RtAttr) (answers [][]byte, err error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|message, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: unix.NFNETLINK_V0})
	for _, attribute := range data {
		req.AddData(attribute)
	}
	for range requestTries {
		if answers, err = req.Execute(unix.NETLINK_NETFILTER, 0); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("ask nftables: %w", err)
	}
	return answers, nil
}

// Generation is the number of the rules as they are now. Each transaction that
// changes something counts it by one.
func Generation() (uint32, error) {
	answers, err := request(unix.NFT_MSG_GETGEN, 0, unix.AF_UNSPEC)
	if err != nil {
		return 0, err
	}
	for _, answer := range answers {
		if len(answer) >= genmsgSize {
			if id := attribute(answer[genmsgSize:], unix.NFTA_GEN_ID); id != nil {
				return number(id), nil
			}
		}
	}
	return 0, fmt.Errorf("ask nftables for its generation: %w", unix.EBADMSG)
}
