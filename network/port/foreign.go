package port

// Span is host ports of a protocol, both ends included.
type Span struct {
	Protocol    Protocol
	First, Last uint16
	Rule        string // what uses them, for people
}

// foreign are the host ports that rules of other tools lead elsewhere: no
// program has them bound, so probing does not find them.
type foreign struct {
	spans []Span
	sets  map[Protocol]*bitmap
}

func newForeign(spans []Span) *foreign {
	f := &foreign{spans: spans, sets: map[Protocol]*bitmap{TCP: {}, UDP: {}}}
	for _, span := range spans {
		if set, known := f.sets[span.Protocol]; known {
			set.addAll(span)
		}
	}
	return f
}

// rule is what leads a port elsewhere.
func (f *foreign) rule(protocol Protocol, port uint16) (string, bool) {
	if !f.sets[protocol].has(port) {
		return "", false
	}
	for _, span := range f.spans {
		if span.Protocol == protocol && span.First <= port && port <= span.Last {
			return span.Rule, true
		}
	}
	return "", false
}

// SetForeign replaces what is known of rules of other tools: their ports are
// not given out.
func (p *Pool) SetForeign(spans []Span) {
	f := newForeign(spans)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.foreign = f
}
