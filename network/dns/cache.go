package dns

import (
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	miekg "github.com/miekg/dns"
)

// For how long answers are kept: what name servers say, within bounds.
const (
	maxKept     = time.Hour
	maxNegative = 5 * time.Minute
	// keptFailure spares a server that is in trouble (RFC 9520 section 3.2).
	keptFailure = 2 * time.Second
	// maxRecords bounds what one answer takes in memory.
	maxRecords = 1000
	maxOwners  = 17 // the name, and those that its CNAMEs lead to
)

// cacheKey is a question, its name in lower case.
type cacheKey struct {
	name              string
	kind              uint16
	dnssec, unchecked bool
}

// kept is an answer that is kept.
type kept struct {
	rcode int
	records,
	ns []miekg.RR
	at, until time.Time
}

// keep takes from a message what answers a question: records of its name and
// of those that its CNAMEs lead to, and why there are none. What else a server
// sends is not asked of it. With guard, addresses that are private or in one of
// its networks are left out: a public name that leads to one makes a browser
// reach what its owner cannot (DNS rebinding).
func keep(message *miekg.Msg, name string, guard *guard, now time.Time) *kept {
	k := &kept{rcode: message.Rcode, at: now}
	ttl, last := k.keepRecords(message.Answer, name, guard)
	proofTTL, said := k.keepProof(message.Ns, last)
	ttl = min(ttl, proofTTL)
	negative := message.Rcode == miekg.RcodeNameError || len(k.records) == 0
	switch {
	case message.Rcode != miekg.RcodeSuccess && message.Rcode != miekg.RcodeNameError:
		k.until = now.Add(keptFailure)
	case negative && !said:
		k.until = now // nobody said for how long (RFC 2308 section 5)
	case negative:
		k.until = now.Add(min(time.Duration(ttl)*time.Second, maxNegative))
	default:
		k.until = now.Add(min(time.Duration(ttl)*time.Second, maxKept))
	}
	return k
}

// keepRecords keeps the records of the name and of those that its CNAMEs lead
// to, of which last is the last one. ttl is the shortest, seconds.
func (k *kept) keepRecords(records []miekg.RR, name string, guard *guard) (ttl uint32, last string) {
	ttl = math.MaxUint32
	owners := []string{name}
	for _, rr := range records {
		header := rr.Header()
		asked := slices.ContainsFunc(owners, func(owner string) bool { return strings.EqualFold(owner, header.Name) })
		if !asked || header.Class != miekg.ClassINET || len(k.records) == maxRecords || guard != nil && leadsInside(rr, guard.site) {
			continue
		}
		if cname, ok := rr.(*miekg.CNAME); ok && len(owners) < maxOwners {
			owners = append(owners, cname.Target)
		}
		k.records = append(k.records, rr)
		ttl = min(ttl, header.Ttl)
	}
	return ttl, owners[len(owners)-1]
}

// keepProof keeps the records that say that there is nothing more, and for how
// long that can be relied upon, seconds.
func (k *kept) keepProof(records []miekg.RR, name string) (ttl uint32, said bool) {
	ttl = math.MaxUint32
	for _, rr := range records {
		if len(k.ns) == maxRecords {
			break
		}
		switch rr := rr.(type) {
		case *miekg.SOA:
			if !miekg.IsSubDomain(rr.Hdr.Name, name) {
				continue
			}
			said = true
			ttl = min(ttl, rr.Hdr.Ttl, rr.Minttl)
		case *miekg.NSEC, *miekg.NSEC3, *miekg.RRSIG: // of a signed zone
			ttl = min(ttl, rr.Header().Ttl)
		default:
			continue
		}
		k.ns = append(k.ns, rr)
	}
	return ttl, said
}

// answer is a copy with the time that is left, in the case of the question.
func (k *kept) answer(q Question, now time.Time) Answer {
	age := uint32(max(0, now.Sub(k.at)/time.Second))
	most := uint32(maxKept / time.Second)
	copies := func(rrs []miekg.RR) []miekg.RR {
		copied := make([]miekg.RR, 0, len(rrs))
		for _, rr := range rrs {
			rr = miekg.Copy(rr)
			header := rr.Header()
			header.Ttl = min(header.Ttl, most)
			header.Ttl -= min(header.Ttl, age)
			if strings.EqualFold(header.Name, q.Name) {
				header.Name = q.Name
			}
			copied = append(copied, rr)
		}
		return copied
	}
	return Answer{Rcode: k.rcode, Answer: copies(k.records), Ns: copies(k.ns)}
}

// cache keeps answers, a bounded number of them.
type cache struct {
	size int

	mu      sync.Mutex
	entries map[cacheKey]*kept
}

func (c *cache) get(key cacheKey, now time.Time) *kept {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := c.entries[key]
	if found == nil || now.Before(found.until) {
		return found
	}
	delete(c.entries, key)
	return nil
}

func (c *cache) put(key cacheKey, answer *kept) {
	if !answer.until.After(answer.at) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		c.entries = make(map[cacheKey]*kept)
	}
	c.entries[key] = answer
	for len(c.entries) > c.size {
		delete(c.entries, c.oldest())
	}
}

// clear forgets all answers.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.entries)
}

// oldest is the entry that ends first of a few: a map is read in random order.
// The bound of memory matters, not which answer is asked for again.
func (c *cache) oldest() cacheKey {
	var oldest cacheKey
	seen := 0
	for key, answer := range c.entries {
		if seen == 0 || answer.until.Before(c.entries[oldest].until) {
			oldest = key
		}
		if seen++; seen == 8 {
			break
		}
	}
	return oldest
}
