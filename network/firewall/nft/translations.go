package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// Translation is a rule of somebody's that leads what is addressed to ports of
// the host elsewhere.
type Translation struct {
	Family      string // "ip", "ip6" or "inet", as the nft program names it
	Table       string
	Chain       string // that the rule is in
	TCP, UDP    bool
	First, Last uint16
}

// Bounds of how far rules are followed.
const (
	walkDepth = 16 // jumps; the kernel allows as many
	walkSteps = 1 << 18
)

// ErrTooMany says that there were more rules than are followed.
var ErrTooMany = errors.New("more rules of nftables than are followed")

// Translations lists the rules, but for those in the chains that iptables makes,
// that translate the destination of packets which come in, or which the host
// sends, by a port or some; six says whether IPv6 counts. local tells whether an address of a network is
// the host's: what is for others only is left out. Conditions that are not about
// protocol, port and destination are taken to hold. With ErrTooMany comes what
// was found. A kernel without nftables has none.
func Translations(six bool, local func(netip.Prefix) bool) ([]Translation, error) {
	answers, err := request(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, unix.NFPROTO_UNSPEC)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	w := &walker{local: local, rules: make(map[base][][]byte), sets: make(map[base][]element), seen: make(map[visit]bool)}
	for _, answer := range answers {
		chain, ok := parseTranslating(answer)
		if !ok || chain.family == unix.NFPROTO_IPV6 && !six {
			continue
		}
		if err := w.walk(chain, scope{tcp: true, udp: true, last: ^uint16(0)}, 0); err != nil {
			return w.found, err
		}
	}
	return w.found, nil
}

// parseTranslating reads a chain; ok says that it translates destinations of
// packets and that iptables did not make it.
func parseTranslating(answer []byte) (chain base, ok bool) {
	if len(answer) < genmsgSize {
		return chain, false
	}
	chain.family = answer[0]
	b := answer[genmsgSize:]
	chain.table, chain.name = text(attribute(b, unix.NFTA_CHAIN_TABLE)), text(attribute(b, unix.NFTA_CHAIN_NAME))
	hook := attribute(b, unix.NFTA_CHAIN_HOOK)
	if hook == nil || text(attribute(b, unix.NFTA_CHAIN_TYPE)) != "nat" {
		return chain, false
	}
	if number := number(attribute(hook, unix.NFTA_HOOK_HOOKNUM)); number != unix.NF_INET_PRE_ROUTING && number != unix.NF_INET_LOCAL_OUT {
		return chain, false
	}
	switch chain.family {
	case unix.NFPROTO_INET:
		return chain, true
	case unix.NFPROTO_IPV4, unix.NFPROTO_IPV6:
		return chain, chain.table != "nat" || chain.name != strings.ToUpper(chain.name)
	}
	return chain, false
}

// scope is the packets that come to a place among the rules.
type scope struct {
	tcp, udp    bool
	first, last uint16
	to          netip.Prefix // their destination; invalid: any
}

// visit is a chain with what comes to it.
type visit struct {
	chain base
	scope scope
}

// walker follows rules from chain to chain.
type walker struct {
	local func(netip.Prefix) bool
	rules map[base][][]byte
	sets  map[base][]element // by family, table and name
	seen  map[visit]bool
	steps int
	found []Translation
}

// walk follows the rules of a chain.
func (w *walker) walk(chain base, in scope, depth int) error {
	if depth > walkDepth || w.seen[visit{chain, in}] || in.to.IsValid() && !w.local(in.to) {
		return nil
	}
	w.seen[visit{chain, in}] = true
	rules, known := w.rules[chain]
	if !known {
		var err error
		if rules, err = rulesOf(chain); err != nil {
			return err
		}
		w.rules[chain] = rules
	}
	for _, rule := range rules {
		if err := w.rule(chain, rule, in, depth); err != nil {
			return err
		}
	}
	return nil
}

// rule follows one rule as far as it leads.
func (w *walker) rule(chain base, expressions []byte, in scope, depth int) (err error) {
	var regs registers
	scopes := []scope{in}
	for _, expression := range attributes(expressions) {
		if w.steps += len(scopes); w.steps > walkSteps {
			return ErrTooMany
		}
		name, data := text(attribute(expression, unix.NFTA_EXPR_NAME)), attribute(expression, unix.NFTA_EXPR_DATA)
		switch {
		case name == "lookup":
			scopes, err = w.lookup(chain, &regs, data, scopes, depth)
		case name == "immediate":
			scopes, err = w.immediate(chain, &regs, data, scopes, depth)
		case name == "redir", name == "nat" && number(attribute(data, unix.NFTA_NAT_TYPE)) == unix.NFT_NAT_DNAT:
			w.translated(chain, scopes)
			return nil
		default:
			scopes = regs.step(name, data, chain.family, scopes)
		}
		if err != nil || len(scopes) == 0 { // nothing gets further
			return err
		}
	}
	return nil
}

// lookup follows a look into a set or a map, and returns what gets past it.
func (w *walker) lookup(chain base, regs *registers, data []byte, scopes []scope, depth int) ([]scope, error) {
	if number(attribute(data, unix.NFTA_LOOKUP_FLAGS))&unix.NFT_LOOKUP_F_INV != 0 {
		return scopes, nil
	}
	elements, err := w.elements(chain, text(attribute(data, unix.NFTA_LOOKUP_SET)))
	if err != nil {
		return nil, err
	}
	from, to := word(number(attribute(data, unix.NFTA_LOOKUP_SREG))), attribute(data, unix.NFTA_LOOKUP_DREG)
	if to != nil && number(to) == unix.NFT_REG_VERDICT {
		return nil, w.verdicts(chain, regs, from, elements, scopes, depth)
	}
	scopes = regs.among(from, elements, scopes)
	if to != nil {
		regs.forget(word(number(to)))
	}
	return scopes, nil
}

// immediate follows a verdict, or a value for a register, and returns what gets
// past it.
func (w *walker) immediate(chain base, regs *registers, data []byte, scopes []scope, depth int) ([]scope, error) {
	to := number(attribute(data, unix.NFTA_IMMEDIATE_DREG))
	if to != unix.NFT_REG_VERDICT {
		regs.forget(word(to))
		return scopes, nil
	}
	target := jump(attribute(data, unix.NFTA_IMMEDIATE_DATA))
	for _, out := range scopes {
		if target == "" {
			break // it is decided
		}
		if err := w.walk(base{family: chain.family, table: chain.table, name: target}, out, depth+1); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// verdicts follows a map of verdicts.
func (w *walker) verdicts(chain base, regs *registers, from int, elements []element, scopes []scope, depth int) error {
	for i := range elements {
		if elements[i].chain == "" {
			continue
		}
		for _, out := range regs.among(from, elements[i:i+1], scopes) {
			if w.steps++; w.steps > walkSteps {
				return ErrTooMany
			}
			if err := w.walk(base{family: chain.family, table: chain.table, name: elements[i].chain}, out, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// translated notes what a rule leads elsewhere, unless that is everything: who
// does so means what has no other use.
func (w *walker) translated(chain base, scopes []scope) {
	for _, s := range scopes {
		if s.first == 0 && s.last == ^uint16(0) || s.to.IsValid() && !w.local(s.to) {
			continue
		}
		w.found = append(w.found, Translation{
			Family: map[uint8]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_INET: "inet"}[chain.family],
			Table:  chain.table, Chain: chain.name, TCP: s.tcp, UDP: s.udp, First: s.first, Last: s.last,
		})
	}
}

// elements are those of a set, in a table.
func (w *walker) elements(chain base, name string) ([]element, error) {
	set := base{family: chain.family, table: chain.table, name: name}
	found, known := w.sets[set]
	if !known {
		var err error
		if found, err = elementsOf(set); err != nil {
			return nil, fmt.Errorf("list elements of set %s: %w", name, err)
		}
		w.sets[set] = found
	}
	return found, nil
}
