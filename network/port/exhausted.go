package port

import (
	"errors"
	"fmt"
	"strings"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// errExhausted marks a PORT_POOL_EXHAUSTED of pick.
var errExhausted = errors.New("every port is held or used by another program")

// exhausted says what has the ports of a pool of which none can be given to a
// request, and what helps. p.mu is held.
func (p *Pool) exhausted(r Request, i int) error {
	pool := p.ranges[r.Service]
	exhausted := problem.New(problem.PortPoolExhausted, "no host port of the pool of %s is free", r.Service).
		WithField(fmt.Sprintf("%s[%d]", requestField, i)).WithCause(errExhausted)
	if p.probeFailure != nil {
		return exhausted.WithCause(errors.Join(errExhausted, p.probeFailure)).
			WithHint("host ports cannot be taken; the node's log says why (for too many open files: LimitNOFILE of its unit)")
	}
	counts := p.countTaken(r)
	var parts, advice []string
	tell := func(count int, what, then string) {
		if count == 0 {
			return
		}
		parts = append(parts, fmt.Sprintf("%d %s", count, what))
		if then != "" {
			advice = append(advice, then)
		}
	}
	tell(counts.held, "held by environments", "delete environments")
	tell(counts.resting, fmt.Sprintf("resting (released less than %s ago)", p.rests.quarantine), "try again later")
	tell(counts.denied, "denied by [ports] deny", "")
	tell(counts.foreign, "in rules of other tools", "")
	refusedThen := ""
	if r.Service == Custom {
		refusedThen = "ask by its number for one that browsers refuse"
	}
	tell(counts.refused, "refused by browsers", refusedThen)
	tell(counts.others, "used by other programs", "")
	advice = append(advice, "widen the range (remotegpu port pool set)")
	return exhausted.WithHint("the %s ports of %d-%d are %s: %s",
		r.Protocol, pool.First, pool.Last, strings.Join(parts, ", "), strings.Join(advice, ", or "))
}

// takenPorts is how many ports of a range cannot be given to a request, each
// counted once, by what has it.
type takenPorts struct{ held, resting, denied, foreign, refused, others int }

// countTaken counts the ports of a pool. What search could not take for no reason
// that is known here another program has. p.mu is held.
func (p *Pool) countTaken(r Request) (counts takenPorts) {
	pool := p.ranges[r.Service]
	for i := int(pool.First); i <= int(pool.Last); i++ {
		switch port := uint16(i); {
		case p.ports[r.Protocol].taken.has(port):
			counts.held++
		case p.denied[r.Protocol].has(port):
			counts.denied++
		case openedInBrowsers(r.Service) && p.refused.has(port):
			counts.refused++
		case p.foreign.sets[r.Protocol].has(port):
			counts.foreign++
		case p.rests.sets[r.Protocol].has(port):
			counts.resting++
		default:
			counts.others++
		}
	}
	return counts
}
