package nft

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// stateNew is the bit of a packet that opens a connection in what "ct state"
// loads (NF_CT_STATE_BIT of linux/netfilter/nf_conntrack_common.h).
const stateNew = 1 << 3

// namesPort is where names are asked for.
const namesPort = 53

// NameBarriers lists the chains that packets to the host come through, but for
// those in the tables that iptables makes, which let no question for names
// through that comes over UDP from a bridge, whose name begins so, to that
// address of IPv4. What a rule asks besides is taken to hold, so a chain that is
// listed stops all of them, and one that is not may stop some. A drop in the
// middle of a chain is not followed.
func NameBarriers(bridges string, to netip.Addr) ([]Barrier, error) {
	answers, err := request(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, unix.NFPROTO_UNSPEC)
	if err != nil {
		return nil, err
	}
	q := &questions{
		walker: walker{sets: make(map[base][]element)}, bridges: []byte(bridges), scope: scope{udp: true, first: namesPort, last: namesPort, to: netip.PrefixFrom(to, to.BitLen())},
	}
	var found []Barrier
	for _, answer := range answers {
		chain, ok := parseBase(answer, unix.NF_INET_LOCAL_IN, "INPUT")
		if !ok || chain.family == unix.NFPROTO_IPV6 {
			continue
		}
		policy := chain.policy == nfDrop
		q.followed = make(map[base]bool)
		accepted, sealed, err := q.follow(base{family: chain.family, table: chain.table, name: chain.name}, 0)
		if err != nil {
			return nil, err
		}
		if !accepted && (policy || sealed) {
			found = append(found, barrierOf(chain))
		}
	}
	return found, nil
}

// questions are packets that ask for names, followed from chain to chain.
type questions struct {
	walker
	bridges  []byte
	scope    scope
	followed map[base]bool
}

// follow tells whether a rule of a chain may accept them, and whether one that
// lets nothing pass comes before that.
func (q *questions) follow(chain base, depth int) (accepted, sealed bool, err error) {
	if q.followed[chain] {
		return false, false, nil
	}
	if q.followed[chain] = true; depth > walkDepth {
		return true, false, nil
	}
	rules, err := rulesOf(chain)
	if err != nil {
		return false, false, err
	}
	for _, rule := range rules {
		if accepted, err := q.accepts(chain, rule, depth); accepted || err != nil {
			return accepted, false, err
		}
		if end, _ := look(rule, ""); end {
			return false, true, nil
		}
	}
	return false, false, nil
}

// accepts tells whether a rule may accept them, or leads to one that may.
func (q *questions) accepts(chain base, expressions []byte, depth int) (bool, error) {
	var regs registers
	known := make(keys)
	scopes := []scope{q.scope}
	for _, expression := range attributes(expressions) {
		name, data := text(attribute(expression, unix.NFTA_EXPR_NAME)), attribute(expression, unix.NFTA_EXPR_DATA)
		passes := true
		switch name {
		case "cmp":
			value := attribute(attribute(data, unix.NFTA_CMP_DATA), unix.NFTA_DATA_VALUE)
			key, asked := known[word(number(attribute(data, unix.NFTA_CMP_SREG)))]
			passes = !asked || number(attribute(data, unix.NFTA_CMP_OP)) != unix.NFT_CMP_EQ || q.holds(key, value)
			scopes = regs.step(name, data, chain.family, scopes)
		case "lookup":
			if number(attribute(data, unix.NFTA_LOOKUP_FLAGS))&unix.NFT_LOOKUP_F_INV != 0 {
				continue
			}
			elements, err := q.held(chain, &regs, known, data, scopes)
			if to := attribute(data, unix.NFTA_LOOKUP_DREG); err != nil || to != nil && number(to) == unix.NFT_REG_VERDICT {
				return q.leadsAny(chain, elements, depth, err)
			}
			passes = len(elements) > 0
		case "immediate":
			if number(attribute(data, unix.NFTA_IMMEDIATE_DREG)) == unix.NFT_REG_VERDICT {
				return q.leads(chain, verdict(data) == nfAccept, jump(attribute(data, unix.NFTA_IMMEDIATE_DATA)), depth)
			}
			regs.forget(word(number(attribute(data, unix.NFTA_IMMEDIATE_DREG))))
		default:
			passes = known.load(name, data)
			scopes = regs.step(name, data, chain.family, scopes)
		}
		if !passes || len(scopes) == 0 {
			return false, nil
		}
	}
	return false, nil
}

// keys are what registers hold that rules about connections and interfaces ask
// for: keys of meta, and ctState.
type keys map[int]uint32

// load reads an expression that loads something, or masks it; passes is false for
// a mask that leaves nothing of a packet which opens a connection.
func (k keys) load(name string, data []byte) (passes bool) {
	switch name {
	case "meta":
		k[word(number(attribute(data, unix.NFTA_META_DREG)))] = number(attribute(data, unix.NFTA_META_KEY))
	case "ct":
		at := word(number(attribute(data, unix.NFTA_CT_DREG)))
		if delete(k, at); number(attribute(data, unix.NFTA_CT_KEY)) == unix.NFT_CT_STATE {
			k[at] = ctState
		}
	case "payload":
		delete(k, word(number(attribute(data, unix.NFTA_PAYLOAD_DREG))))
	case "bitwise":
		mask := attribute(attribute(data, unix.NFTA_BITWISE_MASK), unix.NFTA_DATA_VALUE)
		passes := k[word(number(attribute(data, unix.NFTA_BITWISE_SREG)))] != ctState || isNew(mask)
		delete(k, word(number(attribute(data, unix.NFTA_BITWISE_DREG))))
		return passes
	}
	return true
}

// held are the elements of a set or map that may hold for them.
func (q *questions) held(chain base, regs *registers, known keys, data []byte, scopes []scope) (held []element, err error) {
	all, err := q.elements(chain, text(attribute(data, unix.NFTA_LOOKUP_SET)))
	from := word(number(attribute(data, unix.NFTA_LOOKUP_SREG)))
	key, asked := known[from]
	for i, e := range all {
		if len(regs.among(from, all[i:i+1], scopes)) > 0 && (!asked || !bytes.Equal(e.low, e.high) || q.holds(key, e.low)) {
			held = append(held, e)
		}
	}
	return held, err
}

// leadsAny is leads for elements of a map of verdicts.
func (q *questions) leadsAny(chain base, elements []element, depth int, err error) (bool, error) {
	for _, e := range elements {
		if accepted, err := q.leads(chain, e.accepts, e.chain, depth); accepted || err != nil {
			return accepted, err
		}
	}
	return false, err
}

// leads tells whether a verdict accepts them, or leads to a chain that may.
func (q *questions) leads(chain base, accepts bool, target string, depth int) (bool, error) {
	if accepts || target == "" {
		return accepts, nil
	}
	accepted, _, err := q.follow(base{family: chain.family, table: chain.table, name: target}, depth+1)
	return accepted, err
}

// ctState is beside the keys of meta: what "ct state" loads.
const ctState = ^uint32(0)

// holds tells whether what a key loads may be that value.
func (q *questions) holds(key uint32, value []byte) bool {
	switch key {
	case unix.NFT_META_IIFNAME:
		name, _, whole := bytes.Cut(value[:min(len(value), unix.IFNAMSIZ)], []byte{0})
		return bytes.HasPrefix(name, q.bridges) || !whole && bytes.HasPrefix(q.bridges, name)
	case unix.NFT_META_IIF:
		return false // bridges come and go
	case unix.NFT_META_NFPROTO:
		return len(value) > 0 && value[0] == unix.NFPROTO_IPV4
	case ctState:
		return isNew(value)
	}
	return true
}

func isNew(state []byte) bool {
	return len(state) >= 4 && binary.NativeEndian.Uint32(state)&stateNew != 0
}
