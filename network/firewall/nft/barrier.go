package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Barrier is a chain of somebody's that packets come through and that lets go
// only what its own rules accept. No other chain can overrule it.
type Barrier struct {
	Family  string // "ip", "ip6" or "inet", as the nft program names it
	Table   string
	Chain   string
	Policy  bool    // it drops by its policy; otherwise by a rule that lets nothing pass
	Accepts Accepts // of forwarded packets
}

// How says by what it stops packets.
func (b *Barrier) How() string {
	if b.Policy {
		return "its policy is drop"
	}
	return "its last rule drops or rejects"
}

// Accepts is what rules of a chain itself accept.
type Accepts struct {
	Known   bool // packets by the state of their connection
	DNAT    bool // packets whose destination was rewritten
	Bridges bool // packets by an interface whose name begins as was asked for
}

// base is a chain, mostly one that hangs in the path of packets.
type base struct {
	family      uint8
	table, name string
	policy      uint32
}

// Barriers lists the barriers for forwarded packets, of IPv4 and with six of IPv6
// too, but for those in the tables that iptables makes. Bridges are the interfaces that begin with so
// named. What jumps to other chains is not followed.
func Barriers(bridges string, six bool) ([]Barrier, error) {
	answers, err := request(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, unix.NFPROTO_UNSPEC)
	if err != nil {
		return nil, err
	}
	var found []Barrier
	for _, answer := range answers {
		chain, ok := parseBase(answer, unix.NF_INET_FORWARD, "FORWARD")
		if !ok || chain.family == unix.NFPROTO_IPV6 && !six {
			continue
		}
		barrier := barrierOf(chain)
		rules, err := rulesOf(chain)
		if err != nil {
			return nil, err
		}
		sealed := false
		for _, rule := range rules {
			end, accepts := look(rule, bridges)
			sealed = sealed || end
			barrier.Accepts.Known = barrier.Accepts.Known || accepts.Known
			barrier.Accepts.DNAT = barrier.Accepts.DNAT || accepts.DNAT
			barrier.Accepts.Bridges = barrier.Accepts.Bridges || accepts.Bridges
		}
		if barrier.Policy || sealed {
			found = append(found, barrier)
		}
	}
	return found, nil
}

func barrierOf(chain base) Barrier {
	return Barrier{
		Family: map[uint8]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_INET: "inet"}[chain.family],
		Table:  chain.table, Chain: chain.name, Policy: chain.policy == nfDrop,
	}
}

// Verdicts (linux/netfilter.h).
const (
	nfDrop   = 0
	nfAccept = 1
)

// parseBase reads a chain; ok says that packets come through it at a hook and
// that it is not the one of iptables there, which is called so.
func parseBase(answer []byte, at uint32, iptables string) (chain base, ok bool) {
	if len(answer) < genmsgSize {
		return chain, false
	}
	chain.family = answer[0]
	b := answer[genmsgSize:]
	chain.table, chain.name = text(attribute(b, unix.NFTA_CHAIN_TABLE)), text(attribute(b, unix.NFTA_CHAIN_NAME))
	chain.policy = nfAccept
	if policy := attribute(b, unix.NFTA_CHAIN_POLICY); policy != nil {
		chain.policy = number(policy)
	}
	hook := attribute(b, unix.NFTA_CHAIN_HOOK)
	if hook == nil || number(attribute(hook, unix.NFTA_HOOK_HOOKNUM)) != at {
		return chain, false
	}
	switch chain.family {
	case unix.NFPROTO_INET:
		return chain, true
	case unix.NFPROTO_IPV4, unix.NFPROTO_IPV6:
		// iptables' own, the hook is the first that these rules are passed from.
		return chain, chain.name != iptables
	}
	return chain, false
}

// rulesOf returns the expressions of the rules of a chain.
func rulesOf(chain base) ([][]byte, error) {
	answers, err := request(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, chain.family,
		nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(chain.table)),
		nl.NewRtAttr(unix.NFTA_RULE_CHAIN, nl.ZeroTerminated(chain.name)))
	if err != nil {
		return nil, fmt.Errorf("list rules of chain %s: %w", chain.name, err)
	}
	var rules [][]byte
	for _, answer := range answers {
		if len(answer) < genmsgSize {
			continue
		}
		b := answer[genmsgSize:]
		// Kernels before 4.10 ignore the filter.
		if text(attribute(b, unix.NFTA_RULE_TABLE)) == chain.table && text(attribute(b, unix.NFTA_RULE_CHAIN)) == chain.name {
			rules = append(rules, attribute(b, unix.NFTA_RULE_EXPRESSIONS))
		}
	}
	return rules, nil
}

// look reads a rule: whether nothing gets past it, and what it accepts by.
func look(expressions []byte, bridges string) (end bool, by Accepts) {
	matches, accepts, drops := 0, false, false
	for _, element := range attributes(expressions) {
		data := attribute(element, unix.NFTA_EXPR_DATA)
		switch text(attribute(element, unix.NFTA_EXPR_NAME)) {
		case "counter", "log", "notrack":
		case "reject":
			drops = true
		case "immediate":
			switch verdict(data) {
			case nfAccept:
				accepts = true
			case nfDrop:
				drops = true
			default:
				matches++ // a jump, or a value for another expression
			}
		case "ct":
			matches++
			switch number(attribute(data, unix.NFTA_CT_KEY)) {
			case unix.NFT_CT_STATE:
				by.Known = true
			case unix.NFT_CT_STATUS:
				by.DNAT = true
			}
		case "cmp":
			matches++
			value := attribute(attribute(data, unix.NFTA_CMP_DATA), unix.NFTA_DATA_VALUE)
			by.Bridges = by.Bridges || bridges != "" && bytes.HasPrefix(value, []byte(bridges))
		default:
			matches++
		}
	}
	if !accepts {
		by = Accepts{}
	}
	return drops && matches == 0, by
}

// verdict of an immediate expression; one that is none of the two above when
// it sets something else.
func verdict(data []byte) uint32 {
	return verdictCode(attribute(data, unix.NFTA_IMMEDIATE_DATA))
}

func verdictCode(data []byte) uint32 {
	code := attribute(attribute(data, unix.NFTA_DATA_VERDICT), unix.NFTA_VERDICT_CODE)
	if len(code) < 4 {
		return ^uint32(0)
	}
	return binary.BigEndian.Uint32(code)
}
