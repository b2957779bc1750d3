package port

import "fmt"

// Review tells what about the ranges an operator should know, in sentences. None
// of it is in the way of the pool: a port is given once, whatever overlaps.
func (p *Pool) Review() []string { return p.review(Services()...) }

// ReviewOf is Review about the range of one service.
func (p *Pool) ReviewOf(service Service) []string { return p.review(service) }

func (p *Pool) review(about ...Service) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	defaults := make(map[Service]Range)
	for _, r := range DefaultRanges() {
		defaults[r.Service] = r
	}
	isDefault := func(r Range) bool { return defaults[r.Service].First == r.First && defaults[r.Service].Last == r.Last }
	var found []string
	told := make(map[Service]bool)
	for _, service := range about {
		r := p.ranges[service]
		told[service] = true
		for _, other := range Services() {
			o := p.ranges[other]
			if !told[other] && r.First <= o.Last && o.First <= r.Last && (!isDefault(r) || !isDefault(o)) {
				found = append(found, fmt.Sprintf("the pools of %s (%d-%d) and %s (%d-%d) overlap and share those ports",
					service, r.First, r.Last, other, o.First, o.Last))
			}
		}
		never := []*bitmap{p.denied[TCP], p.foreign.sets[TCP]}
		if openedInBrowsers(service) {
			never = append(never, &p.refused)
		}
		if _, left := inNone(int(r.First), int(r.Last), never); !left {
			found = append(found, fmt.Sprintf("no port of the pool of %s (%d-%d) is given out: [ports] deny, rules of other tools or browsers that refuse them have all of them",
				service, r.First, r.Last))
		}
	}
	return found
}
