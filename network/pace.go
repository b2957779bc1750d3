package network

import (
	"sync"
	"time"
)

// pace lets through a burst, and then one each interval. So whoever changes
// rules without an end makes the node work at a bounded rate.
type pace struct {
	burst    int
	interval time.Duration

	mu   sync.Mutex
	left float64 // of the burst, at the time at
	at   time.Time
}

// wait is how long the caller has to wait before it goes ahead; it has gone
// ahead for those that follow.
func (p *pace) wait(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at.IsZero() {
		p.left = float64(p.burst)
	} else {
		p.left = min(float64(p.burst), p.left+float64(now.Sub(p.at))/float64(p.interval))
	}
	p.at = now
	p.left--
	if p.left >= 0 {
		return 0
	}
	return time.Duration(-p.left * float64(p.interval))
}
