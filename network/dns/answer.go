package dns

import (
	"slices"

	miekg "github.com/miekg/dns"
)

// maxChase is how many CNAMEs are followed.
const maxChase = 8

// outcome is what becomes of a question.
type outcome int

const (
	answered outcome = iota
	dropped          // nobody gets an answer
	abroad           // it is about a name of others, and may be forwarded
)

// answerer answers questions from a snapshot.
type answerer struct {
	snapshot *snapshot
	client   *client // nil: not an environment
	recurse  bool    // questions are forwarded for this client
}

// flags are those of every answer to this client.
func (a *answerer) flags(authoritative bool) uint16 {
	var flags uint16
	if authoritative {
		flags |= flagAA
	}
	if a.recurse {
		flags |= flagRA
	}
	return flags
}

// answer appends the answer to a question that was read, unless it is abroad.
// rest is a name that the answer leads to and that is not ours: the rest of
// the answer has to be asked for, if the client wants it whole.
func (a *answerer) answer(q *query, out []byte, limit int) (answer []byte, result outcome, rest wireName) {
	z := a.snapshot.zoneOf(q)
	if z == nil {
		return out, abroad, ""
	}
	reply := func(rcode int, b *body) ([]byte, outcome, wireName) {
		return q.respond(out, a.flags(true), rcode, b, len(z.name), limit), answered, ""
	}
	if q.labels == z.labels {
		if q.qtype == miekg.TypeANY {
			return reply(noError, &anyBody)
		}
		if found := pick(z.top(a.client), q.qtype); found != nil {
			return reply(noError, &found.body)
		}
		return reply(noError, &z.negative)
	}
	if z.reversed {
		rcode, b := a.reverse(q, z)
		return reply(rcode, b)
	}
	n := z.view(a.client).find(q, q.labels-z.labels)
	if n == nil {
		return reply(miekg.RcodeNameError, &z.negative)
	}
	var groups []string
	if a.client != nil {
		groups = a.client.groups
	}
	sets := n.of(groups)
	found := pick(sets, q.qtype)
	switch {
	case found == nil && q.qtype == miekg.TypeANY && len(sets) > 0:
		return reply(noError, &anyBody)
	case found == nil:
		return reply(noError, &z.negative)
	case len(found.far) > 0:
		return reply(noError, a.addressed(found, groups))
	case found.kind != miekg.TypeCNAME || q.qtype == miekg.TypeCNAME || q.qtype == miekg.TypeANY:
		return reply(noError, &found.body)
	}
	b, rcode, rest := a.chase(z, q.qtype, found, groups)
	return q.respond(out, a.flags(true), rcode, b, len(z.name), limit), answered, rest
}

// addressed is the answer of SRV records with the addresses of the names in our
// zones that they lead to, as far as the client sees them (RFC 2782).
func (a *answerer) addressed(found *set, groups []string) *body {
	p := packer{body: body{
		bytes: slices.Clone(found.body.bytes), pointers: slices.Clone(found.body.pointers), ends: slices.Clone(found.body.ends),
		answers: found.body.answers, authority: found.body.authority, additional: found.body.additional,
	}}
	var q query
	for _, target := range found.far {
		q.set(target)
		z := a.snapshot.zoneOf(&q)
		if z == nil || z.reversed || q.labels == z.labels {
			continue
		}
		n := z.view(a.client).find(&q, q.labels-z.labels)
		if n == nil {
			continue
		}
		sets := n.of(groups)
		for i := range sets {
			if sets[i].kind != miekg.TypeA && sets[i].kind != miekg.TypeAAAA {
				continue
			}
			for _, r := range sets[i].plain {
				p.add(additionalSection, target, r)
			}
		}
	}
	return &p.body
}

// reverse answers who has an address.
func (a *answerer) reverse(q *query, z *zone) (rcode int, b *body) {
	network, ok := q.reversed()
	switch {
	case !ok, !network.IsSingleIP() && !a.snapshot.leadsWithin(a.client, network):
		return miekg.RcodeNameError, &z.negative
	case !network.IsSingleIP():
		return noError, &z.negative
	}
	ptr := a.snapshot.ptr(a.client, network.Addr())
	switch {
	case ptr == nil:
		return miekg.RcodeNameError, &z.negative
	case q.qtype == miekg.TypeANY:
		return noError, &anyBody
	case q.qtype != miekg.TypePTR:
		return noError, &z.negative
	}
	return noError, ptr
}

// chase follows a CNAME within our zones. from is the zone it is in.
func (a *answerer) chase(from *zone, kind uint16, found *set, groups []string) (b *body, rcode int, rest wireName) {
	var p packer
	ends := func(z *zone, rcode int) (*body, int, wireName) {
		if z == from {
			p.addSOA(authoritySection, z.soa, min(zoneTTL, negativeTTL))
		} else { // the body cannot point to the zone's name in the question
			p.add(authoritySection, z.name, z.soa.record(min(zoneTTL, negativeTTL)))
		}
		return &p.body, rcode, ""
	}
	p.add(answerSection, "", found.plain[0])
	var q query
	for range maxChase {
		target := found.target
		q.set(target)
		z := a.snapshot.zoneOf(&q)
		if z == nil {
			return &p.body, noError, target
		}
		var sets []set
		if q.labels == z.labels {
			sets = z.top(a.client)
		} else if !z.reversed {
			n := z.view(a.client).find(&q, q.labels-z.labels)
			if n == nil {
				return ends(z, miekg.RcodeNameError)
			}
			sets = n.of(groups)
		}
		next := pick(sets, kind)
		if next == nil || next.plain == nil {
			return ends(z, noError)
		}
		for _, r := range next.plain {
			p.add(answerSection, target, r)
		}
		if next.kind != miekg.TypeCNAME {
			return &p.body, noError, ""
		}
		found = next
	}
	return nil, miekg.RcodeServerFailure, ""
}

// set makes the question's name a name of ours.
func (q *query) set(name wireName) {
	q.labels, q.length = 0, len(name)
	copy(q.lower[:], name)
	for at := 0; q.lower[at] != 0; at += 1 + int(q.lower[at]) {
		q.offsets[q.labels] = uint8(at)
		q.labels++
	}
}

// anyBody is the answer to whoever asks for all that is at a name, unless that
// is a CNAME (RFC 8482 section 4.2).
var anyBody = func() body {
	var p packer
	p.add(answerSection, "", record{kind: miekg.TypeHINFO, ttl: zoneTTL, data: []byte("\x07RFC8482\x00")})
	return p.body
}()
